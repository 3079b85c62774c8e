//! Servers that are killed while they save, and folders in which bits flip: whatever is read back
//! afterwards, every conversation goes on exactly as if nothing had ever been stored.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ds4_engine::store::verify;
use serde_json::{Value, json};

use crate::process::{PATIENCE, Running, post};

const N_CONVERSATIONS: usize = 4;
const N_TURNS: usize = 4;
/// Slots for some of the conversations, so that states also come back from disk while it runs.
const FLAGS: [&str; 2] = ["--parallel", "2"];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Replies to every turn of every conversation.
type Replies = Vec<Vec<String>>;

fn question(conversation: usize, turn: usize) -> String {
    const WORDS: [&str; 12] = [
        "river", "stone", "bread", "seven", "light", "the", "of", "winter", "paper", "north",
        "garden", "letter",
    ];
    let mut random = Random((conversation * N_TURNS + turn) as u64);
    let n_words = [250, 20, 90, 40][turn % 4] + conversation;
    let words: Vec<&str> = (0..n_words)
        .map(|_| WORDS[random.below(WORDS.len())])
        .collect();
    format!(
        "{} What is {} + {}?",
        words.join(" "),
        turn + 2,
        conversation + 3
    )
}

/// The request of a turn, whose history is what was replied before.
fn request(conversation: usize, turn: usize, replies: &[String]) -> Value {
    let mut messages = Vec::new();
    for (turn, reply) in replies.iter().enumerate().take(turn) {
        messages.push(json!({"role": "user", "content": question(conversation, turn)}));
        messages.push(json!({"role": "assistant", "content": reply}));
    }
    messages.push(json!({"role": "user", "content": question(conversation, turn)}));
    let thinking = if conversation.is_multiple_of(2) {
        "disabled"
    } else {
        "enabled"
    };
    json!({"messages": messages, "temperature": 0, "max_tokens": 24,
           "thinking": {"type": thinking}})
}

fn ask(address: SocketAddr, request: &Value) -> io::Result<String> {
    let (status, answer) = post(address, "/v1/chat/completions", request)?;
    assert_eq!(status, 200, "{answer}");
    let message = &answer["choices"][0]["message"];
    let content = message["content"].as_str().expect("content");
    Ok(content.to_owned())
}

/// What a server says that never had a store.
fn replies_without_a_store() -> Replies {
    let server = Running::start(None, &FLAGS);
    (0..N_CONVERSATIONS)
        .map(|conversation| {
            let mut replies = Vec::new();
            for turn in 0..N_TURNS {
                let request = request(conversation, turn, &replies);
                replies.push(ask(server.address, &request).expect("a reply"));
            }
            replies
        })
        .collect()
}

/// Goes through all conversations at once, each from some turn on, until the end or until the
/// server is gone. Counts the replies as they come.
fn converse(address: SocketAddr, expected: &Replies, random: &mut Random, n_replies: &AtomicUsize) {
    let begins: Vec<usize> = (0..N_CONVERSATIONS)
        .map(|_| random.below(N_TURNS))
        .collect();
    std::thread::scope(|scope| {
        let talks: Vec<_> = begins
            .into_iter()
            .enumerate()
            .map(|(conversation, begin)| {
                scope.spawn(move || {
                    let expected = &expected[conversation];
                    for turn in begin..N_TURNS {
                        let request = request(conversation, turn, expected);
                        match ask(address, &request) {
                            Ok(reply) => assert_eq!(
                                reply, expected[turn],
                                "conversation {conversation}, turn {turn}"
                            ),
                            Err(_) => return,
                        }
                        n_replies.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for talk in talks {
            talk.join().expect("the same replies");
        }
    });
}

fn n_from_disk(server: &Running) -> usize {
    server.log().matches("(disk)").count()
}

/// The same when all of these replies have left their line.
fn n_from_disk_of(server: &Running, n_replies: &AtomicUsize) -> usize {
    server.await_lines(n_replies.load(Ordering::Relaxed));
    n_from_disk(server)
}

#[track_caller]
fn everything_is_whole(store: &Path, when: &str) -> usize {
    if !store.join("format").exists() {
        return 0;
    }
    let verified = verify(store).expect("the folder opens");
    assert_eq!(verified.damaged, [], "{when}");
    assert_eq!(verified.incomplete, Vec::<PathBuf>::new(), "{when}");
    verified.n_good
}

/// When a server is killed: at something that it did, however long that took.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// A point is there.
    Point,
    /// So many files came, those that are being written too.
    Files(usize),
    /// So many replies came.
    Replies(usize),
}

impl Moment {
    fn of_round(round: usize, random: &mut Random) -> Moment {
        match (round, round % 2) {
            (0, _) => Moment::Point,
            (_, 1) => Moment::Files(1 + random.below(12)),
            _ => Moment::Replies(random.below(N_CONVERSATIONS * N_TURNS)),
        }
    }

    /// Waits for it. Files may come when nobody talks any more, or not at all.
    fn wait(
        self,
        store: &Path,
        before: &HashSet<PathBuf>,
        n_replies: &AtomicUsize,
        is_over: impl Fn() -> bool,
    ) {
        let begun = Instant::now();
        loop {
            // What is over now has had its effect on what is looked at then.
            let is_over = is_over();
            let is_here = match self {
                Moment::Point => {
                    let is_point = |name: &PathBuf| name.extension().is_some_and(|e| e == "pt");
                    names(store).iter().any(is_point)
                }
                Moment::Files(n) => is_over || names(store).difference(before).count() >= n,
                Moment::Replies(n) => is_over || n_replies.load(Ordering::Relaxed) >= n,
            };
            if is_here {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{self:?} does not come");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// All files of a folder, if it is there.
fn names(folder: &Path) -> HashSet<PathBuf> {
    let mut found = HashSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // What is gone when it is looked at is not there.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            } else {
                found.insert(entry.path());
            }
        }
    }
    found
}

fn killed(n_rounds: usize) {
    let expected = replies_without_a_store();
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store");
    let mut random = Random(5);
    let (mut n_disk, mut n_good) = (0, 0);
    for round in 0..n_rounds {
        let moment = Moment::of_round(round, &mut random);
        let n_replies = AtomicUsize::new(0);
        let before = names(&store);
        let server = Running::start(Some(&store), &FLAGS);
        let address = server.address;
        std::thread::scope(|scope| {
            let talk = scope.spawn(|| converse(address, &expected, &mut random, &n_replies));
            moment.wait(&store, &before, &n_replies, || talk.is_finished());
            n_disk += n_from_disk(&server);
            server.kill();
        });
        n_good += everything_is_whole(&store, &format!("round {round}"));
    }
    assert!(n_good > 0, "nothing was ever saved");
    let server = Running::start(Some(&store), &FLAGS);
    let mut all = Random(0);
    let n_replies = AtomicUsize::new(0);
    for _ in 0..3 {
        converse(server.address, &expected, &mut all, &n_replies);
    }
    n_disk += n_from_disk_of(&server, &n_replies);
    assert!(n_disk > 0, "nothing was ever read back");
    server.stop();
    assert!(everything_is_whole(&store, "at the end") > 0);
    println!("{n_rounds} rounds: {n_disk} replies went on from disk, {n_good} files verified");
}

#[test]
fn killed_servers_leave_states_that_go_on_as_if_nothing_had_been_stored() {
    killed(12);
}

#[test]
#[ignore = "takes minutes"]
fn two_hundred_killed_servers_leave_states_that_go_on_as_if_nothing_had_been_stored() {
    killed(200);
}

/// Files of the store in which a bit may flip: all but the two that say what the folder is.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "quarantine" {
                files(&path, found);
            }
        } else if !["format", "lock", "gc.lock"].contains(&name.as_ref()) {
            found.push(path);
        }
    }
}

#[test]
fn flipped_bits_between_restarts_change_no_reply() {
    let expected = replies_without_a_store();
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store");
    let mut random = Random(6);
    let (mut n_flipped, mut n_disk) = (0, 0);
    for _ in 0..6 {
        let server = Running::start(Some(&store), &FLAGS);
        converse(server.address, &expected, &mut random, &AtomicUsize::new(0));
        n_disk += n_from_disk(&server);
        assert!(!server.log().contains("panicked"), "{}", server.log());
        server.stop();
        let mut found = Vec::new();
        files(&store, &mut found);
        found.sort();
        for path in &found {
            let mut bytes = std::fs::read(path).expect("readable");
            if bytes.is_empty() || random.below(3) > 0 {
                continue;
            }
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
            std::fs::write(path, &bytes).expect("writable");
            n_flipped += 1;
        }
    }
    assert!(n_flipped > 6, "{n_flipped} bits flipped");
    assert!(n_disk > 0, "nothing was ever read back");
    // What nobody has read yet is found by looking for it, and only once.
    verify(&store).expect("the folder opens");
    everything_is_whole(&store, "after the repair");
}
