//! How long the device waits for the host between two steps: 16 sequences of the full
//! vocabulary, drawn with `min_p` and `top_p`.
//!
//!     cargo bench -p ds4-engine --bench turnaround
//!
//! Prints the median and the 99th percentile of the time from the end of a step to the
//! start of the next, and beside it what drawing the same 16 rows from all their logits
//! takes.

use std::time::{Duration, Instant};

use ds4_conformance::fixtures::{Random, metadata};
use ds4_conformance::speaking_model;
use ds4_engine::{Engine, OpenOptions, Request, Sampler, SamplingOptions, Scheduler};
use ds4_formats::gguf::{Gguf, write_tensors};
use ds4_model::LayerKind;

const N_SEQUENCES: usize = 16;
const N_STEPS: usize = 300;

fn main() {
    let options = SamplingOptions {
        top_p: 0.95,
        min_p: 0.05,
        seed: Some(1),
        ..SamplingOptions::default()
    };
    let gguf = model();
    let mut open = OpenOptions::new("bench");
    open.n_slots = N_SEQUENCES;
    open.context = Some(1024);
    let engine = Engine::from_gguf(&gguf, &open, &mut |_| {}).expect("opens");
    let n_vocab = engine.geometry().n_vocab;
    let mut scheduler = Scheduler::new(engine);
    for i in 0..N_SEQUENCES as u32 {
        let request = Request {
            tokens: vec![i, i + 1],
            sampling: options.clone(),
            max_tokens: N_STEPS + 20,
            ..Request::default()
        };
        scheduler.submit(request).expect("accepted");
    }
    let mut times = Vec::new();
    for _ in 0..N_STEPS {
        scheduler.tick().expect("no failure");
        times.extend(scheduler.turnaround());
    }
    report("from one step to the next", &mut times);

    // The rows of a step, drawn in series from all logits.
    let mut random = Random(7);
    let rows: Vec<Vec<f32>> = (0..N_SEQUENCES)
        .map(|_| random.normals(n_vocab, 3.0))
        .collect();
    let mut samplers: Vec<Sampler> = (0..N_SEQUENCES)
        .map(|_| Sampler::new(options.clone(), &[]))
        .collect();
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let started = Instant::now();
            for (sampler, row) in samplers.iter_mut().zip(&rows) {
                sampler.sample(row).expect("finite");
            }
            started.elapsed()
        })
        .collect();
    report("16 whole rows in series", &mut times);
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{what}: {:.3} ms in the median, {:.3} at p99",
        at(0.5),
        at(0.99)
    );
}

/// A network as small as can be, with the full vocabulary.
fn model() -> Gguf {
    let geometry = speaking_model::geometry(129_280, vec![LayerKind::Sliding, LayerKind::Csa]);
    // Logits as far apart as text makes them: a handful within a factor of 20 of the likeliest.
    let tensors = speaking_model::weights(&geometry, |name| match name {
        "output.weight" => 0.7,
        _ => 0.3,
    });
    let mut bytes = Vec::new();
    write_tensors(&mut bytes, metadata(&geometry), &tensors).expect("written to memory");
    Gguf::parse(bytes.into()).expect("what was written")
}
