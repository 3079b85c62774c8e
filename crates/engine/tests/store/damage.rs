//! A damaged file is a miss, never a crash and never a wrong answer.

use std::fs;
use std::path::{Path, PathBuf};

use ds4_engine::store::{Codec, Miss, StoreOptions, decode_file};

use crate::lookup::{lengths, save};
use crate::synthetic::{Synthetic, open, small_geometry, small_layout, small_options, tokens};

/// Every block and point file below a folder.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("quarantine") {
                found.extend(files(&path));
            }
        } else if path.extension().is_some_and(|e| e == "blk" || e == "pt") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn options(codec: Codec) -> StoreOptions {
    StoreOptions {
        codec,
        ..small_options()
    }
}

#[test]
fn every_flipped_byte_and_every_truncation_is_noticed() {
    for codec in [Codec::None, Codec::Zstd] {
        let dir = tempfile::tempdir().unwrap();
        save(&open(dir.path(), options(codec)), &tokens(1, 40));
        let files = files(dir.path());
        assert_eq!(files.len(), 3, "two blocks and a point");
        for path in files {
            let good = fs::read(&path).unwrap();
            let layout = small_layout();
            decode_file(&good, &layout).expect("what was written is read");
            for at in 0..good.len() {
                for flip in [0x01, 0x80, 0xff] {
                    let mut bad = good.clone();
                    bad[at] ^= flip;
                    let read = decode_file(&bad, &layout);
                    assert!(read.is_err(), "{}: byte {at} ^ {flip:#x}", path.display());
                }
                let read = decode_file(&good[..at], &layout);
                assert!(read.is_err(), "{}: cut to {at} bytes", path.display());
            }
            let mut longer = good.clone();
            longer.push(0);
            assert!(decode_file(&longer, &layout).is_err());
        }
    }
}

/// What a prompt of the conversation loads, best first, after the files were
/// changed: every state that loads must be right.
fn loads(dir: &Path) -> Vec<usize> {
    let store = open(dir, small_options());
    let prompt = tokens(1, 100);
    let mut loaded_lengths = Vec::new();
    for candidate in store.find(&prompt, None) {
        match store.load(&candidate) {
            Ok(loaded) => {
                let n = loaded.tokens.len();
                assert_eq!(loaded.tokens, prompt[..n]);
                let expected = Synthetic::new(&small_geometry(), u64::from(prompt[0])).state(n);
                assert_eq!(loaded.state, expected, "a wrong state of {n} tokens");
                loaded_lengths.push(n);
            }
            Err(Miss::Damaged { path, .. }) => {
                assert!(!path.exists(), "{} stays where it is", path.display());
            }
            Err(Miss::Gone { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    // What failed once is not offered again.
    assert_eq!(lengths(&store.find(&prompt, None)), loaded_lengths);
    loaded_lengths
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}

#[test]
fn a_store_with_damaged_files_offers_what_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small_options());
    for n in [20, 40, 60] {
        save(&store, &tokens(1, n));
    }
    drop(store);
    assert_eq!(loads(dir.path()), [60, 40, 20]);
    let all = files(dir.path());
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 6] = [
        ("no bytes", |bytes| bytes.clear()),
        ("the head alone", |bytes| bytes.truncate(300)),
        ("another magic", |bytes| {
            bytes[..4].copy_from_slice(b"KVC\x01")
        }),
        ("a flipped bit in the rows", |bytes| {
            let at = bytes.len() - 60;
            bytes[at] ^= 4;
        }),
        ("a flipped bit in the tokens", |bytes| bytes[220] ^= 4),
        ("a huge head", |bytes| {
            bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes())
        }),
    ];
    for (what, damage) in damages {
        for file in &all {
            let copied = tempfile::tempdir().unwrap();
            copy(dir.path(), copied.path());
            let target = copied.path().join(file.strip_prefix(dir.path()).unwrap());
            let mut bytes = fs::read(&target).unwrap();
            damage(&mut bytes);
            fs::write(&target, bytes).unwrap();
            let left = loads(copied.path());
            assert!(
                left.len() < 3,
                "{what} in {} went unnoticed",
                file.display()
            );
        }
    }
    for (a, b) in all.iter().zip(&all[1..]) {
        let copied = tempfile::tempdir().unwrap();
        copy(dir.path(), copied.path());
        let place = |file: &Path| copied.path().join(file.strip_prefix(dir.path()).unwrap());
        let kept = fs::read(place(a)).unwrap();
        fs::copy(place(b), place(a)).unwrap();
        fs::write(place(b), kept).unwrap();
        assert!(
            loads(copied.path()).len() < 3,
            "swapped files went unnoticed"
        );
    }
    for file in &all {
        let copied = tempfile::tempdir().unwrap();
        copy(dir.path(), copied.path());
        fs::remove_file(copied.path().join(file.strip_prefix(dir.path()).unwrap())).unwrap();
        assert!(
            loads(copied.path()).len() < 3,
            "a missing file went unnoticed"
        );
    }
}

#[test]
fn a_block_that_vanishes_while_the_store_is_open_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small_options());
    let prompt = tokens(1, 60);
    save(&store, &prompt[..20]);
    save(&store, &prompt[..50]);
    let candidates = store.find(&prompt, None);
    assert_eq!(lengths(&candidates), [50, 20]);
    for file in files(dir.path()) {
        if file.extension().is_some_and(|e| e == "blk") {
            fs::remove_file(file).unwrap();
        }
    }
    for candidate in &candidates {
        assert!(matches!(store.load(candidate), Err(Miss::Gone { .. })));
    }
    assert!(store.find(&prompt, None).is_empty());
    // And it can be saved again.
    save(&store, &prompt[..50]);
    let candidate = &store.find(&prompt, None)[0];
    assert_eq!(store.load(candidate).unwrap().tokens, prompt[..50]);
}
