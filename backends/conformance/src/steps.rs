//! What must hold of steps on any backend: of what their outputs get, of replays, and of
//! failures.

use ds4_model::{
    Backend, Batch, CacheRounding, Geometry, N_CANDIDATES, OutputRow, Outputs, StepError, Wanted,
};

use crate::golden::Golden;
use crate::network::{Model, assert_close, test_shape};
use crate::replaying::Replaying;

/// Candidates are the largest logits, in order, with the log-sum-exp of all; a row that
/// wants its logits gets them in the same step, and a row that got candidates can be read.
pub fn candidates_are_the_largest_logits<B: Backend>(
    make: &dyn Fn(&Geometry) -> B,
    golden: &Golden,
) {
    let shape = test_shape(golden.tokens.len(), CacheRounding::Official);
    let mut model = Model::open(&golden.gguf, make, shape);
    let n_vocab = model.n_vocab();
    let mut batch = Batch::new();
    let wanted = |temperature| Wanted::Candidates { temperature };
    batch.push_wanting(0, &golden.tokens[..3], Outputs::All, wanted(0.5));
    batch.push(1, &golden.tokens[..5], Outputs::Last);
    batch.push_wanting(2, &golden.tokens[..4], Outputs::None, wanted(1.0));
    batch.push_wanting(3, &golden.tokens[..2], Outputs::Last, wanted(2.0));
    model
        .session
        .step(&mut model.backend, &model.network, &batch)
        .expect("the tokens fit");
    assert_eq!(model.session.n_outputs(), 5);
    let temperatures = [Some(0.5), Some(0.5), Some(0.5), None, Some(2.0)];
    for (index, temperature) in temperatures.into_iter().enumerate() {
        let what = format!("{}: output {index}", golden.name);
        let mut logits = Vec::new();
        model
            .session
            .read_logits(&mut model.backend, index, &mut logits)
            .expect("reads");
        assert_eq!(logits.len(), n_vocab);
        let candidates = match (model.session.output(index), temperature) {
            (OutputRow::Logits(row), None) => {
                assert_eq!(row, logits, "{what}");
                continue;
            }
            (OutputRow::Candidates(candidates), Some(_)) => candidates,
            (found, _) => panic!("{what}: {found:?}"),
        };
        let mut order: Vec<u32> = (0..n_vocab as u32).collect();
        order.sort_by(|a, b| {
            let of = |id: &u32| logits[*id as usize];
            of(b).total_cmp(&of(a)).then(a.cmp(b))
        });
        order.truncate(N_CANDIDATES);
        assert_eq!(candidates.ids, order, "{what}");
        for (id, value) in candidates.ids.iter().zip(candidates.values) {
            assert_eq!(*value, logits[*id as usize], "{what}: token {id}");
        }
        let lse = |scale: f64| {
            let sum: f64 = logits.iter().map(|x| (f64::from(*x) * scale).exp()).sum();
            sum.ln()
        };
        let scale = 1.0 / temperature.unwrap_or(1.0);
        for (found, expected) in [
            (candidates.lse, lse(1.0)),
            (candidates.lse_at_temperature, lse(scale)),
        ] {
            let error = (f64::from(found) - expected).abs();
            assert!(error < 1e-4, "{what}: {found}, expected {expected}");
        }
    }
}

/// A step whose key was seen before is replayed without calling an op, and gives the
/// logits that recording it anew gives.
pub fn a_replayed_step_calls_no_op<B>(make: &dyn Fn(&Geometry) -> B, golden: &Golden)
where
    B: Backend<Weight: Clone + 'static> + 'static,
{
    let shape = test_shape(golden.tokens.len(), CacheRounding::Official);
    let recorder = |geometry: &Geometry| Replaying::new(make(geometry));
    let mut plain = Model::open(&golden.gguf, make, shape.clone());
    let mut model = Model::open(&golden.gguf, &recorder, shape);
    let n_vocab = model.n_vocab();
    let mut n_steps = 0;
    for slot in [0, 3] {
        for chunk in golden.tokens.chunks(5) {
            let n_replays = model.backend.n_replays;
            let expected = plain.feed(slot, chunk, &[usize::MAX]);
            let found = model.feed(slot, chunk, &[usize::MAX]);
            let what = format!("{}: step {n_steps}", golden.name);
            assert_close(&what, &found, &expected, n_vocab, 0.0);
            let replayed = model.backend.n_replays > n_replays;
            assert_eq!(replayed, model.backend.n_ops == 0, "{what}");
            n_steps += 1;
        }
    }
    // Chunks of 5 have one class, the last of a slot perhaps another, and with more rows
    // visible than are selected another still.
    let n_recorded = n_steps - model.backend.n_replays;
    assert!(n_recorded <= 4, "{n_recorded} of {n_steps} recorded");
    model.session.close(&mut model.backend);
}

/// A step that fails says so at that step, empties its slots, and leaves the others as they
/// were; the session goes on.
pub fn a_failed_step_loses_its_own_slots_only<B>(make: &dyn Fn(&Geometry) -> B, golden: &Golden)
where
    B: Backend<Weight: Clone + 'static> + 'static,
{
    let shape = test_shape(golden.tokens.len(), CacheRounding::Official);
    let recorder = |geometry: &Geometry| Replaying::new(make(geometry));
    let mut model = Model::open(&golden.gguf, &recorder, shape);
    let n_vocab = model.n_vocab();
    let (head, tail) = golden.tokens.split_at(20);
    let tail = &tail[..6];
    model.feed(5, head, &[7]);
    let expected = model.feed(5, tail, &[2]);
    for fails_in in [1, 2] {
        for slot in [0, 1, 2] {
            model.session.clear(slot);
            model.feed(slot, head, &[usize::MAX]);
        }
        model.backend.fails_in = Some(fails_in);
        let mut n_failed = 0;
        for _ in 0..2 {
            let mut batch = Batch::new();
            batch.push(0, &tail[..1], Outputs::Last);
            batch.push(2, &tail[..2], Outputs::None);
            let step = model
                .session
                .step(&mut model.backend, &model.network, &batch);
            match step {
                Ok(_) => {}
                Err(StepError::Backend(_)) => {
                    n_failed += 1;
                    assert!(model.session.is_empty(0) && model.session.is_empty(2));
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(n_failed, 1, "{}", golden.name);
        assert_eq!(model.session.len(1), head.len());
        let found = model.feed(1, tail, &[2]);
        let what = format!("{}: the other slot", golden.name);
        assert_close(&what, &found, &expected, n_vocab, 0.0);
        model.session.clear(0);
        model.feed(0, head, &[usize::MAX]);
        let found = model.feed(0, tail, &[2]);
        assert_close("a slot filled again", &found, &expected, n_vocab, 0.0);
    }
}
