//! The names of the publisher's checkpoint for those of GGUF files.

use ds4_formats::safetensors::Checkpoint;

/// Where the numbers of a tensor are in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// One tensor; a scale lies beside it under the name with `.scale` for `.weight`.
    One(String),
    /// The matrices of the experts, `{}` standing for their number.
    Experts(String),
}

/// Inside a layer: GGUF's name and the checkpoint's.
const LAYER: &[(&str, &str)] = &[
    ("attn_norm.weight", "attn_norm.weight"),
    ("ffn_norm.weight", "ffn_norm.weight"),
    ("hc_attn_fn.weight", "hc_attn_fn"),
    ("hc_attn_base.weight", "hc_attn_base"),
    ("hc_attn_scale.weight", "hc_attn_scale"),
    ("hc_ffn_fn.weight", "hc_ffn_fn"),
    ("hc_ffn_base.weight", "hc_ffn_base"),
    ("hc_ffn_scale.weight", "hc_ffn_scale"),
    ("attn_q_a.weight", "attn.wq_a.weight"),
    ("attn_q_a_norm.weight", "attn.q_norm.weight"),
    ("attn_q_b.weight", "attn.wq_b.weight"),
    ("attn_kv.weight", "attn.wkv.weight"),
    ("attn_kv_a_norm.weight", "attn.kv_norm.weight"),
    ("attn_sinks.weight", "attn.attn_sink"),
    ("attn_output_a.weight", "attn.wo_a.weight"),
    ("attn_output_b.weight", "attn.wo_b.weight"),
    ("attn_compressor_kv.weight", "attn.compressor.wkv.weight"),
    (
        "attn_compressor_gate.weight",
        "attn.compressor.wgate.weight",
    ),
    ("attn_compressor_ape.weight", "attn.compressor.ape"),
    ("attn_compressor_norm.weight", "attn.compressor.norm.weight"),
    ("indexer.attn_q_b.weight", "attn.indexer.wq_b.weight"),
    ("indexer.proj.weight", "attn.indexer.weights_proj.weight"),
    (
        "indexer_compressor_kv.weight",
        "attn.indexer.compressor.wkv.weight",
    ),
    (
        "indexer_compressor_gate.weight",
        "attn.indexer.compressor.wgate.weight",
    ),
    (
        "indexer_compressor_ape.weight",
        "attn.indexer.compressor.ape",
    ),
    (
        "indexer_compressor_norm.weight",
        "attn.indexer.compressor.norm.weight",
    ),
    ("ffn_gate_inp.weight", "ffn.gate.weight"),
    ("exp_probs_b.bias", "ffn.gate.bias"),
    ("ffn_gate_tid2eid.weight", "ffn.gate.tid2eid"),
    ("ffn_gate_exps.weight", "ffn.experts.{}.w1.weight"),
    ("ffn_up_exps.weight", "ffn.experts.{}.w3.weight"),
    ("ffn_down_exps.weight", "ffn.experts.{}.w2.weight"),
    ("ffn_gate_shexp.weight", "ffn.shared_experts.w1.weight"),
    ("ffn_up_shexp.weight", "ffn.shared_experts.w3.weight"),
    ("ffn_down_shexp.weight", "ffn.shared_experts.w2.weight"),
];

/// Outside of layers.
const WHOLE: &[(&str, &str)] = &[
    ("token_embd.weight", "embed.weight"),
    ("output.weight", "head.weight"),
    ("output_norm.weight", "norm.weight"),
    ("output_hc_fn.weight", "hc_head_fn"),
    ("output_hc_base.weight", "hc_head_base"),
    ("output_hc_scale.weight", "hc_head_scale"),
];

/// Beside the layer's own tensors in a stage of the draft blocks.
const STAGE: &[(&str, &str)] = &[
    ("e_proj.weight", "e_proj.weight"),
    ("h_proj.weight", "h_proj.weight"),
    ("enorm.weight", "enorm.weight"),
    ("hnorm.weight", "hnorm.weight"),
    ("main_proj.weight", "main_proj.weight"),
    ("main_norm.weight", "main_norm.weight"),
    ("norm.weight", "norm.weight"),
    ("hc_head_fn.weight", "hc_head_fn"),
    ("hc_head_base.weight", "hc_head_base"),
    ("hc_head_scale.weight", "hc_head_scale"),
    (
        "markov_head.markov_w1.weight",
        "markov_head.markov_w1.weight",
    ),
    (
        "markov_head.markov_w2.weight",
        "markov_head.markov_w2.weight",
    ),
    ("confidence_head.proj.weight", "confidence_head.proj.weight"),
];

fn place(name: String) -> Place {
    if name.contains("{}") {
        Place::Experts(name)
    } else {
        Place::One(name)
    }
}

/// The checkpoint's name for a tensor of the model.
pub(super) fn of_model(name: &str) -> Option<Place> {
    let found = |table: &[(&str, &str)], name: &str| {
        let row = table.iter().find(|(gguf, _)| *gguf == name);
        row.map(|(_, other)| (*other).to_owned())
    };
    if let Some(rest) = name.strip_prefix("blk.") {
        let (layer, suffix) = rest.split_once('.')?;
        let other = found(LAYER, suffix)?;
        return Some(place(format!("layers.{layer}.{other}")));
    }
    found(WHOLE, name).map(place)
}

/// The names of all draft blocks that a checkpoint has, with the checkpoint's.
pub(super) fn of_drafts(checkpoint: &Checkpoint) -> Vec<(String, Place)> {
    let mut all = Vec::new();
    for stage in 0.. {
        let before = all.len();
        for (gguf, other) in LAYER.iter().chain(STAGE) {
            let place = place(format!("mtp.{stage}.{other}"));
            let first = match &place {
                Place::One(name) => name.clone(),
                Place::Experts(name) => name.replace("{}", "0"),
            };
            if checkpoint.get(&first).is_some() {
                all.push((format!("mtp.{stage}.{gguf}"), place));
            }
        }
        if all.len() == before {
            break;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tensor_of_the_published_model_has_a_name_in_the_checkpoint() {
        let needs = ds4_model::requirements(&ds4_model::Geometry::flash());
        assert_eq!(needs.len(), 1328);
        for need in needs {
            assert!(of_model(&need.name).is_some(), "{}", need.name);
        }
        let one = |name: &str| Some(Place::One(name.to_owned()));
        assert_eq!(
            of_model("blk.7.indexer.proj.weight"),
            one("layers.7.attn.indexer.weights_proj.weight")
        );
        assert_eq!(of_model("blk.7.other.weight"), None);
    }
}
