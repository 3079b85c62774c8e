//! The logits of prompts.

use std::collections::HashMap;

use ds4_conformance::golden::Golden;
use ds4_engine::{
    Batch, Engine, Event, FinishReason, Outputs, Request, Scheduler, SequenceId, Timings,
};

use crate::harness::{greedy, long_prompt, model, open, options};

/// The logits after every token of a prompt, computed by hand.
fn by_hand(golden: &Golden, prompt: &[u32]) -> Vec<Vec<f32>> {
    let mut options = options(1, 512);
    options.max_outputs = Some(64);
    let mut engine = Engine::from_gguf(&golden.gguf, &options, &mut |_| {}).expect("opens");
    let n_vocab = engine.geometry().n_vocab;
    let mut rows = Vec::new();
    for part in prompt.chunks(64) {
        let mut batch = Batch::new();
        batch.push(0, part, Outputs::All);
        let logits = engine.step(&batch).expect("fits");
        rows.extend(logits.chunks_exact(n_vocab).map(<[f32]>::to_vec));
    }
    rows
}

/// The rows of every sequence in the order they came, with what ended it.
#[allow(clippy::type_complexity)]
fn run(
    scheduler: &mut Scheduler,
) -> HashMap<SequenceId, (Vec<(usize, Vec<f32>)>, Option<(FinishReason, Timings)>)> {
    let mut all: HashMap<_, (Vec<_>, _)> = HashMap::new();
    while !scheduler.is_idle() {
        let events = scheduler.tick().expect("the reference does not fail");
        for row in scheduler.take_prompt_rows() {
            all.entry(row.id).or_default().0.push((row.at, row.logits));
        }
        for event in events {
            if let Event::Finished {
                id,
                reason,
                timings,
            } = event
            {
                all.entry(id).or_default().1 = Some((reason, timings));
            }
        }
    }
    all
}

fn scored(tokens: &[u32], from: usize, use_cache: bool) -> Request {
    Request {
        scored_from: Some(from),
        use_cache,
        max_tokens: 0,
        ..greedy(tokens, 0)
    }
}

#[test]
fn the_rows_that_are_asked_for_come_in_order_whoever_else_runs() {
    let golden = model();
    for n_outputs in [3, 5, 64] {
        let mut options = options(3, 400);
        options.max_outputs = Some(n_outputs);
        let engine = Engine::from_gguf(&golden.gguf, &options, &mut |_| {}).expect("opens");
        let mut scheduler = Scheduler::new(engine);
        let prompts = [
            (&golden.tokens[..130], 0),
            (&golden.tokens[7..8], 0),
            (&golden.tokens[20..120], 60),
            (&golden.tokens[90..170], 79),
        ];
        let talks = scheduler.submit(greedy(&golden.tokens[3..40], 12));
        let talks = talks.expect("accepted");
        let ids: Vec<SequenceId> = prompts
            .iter()
            .map(|(p, from)| scheduler.submit(scored(p, *from, false)).expect("accepted"))
            .collect();
        let found = run(&mut scheduler);
        assert!(found[&talks].0.is_empty());
        for (id, (prompt, from)) in ids.iter().zip(prompts) {
            let (rows, end) = &found[id];
            assert_eq!(end.expect("it ended").0, FinishReason::Length);
            let expected: Vec<(usize, Vec<f32>)> =
                by_hand(&golden, prompt).into_iter().enumerate().collect();
            assert!(
                rows == &expected[from..],
                "{n_outputs} outputs, from {from}"
            );
        }
    }
}

#[test]
fn what_is_kept_is_used_up_to_the_first_row_that_is_wanted() {
    let golden = model();
    let mut scheduler = Scheduler::new(open(&golden, 2, 400));
    let prompt = long_prompt(&golden, 200);
    let with = |end: &[u32]| [&prompt[..], end].concat();
    let ends = [&golden.tokens[5..9], &golden.tokens[11..13]];
    let first = scheduler
        .submit(scored(&with(ends[0]), 199, true))
        .expect("accepted");
    let second = scheduler
        .submit(scored(&with(ends[1]), 199, true))
        .expect("accepted");
    let found = run(&mut scheduler);
    for (id, end) in [(first, ends[0]), (second, ends[1])] {
        let tokens = with(end);
        let expected: Vec<(usize, Vec<f32>)> =
            by_hand(&golden, &tokens).into_iter().enumerate().collect();
        assert!(found[&id].0 == expected[199..], "{id:?}");
    }
    let cached = |id| found[&id].1.expect("it ended").1.n_cached;
    assert_eq!((cached(first), cached(second)), (0, 199));
}
