//! The published files of the full model: sparse files with the real tensor
//! table and the real size open and validate.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use ds4_conformance::fixtures::metadata;
use ds4_conformance::golden::shared;
use ds4_engine::{Engine, OpenError, OpenOptions};
use ds4_formats::GgmlType;
use ds4_formats::gguf::{Gguf, Metadata, Writer};
use ds4_model::{Component, Geometry, Requirement, WeightRole, requirements};

/// A published recipe: the types of its routed experts and the bytes of its
/// tensors, each padded to 32.
struct Layout {
    name: &'static str,
    experts: fn(layer: usize, down: bool) -> GgmlType,
    data_bytes: u64,
}

const LAYOUTS: [Layout; 4] = [
    Layout {
        name: "q2",
        experts: |_, down| q2(down),
        data_bytes: 86_714_777_664,
    },
    Layout {
        name: "q2-q4",
        experts: |layer, down| {
            if layer >= 37 {
                GgmlType::Q4_K
            } else {
                q2(down)
            }
        },
        data_bytes: 97_586_413_632,
    },
    Layout {
        name: "q4",
        experts: |_, _| GgmlType::Q4_K,
        data_bytes: 164_628_168_768,
    },
    Layout {
        name: "mxfp4",
        experts: |_, _| GgmlType::MXFP4,
        data_bytes: 155_971_125_312,
    },
];

fn q2(down: bool) -> GgmlType {
    if down {
        GgmlType::Q2_K
    } else {
        GgmlType::IQ2_XXS
    }
}

/// The type of a tensor in the published files, by what it is.
fn published_type(layout: &Layout, need: &Requirement) -> GgmlType {
    use Component::*;
    match (need.component, need.role) {
        (RoutedExperts, _) => {
            let layer = need.name.split('.').nth(1).and_then(|n| n.parse().ok());
            (layout.experts)(layer.expect("a layer"), need.name.contains("down"))
        }
        (_, WeightRole::Ids) => GgmlType::I32,
        (Compressors | Indexers, _) if need.name.contains("_ape") => GgmlType::F16,
        (_, WeightRole::Vector) => GgmlType::F32,
        (Attention | SharedExperts | Output, _) => GgmlType::Q8_0,
        _ => GgmlType::F16,
    }
}

/// A vocabulary of the real size: the real one when the shared data folder is
/// there, else one with the protocol's tokens and filler.
fn put_tokenizer(metadata: &mut Metadata, n_vocab: usize) {
    let protocol = [
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<think>",
        "</think>",
        "｜DSML｜",
    ];
    let mut tokens = vec![String::new(); n_vocab];
    let mut types = vec![1i32; n_vocab];
    let mut merges = Vec::new();
    let real = shared().map(|folder| folder.join("data/tokenizer/tokenizer.json"));
    if let Some(text) = real.and_then(|path| std::fs::read_to_string(path).ok()) {
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        for (text, id) in json["model"]["vocab"].as_object().expect("a vocabulary") {
            tokens[id.as_u64().expect("an id") as usize] = text.clone();
        }
        for added in json["added_tokens"].as_array().expect("added tokens") {
            let id = added["id"].as_u64().expect("an id") as usize;
            tokens[id] = added["content"].as_str().expect("text").to_owned();
            types[id] = if added["special"] == true { 3 } else { 4 };
        }
        merges.extend(
            json["model"]["merges"]
                .as_array()
                .expect("merges")
                .iter()
                .map(|merge| match merge {
                    serde_json::Value::Array(pair) => format!(
                        "{} {}",
                        pair[0].as_str().expect("text"),
                        pair[1].as_str().expect("text")
                    ),
                    merge => merge.as_str().expect("text").to_owned(),
                }),
        );
    } else {
        // The printable characters that stand for bytes, then filler.
        let bytes = (33u32..127).chain(161..173).chain(174..256).chain(256..324);
        for (token, c) in tokens.iter_mut().zip(bytes) {
            *token = char::from_u32(c).expect("a character").to_string();
        }
        for (i, token) in tokens.iter_mut().enumerate().skip(256) {
            *token = format!("<filler{i}>");
        }
        for (i, text) in protocol.iter().enumerate() {
            tokens[n_vocab - 1 - i] = (*text).to_owned();
            types[n_vocab - 1 - i] = 3;
        }
    }
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", "joyai-llm");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", merges);
    metadata.insert("tokenizer.ggml.bos_token_id", 0u32);
    metadata.insert("tokenizer.ggml.eos_token_id", 1u32);
}

/// A sparse file that is removed when the test ends.
struct Sparse(PathBuf);

impl Sparse {
    fn new(name: &str, writer: &Writer) -> Sparse {
        let path =
            std::env::temp_dir().join(format!("ds4-layout-{name}-{}.gguf", std::process::id()));
        let mut file = File::create(&path).expect("a temporary file");
        file.write_all(&writer.header()).expect("written");
        file.set_len(writer.file_bytes()).expect("a sparse file");
        Sparse(path)
    }
}

impl Drop for Sparse {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn writer(layout: &Layout, extra: &[(&str, GgmlType, &[u64])]) -> Writer {
    let geometry = Geometry::flash();
    let mut metadata = metadata(&geometry);
    put_tokenizer(&mut metadata, geometry.n_vocab);
    let mut writer = Writer::new(metadata).expect("metadata");
    for need in requirements(&geometry) {
        let ty = published_type(layout, &need);
        writer.push(&need.name, ty, &need.ne).expect("a tensor");
    }
    for (name, ty, ne) in extra {
        writer.push(name, *ty, ne).expect("a tensor");
    }
    writer
}

fn open(path: &PathBuf) -> Result<Engine, OpenError> {
    let mut options = OpenOptions::new(path);
    options.context = Some(1024);
    options.chunk = Some(8);
    Engine::open(&options, &mut |_| {})
}

#[test]
fn the_published_layouts_open_and_validate() {
    for layout in &LAYOUTS {
        let writer = writer(layout, &[]);
        let data_bytes: u64 = writer
            .tensors()
            .iter()
            .map(|t| t.n_bytes.next_multiple_of(32))
            .sum();
        assert_eq!(data_bytes, layout.data_bytes, "{}", layout.name);
        let file = Sparse::new(layout.name, &writer);
        let gguf = Gguf::open(&file.0).expect("the table is valid");
        assert_eq!(gguf.tensors().len(), 1328, "{}", layout.name);
        assert_eq!(
            Geometry::from_metadata(gguf.metadata()).unwrap(),
            Geometry::flash()
        );
        let engine = open(&file.0).unwrap_or_else(|e| panic!("{}: {e}", layout.name));
        assert_eq!(engine.geometry().layers.len(), 43);
        assert_eq!(engine.tokenizer().expect("a tokenizer").n_vocab(), 129_280);
        assert!(engine.plan().weights_bytes <= layout.data_bytes);
    }
}

#[test]
fn a_file_that_carries_a_draft_block_opens() {
    let extra: &[(&str, GgmlType, &[u64])] = &[
        ("mtp.0.e_proj.weight", GgmlType::Q8_0, &[4096, 4096]),
        ("mtp.0.enorm.weight", GgmlType::F32, &[4096]),
        ("dspark.0.main_proj.weight", GgmlType::Q8_0, &[12288, 4096]),
        ("blk.43.nextn.eh_proj.weight", GgmlType::Q8_0, &[8192, 4096]),
    ];
    let file = Sparse::new("draft", &writer(&LAYOUTS[0], extra));
    open(&file.0).expect("tensors that the network does not need are left alone");
}

#[test]
fn a_draft_support_file_is_refused_by_what_it_is() {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "deepseek4-dspark");
    let writer = Writer::new(metadata).expect("metadata");
    let file = Sparse::new("support", &writer);
    let error = open(&file.0).expect_err("not a model").to_string();
    assert!(error.contains("draft-block support file"), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn missing_misshapen_and_pruned_tensors_are_named() {
    let layout = &LAYOUTS[0];
    let geometry = Geometry::flash();
    type Change = fn(&mut Requirement) -> bool;
    let cases: [(&str, Change, &str); 3] = [
        (
            "missing",
            |n| n.name != "blk.7.attn_kv.weight",
            "blk.7.attn_kv.weight is missing",
        ),
        (
            "misshapen",
            |n| {
                if n.name == "blk.3.attn_q_a.weight" {
                    n.ne[1] = 1025;
                }
                true
            },
            "blk.3.attn_q_a.weight has shape [4096, 1025], expected [4096, 1024]",
        ),
        (
            "pruned",
            |n| {
                if n.name == "blk.9.ffn_up_exps.weight" {
                    n.ne[2] = 200;
                }
                true
            },
            "pruned experts",
        ),
    ];
    for (name, change, expected) in cases {
        let mut writer = Writer::new(metadata(&geometry)).expect("metadata");
        for mut need in requirements(&geometry) {
            let ty = published_type(layout, &need);
            if change(&mut need) {
                writer.push(&need.name, ty, &need.ne).expect("a tensor");
            }
        }
        let file = Sparse::new(name, &writer);
        let error = open(&file.0).expect_err(name).to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
