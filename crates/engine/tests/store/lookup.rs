//! Which points a prompt finds, and what is said about those it does not.

use std::time::{Duration, SystemTime};

use ds4_engine::store::{
    Candidate, MatchedBy, NotStored, PointSaved, Reason, SaveOptions, Store, StoreOptions, TextKey,
    TextQuery,
};
use ds4_model::Geometry;

use crate::synthetic::{
    SMALL_BLOCK, Synthetic, key_of, open, small_geometry, small_layout, small_options, tokens,
};

pub(crate) fn save_as(
    store: &Store,
    tokens: &[u32],
    reason: Reason,
    keys: &[TextKey],
) -> PointSaved {
    let mut rows = Synthetic::new(&small_geometry(), u64::from(tokens[0]));
    let options = SaveOptions {
        reason,
        text_keys: keys,
        wait: true,
    };
    let saved = store.save(tokens, &mut rows, &options).expect("readable");
    store.flush();
    saved.point
}

pub(crate) fn save(store: &Store, tokens: &[u32]) {
    assert_eq!(
        save_as(store, tokens, Reason::Anchor, &[]),
        PointSaved::Queued
    );
}

pub(crate) fn lengths(found: &[Candidate]) -> Vec<usize> {
    found.iter().map(|candidate| candidate.n_tokens).collect()
}

#[test]
fn every_point_on_the_way_of_a_prompt_is_found_longest_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small_options());
    let prompt = tokens(1, 100);
    let saved = [1, 15, 16, 17, 31, 32, 50, 64, 99];
    for n in saved {
        save(&store, &prompt[..n]);
    }
    // Others that begin alike and depart, in the tail and at a block's edge.
    for n in [10, 16, 40, 64] {
        let mut other = prompt[..n].to_vec();
        other.extend(tokens(9, 30));
        save(&store, &other);
    }
    for store in [store, open(dir.path(), small_options())] {
        for end in [1, 2, 16, 17, 33, 51, 99, 100] {
            let expected: Vec<usize> = saved.into_iter().rev().filter(|n| *n < end).collect();
            assert_eq!(
                lengths(&store.find(&prompt[..end], None)),
                expected,
                "prompt of {end}"
            );
        }
        for candidate in store.find(&prompt, None) {
            let loaded = store.load(&candidate).expect("it was written");
            assert_eq!(loaded.tokens, prompt[..candidate.n_tokens]);
            let expected =
                Synthetic::new(&small_geometry(), u64::from(prompt[0])).state(candidate.n_tokens);
            assert_eq!(loaded.state, expected);
        }
    }
}

#[test]
fn a_text_finds_the_tokens_that_were_sampled_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small_options());
    let sampled = tokens(1, 40);
    let text = "system: é. user: hello";
    let visible = "user: hello";
    save_as(&store, &sampled, Reason::TurnEnd, &[TextKey::new(text, 7)]);
    // The same state under a second text.
    let again = save_as(
        &store,
        &sampled,
        Reason::TurnEnd,
        &[TextKey::new(visible, 7)],
    );
    assert_eq!(again, PointSaved::Queued);
    for store in [store, open(dir.path(), small_options())] {
        let found = |text: &str, setting| store.find(&[5, 6], Some(TextQuery { text, setting }));
        for key in [text, visible] {
            let candidates = found(&format!("{key} and more"), 7);
            assert_eq!(lengths(&candidates), [40], "{key}");
            let text_bytes = key.len();
            assert_eq!(candidates[0].matched_by, MatchedBy::Text { text_bytes });
            assert_eq!(store.load(&candidates[0]).unwrap().tokens, sampled);
            assert!(
                found(key, 7).is_empty(),
                "nothing of the text would be left"
            );
            assert!(
                found(&format!("{key} and more"), 8).is_empty(),
                "another setting"
            );
        }
        assert!(found("system: ê. user: hello and more", 7).is_empty());
        // Matched by tokens it is offered once.
        let mut prompt = sampled.clone();
        prompt.push(1);
        let query = TextQuery {
            text: "user: hello and more",
            setting: 7,
        };
        let candidates = store.find(&prompt, Some(query));
        assert_eq!(candidates.len(), 1);
        assert_eq!(candidates[0].matched_by, MatchedBy::Tokens);
    }
}

#[test]
fn a_miss_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small_options());
    let prompt = tokens(1, 100);
    assert_eq!(
        store.not_stored(&prompt, 0),
        NotStored::NoPoint { n_same: 0 }
    );
    save(&store, &prompt[..70]);
    // Nothing but the same tokens so far: no point lies there.
    assert_eq!(
        store.not_stored(&prompt[..60], 0),
        NotStored::NoPoint { n_same: 60 }
    );
    assert_eq!(
        store.not_stored(&prompt, 70),
        NotStored::NoPoint { n_same: 70 }
    );
    for at in [1, 15, 16, 17, 37, 64, 69] {
        let mut other = prompt.clone();
        other[at] ^= 1;
        assert_eq!(
            store.not_stored(&other, 0),
            NotStored::FirstDifference { at },
            "changed at {at}"
        );
    }
    let other_model = Store::open(
        dir.path(),
        small_options(),
        key_of(&small_geometry(), &small_layout(), 2),
        small_layout(),
    )
    .unwrap();
    assert_eq!(other_model.not_stored(&prompt, 0), NotStored::OtherModel);
    assert!(
        other_model.find(&prompt, None).is_empty(),
        "weights of the same shape share nothing"
    );
}

#[test]
fn the_key_changes_with_everything_that_changes_rows() {
    let (geometry, layout) = (small_geometry(), small_layout());
    let base = key_of(&geometry, &layout, 1);
    let changed = |change: fn(&mut Geometry)| {
        let mut other = geometry.clone();
        change(&mut other);
        key_of(&other, &layout, 1)
    };
    assert_ne!(base, changed(|g| g.rope_base += 1.0));
    assert_ne!(base, changed(|g| g.yarn.factor += 1.0));
    assert_ne!(base, changed(|g| g.expert_clamp[0] += 1.0));
    assert_ne!(base, changed(|g| g.layers.swap(0, 1)));
    assert_ne!(base, key_of(&geometry, &layout, 2));
    assert_ne!(
        base,
        key_of(&geometry, &layout.clone().with_block_tokens(32), 1)
    );
    let plain = ds4_engine::store::SlotLayout::new(&geometry, ds4_model::CacheRounding::Off)
        .with_block_tokens(SMALL_BLOCK);
    assert_ne!(base, key_of(&geometry, &plain, 1));
    assert_eq!(
        base,
        changed(|g| g.max_context /= 2),
        "the context changes no row"
    );
}

#[test]
fn short_states_are_not_saved_and_long_ones_not_offered() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = tokens(1, 100);
    let options = StoreOptions {
        min_tokens: 20,
        max_tokens: 60,
        ..small_options()
    };
    let store = open(dir.path(), options);
    assert_eq!(
        save_as(&store, &prompt[..19], Reason::Anchor, &[]),
        PointSaved::TooShort
    );
    save(&store, &prompt[..20]);
    save(&store, &prompt[..70]);
    assert_eq!(lengths(&store.find(&prompt, None)), [20]);
}

#[test]
fn the_days_bytes_hold_back_what_matters_less() {
    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000)
    }
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        write_budget_bytes_per_day: 1000,
        now: noon,
        ..small_options()
    };
    let store = open(dir.path(), options);
    assert_eq!(
        save_as(&store, &tokens(1, 40), Reason::TurnEnd, &[]),
        PointSaved::Queued
    );
    assert!(store.counts().written_bytes > 1000);
    for (reason, expected) in [
        (Reason::TurnEnd, PointSaved::OverWriteBudget),
        (Reason::Interval, PointSaved::OverWriteBudget),
        (Reason::Anchor, PointSaved::Queued),
        (Reason::Shutdown, PointSaved::Queued),
        (Reason::Explicit, PointSaved::Queued),
    ] {
        let conversation = tokens(reason as u64 + 10, 40);
        assert_eq!(
            save_as(&store, &conversation, reason, &[]),
            expected,
            "{reason:?}"
        );
    }
}
