//! A GPU that lacks something, through the program: an error that names it, or the processor instead
//! and a line that says why.

use ds4_conformance::golden::{Golden, committed, skipped};

use crate::logits::{TOLERANCE, model, tokens_file};
use crate::program::{Ds4, Ran};

/// The GPU that the processor plays, which can be taken to lack anything.
const PLAYED: &str = "llvmpipe";

/// Runs the model on a GPU as these flags have it.
fn run(ds4: &Ds4, golden: &Golden, flags: &[&str]) -> Ran {
    let mut command = ds4.command(["logits", "--no-cache-rounding", "--chunk", "64"]);
    command
        .args(flags)
        .arg("--tokens-file")
        .arg(tokens_file(golden))
        .arg("-m")
        .arg(model(golden))
        .arg("--out")
        .arg(ds4.home().join("logits.f32"));
    Ran::of(command.output().expect("ds4 starts"))
}

fn assert_right(ds4: &Ds4, golden: &Golden, case: &str) {
    let bytes = std::fs::read(ds4.home().join("logits.f32")).expect("the logits are written");
    let (words, _) = bytes.as_chunks::<4>();
    let worst = words
        .iter()
        .map(|word| f32::from_le_bytes(*word))
        .zip(&golden.logits)
        .map(|(found, expected)| (found - expected).abs())
        .fold(0.0, f32::max);
    assert_eq!(words.len(), golden.logits.len(), "{case}");
    assert!(worst <= TOLERANCE, "{case}: largest difference {worst:e}");
}

#[test]
fn a_gpu_that_cannot_be_used_is_named_and_under_auto_the_processor_computes() {
    let ds4 = Ds4::new();
    let golden = &committed()[0];
    let unknown = run(
        &ds4,
        golden,
        &["--backend", "wgpu", "--gpu", "no such thing"],
    );
    assert_eq!(unknown.status, Some(1), "{unknown:?}");
    assert!(unknown.stderr.contains("no GPU was found"), "{unknown:?}");
    if !unknown.stderr.contains(PLAYED) {
        return skipped(&unknown.stderr);
    }
    for (lacks, says) in [
        ("immediates", "has no immediates"),
        ("lanes=128", "has 128 lanes of a workgroup"),
        (
            "workgroup-bytes=16384",
            "has 16384 bytes of workgroup memory",
        ),
        ("memory-bytes=4096", "GiB are available"),
        ("binding-bytes=16384", "binds at most 16384 bytes"),
    ] {
        let asked = |backend: &str| {
            let flags = ["--backend", backend, "--gpu", PLAYED, "--gpu-lacks", lacks];
            run(&ds4, golden, &flags)
        };
        let refused = asked("wgpu");
        assert_eq!(refused.status, Some(1), "{lacks}: {refused:?}");
        assert!(refused.stderr.contains(says), "{lacks}: {refused:?}");

        let fell_back = asked("auto");
        assert_eq!(fell_back.status, Some(0), "{lacks}: {fell_back:?}");
        let line = "running on the processor: ";
        let why = fell_back
            .stderr
            .find(line)
            .map(|at| &fell_back.stderr[at..]);
        assert!(
            why.is_some_and(|why| why.contains(says)),
            "{lacks}: {fell_back:?}"
        );
        assert_right(&ds4, golden, lacks);
    }
}

#[test]
fn features_that_a_gpu_lacks_are_done_without() {
    let ds4 = Ds4::new();
    let golden = &committed()[0];
    let lacks = "subgroups,f16,matrices,integers";
    let flags = ["--backend", "auto", "--gpu", PLAYED, "--gpu-lacks", lacks];
    let ran = run(&ds4, golden, &flags);
    assert_eq!(ran.status, Some(0), "{ran:?}");
    assert_right(&ds4, golden, lacks);
    if ran.stderr.contains("no GPU was found") {
        skipped(&ran.stderr);
    }
}

#[test]
fn what_a_gpu_may_lack_is_listed_where_a_name_is_wrong() {
    let ds4 = Ds4::new();
    let golden = &committed()[0];
    let ran = run(&ds4, golden, &["--backend", "wgpu", "--gpu-lacks", "luck"]);
    assert_eq!(ran.status, Some(1), "{ran:?}");
    assert!(
        ran.stderr.contains("\"luck\"") && ran.stderr.contains("lanes=N"),
        "{ran:?}"
    );
    let ran = run(&ds4, golden, &["--backend", "cpu", "--gpu", PLAYED]);
    assert_ne!(ran.status, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("--backend wgpu or auto"), "{ran:?}");
}
