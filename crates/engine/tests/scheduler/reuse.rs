//! What a prompt finds in the slots, and what finding it costs others.

use ds4_engine::{GENERATION_TOKENS, Request, Scheduler, SchedulerOptions, SequenceId, Timings};

use crate::harness::{Replies, by_hand, collect, greedy, long_prompt, model, open, run};

const CONTEXT: usize = 2048;

/// Runs a request to its end, alone.
fn ask(scheduler: &mut Scheduler, request: Request) -> (Vec<u32>, Timings) {
    let id = scheduler.submit(request).expect("accepted");
    let (tokens, finished) = run(scheduler).remove(&id).expect("a reply");
    (tokens, finished.expect("it ended").1)
}

/// What stays of a prompt when its tokens from `at` on are others.
fn changed_from(prompt: &[u32], at: usize) -> Vec<u32> {
    let mut other = prompt.to_vec();
    other[at..].iter_mut().for_each(|token| *token ^= 1);
    other
}

#[test]
fn a_regenerated_reply_computes_the_end_of_its_prompt() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 1, CONTEXT));
    for n in [130, 256, 257, 300, 383] {
        let prompt = long_prompt(&golden, n);
        let (first, _) = ask(&mut scheduler, greedy(&prompt, 150));
        let (again, timings) = ask(&mut scheduler, greedy(&prompt, 150));
        let found = n - GENERATION_TOKENS..n;
        assert!(found.contains(&timings.n_cached), "{n}: {timings:?}");
        assert_eq!(again, first);
    }
}

#[test]
fn an_edited_last_message_computes_that_message() {
    let golden = model();
    let all = long_prompt(&golden, 900);
    let mut scheduler = Scheduler::new(open(&golden, 1, CONTEXT));
    let mut prompt = all[..200].to_vec();
    let mut turn_start = 0;
    for turn in 0..3 {
        let (reply, timings) = ask(&mut scheduler, greedy(&prompt, 100));
        assert_eq!(timings.n_cached, turn_start, "turn {turn}");
        // The reply's last token was never computed.
        turn_start = prompt.len() + reply.len() - 1;
        prompt.extend(&reply);
        prompt.extend(&all[300 + 70 * turn..][..70]);
    }
    let (_, timings) = ask(&mut scheduler, greedy(&prompt, 100));
    assert_eq!(timings.n_cached, turn_start);
    let edited = changed_from(&prompt, turn_start + 1);
    let (reply, timings) = ask(&mut scheduler, greedy(&edited, 20));
    let found = turn_start..=turn_start + 1;
    assert!(found.contains(&timings.n_cached), "{timings:?}");
    assert_eq!(reply, by_hand(&mut open(&golden, 1, CONTEXT), &edited, 20));
}

#[test]
fn a_prompt_goes_on_from_the_nearest_snapshot_below() {
    let golden = model();
    let prompt = long_prompt(&golden, 700);
    let mut by_hand_engine = open(&golden, 1, CONTEXT);
    for (at, expected) in [(699, 698), (640, 640), (639, 512), (300, 256), (127, 0)] {
        let mut scheduler = Scheduler::new(open(&golden, 1, CONTEXT));
        ask(&mut scheduler, greedy(&prompt, 100));
        let mut other = changed_from(&prompt, at);
        other.push(5);
        let (reply, timings) = ask(&mut scheduler, greedy(&other, 5));
        assert_eq!(timings.n_cached, expected, "changed at {at}");
        assert_eq!(reply, by_hand(&mut by_hand_engine, &other, 5));
    }
}

#[test]
fn a_second_conversation_computes_what_lies_behind_the_anchor() {
    let golden = model();
    let system = long_prompt(&golden, 333);
    let with = |user: &[u32]| Request {
        anchors: vec![system.len()],
        ..greedy(&[&system, user].concat(), 80)
    };
    let user = [&golden.tokens[5..55], &golden.tokens[70..110]];
    let request = with(user[0]);
    let first_prompt = request.tokens.clone();
    let expected = by_hand(&mut open(&golden, 1, CONTEXT), &with(user[1]).tokens, 80);

    // After the first one, while it decodes, and together with it.
    let mut scheduler = Scheduler::new(open(&golden, 2, CONTEXT));
    let (first_reply, _) = ask(&mut scheduler, request.clone());
    let (reply, timings) = ask(&mut scheduler, with(user[1]));
    assert_eq!(timings.n_cached, system.len());
    assert_eq!(reply, expected);
    let mut next_turn = [&first_prompt[..], &first_reply].concat();
    next_turn.extend(&golden.tokens[..9]);
    let (_, timings) = ask(&mut scheduler, greedy(&next_turn, 3));
    let n_held = first_prompt.len() + first_reply.len() - 1;
    assert_eq!(timings.n_cached, n_held, "the first one is whole");

    for n_ticks in [0, 8] {
        let mut scheduler = Scheduler::new(open(&golden, 2, CONTEXT));
        let first = scheduler.submit(request.clone()).unwrap();
        let mut replies = Replies::new();
        for _ in 0..n_ticks {
            collect(scheduler.tick().unwrap(), &mut replies);
        }
        let second = scheduler.submit(with(user[1])).unwrap();
        for (id, (tokens, finished)) in run(&mut scheduler) {
            let reply = replies.entry(id).or_default();
            reply.0.extend(tokens);
            reply.1 = finished;
        }
        let n_cached = |id: SequenceId| replies[&id].1.expect("it ended").1.n_cached;
        assert_eq!(n_cached(first), 0);
        assert_eq!(n_cached(second), system.len(), "after {n_ticks} ticks");
        assert_eq!(replies[&first].0, first_reply);
        assert_eq!(replies[&second].0, expected);
    }
}

#[test]
fn a_common_beginning_does_not_cost_a_conversation() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 2, CONTEXT));
    let long = long_prompt(&golden, 400);
    let other = changed_from(&long, 0);
    ask(&mut scheduler, greedy(&other[..300], 5));
    ask(&mut scheduler, greedy(&long, 80));
    // The slot of the other conversation is older and gives way.
    let title = [&long[..130], &golden.tokens[..20]].concat();
    let (reply, timings) = ask(&mut scheduler, greedy(&title, 5));
    assert_eq!(timings.n_cached, 128);
    assert_eq!(reply, by_hand(&mut open(&golden, 1, CONTEXT), &title, 5));
    let (_, timings) = ask(&mut scheduler, greedy(&long, 80));
    assert_eq!(timings.n_cached, 398);
    let (_, timings) = ask(&mut scheduler, greedy(&other[..300], 5));
    assert_eq!(timings.n_cached, 0, "it gave way");
}

#[test]
fn a_beginning_that_another_slot_has_too_gives_way_first() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 3, CONTEXT));
    let long = long_prompt(&golden, 400);
    let other = changed_from(&long, 0);
    // The oldest is a conversation, the newest holds a beginning of the other one.
    ask(&mut scheduler, greedy(&other[..300], 5));
    ask(&mut scheduler, greedy(&long, 80));
    ask(&mut scheduler, greedy(&long[..150], 0));
    let branch = [&long[..390], &golden.tokens[..20]].concat();
    let (_, timings) = ask(&mut scheduler, greedy(&branch, 5));
    assert_eq!(timings.n_cached, 384);
    let (_, timings) = ask(&mut scheduler, greedy(&other[..300], 5));
    assert!(timings.n_cached >= 298, "{timings:?}");
    let (_, timings) = ask(&mut scheduler, greedy(&long, 5));
    assert_eq!(timings.n_cached, 398);
}

#[test]
fn conversations_of_the_same_words_keep_their_own_slots() {
    let golden = model();
    let prompt = long_prompt(&golden, 200);
    let of = |key: u64, tokens: &[u32]| Request {
        affinity: Some(key),
        ..greedy(tokens, 90)
    };
    let mut scheduler = Scheduler::new(open(&golden, 2, CONTEXT));
    let (reply, _) = ask(&mut scheduler, of(1, &prompt));
    // The same words from another conversation go to another slot.
    let id = scheduler.submit(of(2, &prompt)).unwrap();
    scheduler.tick().unwrap();
    let reuse = scheduler.reuse(id).expect("it runs");
    assert_eq!((reuse.slot, reuse.from, reuse.n_cached), (1, 0, 198));
    run(&mut scheduler);
    // Both hold the same; each goes on in its own.
    let next = [&prompt[..], &reply, &golden.tokens[..5]].concat();
    for (key, slot) in [(1, 0), (2, 1)] {
        let id = scheduler.submit(of(key, &next)).unwrap();
        scheduler.tick().unwrap();
        assert_eq!(scheduler.reuse(id).expect("it runs").slot, slot);
        run(&mut scheduler);
    }
}

#[test]
fn a_request_that_wants_no_cache_neither_finds_nor_leaves_anything() {
    let golden = model();
    let prompt = long_prompt(&golden, 200);
    let mut scheduler = Scheduler::new(open(&golden, 2, CONTEXT));
    let alone = Request {
        use_cache: false,
        ..greedy(&prompt, 10)
    };
    let (reply, _) = ask(&mut scheduler, greedy(&prompt, 10));
    let (again, timings) = ask(&mut scheduler, alone.clone());
    assert_eq!((&again, timings.n_cached), (&reply, 0));
    let mut scheduler = Scheduler::new(open(&golden, 2, CONTEXT));
    ask(&mut scheduler, alone.clone());
    assert!(scheduler.slots().iter().all(|slot| slot.n_tokens == 0));
    // Nor while it runs.
    scheduler.submit(alone).unwrap();
    scheduler.tick().unwrap();
    let id = scheduler.submit(greedy(&prompt, 10)).unwrap();
    let replies = run(&mut scheduler);
    assert_eq!(replies[&id].1.expect("it ended").1.n_cached, 0);
    assert_eq!(replies[&id].0, reply);
}

#[test]
fn snapshots_stay_within_their_bytes() {
    let golden = model();
    let prompt = long_prompt(&golden, 900);
    let one = {
        let mut engine = open(&golden, 1, CONTEXT);
        by_hand(&mut engine, &prompt[..255], 1);
        engine.frontier(0).expect("reads").n_bytes()
    };
    assert!(one > 0);
    let mut most_kept = 0;
    for most_bytes in [0, 1, one, 2 * one, usize::MAX] {
        let options = SchedulerOptions {
            snapshot_bytes: most_bytes,
            ..SchedulerOptions::default()
        };
        let mut scheduler = Scheduler::new(open(&golden, 1, CONTEXT)).with_options(options);
        for n in [400, 650, 900] {
            scheduler
                .submit(Request {
                    anchors: vec![200],
                    ..greedy(&prompt[..n], 30)
                })
                .unwrap();
            while !scheduler.is_idle() {
                scheduler.tick().unwrap();
                let n_bytes = scheduler.snapshot_bytes(0);
                assert!(n_bytes <= most_bytes, "{n_bytes} of {most_bytes}");
                most_kept = most_kept.max(n_bytes);
            }
        }
        // What is given up last is the anchor.
        let mut other = changed_from(&prompt, 210);
        other.truncate(250);
        let (_, timings) = ask(&mut scheduler, greedy(&other, 1));
        let expected = if most_bytes < one { 0 } else { 200 };
        assert_eq!(timings.n_cached, expected, "of {most_bytes} bytes");
    }
    assert!(most_kept > 2 * one, "{most_kept} bytes where there is room");
}
