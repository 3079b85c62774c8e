//! The built-in model in the publisher's layout: experts in FP4, dense matrices in FP8, the rest in
//! BF16 and F32.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ds4_conformance::golden::project_root;
use ds4_formats::Tensor;
use ds4_formats::gguf::{Gguf, Value};
use ds4_formats::small_float::{
    bf16_from_f32, e2m1_to_f32, f32_to_e2m1, f32_to_e4m3, f32_to_ue8m0_ceil, ue8m0_to_f32,
};
use serde_json::{Value as Json, json};

/// GGUF's names, the checkpoint's, and how they are kept there.
const NAMES: &[(&str, &str, &str)] = &[
    ("attn_norm", "attn_norm.weight", "bf16"),
    ("ffn_norm", "ffn_norm.weight", "bf16"),
    ("hc_attn_fn", "hc_attn_fn", "f32"),
    ("hc_attn_base", "hc_attn_base", "f32"),
    ("hc_attn_scale", "hc_attn_scale", "f32"),
    ("hc_ffn_fn", "hc_ffn_fn", "f32"),
    ("hc_ffn_base", "hc_ffn_base", "f32"),
    ("hc_ffn_scale", "hc_ffn_scale", "f32"),
    ("attn_q_a", "attn.wq_a", "fp8"),
    ("attn_q_a_norm", "attn.q_norm.weight", "bf16"),
    ("attn_q_b", "attn.wq_b", "fp8"),
    ("attn_kv", "attn.wkv", "fp8"),
    ("attn_kv_a_norm", "attn.kv_norm.weight", "bf16"),
    ("attn_sinks", "attn.attn_sink", "f32"),
    ("attn_output_a", "attn.wo_a", "fp8"),
    ("attn_output_b", "attn.wo_b", "fp8"),
    ("attn_compressor_kv", "attn.compressor.wkv.weight", "bf16"),
    (
        "attn_compressor_gate",
        "attn.compressor.wgate.weight",
        "bf16",
    ),
    ("attn_compressor_ape", "attn.compressor.ape", "f32"),
    (
        "attn_compressor_norm",
        "attn.compressor.norm.weight",
        "bf16",
    ),
    ("indexer.attn_q_b", "attn.indexer.wq_b", "fp8"),
    ("indexer.proj", "attn.indexer.weights_proj.weight", "bf16"),
    (
        "indexer_compressor_kv",
        "attn.indexer.compressor.wkv.weight",
        "bf16",
    ),
    (
        "indexer_compressor_gate",
        "attn.indexer.compressor.wgate.weight",
        "bf16",
    ),
    (
        "indexer_compressor_ape",
        "attn.indexer.compressor.ape",
        "f32",
    ),
    (
        "indexer_compressor_norm",
        "attn.indexer.compressor.norm.weight",
        "bf16",
    ),
    ("ffn_gate_inp", "ffn.gate.weight", "bf16"),
    ("exp_probs_b.bias", "ffn.gate.bias", "f32"),
    ("ffn_gate_tid2eid", "ffn.gate.tid2eid", "i64"),
    ("ffn_gate_exps", "ffn.experts.{}.w1", "fp4"),
    ("ffn_up_exps", "ffn.experts.{}.w3", "fp4"),
    ("ffn_down_exps", "ffn.experts.{}.w2", "fp4"),
    ("ffn_gate_shexp", "ffn.shared_experts.w1", "fp8"),
    ("ffn_up_shexp", "ffn.shared_experts.w3", "fp8"),
    ("ffn_down_shexp", "ffn.shared_experts.w2", "fp8"),
    ("token_embd", "embed.weight", "bf16"),
    ("output", "head.weight", "bf16"),
    ("output_norm", "norm.weight", "bf16"),
    ("output_hc_fn", "hc_head_fn", "f32"),
    ("output_hc_base", "hc_head_base", "f32"),
    ("output_hc_scale", "hc_head_scale", "f32"),
];

/// The tensors of a safetensors file: type, shape and bytes by name.
pub(crate) type Tensors = BTreeMap<String, (&'static str, Vec<u64>, Vec<u8>)>;

/// Writes a safetensors file.
pub(crate) fn write(path: &Path, tensors: &Tensors) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::<u8>::new();
    for (name, (dtype, shape, bytes)) in tensors {
        let start = data.len();
        data.extend(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = serde_json::to_string(&Json::Object(header)).expect("JSON");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    fs::write(path, bytes).expect("a file");
}

/// The tensors of the built-in model, and what its experts' matrices are after rounding to FP4.
pub(crate) fn tensors() -> (Tensors, BTreeMap<String, Vec<f32>>) {
    let gguf = Gguf::open(project_root().join("models/ds4-small-q8_0.gguf")).expect("a model");
    let mut out = Tensors::new();
    let mut experts = BTreeMap::new();
    for spec in gguf.tensors() {
        let tensor = gguf.tensor(&spec.name).expect("a tensor");
        let stem = spec.name.trim_end_matches(".weight");
        let (prefix, stem) = match stem.strip_prefix("blk.") {
            Some(rest) => {
                let (layer, stem) = rest.split_once('.').expect("a layer");
                (format!("layers.{layer}."), stem)
            }
            None => (String::new(), stem),
        };
        let (_, other, kind) = NAMES.iter().find(|(n, ..)| *n == stem).expect("a name");
        let name = format!("{prefix}{other}");
        match *kind {
            "fp4" => {
                let rounded = put_experts(&mut out, &name, &tensor);
                experts.insert(spec.name.clone(), rounded);
            }
            kind => put(&mut out, &name, &tensor, kind),
        }
    }
    (out, experts)
}

fn put(out: &mut Tensors, name: &str, tensor: &Tensor, kind: &str) {
    let shape: Vec<u64> = tensor.ne.iter().rev().copied().collect();
    let x = tensor.to_f32();
    let entry = match kind {
        "f32" => ("F32", x.iter().flat_map(|x| x.to_le_bytes()).collect()),
        "bf16" => {
            let words = x.iter().flat_map(|x| bf16_from_f32(*x).to_le_bytes());
            ("BF16", words.collect())
        }
        "i64" => {
            let ids = tensor.to_i32().expect("a table");
            (
                "I64",
                ids.iter()
                    .flat_map(|id| i64::from(*id).to_le_bytes())
                    .collect(),
            )
        }
        "fp8" => {
            let (n_out, n_in) = (shape[0] as usize, shape[1] as usize);
            let (bands, columns) = (n_out.div_ceil(128), n_in.div_ceil(128));
            let mut largest = vec![0.0f32; bands * columns];
            let block = |i: usize| i / n_in / 128 * columns + i % n_in / 128;
            for (i, x) in x.iter().enumerate() {
                largest[block(i)] = largest[block(i)].max(x.abs());
            }
            let scales: Vec<u8> = largest
                .iter()
                .map(|a| f32_to_ue8m0_ceil(a / 448.0))
                .collect();
            let code = |(i, x): (usize, &f32)| f32_to_e4m3(x / ue8m0_to_f32(scales[block(i)]));
            let codes = x.iter().enumerate().map(code).collect();
            let shape_of_scales = vec![bands as u64, columns as u64];
            out.insert(
                format!("{name}.scale"),
                ("F8_E8M0", shape_of_scales, scales),
            );
            out.insert(format!("{name}.weight"), ("F8_E4M3", shape, codes));
            return;
        }
        other => panic!("{other}"),
    };
    out.insert(name.to_owned(), (entry.0, shape, entry.1));
}

fn put_experts(out: &mut Tensors, name: &str, tensor: &Tensor) -> Vec<f32> {
    let (n_in, n_out) = (tensor.ne[0], tensor.ne[1]);
    let x = tensor.to_f32();
    let mut rounded = Vec::with_capacity(x.len());
    for (e, x) in x.chunks((n_in * n_out) as usize).enumerate() {
        let (mut scales, mut bytes) = (Vec::new(), Vec::new());
        for block in x.chunks(32) {
            let largest = block.iter().fold(0.0f32, |a, x| a.max(x.abs()));
            let scale = f32_to_ue8m0_ceil(largest / 6.0);
            scales.push(scale);
            let codes = block.iter().map(|x| f32_to_e2m1(x / ue8m0_to_f32(scale)));
            let codes: Vec<u8> = codes.collect();
            bytes.extend(codes.chunks(2).map(|pair| pair[0] | (pair[1] << 4)));
            rounded.extend(codes.iter().map(|c| e2m1_to_f32(*c) * ue8m0_to_f32(scale)));
        }
        let name = name.replace("{}", &e.to_string());
        out.insert(
            format!("{name}.scale"),
            ("F8_E8M0", vec![n_out, n_in / 32], scales),
        );
        out.insert(
            format!("{name}.weight"),
            ("I8", vec![n_out, n_in / 2], bytes),
        );
    }
    rounded
}

/// Writes the folder: two files of tensors, `config.json`, `tokenizer.json`.
pub(crate) fn export(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    fs::create_dir_all(folder).expect("a folder");
    let (tensors, experts) = tensors();
    let (mut first, mut second) = (Tensors::new(), Tensors::new());
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        let half = if i % 2 == 0 { &mut first } else { &mut second };
        half.insert(name, tensor);
    }
    write(&folder.join("model-00001-of-00002.safetensors"), &first);
    write(&folder.join("model-00002-of-00002.safetensors"), &second);
    fs::write(folder.join("config.json"), config().to_string()).expect("a file");
    let tokenizer = project_root().join("models/train/tokenizer.json");
    fs::copy(tokenizer, folder.join("tokenizer.json")).expect("a copy");
    experts
}

/// The configuration, as the publisher writes it.
fn config() -> Json {
    let gguf = Gguf::open(project_root().join("models/ds4-small-q8_0.gguf")).expect("a model");
    let n = |key: &str| {
        gguf.metadata()
            .u64(&format!("deepseek4.{key}"))
            .expect("a number")
    };
    let x = |key: &str| {
        gguf.metadata()
            .f32(&format!("deepseek4.{key}"))
            .expect("a number")
    };
    let ratios = gguf.metadata().u32s("deepseek4.attention.compress_ratios");
    let clamps = gguf.metadata().f32s("deepseek4.swiglu_clamp_exp");
    assert!(matches!(
        gguf.metadata().get("general.name"),
        Some(Value::String(_))
    ));
    json!({
        "num_hidden_layers": n("block_count"), "max_position_embeddings": n("context_length"),
        "hidden_size": n("embedding_length"), "vocab_size": n("vocab_size"),
        "num_attention_heads": n("attention.head_count"), "num_key_value_heads": 1,
        "head_dim": n("attention.key_length"), "q_lora_rank": n("attention.q_lora_rank"),
        "o_lora_rank": n("attention.output_lora_rank"),
        "o_groups": n("attention.output_group_count"),
        "sliding_window": n("attention.sliding_window"),
        "index_n_heads": n("attention.indexer.head_count"),
        "index_head_dim": n("attention.indexer.key_length"),
        "index_topk": n("attention.indexer.top_k"), "qk_rope_head_dim": n("rope.dimension_count"),
        "n_routed_experts": n("expert_count"), "num_experts_per_tok": n("expert_used_count"),
        "n_shared_experts": 1, "moe_intermediate_size": n("expert_feed_forward_length"),
        "num_hash_layers": n("hash_layer_count"), "hc_mult": n("hyper_connection.count"),
        "hc_sinkhorn_iters": n("hyper_connection.sinkhorn_iterations"),
        "hc_eps": x("hyper_connection.epsilon"), "rms_norm_eps": x("attention.layer_norm_rms_epsilon"),
        "compress_rope_theta": x("attention.compress_rope_freq_base"),
        "rope_theta": x("rope.freq_base"), "routed_scaling_factor": x("expert_weights_scale"),
        "scoring_func": "sqrtsoftplus", "swiglu_limit": clamps.expect("clamps")[0],
        "compress_ratios": ratios.expect("ratios"), "num_nextn_predict_layers": 0,
        "rope_scaling": {
            "type": "yarn", "factor": x("rope.scaling.factor"),
            "original_max_position_embeddings": n("rope.scaling.original_context_length"),
            "beta_fast": x("rope.scaling.yarn_beta_fast"),
            "beta_slow": x("rope.scaling.yarn_beta_slow"),
        },
    })
}
