//! The budget: what goes, what stays.

use std::fs;
use std::path::Path;

use ds4_engine::store::{NotStored, Notice, PointSaved, Reason, Store, StoreOptions};

use crate::lookup::{lengths, save, save_as};
use crate::synthetic::{
    Random, key_of, later, open, small_geometry, small_layout, small_options, tokens,
};

fn options(budget_bytes: u64) -> StoreOptions {
    // The clock is ahead of file times, so that nothing is too young to go.
    StoreOptions {
        budget_bytes,
        now: ahead,
        ..small_options()
    }
}

/// A clock of which every reading is two hours after the one before.
fn ahead() -> std::time::SystemTime {
    use std::sync::atomic::{AtomicU64, Ordering};
    static HOURS: AtomicU64 = AtomicU64::new(0);
    let hours = HOURS.fetch_add(2, Ordering::Relaxed);
    later() + std::time::Duration::from_secs(3600 * hours)
}

fn bytes_below(dir: &Path) -> u64 {
    let mut n = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        n += match entry.file_type().unwrap().is_dir() {
            true => bytes_below(&entry.path()),
            false => entry.metadata().unwrap().len(),
        };
    }
    n
}

#[test]
fn a_random_workload_stays_within_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let budget = 100_000;
    let store = open(dir.path(), options(budget));
    let mut random = Random(3);
    for _ in 0..150 {
        let conversation = tokens(random.below(20) as u64, 1 + random.below(120));
        let reason = [Reason::TurnEnd, Reason::Anchor, Reason::Interval][random.below(3)];
        save_as(&store, &conversation, reason, &[]);
        let found = bytes_below(dir.path());
        assert!(found <= budget + budget / 20, "{found} bytes of {budget}");
    }
    assert!(store.counts().n_evicted > 10);
    let usage = store.usage();
    assert_eq!(bytes_below(dir.path()), usage.n_bytes + usage.n_other_bytes);
}

#[test]
fn a_candidate_is_not_evicted_while_it_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), options(30_000));
    let prompt = tokens(1, 50);
    save_as(&store, &prompt[..40], Reason::TurnEnd, &[]);
    let held = store.find(&prompt, None);
    assert_eq!(lengths(&held), [40]);
    for number in 10..30 {
        save(&store, &tokens(number, 60));
    }
    assert!(store.counts().n_evicted > 5);
    assert_eq!(
        store.load(&held[0]).expect("still there").tokens,
        prompt[..40]
    );
    drop(held);
    for number in 30..60 {
        save(&store, &tokens(number, 60));
    }
    assert!(
        store.find(&prompt, None).is_empty(),
        "nothing holds it any more"
    );
    assert!(matches!(
        store.not_stored(&prompt, 0),
        NotStored::Evicted { .. }
    ));
}

#[test]
fn blocks_that_others_share_outlive_a_point() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), options(1 << 20));
    let prompt = tokens(1, 64);
    // Three turn ends: the oldest goes, and with it no block that others need.
    for n in [36, 50, 60] {
        save_as(&store, &prompt[..n], Reason::TurnEnd, &[]);
    }
    assert_eq!(lengths(&store.find(&prompt, None)), [60, 50]);
    for candidate in store.find(&prompt, None) {
        assert_eq!(
            store.load(&candidate).unwrap().tokens,
            prompt[..candidate.n_tokens]
        );
    }
    assert_eq!(store.usage().n_blocks, 3);
    // Another conversation's turn ends are its own.
    for n in [5, 7] {
        save_as(&store, &tokens(2, n), Reason::TurnEnd, &[]);
    }
    assert_eq!(lengths(&store.find(&prompt, None)), [60, 50]);
}

#[test]
fn states_of_other_models_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let key = |weights| key_of(&small_geometry(), &small_layout(), weights);
    let other = Store::open(dir.path(), options(1 << 20), key(2), small_layout()).unwrap();
    for number in 0..10 {
        save(&other, &tokens(number, 60));
    }
    drop(other);
    let before = bytes_below(dir.path());
    let store = Store::open(dir.path(), options(before + 2000), key(1), small_layout()).unwrap();
    let prompt = tokens(1, 60);
    for n in [20, 40, 59] {
        save(&store, &prompt[..n]);
    }
    assert_eq!(lengths(&store.find(&prompt, None)), [59, 40, 20]);
    assert!(bytes_below(dir.path()) <= before + 2000 + 100);
}
#[test]
fn what_is_used_outlives_what_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(60_000);
    let store = open(dir.path(), options.clone());
    let used = tokens(1, 50);
    save(&store, &used[..40]);
    for number in 10..60 {
        save(&store, &tokens(number, 40));
        let candidate = store
            .find(&used, None)
            .into_iter()
            .next()
            .expect("used all the time");
        store.load(&candidate).expect("whole");
    }
    assert!(store.counts().n_evicted > 20);
    // Use counts survive a restart.
    drop(store);
    let store = open(dir.path(), options);
    for number in 60..70 {
        save(&store, &tokens(number, 40));
    }
    assert_eq!(lengths(&store.find(&used, None)), [40]);
}

#[test]
fn a_limit_that_is_too_small_for_a_state_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), options(2000));
    for conversation in 1..4 {
        let prompt = tokens(conversation, 60);
        let saved = save_as(&store, &prompt, Reason::Anchor, &[]);
        assert_eq!(saved, PointSaved::TooLarge);
    }
    let notices = store.take_notices();
    let [
        Notice::TooLarge {
            n_tokens: 60,
            n_bytes,
            budget_bytes: 2000,
        },
    ] = notices[..]
    else {
        panic!("{notices:?}");
    };
    assert!(n_bytes > 2000);
    let told = notices[0].to_string();
    assert!(
        told.contains("a state of 60 tokens takes 1 MiB, more than"),
        "{told}"
    );
}
