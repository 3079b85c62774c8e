//! A store's folder after whatever was done to its files: every state and turn that is read back is
//! the one that was written. Also a fuzz target, `store_folder`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ds4_engine::store::{Reason, SaveOptions, Store, TurnLogOptions, verify};

use crate::synthetic::{
    Random, Synthetic, key_of, open, small_geometry, small_layout, small_options, tokens,
};

/// Bytes of one thing that is done: what, to which file, where in it, and with which values.
const DEED_BYTES: usize = 6;
const CALL: &[u8] = b"call_1";
const TURN: &[u8] = b"what was sampled in a turn, in its own tokens";

/// The files of a small store, by their place in its folder.
fn golden() -> &'static [(PathBuf, Vec<u8>)] {
    static GOLDEN: OnceLock<Vec<(PathBuf, Vec<u8>)>> = OnceLock::new();
    GOLDEN.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(dir.path(), small_options());
        for n in [20, 40, 60] {
            let prompt = tokens(1, n);
            let mut rows = Synthetic::new(&small_geometry(), u64::from(prompt[0]));
            let save = SaveOptions {
                reason: Reason::Anchor,
                text_keys: &[],
                wait: true,
            };
            store.save(&prompt, &mut rows, &save).expect("readable");
            store.flush();
        }
        let mut log = store
            .open_turn_log(TurnLogOptions::default())
            .expect("a log");
        log.append(7, &[b"call_0"], b"another turn").expect("taken");
        log.append(7, &[CALL], TURN).expect("taken");
        drop(log);
        // So that there is a journal.
        let found = store.find(&tokens(1, 61), None);
        store.load(&found[0]).expect("it was just written");
        drop(store);
        let mut paths = Vec::new();
        files(dir.path(), &mut paths);
        paths.sort();
        let read = |path: PathBuf| {
            let bytes = fs::read(&path).expect("readable");
            let place = path.strip_prefix(dir.path()).expect("below it").to_owned();
            (place, bytes)
        };
        paths.into_iter().map(read).collect()
    })
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

/// Does what `deeds` say to a copy of the folder, and uses it.
pub(crate) fn exercise(deeds: &[u8]) {
    let mut files: Vec<(PathBuf, Option<Vec<u8>>)> = golden()
        .iter()
        .map(|(place, bytes)| (place.clone(), Some(bytes.clone())))
        .collect();
    for deed in deeds.chunks_exact(DEED_BYTES) {
        let which = usize::from(deed[1]) % files.len();
        let other = files[usize::from(deed[5]) % files.len()].1.clone();
        let file = &mut files[which].1;
        let Some(bytes) = file else {
            continue;
        };
        let at = usize::from(u16::from_le_bytes([deed[2], deed[3]])) % (bytes.len() + 1);
        match deed[0] % 8 {
            0..=2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= deed[4].max(1);
                }
            }
            3 => bytes.truncate(at),
            4 => bytes.extend(std::iter::repeat_n(deed[4], 1 + usize::from(deed[5]))),
            5 => {
                // A piece of another file.
                let other = other.unwrap_or_default();
                let n = usize::from(deed[4]).min(other.len().min(bytes.len() - at));
                let from = usize::from(deed[5]) % (other.len() - n + 1);
                bytes[at..at + n].copy_from_slice(&other[from..from + n]);
            }
            6 => *file = other,
            _ => *file = None,
        }
    }
    let dir = tempfile::tempdir().expect("a folder");
    for (place, bytes) in &files {
        let path = dir.path().join(place);
        fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        if let Some(bytes) = bytes {
            fs::write(path, bytes).expect("written");
        }
    }
    for round in 0..2 {
        let layout = small_layout();
        let key = key_of(&small_geometry(), &layout, 1);
        // A folder that says it is something else is left alone.
        let Ok(store) = Store::open(dir.path(), small_options(), key, layout) else {
            let format = files.iter().find(|(place, _)| place.ends_with("format"));
            let format = format.and_then(|(_, bytes)| bytes.as_ref());
            assert_ne!(format.map(Vec::as_slice), Some(&b"dsv4-cache 2\n"[..]));
            return;
        };
        use_it(&store);
        drop(store);
        if round == 0 {
            verify(dir.path()).expect("it is a store");
        }
    }
}

fn use_it(store: &Store) {
    let prompt = tokens(1, 61);
    for candidate in store.find(&prompt, None) {
        // What cannot be loaded is a miss.
        if let Ok(loaded) = store.load(&candidate) {
            let n = loaded.tokens.len();
            assert_eq!(loaded.tokens, prompt[..n]);
            let expected = Synthetic::new(&small_geometry(), u64::from(prompt[0])).state(n);
            assert_eq!(loaded.state, expected, "a wrong state of {n} tokens");
        }
    }
    let mut log = store
        .open_turn_log(TurnLogOptions::default())
        .expect("what is no log is moved away");
    if let Some(turn) = log.get(CALL).expect("readable") {
        assert_eq!((turn.kind, &*turn.payload), (7, TURN));
    }
}

#[test]
fn whatever_is_done_to_the_files_nothing_wrong_is_read_back() {
    exercise(&[]);
    let mut random = Random(2026);
    for _ in 0..250 {
        let n = 1 + random.below(4);
        let deeds: Vec<u8> = (0..n * DEED_BYTES).map(|_| random.next() as u8).collect();
        let done = std::panic::catch_unwind(|| exercise(&deeds));
        assert!(done.is_ok(), "the deeds {deeds:?}");
    }
}
