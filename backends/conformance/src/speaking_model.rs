//! A random model that reads and writes text: every byte is a token, and so are the markers of
//! the chat protocol. It says nothing that makes sense, in every way a real model can.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use crate::fixtures::{Random, id_tensor, metadata, random_tensor};
use ds4_formats::gguf::write_tensors;
use ds4_formats::{GgmlType, Tensor};
use ds4_model::{Geometry, LayerKind, WeightRole, requirements};

const MARKERS: [&str; 7] = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "｜DSML｜",
];

/// Tokens of the vocabulary.
pub const N_VOCAB: usize = 256 + MARKERS.len();

/// Writes the model into a folder.
pub fn write(folder: &Path) -> PathBuf {
    let path = folder.join("speaking.gguf");
    let geometry = geometry(
        N_VOCAB,
        vec![LayerKind::Sliding, LayerKind::Csa, LayerKind::Hca],
    );
    let mut metadata = metadata(&geometry);
    let (tokens, types) = vocabulary();
    metadata.insert("general.name", "a random speaker");
    metadata.insert("tokenizer.ggml.model", "gpt2");
    metadata.insert("tokenizer.ggml.pre", "joyai-llm");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", types);
    metadata.insert("tokenizer.ggml.merges", Vec::<String>::new());

    let tensors = weights(&geometry, |_| 0.2);
    let file = BufWriter::new(File::create(&path).expect("a writable folder"));
    write_tensors(file, metadata, &tensors).expect("the model is written");
    path
}

/// Its vocabulary: the texts of the tokens and their types, as GGUF files have them.
pub fn vocabulary() -> (Vec<String>, Vec<i32>) {
    let mut tokens: Vec<String> = byte_characters().map(String::from).to_vec();
    tokens.extend(MARKERS.map(str::to_owned));
    let types = (0..N_VOCAB).map(|i| if i < 256 { 1 } else { 3 });
    (tokens, types.collect())
}

/// A geometry as small as can be, of so many tokens and these layers, the first of which routes
/// by the token.
pub fn geometry(n_vocab: usize, layers: Vec<LayerKind>) -> Geometry {
    Geometry {
        n_vocab,
        n_embd: 32,
        n_heads: 2,
        head_dim: 64,
        rope_dim: 32,
        q_rank: 32,
        n_out_groups: 1,
        out_rank: 32,
        window: 16,
        n_index_heads: 2,
        index_dim: 32,
        index_top_k: 8,
        n_experts: 4,
        n_experts_used: 2,
        expert_dim: 32,
        n_hash_layers: 1,
        expert_clamp: vec![10.0; layers.len()],
        shared_clamp: vec![10.0; layers.len()],
        max_context: 4096,
        layers,
        ..Geometry::flash()
    }
}

/// Random weights of a geometry: entries of vectors of about 1, those of matrices of about
/// `scale` of their name, and experts for tokens in turn.
pub fn weights(geometry: &Geometry, scale: impl Fn(&str) -> f32) -> Vec<Tensor> {
    let mut random = Random(5);
    let needs = requirements(geometry);
    let tensors = needs.iter().map(|need| {
        let ne: Vec<usize> = need.ne.iter().map(|n| *n as usize).collect();
        match need.role {
            WeightRole::Ids => {
                let n = ne.iter().product();
                let ids: Vec<u32> = (0..n)
                    .map(|i: usize| (i % geometry.n_experts) as u32)
                    .collect();
                id_tensor(&need.name, &ne, &ids)
            }
            WeightRole::Vector => random_tensor(&need.name, GgmlType::F32, &ne, 1.0, &mut random),
            _ => {
                let scale = scale(&need.name);
                random_tensor(&need.name, GgmlType::F16, &ne, scale, &mut random)
            }
        }
    });
    tensors.collect()
}

/// The characters by which vocabularies write bytes: printable Latin-1 as itself, the others from
/// U+0100 on.
fn byte_characters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let code = match byte as u32 {
            printable @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => printable,
            _ => {
                next += 1;
                next - 1
            }
        };
        char::from_u32(code).expect("below the surrogates")
    })
}
