//! The manual page and the program tell the same.

use std::fs;

use crate::support::Scratch;

#[test]
fn the_manual_page_knows_every_verb_and_option() {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/caskfs.1");
    let page = fs::read_to_string(source).unwrap().replace("\\-", "-");
    let section = |verb: &str| {
        let from = page.find(&format!("\n.SS {verb}\n"));
        let section = &page[from.unwrap_or_else(|| panic!("no section on {verb}")) + 1..];
        let end = section.find("\n.S").unwrap_or(section.len());
        section[..end].to_owned()
    };
    let scratch = Scratch::new();
    let mut checked = 0;
    for verb in [
        "mkfs", "mount", "umount", "ls", "cp", "cat", "rm", "stat", "df", "info", "fsck", "scrub",
        "salvage", "set", "get", "mkstore", "resize", "snapshot", "rotate", "insert", "fields",
    ] {
        let section = section(verb);
        let help = scratch.run([verb, "--help"]).ok();
        let options = help
            .lines()
            .filter(|line| line.trim_start().starts_with('-'));
        for word in options.flat_map(|line| line.split([' ', ',', '=', '['])) {
            // These two every verb may have; the page says so once.
            if !word.starts_with("--") || ["--help", "--json"].contains(&word) {
                continue;
            }
            checked += 1;
            assert!(
                section.contains(word),
                "{verb}: {word} is not in the manual page"
            );
        }
    }
    assert!(checked > 20, "only {checked} options found in the help");
}
