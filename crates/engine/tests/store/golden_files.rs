//! Files of this version, byte for byte: what older programs wrote is read, and
//! what is written stays what it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ds4_engine::store::{
    Reason, StoreOptions, TextKey, TurnLog, TurnLogOptions, decode_file, read_log_bytes,
};

use crate::damage::files;
use crate::lookup::{lengths, save_as};
use crate::synthetic::{Synthetic, open, small_geometry, small_layout, small_options, tokens};

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/store")
}

fn then() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000)
}

/// Writes the files anew below `dir`.
fn write(dir: &Path) {
    let options = StoreOptions {
        now: then,
        ..small_options()
    };
    let store = open(&dir.join("kv"), options);
    let key = TextKey::new("a text", 3);
    save_as(&store, &tokens(1, 21), Reason::TurnEnd, &[key]);
    let candidate = &store.find(&tokens(1, 22), None)[0];
    store.load(candidate).expect("just written");
    drop(store);
    let mut log = TurnLog::open(dir.join("kv/turns.log"), TurnLogOptions::default()).unwrap();
    log.append(1, &[b"call-1", b"call-2"], b"a payload")
        .unwrap();
    log.append(2, &[b"call-3"], b"").unwrap();
}

/// The files that are compared, by path below the folder of the store.
fn compared(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let root = dir.join("kv");
    let mut all = files(&root);
    let folder = all[0]
        .ancestors()
        .find(|a| a.parent() == Some(&root))
        .unwrap()
        .to_owned();
    all.extend([
        root.join("turns.log"),
        root.join("format"),
        folder.join("journal"),
    ]);
    all.into_iter()
        .map(|path| {
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path.strip_prefix(&root).unwrap().to_owned(), bytes)
        })
        .collect()
}

#[test]
fn the_files_are_written_byte_for_byte_as_before() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let found = compared(dir.path());
    let expected = compared(&golden_dir());
    for ((found_path, found), (path, expected)) in found.iter().zip(&expected) {
        assert_eq!(found_path, path);
        let first = found.iter().zip(expected).position(|(a, b)| a != b);
        assert!(
            found == expected,
            "{} differs: {} bytes, expected {}, first difference at {first:?}; a change of format needs a new version",
            path.display(),
            found.len(),
            expected.len(),
        );
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn the_committed_files_are_read() {
    for (path, bytes) in compared(&golden_dir()) {
        match path.extension().and_then(|e| e.to_str()) {
            Some("blk") => assert_eq!(
                decode_file(&bytes, &small_layout()).unwrap().0,
                tokens(1, 16)
            ),
            Some("pt") => {
                assert_eq!(
                    decode_file(&bytes, &small_layout()).unwrap().0,
                    tokens(1, 21)[16..]
                );
            }
            Some("log") => assert_eq!(read_log_bytes(&bytes), Some((2, bytes.len()))),
            _ => {}
        }
    }
    // The store changes files beside these, so it gets a copy.
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in compared(&golden_dir()) {
        let target = dir.path().join(path);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, bytes).unwrap();
    }
    let store = open(dir.path(), small_options());
    let found = store.find(&tokens(1, 30), None);
    assert_eq!(lengths(&found), [21]);
    let expected = Synthetic::new(&small_geometry(), u64::from(tokens(1, 1)[0])).state(21);
    assert_eq!(store.load(&found[0]).unwrap().state, expected);
}

#[test]
#[ignore = "writes the golden files anew, after a change of format and of its version"]
fn refresh() {
    let kept = golden_dir().join("kv");
    if kept.exists() {
        fs::remove_dir_all(&kept).unwrap();
    }
    write(&golden_dir());
    fs::remove_file(kept.join("lock")).unwrap();
    for entry in fs::read_dir(&kept).unwrap() {
        let lock = entry.unwrap().path().join("gc.lock");
        if lock.exists() {
            fs::remove_file(lock).unwrap();
        }
    }
}
