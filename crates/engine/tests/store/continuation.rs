//! A state that was saved and loaded goes on as if it had never left.

use ds4_conformance::golden::{self, Golden};
use ds4_conformance::network::argmax;
use ds4_engine::store::{
    CompatInputs, CompatKey, PointSaved, Reason, SaveOptions, SlotLayout, SlotRows, Store,
    StoreOptions, WeightsFingerprint,
};
use ds4_engine::{BackendKind, Batch, CacheRounding, Engine, OpenOptions, Outputs};

fn open_engine(
    golden: &Golden,
    backend: BackendKind,
    rounding: CacheRounding,
    context: usize,
    n_slots: usize,
) -> Engine {
    let mut options = OpenOptions::new("golden");
    options.backend = backend;
    options.rounding = rounding;
    options.n_threads = Some(2);
    options.context = Some(context);
    options.chunk = Some(256);
    options.n_slots = n_slots;
    Engine::from_gguf(&golden.gguf, &options, &mut |_| {}).expect("opens")
}

fn open_store(
    dir: &std::path::Path,
    golden: &Golden,
    engine: &Engine,
    rounding: CacheRounding,
    block: usize,
) -> Store {
    let layout = SlotLayout::new(engine.geometry(), rounding).with_block_tokens(block);
    let inputs = CompatInputs {
        geometry: engine.geometry(),
        weights: WeightsFingerprint::of(&golden.gguf),
        tokenizer: [0; 32],
        numerics_class: "test",
    };
    let key = CompatKey::new(&inputs, &layout);
    let options = StoreOptions {
        min_tokens: 1,
        max_tokens: engine.context(),
        keep_free_bytes: 0,
        ..StoreOptions::default()
    };
    Store::open(dir, options, key, layout).expect("the store opens")
}

fn step(engine: &mut Engine, slot: usize, tokens: &[u32]) -> Vec<f32> {
    let mut batch = Batch::new();
    batch.push(slot, tokens, Outputs::Last);
    engine.step(&batch).expect("fits").to_vec()
}

/// Continues several slots together; the tokens and logits of each step.
fn greedy(engine: &mut Engine, mut next: Vec<u32>, n: usize) -> (Vec<Vec<u32>>, Vec<u32>) {
    let n_vocab = engine.geometry().n_vocab;
    let mut replies = Vec::new();
    let mut bits = Vec::new();
    for _ in 0..n {
        let mut batch = Batch::new();
        for (i, token) in next.iter().enumerate() {
            batch.push(i + 1, &[*token], Outputs::Last);
        }
        let logits = engine.step(&batch).expect("fits");
        next = logits
            .chunks_exact(n_vocab)
            .map(|row| argmax(row) as u32)
            .collect();
        bits.extend(logits.iter().map(|x| x.to_bits()));
        replies.push(next.clone());
    }
    (replies, bits)
}

fn save(store: &Store, engine: &mut Engine, slot: usize) -> PointSaved {
    let tokens = engine.tokens(slot).to_vec();
    let options = SaveOptions {
        reason: Reason::Anchor,
        text_keys: &[],
        wait: true,
    };
    let mut rows = SlotRows { engine, slot };
    store
        .save(&tokens, &mut rows, &options)
        .expect("readable")
        .point
}

/// Loads the state of exactly `tokens` into a slot.
fn load(store: &Store, engine: &mut Engine, slot: usize, tokens: &[u32]) {
    let mut prompt = tokens.to_vec();
    prompt.push(0);
    let found = store.find(&prompt, None);
    let candidate = found.first().expect("the state was saved");
    assert_eq!(
        candidate.n_tokens,
        tokens.len(),
        "the longest point comes first"
    );
    let loaded = store.load(candidate).expect("the state was written whole");
    assert_eq!(loaded.tokens, tokens);
    engine
        .import(slot, &loaded.tokens, &loaded.state)
        .expect("the state fits");
}

fn prompt(golden: &Golden, n: usize) -> Vec<u32> {
    // Not periodic in any block size.
    (0..n)
        .map(|i| golden.tokens[(i + i / 251) % golden.tokens.len()])
        .collect()
}

#[test]
fn full_size_blocks_go_on_as_before_after_a_restart() {
    let golden = &golden::committed()[0];
    let lengths = [512, 1024, 2047, 2048, 2049, 4095, 10_240, 12_345];
    let dir = tempfile::tempdir().unwrap();
    let rounding = CacheRounding::Official;
    let mut engine = open_engine(golden, BackendKind::Cpu, rounding, 13_000, 9);
    let prompt = prompt(golden, 12_345);
    let store = open_store(dir.path(), golden, &engine, rounding, 2048);
    let mut first = Vec::new();
    for (i, n) in lengths.into_iter().enumerate() {
        while engine.len(0) < n {
            let start = engine.len(0);
            step(&mut engine, 0, &prompt[start..n.min(start + 256)]);
        }
        assert_eq!(save(&store, &mut engine, 0), PointSaved::Queued);
        engine.fork(0, i + 1);
        first.push(prompt[n % 7]);
    }
    let (replies, bits) = greedy(&mut engine, first.clone(), 256);
    drop(store);
    drop(engine);

    let mut engine = open_engine(golden, BackendKind::Cpu, rounding, 13_000, 9);
    let store = open_store(dir.path(), golden, &engine, rounding, 2048);
    for (i, n) in lengths.into_iter().enumerate() {
        load(&store, &mut engine, i + 1, &prompt[..n]);
    }
    let (found, found_bits) = greedy(&mut engine, first, 256);
    assert_eq!(found, replies, "tokens after {lengths:?}, step by step");
    assert!(found_bits == bits, "some logit differs in some bit");
}

#[test]
fn every_residue_of_a_group_goes_on_with_the_same_bits() {
    for (golden, rounding) in golden::committed().iter().zip([
        CacheRounding::Official,
        CacheRounding::Official,
        CacheRounding::Off,
    ]) {
        let dir = tempfile::tempdir().unwrap();
        let n_tokens = 150;
        let mut engine = open_engine(golden, BackendKind::Reference, rounding, 200, 2);
        // Blocks of 24 tokens end inside the groups of 128 and their rows.
        let store = open_store(dir.path(), golden, &engine, rounding, 24);
        let mut rows = Vec::new();
        for n in 0..n_tokens {
            rows.push(step(&mut engine, 0, &golden.tokens[n..=n]));
            save(&store, &mut engine, 0);
        }
        drop(store);
        let store = open_store(dir.path(), golden, &engine, rounding, 24);
        // All residues of 4 and of 24, and both sides of the row of 128 tokens.
        for n in (1..n_tokens).step_by(5).chain(123..132) {
            load(&store, &mut engine, 1, &golden.tokens[..n]);
            let found = step(&mut engine, 1, &golden.tokens[n..=n]);
            let same = rows[n]
                .iter()
                .zip(&found)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(
                same,
                "{}: logits after {n} tokens differ in some bit",
                golden.name
            );
        }
    }
}

/// Rows of a prompt do not depend on the steps that computed them, to the bit: what
/// is stored by one prefill is what every other one would have computed.
#[test]
fn no_cut_of_a_prompt_changes_a_row() {
    let golden = &golden::committed()[0];
    for (backend, n_tokens) in [(BackendKind::Reference, 700), (BackendKind::Cpu, 4200)] {
        let prompt = prompt(golden, n_tokens);
        let state = |chunk: usize| {
            let mut options = OpenOptions::new("golden");
            options.backend = backend;
            options.n_threads = Some(2);
            options.context = Some(n_tokens);
            options.chunk = Some(chunk);
            let mut engine = Engine::from_gguf(&golden.gguf, &options, &mut |_| {}).expect("opens");
            for part in prompt.chunks(chunk) {
                step(&mut engine, 0, part);
            }
            engine.export(0).expect("readable").1
        };
        let whole = state(n_tokens);
        for chunk in [128, 512, 2048].into_iter().filter(|n| *n < n_tokens) {
            let found = state(chunk);
            let layers = found.rows.iter().zip(&whole.rows);
            let rings = found.rings.iter().zip(&whole.rings);
            for (layer, (found, whole)) in layers.chain(rings).enumerate() {
                for ((kind, found), (_, whole)) in found.iter().zip(whole) {
                    let n = found.bytes.iter().zip(&whole.bytes);
                    let n_other = n.filter(|(a, b)| a != b).count();
                    assert_eq!(
                        (n_other, found.bytes.len()),
                        (0, whole.bytes.len()),
                        "{backend:?}: bytes of {kind:?} that differ in chunks of {chunk}, layer {layer}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_growing_conversation_reads_and_writes_each_block_once() {
    let golden = &golden::committed()[0];
    let dir = tempfile::tempdir().unwrap();
    let rounding = CacheRounding::Official;
    let mut engine = open_engine(golden, BackendKind::Cpu, rounding, 1024, 1);
    let store = open_store(dir.path(), golden, &engine, rounding, 64);
    let prompt = prompt(golden, 640);
    for (turn, part) in prompt.chunks(64).enumerate() {
        step(&mut engine, 0, part);
        let tokens = engine.tokens(0).to_vec();
        let options = SaveOptions {
            reason: Reason::Block,
            text_keys: &[],
            wait: true,
        };
        let mut rows = SlotRows {
            engine: &mut engine,
            slot: 0,
        };
        let saved = store.save(&tokens, &mut rows, &options).unwrap();
        assert_eq!((saved.n_new_blocks, saved.n_shared_blocks), (1, turn));
        assert_eq!(saved.point, PointSaved::NotAsked);
    }
    store.flush();
    assert_eq!(store.counts().n_blocks, 10);
    assert_eq!(save(&store, &mut engine, 0), PointSaved::Queued);
    store.flush();
    assert_eq!((store.counts().n_blocks, store.counts().n_points), (10, 1));
    assert_eq!(save(&store, &mut engine, 0), PointSaved::Known);
}
