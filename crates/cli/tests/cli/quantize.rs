//! `ds4 quantize`: from the publisher's layout and from GGUF files.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use ds4_conformance::golden::project_root;
use ds4_formats::GgmlType;
use ds4_formats::gguf::Gguf;
use ds4_formats::imatrix::{Columns, Imatrix};
use serde_json::Value;

use crate::checkpoint;
use crate::program::{Ds4, Ran};

fn small_model() -> PathBuf {
    project_root().join("models/ds4-small-q8_0.gguf")
}

/// A home with the built-in model exported to the folder `c`.
fn exported() -> (Ds4, std::collections::BTreeMap<String, Vec<f32>>) {
    let ds4 = Ds4::new();
    let experts = checkpoint::export(&ds4.home().join("c"));
    (ds4, experts)
}

fn types(gguf: &Gguf, name: &str) -> Vec<GgmlType> {
    let named = gguf.tensors().filter(|s| s.name.ends_with(name));
    named.map(|s| s.ty).collect()
}

#[track_caller]
fn answers(ds4: &Ds4, file: &str) {
    let args = [
        "-m",
        file,
        "-p",
        "What is 17 + 25?",
        "--nothink",
        "--temp",
        "0",
        "-n",
        "32",
    ];
    let ran = ds4.run(args);
    assert!(ran.answer().contains("42"), "{file}: {ran:?}");
}

#[test]
fn a_checkpoint_becomes_each_mix_and_the_engine_runs_it() {
    use GgmlType::{F16, F32, I32, IQ2_XXS, MXFP4, Q2_K, Q4_K, Q8_0};
    let (ds4, experts) = exported();
    for (mix, gate, down) in [
        ("mxfp4", [MXFP4; 2], [MXFP4; 2]),
        ("q4", [Q4_K; 2], [Q4_K; 2]),
        ("q2", [IQ2_XXS; 2], [Q2_K; 2]),
        // Of seven layers the last six.
        ("q2-q4", [IQ2_XXS, Q4_K], [Q2_K, Q4_K]),
    ] {
        let file = format!("{mix}.gguf");
        ds4.run(["quantize", "c", &file, "--mix", mix]).answer();
        ds4.run(["verify", &file]).answer();
        let gguf = Gguf::open(ds4.home().join(&file)).expect("a model");
        for (name, expected) in [
            ("ffn_gate_exps.weight", gate),
            ("ffn_down_exps.weight", down),
        ] {
            let found = types(&gguf, name);
            assert_eq!([found[0], found[6]], expected, "{mix} {name}");
        }
        for (name, expected) in [
            ("token_embd.weight", F16),
            ("output.weight", Q8_0),
            ("attn_q_b.weight", Q8_0),
            ("attn_sinks.weight", F32),
            ("tid2eid.weight", I32),
            ("ffn_gate_inp.weight", F16),
            ("hc_attn_fn.weight", F16),
        ] {
            assert!(types(&gguf, name).contains(&expected), "{mix} {name}");
        }
        if mix == "mxfp4" {
            for (name, expected) in &experts {
                let found = gguf.tensor(name).expect("a tensor").to_f32();
                assert!(found == *expected, "{name} differs");
            }
        }
        if mix != "q2" {
            answers(&ds4, &file);
        }
    }
}

#[test]
fn a_gguf_file_is_kept_or_encoded_anew_by_pattern() {
    let ds4 = Ds4::new();
    let source = small_model();
    let source = source.to_str().expect("a name");
    ds4.run(["quantize", source, "keep.gguf", "--mix", "keep"])
        .answer();
    let (a, b) = (
        Gguf::open(source).expect("a model"),
        Gguf::open(ds4.home().join("keep.gguf")).expect("a model"),
    );
    assert_eq!(a.tensors().len(), b.tensors().len());
    for spec in a.tensors() {
        let other = b.spec(&spec.name).expect("the tensor");
        assert_eq!((spec.ty, &spec.ne), (other.ty, &other.ne));
        assert!(a.data(spec)[..] == b.data(other)[..], "{}", spec.name);
    }
    let types_of = |name: &str| {
        let gguf = Gguf::open(ds4.home().join("mixed.gguf")).expect("a model");
        types(&gguf, name)
    };
    let ran = ds4.run([
        "quantize",
        source,
        "mixed.gguf",
        "--mix",
        "keep",
        "--type",
        "*_exps.weight=Q6_K",
        "--type",
        "blk.3.*=q5_k",
        "--json",
    ]);
    let report: Value = serde_json::from_str(ran.answer()).expect("JSON");
    assert_eq!(report["n_weighted"], 0);
    assert!(report["n_encoded"].as_u64() > Some(1 << 20), "{report}");
    let gate = types_of("ffn_gate_exps.weight");
    assert_eq!((gate[2], gate[3]), (GgmlType::Q6_K, GgmlType::Q5_K));
    answers(&ds4, "mixed.gguf");
}

#[test]
fn importances_are_taken_for_the_experts_that_have_them() {
    let ds4 = Ds4::new();
    let source = small_model();
    let gguf = Gguf::open(&source).expect("a model");
    let mut imatrix = Imatrix::default();
    for spec in gguf.tensors().filter(|s| s.name.contains("down_exps")) {
        let mut columns = Columns::new(spec.ne[0] as usize, spec.ne[2] as usize);
        for e in 1..spec.ne[2] as usize {
            let row: Vec<f32> = (0..spec.ne[0]).map(|i| 1.0 + (i % 7) as f32).collect();
            columns.add(e, &row);
        }
        imatrix.entries.insert(spec.name.clone(), columns);
    }
    let bytes = imatrix.to_gguf().expect("a file");
    fs::write(ds4.home().join("i.gguf"), bytes).expect("a file");
    let source = source.to_str().expect("a name");
    let with = [
        "quantize",
        source,
        "a.gguf",
        "--mix",
        "q2",
        "--imatrix",
        "i.gguf",
        "--json",
    ];
    let report: Value = serde_json::from_str(ds4.run(with).answer()).expect("JSON");
    // Of seven layers with four experts, three each.
    assert_eq!(report["n_weighted"], 7 * 3);
    assert_eq!(report["n_unweighted"], 7 * (1 + 4 + 4));
    let made = Gguf::open(ds4.home().join("a.gguf")).expect("a model");
    assert_eq!(
        made.metadata().u32("quantize.imatrix.entries_count").ok(),
        Some(7)
    );
    let name = "blk.0.ffn_down_exps.weight".to_owned();
    imatrix.entries.insert(name, Columns::new(100, 4));
    fs::write(
        ds4.home().join("i.gguf"),
        imatrix.to_gguf().expect("a file"),
    )
    .expect("a file");
    ds4.run([
        "quantize",
        source,
        "b.gguf",
        "--mix",
        "q2",
        "--imatrix",
        "i.gguf",
    ])
    .refused(&["blk.0.ffn_down_exps.weight", "another model"]);
}

#[test]
fn kills_at_random_moments_change_no_byte() {
    let ds4 = Ds4::new();
    let source = small_model();
    let args = |out: &'static str| {
        let source = source.to_str().expect("a name").to_owned();
        [
            "quantize".to_owned(),
            source,
            out.to_owned(),
            "--mix".to_owned(),
            "q2".to_owned(),
        ]
    };
    ds4.run(args("whole.gguf")).answer();
    let mut dice = 12345u64;
    for _ in 0..20 {
        let mut child = ds4
            .command(args("killed.gguf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ds4 starts");
        dice = dice
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_millis((dice >> 33) % 150));
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        if ds4.home().join("killed.gguf").exists() {
            break;
        }
    }
    if !ds4.home().join("killed.gguf").exists() {
        ds4.run(args("killed.gguf")).answer();
    }
    let read = |name: &str| fs::read(ds4.home().join(name)).expect("a file");
    assert!(read("whole.gguf") == read("killed.gguf"));
    assert!(!ds4.home().join(".killed.gguf.part").exists());
}

#[test]
fn draft_blocks_take_the_layout_of_the_support_files() {
    let (mut tensors, _) = checkpoint::tensors();
    let ds4 = Ds4::new();
    let folder = ds4.home().join("c");
    checkpoint::export(&folder);
    let layer: Vec<_> = tensors
        .iter()
        .filter(|(name, _)| name.starts_with("layers.0."))
        .map(|(name, tensor)| (name.replace("layers.0.", "mtp.0."), tensor.clone()))
        .collect();
    tensors.extend(layer);
    let norm = tensors["norm.weight"].clone();
    for name in ["enorm", "hnorm", "norm"] {
        tensors.insert(format!("mtp.0.{name}.weight"), norm.clone());
    }
    for name in ["e_proj", "h_proj"] {
        for ending in ["weight", "scale"] {
            let tensor = tensors[&format!("layers.0.attn.wq_a.{ending}")].clone();
            tensors.insert(format!("mtp.0.{name}.{ending}"), tensor);
        }
    }
    for i in 1..3 {
        fs::remove_file(folder.join(format!("model-0000{i}-of-00002.safetensors"))).expect("there");
    }
    checkpoint::write(&folder.join("model.safetensors"), &tensors);
    ds4.run(["quantize", "c", "mtp.gguf", "--mix", "q4", "--draft"])
        .answer();
    let gguf = Gguf::open(ds4.home().join("mtp.gguf")).expect("a file");
    let ty = |name: &str| gguf.spec(name).map(|s| s.ty);
    assert_eq!(ty("mtp.0.e_proj.weight"), Some(GgmlType::Q8_0));
    assert_eq!(ty("mtp.0.enorm.weight"), Some(GgmlType::F32));
    assert_eq!(ty("mtp.0.ffn_up_exps.weight"), Some(GgmlType::Q4_K));
    assert!(
        ds4.run(["inspect", "mtp.gguf"])
            .answer()
            .contains("MTP support file")
    );
    // The model is still there, too.
    ds4.run(["quantize", "c", "m.gguf", "--mix", "mxfp4"])
        .answer();
}

#[test]
fn the_stages_of_dspark_take_the_layout_of_its_support_file() {
    let (tensors, experts) = checkpoint::tensors();
    let ds4 = Ds4::new();
    let folder = ds4.home().join("c");
    checkpoint::export(&folder);
    let mut stages = checkpoint::Tensors::new();
    for stage in 0..3 {
        // A layer without compression, with the router of one that chooses by scores.
        for (name, tensor) in &tensors {
            let own = name.strip_prefix("layers.1.");
            let own = own.filter(|suffix| !suffix.contains("tid2eid"));
            let bias = name.strip_prefix("layers.3.");
            let bias = bias.filter(|suffix| *suffix == "ffn.gate.bias");
            if let Some(suffix) = own.or(bias) {
                stages.insert(format!("mtp.{stage}.{suffix}"), tensor.clone());
            }
        }
    }
    let norm = tensors["norm.weight"].clone();
    let ones = |n: usize| vec![0x3f80u16; n].into_iter().flat_map(u16::to_le_bytes);
    let (n_vocab, width) = (2048, 256);
    for (name, tensor) in [
        ("0.main_norm.weight", norm.clone()),
        ("2.norm.weight", norm),
        ("2.hc_head_fn", tensors["hc_head_fn"].clone()),
        ("2.hc_head_base", tensors["hc_head_base"].clone()),
        ("2.hc_head_scale", tensors["hc_head_scale"].clone()),
        // 0x38 is 1 in E4M3, and 127 the scale 1.
        (
            "0.main_proj.weight",
            ("F8_E4M3", vec![width, 3 * width], vec![0x38; 3 * 256 * 256]),
        ),
        ("0.main_proj.scale", ("F8_E8M0", vec![2, 6], vec![127; 12])),
        (
            "2.markov_head.markov_w1.weight",
            ("BF16", vec![n_vocab, width], ones(2048 * 256).collect()),
        ),
        (
            "2.markov_head.markov_w2.weight",
            ("BF16", vec![n_vocab, width], ones(2048 * 256).collect()),
        ),
        (
            "2.confidence_head.proj.weight",
            ("BF16", vec![1, 2 * width], ones(512).collect()),
        ),
    ] {
        stages.insert(format!("mtp.{name}"), tensor);
    }
    checkpoint::write(&folder.join("model-draft.safetensors"), &stages);
    let config = folder.join("config.json");
    let text = fs::read_to_string(&config).expect("a file");
    let mut config_json: Value = serde_json::from_str(&text).expect("JSON");
    config_json["dspark_block_size"] = 7.into();
    config_json["dspark_target_layer_ids"] = vec![1, 3, 6].into();
    fs::write(&config, config_json.to_string()).expect("a file");

    ds4.run(["quantize", "c", "d.gguf", "--mix", "q2", "--draft"])
        .answer();
    let gguf = Gguf::open(ds4.home().join("d.gguf")).expect("a file");
    // 24 tensors of each stage, and nine beside them.
    assert_eq!(gguf.tensors().count(), 3 * 24 + 9);
    let metadata = gguf.metadata();
    assert_eq!(
        metadata.str("general.architecture").expect("a name"),
        "deepseek4-dspark"
    );
    for (key, expected) in [
        ("block_size", 7),
        ("markov_rank", 256),
        ("noise_token_id", 128_799),
        ("stage_count", 3),
        ("n_layers", 3),
    ] {
        assert_eq!(metadata.u64(&format!("dspark.{key}")).expect(key), expected);
    }
    let layers = metadata.u32s("dspark.target_layer_ids").expect("a list");
    assert_eq!(layers, [1, 3, 6]);
    for (name, ty, ne) in [
        ("0.main_proj.weight", GgmlType::Q8_0, &[768, 256][..]),
        ("0.main_norm.weight", GgmlType::F32, &[256]),
        ("0.ffn_gate_inp.weight", GgmlType::Q8_0, &[256, 4]),
        ("1.exp_probs_b.bias", GgmlType::F32, &[4]),
        ("1.ffn_up_exps.weight", GgmlType::IQ2_XXS, &[256, 256, 4]),
        ("2.ffn_down_exps.weight", GgmlType::Q2_K, &[256, 256, 4]),
        ("2.hc_attn_fn.weight", GgmlType::F16, &[1024, 24]),
        ("2.hc_head_fn.weight", GgmlType::F16, &[1024, 4]),
        (
            "2.markov_head.markov_w1.weight",
            GgmlType::Q8_0,
            &[256, 2048],
        ),
        ("2.confidence_head.proj.weight", GgmlType::Q8_0, &[512, 1]),
    ] {
        let spec = gguf.spec(&format!("mtp.{name}")).expect(name);
        assert_eq!((spec.ty, &spec.ne[..]), (ty, ne), "{name}");
    }
    let proj = gguf.tensor("mtp.0.main_proj.weight").expect("a tensor");
    assert!(proj.to_f32().iter().all(|x| (x - 1.0).abs() < 1e-3));
    // An expert is what it was before its encoding, as far as 2 bits can say.
    let up = gguf.tensor("mtp.2.ffn_up_exps.weight").expect("a tensor");
    let expected = &experts["blk.1.ffn_up_exps.weight"];
    let error: f32 = up
        .to_f32()
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).powi(2))
        .sum();
    let size: f32 = expected.iter().map(|x| x * x).sum();
    assert!(error < 0.15 * size, "{error} of {size}");
    let report = ds4.run(["inspect", "d.gguf"]);
    assert!(report.answer().contains("DSpark support file"));
}

#[test]
fn what_cannot_be_made_is_refused_in_one_line() {
    let (ds4, _) = exported();
    let quantize = |args: &[&str]| -> Ran { ds4.run([&["quantize"], args].concat()) };
    let q4 = ["--mix", "q4"];
    let run = |source: &str, out: &str, more: &[&str]| {
        quantize(&[&[source, out], &q4[..], more].concat())
    };
    run("no", "o.gguf", &[]).refused(&["no"]);
    fs::create_dir(ds4.home().join("empty")).expect("a folder");
    run("empty", "o.gguf", &[]).refused(&["empty", "safetensors"]);
    run("c", "o.gguf", &["--type", "x"]).refused(&["PATTERN=TYPE"]);
    run("c", "o.gguf", &["--type", "x=Q9_Z"]).refused(&["Q9_Z", "IQ2_XXS"]);
    run("c", "o.gguf", &["--draft"]).refused(&["no draft blocks"]);
    run("c", "o.gguf", &["--imatrix", "c/config.json"]).refused(&["config.json"]);
    fs::write(ds4.home().join("there.gguf"), "x").expect("a file");
    run("c", "there.gguf", &[]).refused(&["there.gguf", "already there"]);
    run("c", "no/o.gguf", &[]).refused(&["cannot write"]);

    let shard = ds4.home().join("c/model-00002-of-00002.safetensors");
    let bytes = fs::read(&shard).expect("a file");
    fs::write(&shard, &bytes[..bytes.len() - 9]).expect("a file");
    run("c", "o.gguf", &[]).refused(&["model-00002", "cut off"]);
    fs::remove_file(&shard).expect("removed");
    run("c", "o.gguf", &[]).refused(&["the checkpoint has no tensor"]);
    fs::write(&shard, &bytes).expect("a file");
    let config = ds4.home().join("c/config.json");
    let text = fs::read_to_string(&config).expect("a file");
    fs::write(
        &config,
        text.replace("\"hidden_size\":256", "\"hidden_size\":512"),
    )
    .expect("a file");
    run("c", "o.gguf", &[]).refused(&["config.json asks for"]);
    fs::write(&config, "{}").expect("a file");
    run("c", "o.gguf", &[]).refused(&["config.json", "num_hidden_layers"]);
    fs::remove_file(&config).expect("removed");
    run("c", "o.gguf", &[]).refused(&["config.json"]);
    assert!(!ds4.home().join("o.gguf").exists());
}
