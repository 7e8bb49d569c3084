//! Sessions of a web program: PHP with its own session files, several workers, clients in parallel.
//!
//! Each request counts its session's hits, as every tutorial does. PHP locks the file from reading it to
//! closing it, so no hit may be lost and no session torn: not among workers, not when workers are killed, not
//! when the daemon is. What was answered was saved, unless PHP overlooked that closing had failed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::guard::{Cask, Share, sh, until};
use super::programs::program;

/// Longest time a server may take for anything.
const LIMIT: Duration = Duration::from_secs(60);
/// Sessions, and clients of each.
const SESSIONS: usize = 4;
const CLIENTS: usize = 2;
/// Requests of each client while nobody is killed.
const REQUESTS: u64 = 150;

/// What is served: counts a hit, saves, and only then answers; `/gc` removes old sessions.
const SCRIPT: &str = r#"<?php
session_start();
if ($_SERVER["REQUEST_URI"] == "/gc") { echo "gone=" . session_gc(); exit; }
$_SESSION["hits"] = ($_SESSION["hits"] ?? 0) + 1;
$_SESSION["pad"] = str_repeat("x", 100 + $_SESSION["hits"] % 50);
$hits = $_SESSION["hits"];
if (!session_write_close()) { http_response_code(500); exit; }
echo "hits=$hits";
"#;

/// A server with workers, all ended with this.
struct Server {
    main: Child,
    port: u16,
}

impl Server {
    fn start(php: &Path, script: &Path, sessions: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let main = Command::new(php)
            .args([
                "-d",
                "session.use_strict_mode=0",
                "-d",
                "session.lazy_write=0",
            ])
            .args([
                "-d",
                "session.gc_probability=0",
                "-d",
                "session.gc_maxlifetime=2",
            ])
            .args(["-d", "display_errors=0", "-d"])
            .arg(format!("session.save_path={}", sessions.display()))
            .args(["-S", &format!("127.0.0.1:{port}")])
            .arg(script)
            .env("PHP_CLI_SERVER_WORKERS", "4")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { main, port };
        until("the server answers", LIMIT, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        server
    }

    fn workers(&self) -> Vec<Pid> {
        let found = sh(
            "sh",
            ["-c", &format!("pgrep -P {} || true", self.main.id())],
        )
        .ok();
        let ids = found
            .stdout
            .split_whitespace()
            .map(|id| id.parse().unwrap());
        ids.filter_map(Pid::from_raw).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for worker in self.workers() {
            let _ = kill_process(worker, Signal::KILL);
        }
        let _ = self.main.kill();
        let _ = self.main.wait();
    }
}

/// The body that was answered to a request for a session.
fn get(port: u16, path: &str, session: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let request = format!("GET {path} HTTP/1.0\r\nCookie: PHPSESSID={session}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    match head.contains(" 200 ") {
        true => Ok(body.to_owned()),
        false => Err(io::Error::other(head.to_owned())),
    }
}

fn number(text: &str, before: &str) -> Option<u64> {
    text.strip_prefix(before)?.trim().parse().ok()
}

fn id(session: usize) -> String {
    format!("session{session}")
}

/// The hits that a session's file holds; it is whole.
fn saved(dir: &Path, session: usize) -> u64 {
    let text = fs::read_to_string(dir.join(format!("sess_{}", id(session)))).unwrap();
    let (hits, pad) = text
        .split_once(";pad|s:")
        .unwrap_or_else(|| panic!("torn: {text:?}"));
    let hits = number(hits, "hits|i:").unwrap_or_else(|| panic!("torn: {text:?}"));
    let len = 100 + hits % 50;
    assert_eq!(
        pad,
        format!("{len}:\"{}\";", "x".repeat(len as usize)),
        "torn: {text:?}"
    );
    hits
}

#[test]
fn php_loses_no_hit_among_workers_that_are_killed_and_a_daemon_that_is() {
    let Some(php) = program("php") else { return };
    let Some(mut cask) = Cask::mounted_with(&[]) else {
        return;
    };
    let _all = Share::one();
    let script = cask.outside("count.php");
    fs::write(&script, SCRIPT).unwrap();
    let dir = cask.path("sessions");
    // What was answered, and the highest number of hits that was told, by session.
    let answered: Vec<_> = (0..SESSIONS).map(|_| AtomicU64::new(0)).collect();
    let asked: Vec<_> = (0..SESSIONS).map(|_| AtomicU64::new(0)).collect();
    let told = Mutex::new(BTreeMap::<(usize, u64), u64>::new());
    let request = |server: &Server, session: usize| {
        asked[session].fetch_add(1, Ordering::SeqCst);
        let body = get(server.port, "/", &id(session)).ok()?;
        let hits = number(&body, "hits=")?;
        answered[session].fetch_add(1, Ordering::SeqCst);
        *told.lock().unwrap().entry((session, hits)).or_default() += 1;
        Some(hits)
    };

    // Nobody is killed: every hit is there, and each number was told once.
    let server = Server::start(&php, &script, &dir);
    thread::scope(|scope| {
        for client in 0..SESSIONS * CLIENTS {
            let (server, request) = (&server, &request);
            scope.spawn(move || {
                for _ in 0..REQUESTS {
                    request(server, client % SESSIONS).expect("a request was not answered");
                }
            });
        }
    });
    for session in 0..SESSIONS {
        assert_eq!(saved(&dir, session), CLIENTS as u64 * REQUESTS);
    }
    assert!(told.lock().unwrap().values().all(|times| *times == 1));
    println!(
        "{} hits of {SESSIONS} sessions by 4 workers: none lost",
        asked.iter().map(|n| n.load(Ordering::SeqCst)).sum::<u64>()
    );

    // Workers are killed at random moments, then the daemon, under load.
    let (mut server, mut undone) = (Some(server), 0);
    for round in 0..6 {
        let running = server
            .take()
            .unwrap_or_else(|| Server::start(&php, &script, &dir));
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for client in 0..SESSIONS * CLIENTS {
                let (running, request, over) = (&running, &request, &over);
                scope.spawn(move || {
                    while !over.load(Ordering::SeqCst) {
                        if request(running, client % SESSIONS).is_none() {
                            super::guard::pace(Duration::from_millis(1));
                        }
                    }
                });
            }
            let before: u64 = answered.iter().map(|n| n.load(Ordering::SeqCst)).sum();
            until("some hits", LIMIT, || {
                answered
                    .iter()
                    .map(|n| n.load(Ordering::SeqCst))
                    .sum::<u64>()
                    > before + 200
            });
            match round % 2 {
                0 => running.workers().iter().for_each(|worker| {
                    let _ = kill_process(*worker, Signal::KILL);
                }),
                _ => cask.kill_daemon(),
            }
            over.store(true, Ordering::SeqCst);
            // Whoever waits for an answer of the dead is let go.
            for worker in running.workers() {
                let _ = kill_process(worker, Signal::KILL);
            }
            let _ = kill_process(Pid::from_child(&running.main), Signal::KILL);
        });
        drop(running);
        if round % 2 == 1 {
            cask.clear_dead_mount();
            cask.mount();
        }
        for session in 0..SESSIONS {
            let hits = saved(&dir, session);
            let (asked, done) = (
                asked[session].load(Ordering::SeqCst),
                answered[session].load(Ordering::SeqCst),
            );
            // PHP does not look what close(2) answers: what a daemon that was killed just then had not
            // saved it takes for saved. The lock lets one request of a session be there.
            let least = match round % 2 {
                0 => done,
                _ => done - 1,
            };
            assert!(
                (least..=asked).contains(&hits),
                "round {round}, session {session}: {hits} hits, {done} answered, {asked} asked"
            );
            undone += done.saturating_sub(hits);
            answered[session].fetch_min(hits, Ordering::SeqCst);
            told.lock()
                .unwrap()
                .retain(|(of, number), _| *of != session || *number <= hits);
        }
    }
    println!("3 kills of the workers, 3 of the daemon: {undone} hits whose close(2) failed");
    // No number was told twice, that is no hit was undone.
    assert!(told.lock().unwrap().values().all(|times| *times == 1));

    // PHP's own collection of garbage.
    let server = Server::start(&php, &script, &dir);
    let gone = || {
        let gone = get(server.port, "/gc", "collector").unwrap();
        number(&gone, "gone=").unwrap_or_else(|| panic!("{gone:?}"))
    };
    let mut all = 0;
    until("old sessions to be collected", LIMIT, || {
        all += gone();
        all >= SESSIONS as u64
    });
    assert!(!dir.join(format!("sess_{}", id(0))).exists());
    drop(server);
    cask.unmount();
    cask.fsck();
}

/// A worker of Django's: counts a session's hits with its own file sessions, and answers on a port.
const DJANGO: &str = r#"
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from django.conf import settings
settings.configure(SESSION_FILE_PATH=sys.argv[1], SECRET_KEY="test", USE_TZ=True,
                   SESSION_COOKIE_AGE=int(sys.argv[2]),
                   SESSION_SERIALIZER="django.contrib.sessions.serializers.JSONSerializer")
import django
django.setup()
from django.contrib.sessions.backends.file import SessionStore

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        session = SessionStore(self.path[1:] or None)
        session["hits"] = session.get("hits", 0) + 1
        session.save()
        body = f"{session.session_key} {session['hits']}".encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// A process that is ended with this.
struct Worker {
    child: Child,
    port: u16,
}

impl Worker {
    fn start(script: &Path, dir: &Path, age: u64) -> Self {
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .arg(dir)
            .arg(age.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut told = io::BufReader::new(child.stdout.take().unwrap());
        io::BufRead::read_line(&mut told, &mut line).unwrap();
        let port = line.trim().parse().unwrap();
        Self { child, port }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn django_finds_its_sessions_whichever_worker_serves() {
    if program("django-admin").is_none() {
        return;
    }
    let Some(mut cask) = Cask::mounted() else {
        return;
    };
    let script = cask.outside("worker.py");
    fs::write(&script, DJANGO).unwrap();
    let dir = cask.path("sessions");
    cask.set("sessions", "ttl=1h");
    let mut workers: Vec<_> = (0..3).map(|_| Worker::start(&script, &dir, 3600)).collect();
    let hit = |port: u16, key: &str| -> io::Result<(String, u64)> {
        let body = get(port, &format!("/{key}"), "")?;
        let (key, hits) = body.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
        Ok((key.to_owned(), hits.parse().map_err(io::Error::other)?))
    };
    // Django locks nothing, so each client waits for its answer; it goes from worker to worker.
    let ports: Vec<u16> = workers.iter().map(|worker| worker.port).collect();
    let keys: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client: usize| {
                let (ports, hit) = (&ports, &hit);
                scope.spawn(move || {
                    let mut key = String::new();
                    for expected in 1..=100 {
                        let port = ports[(client + expected as usize) % ports.len()];
                        let (same, hits) = hit(port, &key).unwrap();
                        assert_eq!(hits, expected);
                        assert!(key.is_empty() || key == same);
                        key = same;
                    }
                    key
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    println!("Django: 400 hits of 4 sessions by 3 workers: none lost");
    // A worker and the daemon are killed; what was answered is there.
    drop(workers.pop());
    cask.kill9();
    cask.mount();
    for key in &keys {
        assert_eq!(hit(ports[0], key).unwrap(), (key.clone(), 101));
    }
    assert_eq!(
        fs::read_dir(&dir).unwrap().count(),
        keys.len(),
        "no part of a save is left"
    );
    drop(workers);
    cask.unmount();
    cask.fsck();
}
