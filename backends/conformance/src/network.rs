//! What must hold of a whole network on any backend.

use ds4_formats::gguf::Gguf;
use ds4_model::{Backend, Batch, CacheRounding, Geometry, Network, Outputs, Session, SessionShape};

use crate::golden::Golden;

/// A model bound to a backend, with a session.
pub struct Model<B: Backend> {
    /// The backend.
    pub backend: B,
    /// The weights.
    pub network: Network<B::Weight>,
    /// Slots and scratch.
    pub session: Session<B>,
}

/// How far two sets of logits are apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Difference {
    /// Largest absolute difference.
    pub max_abs: f32,
    /// Rows whose largest logit is another token.
    pub n_other_argmax: usize,
}

/// Index of the largest value; the lowest of equal ones.
pub fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best
}

/// Compares two sets of logits, `[n, n_vocab]` each. Another argmax counts when the
/// expected one leads it by more than twice the tolerance.
pub fn difference(found: &[f32], expected: &[f32], n_vocab: usize, tolerance: f32) -> Difference {
    assert_eq!(found.len(), expected.len(), "as many logits as expected");
    let mut out = Difference::default();
    for (f, e) in found.chunks(n_vocab).zip(expected.chunks(n_vocab)) {
        let (chosen, best) = (argmax(f), argmax(e));
        out.n_other_argmax += usize::from(chosen != best && e[best] - e[chosen] > 2.0 * tolerance);
        for (f, e) in f.iter().zip(e) {
            let d = (f - e).abs();
            // A NaN must not hide behind a comparison.
            out.max_abs = if d.is_nan() {
                f32::INFINITY
            } else {
                out.max_abs.max(d)
            };
        }
    }
    out
}

/// Asserts that logits agree with `tolerance`, and on every argmax that leads by more than
/// twice that.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], n_vocab: usize, tolerance: f32) {
    let d = difference(found, expected, n_vocab, tolerance);
    assert!(
        d.max_abs <= tolerance && d.n_other_argmax == 0,
        "{what}: logits differ by {} (tolerance {tolerance}), {} of {} rows have another argmax",
        d.max_abs,
        d.n_other_argmax,
        found.len() / n_vocab,
    );
}

/// The session that these tests open unless they say otherwise.
pub fn test_shape(capacity: usize, rounding: CacheRounding) -> SessionShape {
    SessionShape {
        rewind_rows: 16,
        rounding,
        // Slots of different lengths, none shorter than asked.
        capacities: (0..8).map(|slot| capacity + 37 * (slot % 3)).collect(),
        ..SessionShape::uniform(8, capacity, capacity)
    }
}

impl<B: Backend> Model<B> {
    /// Binds a file's model to the backend that `make` builds.
    pub fn open(gguf: &Gguf, make: &dyn Fn(&Geometry) -> B, shape: SessionShape) -> Model<B> {
        let geometry = Geometry::from_metadata(gguf.metadata()).expect("a geometry");
        let mut backend = make(&geometry);
        let network = Network::bind(
            &geometry,
            &mut backend,
            &|name| gguf.tensor(name),
            &mut |_| {},
        )
        .expect("the file has every weight");
        let session = Session::open(&mut backend, shape).expect("room for a small session");
        Model {
            backend,
            network,
            session,
        }
    }

    /// Vocabulary entries.
    pub fn n_vocab(&self) -> usize {
        self.network.geometry.n_vocab
    }

    /// Appends tokens to a slot in chunks of the given sizes (the last repeats)
    /// and returns the logits of all of them.
    pub fn feed(&mut self, slot: usize, tokens: &[u32], chunks: &[usize]) -> Vec<f32> {
        let mut logits = Vec::new();
        let mut sizes = chunks.iter().copied();
        let mut size = 1;
        let mut rest = tokens;
        while !rest.is_empty() {
            size = sizes.next().unwrap_or(size);
            let (chunk, tail) = rest.split_at(size.min(rest.len()));
            let mut batch = Batch::new();
            batch.push(slot, chunk, Outputs::All);
            logits.extend_from_slice(
                self.session
                    .step(&mut self.backend, &self.network, &batch)
                    .expect("the tokens fit"),
            );
            rest = tail;
        }
        logits
    }
}

/// Chunk sizes that cut a prompt in every awkward way.
pub const CHUNKINGS: &[(&str, &[usize])] = &[
    ("one chunk", &[usize::MAX]),
    ("chunks of 128", &[128]),
    ("irregular chunks", &[3, 1, 127, 5, 64, 2, 129, 1, 1, 33]),
    ("chunks of 7", &[7]),
    ("chunks of 1", &[1]),
];

/// The logits of a golden model are those of the independent implementation,
/// however the prompt is cut. Cache rounding is off, as it was there.
pub fn golden_logits<B: Backend>(make: &dyn Fn(&Geometry) -> B, golden: &Golden, tolerance: f32) {
    let shape = test_shape(golden.tokens.len(), CacheRounding::Off);
    let mut model = Model::open(&golden.gguf, make, shape);
    let n_vocab = model.n_vocab();
    for (name, chunks) in CHUNKINGS {
        model.session.clear(0);
        let logits = model.feed(0, &golden.tokens, chunks);
        let what = format!("{} in {name}", golden.name);
        assert_close(&what, &logits, &golden.logits, n_vocab, tolerance);
        let d = difference(&logits, &golden.logits, n_vocab, tolerance);
        println!("{what}: max difference {:.2e}", d.max_abs);
    }
}

/// With cache rounding as the model runs, cutting a prompt otherwise changes
/// logits by no more than `tolerance`: 0 where a backend promises the same bits
/// for a row in any batch.
pub fn chunks_do_not_change_logits<B: Backend>(
    make: &dyn Fn(&Geometry) -> B,
    golden: &Golden,
    tolerance: f32,
) {
    let shape = test_shape(golden.tokens.len(), CacheRounding::Official);
    let mut model = Model::open(&golden.gguf, make, shape);
    let n_vocab = model.n_vocab();
    let whole = model.feed(0, &golden.tokens, &[usize::MAX]);
    for (name, chunks) in &CHUNKINGS[1..] {
        model.session.clear(0);
        let logits = model.feed(0, &golden.tokens, chunks);
        let what = format!("{} in {name}", golden.name);
        assert_close(&what, &logits, &whole, n_vocab, tolerance);
    }
}

/// Eight sequences decoded in one batch say what each says alone, with prompts
/// of different lengths mixed into the same steps.
pub fn a_batch_of_eight_equals_each_alone<B: Backend>(
    make: &dyn Fn(&Geometry) -> B,
    golden: &Golden,
    tolerance: f32,
) {
    let n_steps = 12;
    let prompts: Vec<&[u32]> = (0..8)
        .map(|i| &golden.tokens[i * 3..i * 3 + 2 + i * 9])
        .collect();
    let mut shape = test_shape(160, CacheRounding::Official);
    shape.max_rows = 400;
    let mut model = Model::open(&golden.gguf, make, shape);
    let n_vocab = model.n_vocab();

    let alone: Vec<Vec<f32>> = prompts
        .iter()
        .map(|prompt| {
            model.session.clear(0);
            let mut logits = model.feed(0, prompt, &[usize::MAX]);
            logits.drain(..logits.len() - n_vocab);
            for _ in 1..n_steps {
                let next = argmax(&logits[logits.len() - n_vocab..]) as u32;
                let step = model.feed(0, &[next], &[1]);
                logits.extend(step);
            }
            logits
        })
        .collect();

    // Sequence i joins at step i, so that prefill and decode rows share steps.
    model.session.clear(0);
    let mut together: Vec<Vec<f32>> = vec![Vec::new(); 8];
    for step in 0..n_steps + 8 {
        let mut batch = Batch::new();
        let mut in_batch = Vec::new();
        for (slot, logits) in together.iter().enumerate() {
            let n_done = logits.len() / n_vocab;
            if step < slot || n_done == n_steps {
                continue;
            }
            if n_done == 0 {
                batch.push(slot, prompts[slot], Outputs::Last);
            } else {
                let next = argmax(&logits[logits.len() - n_vocab..]) as u32;
                batch.push(slot, &[next], Outputs::Last);
            }
            in_batch.push(slot);
        }
        if in_batch.is_empty() {
            continue;
        }
        let logits = model
            .session
            .step(&mut model.backend, &model.network, &batch)
            .expect("the tokens fit");
        for (slot, row) in in_batch.iter().zip(logits.chunks(n_vocab)) {
            together[*slot].extend_from_slice(row);
        }
    }
    for (slot, (found, expected)) in together.iter().zip(&alone).enumerate() {
        let what = format!("{}: sequence {slot} of eight", golden.name);
        assert_close(&what, found, expected, n_vocab, tolerance);
    }
}

/// Rows of a step, by what they are: sequences that decode, sequences with so many draft rows each,
/// and rows of prompts. Together 1, 2, 4, 8, 16 and 32.
const MIXES: [(usize, usize, usize, usize); 6] = [
    (1, 0, 0, 0),
    (1, 0, 0, 1),
    (1, 1, 2, 1),
    (2, 1, 3, 3),
    (4, 2, 3, 6),
    (4, 2, 4, 20),
];

/// Steps that decode, verify drafts and read prompts, each for other sequences, give every row the
/// logits it has when its sequence is read alone; drafts are partly rejected.
pub fn mixed_steps_say_what_each_says_alone<B: Backend>(
    make: &dyn Fn(&Geometry) -> B,
    golden: &Golden,
    tolerance: f32,
) {
    const FIRST_DRAFT: usize = 4;
    const FIRST_PROMPT: usize = 6;
    let n_tokens = 160;
    let mut model = Model::open(
        &golden.gguf,
        make,
        test_shape(n_tokens, CacheRounding::Official),
    );
    let n_vocab = model.n_vocab();
    let sequences: Vec<Vec<u32>> = (0..8)
        .map(|slot| {
            let tokens = golden.tokens.iter().copied().cycle();
            tokens.skip(7 * slot).take(n_tokens).collect()
        })
        .collect();
    let alone: Vec<Vec<f32>> = sequences
        .iter()
        .map(|tokens| {
            model.session.clear(0);
            model.feed(0, tokens, &[usize::MAX])
        })
        .collect();
    model.session.clear(0);
    for (slot, tokens) in sequences.iter().enumerate() {
        // Groups of 4 and of 128 end in other steps for every sequence.
        model.feed(slot, &tokens[..1 + slot * 13], &[usize::MAX]);
    }
    // Twice: the second time a backend may replay what it recorded.
    for round in 0..2 {
        for (n_decoding, n_drafting, n_draft, n_prompt) in MIXES {
            let drafting = (0..n_drafting).map(|i| (FIRST_DRAFT + i, n_draft, Outputs::All));
            let first = n_prompt.div_ceil(2);
            let prompts = [
                (FIRST_PROMPT, first, Outputs::Last),
                (FIRST_PROMPT + 1, n_prompt - first, Outputs::None),
            ];
            let parts: Vec<_> = (0..n_decoding)
                .map(|slot| (slot, 1, Outputs::Last))
                .chain(drafting)
                .chain(prompts)
                .filter(|(_, n, _)| *n > 0)
                .collect();
            let mut batch = Batch::new();
            let mut expected = Vec::new();
            for (slot, n, outputs) in &parts {
                let from = model.session.len(*slot);
                batch.push(*slot, &sequences[*slot][from..from + n], *outputs);
                let row = |at: usize| &alone[*slot][at * n_vocab..(at + 1) * n_vocab];
                match outputs {
                    Outputs::All => (from..from + n).for_each(|at| expected.extend(row(at))),
                    Outputs::Last => expected.extend(row(from + n - 1)),
                    Outputs::None => {}
                }
            }
            let found = model
                .session
                .step(&mut model.backend, &model.network, &batch)
                .expect("the tokens fit");
            let what = format!("{}: round {round}, {parts:?}", golden.name);
            assert_close(&what, found, &expected, n_vocab, tolerance);
            for slot in FIRST_DRAFT..FIRST_DRAFT + n_drafting {
                let kept = model.session.len(slot) - (n_draft - 1);
                model.session.rewind(slot, kept).expect("a few rows");
            }
        }
    }
    for (slot, tokens) in sequences.iter().enumerate() {
        let from = model.session.len(slot);
        let found = model.feed(slot, &tokens[from..from + 5], &[1]);
        let what = format!("{}: slot {slot} after mixed steps", golden.name);
        let expected = &alone[slot][from * n_vocab..(from + 5) * n_vocab];
        assert_close(&what, &found, expected, n_vocab, tolerance);
    }
}

/// A fork goes on exactly as the slot it was copied from, and neither disturbs
/// the other.
pub fn a_fork_continues_as_its_origin<B: Backend>(
    make: &dyn Fn(&Geometry) -> B,
    golden: &Golden,
    tolerance: f32,
) {
    let shape = test_shape(golden.tokens.len(), CacheRounding::Official);
    let mut model = Model::open(&golden.gguf, make, shape);
    let n_vocab = model.n_vocab();
    for cut in [1, 5, 127, 128, 131] {
        let (head, tail) = golden.tokens.split_at(cut);
        let tail = &tail[..9];
        model.session.clear(2);
        model.feed(2, head, &[usize::MAX]);
        // The target holds something longer and older.
        model.session.clear(5);
        model.feed(5, &golden.tokens[..140], &[usize::MAX]);
        model.session.fork(&mut model.backend, 2, 5);
        let other: Vec<u32> = tail.iter().rev().copied().collect();
        model.feed(5, &other, &[4]);
        let origin = model.feed(2, tail, &[1]);
        model.session.fork(&mut model.backend, 2, 5);
        assert_eq!(model.session.len(5), cut + tail.len());

        model.session.clear(5);
        model.feed(5, head, &[usize::MAX]);
        model.session.fork(&mut model.backend, 5, 7);
        let fork = model.feed(7, tail, &[1]);
        let what = format!("{}: a fork at {cut}", golden.name);
        assert_close(&what, &fork, &origin, n_vocab, tolerance);
    }
}

/// A copy of a slot as it was at a frontier goes on from there, with the frontiers
/// below it, and the slot itself stays as it is.
pub fn a_fork_at_a_frontier_continues_from_there<B: Backend>(
    make: &dyn Fn(&Geometry) -> B,
    golden: &Golden,
    tolerance: f32,
) {
    let shape = test_shape(golden.tokens.len(), CacheRounding::Official);
    let mut model = Model::open(&golden.gguf, make, shape);
    let n_vocab = model.n_vocab();
    let tokens = &golden.tokens;
    let n = tokens.len();
    for (below, at) in [(1, 3), (4, 127), (64, 128), (127, 131)] {
        let name = |what: &str| format!("{}: {what} of {below} and {at}", golden.name);
        let mut expected = Vec::new();
        for cut in [below, at] {
            model.session.clear(1);
            model.feed(1, &tokens[..cut], &[usize::MAX]);
            expected.push(model.feed(1, &tokens[cut..cut + 9], &[2]));
        }
        model.session.clear(1);
        let mut frontiers = Vec::new();
        for range in [0..below, below..at, at..n - 1] {
            model.feed(1, &tokens[range], &[usize::MAX]);
            let taken = model.session.frontier(&mut model.backend, 1);
            frontiers.push(taken.expect("reads"));
        }
        // The target holds something longer and older.
        model.session.clear(6);
        model.feed(6, &tokens[..140.min(n)], &[usize::MAX]);
        model
            .session
            .fork_at(&mut model.backend, &frontiers[1], 6)
            .expect("a frontier of this timeline");
        assert_eq!(model.session.len(6), at);
        let carried = model.session.carry(&frontiers[0], 6).expect("below it");
        model
            .session
            .carry(&frontiers[2], 6)
            .expect_err("above what was copied");
        let found = model.feed(6, &tokens[at..at + 9], &[2]);
        assert_close(&name("the fork"), &found, &expected[1], n_vocab, tolerance);
        model
            .session
            .restore(&mut model.backend, 6, &carried)
            .expect("a frontier of the copy");
        let found = model.feed(6, &tokens[below..below + 9], &[2]);
        assert_close(
            &name("the lower one"),
            &found,
            &expected[0],
            n_vocab,
            tolerance,
        );
        model
            .session
            .carry(&frontiers[0], 6)
            .expect_err("the copy was cut since");

        // The origin goes on, and what is cut off it can be copied no more.
        model
            .session
            .restore(&mut model.backend, 1, &frontiers[1])
            .expect("untouched");
        let found = model.feed(1, &tokens[at..at + 9], &[2]);
        assert_close(
            &name("the origin"),
            &found,
            &expected[1],
            n_vocab,
            tolerance,
        );
        model.session.clear(1);
        model
            .session
            .fork_at(&mut model.backend, &frontiers[0], 6)
            .expect_err("its tokens are gone");
    }
}

/// Cutting a slot back, within the rings or to a stored frontier, gives the
/// logits of never having gone further.
pub fn a_rewound_slot_forgets<B: Backend>(
    make: &dyn Fn(&Geometry) -> B,
    golden: &Golden,
    tolerance: f32,
) {
    let shape = test_shape(golden.tokens.len(), CacheRounding::Official);
    let mut model = Model::open(&golden.gguf, make, shape);
    let n_vocab = model.n_vocab();
    let n = golden.tokens.len();
    let wrong: Vec<u32> = golden.tokens.iter().rev().copied().collect();
    for cut in [1, 3, 4, 6, 127, 128, 129, 130] {
        let (head, tail) = golden.tokens.split_at(cut);
        let tail = &tail[..10.min(n - cut)];
        model.session.clear(0);
        model.feed(0, head, &[usize::MAX]);
        let expected = model.feed(0, tail, &[1]);

        // Within the rings: up to `rewind_rows` tokens.
        for n_wrong in [1, 4, 15, 16] {
            model.session.clear(0);
            model.feed(0, head, &[7]);
            model.feed(0, &wrong[..n_wrong], &[5]);
            model.session.rewind(0, cut).expect("within the rings");
            let found = model.feed(0, tail, &[1]);
            let what = format!("{}: {n_wrong} tokens cut back to {cut}", golden.name);
            assert_close(&what, &found, &expected, n_vocab, tolerance);
        }

        // Further back: to a frontier.
        model.session.clear(0);
        model.feed(0, head, &[usize::MAX]);
        let frontier = model
            .session
            .frontier(&mut model.backend, 0)
            .expect("reads");
        model.feed(0, &wrong[..n - cut], &[usize::MAX]);
        model
            .session
            .restore(&mut model.backend, 0, &frontier)
            .expect("a frontier of this timeline");
        let found = model.feed(0, tail, &[1]);
        let what = format!("{}: a frontier at {cut}", golden.name);
        assert_close(&what, &found, &expected, n_vocab, tolerance);

        // The frontier of an earlier length, read from rings that reach it, is the
        // one that was taken there.
        for n_more in [1, 4, 16] {
            model.session.clear(0);
            model.feed(0, head, &[usize::MAX]);
            let then = model.session.frontier(&mut model.backend, 0);
            model.feed(0, &tail[..n_more.min(tail.len())], &[3]);
            let later = model.session.frontier_at(&mut model.backend, 0, cut);
            assert_eq!(
                later.expect("within the rings"),
                then.expect("reads"),
                "{}: the frontier at {cut}, {n_more} tokens later",
                golden.name
            );
        }

        // A frontier whose tokens were replaced is refused.
        model.session.clear(0);
        model.feed(0, head, &[usize::MAX]);
        model.session.rewind(0, cut).expect("within the rings");
        let later = {
            model.feed(0, &tail[..2.min(tail.len())], &[1]);
            model
                .session
                .frontier(&mut model.backend, 0)
                .expect("reads")
        };
        model.session.rewind(0, cut).expect("within the rings");
        model.feed(0, &wrong[..3], &[1]);
        model
            .session
            .restore(&mut model.backend, 0, &later)
            .expect_err("its tokens were replaced");
    }
}

/// A state exported from one backend and imported into another (or the same)
/// goes on as if it had never moved.
pub fn an_exported_slot_continues_elsewhere<A: Backend, B: Backend>(
    from: &dyn Fn(&Geometry) -> A,
    to: &dyn Fn(&Geometry) -> B,
    golden: &Golden,
    tolerance: f32,
) {
    let shape = test_shape(golden.tokens.len(), CacheRounding::Official);
    let mut a = Model::open(&golden.gguf, from, shape.clone());
    let mut shape_b = shape;
    // Other ring lengths: the state must not depend on them.
    shape_b.rewind_rows = 5;
    let mut b = Model::open(&golden.gguf, to, shape_b);
    let n_vocab = a.n_vocab();
    for cut in [1, 2, 4, 7, 100, 127, 128, 129, 133] {
        let (head, tail) = golden.tokens.split_at(cut);
        let tail = &tail[..10];
        a.session.clear(1);
        a.feed(1, head, &[19]);
        let state = a.session.export(&mut a.backend, 1).expect("reads");
        b.session
            .import(&mut b.backend, 3, &state)
            .expect("same geometry");
        assert_eq!(
            b.session.export(&mut b.backend, 3).expect("reads").rows,
            state.rows,
            "{}: what was imported at {cut} exports the same",
            golden.name
        );
        let expected = a.feed(1, tail, &[1]);
        let found = b.feed(3, tail, &[1]);
        let what = format!("{}: moved at {cut}", golden.name);
        assert_close(&what, &found, &expected, n_vocab, tolerance);
    }
}

/// All of the above except the golden logits.
pub fn every_property<B: Backend>(make: &dyn Fn(&Geometry) -> B, golden: &Golden, tolerance: f32) {
    chunks_do_not_change_logits(make, golden, tolerance);
    a_batch_of_eight_equals_each_alone(make, golden, tolerance);
    mixed_steps_say_what_each_says_alone(make, golden, tolerance);
    a_fork_continues_as_its_origin(make, golden, tolerance);
    a_fork_at_a_frontier_continues_from_there(make, golden, tolerance);
    a_rewound_slot_forgets(make, golden, tolerance);
    an_exported_slot_continues_elsewhere(make, make, golden, tolerance);
}
