"""Writes a checkpoint as a GGUF file.

    python export.py CHECKPOINT.npz OUT.gguf [q8_0|f16]

q8_0: every matrix Q8_0; hyper-connection matrices, positional biases and routers F16; vectors F32. f16: every matrix F16.
"""

from __future__ import annotations

import json
import pathlib
import sys

import gguf
import numpy as np

import names
from network import Config

HERE = pathlib.Path(__file__).parent
LIMIT_BYTES = 16_000_000


def tokenizer_metadata(w: gguf.GGUFWriter, cfg: Config) -> None:
    t = json.loads((HERE / "tokenizer.json").read_text(encoding="utf-8"))
    by_id = {i: token for token, i in t["model"]["vocab"].items()}
    types = [gguf.TokenType.NORMAL] * cfg.vocab_size
    for added in t["added_tokens"]:
        by_id[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    assert sorted(by_id) == list(range(cfg.vocab_size))
    merges = [m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]]
    ids = {token: i for i, token in by_id.items()}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("joyai-llm")
    w.add_token_list([by_id[i] for i in range(cfg.vocab_size)])
    w.add_token_types(types)
    w.add_token_merges(merges)
    w.add_bos_token_id(ids["<｜begin▁of▁sentence｜>"])
    w.add_eos_token_id(ids["<｜end▁of▁sentence｜>"])
    w.add_pad_token_id(ids["<｜▁pad▁｜>"])
    w.add_add_bos_token(False)
    w.add_add_eos_token(False)


def metadata(w: gguf.GGUFWriter, cfg: Config, kind: str) -> None:
    a = "deepseek4"
    w.add_name("ds4 small built-in model")
    w.add_string("general.description", "A small model of the DeepSeek V4 Flash architecture, trained for trying and testing ds4")
    w.add_license("MIT")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "q8_0" else gguf.LlamaFileType.MOSTLY_F16)
    w.add_quantization_version(2)
    numbers = {
        "block_count": cfg.n_layers, "context_length": cfg.context_length, "embedding_length": cfg.dim, "vocab_size": cfg.vocab_size,
        "attention.head_count": cfg.n_heads, "attention.head_count_kv": 1, "attention.key_length": cfg.head_dim, "attention.value_length": cfg.head_dim,
        "attention.q_lora_rank": cfg.q_lora, "attention.output_lora_rank": cfg.o_lora, "attention.output_group_count": cfg.o_groups,
        "attention.sliding_window": cfg.window, "attention.indexer.head_count": cfg.index_heads, "attention.indexer.key_length": cfg.index_dim,
        "attention.indexer.top_k": cfg.index_topk, "rope.dimension_count": cfg.rope_dim, "rope.scaling.original_context_length": cfg.yarn_original,
        "expert_count": cfg.n_experts, "expert_used_count": cfg.n_experts_used, "expert_shared_count": 1, "expert_feed_forward_length": cfg.expert_dim,
        "expert_gating_func": 4, "hash_layer_count": cfg.n_hash_layers, "hyper_connection.count": cfg.n_hc,
        "hyper_connection.sinkhorn_iterations": cfg.sinkhorn_iters, "nextn_predict_layers": 0,
    }
    for key, value in numbers.items():
        w.add_uint32(f"{a}.{key}", value)
    for key, value in {
        "attention.layer_norm_rms_epsilon": 1e-6, "attention.compress_rope_freq_base": cfg.compress_rope_theta, "rope.freq_base": cfg.rope_theta,
        "rope.scaling.factor": cfg.yarn_factor, "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0,
        "expert_weights_scale": cfg.route_scale, "hyper_connection.epsilon": 1e-6,
    }.items():
        w.add_float32(f"{a}.{key}", value)
    w.add_string(f"{a}.rope.scaling.type", "yarn")
    w.add_bool(f"{a}.expert_weights_norm", True)
    w.add_array(f"{a}.attention.compress_ratios", list(cfg.compress_ratios))
    w.add_array(f"{a}.swiglu_clamp_exp", [cfg.swiglu_clamp] * cfg.n_layers)


def main() -> None:
    source, target = sys.argv[1], sys.argv[2]
    kind = sys.argv[3] if len(sys.argv) > 3 else "q8_0"
    cfg = Config()
    w = gguf.GGUFWriter(target, "deepseek4")
    metadata(w, cfg, kind)
    tokenizer_metadata(w, cfg)
    arrays = np.load(source)
    for name in names.table(cfg):
        value = arrays[name]
        k = names.kind_of(name, value.shape, kind)
        if k == "i32":
            w.add_tensor(name, value.astype(np.int32))
        elif k == "q8_0":
            w.add_tensor(name, gguf.quants.quantize(value.astype(np.float32), gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            w.add_tensor(name, value.astype(np.float16 if k == "f16" else np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    size = pathlib.Path(target).stat().st_size
    print(f"{target}: {size} bytes")
    assert kind != "q8_0" or size <= LIMIT_BYTES, f"more than {LIMIT_BYTES} bytes"


if __name__ == "__main__":
    main()
