"""Parameters of the network <-> tensors of the GGUF file."""

from __future__ import annotations

import torch

from network import Config, Network


def table(cfg: Config) -> dict[str, str]:
    """GGUF tensor name -> name in `Network.state_dict()`."""
    names = {n + ".weight": n for n in ("token_embd", "output", "output_norm", "output_hc_fn", "output_hc_base", "output_hc_scale")}
    for i, ratio in enumerate(cfg.compress_ratios):
        blk, lay = f"blk.{i}.", f"layers.{i}."
        for n in ("attn_norm", "ffn_norm"):
            names[f"{blk}{n}.weight"] = lay + n
        for part in ("attn", "ffn"):
            for n in ("fn", "base", "scale"):
                names[f"{blk}hc_{part}_{n}.weight"] = f"{lay}hc_{part}.{n}"
        for n in ("attn_q_a", "attn_q_a_norm", "attn_q_b", "attn_kv", "attn_kv_a_norm", "attn_sinks", "attn_output_a", "attn_output_b"):
            names[f"{blk}{n}.weight"] = f"{lay}attn.{n}"
        if ratio:
            for n in ("kv", "gate", "ape", "norm"):
                names[f"{blk}attn_compressor_{n}.weight"] = f"{lay}attn.compressor.{n}"
        if ratio == 4:
            for n in ("attn_q_b", "proj"):
                names[f"{blk}indexer.{n}.weight"] = f"{lay}attn.indexer.{n}"
            for n in ("kv", "gate", "ape", "norm"):
                names[f"{blk}indexer_compressor_{n}.weight"] = f"{lay}attn.indexer.compressor.{n}"
        moe = ["ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"]
        if i < cfg.n_hash_layers:
            moe.append("ffn_gate_tid2eid")
        else:
            names[f"{blk}exp_probs_b.bias"] = f"{lay}ffn.exp_probs_b"
        for n in moe:
            names[f"{blk}{n}.weight"] = f"{lay}ffn.{n}"
    return names


def kind_of(name: str, shape: tuple, kind: str) -> str:
    """The type of a tensor in the file whose matrices are `kind`."""
    if name.endswith("tid2eid.weight"):
        return "i32"
    if len(shape) == 1 or "_norm" in name:
        return "f32"
    if "hc_" in name or "_ape" in name or "ffn_gate_inp" in name or "indexer.proj" in name:
        return "f16"
    return kind


def load(net: Network, tensors: dict[str, torch.Tensor]) -> None:
    """Copies tensors by GGUF name into the network; every tensor must be there and of the right shape."""
    state, names = net.state_dict(), table(net.cfg)
    missing = set(names.values()) ^ set(state)
    assert not missing, f"names that do not match: {sorted(missing)}"
    assert set(names) == set(tensors), sorted(set(names) ^ set(tensors))
    for gguf, ours in names.items():
        value = tensors[gguf]
        assert value.numel() == state[ours].numel(), (gguf, value.shape, state[ours].shape)
        state[ours].copy_(value.reshape(state[ours].shape))
