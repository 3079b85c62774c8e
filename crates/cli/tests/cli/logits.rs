//! `ds4 logits` against the logits of independent implementations.

use ds4_conformance::golden::{Golden, committed, project_root};
use std::path::PathBuf;

use crate::program::{Ds4, Ran};

/// README.md of testdata/forward: transformers against itself stays within 1e-5, and the largest
/// mistake that is hard to see moves a logit by 2.9e-4 only where it is not the one looked for.
pub(crate) const TOLERANCE: f32 = 1e-3;

pub(crate) fn model(golden: &Golden) -> PathBuf {
    let folder = project_root().join("testdata/forward");
    folder.join(&golden.name).join("model.gguf")
}

pub(crate) fn tokens_file(golden: &Golden) -> PathBuf {
    model(golden).with_file_name("tokens.json")
}

#[test]
fn every_backend_and_every_split_gives_the_logits_of_an_independent_implementation() {
    let ds4 = Ds4::new();
    for golden in committed() {
        let n_vocab = golden.logits.len() / golden.tokens.len();
        for backend in ["cpu", "reference"] {
            for chunk in ["1", "7", "128", "5,1,64,3"] {
                let case = format!("{} on {backend} in chunks of {chunk}", golden.name);
                let out = ds4.home().join("logits.f32");
                let mut command = ds4.command(["logits", "--no-cache-rounding"]);
                command
                    .args(["--backend", backend, "--chunk", chunk, "--tokens-file"])
                    .arg(tokens_file(&golden))
                    .arg("-m")
                    .arg(model(&golden))
                    .arg("--out")
                    .arg(&out);
                let ran = Ran::of(command.output().expect("ds4 starts"));
                let argmax = ran.answer();
                assert_eq!(
                    ran.stderr, "",
                    "{case}: nothing is said when nobody watches"
                );

                let bytes = std::fs::read(&out).expect("the logits are written");
                assert_eq!(bytes.len(), golden.logits.len() * 4, "{case}");
                let (words, _) = bytes.as_chunks::<4>();
                let logits: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
                let worst = logits
                    .iter()
                    .zip(&golden.logits)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                assert!(worst <= TOLERANCE, "{case}: largest difference {worst:e}");
                let expected: Vec<String> = golden
                    .logits
                    .chunks_exact(n_vocab)
                    .map(|row| {
                        let best = (0..n_vocab).max_by(|a, b| row[*a].total_cmp(&row[*b]));
                        best.expect("a vocabulary").to_string()
                    })
                    .collect();
                assert_eq!(argmax.trim_end(), expected.join(","), "{case}");
            }
        }
    }
}

#[test]
fn cache_rounding_changes_logits_and_keeps_their_number() {
    let ds4 = Ds4::new();
    let golden = &committed()[0];
    let n_tokens = golden.tokens.len();
    let out = ds4.home().join("logits.f32");
    let mut command = ds4.command(["logits", "--tokens-file"]);
    command
        .arg(tokens_file(golden))
        .arg("-m")
        .arg(model(golden));
    command.arg("--out").arg(&out);
    let ran = Ran::of(command.output().expect("ds4 starts"));
    assert_eq!(ran.answer().trim_end().split(',').count(), n_tokens);
    let bytes = std::fs::read(&out).expect("the logits are written");
    assert_eq!(bytes.len(), golden.logits.len() * 4);
    let unrounded: Vec<u8> = golden.logits.iter().flat_map(|l| l.to_le_bytes()).collect();
    assert_ne!(bytes, unrounded);
}

#[test]
fn tokens_on_the_command_line_and_in_a_file_are_the_same_tokens() {
    let ds4 = Ds4::new();
    let golden = &committed()[0];
    std::fs::write(ds4.home().join("ids"), "3 1\n4, 1,5").expect("a writable home");
    let mut answers = Vec::new();
    for tokens in [["--tokens", "3,1,4,1,5"], ["--tokens-file", "ids"]] {
        let mut command = ds4.command(["logits", "--out", "logits.f32", "-m"]);
        command.arg(model(golden)).args(tokens);
        let ran = Ran::of(command.output().expect("ds4 starts"));
        answers.push(ran.answer().to_owned());
    }
    assert_eq!(answers[0], answers[1]);
}

/// `ds4 logits` on the first model after its file was changed.
fn after(change: impl FnOnce(&mut [u8])) -> (Ds4, Ran) {
    let ds4 = Ds4::new();
    let golden = &committed()[0];
    let mut bytes = std::fs::read(model(golden)).expect("a model");
    change(&mut bytes);
    std::fs::write(ds4.home().join("m.gguf"), bytes).expect("a writable home");
    let ran = ds4
        .run("logits -m m.gguf --chunk 2 --out logits.f32 --tokens 3,1,4,1,5".split_whitespace());
    (ds4, ran)
}

#[test]
fn absurd_numbers_in_a_files_metadata_are_refused_at_the_door() {
    for (key, number, expected) in [
        (
            "attention.layer_norm_rms_epsilon",
            1e38,
            "from 1e-30 to 1e-1",
        ),
        ("hyper_connection.epsilon", 1e38, "from 1e-30 to 1e-1"),
        ("rope.freq_base", 1e-30, "from 1e0 to 1e12"),
        (
            "attention.compress_rope_freq_base",
            f32::MAX,
            "from 1e0 to 1e12",
        ),
        ("rope.scaling.factor", 1e-30, "from 1e0 to 1e6"),
        ("rope.scaling.yarn_beta_fast", 1e30, "from 1e-6 to 1e6"),
        ("expert_weights_scale", f32::NAN, "from 1e-6 to 1e6"),
    ] {
        let (_, ran) = after(|bytes| {
            let name = format!("deepseek4.{key}");
            let at = bytes.windows(name.len()).position(|w| w == name.as_bytes());
            // The type of a value stands before it.
            let at = at.expect("the key") + name.len() + 4;
            bytes[at..at + 4].copy_from_slice(&f32::to_le_bytes(number));
        });
        ran.refused(&[key, &format!("{number:e}"), expected]);
    }
}

#[test]
fn logits_that_are_no_numbers_end_with_an_error_that_says_behind_which_token() {
    let golden = &committed()[0];
    let mut tensors = golden.gguf.tensors();
    let norm = tensors.find(|spec| spec.name == "output_norm.weight");
    let at = norm.expect("it is there").offset as usize;
    let (ds4, ran) = after(|bytes| {
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    ran.refused(&["index 0", "not finite numbers", "ds4 verify"]);
    let written = std::fs::read(ds4.home().join("logits.f32")).expect("a file");
    assert_eq!(written, [0; 0]);
}
