"""Decoding token by token from the state of a batch pass: what evaluate.py runs where a reply is not the expected one.

The attention state of a sequence is a function of the normalised inputs of each attention layer. The batch pass
records them; from there on window rows come from the last of them and compressed rows are appended as groups fill.
"""

from __future__ import annotations

import torch

import network
from network import Network, index_round, kv_round, linear, rms, rotate


class Sequence:
    """One sequence, on the CPU or a GPU, in f32, with the cache rounding and selection of the engine."""

    def __init__(self, net: Network):
        self.net, self.cfg = net, net.cfg
        self.inputs: list[torch.Tensor] = []
        self.rows: list = []
        self.index_rows: list = []
        self.n = 0

    def rope(self, compressed: bool, position: torch.Tensor):
        freq = self.net.freq_compressed if compressed else self.net.freq_plain
        a = position.float().unsqueeze(-1) * freq
        return a.cos(), a.sin()

    @torch.no_grad()
    def prefill(self, ids: list[int]) -> torch.Tensor:
        """Logits [n, V] at every position."""
        net = self.net
        n, dev = len(ids), net.output.device
        t = -(-n // 128) * 128
        tokens = torch.tensor(ids + [2] * (t - n), device=dev)[None]
        position = torch.arange(t, device=dev)[None]
        ctx = net.context(position, torch.zeros_like(position), rounding=True, sparse=True, want_index_loss=False)
        taken: list[torch.Tensor] = []
        hooks = [layer.attn.register_forward_pre_hook(lambda _, args: taken.append(args[0][0, :n])) for layer in net.layers]
        hidden, _, _ = net(tokens, ctx)
        for h in hooks:
            h.remove()
        self.inputs, self.n = taken, n
        self.rows, self.index_rows = [], []
        for layer, x in zip(net.layers, self.inputs):
            m = layer.attn.ratio
            self.rows.append(self.compress(layer.attn.compressor, x, 0, False) if m else None)
            self.index_rows.append(self.compress(layer.attn.indexer.compressor, x, 0, True) if m == 4 else None)
        return net.logits(hidden[0, :n])

    def compress(self, compressor, x: torch.Tensor, start: int, index: bool) -> torch.Tensor:
        """Rows of the full groups in x, whose first token has position `start` (a multiple of the ratio)."""
        m = compressor.ratio
        n = x.shape[0] // m
        if n == 0:
            return x.new_zeros(0, compressor.width)
        first = torch.arange(n, device=x.device) + start // m == 0
        rows = compressor(x[None], first[None])[0]
        cos, sin = self.rope(True, start + m * torch.arange(n, device=x.device))
        rows = rotate(rows, cos, sin)
        return index_round(rows, network.hadamard(compressor.width).to(x.device)) if index else kv_round(rows, self.cfg.rope_dim)

    @torch.no_grad()
    def step(self, token: int) -> torch.Tensor:
        """Appends one token; logits [V]."""
        net, cfg, pos = self.net, self.cfg, self.n
        self.n += 1
        token_t = torch.tensor([token], device=net.output.device)
        streams = net.token_embd[token_t].unsqueeze(1).expand(-1, cfg.n_hc, -1)
        for i, layer in enumerate(net.layers):
            hc = layer.hc_attn
            x, post, comb = network.hc_pre(streams, hc.fn, hc.base, hc.scale, layer.attn_norm, cfg.sinkhorn_iters, torch.float32)
            self.inputs[i] = torch.cat((self.inputs[i], x))
            streams = network.hc_post(streams, self.attend(i, layer.attn, x[0], pos)[None], post, comb)
            hc = layer.hc_ffn
            x, post, comb = network.hc_pre(streams, hc.fn, hc.base, hc.scale, layer.ffn_norm, cfg.sinkhorn_iters, torch.float32)
            y, _ = layer.ffn(x, token_t, torch.float32)
            streams = network.hc_post(streams, y, post, comb)
        v = streams.flatten(1)
        w = torch.sigmoid(linear(v, net.output_hc_fn) * torch.rsqrt(v.square().mean(-1, keepdim=True) + network.EPS) * net.output_hc_scale + net.output_hc_base) + network.EPS
        return net.logits(rms((w.unsqueeze(-1) * streams).sum(1)) * net.output_norm)[0]

    def attend(self, i: int, attn, x: torch.Tensor, pos: int) -> torch.Tensor:
        cfg, m = self.cfg, attn.ratio
        h, d = cfg.n_heads, cfg.head_dim
        at = torch.tensor([pos], device=x.device)
        cos, sin = self.rope(bool(m), at)
        qr = rms(linear(x, attn.attn_q_a)) * attn.attn_q_a_norm
        q = rotate(rms(linear(qr, attn.attn_q_b).view(h, d)), cos, sin)
        recent = self.inputs[i][-cfg.window :]
        window = torch.arange(self.n - recent.shape[0], self.n, device=x.device)
        rows = kv_round(rotate(rms(linear(recent, attn.attn_kv)) * attn.attn_kv_a_norm, *self.rope(bool(m), window)), cfg.rope_dim)
        if m:
            if self.n % m == 0:
                back = min(self.n, 2 * m if m == 4 else m)
                x_back, start = self.inputs[i][-back:], self.n - back
                self.rows[i] = torch.cat((self.rows[i], self.compress(attn.compressor, x_back, start, False)[-1:]))
                if m == 4:
                    self.index_rows[i] = torch.cat((self.index_rows[i], self.compress(attn.indexer.compressor, x_back, start, True)[-1:]))
            chosen = self.rows[i]
            if m == 4 and chosen.shape[0] > cfg.index_topk:
                ix = attn.indexer
                iq = index_round(rotate(linear(qr, ix.attn_q_b).view(cfg.index_heads, -1), cos, sin), network.hadamard(cfg.index_dim).to(x.device))
                w = linear(x, ix.proj) * (cfg.index_dim**-0.5 * cfg.index_heads**-0.5)
                score = ((iq @ self.index_rows[i].T).relu() * w.unsqueeze(-1)).sum(0)
                chosen = chosen[torch.topk(score, cfg.index_topk).indices]
            rows = torch.cat((rows, chosen))
        z = torch.cat((q @ rows.T * d**-0.5, attn.attn_sinks[:, None]), dim=1)
        o = rotate(z.softmax(-1)[:, :-1] @ rows, cos, sin, inverse=True)
        g = cfg.o_groups
        u = torch.einsum("gi,gri->gr", o.reshape(g, -1), attn.attn_output_a.unflatten(0, (g, -1)))
        return linear(u.flatten(), attn.attn_output_b)
