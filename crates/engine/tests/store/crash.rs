//! Writers that are killed, and several processes on one folder.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ds4_engine::store::{Miss, Reason, SaveOptions, StoreOptions, verify};

use crate::damage::files;
use crate::lookup::lengths;
use crate::synthetic::{Random, Synthetic, later, open, small_geometry, small_options, tokens};

/// Says to the child which folder to write to.
const DIR_VARIABLE: &str = "DS4_STORE_TEST_DIR";
const SEED_VARIABLE: &str = "DS4_STORE_TEST_SEED";
const N_CONVERSATIONS: usize = 6;
const N_ROUNDS: u64 = 200;

/// A clock of which every reading is a while after the one before, so that
/// nothing stays too young to be evicted.
fn hurried() -> SystemTime {
    static N_READ: AtomicU64 = AtomicU64::new(0);
    SystemTime::now() + Duration::from_secs(20 * N_READ.fetch_add(1, Ordering::Relaxed))
}

/// A budget for some of the conversations, so that writers also evict.
fn options() -> StoreOptions {
    StoreOptions {
        budget_bytes: 60_000,
        now: hurried,
        ..small_options()
    }
}

fn conversation(number: usize, n: usize) -> Vec<u32> {
    tokens(number as u64 + 1, n)
}

/// A folder in memory where there is one: what a killed process leaves does not
/// depend on the disk, and without its delays more is written in a round.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn spawn(dir: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().expect("this test's own file"))
        .args(["--exact", "crash::a_writer_without_end", "--ignored"])
        .env(DIR_VARIABLE, dir)
        .env(SEED_VARIABLE, seed.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the test runs itself")
}

#[test]
#[ignore = "the process that other tests start and kill; alone it does nothing"]
fn a_writer_without_end() {
    let (Ok(dir), Ok(seed)) = (std::env::var(DIR_VARIABLE), std::env::var(SEED_VARIABLE)) else {
        return;
    };
    let mut random = Random(seed.parse().expect("a number"));
    let store = open(Path::new(&dir), options());
    let end = Instant::now() + Duration::from_secs(660);
    while Instant::now() < end {
        let tokens = conversation(random.below(N_CONVERSATIONS), 1 + random.below(90));
        let mut rows = Synthetic::new(&small_geometry(), u64::from(tokens[0]));
        let reason = [Reason::TurnEnd, Reason::Anchor, Reason::Interval][random.below(3)];
        let save = SaveOptions {
            reason,
            text_keys: &[],
            wait: true,
        };
        store.save(&tokens, &mut rows, &save).expect("readable");
        if random.below(3) == 0 {
            store.flush();
        }
    }
}

/// Loads everything that is offered; whatever loads must be right. The number
/// of states, and of those that were gone.
fn load_all(store: &ds4_engine::store::Store) -> (usize, usize) {
    let (mut n_loaded, mut n_gone) = (0, 0);
    for number in 0..N_CONVERSATIONS {
        let prompt = conversation(number, 100);
        for candidate in store.find(&prompt, None) {
            match store.load(&candidate) {
                Ok(loaded) => {
                    let n = candidate.n_tokens;
                    assert_eq!(loaded.tokens, prompt[..n]);
                    let mut rows = Synthetic::new(&small_geometry(), u64::from(prompt[0]));
                    assert_eq!(loaded.state, rows.state(n), "conversation {number} at {n}");
                    n_loaded += 1;
                }
                Err(Miss::Gone { .. }) => n_gone += 1,
                Err(other) => panic!("conversation {number}: {other}"),
            }
        }
    }
    (n_loaded, n_gone)
}

#[test]
fn a_killed_writer_leaves_a_store_in_which_everything_is_whole() {
    let dir = folder();
    let mut random = Random(42);
    let (mut n_loaded, mut n_killed) = (0, 0);
    for round in 0..N_ROUNDS {
        let mut child = spawn(dir.path(), round);
        std::thread::sleep(Duration::from_micros(3_000 + random.below(40_000) as u64));
        n_killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        if !dir.path().join("format").exists() {
            continue;
        }
        let verified = verify(dir.path()).expect("the folder opens");
        assert_eq!(verified.damaged, [], "round {round}");
        let store = open(
            dir.path(),
            StoreOptions {
                now: SystemTime::now,
                ..options()
            },
        );
        assert_eq!(store.take_notices(), [], "round {round}");
        n_loaded += load_all(&store).0;
    }
    assert!(
        n_killed > N_ROUNDS as usize / 2,
        "{n_killed} writers were killed at work"
    );
    assert!(
        n_loaded > N_ROUNDS as usize,
        "{n_loaded} states were there to load"
    );
    // An hour later the temporary files of dead writers are nobody's.
    drop(open(
        dir.path(),
        StoreOptions {
            now: later,
            ..options()
        },
    ));
    let mut folders = vec![dir.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            assert!(!name.starts_with(".tmp-"), "{name} is still there");
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
}

#[test]
fn processes_that_share_a_folder_only_ever_miss() {
    share_a_folder(Duration::from_secs(3));
}

#[test]
#[ignore = "ten minutes: cargo test -p ds4-engine --test store crash::ten -- --ignored"]
fn ten_minutes_of_processes_that_share_a_folder() {
    share_a_folder(Duration::from_secs(600));
}

/// Two processes save and evict while this one loads.
fn share_a_folder(time: Duration) {
    let dir = folder();
    let store = open(dir.path(), options());
    let mut children = [spawn(dir.path(), 1000), spawn(dir.path(), 1001)];
    let end = Instant::now() + time;
    let mut n_loaded = 0;
    while Instant::now() < end {
        n_loaded += load_all(&store).0;
    }
    for child in &mut children {
        assert!(
            child.try_wait().unwrap().is_none(),
            "a writer ended by itself"
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(
        n_loaded > 10,
        "{n_loaded} states of other processes were found"
    );
    assert_eq!(verify(dir.path()).unwrap().damaged, []);
    assert_eq!(store.take_notices(), []);
    let prompt = conversation(0, 100);
    let fresh = open(
        dir.path(),
        StoreOptions {
            now: SystemTime::now,
            ..options()
        },
    );
    assert_eq!(
        lengths(&store.find(&prompt, None)),
        lengths(&fresh.find(&prompt, None))
    );
    assert!(!files(dir.path()).is_empty());
}
