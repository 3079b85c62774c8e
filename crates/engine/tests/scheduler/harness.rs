//! A small golden model, and schedulers on it.

use std::collections::HashMap;
use std::path::Path;

use ds4_conformance::golden::{self, Golden};
use ds4_conformance::network::argmax;
use ds4_engine::store::{
    CompatInputs, CompatKey, SlotLayout, Store, StoreOptions, WeightsFingerprint,
};
use ds4_engine::{
    BackendKind, Batch, CacheRounding, Engine, Event, FinishReason, OpenOptions, Outputs, Request,
    Reuse, SamplingOptions, Scheduler, SequenceId, Timings,
};

pub(crate) fn model() -> Golden {
    golden::committed().swap_remove(0)
}

pub(crate) fn options(n_slots: usize, context: usize) -> OpenOptions {
    let mut options = OpenOptions::new("golden");
    options.backend = BackendKind::Reference;
    options.context = Some(context);
    options.n_slots = n_slots;
    options.chunk = Some(64);
    options
}

pub(crate) fn open(golden: &Golden, n_slots: usize, context: usize) -> Engine {
    Engine::from_gguf(&golden.gguf, &options(n_slots, context), &mut |_| {}).expect("opens")
}

pub(crate) fn greedy(tokens: &[u32], max_tokens: usize) -> Request {
    Request {
        tokens: tokens.to_vec(),
        sampling: SamplingOptions::greedy(),
        max_tokens,
        ..Request::default()
    }
}

/// What a sequence said and how it ended.
pub(crate) type Replies = HashMap<SequenceId, (Vec<u32>, Option<(FinishReason, Timings)>)>;

pub(crate) fn collect(events: Vec<Event>, replies: &mut Replies) {
    for event in events {
        match event {
            Event::Prefill { .. } => {}
            Event::Token { id, token, .. } => replies.entry(id).or_default().0.push(token),
            Event::Finished {
                id,
                reason,
                timings,
            } => {
                replies.entry(id).or_default().1 = Some((reason, timings));
            }
        }
    }
}

pub(crate) fn run(scheduler: &mut Scheduler) -> Replies {
    let mut replies = Replies::new();
    while !scheduler.is_idle() {
        collect(
            scheduler.tick().expect("the reference does not fail"),
            &mut replies,
        );
    }
    replies
}

/// Ticks until a sequence has its slot, and says what it found there.
pub(crate) fn until_it_runs(scheduler: &mut Scheduler, id: SequenceId) -> Reuse {
    loop {
        scheduler.tick().expect("the reference does not fail");
        match scheduler.reuse(id) {
            Some(reuse) => return reuse,
            None => assert!(scheduler.contains(id), "it ended before it was seen"),
        }
    }
}

/// Greedy decoding by hand.
pub(crate) fn by_hand(engine: &mut Engine, prompt: &[u32], n: usize) -> Vec<u32> {
    engine.clear(0);
    let mut next = prompt.to_vec();
    let mut reply = Vec::new();
    while reply.len() < n {
        for part in std::mem::take(&mut next).chunks(64) {
            let mut batch = Batch::new();
            batch.push(0, part, Outputs::Last);
            next = vec![argmax(engine.step(&batch).expect("fits")) as u32];
        }
        reply.extend_from_slice(&next);
    }
    reply
}

/// Tokens of a longer conversation: equal lengths begin alike, and no part of it
/// repeats another at the same place.
pub(crate) fn long_prompt(golden: &Golden, n: usize) -> Vec<u32> {
    let n_golden = golden.tokens.len();
    (0..n)
        .map(|i| golden.tokens[(i + i / n_golden) % n_golden])
        .collect()
}

/// The store of a model's states in a folder, in blocks of 128 tokens.
pub(crate) fn open_store(golden: &Golden, engine: &Engine, folder: &Path) -> Store {
    let layout =
        SlotLayout::new(engine.geometry(), CacheRounding::default()).with_block_tokens(128);
    let inputs = CompatInputs {
        geometry: engine.geometry(),
        weights: WeightsFingerprint::of(&golden.gguf),
        tokenizer: [0; 32],
        numerics_class: "test",
    };
    let key = CompatKey::new(&inputs, &layout);
    let options = StoreOptions {
        min_tokens: 16,
        max_tokens: engine.context(),
        keep_free_bytes: 0,
        ..StoreOptions::default()
    };
    Store::open(folder, options, key, layout).expect("a store")
}

/// A scheduler that keeps states in a folder.
pub(crate) fn with_store(golden: &Golden, n_slots: usize, folder: &Path) -> Scheduler {
    let engine = open(golden, n_slots, 2048);
    let store = open_store(golden, &engine, folder);
    Scheduler::new(engine).with_store(store)
}
