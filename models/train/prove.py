"""Proves the network against numbers of independent implementations.

    python prove.py GOLDEN_FOLDER TINY_GGUF

GOLDEN_FOLDER holds config.json, prompt.json, official.npy, golden.npz and unit.npz; TINY_GGUF is the random-weight
model they were made with. Rounding of the caches is off for the whole network and proved on its own.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

import names
import network
from network import Config, Network


def read_gguf(path) -> dict[str, torch.Tensor]:
    out = {}
    for t in GGUFReader(path).tensors:
        shape = [int(n) for n in reversed(t.shape)]
        data = t.data if t.tensor_type.name == "I32" else dequantize(t.data, t.tensor_type)
        out[t.name] = torch.from_numpy(np.array(data)).reshape(shape)
    return out


def config_of(c: dict) -> Config:
    n = c["num_hidden_layers"]
    return Config(
        vocab_size=c["vocab_size"], dim=c["hidden_size"], compress_ratios=tuple(c["compress_ratios"][:n]),
        n_heads=c["num_attention_heads"], head_dim=c["head_dim"], rope_dim=c["qk_rope_head_dim"], q_lora=c["q_lora_rank"],
        o_groups=c["o_groups"], o_lora=c["o_lora_rank"], window=c["sliding_window"], index_heads=c["index_n_heads"],
        index_dim=c["index_head_dim"], index_topk=c["index_topk"], n_experts=c["n_routed_experts"],
        n_experts_used=c["num_experts_per_tok"], expert_dim=c["moe_intermediate_size"], n_hash_layers=c["num_hash_layers"],
        route_scale=c["routed_scaling_factor"], swiglu_clamp=c["swiglu_limit"], n_hc=c["hc_mult"],
        sinkhorn_iters=c["hc_sinkhorn_iters"],
    )


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    cfg = config_of(json.loads((folder / "config.json").read_text()))
    net = Network(cfg)
    names.load(net, read_gguf(sys.argv[2]))
    tokens = json.loads((folder / "prompt.json").read_text())
    tokens = torch.tensor(tokens["tokens"] if "tokens" in tokens else tokens["ids"])[None]
    position = torch.arange(tokens.shape[1])[None]
    official = torch.from_numpy(np.load(folder / "official.npy"))
    golden = np.load(folder / "golden.npz")
    with torch.no_grad():
        ctx = net.context(position, torch.zeros_like(position), sparse=True)
        taps: list = []
        hidden, _, _ = net(tokens, ctx, taps)
        logits = net.logits(hidden)[0]
    difference = (logits - official).abs().max().item()
    same = (logits.argmax(-1) == official.argmax(-1)).sum().item()
    print(f"logits: max difference {difference:.3e} from the reference code, {same} of {len(official)} argmax equal")
    rows = torch.from_numpy(golden["positions"].astype(np.int64))
    for i, streams in enumerate(taps):
        want = torch.from_numpy(golden[f"layer{i}.hc_out"])
        got = streams[0, rows]
        print(f"layer {i}: streams max difference {(got - want).abs().max().item():.3e} of {want.abs().max().item():.2f}")
    unit = {k: torch.from_numpy(v) for k, v in np.load(folder / "unit.npz").items()}
    plain = unit["kv_in"].shape[-1] - cfg.rope_dim
    kv = network.kv_round(unit["kv_in"], cfg.rope_dim)[:, :plain]
    assert torch.equal(kv, unit["kv_out"][:, :plain]), "kv_round differs"
    index = network.index_round(unit["idx_in"], network.hadamard(128))
    unequal = (index != unit["idx_out"]).sum().item()
    print(f"kv_round equal on {kv.numel()} values; index_round differs on {unequal} of {index.numel()}")
    assert unequal == 0
    assert difference < 1e-3 and same == len(official)


if __name__ == "__main__":
    main()
