//! Decode and prefill of a whole model, as shares of what the machine can read and multiply.
//!
//! `cargo bench -p ds4-cpu --bench network -- MODEL.gguf [threads] [context]`
//!
//! Every figure is the best of several steps; shares compare figures of the same run.

use std::time::{Duration, Instant};

use ds4_cpu::{CpuBackend, CpuOptions};
use ds4_formats::gguf::Gguf;
use ds4_model::{
    Batch, Geometry, Network, Observed, OpTimes, Outputs, Session, SessionShape, WeightRole,
    requirements,
};

#[path = "machine/mod.rs"]
mod machine;

type Watched = Observed<CpuBackend, OpTimes>;

fn main() {
    let mut args = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"));
    let Some(path) = args.next() else {
        println!("skipped: no model given; see the first lines of this file");
        return;
    };
    let n_threads = args.next().map(|n| n.parse().expect("a number of threads"));
    let context = args
        .next()
        .map_or(64, |n| n.parse().expect("a number of tokens"));

    let gguf = Gguf::open(std::path::Path::new(&path)).expect("a GGUF file");
    let geometry = Geometry::from_metadata(gguf.metadata()).expect("a geometry");
    let options = CpuOptions {
        n_threads,
        ..CpuOptions::default()
    };
    let cpu = CpuBackend::new(&geometry, options).expect("a backend");
    println!("{} kernels, {} threads", cpu.simd(), cpu.n_threads());
    let read = machine::read_bandwidth(cpu.n_threads());
    println!("reads {:.1} GB/s", read / 1e9);

    let mut backend = Observed {
        inner: cpu,
        observer: OpTimes::default(),
    };
    let network = Network::bind(
        &geometry,
        &mut backend,
        &|name| gguf.tensor(name),
        &mut |_| {},
    )
    .expect("weights");
    let shape = SessionShape {
        max_outputs: 8,
        ..SessionShape::uniform(1, context + 1024, 512)
    };
    let mut session = Session::open(&mut backend, shape).expect("memory");
    let bytes = step_bytes(&gguf, &geometry);
    println!("a decoded token reads {:.3} GB of weights", bytes / 1e9);

    // A context first, which also brings the weights into memory.
    let tokens: Vec<u32> = (0..context + 512)
        .map(|i| (i * 7919 % 100_000 % geometry.n_vocab) as u32)
        .collect();
    feed(&mut session, &mut backend, &network, &tokens[..context]);
    for n_rows in [1, 2, 4, 8] {
        let best = decode(&mut session, &mut backend, &network, n_rows, context);
        println!(
            "{n_rows} rows a step: {:7.2} ms, {:6.2} tokens/s{}",
            1e3 * best.as_secs_f64(),
            n_rows as f64 / best.as_secs_f64(),
            if n_rows == 1 {
                format!(
                    ", {:.0} % of what the reads allow",
                    100.0 * bytes / read / best.as_secs_f64()
                )
            } else {
                String::new()
            }
        );
        if n_rows == 1 {
            table(&backend);
        }
    }
    let mut best = Duration::MAX;
    for _ in 0..3 {
        session.clear(0);
        backend.observer = OpTimes::default();
        let start = Instant::now();
        feed(&mut session, &mut backend, &network, &tokens[..512]);
        best = best.min(start.elapsed());
    }
    println!("prefill of 512: {:.1} tokens/s", 512.0 / best.as_secs_f64());
    table(&backend);
}

/// Weight bytes that one row reads.
fn step_bytes(gguf: &Gguf, geometry: &Geometry) -> f64 {
    requirements(geometry)
        .iter()
        .filter_map(|need| Some((need, gguf.tensor(&need.name)?)))
        .map(|(need, tensor)| match need.role {
            WeightRole::Experts => {
                tensor.data.len() as f64 * geometry.n_experts_used as f64
                    / geometry.n_experts as f64
            }
            WeightRole::Embedding | WeightRole::Ids => 0.0,
            _ => tensor.data.len() as f64,
        })
        .sum()
}

fn feed(
    session: &mut Session<Watched>,
    backend: &mut Watched,
    network: &Network<ds4_cpu::Weight>,
    tokens: &[u32],
) {
    for chunk in tokens.chunks(512) {
        let mut batch = Batch::new();
        batch.push(0, chunk, Outputs::Last);
        session.step(backend, network, &batch).expect("room");
    }
}

/// The best step of `n_rows` rows at a context.
fn decode(
    session: &mut Session<Watched>,
    backend: &mut Watched,
    network: &Network<ds4_cpu::Weight>,
    n_rows: usize,
    context: usize,
) -> Duration {
    let mut best = Duration::MAX;
    for step in 0..12 {
        if session.len(0) > context + 48 {
            session.rewind(0, context).expect("within the rings");
        }
        let tokens: Vec<u32> = (0..n_rows)
            .map(|r| (r * 31 + step * 977) as u32 % 50_000)
            .collect();
        let mut batch = Batch::new();
        batch.push(0, &tokens, Outputs::All);
        let times = std::mem::take(&mut backend.observer);
        let start = Instant::now();
        session.step(backend, network, &batch).expect("room");
        let time = start.elapsed();
        if time < best {
            best = time;
        } else {
            backend.observer = times;
        }
    }
    best
}

fn table(backend: &Watched) {
    let mut ops: Vec<_> = backend.observer.by_op.iter().collect();
    ops.sort_by_key(|(_, (_, time))| std::cmp::Reverse(*time));
    for (op, (n, time)) in ops {
        println!(
            "    {op:18} {n:5} x {:9.1} us = {:9.2} ms",
            1e6 * time.as_secs_f64() / *n as f64,
            1e3 * time.as_secs_f64()
        );
    }
}
