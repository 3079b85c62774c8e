//! The metadata of a GGUF file from the publisher's `config.json` and `tokenizer.json`.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ds4_formats::gguf::{Array, Metadata, Value};
use serde_json::Value as Json;

/// Numbers that have one place in both.
const NUMBERS: &[(&str, &str)] = &[
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("vocab_size", "vocab_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.value_length", "head_dim"),
    ("attention.q_lora_rank", "q_lora_rank"),
    ("attention.output_lora_rank", "o_lora_rank"),
    ("attention.output_group_count", "o_groups"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.indexer.head_count", "index_n_heads"),
    ("attention.indexer.key_length", "index_head_dim"),
    ("attention.indexer.top_k", "index_topk"),
    ("rope.dimension_count", "qk_rope_head_dim"),
    ("expert_count", "n_routed_experts"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_shared_count", "n_shared_experts"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
    ("hash_layer_count", "num_hash_layers"),
    ("hyper_connection.count", "hc_mult"),
    ("hyper_connection.sinkhorn_iterations", "hc_sinkhorn_iters"),
];
/// The same for numbers with a fraction.
const FRACTIONS: &[(&str, &str)] = &[
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.compress_rope_freq_base", "compress_rope_theta"),
    ("rope.freq_base", "rope_theta"),
    ("expert_weights_scale", "routed_scaling_factor"),
    ("hyper_connection.epsilon", "hc_eps"),
];

/// The metadata of a model.
///
/// # Errors
/// A file is missing, is not JSON, or lacks something.
pub(super) fn metadata(folder: &Path, name: &str) -> Result<Metadata> {
    let config = read(&folder.join("config.json"))?;
    let mut metadata = Metadata::new();
    let text = |text: &str| Value::String(text.to_owned());
    metadata.insert(
        "general.architecture",
        text(ds4_model::geometry::ARCHITECTURE),
    );
    metadata.insert("general.name", text(name));
    metadata.insert("general.quantization_version", Value::U32(2));
    let key = |key: &str| format!("{}.{key}", ds4_model::geometry::ARCHITECTURE);
    let lacks = |member: &str| format!("config.json: {member} is not there or not a number");
    for (to, from) in NUMBERS {
        let n = config[*from].as_u64().and_then(|n| u32::try_from(n).ok());
        metadata.insert(key(to), Value::U32(n.with_context(|| lacks(from))?));
    }
    for (to, from) in FRACTIONS {
        let n = config[*from].as_f64().with_context(|| lacks(from))?;
        metadata.insert(key(to), Value::F32(n as f32));
    }
    let n_layers = config["num_hidden_layers"].as_u64().unwrap_or(0) as usize;
    let scaling = &config["rope_scaling"];
    let number = |member: &str| {
        scaling[member]
            .as_f64()
            .with_context(|| lacks(&format!("rope_scaling.{member}")))
    };
    metadata.insert(key("rope.scaling.type"), text("yarn"));
    metadata.insert(
        key("rope.scaling.factor"),
        Value::F32(number("factor")? as f32),
    );
    let original = number("original_max_position_embeddings")?;
    metadata.insert(
        key("rope.scaling.original_context_length"),
        Value::U32(original as u32),
    );
    for (to, from) in [("fast", "beta_fast"), ("slow", "beta_slow")] {
        let value = Value::F32(number(from)? as f32);
        metadata.insert(key(&format!("rope.scaling.yarn_beta_{to}")), value);
    }
    if config["scoring_func"]
        .as_str()
        .is_some_and(|f| f != "sqrtsoftplus")
    {
        bail!(
            "config.json: scoring_func is {}, expected sqrtsoftplus",
            config["scoring_func"]
        );
    }
    metadata.insert(key("expert_gating_func"), Value::U32(4));
    metadata.insert(key("expert_weights_norm"), Value::Bool(true));
    let ratios = config["compress_ratios"].as_array();
    let ratios: Option<Vec<u32>> = ratios.and_then(|list| {
        let ratio = |v: &Json| v.as_u64().and_then(|n| u32::try_from(n).ok());
        list.iter().map(ratio).collect()
    });
    let ratios = ratios.with_context(|| lacks("compress_ratios"))?;
    metadata.insert(
        key("attention.compress_ratios"),
        Value::Array(Array::U32(ratios)),
    );
    let clamp = config["swiglu_limit"]
        .as_f64()
        .with_context(|| lacks("swiglu_limit"))?;
    metadata.insert(
        key("swiglu_clamp_exp"),
        Value::Array(Array::F32(vec![clamp as f32; n_layers])),
    );
    let n_draft = config["num_nextn_predict_layers"].as_u64().unwrap_or(0);
    metadata.insert(key("nextn_predict_layers"), Value::U32(n_draft as u32));
    let n_vocab = config["vocab_size"].as_u64().unwrap_or(0) as usize;
    add_tokenizer(&mut metadata, &folder.join("tokenizer.json"), n_vocab)?;
    Ok(metadata)
}

/// The metadata of a file of draft blocks: those of the DSpark layout when the configuration has
/// its members.
///
/// # Errors
/// `config.json` is missing or not JSON.
pub(super) fn draft_metadata(folder: &Path, n_stages: u32, is_dspark: bool) -> Result<Metadata> {
    let config = read(&folder.join("config.json"))?;
    let mut metadata = Metadata::new();
    let text = |text: &str| Value::String(text.to_owned());
    if !is_dspark {
        metadata.insert("general.architecture", text("deepseek4-mtp"));
        metadata.insert("general.name", text("DeepSeek V4 Flash MTP support"));
        metadata.insert("general.alignment", Value::U32(32));
        return Ok(metadata);
    }
    let number =
        |member: &str, usual: u64| Value::U32(config[member].as_u64().unwrap_or(usual) as u32);
    metadata.insert("general.architecture", text("deepseek4-dspark"));
    metadata.insert("general.name", text("DeepSeek V4 Flash DSpark support"));
    metadata.insert("general.alignment", Value::U32(32));
    metadata.insert("dspark.block_size", number("dspark_block_size", 5));
    metadata.insert("dspark.markov_rank", number("dspark_markov_rank", 256));
    metadata.insert(
        "dspark.noise_token_id",
        number("dspark_noise_token_id", 128_799),
    );
    let layers = config["dspark_target_layer_ids"].as_array().map(|list| {
        let layers = list.iter().filter_map(Json::as_u64);
        layers.map(|n| n as u32).collect()
    });
    let layers = Array::U32(layers.unwrap_or_else(|| vec![40, 41, 42]));
    metadata.insert("dspark.target_layer_ids", Value::Array(layers));
    metadata.insert("dspark.stage_count", Value::U32(n_stages));
    metadata.insert("dspark.n_layers", Value::U32(n_stages));
    Ok(metadata)
}

fn read(path: &Path) -> Result<Json> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(name)?;
    serde_json::from_str(&text).with_context(name)
}

fn add_tokenizer(metadata: &mut Metadata, path: &Path, n_vocab: usize) -> Result<()> {
    const NORMAL: i32 = 1;
    const CONTROL: i32 = 3;
    const USER_DEFINED: i32 = 4;
    let document = read(path)?;
    let wrong = || format!("{}: it is not the tokenizer of DeepSeek V4", path.display());
    let mut tokens = vec![String::new(); n_vocab];
    let mut types = vec![NORMAL; n_vocab];
    let mut put = |id: &Json, text: &str| -> Option<usize> {
        let id = usize::try_from(id.as_u64()?).ok()?;
        text.clone_into(tokens.get_mut(id)?);
        Some(id)
    };
    let vocab = document["model"]["vocab"].as_object().with_context(wrong)?;
    for (text, id) in vocab {
        put(id, text).with_context(wrong)?;
    }
    let added = document["added_tokens"].as_array().with_context(wrong)?;
    for token in added {
        let text = token["content"].as_str().with_context(wrong)?;
        let id = put(&token["id"], text).with_context(wrong)?;
        types[id] = match token["special"].as_bool() {
            Some(true) => CONTROL,
            _ => USER_DEFINED,
        };
    }
    let merges: Option<Vec<String>> = document["model"]["merges"].as_array().and_then(|list| {
        let merge = |merge: &Json| match merge {
            Json::String(text) => Some(text.clone()),
            Json::Array(pair) => Some(format!(
                "{} {}",
                pair.first()?.as_str()?,
                pair.get(1)?.as_str()?
            )),
            _ => None,
        };
        list.iter().map(merge).collect()
    });
    let id_of = |text: &str| {
        tokens
            .iter()
            .position(|t| t == text)
            .map(|id| Value::U32(id as u32))
    };
    let bos = id_of("<｜begin▁of▁sentence｜>").with_context(wrong)?;
    let eos = id_of("<｜end▁of▁sentence｜>").with_context(wrong)?;
    let pad = id_of("<｜▁pad▁｜>").unwrap_or_else(|| eos.clone());
    let text = |text: &str| Value::String(text.to_owned());
    metadata.insert("tokenizer.ggml.model", text("gpt2"));
    metadata.insert("tokenizer.ggml.pre", text("joyai-llm"));
    metadata.insert("tokenizer.ggml.bos_token_id", bos);
    metadata.insert("tokenizer.ggml.eos_token_id", eos);
    metadata.insert("tokenizer.ggml.padding_token_id", pad);
    metadata.insert("tokenizer.ggml.add_bos_token", Value::Bool(false));
    metadata.insert("tokenizer.ggml.add_eos_token", Value::Bool(false));
    metadata.insert("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    metadata.insert("tokenizer.ggml.token_type", Value::Array(Array::I32(types)));
    let merges = merges.with_context(wrong)?;
    metadata.insert("tokenizer.ggml.merges", Value::Array(Array::String(merges)));
    Ok(())
}
