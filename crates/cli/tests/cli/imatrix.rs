//! `ds4 imatrix`: what is counted, and going on.

use std::fs;

use ds4_conformance::golden::project_root;
use ds4_formats::gguf::Gguf;
use ds4_formats::imatrix::Imatrix;
use serde_json::Value;

use crate::program::Ds4;

#[test]
fn every_matrix_is_counted_and_a_second_run_goes_on() {
    let ds4 = Ds4::new();
    let text = "What is 17 + 25? The sum is 42. ds4 inspect shows what a file holds.\n".repeat(40);
    fs::write(ds4.home().join("t.txt"), text).expect("a file");
    let run = |out: &str, chunks: &str| {
        let args = [
            "imatrix",
            "t.txt",
            out,
            "--chunk-tokens",
            "64",
            "--chunks",
            chunks,
            "--json",
        ];
        let ran = ds4.run(args);
        serde_json::from_str::<Value>(ran.answer()).expect("JSON")
    };
    let report = run("once.gguf", "6");
    assert_eq!(
        (&report["n_chunks"], &report["n_kept"]),
        (&6.into(), &0.into())
    );
    run("twice.gguf", "2");
    assert_eq!(run("twice.gguf", "6")["n_kept"], 2);
    let read = |name: &str| fs::read(ds4.home().join(name)).expect("a file");
    assert!(read("once.gguf") == read("twice.gguf"), "the same counts");

    let imatrix = Imatrix::open(&ds4.home().join("once.gguf")).expect("an importance matrix");
    let model = project_root().join("models/ds4-small-q8_0.gguf");
    let model = Gguf::open(model).expect("a model");
    let n_tokens = 6.0 * 64.0;
    let mut n_found = 0;
    for spec in model
        .tensors()
        .filter(|s| s.name.starts_with("blk.") && s.ne.len() > 1)
    {
        if spec.name.contains("hc_") || spec.name.contains("_ape") || spec.name.contains("tid2eid")
        {
            continue;
        }
        let n_experts = spec.ne.get(2).map_or(1, |n| *n as usize);
        let columns = imatrix
            .for_tensor(&spec.name, spec.ne[0] as usize, n_experts)
            .expect("the tensor's shape")
            .unwrap_or_else(|| panic!("{} was not counted", spec.name));
        let counted: f32 = columns.counts.iter().sum();
        let times = match spec.name.as_str() {
            name if name.contains("_exps") => 2.0,
            // One for each group of heads.
            name if name.contains("attn_output_a") => 2.0,
            _ => 1.0,
        };
        assert_eq!(counted, times * n_tokens, "{}", spec.name);
        assert!(
            columns.sums.iter().all(|s| s.is_finite() && *s >= 0.0),
            "{}",
            spec.name
        );
        assert!(columns.sums.iter().any(|s| *s > 0.0), "{}", spec.name);
        n_found += 1;
    }
    assert!(n_found > 90, "{n_found}");
    // Gate and up of an expert are given the same.
    let of = |name: &str| imatrix.entries[name].clone();
    assert_eq!(
        of("blk.3.ffn_gate_exps.weight"),
        of("blk.3.ffn_up_exps.weight")
    );
    assert_ne!(
        of("blk.3.ffn_gate_exps.weight"),
        of("blk.4.ffn_gate_exps.weight")
    );

    let other = ["imatrix", "t.txt", "once.gguf", "--chunk-tokens", "32"];
    ds4.run(other)
        .refused(&["once.gguf", "already there", "64 tokens"]);
    fs::write(ds4.home().join("short.txt"), "Hello").expect("a file");
    ds4.run(["imatrix", "short.txt", "o.gguf"])
        .refused(&["short.txt", "--chunk-tokens"]);
}

#[test]
fn importances_from_a_text_make_fewer_errors_on_it() {
    let ds4 = Ds4::new();
    let text = fs::read_to_string(project_root().join("LICENSE-APACHE")).expect("a text");
    fs::write(ds4.home().join("t.txt"), text).expect("a file");
    ds4.run([
        "imatrix",
        "t.txt",
        "i.gguf",
        "--chunk-tokens",
        "256",
        "--chunks",
        "8",
    ])
    .answer();
    let model = project_root().join("models/ds4-small-q8_0.gguf");
    let model = model.to_str().expect("a name");
    let types = ["--mix", "keep", "--type", "*_exps.weight=IQ2_XXS"];
    ds4.run([&["quantize", model, "a.gguf"], &types[..]].concat())
        .answer();
    ds4.run(
        [
            &["quantize", model, "b.gguf", "--imatrix", "i.gguf"],
            &types[..],
        ]
        .concat(),
    )
    .answer();
    let imatrix = Imatrix::open(&ds4.home().join("i.gguf")).expect("an importance matrix");
    let open = |path: &str| Gguf::open(ds4.home().join(path)).expect("a model");
    let (source, without, with) = (
        Gguf::open(model).expect("a model"),
        open("a.gguf"),
        open("b.gguf"),
    );
    let error = |of: &Gguf| {
        let mut sum = 0.0;
        for spec in source.tensors().filter(|s| s.name.contains("_exps")) {
            let columns = &imatrix.entries[&spec.name];
            let x = source.tensor(&spec.name).expect("a tensor").to_f32();
            let y = of.tensor(&spec.name).expect("a tensor").to_f32();
            let width = spec.ne[0] as usize;
            let per_expert = width * spec.ne[1] as usize;
            for (i, (x, y)) in x.iter().zip(&y).enumerate() {
                let column = i / per_expert * width + i % width;
                sum += f64::from(columns.sums[column]) * f64::from(x - y).powi(2);
            }
        }
        sum
    };
    assert!(
        error(&with) < 0.95 * error(&without),
        "{} {}",
        error(&with),
        error(&without)
    );
}
