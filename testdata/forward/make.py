"""Make one golden model: random weights, a prompt, and the logits transformers gives for it.

    python make.py NAME/config.json             write model.gguf, tokens.json, logits.npy, README.md
    python make.py NAME/config.json --search N  print the first good seed among the next N

The files land beside the configuration. A seed is good when every discrete choice of the network
(selected index rows, selected experts, best token) is decided by a margin that f32 rounding cannot
reach; a seed that is not good is refused.
"""

import argparse
import json
import os
import sys
import zlib

import gguf
import numpy as np
import transformers

import reference
from reference import ARCHITECTURE, File

# Smallest margins accepted. Index and router scores of two correct f32 engines differ by about
# 1e-6; logits are compared within 1e-3, so two of them may move towards each other by 2e-3.
MIN_SCORE_MARGIN = 1e-4
MIN_ARGMAX_MARGIN = 2e-3


def metadata_of(c):
    """GGUF metadata, as (key, adder of gguf.GGUFWriter, value)."""
    n_layers = c["num_hidden_layers"]
    yarn = c["rope_scaling"]
    u32 = {
        "block_count": n_layers,
        "context_length": c["max_position_embeddings"],
        "embedding_length": c["hidden_size"],
        "vocab_size": c["vocab_size"],
        "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": 1,
        "attention.key_length": c["head_dim"],
        "attention.value_length": c["head_dim"],
        "attention.q_lora_rank": c["q_lora_rank"],
        "attention.output_lora_rank": c["o_lora_rank"],
        "attention.output_group_count": c["o_groups"],
        "attention.sliding_window": c["sliding_window"],
        "attention.indexer.head_count": c["index_n_heads"],
        "attention.indexer.key_length": c["index_head_dim"],
        "attention.indexer.top_k": c["index_topk"],
        "rope.dimension_count": c["qk_rope_head_dim"],
        "rope.scaling.original_context_length": yarn["original_max_position_embeddings"],
        "expert_count": c["n_routed_experts"],
        "expert_used_count": c["num_experts_per_tok"],
        "expert_shared_count": 1,
        "expert_feed_forward_length": c["moe_intermediate_size"],
        "expert_gating_func": 4,
        "hash_layer_count": c["num_hash_layers"],
        "nextn_predict_layers": 0,
        "hyper_connection.count": c["hc_mult"],
        "hyper_connection.sinkhorn_iterations": c["hc_sinkhorn_iters"],
    }
    f32 = {
        "attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
        "attention.compress_rope_freq_base": c["compress_rope_theta"],
        "rope.freq_base": c["rope_theta"],
        "rope.scaling.factor": yarn["factor"],
        "rope.scaling.yarn_beta_fast": yarn["beta_fast"],
        "rope.scaling.yarn_beta_slow": yarn["beta_slow"],
        "expert_weights_scale": c["routed_scaling_factor"],
        "hyper_connection.epsilon": c["hc_eps"],
    }
    key = lambda k: f"{ARCHITECTURE}.{k}"
    return (
        [("general.file_type", "add_uint32", 1), ("general.quantization_version", "add_uint32", 2)]
        + [(key(k), "add_uint32", v) for k, v in u32.items()]
        + [(key(k), "add_float32", float(v)) for k, v in f32.items()]
        + [
            (key("rope.scaling.type"), "add_string", "yarn"),
            (key("expert_weights_norm"), "add_bool", True),
            (key("attention.compress_ratios"), "add_array", c["compress_ratios"]),
            (key("swiglu_clamp_exp"), "add_array", [float(c["swiglu_limit"])] * n_layers),
            (key("swiglu_clamp_shexp"), "add_array", [float(c["swiglu_limit"])] * n_layers),
        ]
    )


def layout_of(c):
    """Every tensor as name -> (shape outermost first, storage type, mean, standard deviation).

    The deviations keep activations near 1 and logits near 2, and make each mechanism visible in
    the logits; NAME/README.md lists by how much.
    """
    n_embd, n_vocab, n_hc = c["hidden_size"], c["vocab_size"], c["hc_mult"]
    n_ff, n_expert = c["moe_intermediate_size"], c["n_routed_experts"]
    n_head, head_dim, q_rank = c["num_attention_heads"], c["head_dim"], c["q_lora_rank"]
    n_group, o_rank = c["o_groups"], c["o_lora_rank"]
    n_index, index_dim = c["index_n_heads"], c["index_head_dim"]
    n_mix = (2 + n_hc) * n_hc
    out = {}

    def matrix(name, *shape, gain=1.2):
        out[name + ".weight"] = (shape, np.float16, 0.0, gain / shape[-1] ** 0.5)

    def small(name, *shape, mean=0.0, std=0.15, kind=np.float32, suffix=".weight"):
        out[name + suffix] = (shape, kind, mean, std)

    def norm(name, dim):
        small(name, dim, mean=1.0)

    small("token_embd", n_vocab, n_embd, std=1.0, kind=np.float16)
    for i, ratio in enumerate(c["compress_ratios"][: c["num_hidden_layers"]]):
        b = f"blk.{i}."
        for sub in ("attn", "ffn"):
            matrix(b + f"hc_{sub}_fn", n_mix, n_hc * n_embd, gain=1.0)
            small(b + f"hc_{sub}_base", n_mix, std=1.0)
            small(b + f"hc_{sub}_scale", 3, mean=1.0, std=0.2)
            norm(b + f"{sub}_norm", n_embd)
        matrix(b + "attn_q_a", q_rank, n_embd)
        norm(b + "attn_q_a_norm", q_rank)
        matrix(b + "attn_q_b", n_head * head_dim, q_rank)
        matrix(b + "attn_kv", head_dim, n_embd)
        norm(b + "attn_kv_a_norm", head_dim)
        # A sink competes with several dozen rows, hence the mean.
        small(b + "attn_sinks", n_head, mean=1.5, std=1.0)
        matrix(b + "attn_output_a", n_group * o_rank, n_head * head_dim // n_group)
        matrix(b + "attn_output_b", n_embd, n_group * o_rank)
        if ratio:
            # Ratio 4 pools two overlapping windows, each through its own half of the channels.
            n_series = 2 if ratio == 4 else 1
            matrix(b + "attn_compressor_kv", n_series * head_dim, n_embd)
            matrix(b + "attn_compressor_gate", n_series * head_dim, n_embd)
            small(b + "attn_compressor_ape", ratio, n_series * head_dim, std=0.7, kind=np.float16)
            norm(b + "attn_compressor_norm", head_dim)
        if ratio == 4:
            matrix(b + "indexer.attn_q_b", n_index * index_dim, q_rank)
            matrix(b + "indexer.proj", n_index, n_embd)
            matrix(b + "indexer_compressor_kv", 2 * index_dim, n_embd)
            matrix(b + "indexer_compressor_gate", 2 * index_dim, n_embd)
            small(b + "indexer_compressor_ape", 4, 2 * index_dim, std=0.7, kind=np.float16)
            norm(b + "indexer_compressor_norm", index_dim)
        matrix(b + "ffn_gate_inp", n_expert, n_embd, gain=1.5)
        if i < c["num_hash_layers"]:
            shape = (n_vocab, c["num_experts_per_tok"])
            out[b + "ffn_gate_tid2eid.weight"] = (shape, np.int32, None, None)
        else:
            small(b + "exp_probs_b", n_expert, std=0.3, suffix=".bias")
        for role, shape in (("gate", (n_ff, n_embd)), ("up", (n_ff, n_embd)), ("down", (n_embd, n_ff))):
            matrix(b + f"ffn_{role}_exps", n_expert, *shape)
            matrix(b + f"ffn_{role}_shexp", *shape)
    matrix("output_hc_fn", n_hc, n_hc * n_embd, gain=1.0)
    small("output_hc_base", n_hc, std=0.5)
    small("output_hc_scale", 1, mean=1.0, std=0.2)
    norm("output_norm", n_embd)
    matrix("output", n_vocab, n_embd, gain=2.0)
    return out


def exact(x):
    """Round to values that F32, F16 and BF16 all hold exactly."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)  # to nearest, ties to even
    # Below 2^-17 an F16 subnormal has at most 7 significant bits, so this cannot leave BF16.
    return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float16).astype(np.float32)


def weights_of(c, seed):
    """Every tensor. Each has its own generator, so that adding one changes no other."""
    tensors = {}
    for name, (shape, kind, mean, std) in layout_of(c).items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if kind == np.int32:
            # Distinct experts for each token id.
            order = rng.random((shape[0], c["n_routed_experts"])).argsort(axis=1)
            tensors[name] = order[:, : shape[1]].astype(np.int32)
        else:
            tensors[name] = exact(mean + std * rng.standard_normal(shape)).astype(kind)
    return tensors


def tokens_of(c, seed):
    """A prompt: the BOS id, then ids drawn uniformly, so that some repeat and all may occur."""
    rng = np.random.default_rng([seed, zlib.crc32(b"tokens")])
    return [0] + rng.integers(0, c["vocab_size"], c["n_tokens"] - 1).tolist()


def write(path, name, c, tensors):
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_string("general.name", f"random deepseek4, {name}")
    for key, adder, value in metadata_of(c):
        getattr(writer, adder)(key, value)
    for tensor, value in tensors.items():
        writer.add_tensor(tensor, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def changes_of(c):
    """What a wrong engine might do, each as (what it does, metadata changes, tensor changes)."""
    key = lambda k: f"{ARCHITECTURE}.{k}"
    ones, zeros = np.ones_like, np.zeros_like
    layers = set(c["compress_ratios"][: c["num_hidden_layers"]])
    n_hash, n_layers = c["num_hash_layers"], c["num_hidden_layers"]

    rows = [("drops the attention sinks", {}, {"attn_sinks": lambda x: np.full_like(x, -1e4)})]
    if n_hash < n_layers:
        rows.append(("drops the router bias", {}, {"exp_probs_b": zeros}))
    if n_hash:
        shift = lambda x: np.roll(x, 1, axis=0)
        rows.append(("hashes the next token id", {}, {"ffn_gate_tid2eid": shift}))
    rows.append(("drops the shared expert", {}, {"ffn_down_shexp": zeros}))
    for sub in ("attn", "ffn", "output"):
        pre = "output_hc" if sub == "output" else f"hc_{sub}"
        rows.append((f"drops `{pre}_fn`", {}, {f"{pre}_fn": zeros}))
        rows.append((f"drops `{pre}_base`", {}, {f"{pre}_base": zeros}))
        rows.append((f"takes `{pre}_scale` as 1", {}, {f"{pre}_scale": ones}))
    rows.append(("drops `attn_compressor_ape`", {}, {"attn_compressor_ape": zeros}))
    rows.append(("drops `indexer_compressor_ape`", {}, {"indexer_compressor_ape": zeros}))
    norms = ["attn_norm", "ffn_norm", "attn_q_a_norm", "attn_kv_a_norm", "attn_compressor_norm"]
    for norm in norms + ["indexer_compressor_norm", "output_norm"]:
        rows.append((f"takes `{norm}` as 1", {}, {norm: ones}))
    no_clamp = [1e30] * n_layers
    rows += [
        ("does not clamp", {key("swiglu_clamp_exp"): no_clamp, key("swiglu_clamp_shexp"): no_clamp}, {}),
        ("scales routed experts by 1", {key("expert_weights_scale"): 1.0}, {}),
        ("sees one window row more", {key("attention.sliding_window"): c["sliding_window"] + 1}, {}),
        ("selects one index row more", {key("attention.indexer.top_k"): c["index_topk"] + 1}, {}),
        ("runs one Sinkhorn iteration less", {key("hyper_connection.sinkhorn_iterations"): c["hc_sinkhorn_iters"] - 1}, {}),
        ("applies no YaRN", {key("rope.scaling.factor"): 1.0}, {}),
        ("uses `rope.freq_base` where rows are compressed", {key("attention.compress_rope_freq_base"): float(c["rope_theta"])}, {}),
    ]
    if 0 in layers:
        base = float(c["compress_rope_theta"])
        rows.append(("uses the compressed base where they are not", {key("rope.freq_base"): base}, {}))
    for name, released in (("rope.freq_base", 1e4), ("attention.compress_rope_freq_base", 1.6e5)):
        mine = c["rope_theta"] if name == "rope.freq_base" else c["compress_rope_theta"]
        if mine != released and (name != "rope.freq_base" or 0 in layers):
            rows.append((f"takes `{name}` as released", {key(name): released}, {}))
    for name, field in (("attention.layer_norm_rms_epsilon", "rms_norm_eps"), ("hyper_connection.epsilon", "hc_eps")):
        if c[field] != 1e-6:
            rows.append((f"takes `{name}` as 1e-6", {key(name): 1e-6}, {}))
    return rows


def changed(file, metadata, tensors):
    """`file` with some metadata replaced and a function applied to the tensors of some stems."""
    out = dict(file.tensors)
    for name, value in file.tensors.items():
        stem = name.rsplit(".", 1)[0]
        stem = stem.split(".", 2)[2] if stem.startswith("blk.") else stem
        if stem in tensors:
            out[name] = tensors[stem](value)
    return File({**file.metadata, **metadata}, out)


def report(name, c, file, ids, logits, margins, chunk_difference):
    """The text of NAME/README.md."""
    lines = [
        f"# {name}",
        "",
        "Written by `make.py`; do not edit. " + c["purpose"],
        "",
        "| | |",
        "|---|---|",
    ]
    facts = [
        ("computed with", reference.versions()),
        ("seed", c["seed"]),
        ("width, vocabulary", f"{c['hidden_size']}, {c['vocab_size']}"),
        ("layers, ratios", f"{c['num_hidden_layers']}, {c['compress_ratios']} (entries after the last layer are to be ignored)"),
        ("heads x head_dim, rope", f"{c['num_attention_heads']} x {c['head_dim']}, {c['qk_rope_head_dim']}"),
        ("query rank; output groups x rank", f"{c['q_lora_rank']}; {c['o_groups']} x {c['o_lora_rank']}"),
        ("window", c["sliding_window"]),
        ("indexer heads x dim, top-k", f"{c['index_n_heads']} x {c['index_head_dim']}, {c['index_topk']}"),
        ("experts, used, hidden width, hash layers", f"{c['n_routed_experts']}, {c['num_experts_per_tok']}, {c['moe_intermediate_size']}, {c['num_hash_layers']}"),
        ("clamp, routed scale", f"{c['swiglu_limit']}, {c['routed_scaling_factor']}"),
        ("tokens", len(ids)),
        ("logits: standard deviation, largest", f"{logits.std():.2f}, {np.abs(logits).max():.2f}"),
        ("smallest index margin", f"{margins.index:.1e} over {margins.n_selections} selections"),
        ("smallest router margin", f"{margins.router:.1e}" if np.isfinite(margins.router) else "no top-k router"),
        ("smallest argmax margin", f"{margins.argmax:.1e}"),
        ("transformers in cached chunks of 1, 7, 64, 3, 33 against one pass", f"{chunk_difference:.1e}"),
    ]
    lines += [f"| {a} | {b} |" for a, b in facts]
    lines += [
        "",
        "Largest change of any logit in an engine that makes one mistake:",
        "",
        "| the engine | change |",
        "|---|---|",
    ]
    for what, metadata, tensors in changes_of(c):
        wrong, _ = reference.run(reference.load(changed(file, metadata, tensors)), ids)
        lines.append(f"| {what} | {np.abs(wrong - logits).max():.1e} |")
    return "\n".join(lines) + "\n"


def is_good(margins):
    scores = min(margins.index, margins.router)
    return scores >= MIN_SCORE_MARGIN and margins.argmax >= MIN_ARGMAX_MARGIN


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="NAME/config.json")
    parser.add_argument("--search", type=int, metavar="N", default=0)
    args = parser.parse_args()
    # One of the mistakes below is a YaRN factor that transformers rightly warns about.
    transformers.logging.set_verbosity_error()
    with open(args.config) as f:
        c = json.load(f)
    folder = os.path.dirname(os.path.abspath(args.config))
    name = os.path.basename(folder)
    path = lambda file: os.path.join(folder, file)

    def make(seed, target):
        write(target, name, c, weights_of(c, seed))
        file, ids = reference.read(target), tokens_of(c, seed)
        model = reference.load(file)
        return file, ids, model, *reference.run(model, ids)

    if args.search:
        import tempfile

        with tempfile.TemporaryDirectory() as tmp:
            for seed in range(c["seed"], c["seed"] + args.search):
                *_, logits, margins = make(seed, os.path.join(tmp, "model.gguf"))
                good = is_good(margins)
                print(f"seed {seed}: {margins}, logits std {logits.std():.2f}{', good' if good else ''}", flush=True)
                if good:
                    return
        sys.exit(f"no good seed in {args.search}; search further")

    file, ids, model, logits, margins = make(c["seed"], path("model.gguf"))
    print(f"{name}, seed {c['seed']}: {margins}, logits std {logits.std():.2f}")
    if not is_good(margins):
        os.remove(path("model.gguf"))
        sys.exit(
            f"seed {c['seed']} is too close to a flip (wanted {MIN_SCORE_MARGIN} for scores and "
            f"{MIN_ARGMAX_MARGIN} for the argmax); find another with --search 100"
        )
    chunks = reference.run_in_chunks(model, ids, [1, 7, 64, 3, 33])
    with open(path("tokens.json"), "w") as f:
        json.dump({"ids": ids}, f)
        f.write("\n")
    np.save(path("logits.npy"), logits.astype("<f4"))
    text = report(name, c, file, ids, logits, margins, np.abs(chunks - logits).max())
    with open(path("README.md"), "w") as f:
        f.write(text)
    print(text)


if __name__ == "__main__":
    main()
