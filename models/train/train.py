"""Trains the small model.

    python train.py --out FOLDER --minutes 26 [--start CHECKPOINT] [--stages 512:0.25,...]

Time decides: learning rate and stage follow the share of the minutes that has passed, so that the run fits its
slot on any machine. FOLDER receives checkpoint.npz (f16 weights by GGUF name) every minute and log.txt.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import names
import network
from data import Mix, batches
from network import Config, Network

HERE = pathlib.Path(__file__).parent

# (tokens in a row, share of the time, sparse selection, cache rounding, weight of the prompt's tokens, document lengths)
SHORT = Mix(((0.45, 40, 140), (0.35, 120, 300), (0.2, 300, 500)))
MIXED = Mix(((0.3, 40, 250), (0.4, 450, 950), (0.3, 950, 2000)))
LONG = Mix(((0.25, 40, 300), (0.35, 450, 1200), (0.2, 1200, 2000), (0.2, 2000, 4000)))
STAGES = {
    "short": (512, False, False, 0.2, SHORT),
    "mixed": (2048, False, False, 0.1, MIXED),
    "sparse": (2048, True, True, 0.1, MIXED),
    "long": (4096, True, True, 0.1, LONG),
}


class Muon:
    """Momentum orthogonalised by five Newton-Schulz steps, for stacks of equal matrices."""

    def __init__(self, params: list[torch.nn.Parameter], split: dict, momentum: float = 0.95, decay: float = 0.1):
        self.momentum, self.decay = momentum, decay
        groups: dict[tuple, list] = {}
        for q in params:
            n = split.get(q, 1)
            shape = (n, q.shape[0] // n, q.shape[1]) if q.dim() == 2 else tuple(q.shape)
            groups.setdefault(shape[1:], []).append((q, shape))
        self.groups = [(items, torch.zeros(sum(s[0] for _, s in items), *shape, device=items[0][0].device)) for shape, items in groups.items()]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for items, buffer in self.groups:
            g = torch.cat([q.grad.view(s) for q, s in items])
            buffer.lerp_(g, 1 - self.momentum)
            u = orthogonal(g.lerp(buffer, self.momentum))
            u *= lr * max(1.0, u.shape[1] / u.shape[2]) ** 0.5
            at = 0
            for q, s in items:
                q.mul_(1 - lr * self.decay)
                q.view(s).sub_(u[at : at + s[0]])
                at += s[0]


@torch.compile(dynamic=False, disable=not torch.cuda.is_available())
def orthogonal(g: torch.Tensor) -> torch.Tensor:
    x = g.bfloat16() / (g.norm(dim=(1, 2), keepdim=True) + 1e-12).bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    for _ in range(5):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.transpose(1, 2) if tall else x).float()


def optimizers(net: Network):
    matrices, split, slow, fast = [], {}, [], []
    for name, q in net.named_parameters():
        last = name.split(".")[-1]
        if "norm" in last or last in ("base", "scale", "attn_sinks", "ape", "ffn_gate_inp", "proj") or last.startswith("output_hc") or last in ("token_embd", "output"):
            fast.append(q)
        elif last == "fn":
            slow.append(q)
        else:
            matrices.append(q)
            if last == "attn_output_a":
                split[q] = net.cfg.o_groups
    slow.append(net.output_hc_fn)
    fast = [q for q in fast if q is not net.output_hc_fn]
    adam = torch.optim.AdamW([{"params": fast, "base": 3e-3}, {"params": slow, "base": 1e-3}], lr=1e-3, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=torch.cuda.is_available())
    return Muon(matrices, split), adam


def save(net: Network, path: pathlib.Path) -> None:
    state = net.state_dict()
    arrays = {}
    for gguf, ours in names.table(net.cfg).items():
        value = state[ours]
        if "hc_" in gguf or "norm" in gguf or "sinks" in gguf or gguf.endswith("bias"):
            arrays[gguf] = value.float().cpu().numpy()
        elif value.is_floating_point():
            arrays[gguf] = value.half().cpu().numpy()
        else:
            arrays[gguf] = value.to(torch.int16).cpu().numpy()
    part = path.with_suffix(".part.npz")
    np.savez(part, **arrays)
    part.rename(path)


def load(net: Network, path) -> None:
    names.load(net, {k: torch.from_numpy(v.astype(np.float32) if v.dtype.kind == "f" else v.astype(np.int64)) for k, v in np.load(path).items()})


class Rows(torch.utils.data.IterableDataset):
    def __init__(self, stage: str, rows: int, seed: int):
        self.stage, self.rows, self.seed = stage, rows, seed

    def __iter__(self):
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        n_tokens, mix = STAGES[self.stage][0], STAGES[self.stage][4]
        tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
        for batch in batches(tokenizer, self.rows, n_tokens, mix, self.seed * 1000 + (info.id if info else 0)):
            yield tuple(torch.from_numpy(x) for x in batch)


def loader(stage: str, tokens_per_step: int, seed: int, workers: int):
    data = Rows(stage, max(1, tokens_per_step // STAGES[stage][0]), seed)
    return iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None, pin_memory=torch.cuda.is_available()))


def losses(net: Network, hidden, tokens, weight, dtype):
    logits = net.logits(hidden.to(dtype)).float()
    target = torch.roll(tokens, -1, 1)
    ce = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(tokens.shape)
    said, prompt = (weight == 1).float(), (weight == 2).float()
    right = ((logits.argmax(-1) == target).float() * said).sum() / said.sum()
    return (ce * said).sum() / said.sum(), (ce * prompt).sum() / prompt.sum().clamp_min(1), right


def main() -> None:
    a = argparse.ArgumentParser()
    a.add_argument("--out", type=pathlib.Path, required=True)
    a.add_argument("--minutes", type=float, default=26)
    a.add_argument("--start", type=pathlib.Path)
    a.add_argument("--stages", default="short:0.22,mixed:0.40,sparse:0.28,long:0.10")
    a.add_argument("--tokens", type=int, default=65536, help="tokens in a step")
    a.add_argument("--lr", type=float, default=0.02)
    a.add_argument("--flat", type=float, default=0.4, help="share of the time before the learning rate falls")
    a.add_argument("--workers", type=int, default=14)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--eager", action="store_true")
    args = a.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log = open(args.out / "log.txt", "a")

    def say(text: str) -> None:
        print(text, flush=True)
        log.write(text + "\n")
        log.flush()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(args.seed)
    net = Network(Config())
    if args.start:
        load(net, args.start)
    net.to(device)
    say(f"{sum(q.numel() for q in net.parameters()) / 1e6:.2f} M parameters on {device}")
    muon, adam = optimizers(net)
    loss_of = losses
    if not args.eager:
        compile_parts(net)
        loss_of = torch.compile(losses, dynamic=False)

    stages = [(n, float(share)) for n, share in (s.split(":") for s in args.stages.split(","))]
    total = sum(share for _, share in stages)
    bounds, acc = [], 0.0
    for _, share in stages:
        acc += share / total
        bounds.append(acc)
    begin, step, current, feed = time.time(), 0, -1, None
    loaders = {}
    saved, seen = time.time(), 0
    while True:
        done = (time.time() - begin) / (60 * args.minutes)
        if done >= 1:
            break
        stage = next(i for i, b in enumerate(bounds) if done < b or b == bounds[-1])
        if stage != current:
            current = stage
            feed = loader(stages[stage][0], args.tokens, args.seed * 100 + stage, args.workers)
            say(f"stage {stages[stage][0]} at {done:.3f}")
        n_tokens, sparse, rounding, prompt_weight, _ = STAGES[stages[stage][0]]
        tokens, doc, position, weight = (x.to(device, non_blocking=True).long() for x in next(feed))
        ctx = net.context(position, doc, dtype=dtype, sparse=sparse, rounding=rounding, use_indexer=n_tokens > 512)
        hidden, index_losses, loads = net(tokens, ctx)
        said, prompt, right = loss_of(net, hidden, tokens, weight, dtype)
        loss = said + prompt_weight * prompt + index_losses.sum()
        loss.backward()
        rise = min(1.0, (step + 1) / 100)
        fall = min(1.0, (1 - done) / (1 - args.flat))
        scale = rise * max(fall, 0.01)
        torch.nn.utils.clip_grad_norm_([q for g in adam.param_groups for q in g["params"]], 1.0)
        for q in muon_params(muon):
            if q.grad is None:
                q.grad = torch.zeros_like(q)
        muon.step(args.lr * scale)
        for g in adam.param_groups:
            g["lr"] = g["base"] * scale
        adam.step()
        adam.zero_grad()
        for q in muon_params(muon):
            q.grad = None
        with torch.no_grad():
            for i, layer in enumerate(net.layers):
                if not layer.ffn.hashed:
                    layer.ffn.exp_probs_b += 0.002 * scale * torch.sign(loads[i].mean() - loads[i])
        step += 1
        seen += tokens.numel()
        if step % 50 == 0 or step < 4:
            index = " ".join(f"{x:.2f}" for x in index_losses.tolist() if x)
            spread = " ".join(f"{(l.max() / l.mean()).item():.2f}" for l in loads)
            say(f"step {step} t {time.time() - begin:.0f}s {seen / 1e6:.1f}M tokens, {seen / (time.time() - begin) / 1e3:.0f}k/s: said {said.item():.4f} right {right.item():.4f} prompt {prompt.item():.3f} index {index} load {spread} lr {scale:.3f}")
        if time.time() - saved > 60:
            saved = time.time()
            save(net, args.out / "checkpoint.npz")
    save(net, args.out / "checkpoint.npz")
    if device == "cuda":
        say(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    say("finished")
    import os

    os._exit(0)  # the loaders' processes have nothing to finish


def compile_parts(net: Network) -> None:
    """Compiles what the layers share once, and the attention once for each kind of layer."""
    for part in ("hc_pre", "hc_post", "experts"):
        setattr(network, part, torch.compile(getattr(network, part), dynamic=False, fullgraph=True))
    for layer in net.layers:
        layer.attn.compile(dynamic=False, fullgraph=True)


def muon_params(muon: Muon):
    return [q for items, _ in muon.groups for q, _ in items]


if __name__ == "__main__":
    main()
