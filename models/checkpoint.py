"""Checkpoints in the publisher's layout, to try `ds4 quantize` on.

    python models/checkpoint.py small OUT [MODEL.gguf] [TOKENIZER.json]
    python models/checkpoint.py random OUT TOKENIZER.json [--layers N] [--experts N]

`small` exports a GGUF file (the built-in model). `random` writes the full width of Flash with random weights: layers of
ratios 0, 4 and 128 in turn after two without, one file of 3.4 GB for each with all 256 experts. Routed experts are FP4
(two E2M1 in a byte, an E8M0 for 32 of a row), other matrices FP8 (E4M3, an E8M0 for a square of 128), the rest BF16 and
F32. Needs numpy, and for `small` the `gguf` package.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
# GGUF's name, the checkpoint's, and how the checkpoint keeps it.
NAMES = {
    "attn_norm": ("attn_norm.weight", "bf16"),
    "ffn_norm": ("ffn_norm.weight", "bf16"),
    "hc_attn_fn": ("hc_attn_fn", "f32"),
    "hc_attn_base": ("hc_attn_base", "f32"),
    "hc_attn_scale": ("hc_attn_scale", "f32"),
    "hc_ffn_fn": ("hc_ffn_fn", "f32"),
    "hc_ffn_base": ("hc_ffn_base", "f32"),
    "hc_ffn_scale": ("hc_ffn_scale", "f32"),
    "attn_q_a": ("attn.wq_a.weight", "fp8"),
    "attn_q_a_norm": ("attn.q_norm.weight", "bf16"),
    "attn_q_b": ("attn.wq_b.weight", "fp8"),
    "attn_kv": ("attn.wkv.weight", "fp8"),
    "attn_kv_a_norm": ("attn.kv_norm.weight", "bf16"),
    "attn_sinks": ("attn.attn_sink", "f32"),
    "attn_output_a": ("attn.wo_a.weight", "fp8"),
    "attn_output_b": ("attn.wo_b.weight", "fp8"),
    "attn_compressor_kv": ("attn.compressor.wkv.weight", "bf16"),
    "attn_compressor_gate": ("attn.compressor.wgate.weight", "bf16"),
    "attn_compressor_ape": ("attn.compressor.ape", "f32"),
    "attn_compressor_norm": ("attn.compressor.norm.weight", "bf16"),
    "indexer.attn_q_b": ("attn.indexer.wq_b.weight", "fp8"),
    "indexer.proj": ("attn.indexer.weights_proj.weight", "bf16"),
    "indexer_compressor_kv": ("attn.indexer.compressor.wkv.weight", "bf16"),
    "indexer_compressor_gate": ("attn.indexer.compressor.wgate.weight", "bf16"),
    "indexer_compressor_ape": ("attn.indexer.compressor.ape", "f32"),
    "indexer_compressor_norm": ("attn.indexer.compressor.norm.weight", "bf16"),
    "ffn_gate_inp": ("ffn.gate.weight", "bf16"),
    "exp_probs_b": ("ffn.gate.bias", "f32"),
    "ffn_gate_tid2eid": ("ffn.gate.tid2eid", "i64"),
    "ffn_gate_exps": ("ffn.experts.{}.w1.weight", "fp4"),
    "ffn_up_exps": ("ffn.experts.{}.w3.weight", "fp4"),
    "ffn_down_exps": ("ffn.experts.{}.w2.weight", "fp4"),
    "ffn_gate_shexp": ("ffn.shared_experts.w1.weight", "fp8"),
    "ffn_up_shexp": ("ffn.shared_experts.w3.weight", "fp8"),
    "ffn_down_shexp": ("ffn.shared_experts.w2.weight", "fp8"),
    "token_embd": ("embed.weight", "bf16"),
    "output": ("head.weight", "bf16"),
    "output_norm": ("norm.weight", "bf16"),
    "output_hc_fn": ("hc_head_fn", "f32"),
    "output_hc_base": ("hc_head_base", "f32"),
    "output_hc_scale": ("hc_head_scale", "f32"),
}
DTYPES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "I64": 8}
FLASH = {
    "num_hidden_layers": 43, "max_position_embeddings": 1048576, "hidden_size": 4096, "vocab_size": 129280,
    "num_attention_heads": 64, "num_key_value_heads": 1, "head_dim": 512, "q_lora_rank": 1024, "o_lora_rank": 1024,
    "o_groups": 8, "sliding_window": 128, "index_n_heads": 64, "index_head_dim": 128, "index_topk": 512,
    "qk_rope_head_dim": 64, "n_routed_experts": 256, "num_experts_per_tok": 6, "n_shared_experts": 1,
    "moe_intermediate_size": 2048, "num_hash_layers": 3, "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6, "compress_rope_theta": 160000.0, "rope_theta": 10000.0, "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus", "swiglu_limit": 10.0, "num_nextn_predict_layers": 0,
    "rope_scaling": {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 65536, "beta_fast": 32, "beta_slow": 1},
}


def write(path: Path, tensors: list) -> None:
    """A safetensors file of (name, dtype, shape, function that makes the array)."""
    header, at = {}, 0
    for name, dtype, shape, _ in tensors:
        n = int(np.prod(shape)) * DTYPES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dtype, shape, make in tensors:
            data = np.ascontiguousarray(make())
            assert data.nbytes == int(np.prod(shape)) * DTYPES[dtype], name
            file.write(memoryview(data).cast("B"))


# Numbers that exist, in the publisher's formats.

def ue8m0_ceil(x: np.ndarray) -> np.ndarray:
    """The code of the least power of two that is not below."""
    exponent = np.ceil(np.log2(np.maximum(x, 2.0**-127)))
    return (np.clip(exponent, -127, 127) + 127).astype(np.uint8)


def to_fp4(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    blocks = x.reshape(x.shape[0], -1, 32)
    scale = ue8m0_ceil(np.abs(blocks).max(axis=2) / 6)
    u = blocks * np.exp2(127 - scale.astype(np.float32))[..., None]
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    code = np.abs(np.abs(u)[..., None] - levels).argmin(axis=-1).astype(np.uint8) | np.where(u < 0, 8, 0).astype(np.uint8)
    code = code.reshape(x.shape[0], -1)
    return (code[:, 0::2] | code[:, 1::2] << 4).astype(np.uint8), scale


def e4m3_values() -> np.ndarray:
    code = np.arange(127)
    exponent, fraction = code >> 3, code & 7
    return np.where(exponent == 0, fraction / 512, (1 + fraction / 8) * np.exp2(exponent - 7.0)).astype(np.float32)


def to_fp8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n_out, n_in = x.shape
    bands, columns = -(-n_out // 128), -(-n_in // 128)
    largest = np.zeros((bands * 128, columns * 128), np.float32)
    largest[:n_out, :n_in] = np.abs(x)
    largest = largest.reshape(bands, 128, columns, 128).max(axis=(1, 3))
    scale = ue8m0_ceil(largest / 448)
    u = x * np.repeat(np.repeat(np.exp2(127 - scale.astype(np.float32)), 128, 0), 128, 1)[:n_out, :n_in]
    values = e4m3_values()
    code = np.searchsorted((values[1:] + values[:-1]) / 2, np.abs(u)).astype(np.uint8)
    return code | np.where(u < 0, 128, 0).astype(np.uint8), scale


def to_bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def small(out: Path, model: Path, tokenizer: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(model)
    field = lambda key: reader.fields[f"deepseek4.{key}"].contents()
    tensors = []

    def put(name, dtype, array):
        tensors.append((name, dtype, array.shape, lambda: array))

    for tensor in reader.tensors:
        stem, prefix = tensor.name.removesuffix(".weight").removesuffix(".bias"), ""
        if stem.startswith("blk."):
            _, layer, stem = stem.split(".", 2)
            prefix = f"layers.{layer}."
        other, kind = NAMES[stem]
        name = prefix + other
        if kind == "i64":
            put(name, "I64", np.asarray(tensor.data).view(np.int32).astype(np.int64))
            continue
        x = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        x = x.reshape([int(n) for n in reversed(tensor.shape)])
        if kind == "fp4":
            for e, matrix in enumerate(x):
                codes, scale = to_fp4(matrix)
                put(name.format(e), "I8", codes)
                put(name.format(e).replace(".weight", ".scale"), "F8_E8M0", scale)
        elif kind == "fp8":
            codes, scale = to_fp8(x)
            put(name, "F8_E4M3", codes)
            put(name.replace(".weight", ".scale"), "F8_E8M0", scale)
        elif kind == "bf16":
            put(name, "BF16", to_bf16(x))
        else:
            put(name, "F32", x)
    out.mkdir(parents=True)
    write(out / "model-00001-of-00001.safetensors", tensors)
    config = {
        "num_hidden_layers": field("block_count"), "max_position_embeddings": field("context_length"),
        "hidden_size": field("embedding_length"), "vocab_size": field("vocab_size"),
        "num_attention_heads": field("attention.head_count"), "num_key_value_heads": 1,
        "head_dim": field("attention.key_length"), "q_lora_rank": field("attention.q_lora_rank"),
        "o_lora_rank": field("attention.output_lora_rank"), "o_groups": field("attention.output_group_count"),
        "sliding_window": field("attention.sliding_window"), "index_n_heads": field("attention.indexer.head_count"),
        "index_head_dim": field("attention.indexer.key_length"), "index_topk": field("attention.indexer.top_k"),
        "qk_rope_head_dim": field("rope.dimension_count"), "n_routed_experts": field("expert_count"),
        "num_experts_per_tok": field("expert_used_count"), "n_shared_experts": 1,
        "moe_intermediate_size": field("expert_feed_forward_length"), "num_hash_layers": field("hash_layer_count"),
        "hc_mult": field("hyper_connection.count"), "hc_sinkhorn_iters": field("hyper_connection.sinkhorn_iterations"),
        "hc_eps": float(field("hyper_connection.epsilon")),
        "rms_norm_eps": float(field("attention.layer_norm_rms_epsilon")),
        "compress_rope_theta": float(field("attention.compress_rope_freq_base")),
        "rope_theta": float(field("rope.freq_base")), "routed_scaling_factor": float(field("expert_weights_scale")),
        "scoring_func": "sqrtsoftplus", "swiglu_limit": float(field("swiglu_clamp_exp")[0]),
        "compress_ratios": [int(n) for n in field("attention.compress_ratios")], "num_nextn_predict_layers": 0,
        "rope_scaling": {
            "type": "yarn", "factor": float(field("rope.scaling.factor")),
            "original_max_position_embeddings": int(field("rope.scaling.original_context_length")),
            "beta_fast": float(field("rope.scaling.yarn_beta_fast")),
            "beta_slow": float(field("rope.scaling.yarn_beta_slow")),
        },
    }
    (out / "config.json").write_text(json.dumps(config))
    shutil.copy(tokenizer, out / "tokenizer.json")


def random(out: Path, tokenizer: Path, n_layers: int, n_experts: int) -> None:
    dice = np.random.default_rng(1)
    ratios = [0, 0, *[4, 128] * n_layers][:n_layers] if n_layers > 2 else [0, 4][:n_layers]
    n_hash = min(3, max(1, n_layers - 1))
    config = dict(FLASH, num_hidden_layers=n_layers, n_routed_experts=n_experts, num_hash_layers=n_hash, compress_ratios=ratios)
    d, f, v = config["hidden_size"], config["moe_intermediate_size"], config["vocab_size"]

    # Random bits of numbers of a few sizes, which is much faster than drawing normal ones.
    def bits(*shape):
        return np.frombuffer(dice.bytes(int(np.prod(shape))), np.uint8).reshape(shape)

    def fp8(name, n_out, n_in):
        code = lambda: (bits(n_out, n_in) & 0x87) | ((4 + (bits(n_out, n_in) & 7)) << 3).astype(np.uint8)
        scale = (-(-n_out // 128), -(-n_in // 128))
        yield f"{name}.weight", "F8_E4M3", (n_out, n_in), code
        yield f"{name}.scale", "F8_E8M0", scale, lambda: np.full(scale, 127 - 9, np.uint8)

    def fp4(name, n_out, n_in):
        scale = (n_out, n_in // 32)
        yield f"{name}.weight", "I8", (n_out, n_in // 2), lambda: bits(n_out, n_in // 2)
        yield f"{name}.scale", "F8_E8M0", scale, lambda: 127 - 8 + bits(*scale) % 3

    def bf16(name, *shape):
        def make():
            word = bits(*shape).astype(np.uint16)
            return (word & 0x7F) | ((word & 0x80) << 8) | ((117 + (bits(*shape) & 3).astype(np.uint16)) << 7)
        yield name, "BF16", shape, make

    def ones(name, n):
        yield name, "BF16", (n,), lambda: np.full(n, 0x3F80, np.uint16)

    def f32(name, *shape, scale=0.02):
        yield name, "F32", shape, lambda: (scale * dice.standard_normal(shape)).astype(np.float32)

    def layer(i):
        p, ratio = f"layers.{i}.", ratios[i]
        for side in ("attn", "ffn"):
            yield from ones(f"{p}{side}_norm.weight", d)
            yield from f32(f"{p}hc_{side}_fn", 24, 4 * d)
            yield from f32(f"{p}hc_{side}_base", 24)
            yield from f32(f"{p}hc_{side}_scale", 3, scale=1.0)
        yield from fp8(f"{p}attn.wq_a", 1024, d)
        yield from ones(f"{p}attn.q_norm.weight", 1024)
        yield from fp8(f"{p}attn.wq_b", 32768, 1024)
        yield from fp8(f"{p}attn.wkv", 512, d)
        yield from ones(f"{p}attn.kv_norm.weight", 512)
        yield from f32(f"{p}attn.attn_sink", 64)
        yield from fp8(f"{p}attn.wo_a", 8192, d)
        yield from fp8(f"{p}attn.wo_b", d, 8192)
        if ratio:
            n = 1024 if ratio == 4 else 512
            for name in ("wkv", "wgate"):
                yield from bf16(f"{p}attn.compressor.{name}.weight", n, d)
            yield from f32(f"{p}attn.compressor.ape", ratio, n)
            yield from ones(f"{p}attn.compressor.norm.weight", 512)
        if ratio == 4:
            yield from fp8(f"{p}attn.indexer.wq_b", 8192, 1024)
            yield from bf16(f"{p}attn.indexer.weights_proj.weight", 64, d)
            for name in ("wkv", "wgate"):
                yield from bf16(f"{p}attn.indexer.compressor.{name}.weight", 256, d)
            yield from f32(f"{p}attn.indexer.compressor.ape", 4, 256)
            yield from ones(f"{p}attn.indexer.compressor.norm.weight", 128)
        yield from bf16(f"{p}ffn.gate.weight", n_experts, d)
        if i < n_hash:
            first = lambda: dice.integers(0, n_experts, (v, 1)) + np.arange(6) * 5
            yield f"{p}ffn.gate.tid2eid", "I64", (v, 6), lambda: first() % n_experts
        else:
            yield from f32(f"{p}ffn.gate.bias", n_experts)
        for e in range(n_experts):
            yield from fp4(f"{p}ffn.experts.{e}.w1", f, d)
            yield from fp4(f"{p}ffn.experts.{e}.w2", d, f)
            yield from fp4(f"{p}ffn.experts.{e}.w3", f, d)
        yield from fp8(f"{p}ffn.shared_experts.w1", f, d)
        yield from fp8(f"{p}ffn.shared_experts.w2", d, f)
        yield from fp8(f"{p}ffn.shared_experts.w3", f, d)

    def rest():
        yield from bf16("embed.weight", v, d)
        yield from bf16("head.weight", v, d)
        yield from ones("norm.weight", d)
        yield from f32("hc_head_fn", 4, 4 * d)
        yield from f32("hc_head_base", 4)
        yield from f32("hc_head_scale", 1, scale=1.0)

    out.mkdir(parents=True)
    files = [*(list(layer(i)) for i in range(n_layers)), list(rest())]
    for i, tensors in enumerate(files):
        write(out / f"model-{i + 1:05}-of-{len(files):05}.safetensors", tensors)
    (out / "config.json").write_text(json.dumps(config))
    shutil.copy(tokenizer, out / "tokenizer.json")


def main() -> None:
    parser = argparse.ArgumentParser(description="checkpoints in the publisher's layout")
    commands = parser.add_subparsers(required=True, dest="command")
    one = commands.add_parser("small")
    one.add_argument("out", type=Path)
    one.add_argument("model", type=Path, nargs="?", default=HERE / "ds4-small-q8_0.gguf")
    one.add_argument("tokenizer", type=Path, nargs="?", default=HERE / "train/tokenizer.json")
    two = commands.add_parser("random")
    two.add_argument("out", type=Path)
    two.add_argument("tokenizer", type=Path)
    two.add_argument("--layers", type=int, default=3)
    two.add_argument("--experts", type=int, default=256)
    args = parser.parse_args()
    if args.command == "small":
        small(args.out, args.model, args.tokenizer)
    else:
        random(args.out, args.tokenizer, args.layers, args.experts)


if __name__ == "__main__":
    main()
