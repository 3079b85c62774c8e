//! Compares the fast kernels with the plain ones on a model file of the published geometry: for each
//! part of the network that has fast kernels, and for all, how far the logits of the same tokens are
//! from those of the plain kernels.
//!
//! `cargo run --release -p ds4-cuda --example compare -- FILE [N_TOKENS]`

use std::time::Instant;

use ds4_conformance::network::difference;
use ds4_cuda::{CudaBackend, CudaError, CudaOptions, Fast};
use ds4_formats::gguf::Gguf;
use ds4_model::{Backend, Batch, Geometry, Network, Outputs, Session, SessionShape, Unfused};

/// Rows of the steps, the last of which repeats.
const CHUNKS: &[(&str, &[usize])] = &[
    ("one row", &[1]),
    ("4 rows", &[4]),
    ("8 rows", &[8]),
    ("16 rows", &[16]),
    ("64 rows", &[64]),
    ("100 rows", &[100]),
    ("512 rows", &[512]),
    ("2,048 rows", &[2048]),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: compare FILE [N_TOKENS]")?;
    let n_tokens: usize = args.next().map_or(Ok(2304), |n| n.parse())?;
    let gguf = Gguf::open(&path)?;
    let geometry = Geometry::from_metadata(gguf.metadata())?;
    let tokens: Vec<u32> = (0..n_tokens as u32)
        .map(|i| i.wrapping_mul(2_654_435_761) % geometry.n_vocab as u32)
        .collect();
    let n_last = 16.min(n_tokens);
    let only = |part: fn(&mut Fast)| {
        let mut fast = Fast::NONE;
        part(&mut fast);
        fast
    };
    let variants = [
        ("turns", only(|f| f.turns = true)),
        ("experts", only(|f| f.experts = true)),
        ("attention", only(|f| f.attention = true)),
        ("steps", only(|f| f.steps = true)),
        ("all", Fast::default()),
    ];
    let plain = make(&geometry, Fast::NONE)?;
    let plain = run(&gguf, &geometry, plain, &tokens, &[2048], n_last)?;
    let expected = &plain[plain.len() - n_last * geometry.n_vocab..];
    let scale = (expected.iter().map(|x| x * x).sum::<f32>() / expected.len() as f32).sqrt();
    println!("logits of the plain kernels: root mean square {scale:.3}");
    let unfused = Unfused(make(&geometry, Fast::NONE)?);
    let unfused = run(&gguf, &geometry, unfused, &tokens, &[2048], n_last)?;
    let d = difference(&unfused, &plain, geometry.n_vocab, 0.0);
    println!(
        "plain kernels, fused ops taken apart: largest difference {:.2e}",
        d.max_abs
    );
    for (name, fast) in variants {
        for (what, chunks) in CHUNKS {
            // One small and one large step tell of a part; all together meet every size.
            let is_wanted = match name {
                "all" => true,
                "steps" => chunks[0] <= 4,
                _ => [16, 2048].contains(&chunks[0]),
            };
            if !is_wanted {
                continue;
            }
            // Small steps over the end of the prompt only: the rest is in large plain ones.
            let started = Instant::now();
            let backend = make(&geometry, fast)?;
            let found = run(&gguf, &geometry, backend, &tokens, chunks, n_last)?;
            let found = &found[found.len() - n_last * geometry.n_vocab..];
            let d = difference(found, expected, geometry.n_vocab, 0.0);
            // Of each row: one choice of an expert or of an index row that falls otherwise changes a
            // row of random weights altogether, so the median says what the arithmetic does.
            let mut errors: Vec<f32> = found
                .chunks(geometry.n_vocab)
                .zip(expected.chunks(geometry.n_vocab))
                .map(|(f, e)| {
                    let square = |values: &mut dyn Iterator<Item = f32>| {
                        values.map(|x| x * x).sum::<f32>().sqrt()
                    };
                    square(&mut f.iter().zip(e).map(|(f, e)| f - e))
                        / square(&mut e.iter().copied())
                })
                .collect();
            errors.sort_by(f32::total_cmp);
            println!(
                "{name:10} {what:12} relative error of a row: median {:.2e}, largest {:.2e}; other argmax {} of {n_last}; {:.1} s",
                errors[n_last / 2],
                errors[n_last - 1],
                d.n_other_argmax,
                started.elapsed().as_secs_f64()
            );
        }
    }
    Ok(())
}

fn make(geometry: &Geometry, fast: Fast) -> Result<CudaBackend, CudaError> {
    let options = CudaOptions {
        cache: Some(std::env::temp_dir().join("ds4-cuda-compare")),
        fast,
        ..CudaOptions::default()
    };
    CudaBackend::new(geometry, options)
}

/// The logits of the last `n_last` tokens and maybe more: the tokens before the last 256 in large
/// steps, those in steps of `chunks`.
fn run<B: Backend>(
    gguf: &Gguf,
    geometry: &Geometry,
    mut backend: B,
    tokens: &[u32],
    chunks: &[usize],
    n_last: usize,
) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    let network = Network::bind(
        geometry,
        &mut backend,
        &|name| gguf.tensor(name),
        &mut |_| {},
    )?;
    let mut shape = SessionShape::uniform(2, tokens.len() + 64, 2048);
    shape.max_outputs = n_last.max(64);
    let mut session = Session::open(&mut backend, shape)?;
    let mut logits = Vec::new();
    let mut done = 0;
    while done < tokens.len() {
        let left = tokens.len() - done;
        let most = if chunks[0] >= 256 {
            chunks[0]
        } else {
            2048.min(left.saturating_sub(64))
        };
        let n = if most == 0 { chunks[0] } else { most }.min(left);
        // The last rows have logits, in steps that hold no others or whose rows are few.
        let n = if left > n_last && n > left - n_last {
            left - n_last
        } else {
            n
        };
        let outputs = if left <= n_last {
            Outputs::All
        } else {
            Outputs::None
        };
        let mut batch = Batch::new();
        batch.push(0, &tokens[done..done + n], outputs);
        logits.extend_from_slice(session.step(&mut backend, &network, &batch)?);
        done += n;
    }
    session.close(&mut backend);
    Ok(logits)
}
