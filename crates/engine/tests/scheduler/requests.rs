//! What requests see of a scheduler.

use std::sync::Arc;

use ds4_conformance::network::argmax;
use ds4_engine::{
    Batch, Constraint, Engine, FinishReason, OpenError, Outputs, Request, RequestError, Reuse,
    SamplingOptions, Scheduler, SequenceId, TokenSet,
};
use ds4_formats::gguf::Gguf;

use crate::harness::{
    Replies, by_hand, collect, greedy, long_prompt, model, open, options, run, until_it_runs,
    with_store,
};

#[test]
fn sequences_say_the_same_alone_and_among_others() {
    let golden = model();
    let mut engine = open(&golden, 3, 200);
    let prompts: Vec<&[u32]> = vec![
        &golden.tokens[..3],
        &golden.tokens[5..150],
        &golden.tokens[40..41],
        &golden.tokens[10..80],
        &golden.tokens[100..170],
    ];
    let expected: Vec<Vec<u32>> = prompts
        .iter()
        .map(|p| by_hand(&mut engine, p, 15))
        .collect();
    engine.clear(0);

    // Five requests for three slots: two wait.
    let mut scheduler = Scheduler::new(engine);
    let ids: Vec<SequenceId> = prompts
        .iter()
        .map(|p| scheduler.submit(greedy(p, 15)).expect("accepted"))
        .collect();
    let replies = run(&mut scheduler);
    for (id, expected) in ids.iter().zip(expected) {
        let (tokens, finished) = &replies[id];
        assert_eq!(tokens, &expected, "{id:?}");
        assert_eq!(finished.unwrap().0, FinishReason::Length);
        assert_eq!(finished.unwrap().1.n_decoded, 15);
    }
}

#[test]
fn a_second_turn_computes_only_what_is_new() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 1, 250));
    let first = &golden.tokens[..90];
    let id = scheduler.submit(greedy(first, 20)).unwrap();
    let reply = run(&mut scheduler)[&id].0.clone();

    // The conversation grows by the reply and a question.
    let mut second = first.to_vec();
    second.extend_from_slice(&reply);
    second.extend_from_slice(&golden.tokens[200..210]);
    let id = scheduler.submit(greedy(&second, 5)).unwrap();
    let replies = run(&mut scheduler);
    let timings = replies[&id].1.unwrap().1;
    // The last token of the reply was sampled and not computed.
    assert_eq!((timings.n_prompt, timings.n_cached), (120, 109));
    assert_eq!(
        replies[&id].0,
        by_hand(&mut open(&golden, 1, 250), &second, 5)
    );
}

#[test]
fn a_prompt_that_departs_early_reuses_a_frontier() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 1, 270));
    scheduler.submit(greedy(&golden.tokens[..140], 90)).unwrap();
    run(&mut scheduler);
    // The shared part ends 94 tokens before the slot's end: further back than
    // the rings reach, so the frontier at 128 is the nearest.
    let mut other = golden.tokens[..135].to_vec();
    other.extend_from_slice(&golden.tokens[3..20]);
    let id = scheduler.submit(greedy(&other, 8)).unwrap();
    let replies = run(&mut scheduler);
    assert_eq!(replies[&id].1.unwrap().1.n_cached, 128);
    assert_eq!(
        replies[&id].0,
        by_hand(&mut open(&golden, 1, 270), &other, 8)
    );
}

#[test]
fn a_longer_slot_is_forked_rather_than_cut() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 2, 250));
    scheduler.submit(greedy(&golden.tokens[..50], 20)).unwrap();
    run(&mut scheduler);
    let mut other = golden.tokens[..45].to_vec();
    other.extend_from_slice(&golden.tokens[60..70]);
    let id = scheduler.submit(greedy(&other, 4)).unwrap();
    let replies = run(&mut scheduler);
    assert_eq!(replies[&id].1.unwrap().1.n_cached, 45);
    assert_eq!(
        replies[&id].0,
        by_hand(&mut open(&golden, 1, 250), &other, 4)
    );
    // The first conversation is still whole in its slot.
    let id = scheduler.submit(greedy(&golden.tokens[..50], 4)).unwrap();
    assert_eq!(run(&mut scheduler)[&id].1.unwrap().1.n_cached, 49);
}

#[test]
fn a_cancelled_prefill_stops_within_a_chunk_and_is_not_lost() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 1, 270));
    let prompt = &golden.tokens[..260];
    let id = scheduler.submit(greedy(prompt, 4)).unwrap();
    // It gets its slot, and its first chunk is under way.
    scheduler.tick().unwrap();
    scheduler.cancel(id);
    let mut replies = Replies::new();
    collect(scheduler.tick().unwrap(), &mut replies);
    assert!(scheduler.is_idle());
    assert_eq!(replies[&id].1.unwrap().0, FinishReason::Cancelled);
    assert_eq!(scheduler.engine().len(0), 64, "one chunk was computed");

    let id = scheduler.submit(greedy(prompt, 4)).unwrap();
    let replies = run(&mut scheduler);
    assert_eq!(replies[&id].1.unwrap().1.n_cached, 64);
    assert_eq!(
        replies[&id].0,
        by_hand(&mut open(&golden, 1, 270), prompt, 4)
    );
}

#[test]
fn a_waiting_request_can_be_cancelled() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 1, 64));
    let first = scheduler.submit(greedy(&golden.tokens[..4], 3)).unwrap();
    let second = scheduler.submit(greedy(&golden.tokens[..4], 3)).unwrap();
    scheduler.cancel(second);
    let replies = run(&mut scheduler);
    assert_eq!(replies[&first].0.len(), 3);
    assert_eq!(replies[&second].1.unwrap().0, FinishReason::Cancelled);
}

#[test]
fn replies_end_at_stop_tokens_limits_and_the_end_of_the_context() {
    let golden = model();
    let prompt = &golden.tokens[..10];
    let said = by_hand(&mut open(&golden, 1, 64), prompt, 8);
    let mut scheduler = Scheduler::new(open(&golden, 1, 16));

    let mut request = greedy(prompt, 50);
    request.stop_tokens = vec![said[2]];
    let stop_at = said.iter().position(|t| *t == said[2]).unwrap();
    let id = scheduler.submit(request).unwrap();
    let replies = run(&mut scheduler);
    assert_eq!(replies[&id].0, said[..stop_at]);
    assert_eq!(replies[&id].1.unwrap().0, FinishReason::Stop);

    let id = scheduler.submit(greedy(prompt, 50)).unwrap();
    let replies = run(&mut scheduler);
    assert_eq!(replies[&id].1.unwrap().0, FinishReason::ContextFull);
    assert_eq!(replies[&id].0, said[..6]);

    let id = scheduler.submit(greedy(prompt, 0)).unwrap();
    let replies = run(&mut scheduler);
    assert_eq!(replies[&id].1.unwrap().0, FinishReason::Length);
    assert!(replies[&id].0.is_empty());
}

#[test]
fn forced_tokens_are_continued_as_if_sampled() {
    let golden = model();
    let prompt = &golden.tokens[..30];
    let forced = &golden.tokens[50..53];
    let mut scheduler = Scheduler::new(open(&golden, 1, 64));
    let id = scheduler.submit(greedy(prompt, 12)).unwrap();
    let mut replies = Replies::new();
    while replies.get(&id).is_none_or(|r| r.0.len() < 2) {
        collect(scheduler.tick().unwrap(), &mut replies);
    }
    scheduler.force(id, forced);
    for (id, (tokens, finished)) in run(&mut scheduler) {
        let reply = replies.entry(id).or_default();
        reply.0.extend(tokens);
        reply.1 = finished;
    }
    let (tokens, finished) = &replies[&id];
    assert_eq!(finished.unwrap().1.n_decoded, 12, "forced tokens count");
    let mut whole = prompt.to_vec();
    whole.extend_from_slice(&tokens[..2]);
    whole.extend_from_slice(forced);
    assert_eq!(tokens[2..], by_hand(&mut open(&golden, 1, 64), &whole, 7));
}

#[test]
fn forced_tokens_end_with_the_context() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 1, 40));
    let id = scheduler.submit(greedy(&golden.tokens[..30], 100)).unwrap();
    let mut replies = Replies::new();
    while replies.get(&id).is_none_or(|r| r.0.is_empty()) {
        collect(scheduler.tick().unwrap(), &mut replies);
    }
    scheduler.force(id, &golden.tokens[..30]);
    let (reason, timings) = run(&mut scheduler)[&id].1.expect("it ends");
    assert_eq!(reason, FinishReason::ContextFull);
    assert_eq!(timings.n_decoded, 10, "as many as the slot holds");
}

#[test]
fn a_constraint_holds_from_the_next_token_on() {
    let golden = model();
    let prompt = &golden.tokens[..30];
    let free = by_hand(&mut open(&golden, 1, 64), prompt, 1)[0];
    let only = golden.tokens[3];
    assert_ne!(free, only, "the choice must be one");
    let n_vocab = golden.logits.len() / golden.tokens.len();
    let mut set = TokenSet::empty(n_vocab);
    set.insert(only);
    let mut scheduler = Scheduler::new(open(&golden, 1, 64));
    let id = scheduler.submit(greedy(prompt, 6)).unwrap();
    scheduler.constrain(
        id,
        Constraint {
            allowed: Some(Arc::new(set)),
            ..Constraint::default()
        },
    );
    let mut replies = Replies::new();
    while replies.get(&id).is_none_or(|r| r.0.len() < 3) {
        collect(scheduler.tick().unwrap(), &mut replies);
    }
    let mut whole = prompt.to_vec();
    whole.extend([only; 3]);
    let next = by_hand(&mut open(&golden, 1, 64), &whole, 1)[0];
    scheduler.constrain(
        id,
        Constraint {
            forbidden: vec![next],
            ..Constraint::default()
        },
    );
    collect(scheduler.tick().unwrap(), &mut replies);
    let tokens = &replies[&id].0;
    assert_eq!(tokens[..3], [only; 3]);
    assert_ne!(tokens[3], next);
}

#[test]
fn a_running_sequence_says_what_its_slot_held() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 1, 128));
    scheduler.submit(greedy(&golden.tokens[..40], 1)).unwrap();
    run(&mut scheduler);
    let mut changed = golden.tokens[..60].to_vec();
    changed[10] ^= 1;
    let id = scheduler.submit(greedy(&changed, 4)).unwrap();
    scheduler.tick().unwrap();
    assert_eq!(
        scheduler.reuse(id),
        Some(Reuse {
            slot: 0,
            n_shared: 10,
            n_cached: 10,
            n_held: 40,
            held_next: golden.tokens[10..18].to_vec(),
            ..Reuse::default()
        })
    );
    assert_eq!(scheduler.slots()[0].sequence, Some(id));
    assert!(scheduler.contains(id));
    scheduler.reset();
    assert!(scheduler.is_idle() && !scheduler.contains(id));
    assert_eq!(scheduler.slots()[0].n_tokens, 0);
}

/// Runs until a sequence has generated so many tokens.
fn run_until(scheduler: &mut Scheduler, id: SequenceId, n: usize, replies: &mut Replies) {
    while replies.get(&id).map_or(0, |r| r.0.len()) < n {
        collect(scheduler.tick().expect("no failure"), replies);
    }
}

#[test]
fn a_retry_computes_nothing_that_the_first_try_computes() {
    let golden = model();
    let prompt = long_prompt(&golden, 300);
    let expected = by_hand(&mut open(&golden, 1, 512), &prompt, 100);
    // While the first is prefilling, just behind that, and when it has said more than the rings
    // hold: the place to come back to is then before the generation prompt.
    for (n_said, n_cached) in [(0, 299), (1, 299), (10, 299), (90, 298)] {
        let mut scheduler = Scheduler::new(open(&golden, 2, 512));
        let first = scheduler.submit(greedy(&prompt, 100)).unwrap();
        let mut replies = Replies::new();
        collect(scheduler.tick().unwrap(), &mut replies);
        run_until(&mut scheduler, first, n_said, &mut replies);
        let retry = scheduler.submit(greedy(&prompt, 20)).unwrap();
        collect(scheduler.tick().unwrap(), &mut replies);
        assert_eq!(
            scheduler.reuse(retry).is_some(),
            n_said > 0,
            "it waits while the first is prefilling"
        );
        for (id, reply) in run(&mut scheduler) {
            let all = replies.entry(id).or_default();
            all.0.extend(reply.0);
            all.1 = reply.1;
        }
        let of = |id: SequenceId| (replies[&id].0.clone(), replies[&id].1.expect("an end").1);
        let ((first, _), (retry, timings)) = (of(first), of(retry));
        assert_eq!(first, expected, "after {n_said}");
        assert_eq!(retry, expected[..20], "after {n_said}");
        assert_eq!(timings.n_cached, n_cached, "after {n_said}");
    }
}

#[test]
fn a_retry_goes_on_in_the_slot_of_a_first_try_that_is_given_up() {
    let golden = model();
    let prompt = long_prompt(&golden, 300);
    let mut scheduler = Scheduler::new(open(&golden, 2, 512));
    let first = scheduler.submit(greedy(&prompt, 9)).unwrap();
    scheduler.tick().unwrap();
    let retries: Vec<SequenceId> = (0..2)
        .map(|_| scheduler.submit(greedy(&prompt, 9)).unwrap())
        .collect();
    scheduler.tick().unwrap();
    scheduler.cancel(first);
    scheduler.tick().unwrap();
    let reuse = scheduler.reuse(retries[0]).expect("it runs");
    assert_eq!((reuse.slot, reuse.n_cached), (0, 128), "{reuse:?}");
    assert!(scheduler.reuse(retries[1]).is_none(), "waits for the other");
    let replies = run(&mut scheduler);
    let expected = by_hand(&mut open(&golden, 1, 512), &prompt, 9);
    for id in &retries {
        assert_eq!(replies[id].0, expected);
    }
    assert_eq!(replies[&retries[1]].1.unwrap().1.n_cached, 299);
}

#[test]
fn requests_that_are_alike_wait_for_each_other_and_all_end() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 3, 512));
    let mut engine = open(&golden, 1, 512);
    let common = long_prompt(&golden, 150);
    let asked: Vec<(SequenceId, Vec<u32>)> = (0..8)
        .map(|i| {
            let mut prompt = common.clone();
            // Two of each.
            prompt.extend((0..100).map(|k| golden.tokens[(k * 7 + i / 2 * 3) % 170]));
            (scheduler.submit(greedy(&prompt, 6)).unwrap(), prompt)
        })
        .collect();
    let replies = run(&mut scheduler);
    let mut n_computed = 0;
    for (id, prompt) in &asked {
        let (reply, end) = &replies[id];
        assert_eq!(reply, &by_hand(&mut engine, prompt, 6), "{id:?}");
        n_computed += prompt.len() - end.expect("an end").1.n_cached;
    }
    assert!(
        n_computed <= 150 + 4 * 100 + 4 * 130,
        "what is common is computed about once: {n_computed}"
    );
}

#[test]
fn a_prompt_goes_on_from_disk_after_a_restart() {
    let golden = model();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let prompt = long_prompt(&golden, 600);
    let mut scheduler = with_store(&golden, 1, folder.path());
    let id = scheduler.submit(greedy(&prompt, 20)).unwrap();
    let reply = run(&mut scheduler).remove(&id).expect("a reply").0;
    scheduler.save_all();
    drop(scheduler);

    let mut longer = prompt.clone();
    longer.extend_from_slice(&reply);
    longer.extend_from_slice(&golden.tokens[..9]);
    let mut scheduler = with_store(&golden, 1, folder.path());
    let id = scheduler.submit(greedy(&longer, 5)).unwrap();
    let reuse = until_it_runs(&mut scheduler, id);
    // The last token of the reply was never computed.
    assert_eq!(reuse.n_loaded, prompt.len() + reply.len() - 1, "{reuse:?}");
    assert_eq!(reuse.n_cached, reuse.n_loaded);
    let from_disk = run(&mut scheduler).remove(&id).expect("a reply").0;
    let by_hand = by_hand(&mut open(&golden, 1, 1024), &longer, 5);
    assert_eq!(by_hand[by_hand.len() - from_disk.len()..], from_disk);
    assert!(scheduler.take_store_notices().is_empty());

    // What is in a slot already is not read again.
    let id = scheduler.submit(greedy(&longer, 2)).unwrap();
    assert_eq!(until_it_runs(&mut scheduler, id).n_loaded, 0);
}

#[test]
fn bad_requests_are_refused_and_disturb_nothing() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 1, 32));
    let n_vocab = golden.logits.len() / golden.tokens.len();
    assert!(matches!(
        scheduler.submit(greedy(&[], 1)),
        Err(RequestError::EmptyPrompt)
    ));
    assert!(matches!(
        scheduler.submit(greedy(&golden.tokens[..32], 1)),
        Err(RequestError::PromptTooLong {
            found: 32,
            context: 32
        })
    ));
    assert!(matches!(
        scheduler.submit(greedy(&[n_vocab as u32], 1)),
        Err(RequestError::Token { .. })
    ));
    let mut request = greedy(&[0], 1);
    request.sampling.top_p = 2.0;
    assert!(matches!(
        scheduler.submit(request),
        Err(RequestError::Sampling(_))
    ));
    assert!(scheduler.is_idle());
}

#[test]
fn a_session_that_does_not_fit_names_the_context_that_would() {
    let golden = model();
    let mut options = options(2, 100_000);
    options.memory_bytes = Some(40 << 20);
    let error = Engine::from_gguf(&golden.gguf, &options, &mut |_| {}).unwrap_err();
    let OpenError::Memory { fits, .. } = error else {
        panic!("{error}");
    };
    assert!((1..100_000).contains(&fits), "{fits}");
    options.context = Some(fits);
    let engine =
        Engine::from_gguf(&golden.gguf, &options, &mut |_| {}).expect("what would fit fits");
    let plan = engine.plan();
    assert!(plan.slots_bytes + plan.scratch_bytes <= 40 << 20);
    // Nothing asked for: what fits is taken.
    options.context = None;
    let engine = Engine::from_gguf(&golden.gguf, &options, &mut |_| {}).expect("opens");
    assert!(engine.context() <= ds4_engine::DEFAULT_CONTEXT);
}

#[test]
fn an_exported_slot_goes_on_in_another_engine() {
    let golden = model();
    let mut a = open(&golden, 1, 250);
    let reply = by_hand(&mut a, &golden.tokens[..130], 6);
    let (tokens, state) = a.export(0).unwrap();
    let mut b = open(&golden, 2, 200);
    b.import(1, &tokens, &state).unwrap();
    assert_eq!(b.tokens(1), tokens);
    let mut batch = Batch::new();
    batch.push(1, &reply[5..], Outputs::Last);
    let found = argmax(b.step(&batch).unwrap());
    let mut batch = Batch::new();
    batch.push(0, &reply[5..], Outputs::Last);
    assert_eq!(found, argmax(a.step(&batch).unwrap()));
}

#[test]
fn tokens_that_are_forced_are_scheduled_however_small_the_chunk() {
    let golden = model();
    let mut options = options(1, 250);
    options.chunk = Some(1);
    let engine = Engine::from_gguf(&golden.gguf, &options, &mut |_| {}).expect("opens");
    let mut scheduler = Scheduler::new(engine);
    let prompt = &golden.tokens[..5];
    let id = scheduler.submit(greedy(prompt, 20)).unwrap();
    let mut replies = Replies::new();
    run_until(&mut scheduler, id, 2, &mut replies);
    let forced = &golden.tokens[100..107];
    scheduler.force(id, forced);
    // A step computes one of them: bounded, where it once never ended.
    for _ in 0..60 {
        collect(scheduler.tick().unwrap(), &mut replies);
    }
    let (said, end) = &replies[&id];
    assert_eq!(end.expect("it ended").0, FinishReason::Length);
    let n_before = 2;
    let mut whole = [prompt, &said[..n_before], forced].concat();
    let expected = by_hand(&mut open(&golden, 1, 250), &whole, said.len() - n_before);
    assert_eq!(said[n_before..], expected);
    whole.extend_from_slice(&said[n_before..]);
    assert_eq!(whole.len(), prompt.len() + 20);
}

#[test]
fn absurd_sampling_values_cost_the_others_nothing() {
    let golden = model();
    let absurd = SamplingOptions {
        repetition_penalty: 1e-40,
        presence_penalty: -2.0,
        seed: Some(1),
        ..SamplingOptions::default()
    };
    let mut scheduler = Scheduler::new(open(&golden, 2, 250));
    let extreme = Request {
        sampling: absurd,
        ..greedy(&golden.tokens[..9], 12)
    };
    let extreme = scheduler.submit(extreme).unwrap();
    let other = scheduler.submit(greedy(&golden.tokens[..7], 12)).unwrap();
    let replies = run(&mut scheduler);
    assert_eq!(replies[&extreme].1.unwrap().0, FinishReason::Length);
    let expected = by_hand(&mut open(&golden, 1, 250), &golden.tokens[..7], 12);
    assert_eq!(replies[&other].0, expected);
}

#[test]
fn a_model_whose_logits_are_no_numbers_ends_the_request_and_says_so() {
    let golden = model();
    let spec = golden.gguf.spec("output_norm.weight").expect("a norm");
    let path = golden.gguf.shards()[0].path.clone().expect("a file");
    let mut bytes = std::fs::read(path).expect("readable");
    bytes[spec.offset as usize..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let gguf = Gguf::parse(bytes.into()).expect("the table is as it was");
    let engine = Engine::from_gguf(&gguf, &options(1, 250), &mut |_| {}).expect("opens");
    let mut scheduler = Scheduler::new(engine);
    for _ in 0..2 {
        let id = scheduler.submit(greedy(&golden.tokens[..9], 12)).unwrap();
        let replies = run(&mut scheduler);
        assert_eq!(replies[&id].1.unwrap().0, FinishReason::NotFinite);
        assert!(replies[&id].0.is_empty());
    }
}
