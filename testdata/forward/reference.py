"""Run a GGUF file of the `deepseek4` architecture with Hugging Face transformers, in f32.

The configuration is built from the file's metadata and the weights are bound by tensor name, so
what is written in the file is all that the reference sees. Matrices may be F16 or F32; quantised
files are refused.
"""

import math
from dataclasses import dataclass

import gguf
import numpy as np
import torch
import transformers
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as hf

ARCHITECTURE = "deepseek4"
LAYER_TYPES = {
    0: "sliding_attention",
    4: "compressed_sparse_attention",
    128: "heavily_compressed_attention",
}

# GGUF name without ".weight" -> transformers parameter. The three routed expert matrices are
# missing here because transformers stacks gate and up into one tensor.
TOP = {
    "token_embd": "model.embed_tokens.weight",
    "output": "lm_head.weight",
    "output_norm": "model.norm.weight",
    "output_hc_fn": "model.hc_head.hc_fn",
    "output_hc_base": "model.hc_head.hc_base",
    "output_hc_scale": "model.hc_head.hc_scale",
}
BLOCK = {
    "hc_attn_fn": "attn_hc.fn",
    "hc_attn_base": "attn_hc.base",
    "hc_attn_scale": "attn_hc.scale",
    "hc_ffn_fn": "ffn_hc.fn",
    "hc_ffn_base": "ffn_hc.base",
    "hc_ffn_scale": "ffn_hc.scale",
    "attn_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "attn_sinks": "self_attn.sinks",
    "attn_q_a": "self_attn.q_a_proj.weight",
    "attn_q_a_norm": "self_attn.q_a_norm.weight",
    "attn_q_b": "self_attn.q_b_proj.weight",
    "attn_kv": "self_attn.kv_proj.weight",
    "attn_kv_a_norm": "self_attn.kv_norm.weight",
    "attn_output_a": "self_attn.o_a_proj.weight",
    "attn_output_b": "self_attn.o_b_proj.weight",
    "attn_compressor_kv": "self_attn.compressor.kv_proj.weight",
    "attn_compressor_gate": "self_attn.compressor.gate_proj.weight",
    "attn_compressor_ape": "self_attn.compressor.position_bias",
    "attn_compressor_norm": "self_attn.compressor.kv_norm.weight",
    "indexer.attn_q_b": "self_attn.compressor.indexer.q_b_proj.weight",
    "indexer.proj": "self_attn.compressor.indexer.scorer.weights_proj.weight",
    "indexer_compressor_kv": "self_attn.compressor.indexer.kv_proj.weight",
    "indexer_compressor_gate": "self_attn.compressor.indexer.gate_proj.weight",
    "indexer_compressor_ape": "self_attn.compressor.indexer.position_bias",
    "indexer_compressor_norm": "self_attn.compressor.indexer.kv_norm.weight",
    "ffn_gate_inp": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_tid2eid": "mlp.gate.tid2eid",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj.weight",
    "ffn_up_shexp": "mlp.shared_experts.up_proj.weight",
    "ffn_down_shexp": "mlp.shared_experts.down_proj.weight",
}


@dataclass
class File:
    """Metadata by key and tensors by GGUF name, each tensor f32 or i32 with the outermost
    dimension first."""

    metadata: dict
    tensors: dict


def read(path):
    """Read a GGUF file whole."""
    reader = gguf.GGUFReader(path)
    metadata = {field.name: field.contents() for field in reader.fields.values()}
    tensors = {}
    for t in reader.tensors:
        kind = t.tensor_type.name
        if kind not in ("F16", "F32", "I32"):
            raise ValueError(f"{path}: {t.name} is {kind}; the reference takes F16, F32 and I32")
        value = np.array(t.data)
        tensors[t.name] = value if kind == "I32" else value.astype(np.float32)
    return File(metadata, tensors)


def config_of(metadata):
    """The transformers configuration that a file's metadata describes."""
    if metadata["general.architecture"] != ARCHITECTURE:
        raise ValueError(f"architecture {metadata['general.architecture']}, expected {ARCHITECTURE}")
    get = lambda key: metadata[f"{ARCHITECTURE}.{key}"]
    n_layers = get("block_count")
    rope_dim, head_dim = get("rope.dimension_count"), get("attention.key_length")
    clamps = set(get("swiglu_clamp_exp")) | set(get("swiglu_clamp_shexp"))
    if len(clamps) != 1:
        raise ValueError(f"swiglu clamps {sorted(clamps)}: transformers has one for all layers")
    partial = {"partial_rotary_factor": rope_dim / head_dim}
    config = DeepseekV4Config(
        vocab_size=get("vocab_size"),
        hidden_size=get("embedding_length"),
        moe_intermediate_size=get("expert_feed_forward_length"),
        num_hidden_layers=n_layers,
        num_attention_heads=get("attention.head_count"),
        num_key_value_heads=get("attention.head_count_kv"),
        head_dim=head_dim,
        qk_rope_head_dim=rope_dim,
        q_lora_rank=get("attention.q_lora_rank"),
        o_groups=get("attention.output_group_count"),
        o_lora_rank=get("attention.output_lora_rank"),
        sliding_window=get("attention.sliding_window"),
        layer_types=[LAYER_TYPES[r] for r in get("attention.compress_ratios")[:n_layers]],
        num_hash_layers=get("hash_layer_count"),
        index_n_heads=get("attention.indexer.head_count"),
        index_head_dim=get("attention.indexer.key_length"),
        index_topk=get("attention.indexer.top_k"),
        n_routed_experts=get("expert_count"),
        num_experts_per_tok=get("expert_used_count"),
        routed_scaling_factor=get("expert_weights_scale"),
        swiglu_limit=clamps.pop(),
        hc_mult=get("hyper_connection.count"),
        hc_sinkhorn_iters=get("hyper_connection.sinkhorn_iterations"),
        hc_eps=get("hyper_connection.epsilon"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=get("context_length"),
        rope_parameters={
            "main": {"rope_type": "default", "rope_theta": get("rope.freq_base"), **partial},
            "compress": {
                "rope_type": "yarn",
                "rope_theta": get("attention.compress_rope_freq_base"),
                "factor": get("rope.scaling.factor"),
                "original_max_position_embeddings": get("rope.scaling.original_context_length"),
                "beta_fast": get("rope.scaling.yarn_beta_fast"),
                "beta_slow": get("rope.scaling.yarn_beta_slow"),
                "attention_factor": 1.0,
                **partial,
            },
        },
    )
    if config.qk_rope_head_dim != rope_dim:
        raise ValueError(f"transformers rounds the rope width {rope_dim} to {config.qk_rope_head_dim}")
    return config


def state_dict_of(tensors):
    """GGUF tensors under the names that transformers gives them. Every tensor is used."""
    left = dict(tensors)
    take = lambda name: torch.from_numpy(left.pop(name))
    state = {}
    n_layers = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("blk."))
    for i in range(n_layers):
        blk = f"blk.{i}."
        experts = f"model.layers.{i}.mlp.experts."
        gate, up = take(blk + "ffn_gate_exps.weight"), take(blk + "ffn_up_exps.weight")
        state[experts + "gate_up_proj"] = torch.cat([gate, up], dim=1)
        state[experts + "down_proj"] = take(blk + "ffn_down_exps.weight")
    for name in list(left):
        stem = name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, rest = stem.split(".", 2)
            state[f"model.layers.{layer}.{BLOCK[rest]}"] = take(name)
        else:
            state[TOP[stem]] = take(name)
    return state


def load(file):
    """The model, f32, on the CPU, with transformers' plainest attention and expert code."""
    config = config_of(file.metadata)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = DeepseekV4ForCausalLM(config).eval().to(torch.float32)
    # `strict`: a tensor that is missing on either side is an error.
    model.load_state_dict(state_dict_of(file.tensors), strict=True)
    return model


@dataclass
class Margins:
    """How far the discrete choices of one run are from flipping; `inf` where none is made."""

    index: float  # k-th minus (k+1)-th index score, over positions that see more than k rows
    router: float  # k-th minus (k+1)-th biased router score, over top-k layers
    argmax: float  # best minus second best logit
    n_selections: int  # (position, layer) pairs at which the indexer leaves rows out
    n_zero_scores: int  # visible index scores of exactly 0, where a tie could hide

    def __str__(self):
        return (
            f"index {self.index:.2e} over {self.n_selections} selections "
            f"({self.n_zero_scores} scores of exactly 0), "
            f"router {self.router:.2e}, argmax {self.argmax:.2e}"
        )


def gap_at(scores, k):
    """Smallest difference between the k-th and (k+1)-th largest value along the last axis."""
    if scores.numel() == 0 or scores.shape[-1] <= k:
        return math.inf
    best = scores.topk(k + 1, dim=-1).values
    return float((best[..., k - 1] - best[..., k]).min())


@torch.no_grad()
def run(model, ids):
    """Logits `[n_tokens, n_vocab]` f32 of one pass over `ids` from position 0, and its margins."""
    config = model.config
    index, router, hooks = [], [], []
    for module in model.modules():
        if isinstance(module, hf.DeepseekV4IndexerScorer):
            hooks.append(module.register_forward_hook(lambda m, i, out: index.append(out[0])))
        if isinstance(module, hf.DeepseekV4TopKRouter):
            hooks.append(
                module.register_forward_hook(
                    lambda m, i, out: router.append(m.score_fn(out[0]) + m.e_score_correction_bias)
                )
            )
    try:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()

    k, ratio = config.index_topk, config.compress_rates["compressed_sparse_attention"]
    margins = Margins(math.inf, math.inf, gap_at(logits, 1), 0, 0)
    for scores in index:
        for t in range(len(ids)):
            visible = scores[t, : (t + 1) // ratio]
            margins.index = min(margins.index, gap_at(visible, k))
            margins.n_selections += int(len(visible) > k)
            margins.n_zero_scores += int((visible == 0).sum())
    for scores in router:
        margins.router = min(margins.router, gap_at(scores, config.num_experts_per_tok))
    return logits.numpy(), margins


@torch.no_grad()
def run_in_chunks(model, ids, chunks):
    """The same logits from a cached run that feeds `chunks` tokens at a time, cyclically."""
    cache, out, start, turn = None, [], 0, 0
    while start < len(ids):
        end = min(len(ids), start + chunks[turn % len(chunks)])
        step = model(input_ids=torch.tensor([ids[start:end]]), past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        out.append(step.logits[0])
        start, turn = end, turn + 1
    return torch.cat(out).numpy()


def versions():
    """Versions of what computed the numbers."""
    return f"transformers {transformers.__version__}, torch {torch.__version__}, numpy {np.__version__}"


def main():
    """Compare transformers with stored logits: the check that the mapping above is right."""
    import argparse
    import json

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="GGUF file, F16 or F32")
    parser.add_argument("tokens", help='JSON file with the token ids under "ids"')
    parser.add_argument(
        "logits",
        help="[n_tokens, n_vocab] as .npy, or .npz with `logits` and the `positions` of its rows",
    )
    args = parser.parse_args()
    with open(args.tokens) as f:
        ids = json.load(f)["ids"]
    stored = np.load(args.logits)
    rows = np.arange(len(ids))
    if not isinstance(stored, np.ndarray):
        rows, stored = stored["positions"], stored["logits"]
    logits, margins = run(load(read(args.model)), ids)
    print(versions())
    print(f"margins: {margins}")
    same = (logits[rows].argmax(-1) == stored.argmax(-1)).sum()
    print(f"max abs difference {np.abs(logits[rows] - stored).max():.3e}, argmax {same}/{len(rows)}")


if __name__ == "__main__":
    main()
