//! Real programs, each with its log cut under it and never told: a shell with `>` and with `>>`, a
//! writer with a buffer of its own, rsyslogd, nginx, and Kamailio's accounting into a flat store.
//!
//! Each writes records with numbers; its log is cut by `mv` while it does, then by logrotate. Every
//! record must be there once. Programs that are not installed are SKIPPED, loudly.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::guard::{Cask, installed, sh, until};

/// Longest time a program may take for anything.
const LIMIT: Duration = Duration::from_secs(60);

/// A program that was started, ended with this.
struct Program(Child);

impl Program {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Asks it to end, as an init system would, and waits.
    fn end(mut self) {
        sh("kill", ["-TERM", &self.0.id().to_string()]).ok();
        until("the program ends", LIMIT, || self.ended());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Only if a test failed before it ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where a program from Debian is; says so if it is not there.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        // Past the capture of the test harness.
        let test = thread::current().name().unwrap_or("test").to_owned();
        let line =
            format!("SKIPPED: {test} ({name} is not installed; scripts/setup tests does that)\n");
        let stderr = fs::File::options().write(true).open("/dev/stderr");
        let _ = stderr.and_then(|mut file| file.write_all(line.as_bytes()));
    }
    found
}

/// A port of the loopback that nobody listens on.
fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn logs(cask: &Cask) -> Vec<PathBuf> {
    let entries = fs::read_dir(cask.path("logs")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Cuts every live log of the store once by `mv`, on a thread of its own.
fn cut_by_mv(cask: &Cask, round: u32) {
    for log in logs(cask) {
        if log.extension().is_some_and(|end| end == "log") {
            let mut to = log.clone().into_os_string();
            to.push(format!(".{round:05}"));
            // It may have no record since the last cut.
            thread::scope(|scope| scope.spawn(|| fs::rename(&log, &to)).join().unwrap())
                .unwrap_or_else(|error| assert_eq!(error.kind(), std::io::ErrorKind::NotFound));
        }
    }
}

/// Cuts every live log by logrotate, which must have nothing to say.
fn cut_by_logrotate(cask: &Cask) {
    let (config, state) = (cask.outside("logrotate.conf"), cask.outside("state"));
    let text = format!(
        "{}/*.log {{\n rotate 1000\n missingok\n notifempty\n create\n compress\n}}\n",
        cask.path("logs").display()
    );
    fs::write(&config, text).unwrap();
    let ran = sh(
        "logrotate",
        [Path::new("-f"), Path::new("-s"), &state, &config],
    );
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (Some(0), ""),
        "logrotate complains"
    );
}

/// How often each number stands in all files of the store, as `number_of` finds it in a record.
fn counted(cask: &Cask, number_of: impl Fn(&str) -> u64) -> HashMap<u64, u32> {
    let mut counted = HashMap::new();
    for file in logs(cask) {
        let text = match file.extension() {
            Some(end) if end == "gz" => sh("zcat", [&file]).ok().stdout,
            _ => fs::read_to_string(&file).unwrap(),
        };
        assert!(
            text.is_empty() || text.ends_with('\n'),
            "{} is torn",
            file.display()
        );
        for line in text.lines() {
            *counted.entry(number_of(line)).or_default() += 1;
        }
    }
    counted
}

/// Whole records in all files of the store.
fn records(cask: &Cask) -> u64 {
    let of = |file: PathBuf| match file.extension() {
        Some(end) if end == "gz" => sh("zcat", [&file]).ok().stdout.into_bytes(),
        _ => fs::read(&file).unwrap(),
    };
    let ends = |text: Vec<u8>| text.iter().filter(|byte| **byte == b'\n').count() as u64;
    logs(cask).into_iter().map(|file| ends(of(file))).sum()
}

/// Every number from 1 to `count` is there once, and no other.
fn once_each(what: &str, counted: &HashMap<u64, u32>, count: u64) {
    let lost = (1..=count)
        .filter(|number| !counted.contains_key(number))
        .count();
    let doubled = counted.values().filter(|times| **times != 1).count();
    println!("{what}: {count} records, {lost} lost, {doubled} doubled");
    assert_eq!((lost, doubled, counted.len() as u64), (0, 0, count));
}

/// Cuts by `mv` while the first half is written, by logrotate while the second is. `written` is how
/// many records the program has been made to write by now.
fn cut_under(cask: &Cask, count: u64, written: &dyn Fn() -> u64) -> u32 {
    let mut cuts = 0;
    let mut next = count / 40;
    let mut by_logrotate = 0;
    while next < count {
        until("the program writes", LIMIT, || written() >= next);
        if next < count / 2 {
            cut_by_mv(cask, cuts);
        } else if by_logrotate < 5 {
            cut_by_logrotate(cask);
            by_logrotate += 1;
        }
        cuts += 1;
        next = written().max(next) + count / 40;
    }
    cuts
}

/// A shell script writes the numbers up to `count` into `$LOG`, and how far it is into `$NOTE`.
fn shell(what: &str, count: u64, script: &str) {
    let Some(cask) = Cask::mounted() else {
        return;
    };
    if !installed("logrotate") {
        return;
    }
    let note = cask.outside("note");
    let mut shell = Program::start(
        Command::new("sh")
            .args(["-c", script])
            .env("LOG", cask.path("logs/a.log"))
            .env("NOTE", &note)
            .env("COUNT", count.to_string()),
    );
    let written = || {
        let text = fs::read_to_string(&note).unwrap_or_default();
        text.lines()
            .last()
            .and_then(|line| line.parse().ok())
            .unwrap_or(0)
    };
    let cuts = cut_under(&cask, count, &written);
    until("the shell ends", LIMIT, || shell.ended());
    assert!(cuts > 4, "{cuts} cuts");
    once_each(what, &counted(&cask, |line| line.parse().unwrap()), count);
}

#[test]
fn a_shell_that_writes_from_the_start() {
    let script = "exec 3>$LOG; i=0; while [ $i -lt $COUNT ]; do i=$((i+1)); echo $i >&3; \
                  [ $((i%100)) = 0 ] && echo $i >>$NOTE; done; echo $i >>$NOTE";
    shell("a shell with >", 40_000, script);
}

#[test]
fn a_shell_that_appends_and_opens_for_each_record() {
    let script = "i=0; while [ $i -lt $COUNT ]; do i=$((i+1)); echo $i >>$LOG; \
                  [ $((i%100)) = 0 ] && echo $i >>$NOTE; done; echo $i >>$NOTE";
    shell("a shell with >>", 20_000, script);
}

#[test]
fn a_writer_that_buffers_four_kibibytes() {
    // awk writes its log through a buffer, so writes end inside records.
    let script = "awk 'BEGIN { for (i = 1; i <= ENVIRON[\"COUNT\"]; i++) { print i > ENVIRON[\"LOG\"]; \
                  if (i % 20000 == 0) { print i >> ENVIRON[\"NOTE\"]; fflush(ENVIRON[\"NOTE\"]) } } }'; \
                  echo $COUNT >>$NOTE";
    shell("awk with its buffer", 4_000_000, script);
}

#[test]
fn rsyslogd_is_never_told() {
    let Some(cask) = Cask::mounted() else {
        return;
    };
    let Some(program) = program("rsyslogd").filter(|_| installed("logrotate")) else {
        return;
    };
    let (config, port) = (cask.outside("rsyslog.conf"), port());
    let text = format!(
        "global(workDirectory=\"{}\")\nmodule(load=\"imtcp\")\ninput(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")\n\
         template(name=\"t\" type=\"string\" string=\"%msg:2:$%\\n\")\n\
         action(type=\"omfile\" file=\"{}\" template=\"t\")\n",
        config.parent().unwrap().display(),
        cask.path("logs/sys.log").display()
    );
    fs::write(&config, text).unwrap();
    let rsyslogd = Program::start(
        Command::new(program)
            .arg("-n")
            .arg("-f")
            .arg(&config)
            .arg("-i")
            .arg(cask.outside("rsyslog.pid")),
    );
    let mut stream = None;
    until("rsyslogd listens", LIMIT, || {
        stream = TcpStream::connect(("127.0.0.1", port)).ok();
        stream.is_some()
    });
    let mut stream = stream.unwrap();
    let (count, sent) = (40_000, std::sync::atomic::AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=count {
                let line = format!("<13>Nov 25 17:00:00 here tag: {number}\n");
                stream.write_all(line.as_bytes()).unwrap();
                sent.store(number, std::sync::atomic::Ordering::SeqCst);
            }
        });
        cut_under(&cask, count, &|| {
            sent.load(std::sync::atomic::Ordering::SeqCst)
        });
    });
    drop(stream);
    let number_of = |line: &str| line.trim().parse().unwrap();
    until("everything is written", LIMIT, || records(&cask) >= count);
    rsyslogd.end();
    once_each("rsyslogd", &counted(&cask, number_of), count);
}

#[test]
fn nginx_is_never_told() {
    let Some(cask) = Cask::mounted() else {
        return;
    };
    let Some(program) = program("nginx").filter(|_| installed("logrotate")) else {
        return;
    };
    let (config, port) = (cask.outside("nginx.conf"), port());
    let dir = config.parent().unwrap().display().to_string();
    let text = format!(
        "daemon off;\nuser root;\nworker_processes 2;\npid {dir}/nginx.pid;\nerror_log {dir}/error.log;\n\
         events {{ worker_connections 64; }}\nhttp {{\n log_format n '$arg_n';\n access_log {} n;\n\
         keepalive_requests 100000;\n server {{ listen 127.0.0.1:{port} reuseport; return 204; }}\n}}\n",
        cask.path("logs/access.log").display()
    );
    fs::write(&config, text).unwrap();
    let nginx = Program::start(
        Command::new(program)
            .arg("-c")
            .arg(&config)
            .arg("-p")
            .arg(&dir),
    );
    until("nginx listens", LIMIT, || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let (count, sent) = (20_000_u64, std::sync::atomic::AtomicU64::new(0));
    thread::scope(|scope| {
        for client in 0..4 {
            let sent = &sent;
            scope.spawn(move || {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                for number in (1..=count).skip(client).step_by(4) {
                    let ask = format!("GET /?n={number} HTTP/1.1\r\nHost: here\r\n\r\n");
                    stream.write_all(ask.as_bytes()).unwrap();
                    let mut answer = Vec::new();
                    let mut buf = [0; 1024];
                    while !answer.ends_with(b"\r\n\r\n") {
                        let got = stream.read(&mut buf).unwrap();
                        assert!(got > 0, "nginx hung up");
                        answer.extend_from_slice(&buf[..got]);
                    }
                    assert!(answer.starts_with(b"HTTP/1.1 204"));
                    sent.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
            });
        }
        cut_under(&cask, count, &|| {
            sent.load(std::sync::atomic::Ordering::SeqCst)
        });
    });
    nginx.end();
    once_each(
        "nginx",
        &counted(&cask, |line| line.parse().unwrap()),
        count,
    );
}

#[test]
fn kamailio_accounts_into_a_flat_store_and_is_never_told() {
    let Some(cask) = Cask::mounted() else {
        return;
    };
    let (Some(server), Some(client)) = (program("kamailio"), program("sipp")) else {
        return;
    };
    if !installed("logrotate") {
        return;
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    drop(socket);
    let (config, scenario) = (cask.outside("kamailio.cfg"), cask.outside("options.xml"));
    let text = format!(
        "#!KAMAILIO\ndebug=0\nlog_stderror=yes\nfork=yes\nchildren=4\ndisable_tcp=yes\nauto_aliases=no\n\
         listen=udp:127.0.0.1:{port}\nloadmodule \"tm.so\"\nloadmodule \"sl.so\"\nloadmodule \"pv.so\"\n\
         loadmodule \"db_flatstore.so\"\nloadmodule \"acc.so\"\n\
         modparam(\"acc\", \"db_url\", \"flatstore:{}\")\n\
         request_route {{\n acc_db_request(\"200 OK\", \"acc\");\n sl_send_reply(\"200\", \"OK\");\n}}\n",
        cask.path("logs").display()
    );
    fs::write(&config, text).unwrap();
    let options = "<?xml version=\"1.0\" encoding=\"ISO-8859-1\" ?>\n<scenario name=\"options\">\n<send retrans=\"500\"><![CDATA[\n\
         \n      OPTIONS sip:x@[remote_ip]:[remote_port] SIP/2.0\n      Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]\n\
         \x20     From: <sip:a@[local_ip]:[local_port]>;tag=[call_number]\n      To: <sip:x@[remote_ip]>\n      Call-ID: [call_id]\n\
         \x20     CSeq: 1 OPTIONS\n      Max-Forwards: 70\n      Content-Length: 0\n\n    ]]></send>\n\
         <recv response=\"200\"></recv>\n</scenario>\n";
    fs::write(&scenario, options).unwrap();
    let dir = config.parent().unwrap();
    let kamailio = Program::start(
        Command::new(server)
            .args(["-DD", "-E", "-f"])
            .arg(&config)
            .arg("-w")
            .arg(dir)
            .arg("-Y")
            .arg(dir)
            .arg("-P")
            .arg(cask.outside("kamailio.pid"))
            .stderr(fs::File::create(cask.outside("kamailio.err")).unwrap()),
    );
    let probe = UdpSocket::bind("127.0.0.1:0").unwrap();
    probe
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let mine = probe.local_addr().unwrap().port();
    let ask = format!(
        "OPTIONS sip:x@127.0.0.1:{port} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{mine};branch=z9hG4bKprobe\r\n\
         From: <sip:a@127.0.0.1>;tag=probe\r\nTo: <sip:x@127.0.0.1>\r\nCall-ID: probe\r\nCSeq: 1 OPTIONS\r\n\
         Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
    );
    until("kamailio answers", LIMIT, || {
        let _ = probe.send_to(ask.as_bytes(), ("127.0.0.1", port));
        probe.recv(&mut [0; 2048]).is_ok()
    });
    let count = 4_000_u64;
    let mut sipp = Program::start(
        Command::new(client)
            .arg(format!("127.0.0.1:{port}"))
            .arg("-sf")
            .arg(&scenario)
            .args([
                "-m",
                &count.to_string(),
                "-r",
                "800",
                "-nostdin",
                "-i",
                "127.0.0.1",
            ])
            .current_dir(dir)
            .env("TERM", "dumb")
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    let (mut cuts, mut by_logrotate) = (0, 0);
    while !sipp.ended() {
        let written = records(&cask);
        if written < count / 2 {
            cut_by_mv(&cask, cuts);
        } else if by_logrotate < 5 {
            cut_by_logrotate(&cask);
            by_logrotate += 1;
        }
        cuts += 1;
    }
    kamailio.end();
    // The second field is the tag of the caller, a number but for the probes.
    let mut found = counted(&cask, |line| {
        let tag = line.split('|').nth(1).unwrap_or_default();
        tag.parse().unwrap_or(0)
    });
    found.remove(&0);
    assert!(cuts > 4, "{cuts} cuts");
    once_each("kamailio", &found, count);
    let store = logs(&cask);
    let processes = store.iter().filter(|file| {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("acc_")
    });
    assert_eq!(processes.count(), store.len(), "{store:?}");
}
