//! Decode and prefill of the full geometry on random weights made on the device, so that no file is
//! needed: `cargo bench -p ds4-wgpu --bench steps -- [--layers N] [--context N] [--adapter NAME]
//! [--small] [--times] [--joined] [--matrices-8]`. `--joined` makes turns part of the products before
//! them, and `--matrices-8` uses an adapter's matrices of 8 x 8.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ds4_formats::GgmlType;
use ds4_model::{
    Batch, CacheRounding, Component, Geometry, Network, Outputs, Requirement, Session,
    SessionShape, Wanted, WeightRole,
};
use ds4_wgpu::{Gpu, Weight, WgpuBackend, WgpuOptions};

fn option(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|found| found != name);
    arguments.next()?;
    arguments.next()
}

fn flag(name: &str) -> bool {
    std::env::args().any(|found| found == name)
}

fn number(name: &str, default: usize) -> usize {
    option(name).map_or(default, |text| text.parse().expect("a number"))
}

/// The types of the published 2-bit files.
fn type_of(need: &Requirement) -> GgmlType {
    match (need.role, need.component) {
        (WeightRole::Vector, _) => GgmlType::F32,
        (WeightRole::Ids, _) => GgmlType::I32,
        (WeightRole::Experts, _) if need.name.contains("down") => GgmlType::Q2_K,
        (WeightRole::Experts, _) => GgmlType::IQ2_XXS,
        (_, Component::Attention | Component::SharedExperts | Component::Output) => GgmlType::Q8_0,
        _ => GgmlType::F16,
    }
}

struct Bench {
    backend: WgpuBackend,
    network: Network<Weight>,
    session: Session<WgpuBackend>,
}

impl Bench {
    /// One step of a token for each of `n` slots; how long it took, and how much of that the host
    /// worked before it waited.
    fn step(&mut self, n: usize, token: u32) -> (Duration, Duration) {
        let mut batch = Batch::new();
        for slot in 0..n {
            let wanted = Wanted::Candidates { temperature: 1.0 };
            batch.push_wanting(slot, &[token + slot as u32], Outputs::Last, wanted);
        }
        let started = Instant::now();
        self.session
            .launch(&mut self.backend, &self.network, &batch)
            .expect("the step starts");
        let worked = started.elapsed();
        self.session.wait(&mut self.backend).expect("the step runs");
        (started.elapsed(), worked)
    }

    fn prefill(&mut self, slot: usize, n: usize) -> Duration {
        let tokens: Vec<u32> = (0..n as u32).map(|i| i * 37 % 1000).collect();
        let mut batch = Batch::new();
        batch.push(slot, &tokens, Outputs::Last);
        self.run(&batch)
    }

    fn run(&mut self, batch: &Batch) -> Duration {
        let started = Instant::now();
        self.session
            .step(&mut self.backend, &self.network, batch)
            .expect("the step runs");
        started.elapsed()
    }

    fn decode(&mut self, n: usize, n_steps: usize) {
        // Steps that select are recorded once the context passes 4 times the number of rows selected.
        for i in 0..8 {
            self.step(n, i);
        }
        let steps: Vec<_> = (0..n_steps).map(|i| self.step(n, i as u32)).collect();
        let mut times: Vec<Duration> = steps.iter().map(|(time, _)| *time).collect();
        let worked: Duration = steps.iter().map(|(_, worked)| *worked).sum();
        let total: Duration = times.iter().sum();
        let rate = (n * n_steps) as f64 / total.as_secs_f64();
        times.sort();
        let class = n.next_power_of_two();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        println!(
            "decode, {n} sequences: {rate:.1} tokens/s; step median {:.3} ms, least {:.3}, most {:.3} ms; \
             {} dispatches in {} stages; host {:.3} ms",
            ms(times[times.len() / 2]),
            ms(times[0]),
            ms(times[times.len() - 1]),
            self.backend.n_dispatches(class),
            self.backend.n_stages(class),
            ms(worked) / n_steps as f64,
        );
    }

    fn table(&self, n_rows: usize) {
        let mut kernels: BTreeMap<String, (usize, f32)> = BTreeMap::new();
        let times = self.backend.times(n_rows).expect("the step runs");
        for (name, ns) in &times {
            let entry = kernels.entry(name.clone()).or_default();
            entry.0 += 1;
            entry.1 += ns;
        }
        let mut rows: Vec<_> = kernels.into_iter().collect();
        rows.sort_by(|a, b| f32::total_cmp(&b.1.1, &a.1.1));
        let total: f32 = times.iter().map(|(_, ns)| ns).sum();
        println!("{n_rows} rows: {:.3} ms in all", total / 1e6);
        for (name, (count, ns)) in rows {
            println!(
                "{:9.1} us {count:5} x {:8.2} us  {name}",
                ns / 1e3,
                ns / 1e3 / count as f32
            );
        }
    }
}

fn main() {
    let options = WgpuOptions {
        adapter: option("--adapter"),
        allow_processor: true,
        joins_turns: flag("--joined"),
        matrices_8: flag("--matrices-8"),
        ..WgpuOptions::default()
    };
    let gpu = match Gpu::open(&options) {
        Ok(gpu) => gpu,
        Err(error) => return println!("skipped: {error}"),
    };
    println!("{}", gpu.capabilities());
    let mut geometry = Geometry::flash();
    let n_layers = number("--layers", geometry.layers.len());
    geometry.layers.truncate(n_layers);
    if flag("--small") {
        geometry.n_vocab = 1280;
        geometry.n_experts = 16;
    }
    let context = number("--context", 2048);
    let chunk = number("--chunk", 2048);
    let mut backend = WgpuBackend::new(&gpu, &geometry);
    let started = Instant::now();
    let mut seed = 0;
    let network = Network::build(&geometry, &mut |need| {
        seed += 2;
        backend.random_weight(&need, type_of(&need), seed)
    })
    .expect("room for the weights");
    println!("weights: {:.1?}", started.elapsed());
    let shape = SessionShape {
        max_outputs: 8,
        rounding: CacheRounding::Official,
        ..SessionShape::uniform(8, context + 1024, chunk)
    };
    let session = Session::open(&mut backend, shape).expect("room for a session");
    let mut bench = Bench {
        backend,
        network,
        session,
    };
    for slot in 0..8 {
        let mut done = 0;
        while done < context {
            let n = chunk.min(context - done);
            let time = bench.prefill(slot, n);
            done += n;
            if slot == 1 && done == context && flag("--times") {
                bench.table(n);
            }
            if slot < 3 {
                println!(
                    "prefill of {n} rows: {:.1} ms, {:.0} tokens/s",
                    time.as_secs_f64() * 1e3,
                    n as f64 / time.as_secs_f64()
                );
            }
        }
    }
    let n_steps = number("--steps", 64);
    for n in [1, 2, 4, 8] {
        bench.decode(n, n_steps);
        if flag("--times") && (n == 1 || n == 8) {
            bench.table(n);
        }
    }
}
