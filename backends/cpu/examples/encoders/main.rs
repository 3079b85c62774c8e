//! How the encoders compare with those of llama.cpp: error and speed, type by type.
//!
//! ```text
//! cargo run --release -p ds4-cpu --example encoders [-- LLAMA_CPP]
//! ```
//!
//! `LLAMA_CPP` is a folder of llama.cpp's sources, such as `llama.cpp` within the unpacked crate
//! `llama-cpp-sys-2`; with it their quantisers are compiled (`cc -O3 -march=native`) and run on the
//! same numbers. Without it only this project's figures are printed. Errors are weighted squares of
//! what is decoded again, by this project's decoders, as a share of theirs; speed is by processor
//! time of one thread, the least of three runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ds4_cpu::encode_row;
use ds4_formats::GgmlType;
use ds4_formats::quant::decode_row;

/// Numbers of a row, which share their importances.
const COLUMNS: usize = 4096;
const ROWS: usize = 24;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let (a, b) = (self.uniform(), self.uniform());
        (-2.0 * a.max(1e-300).ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    /// Student's distribution with four degrees of freedom.
    fn heavy(&mut self) -> f64 {
        let chi: f64 = (0..4).map(|_| self.normal().powi(2)).sum();
        self.normal() / (chi / 4.0).sqrt()
    }
}

/// How one side did at a type.
#[derive(Clone, Copy)]
struct Result {
    error: f64,
    seconds: f64,
}

fn main() {
    let source = std::env::args().nth(1).map(PathBuf::from);
    let scratch = std::env::temp_dir().join(format!("ds4-encoders-{}", std::process::id()));
    fs::create_dir_all(&scratch).expect("a folder for temporary files");
    let theirs = source.map(|source| compile(&source, &scratch));
    let mut dice = Dice(1);
    let normal: Vec<f32> = (0..COLUMNS * ROWS)
        .map(|_| (0.02 * dice.normal()) as f32)
        .collect();
    let heavy: Vec<f32> = (0..COLUMNS * ROWS)
        .map(|_| (0.02 * dice.heavy()) as f32)
        .collect();
    let w: Vec<f32> = (0..COLUMNS).map(|_| dice.normal().exp() as f32).collect();
    for (what, x, w) in [
        ("normal numbers", &normal, None),
        ("normal numbers, with importances", &normal, Some(&w[..])),
        ("heavy-tailed numbers", &heavy, None),
        (
            "heavy-tailed numbers, with importances",
            &heavy,
            Some(&w[..]),
        ),
    ] {
        println!("\n{what}\n");
        println!(
            "| type | weighted error, ours / theirs | speed, ours / theirs | million weights a second, ours |"
        );
        println!("|---|---|---|---|");
        let others = theirs
            .as_ref()
            .map(|program| run_theirs(program, &scratch, x, w));
        for &ty in GgmlType::all() {
            if ty.block_len() == 1 {
                continue;
            }
            let ours = run_ours(ty, x, w);
            let speed = x.len() as f64 / ours.seconds / 1e6;
            let other = others
                .as_ref()
                .and_then(|all| all.iter().find(|(t, _)| *t == ty));
            match other {
                Some((_, other)) => println!(
                    "| {ty} | {:.3} | {:.2} | {speed:.1} |",
                    ours.error / other.error,
                    other.seconds / ours.seconds
                ),
                None => println!("| {ty} | ({:.4e}) | | {speed:.1} |", ours.error),
            }
        }
    }
    fs::remove_dir_all(&scratch).expect("the temporary files are ours");
}

/// Processor time of this thread in seconds.
fn seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// Sum over rows of the weighted squares.
fn error(ty: GgmlType, bytes: &[u8], x: &[f32], w: Option<&[f32]>) -> f64 {
    let mut y = vec![0.0; x.len()];
    decode_row(ty, bytes, &mut y);
    let pairs = x.iter().zip(&y).enumerate();
    pairs
        .map(|(i, (x, y))| {
            let w = w.map_or(1.0, |w| f64::from(w[i % COLUMNS]));
            w * f64::from(x - y).powi(2)
        })
        .sum()
}

fn run_ours(ty: GgmlType, x: &[f32], w: Option<&[f32]>) -> Result {
    let row_bytes = ty.row_bytes(COLUMNS).expect("whole blocks");
    let mut bytes = vec![0; row_bytes * ROWS];
    let mut least = f64::INFINITY;
    for _ in 0..4 {
        let start = seconds();
        for (x, out) in x.chunks(COLUMNS).zip(bytes.chunks_mut(row_bytes)) {
            encode_row(ty, x, w, out);
        }
        least = least.min(seconds() - start);
    }
    Result {
        error: error(ty, &bytes, x, w),
        seconds: least,
    }
}

fn compile(source: &Path, scratch: &Path) -> PathBuf {
    let ggml = source.join("ggml");
    let program = scratch.join("theirs");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/encoders/theirs.c");
    let status = Command::new("cc")
        .args(["-O3", "-march=native", "-w", "-o"])
        .arg(&program)
        .arg("-I")
        .arg(ggml.join("include"))
        .arg("-I")
        .arg(ggml.join("src"))
        .arg(own)
        .arg(ggml.join("src/ggml-quants.c"))
        .arg("-lm")
        .status()
        .expect("a C compiler named cc");
    assert!(status.success(), "{} does not compile", ggml.display());
    program
}

fn run_theirs(
    program: &Path,
    scratch: &Path,
    x: &[f32],
    w: Option<&[f32]>,
) -> Vec<(GgmlType, Result)> {
    let put = |name: &str, values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let path = scratch.join(name);
        fs::write(&path, bytes).expect("a temporary file");
        path
    };
    let numbers = put("x", x);
    let weights = w.map_or(PathBuf::from("-"), |w| put("w", w));
    let out = scratch.join("out");
    let ran = Command::new(program)
        .args([&numbers, &weights])
        .arg(COLUMNS.to_string())
        .arg(&out)
        .output()
        .expect("it was compiled");
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    let lines = String::from_utf8(ran.stdout).expect("names and numbers");
    let mut results = Vec::new();
    for line in lines.lines() {
        let (name, seconds) = line.split_once(' ').expect("a name and a number");
        let ty = GgmlType::all().iter().find(|ty| ty.name() == name);
        let ty = *ty.expect("a type that both know");
        let bytes = fs::read(scratch.join(format!("out.{name}"))).expect("its blocks");
        let result = Result {
            error: error(ty, &bytes, x, w),
            seconds: seconds.parse().expect("a number"),
        };
        results.push((ty, result));
    }
    results
}
