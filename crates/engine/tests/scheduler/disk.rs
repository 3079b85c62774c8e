//! What a scheduler writes to its store, when, and what it finds there again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ds4_conformance::golden::Golden;
use ds4_engine::store::NotStored;
use ds4_engine::{
    GENERATION_TOKENS, MIN_ANCHOR_GAIN, Request, SAVE_RETRY, Scheduler, SchedulerOptions,
};

use ds4_formats::gguf::Gguf;

use crate::harness::{
    Replies, by_hand, collect, greedy, long_prompt, model, open, run, until_it_runs, with_store,
};

fn n_points(scheduler: &Scheduler) -> u64 {
    let store = scheduler.store().expect("with a store");
    store.flush();
    store.counts().n_points
}

/// Tokens cached and loaded by a request that is then given up.
fn found(scheduler: &mut Scheduler, request: Request) -> (usize, usize) {
    let id = scheduler.submit(request).expect("accepted");
    let reuse = until_it_runs(scheduler, id);
    scheduler.cancel(id);
    run(scheduler);
    (reuse.n_cached, reuse.n_loaded)
}

#[test]
fn a_turn_is_written_when_its_slot_rests() {
    let golden = model();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let never = SchedulerOptions {
        idle_save: Duration::from_secs(1 << 40),
        ..SchedulerOptions::default()
    };
    let at_once = SchedulerOptions {
        idle_save: Duration::ZERO,
        ..never.clone()
    };
    let mut scheduler = with_store(&golden, 1, folder.path()).with_options(never);
    let prompt = long_prompt(&golden, 300);
    scheduler.submit(greedy(&prompt, 100)).unwrap();
    run(&mut scheduler);
    assert!(scheduler.save_idle().expect("it is due some time") > Duration::ZERO);
    assert_eq!(n_points(&scheduler), 0);
    let mut scheduler = scheduler.with_options(at_once);
    assert!(
        scheduler.save_idle().is_some(),
        "what is queued may be given up"
    );
    // The end of the reply, and that of the prompt.
    assert_eq!(n_points(&scheduler), 2);
    assert_eq!(scheduler.save_idle(), None);
    scheduler.save_all();
    assert_eq!(n_points(&scheduler), 2, "nothing was added to the slot");
    drop(scheduler);

    let mut scheduler = with_store(&golden, 1, folder.path());
    let n_prompt_end = prompt.len() - GENERATION_TOKENS;
    assert_eq!(
        found(&mut scheduler, greedy(&prompt, 100)),
        (n_prompt_end, n_prompt_end)
    );
}

#[test]
fn a_slot_is_written_before_it_is_given_up() {
    let golden = model();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut scheduler = with_store(&golden, 1, folder.path());
    let prompt = long_prompt(&golden, 300);
    let id = scheduler.submit(greedy(&prompt, 100)).unwrap();
    let reply = run(&mut scheduler).remove(&id).expect("a reply").0;
    assert_eq!(n_points(&scheduler), 0);
    scheduler.submit(greedy(&golden.tokens[7..30], 2)).unwrap();
    run(&mut scheduler);
    assert_eq!(n_points(&scheduler), 2);
    let next = [&prompt[..], &reply, &golden.tokens[..5]].concat();
    let n_held = prompt.len() + reply.len() - 1;
    assert_eq!(found(&mut scheduler, greedy(&next, 9)), (n_held, n_held));
    // A reply that is replaced by another one is not worth writing.
    let before = n_points(&scheduler);
    let again = greedy(&next, 10);
    for _ in 0..3 {
        scheduler.submit(again.clone()).unwrap();
        run(&mut scheduler);
    }
    assert_eq!(n_points(&scheduler), before);
}

#[test]
fn a_conversation_that_begins_like_another_does_not_do_its_turn_over() {
    let golden = model();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut scheduler = with_store(&golden, 1, folder.path());
    let system = long_prompt(&golden, 200);
    let mut first_turns = Vec::new();
    for user in [5..55, 60..100, 110..130] {
        let prompt = [&system, &golden.tokens[user]].concat();
        let id = scheduler.submit(greedy(&prompt, 40)).unwrap();
        let reply = run(&mut scheduler).remove(&id).expect("a reply").0;
        first_turns.push([&prompt[..], &reply].concat());
    }
    // Of each the last token said was never computed.
    for turn in &first_turns {
        scheduler.store().expect("with a store").flush();
        let next = [turn, &golden.tokens[..9]].concat();
        let (n_cached, _) = found(&mut scheduler, greedy(&next, 2));
        assert_eq!(n_cached, turn.len() - 1);
    }
}

#[test]
fn an_anchor_is_found_after_a_restart() {
    let golden = model();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let system = long_prompt(&golden, MIN_ANCHOR_GAIN + 77);
    let with = |user: &[u32]| Request {
        // What is short, or close to a stored state, is not written.
        anchors: vec![MIN_ANCHOR_GAIN - 1, system.len(), system.len() + 20],
        ..greedy(&[&system, user].concat(), 3)
    };
    let mut scheduler = with_store(&golden, 1, folder.path());
    scheduler.submit(with(&golden.tokens[5..55])).unwrap();
    run(&mut scheduler);
    assert_eq!(n_points(&scheduler), 1);
    drop(scheduler);

    let mut scheduler = with_store(&golden, 2, folder.path());
    let request = with(&golden.tokens[70..110]);
    let id = scheduler.submit(request.clone()).unwrap();
    let (tokens, finished) = run(&mut scheduler).remove(&id).expect("a reply");
    assert_eq!(finished.expect("it ended").1.n_cached, system.len());
    assert_eq!(
        tokens,
        by_hand(&mut open(&golden, 1, 2048), &request.tokens, 3)
    );
    // Once in a slot it is not read again.
    let third = with(&golden.tokens[120..150]);
    assert_eq!(found(&mut scheduler, third), (system.len(), 0));
    let kept = scheduler.store().expect("with a store").counts();
    assert_eq!((kept.n_loaded, kept.n_points), (1, 0));
}

#[test]
fn a_last_text_that_changed_over_a_restart_is_all_that_is_computed() {
    let golden = model();
    let all = long_prompt(&golden, 900);
    // The text of the user, and results of tools behind it.
    let (text, results) = (&golden.tokens[5..65], &golden.tokens[70..120]);
    let other = &golden.tokens[90..130];
    // A conversation that is new to the server, and one whose turns it has all seen.
    for is_known in [false, true] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut scheduler = with_store(&golden, 1, folder.path());
        let mut before = all[..450].to_vec();
        let mut n_held = before.len();
        if is_known {
            let id = scheduler.submit(greedy(&before, 30)).unwrap();
            let reply = run(&mut scheduler).remove(&id).expect("a reply").0;
            before.extend(&reply);
            // The reply's last token was never computed.
            n_held = before.len() - 1;
        }
        let with = |behind: &[u32]| Request {
            last_user: before.len(),
            ..greedy(&[&before, behind].concat(), 20)
        };
        let mut said = text.to_vec();
        // More steps of an agent than there are ends of turns that are kept.
        for _ in 0..10 {
            let id = scheduler.submit(with(&said)).unwrap();
            said.extend(run(&mut scheduler).remove(&id).expect("a reply").0);
            said.extend(results);
        }
        scheduler.save_all();
        drop(scheduler);

        let mut scheduler = with_store(&golden, 1, folder.path());
        assert_eq!(found(&mut scheduler, with(other)), (n_held, n_held));
    }
}

#[test]
fn states_of_other_weights_of_the_same_shape_are_not_used() {
    let golden = model();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let prompt = long_prompt(&golden, 300);
    let mut scheduler = with_store(&golden, 1, folder.path());
    scheduler.submit(greedy(&prompt, 5)).unwrap();
    run(&mut scheduler);
    scheduler.save_all();
    assert_eq!(n_points(&scheduler), 2);
    drop(scheduler);

    // Another fine-tune: one tensor differs in one byte.
    let file = &golden.gguf.shards()[0].bytes;
    let spec = golden.gguf.tensors().nth(7).expect("many tensors");
    let tensor = golden.gguf.data(spec);
    let at = tensor.as_ptr() as usize - file.as_ptr() as usize + tensor.len() / 2;
    let mut bytes = file.to_vec();
    bytes[at] ^= 1;
    let other = Golden {
        name: "another".to_owned(),
        gguf: Gguf::parse(bytes.into()).expect("the same table"),
        tokens: golden.tokens.clone(),
        logits: golden.logits.clone(),
    };
    let mut scheduler = with_store(&other, 1, folder.path());
    let id = scheduler.submit(greedy(&prompt, 5)).unwrap();
    let reuse = until_it_runs(&mut scheduler, id);
    assert_eq!((reuse.n_cached, reuse.n_loaded), (0, 0));
    assert_eq!(reuse.not_stored, Some(NotStored::OtherModel));
    drop(scheduler);

    let mut scheduler = with_store(&golden, 1, folder.path());
    assert_eq!(found(&mut scheduler, greedy(&prompt, 5)), (298, 298));
}

/// The files of a folder's only model whose names end like this.
fn files(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(suffix) {
                found.push(path);
            }
        }
    }
    found
}

#[cfg(unix)]
#[test]
fn others_go_on_while_a_request_waits_for_a_disk_that_does_not_answer() {
    let golden = model();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stored = long_prompt(&golden, 300);
    let mut scheduler = with_store(&golden, 1, folder.path());
    scheduler.submit(greedy(&stored, 5)).unwrap();
    run(&mut scheduler);
    scheduler.save_all();
    drop(scheduler);

    let mut scheduler = with_store(&golden, 3, folder.path());
    // Whoever opens a pipe to read it waits for somebody who writes.
    let points = files(folder.path(), ".pt");
    assert_eq!(points.len(), 2);
    let below = std::fs::File::open(points[0].parent().expect("a folder")).expect("a folder");
    let listed = below.metadata().and_then(|m| m.modified()).expect("a time");
    for point in &points {
        std::fs::remove_file(point).expect("it was there");
        let made = std::process::Command::new("mkfifo").arg(point).status();
        assert!(made.expect("mkfifo").success());
    }
    // Looked at again, the folder has no states: it is as old as it was.
    below.set_modified(listed).expect("a time");
    let other = &golden.tokens[7..60];
    let first = scheduler.submit(greedy(other, 40)).unwrap();
    until_it_runs(&mut scheduler, first);
    let waits = scheduler.submit(greedy(&stored, 6)).unwrap();
    let second = scheduler.submit(greedy(&golden.tokens[9..80], 7)).unwrap();
    let mut replies = Replies::new();
    let is_over = |replies: &Replies, id| replies.get(&id).is_some_and(|(_, end)| end.is_some());
    while !(is_over(&replies, first) && is_over(&replies, second)) {
        collect(scheduler.tick().expect("no step fails"), &mut replies);
        assert!(scheduler.contains(waits));
    }
    assert_eq!(replies[&first].0.len(), 40);
    assert_eq!(replies[&second].0.len(), 7);

    // A pipe into which nothing is written is a damaged file: the next one is tried.
    for point in &points {
        // Opened for both, a pipe waits for nobody.
        let mut both = std::fs::OpenOptions::new();
        drop(both.read(true).write(true).open(point));
    }
    while !is_over(&replies, waits) {
        collect(scheduler.tick().expect("no step fails"), &mut replies);
    }
    let by_hand = by_hand(&mut open(&golden, 1, 2048), &stored, 6);
    assert_eq!(replies[&waits].0, by_hand);
}

#[test]
fn a_state_that_was_queued_and_given_up_is_saved_later() {
    let golden = model();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut scheduler = with_store(&golden, 1, folder.path()).with_options(SchedulerOptions {
        idle_save: Duration::ZERO,
        ..SchedulerOptions::default()
    });
    let compat = std::fs::read_dir(folder.path()).expect("a folder");
    let mut compat = compat.map(|entry| entry.expect("an entry").path());
    let compat = compat.find(|path| path.is_dir()).expect("the model's");
    let points = compat.join("points");
    std::fs::remove_dir(&points).expect("an empty folder");
    std::fs::write(&points, "in the way").expect("a file");
    scheduler
        .submit(greedy(&long_prompt(&golden, 300), 10))
        .unwrap();
    run(&mut scheduler);
    scheduler.save_idle();
    assert_eq!(n_points(&scheduler), 0);
    std::fs::remove_file(&points).expect("a file");
    std::fs::create_dir(&points).expect("a folder");
    let due = scheduler.save_idle().expect("it is tried again");
    assert!(due <= SAVE_RETRY && due > Duration::ZERO, "{due:?}");
    scheduler.save_all();
    assert_eq!(n_points(&scheduler), 2);
}
