//! The log of turn records.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use ds4_engine::store::{TurnLog, TurnLogError, TurnLogOptions, read_log_bytes};
use proptest::prelude::*;

use crate::synthetic::Random;

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("turns.log");
    (dir, path)
}

fn get(log: &mut TurnLog, key: &str) -> Option<(u8, Vec<u8>)> {
    let record = log.get(key.as_bytes()).unwrap();
    record.map(|record| (record.kind, record.payload))
}

#[test]
fn a_record_is_found_by_each_of_its_keys_and_after_a_restart() {
    let (_dir, path) = folder();
    let mut log = TurnLog::open(&path, TurnLogOptions::default()).unwrap();
    let long = b"tokens ".repeat(1000);
    log.append(1, &[b"call-1", b"call-2"], b"first").unwrap();
    log.append(2, &[b"call-3"], &long).unwrap();
    log.append(3, &[b"call-2"], b"").unwrap();
    assert!(log.n_bytes() < 1000, "a long payload is compressed");
    log.sync().unwrap();
    drop(log);
    let mut log = TurnLog::open(&path, TurnLogOptions::default()).unwrap();
    assert_eq!(log.n_keys(), 3);
    assert_eq!(get(&mut log, "call-1"), Some((1, b"first".to_vec())));
    assert_eq!(get(&mut log, "call-2"), Some((3, vec![])));
    assert_eq!(get(&mut log, "call-3"), Some((2, long)));
    assert_eq!(get(&mut log, "call-4"), None);
}

#[test]
fn a_torn_or_flipped_end_is_cut_off_and_the_log_goes_on() {
    let (_dir, path) = folder();
    let mut log = TurnLog::open(&path, TurnLogOptions::default()).unwrap();
    for i in 0..4u8 {
        log.append(i, &[&[b'k', i]], &[i; 50]).unwrap();
    }
    drop(log);
    let whole = fs::read(&path).unwrap();
    let record_bytes = (whole.len() - 8) / 4;
    for n in 0..whole.len() {
        let whole_records = n.saturating_sub(8) / record_bytes;
        let mut flipped = whole.clone();
        flipped[n] ^= 0x20;
        for bad in [&whole[..n], &flipped] {
            if n < 8 && bad.len() > 8 {
                fs::write(&path, bad).unwrap();
                let opened = TurnLog::open(&path, TurnLogOptions::default());
                assert!(matches!(opened, Err(TurnLogError::NotALog { .. })));
                continue;
            }
            fs::write(&path, bad).unwrap();
            let mut log = TurnLog::open(&path, TurnLogOptions::default()).unwrap();
            assert_eq!(
                log.n_keys(),
                whole_records,
                "byte {n} of {} bytes",
                bad.len()
            );
            log.append(9, &[b"new"], b"new").unwrap();
            drop(log);
            let mut log = TurnLog::open(&path, TurnLogOptions::default()).unwrap();
            assert_eq!(log.n_keys(), whole_records + 1);
            for i in 0..whole_records as u8 {
                let record = log.get(&[b'k', i]).unwrap().expect("whole");
                assert_eq!(record.payload, [i; 50]);
            }
            assert_eq!(get(&mut log, "new"), Some((9, b"new".to_vec())));
        }
    }
}

#[test]
fn over_its_limits_a_log_drops_what_was_used_longest_ago() {
    let (_dir, path) = folder();
    let options = TurnLogOptions {
        max_bytes: 20_000,
        max_keys: 100,
    };
    let mut log = TurnLog::open(&path, options).unwrap();
    let mut random = Random(5);
    for i in 0..2000u32 {
        let payload: Vec<u8> = (0..random.below(200))
            .map(|_| random.next() as u8)
            .collect();
        log.append(1, &[&i.to_le_bytes()], &payload).unwrap();
        if i > 0 {
            let record = log.get(&0u32.to_le_bytes()).unwrap();
            assert!(
                record.is_some(),
                "the record used all the time is gone after {i}"
            );
        }
        assert!(log.n_bytes() <= 20_000 && log.n_keys() <= 100);
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), log.n_bytes());
    assert!(log.get(&1999u32.to_le_bytes()).unwrap().is_some());
    assert!(log.get(&5u32.to_le_bytes()).unwrap().is_none());
}

#[test]
fn a_log_that_cannot_be_made_smaller_is_not_rewritten_at_every_record() {
    let (dir, path) = folder();
    let options = TurnLogOptions {
        max_bytes: 16_000,
        max_keys: 1_000_000,
    };
    let mut log = TurnLog::open(&path, options).unwrap();
    // Where the smaller log would be written is a folder that is not empty.
    let name = format!(".tmp-{}-turns", std::process::id());
    let in_the_way = dir.path().join(name);
    fs::create_dir_all(in_the_way.join("x")).unwrap();
    let mut random = Random(6);
    let (mut n_kept, mut n_errors) = (0, 0);
    let mut append = |log: &mut TurnLog, i: u32| {
        let payload: Vec<u8> = (0..50).map(|_| random.next() as u8).collect();
        log.append(1, &[&i.to_le_bytes()], &payload)
    };
    for i in 0..1000u32 {
        let before = log.n_bytes();
        n_errors += usize::from(append(&mut log, i).is_err());
        if log.n_bytes() == before {
            break;
        }
        n_kept = i + 1;
    }
    assert!(
        (32_000 - 100..=32_000).contains(&log.n_bytes()),
        "{}",
        log.n_bytes()
    );
    assert!(
        (2..=20).contains(&n_errors),
        "{n_errors} of {n_kept} tried it"
    );
    for i in 0..n_kept {
        assert!(log.get(&i.to_le_bytes()).unwrap().is_some(), "record {i}");
    }
    fs::remove_dir_all(&in_the_way).unwrap();
    append(&mut log, n_kept).unwrap();
    assert!(log.n_bytes() <= 16_000);
    assert!(log.get(&n_kept.to_le_bytes()).unwrap().is_some());
}

#[test]
fn a_log_that_cannot_be_made_smaller_opens_and_is_read() {
    let (dir, path) = folder();
    let key = |i: u32| i.to_le_bytes();
    let mut log = TurnLog::open(&path, TurnLogOptions::default()).unwrap();
    for i in 0..50 {
        log.append(1, &[&key(i)], &key(i)).unwrap();
    }
    drop(log);
    // Where the smaller log would be written is a folder that is not empty.
    let in_the_way = dir
        .path()
        .join(format!(".tmp-{}-turns", std::process::id()));
    fs::create_dir_all(in_the_way.join("x")).unwrap();
    let options = TurnLogOptions {
        max_bytes: 400,
        max_keys: 10,
    };
    let mut log = TurnLog::open(&path, options).unwrap();
    assert_eq!(log.n_keys(), 50);
    assert!(log.get(&key(3)).unwrap().is_some());
    fs::remove_dir_all(&in_the_way).unwrap();
    log.append(1, &[&key(50)], &key(50)).unwrap();
    assert!(log.n_bytes() <= 400 && log.n_keys() <= 10);
    assert!(log.get(&key(50)).unwrap().is_some());
    assert!(log.get(&key(4)).unwrap().is_none());
}

#[test]
fn two_processes_append_to_one_log() {
    let (_dir, path) = folder();
    let options = TurnLogOptions {
        max_bytes: 4000,
        max_keys: 1000,
    };
    let mut logs = [0, 1].map(|_| TurnLog::open(&path, options).unwrap());
    for i in 0..300u32 {
        // Each finds what the other wrote, across compactions of either.
        logs[i as usize % 2]
            .append(7, &[&i.to_le_bytes()], &i.to_le_bytes())
            .unwrap();
        let found = logs[(i as usize + 1) % 2].get(&i.to_le_bytes()).unwrap();
        assert_eq!(
            found.map(|r| r.payload),
            Some(i.to_le_bytes().to_vec()),
            "record {i}"
        );
    }
    let bytes = fs::read(&path).unwrap();
    assert_eq!(read_log_bytes(&bytes).unwrap().1, bytes.len());
}

#[test]
fn what_does_not_fit_a_record_is_refused() {
    let (_dir, path) = folder();
    let mut log = TurnLog::open(&path, TurnLogOptions::default()).unwrap();
    for keys in [vec![], vec![&[0u8; 300][..]], vec![&[0u8; 3][..]; 256]] {
        let refused = log.append(1, &keys, b"");
        assert!(
            matches!(refused, Err(TurnLogError::Record { .. })),
            "{} keys",
            keys.len()
        );
    }
    assert_eq!(log.n_keys(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_log_answers_like_a_map(
        steps in prop::collection::vec(
            (prop::collection::vec(0u8..12, 1..4), prop::collection::vec(any::<u8>(), 0..300), any::<bool>()),
            1..40,
        ),
    ) {
        let (_dir, path) = folder();
        let mut log = TurnLog::open(&path, TurnLogOptions::default()).unwrap();
        let mut map = HashMap::new();
        for (keys, payload, reopen) in steps {
            let names: Vec<&[u8]> = keys.iter().map(std::slice::from_ref).collect();
            log.append(keys[0], &names, &payload).unwrap();
            for key in &keys {
                map.insert(*key, (keys[0], payload.clone()));
            }
            if reopen {
                log = TurnLog::open(&path, TurnLogOptions::default()).unwrap();
            }
            prop_assert_eq!(log.n_keys(), map.len());
            for (key, expected) in &map {
                let record = log.get(&[*key]).unwrap().expect("it was appended");
                prop_assert_eq!(&(record.kind, record.payload), expected);
            }
        }
    }
}
