//! Do the container's tools say the same of a mounted cask, of the same cask closed, and as ordinary
//! programs say of the mount?

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::guard::{Cask, Dice, caskfs, setting, sh};

/// Inode number and content of each file below a directory, by its path from there.
fn files(top: &Path) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![top.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let (path, metadata) = (entry.path(), entry.metadata().unwrap());
            if metadata.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(top).unwrap().to_path_buf();
                found.insert(name, (metadata.ino(), fs::read(path).unwrap()));
            }
        }
    }
    found
}

#[test]
fn the_tools_agree_with_the_mount_and_with_the_closed_container() {
    let Some(mut cask) = Cask::mounted_with(&["--files=4096", "--label=edge-3 storage"]) else {
        return;
    };
    let mut dice = Dice::new(setting("CASKFS_SEED", 1));
    let mut dirs = vec![cask.path("logs"), cask.path("sessions"), cask.path("")];
    for number in 0..300_u64 {
        let dir = dirs[dice.below(dirs.len() as u64) as usize].clone();
        let path = dir.join(format!("n {number}"));
        match dice.below(8) {
            0 => {
                fs::create_dir(&path).unwrap();
                dirs.push(path);
            }
            _ => {
                let most = 1 << dice.below(18);
                let len = dice.below(most);
                fs::write(
                    &path,
                    (0..len).map(|at| (at ^ number) as u8).collect::<Vec<_>>(),
                )
                .unwrap();
            }
        }
    }
    let mounted = files(cask.mountpoint());
    let bytes: usize = mounted.values().map(|(_, content)| content.len()).sum();
    let used = {
        let found = rustix::fs::statvfs(cask.mountpoint()).unwrap();
        found.f_files - found.f_ffree
    };
    let totals = format!("Totals: {used} of 4096 inodes take up {bytes} bytes.");
    let container = cask.container().to_path_buf();
    let mut lists = Vec::new();
    for state in ["mounted", "closed"] {
        let list = caskfs(["ls".as_ref(), "-g".as_ref(), container.as_os_str()])
            .ok()
            .stdout;
        assert_eq!(list.lines().last(), Some(totals.as_str()), "{state}");
        lists.push(list.lines().skip(2).map(str::to_owned).collect::<Vec<_>>());
        let numbers = caskfs(["ls".as_ref(), "-1".as_ref(), container.as_os_str()])
            .ok()
            .stdout;
        assert_eq!(numbers.lines().count() as u64, used, "{state}");
        for (name, (number, content)) in mounted.iter().step_by(17) {
            let out = cask.outside("exported");
            let export = format!("{number}={}", out.display());
            caskfs([
                "cp".as_ref(),
                container.as_os_str(),
                "-x".as_ref(),
                export.as_ref(),
            ])
            .ok();
            assert_eq!(
                fs::read(&out).unwrap(),
                *content,
                "{state}: {}",
                name.display()
            );
        }
        let all = cask.outside(format!("all {state}"));
        fs::create_dir(&all).unwrap();
        caskfs([
            "cp".as_ref(),
            "-A".as_ref(),
            container.as_os_str(),
            all.as_os_str(),
        ])
        .ok();
        let exported = files(&all);
        assert_eq!(exported.len(), mounted.len());
        for (name, (_, content)) in &exported {
            assert_eq!(*content, mounted[name].1, "{state}: {}", name.display());
        }
        // The command makes another like it.
        let command = caskfs([
            "info".as_ref(),
            "--mkfs-command".as_ref(),
            container.as_os_str(),
        ]);
        let command = command.ok().stdout;
        let twin = cask.outside(format!("twin {state}"));
        let line = format!(
            "{} '{}'",
            command.trim().replacen("caskfs", super::guard::BIN, 1),
            twin.display()
        );
        sh("sh", ["-c", &line]).ok();
        let of_twin = caskfs(["info".as_ref(), "--mkfs-command".as_ref(), twin.as_os_str()]);
        assert_eq!(of_twin.ok().stdout, command, "{state}");
        if state == "mounted" {
            cask.unmount();
        }
    }
    assert_eq!(lists[0], lists[1]);
}
