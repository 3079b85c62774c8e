//! `ds4 inspect`.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use ds4_conformance::fixtures::metadata;
use ds4_conformance::golden::project_root;
use ds4_formats::GgmlType;
use ds4_formats::gguf::{Metadata, Writer};
use ds4_model::{Component, Geometry, Requirement, WeightRole, requirements};
use serde_json::Value;

use crate::program::Ds4;

/// Writes a file of full size without its data: a header and a hole.
fn sparse(path: &Path, metadata: Metadata, tensors: &[(String, GgmlType, Vec<u64>)]) {
    let mut writer = Writer::new(metadata).expect("good metadata");
    for (name, ty, ne) in tensors {
        writer.push(name, *ty, ne).expect("a good tensor");
    }
    let mut file = File::create(path).expect("a writable folder");
    file.write_all(&writer.header()).expect("a header");
    file.set_len(writer.file_bytes()).expect("a sparse file");
}

/// The types of the published 2-bit file.
fn q2_type(need: &Requirement) -> GgmlType {
    match (need.role, need.component) {
        (WeightRole::Ids, _) => GgmlType::I32,
        _ if need.name.contains("_ape") => GgmlType::F16,
        (WeightRole::Vector, _) => GgmlType::F32,
        (_, Component::RoutedExperts) if need.name.contains("down") => GgmlType::Q2_K,
        (_, Component::RoutedExperts) => GgmlType::IQ2_XXS,
        (_, Component::Attention | Component::SharedExperts | Component::Output) => GgmlType::Q8_0,
        _ => GgmlType::F16,
    }
}

fn full_size(ds4: &Ds4) -> PathBuf {
    let path = ds4.home().join("full.gguf");
    let geometry = Geometry::flash();
    let tensors: Vec<_> = requirements(&geometry)
        .into_iter()
        .map(|need| (need.name.clone(), q2_type(&need), need.ne))
        .collect();
    sparse(&path, metadata(&geometry), &tensors);
    path
}

#[test]
fn the_published_2_bit_layout_has_the_bytes_of_the_published_file() {
    let ds4 = Ds4::new();
    let path = full_size(&ds4);
    let ran = ds4.run([Path::new("inspect"), Path::new("--json"), &path]);
    let report: Value = serde_json::from_str(ran.answer()).expect("JSON");
    assert_eq!(report["kind"], "model");
    assert_eq!(report["n_tensors"], 1328);
    assert_eq!(report["refused"], Value::Null);
    let metadata = &report["metadata"];
    assert_eq!(metadata["deepseek4.block_count"], 43, "a number");
    assert_eq!(metadata["general.architecture"], "deepseek4", "a text");
    assert!(metadata["deepseek4.attention.compress_ratios"].is_array());
    // Sums over the published tensor list, every tensor exact.
    let bytes = |name: &str| {
        let components = report["components"].as_array().expect("a list");
        let found = components.iter().find(|c| c["component"] == name);
        let found = found.unwrap_or_else(|| panic!("no component {name}"));
        found["n_bytes"].as_u64().expect("a number")
    };
    let biases = 40 * 256 * 4;
    let compressor_norms = 41 * 512 * 4;
    let index_norms = 21 * 128 * 4;
    for (name, expected) in [
        ("embedding", 1_059_061_760),
        ("output", 562_626_560),
        ("hyper-connections", 67_773_532),
        (
            "attention",
            191_627_264 + 1_533_018_112 + 95_813_632 + 2 * 1_533_018_112,
        ),
        ("compressors", 522_887_168 + compressor_norms),
        ("indexers", 451_454_976 + index_norms),
        ("router", 90_177_536 + 9_308_160 + biases),
        ("shared experts", 1_149_763_584),
        ("routed experts", 77_913_391_104),
        (
            "norms and sinks",
            1_836_288 - biases - compressor_norms - index_norms,
        ),
    ] {
        assert_eq!(bytes(name), expected, "{name}");
    }
    assert_eq!(report["total"]["n_parameters"], 284_332_240_471u64);
    let embedding_row = 2 * 4096;
    let dense = 8_801_384_796 - 1_059_061_760 - 9_308_160 + embedding_row;
    let routed = 77_913_391_104u64 / 256 * 6;
    assert_eq!(report["token"]["weight_bytes"], dense + routed);
    assert_eq!(report["token"]["scoring_from_position"], 2051);
    // 3,440 elements of bf16.
    assert_eq!(report["cache_bytes_per_token"], 6880.0);
}

#[test]
fn a_draft_block_file_is_recognised_and_not_taken_for_a_broken_model() {
    let ds4 = Ds4::new();
    let f32 = |name: &str| (name.to_owned(), GgmlType::F32, vec![64]);
    for (file, kind, tensors) in [
        (
            "mtp.gguf",
            "mtp-support",
            ["mtp.0.e_proj.weight", "mtp.0.attn_norm.weight"],
        ),
        (
            "dspark.gguf",
            "dspark-support",
            ["mtp.0.main_proj.weight", "mtp.2.attn_q_a_norm.weight"],
        ),
    ] {
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", "deepseek4-dspark");
        sparse(&ds4.home().join(file), metadata, &tensors.map(f32));
        let ran = ds4.run(["inspect", "--json", file]);
        let report: Value = serde_json::from_str(ran.answer()).expect("JSON");
        assert_eq!(report["kind"], kind);
        let components = report["components"].to_string();
        assert!(components.contains("norms and sinks"), "{components}");
        assert!(components.contains("draft head"), "{components}");
        assert!(ds4.run(["inspect", file]).answer().contains("support file"));
    }
}

#[test]
fn tables_name_what_the_file_holds_and_what_it_costs() {
    let ds4 = Ds4::new();
    let model = project_root().join("testdata/forward/hca-first/model.gguf");
    let model = model.to_str().expect("a readable path");
    let ran = ds4.run(["inspect", model, "--tensors", "--bandwidth", "100"]);
    let text = ran.answer();
    for words in [
        "general.architecture",
        "array of 5 i32 [128, 4, 0, 128, 4]",
        "blk.3.attn_compressor_kv.weight",
        "routed experts",
        "what a decoded token reads",
        "at 100 GB/s at least",
        "bytes of cache for every token",
        "tokens",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    let short = ds4.run(["inspect", model]);
    assert!(!short.answer().contains("blk.3.attn_compressor_kv.weight"));
    assert!(
        !short.answer().contains("GB/s"),
        "no time is given for a bandwidth that nobody measured"
    );
}

#[test]
fn names_in_a_file_are_no_commands_to_the_terminal() {
    let ds4 = Ds4::new();
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "\x1b[2J");
    metadata.insert("a\x1b]0;title\x07", "b\x1bc");
    let tensor = ("t\x1b[31m".to_owned(), GgmlType::F32, vec![1]);
    sparse(&ds4.home().join("bad.gguf"), metadata, &[tensor]);
    let ran = ds4.run(["inspect", "--tensors", "bad.gguf"]);
    ran.refused(&["bad.gguf", "general.architecture"]);
    assert!(ran.stdout.contains("t\u{fffd}[31m"), "{}", ran.stdout);
    assert!(!ran.stdout.contains(['\x1b', '\x07']), "{:?}", ran.stdout);
    assert!(!ran.stderr.contains('\x1b'), "{:?}", ran.stderr);
}
