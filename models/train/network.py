"""The network of DeepSeek V4 in PyTorch, in the form that trains: whole rows of tokens at once.

Parameters carry the names of the GGUF file (dots become underscores in attribute names), so that export and
import are a table. Packed rows are allowed: several documents in one row, each starting at a multiple of 128.

Shapes use B rows, T tokens in a row, S = n_hc residual streams, D = dim, H = heads, d = head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from sinkhorn import EPS, normalise_alternately


@dataclass(frozen=True)
class Config:
    """The geometry. The defaults are those of the small built-in model."""

    vocab_size: int = 2048
    dim: int = 256
    compress_ratios: tuple[int, ...] = (0, 0, 4, 128, 4, 128, 4)
    n_heads: int = 4
    head_dim: int = 256
    rope_dim: int = 64
    q_lora: int = 256
    o_groups: int = 2
    o_lora: int = 128
    window: int = 128
    index_heads: int = 4
    index_dim: int = 128
    index_topk: int = 64
    n_experts: int = 4
    n_experts_used: int = 2
    expert_dim: int = 256
    n_hash_layers: int = 3
    route_scale: float = 1.5
    swiglu_clamp: float = 10.0
    n_hc: int = 4
    sinkhorn_iters: int = 20
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    yarn_factor: float = 16.0
    yarn_original: int = 65536
    context_length: int = 65536

    @property
    def n_layers(self) -> int:
        return len(self.compress_ratios)


def linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x W^T in the type of x: bf16 activations meet bf16 copies of the weights, f32 stays f32."""
    return F.linear(x, w.to(x.dtype))


def rms(x: torch.Tensor) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, in f32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


def rope_frequencies(cfg: Config, compressed: bool) -> torch.Tensor:
    """Angular frequency of each rotation pair, f32 [rope_dim / 2]; YaRN on layers that compress."""
    r = cfg.rope_dim
    theta = cfg.compress_rope_theta if compressed else cfg.rope_theta
    i = torch.arange(r // 2, dtype=torch.float64)
    inv = (theta ** (-2.0 * i / r)).float().double()
    if compressed:
        def turn(b: float) -> float:
            return r * math.log(cfg.yarn_original / (b * 2 * math.pi)) / (2 * math.log(theta))

        low, high = max(math.floor(turn(32)), 0), min(math.ceil(turn(1)), r - 1)
        ramp = ((i - low) / (high - low)).clamp(0, 1)
        inv = inv / cfg.yarn_factor * ramp + inv * (1 - ramp)
    return inv.float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """Rotates the last 2*n channels of x in interleaved pairs; cos and sin broadcast to [..., n]."""
    n = cos.shape[-1]
    keep, turn = x[..., : -2 * n], x[..., -2 * n :]
    a, b = turn.unflatten(-1, (n, 2)).unbind(-1)
    if inverse:
        sin = -sin
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    return torch.cat((keep, turned), dim=-1)


def power_of_two_at_least(x: torch.Tensor) -> torch.Tensor:
    """2^ceil(log2(x)) for positive normal f32, exactly, from the bits."""
    bits = x.contiguous().view(torch.int32)
    exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0).int()
    return (exponent << 23).view(torch.float32)


def straight_through(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    return x + (rounded - x).detach()


def kv_round(x: torch.Tensor, rope_dim: int) -> torch.Tensor:
    """Cache rounding of a KV row: E4M3 in blocks of 64 with power-of-two scales, rope channels to bf16."""
    y = x.detach().float()
    plain, turned = y[..., :-rope_dim], y[..., -rope_dim:]
    blocks = plain.unflatten(-1, (-1, 64))
    amax = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-4)
    s = power_of_two_at_least(amax * torch.tensor(1 / 448, dtype=torch.float32, device=x.device))
    codes = (blocks / s).clamp(-448, 448).to(torch.float8_e4m3fn)
    plain = (codes.to(torch.float32) * s).flatten(-2)
    return straight_through(x, torch.cat((plain, turned.bfloat16().float()), dim=-1))


def hadamard(n: int) -> torch.Tensor:
    h = torch.ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)), 0)
    return h * n**-0.5


def round_e2m1(x: torch.Tensor) -> torch.Tensor:
    """Nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 with sign; ties to the even code."""
    a = x.abs()
    fine, middle, coarse = torch.round(a * 2) / 2, torch.round(a), torch.round(a / 2) * 2
    return torch.where(a < 2, fine, torch.where(a < 4, middle, coarse)) * x.sign()


def index_round(x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Indexer rounding: Hadamard rotation, then FP4 in blocks of 32 with power-of-two scales."""
    x = x.float() @ h
    blocks = x.detach().unflatten(-1, (-1, 32))
    amax = blocks.abs().amax(-1, keepdim=True).clamp_min(6 * 2.0**-126)
    s = power_of_two_at_least(amax * torch.tensor(1 / 6, dtype=torch.float32, device=x.device))
    return straight_through(x, (round_e2m1((blocks / s).clamp(-6, 6)) * s).flatten(-2))


def hc_pre(streams, fn, base, scale, norm, n_iters: int, dtype: torch.dtype):
    """[N,S,D] -> the sublayer's input (normalised) [N,D], post [N,S], comb [N,S,S] (first S is the source)."""
    n = streams.shape[1]
    v = streams.flatten(1)
    mix = F.linear(v, fn) * torch.rsqrt(v.square().mean(-1, keepdim=True) + EPS)
    pre = torch.sigmoid(mix[:, :n] * scale[0] + base[:n]) + EPS
    post = 2 * torch.sigmoid(mix[:, n : 2 * n] * scale[1] + base[n : 2 * n])
    comb = (mix[:, 2 * n :] * scale[2] + base[2 * n :]).unflatten(-1, (n, n)).softmax(-1) + EPS
    comb, _ = normalise_alternately(comb, 2 * n_iters - 1)
    x = (pre.unsqueeze(-1) * streams).sum(1)
    return (rms(x) * norm).to(dtype), post, comb


def hc_post(streams, y, post, comb):
    """[N,S,D], [N,D] -> the streams after the sublayer."""
    mixed = (comb.unsqueeze(-1) * streams.unsqueeze(2)).sum(1)
    return post.unsqueeze(-1) * y.float().unsqueeze(1) + mixed


class HyperConnection(nn.Module):
    """Parameters of the width reduction before a sublayer and the expansion after it."""

    def __init__(self, cfg: Config, index: int):
        super().__init__()
        n = cfg.n_hc
        self.fn = nn.Parameter(torch.randn(n * (2 + n), n * cfg.dim) * 0.5 / math.sqrt(n * cfg.dim))
        base = torch.zeros(n * (2 + n))
        base[:n] = -1.1 + 0.3 * torch.randn(n)
        base[index % n] += 0.5
        base[n : 2 * n] = 0.3 * torch.randn(n)
        base[2 * n :] = (4.0 * torch.eye(n) + 0.3 * torch.randn(n, n)).flatten()
        self.base = nn.Parameter(base)
        self.scale = nn.Parameter(torch.full((3,), 0.5))


def matrix(n_out: int, n_in: int, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(n_out, n_in) * gain / math.sqrt(n_in))


class Compressor(nn.Module):
    """Pools groups of `ratio` tokens into one row (overlapping groups at ratio 4)."""

    def __init__(self, cfg: Config, ratio: int, width: int):
        super().__init__()
        self.ratio, self.width = ratio, width
        w = 2 * width if ratio == 4 else width
        self.kv = matrix(w, cfg.dim)
        self.gate = matrix(w, cfg.dim, 0.5)
        self.ape = nn.Parameter(torch.randn(ratio, w) * 0.3)
        self.norm = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """x [B,T,D] -> rows [B,T//ratio,width], normalised, not yet rotated.

        `first` [B,T//ratio] marks the first row of a document, which has no previous group.
        """
        m, n = self.ratio, x.shape[1] // self.ratio
        x = x[:, : n * m]
        v = linear(x, self.kv).float().unflatten(1, (n, m))
        g = linear(x, self.gate).float().unflatten(1, (n, m)) + self.ape
        if m == 4:
            d = self.width
            v_prev = F.pad(v[..., :d], (0, 0, 0, 0, 1, 0))[:, :-1]
            g_prev = F.pad(g[..., :d], (0, 0, 0, 0, 1, 0))[:, :-1]
            g_prev = g_prev.masked_fill(first[:, :, None, None], -1e30)
            v = torch.cat((v_prev, v[..., d:]), dim=2)
            g = torch.cat((g_prev, g[..., d:]), dim=2)
        row = (g.softmax(2) * v).sum(2)
        return rms(row) * self.norm


class Indexer(nn.Module):
    """Scores the ratio-4 rows for every query (`indexer.*`)."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.attn_q_b = matrix(cfg.index_heads * cfg.index_dim, cfg.q_lora)
        self.proj = matrix(cfg.index_heads, cfg.dim)
        self.compressor = Compressor(cfg, 4, cfg.index_dim)
        self.register_buffer("hadamard", hadamard(cfg.index_dim), persistent=False)

    def forward(self, x, qr, rope, row_rope, first, rounding: bool):
        """Scores [B,T,n_rows]; gradients stop at x and qr."""
        cfg = self.cfg
        x, qr = x.detach(), qr.detach()
        q = linear(qr, self.attn_q_b).float().unflatten(-1, (cfg.index_heads, cfg.index_dim))
        q = rotate(q, rope[0].unsqueeze(2), rope[1].unsqueeze(2))
        k = rotate(self.compressor(x, first), *row_rope)
        if rounding:
            q, k = index_round(q, self.hadamard), index_round(k, self.hadamard)
        w = linear(x, self.proj).float() * (cfg.index_dim**-0.5 * cfg.index_heads**-0.5)
        b, t = q.shape[:2]
        s = torch.bmm(q.flatten(1, 2).to(x.dtype), k.to(x.dtype).transpose(1, 2)).view(b, t, cfg.index_heads, -1)
        return (s.relu().float() * w.unsqueeze(-1)).sum(2)


class Attention(nn.Module):
    def __init__(self, cfg: Config, ratio: int):
        super().__init__()
        self.cfg, self.ratio = cfg, ratio
        h, d, g = cfg.n_heads, cfg.head_dim, cfg.o_groups
        self.attn_q_a = matrix(cfg.q_lora, cfg.dim)
        self.attn_q_a_norm = nn.Parameter(torch.ones(cfg.q_lora))
        self.attn_q_b = matrix(h * d, cfg.q_lora)
        self.attn_kv = matrix(d, cfg.dim)
        self.attn_kv_a_norm = nn.Parameter(torch.ones(d))
        self.attn_sinks = nn.Parameter(torch.zeros(h))
        self.attn_output_a = matrix(g * cfg.o_lora, h // g * d)
        self.attn_output_b = matrix(cfg.dim, g * cfg.o_lora, 0.2)
        if ratio:
            self.compressor = Compressor(cfg, ratio, d)
        if ratio == 4:
            self.indexer = Indexer(cfg)

    def forward(self, x, ctx):
        """x [B,T,D] (normalised) -> y [B,T,D], indexer loss (scalar)."""
        cfg, m = self.cfg, self.ratio
        h, d, w = cfg.n_heads, cfg.head_dim, cfg.window
        b, t, _ = x.shape
        nb = t // w
        scale = d**-0.5
        rope = ctx.rope_compressed if m else ctx.rope_plain
        dtype = x.dtype

        qr = (rms(linear(x, self.attn_q_a)) * self.attn_q_a_norm).to(dtype)
        q = rms(linear(qr, self.attn_q_b).unflatten(-1, (h, d)))
        q = rotate(q, rope[0].unsqueeze(2), rope[1].unsqueeze(2)).to(dtype)
        kv = rotate(rms(linear(x, self.attn_kv)) * self.attn_kv_a_norm, *rope)
        if ctx.rounding:
            kv = kv_round(kv, cfg.rope_dim)
        kv = kv.to(dtype)

        # Window rows: each block of w queries sees its own block of keys and the one before.
        blocks = kv.view(b, nb, w, d)
        keys = torch.cat((F.pad(blocks, (0, 0, 0, 0, 1, 0))[:, :-1], blocks), dim=2).flatten(0, 1)
        lw = torch.bmm(q.view(b * nb, w * h, d), keys.transpose(1, 2)).view(b, nb, w, h, 2 * w)
        lw = lw.float() * scale + ctx.window_bias.unsqueeze(3)
        sink = self.attn_sinks.float()[:, None]
        top = torch.maximum(lw.amax(-1, keepdim=True), sink)
        index_loss = x.new_zeros((), dtype=torch.float32)

        if not m:
            top = top.detach()
            e = torch.exp(lw - top)
            p = e / (e.sum(-1, keepdim=True) + torch.exp(sink - top))
            o = torch.bmm(p.view(b * nb, w * h, 2 * w).to(dtype), keys).view(b, t, h, d)
        else:
            n = t // m
            first = ctx.first4 if m == 4 else ctx.first128
            row_rope = (rope[0][:, : n * m : m], rope[1][:, : n * m : m])
            rows = rotate(self.compressor(x, first), *row_rope)
            if ctx.rounding:
                rows = kv_round(rows, cfg.rope_dim)
            rows = rows.to(dtype)
            visible = ctx.visible4 if m == 4 else ctx.visible128  # [B,T,n]
            lc = torch.bmm(q.view(b, t * h, d), rows.transpose(1, 2)).view(b, t, h, n).float() * scale
            lc = lc.masked_fill(~visible.unsqueeze(2), -1e30)
            top = torch.maximum(top.view(b, t, h, 1), lc.amax(-1, keepdim=True)).detach()
            ew = torch.exp(lw - top.view(b, nb, w, h, 1))
            ec = torch.exp(lc - top)
            base = ew.sum(-1, keepdim=True).view(b, t, h, 1) + torch.exp(sink - top)
            if m == 4 and ctx.use_indexer:
                score = self.indexer(x, qr, rope, row_rope, first, ctx.rounding)
                score = score.masked_fill(~visible, -1e30)
                if ctx.want_index_loss:
                    with torch.no_grad():
                        mass = (ec / (base + ec.sum(-1, keepdim=True))).sum(2)  # [B,T,n]
                        total = mass.sum(-1, keepdim=True)
                        target = mass / total.clamp_min(1e-9)
                        weight = total.squeeze(-1) * ctx.real
                    cross = -(target * torch.log_softmax(score, -1).clamp_min(-1e4)).sum(-1)
                    index_loss = (cross * weight).sum() / weight.sum().clamp_min(1.0)
                if ctx.sparse and n > cfg.index_topk:
                    kth = torch.topk(score.detach(), cfg.index_topk, dim=-1).values[..., -1:]
                    ec = ec * (score.detach() >= kth).unsqueeze(2)
            inv = 1 / (base + ec.sum(-1, keepdim=True))
            pc = (ec * inv).to(dtype).view(b, t * h, n)
            pw = (ew * inv.view(b, nb, w, h, 1)).to(dtype)
            o = torch.bmm(pw.view(b * nb, w * h, 2 * w), keys).view(b, t, h, d)
            o = o + torch.bmm(pc, rows).view(b, t, h, d)

        o = rotate(o.float(), rope[0].unsqueeze(2), rope[1].unsqueeze(2), inverse=True).to(dtype)
        g = cfg.o_groups
        u = torch.einsum("btgi,gri->btgr", o.reshape(b, t, g, -1), self.attn_output_a.to(dtype).unflatten(0, (g, -1)))
        return linear(u.flatten(-2), self.attn_output_b), index_loss


class MixtureOfExperts(nn.Module):
    """Routed experts (hash table or top-k) and the shared expert."""

    def __init__(self, cfg: Config, index: int):
        super().__init__()
        self.cfg, self.hashed = cfg, index < cfg.n_hash_layers
        e, f, dim = cfg.n_experts, cfg.expert_dim, cfg.dim
        self.ffn_gate_inp = matrix(e, dim)
        if self.hashed:
            g = torch.Generator().manual_seed(1000 + index)
            table = torch.stack([torch.randperm(e, generator=g)[: cfg.n_experts_used] for _ in range(cfg.vocab_size)])
            self.register_buffer("ffn_gate_tid2eid", table)
        else:
            self.register_buffer("exp_probs_b", torch.zeros(e))
        self.ffn_gate_exps = nn.Parameter(torch.randn(e, f, dim) / math.sqrt(dim))
        self.ffn_up_exps = nn.Parameter(torch.randn(e, f, dim) / math.sqrt(dim))
        self.ffn_down_exps = nn.Parameter(torch.randn(e, dim, f) * 0.2 / math.sqrt(f))
        self.ffn_gate_shexp = matrix(f, dim)
        self.ffn_up_shexp = matrix(f, dim)
        self.ffn_down_shexp = matrix(dim, f, 0.2)

    def forward(self, x32, tokens, dtype):
        """x32 [N,D] f32 -> y [N,D], load [E] (share of tokens that chose each expert)."""
        table = self.ffn_gate_tid2eid if self.hashed else None
        bias = None if self.hashed else self.exp_probs_b
        return experts(x32, tokens, table, bias, self.ffn_gate_inp, self.ffn_gate_exps, self.ffn_up_exps, self.ffn_down_exps,
                       self.ffn_gate_shexp, self.ffn_up_shexp, self.ffn_down_shexp, self.cfg.n_experts_used, self.cfg.route_scale, self.cfg.swiglu_clamp, dtype)


def experts(x32, tokens, table, bias, router, gate, up, down, gate_shared, up_shared, down_shared, n_used: int, route_scale: float, clamp: float, dtype):
    """Every expert computed for every token, the unselected ones weighted with zero."""
    e, f, _ = gate.shape
    s = torch.sqrt(F.softplus(F.linear(x32, router)))
    chosen = table[tokens] if table is not None else torch.topk(s.detach() + bias, n_used, dim=-1).indices
    mask = (chosen.unsqueeze(-1) == torch.arange(e, device=s.device)).sum(-2).to(s.dtype)
    wt = s * mask
    wt = route_scale * wt / wt.sum(-1, keepdim=True)
    load = mask.detach().mean(0)
    x = x32.to(dtype)
    g = linear(x, torch.cat((gate.flatten(0, 1), gate_shared))).float().clamp(max=clamp)
    u = linear(x, torch.cat((up.flatten(0, 1), up_shared))).float().clamp(-clamp, clamp)
    wt = torch.cat((wt, torch.ones_like(wt[:, :1])), dim=-1)
    a = (F.silu(g) * u).unflatten(-1, (e + 1, f)) * wt.unsqueeze(-1)
    return linear(a.flatten(-2).to(dtype), torch.cat((down.transpose(0, 1).flatten(1), down_shared), dim=1)), load


class Layer(nn.Module):
    def __init__(self, cfg: Config, index: int):
        super().__init__()
        self.attn_norm = nn.Parameter(torch.ones(cfg.dim))
        self.ffn_norm = nn.Parameter(torch.ones(cfg.dim))
        self.hc_attn = HyperConnection(cfg, 2 * index)
        self.hc_ffn = HyperConnection(cfg, 2 * index + 1)
        self.attn = Attention(cfg, cfg.compress_ratios[index])
        self.ffn = MixtureOfExperts(cfg, index)

    def forward(self, streams, tokens, ctx):
        """streams [N,S,D], tokens [N] with N = B*T."""
        b, t = ctx.real.shape
        hc, n = self.hc_attn, self.attn.cfg.sinkhorn_iters
        x, post, comb = hc_pre(streams, hc.fn, hc.base, hc.scale, self.attn_norm, n, ctx.dtype)
        y, index_loss = self.attn(x.view(b, t, -1), ctx)
        streams = hc_post(streams, y.flatten(0, 1), post, comb)
        hc = self.hc_ffn
        x, post, comb = hc_pre(streams, hc.fn, hc.base, hc.scale, self.ffn_norm, n, torch.float32)
        y, load = self.ffn(x, tokens, ctx.dtype)
        return hc_post(streams, y, post, comb), index_loss, load


@dataclass
class Context:
    """What all layers share for one batch: rotations, masks, switches."""

    rope_plain: tuple
    rope_compressed: tuple
    window_bias: torch.Tensor  # [B,nb,w,2w]: 0 where visible, -1e30 elsewhere
    first4: torch.Tensor
    first128: torch.Tensor
    visible4: torch.Tensor
    visible128: torch.Tensor
    real: torch.Tensor  # [B,T] f32: 1 where there is a document
    dtype: torch.dtype = torch.float32
    rounding: bool = False
    sparse: bool = False
    use_indexer: bool = True
    want_index_loss: bool = True


class Network(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.token_embd = nn.Parameter(torch.randn(cfg.vocab_size, cfg.dim) * 0.5)
        self.layers = nn.ModuleList(Layer(cfg, i) for i in range(cfg.n_layers))
        self.output_norm = nn.Parameter(torch.ones(cfg.dim))
        self.output = nn.Parameter(torch.randn(cfg.vocab_size, cfg.dim) * 0.02)
        self.output_hc_fn = nn.Parameter(torch.randn(cfg.n_hc, cfg.n_hc * cfg.dim) * 0.5 / math.sqrt(cfg.n_hc * cfg.dim))
        self.output_hc_base = nn.Parameter(torch.full((cfg.n_hc,), -1.1))
        self.output_hc_scale = nn.Parameter(torch.full((1,), 0.5))
        self.register_buffer("freq_plain", rope_frequencies(cfg, False), persistent=False)
        self.register_buffer("freq_compressed", rope_frequencies(cfg, True), persistent=False)

    def context(self, position: torch.Tensor, doc: torch.Tensor, **switches) -> Context:
        """position, doc [B,T]: position inside the document and the document's number in the row (-1: none)."""
        w = self.cfg.window
        b, t = position.shape
        dev = position.device
        pos = position.float().unsqueeze(-1)
        plain, comp = pos * self.freq_plain, pos * self.freq_compressed
        i = torch.arange(w, device=dev)
        j = torch.arange(2 * w, device=dev)
        near = (j[None, :] <= w + i[:, None]) & (j[None, :] > i[:, None])
        blk = doc.view(b, t // w, w)
        prev = F.pad(blk, (0, 0, 1, 0), value=-2)[:, :-1]
        keys = torch.cat((prev, blk), dim=2)
        ok = near[None, None] & (keys[:, :, None, :] == blk[:, :, :, None])
        at = torch.arange(t, device=dev)

        def rows(m: int):
            n = t // m
            of = doc[:, : n * m : m]
            done = torch.arange(n, device=dev)[None, :] < ((at + 1) // m)[:, None]
            return done[None] & (of[:, None, :] == doc[:, :, None]), position[:, : n * m : m] == 0

        visible4, first4 = rows(4)
        visible128, first128 = rows(128)
        return Context(
            (plain.cos(), plain.sin()), (comp.cos(), comp.sin()),
            torch.where(ok, 0.0, -1e30), first4, first128, visible4, visible128,
            (doc >= 0).float(), **switches,
        )

    def forward(self, tokens, ctx, taps: list | None = None):
        """tokens [B,T] -> hidden states before the output matrix [B,T,D], indexer losses, loads."""
        b, t = tokens.shape
        tokens = tokens.flatten()
        streams = self.token_embd[tokens].unsqueeze(1).expand(-1, self.cfg.n_hc, -1).contiguous()
        losses, loads = [], []
        for layer in self.layers:
            streams, index_loss, load = layer(streams, tokens, ctx)
            losses.append(index_loss)
            loads.append(load)
            if taps is not None:
                taps.append(streams.unflatten(0, (b, t)))
        v = streams.flatten(1)
        inv = torch.rsqrt(v.square().mean(-1, keepdim=True) + EPS)
        w = torch.sigmoid(F.linear(v, self.output_hc_fn) * inv * self.output_hc_scale + self.output_hc_base) + EPS
        x = (w.unsqueeze(-1) * streams).sum(1)
        return (rms(x) * self.output_norm).view(b, t, -1), torch.stack(losses), torch.stack(loads)

    def logits(self, hidden):
        return linear(hidden, self.output)
