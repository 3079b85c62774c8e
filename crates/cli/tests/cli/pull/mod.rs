//! `ds4 pull` from a hub that misbehaves.

mod server;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use ds4_formats::GgmlType;
use ds4_formats::gguf::{Metadata, Writer};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

#[cfg(unix)]
use crate::program::watched;
use crate::program::{Ds4, Ran};
use server::{Behaviour, Fault, Server};

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A GGUF file of about 400 kB with numbers that depend on `seed`.
fn gguf(seed: u64) -> Vec<u8> {
    let mut writer = Writer::new(Metadata::new()).expect("a writer");
    for i in 0..5 {
        writer
            .push(&format!("t{i}"), GgmlType::F32, &[100, 200])
            .expect("a tensor");
    }
    let mut dice = Dice(seed);
    let mut bytes = Vec::new();
    writer
        .write(&mut bytes, |spec, out| {
            for _ in 0..spec.n_bytes / 4 {
                let x = (dice.next() % 1000) as f32 - 500.0;
                out.write_all(&x.to_le_bytes())?;
            }
            Ok(())
        })
        .expect("a file");
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// A home, and a hub to pull `m.gguf` from.
struct Setup {
    ds4: Ds4,
    server: Server,
}

impl Setup {
    fn new(behaviour: Behaviour) -> Setup {
        Setup {
            ds4: Ds4::new(),
            server: Server::start(behaviour),
        }
    }

    /// Whoever is silent here is only slow, unless a test says otherwise.
    fn command(&self, more: &[&str]) -> Command {
        let args = ["pull", "o/r/m.gguf", "--piece-kib", "16"];
        let mut command = self.ds4.command([&args[..], more].concat());
        command
            .env("HF_ENDPOINT", self.server.endpoint())
            .env_remove("HF_TOKEN")
            .env_remove("HF_HOME")
            .env_remove("HF_HUB_CACHE")
            .env_remove("XDG_CACHE_HOME")
            .env("NO_PROXY", "*");
        command
    }

    fn pull(&self, more: &[&str]) -> Ran {
        Ran::of(self.command(more).output().expect("ds4 starts"))
    }

    fn folder(&self) -> PathBuf {
        self.ds4.home().join(".local/share/ds4/models")
    }

    /// Names in the folder.
    fn left(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.folder()) else {
            return Vec::new();
        };
        let name = |e: fs::DirEntry| e.file_name().to_string_lossy().into_owned();
        let mut names: Vec<String> = entries.flatten().map(name).collect();
        names.sort();
        names
    }

    /// Checks that the file is whole and alone with its sums.
    #[track_caller]
    fn holds(&self, expected: &[u8]) {
        let found = fs::read(self.folder().join("m.gguf")).expect("the file");
        assert!(found == expected, "{} bytes differ", found.len());
        assert_eq!(self.left(), ["m.gguf", "m.gguf.sums"]);
    }
}

#[test]
fn a_file_arrives_whole_with_its_sums_and_is_not_fetched_twice() {
    let file = gguf(1);
    let setup = Setup::new(Behaviour {
        etag: sha256(&file),
        ..Behaviour::good(&file)
    });
    let ran = setup.pull(&["--json"]);
    let report: Value = serde_json::from_str(ran.answer()).expect("JSON");
    assert_eq!(report["sha256"], sha256(&file));
    assert_eq!(report["sum_was_stated"], true);
    assert_eq!(report["n_fetched"], file.len());
    setup.holds(&file);
    let n = setup.server.n_requests();
    assert!(setup.pull(&[]).answer().contains("already there"));
    assert!(setup.server.n_requests() <= n + 2);
}

#[test]
fn no_cut_stall_refusal_or_lie_changes_the_bytes() {
    let file = gguf(2);
    let faults = [
        Fault::Cut(0),
        Fault::Cut(5000),
        Fault::Stall(3000),
        Fault::Status(503),
        Fault::Status(403),
        Fault::OtherRange,
        Fault::LongerBody,
        Fault::Hang,
        Fault::Status(429),
    ];
    let setup = Setup::new(Behaviour {
        etag: sha256(&file),
        // The first two requests ask what the file is.
        fault: Box::new(move |i| match (i, i % 3) {
            (0..2, _) | (_, 0 | 1) => Fault::None,
            _ => faults[i / 3 % faults.len()],
        }),
        ..Behaviour::good(&file)
    });
    // A busy machine may be silent for as long as the one that stalls.
    setup
        .pull(&["--stall-timeout", "1", "--retries", "100"])
        .answer();
    setup.holds(&file);
}

#[test]
fn a_file_that_changes_half_way_arrives_as_it_is_now() {
    for redirects in [true, false] {
        let (old, new) = (gguf(3), gguf(4));
        let setup = Setup::new(Behaviour {
            redirects,
            later: Some((12, new.clone(), "two".to_owned())),
            // So that the client asks the hub again.
            fault: Box::new(|i| match i {
                12..20 => Fault::Cut(100),
                _ => Fault::None,
            }),
            ..Behaviour::good(&old)
        });
        setup.pull(&[]).answer();
        setup.holds(&new);
    }
}

#[test]
fn a_pull_goes_on_where_another_ended_and_begins_anew_for_another_file() {
    let file = gguf(5);
    let setup = Setup::new(Behaviour {
        fault: Box::new(|i| match i {
            0..12 => Fault::None,
            _ => Fault::Status(500),
        }),
        ..Behaviour::good(&file)
    });
    setup
        .pull(&["--retries", "2", "--connections", "2"])
        .refused(&["status 500", "kept"]);
    assert_eq!(
        setup.left(),
        [".m.gguf.part", ".m.gguf.part.json", ".m.gguf.part.lock"]
    );
    setup.server.change(|b| b.fault = Box::new(|_| Fault::None));
    let ran = setup.pull(&["--json"]);
    let report: Value = serde_json::from_str(ran.answer()).expect("JSON");
    let n_fetched = report["n_fetched"].as_u64().expect("a number");
    assert!((1..file.len() as u64).contains(&n_fetched), "{report}");
    setup.holds(&file);
}

#[test]
fn a_server_without_ranges_serves_too() {
    let file = gguf(6);
    for redirects in [true, false] {
        let setup = Setup::new(Behaviour {
            has_ranges: false,
            redirects,
            fault: Box::new(|i| match i {
                3 | 5 => Fault::Cut(100_000),
                _ => Fault::None,
            }),
            ..Behaviour::good(&file)
        });
        setup.pull(&[]).answer();
        setup.holds(&file);
    }
}

#[test]
fn wrong_bytes_never_get_the_name_of_the_file() {
    let file = gguf(7);
    let mut damaged = file.clone();
    damaged[200_000] ^= 1;
    let setup = Setup::new(Behaviour {
        etag: sha256(&file),
        ..Behaviour::good(&damaged)
    });
    setup
        .pull(&[])
        .refused(&["SHA-256", &sha256(&file), "deleted"]);
    assert_eq!(setup.left(), [] as [&str; 0]);
    let setup = Setup::new(Behaviour::good(b"<html>no such page</html>"));
    setup
        .pull(&[])
        .refused(&["not a whole GGUF file", "deleted"]);
    assert_eq!(setup.left(), [] as [&str; 0]);
    let setup = Setup::new(Behaviour {
        fault: Box::new(|_| Fault::LongerFile),
        ..Behaviour::good(&file)
    });
    setup
        .pull(&[])
        .refused(&["the hub says", "try again later"]);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let file = gguf(8);
    let setup = Setup::new(Behaviour {
        token: Some("secret".to_owned()),
        ..Behaviour::good(&file)
    });
    setup.pull(&[]).refused(&["401", "HF_TOKEN"]);
    let ran = Ran::of(
        setup
            .command(&[])
            .env("HF_TOKEN", "secret")
            .output()
            .expect("ds4 starts"),
    );
    ran.answer();
    setup.holds(&file);
    let paths = setup.server.with_token();
    assert!(!paths.is_empty());
    assert!(paths.iter().all(|p| p.contains("/resolve/")), "{paths:?}");
    assert!(!format!("{ran:?}").contains("secret"));
}

#[test]
fn a_file_in_the_cache_of_the_hubs_tools_is_used() {
    let file = gguf(9);
    let setup = Setup::new(Behaviour::good(&file));
    let home = setup.ds4.home().join("hf");
    let repository = home.join("hub/models--o--r");
    let blob = repository.join("blobs").join(sha256(&file));
    let snapshot = repository.join("snapshots/c0ffee");
    for (path, bytes) in [
        (blob.clone(), &file[..]),
        (repository.join("refs/main"), b"c0ffee\n"),
    ] {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    }
    fs::create_dir_all(&snapshot).expect("a folder");
    fs::hard_link(&blob, snapshot.join("m.gguf")).expect("a link");
    #[cfg(unix)]
    {
        fs::remove_file(snapshot.join("m.gguf")).expect("removed");
        std::os::unix::fs::symlink(&blob, snapshot.join("m.gguf")).expect("a link");
    }
    let ran = Ran::of(
        setup
            .command(&[])
            .env("HF_HOME", &home)
            .output()
            .expect("ds4 starts"),
    );
    ran.answer();
    assert_eq!(setup.server.n_requests(), 0);
    setup.holds(&file);
}

#[test]
fn what_cannot_be_fetched_is_refused_in_one_line() {
    let setup = Setup::new(Behaviour::good(&gguf(10)));
    let run = |args: &[&str]| {
        let mut command = setup.ds4.command([&["pull"], args].concat());
        command.env("HF_ENDPOINT", setup.server.endpoint());
        Ran::of(command.output().expect("ds4 starts"))
    };
    run(&["o/r/other.gguf"]).refused(&["no file other.gguf", "o/r"]);
    run(&["q3"]).refused(&["q3", "q2", "q4", "OWNER/REPOSITORY/FILE.gguf"]);
    fs::write(setup.ds4.home().join("file"), "").expect("a file");
    run(&["o/r/m.gguf", "--dir", "file/below"]).refused(&["file/below"]);
    fs::create_dir_all(setup.folder()).expect("a folder");
    fs::write(setup.folder().join("m.gguf"), "x").expect("a file");
    run(&["o/r/m.gguf"]).refused(&["has 1 bytes", "move it away"]);
    assert_eq!(fs::read(setup.folder().join("m.gguf")).expect("kept"), b"x");
}

#[cfg(unix)]
#[test]
fn it_shows_how_far_it_is() {
    let file = gguf(14);
    // A quarter of a second for each of its pieces.
    let setup = Setup::new(Behaviour {
        pause: Duration::from_millis(60),
        ..Behaviour::good(&file)
    });
    let ran = watched(setup.command(&["--json"]));
    let report: Value = serde_json::from_str(ran.answer()).expect("JSON");
    assert_eq!(report["n_bytes"], file.len());
    assert!(ran.stderr.contains(" %), "), "{ran:?}");
    setup.holds(&file);
}

#[cfg(unix)]
#[test]
fn without_room_it_says_so_and_goes_on_when_there_is() {
    let file = gguf(15);
    let setup = Setup::new(Behaviour::good(&file));
    let command = setup.command(&[]);
    let mut shell = Command::new("sh");
    // Files of at most 200 blocks of 512 bytes, which is how a full disk looks from here.
    shell
        .args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(setup.ds4.home())
        .stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let ran = Ran::of(shell.output().expect("a shell"));
    ran.refused(&["cannot write"]);
    assert!(!setup.folder().join("m.gguf").exists());
    setup.pull(&[]).answer();
    setup.holds(&file);
}

#[test]
fn a_hundred_kills_at_random_moments_leave_the_right_bytes() {
    let file = gguf(11);
    let setup = Setup::new(Behaviour {
        etag: sha256(&file),
        fault: Box::new(|i| match i % 11 {
            7 => Fault::Cut(3000),
            _ => Fault::None,
        }),
        pause: Duration::from_millis(2),
        ..Behaviour::good(&file)
    });
    let mut dice = Dice(12);
    let (mut n_whole, mut n_killed) = (0, 0);
    while n_killed < 100 {
        let before = setup.server.n_requests();
        let mut child = setup
            .command(&["--connections", "4"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ds4 starts");
        // Some are killed before they ask for anything, others in the middle of some request, and
        // what is done by then does not count.
        let n_wanted = before + (dice.next() % 40) as usize;
        while setup.server.n_requests() < n_wanted && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(dice.next() % 12_000));
        n_killed += usize::from(child.try_wait().expect("a child").is_none());
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        let path = setup.folder().join("m.gguf");
        if path.exists() {
            assert!(fs::read(&path).expect("the file") == file);
            fs::remove_file(&path).expect("removed");
            n_whole += 1;
        }
    }
    println!("{n_killed} were killed at work, {n_whole} times the file was whole");
    setup.pull(&[]).answer();
    let found = fs::read(setup.folder().join("m.gguf")).expect("the file");
    assert!(found == file, "after {n_whole} whole ones");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_something_that_goes_on() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let file = gguf(13);
    // From some request on the storage sends next to nothing and falls silent, so that the command
    // is at work however late the signal comes.
    let setup = Setup::new(Behaviour {
        fault: Box::new(|i| match i {
            0..6 => Fault::None,
            _ => Fault::Stall(50),
        }),
        ..Behaviour::good(&file)
    });
    let mut child = setup
        .command(&[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ds4 starts");
    // Once requests for bytes arrive, it is at work.
    while setup.server.n_requests() < 7 && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("a signal");
    let ran = Ran::of(child.wait_with_output().expect("it ends"));
    assert_eq!(ran.status, Some(130), "{ran:?}");
    assert!(ran.stderr.contains("goes on from there"), "{ran:?}");
    setup.server.change(|b| b.fault = Box::new(|_| Fault::None));
    setup.pull(&[]).answer();
    setup.holds(&file);
}
