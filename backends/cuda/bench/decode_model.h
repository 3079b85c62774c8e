// A model of few layers with valid random blocks, in the file's formats and in the kernels' layouts.
#pragma once
#include "decode_check.h"
#include <functional>

struct Random { u64 s; u32 next() { s = s * 6364136223846793005ull + 1442695040888963407ull; return s >> 33 ^ s >> 17; } float unit() { return (next() & 0xffffff) / 16777216.f; } float pm() { return 2 * unit() - 1; } };

static u16 to_half(float f) { // round to nearest, normal range
    u32 b; memcpy(&b, &f, 4);
    const u32 sign = b >> 16 & 0x8000; const int e = (int)(b >> 23 & 255) - 112;
    if (e <= 0) return sign;
    return sign | ((e << 10 | (b >> 13 & 1023)) + (b >> 12 & 1));
}

// `put` brings bytes to where kernels see them (the identity on the host).
struct Model {
    std::function<void *(const void *, size_t)> put;
    Random rng{12345};
    std::vector<check::Layer> layers;
    std::vector<Ds4DecodeLayer> device;
    std::vector<u8 *> owned;

    u8 *bytes(size_t n) { u8 *p = (u8 *)malloc(n); owned.push_back(p); for (size_t i = 0; i + 4 <= n; i += 4) { u32 v = rng.next(); memcpy(p + i, &v, 4); } return p; }
    void halves(u8 *p, size_t n, size_t stride, size_t at, float scale) { for (size_t i = 0; i < n; i++) { const u16 h = to_half(scale * (0.5f + 0.5f * rng.unit())); memcpy(p + i * stride + at, &h, 2); } }
    const float *floats(size_t n, float lo, float hi, const float **dev) { float *p = (float *)malloc(n * 4); owned.push_back((u8 *)p); for (size_t i = 0; i < n; i++) p[i] = lo + (hi - lo) * rng.unit(); *dev = (const float *)put(p, n * 4); return p; }
    check::Raw q8(size_t n, u32 k, const void **dev) {
        u8 *p = bytes(n * k / 32 * 34);
        halves(p, n * k / 32, 34, 0, 1.8f / (73 * std::sqrt((float)k)));
        std::vector<u32> out(ds4_q8_bytes(n, k) / 4);
        for (size_t w = 0; w < out.size(); w++) out[w] = ds4_q8_word(p, k, w);
        *dev = put(out.data(), out.size() * 4);
        return {check::Raw::Q8, k, p};
    }
    check::Raw f16(size_t n, u32 k, float scale, const void **dev) {
        u8 *p = (u8 *)malloc(n * k * 2); owned.push_back(p);
        for (size_t i = 0; i < n * k; i++) { const u16 h = to_half(scale * rng.pm()); memcpy(p + 2 * i, &h, 2); }
        if (dev) *dev = put(p, n * k * 2);
        return {check::Raw::F16, k, p};
    }
    check::Raw hc(u32 n_mix, const void **dev) {
        check::Raw r = f16(n_mix, check::HC * check::E, 0.02f, nullptr);
        std::vector<u32> out(n_mix * check::HC * check::E / 2);
        for (size_t w = 0; w < out.size(); w++) out[w] = ds4_hc_word(r.p, n_mix, check::HC, check::E, w);
        *dev = put(out.data(), out.size() * 4);
        return r;
    }
    void add_layer(u32 kind, bool hash, u32 n_distinct, u32 n_ring, u32 n_frontier) {
        using namespace ds4;
        check::Layer c{};
        Ds4DecodeLayer d{};
        d.kind = c.kind = kind, c.hash = hash, c.n_ring = n_ring, c.n_frontier = n_frontier;
        c.fn_attn = hc(N_MIX, &d.fn_attn), c.fn_ffn = hc(N_MIX, &d.fn_ffn);
        c.base_attn = floats(N_MIX, -0.5f, 0.5f, &d.base_attn), c.scale_attn = floats(3, 0.5f, 1.f, &d.scale_attn), c.norm_attn = floats(E, 0.8f, 1.2f, &d.norm_attn);
        c.base_ffn = floats(N_MIX, -0.5f, 0.5f, &d.base_ffn), c.scale_ffn = floats(3, 0.5f, 1.f, &d.scale_ffn), c.norm_ffn = floats(E, 0.8f, 1.2f, &d.norm_ffn);
        c.q_a = q8(QR, E, &d.q_a), c.kv = q8(HEAD, E, &d.kv), c.q_b = q8(Q, QR, &d.q_b), c.out_a = q8(U, 4096, &d.out_a), c.out_b = q8(E, U, &d.out_b);
        c.q_a_norm = floats(QR, 0.8f, 1.2f, &d.q_a_norm), c.kv_norm = floats(HEAD, 0.8f, 1.2f, &d.kv_norm), c.sinks = floats(HEADS, -1, 1, &d.sinks);
        if (kind != DS4_SLIDING) {
            const u32 dim = kind == DS4_CSA ? CSA_DIM : HCA_DIM, ratio = kind == DS4_CSA ? 4 : 128;
            c.comp_kv = f16(dim, E, 0.03f, &d.comp_kv), c.comp_gate = f16(dim, E, 0.03f, &d.comp_gate);
            c.comp_ape = floats(ratio * dim, -0.5f, 0.5f, &d.comp_ape), c.comp_norm = floats(HEAD, 0.8f, 1.2f, &d.comp_norm);
        }
        if (kind == DS4_CSA) {
            c.index_kv = f16(INDEX_DIM2, E, 0.03f, &d.index_kv), c.index_gate = f16(INDEX_DIM2, E, 0.03f, &d.index_gate), c.index_proj = f16(IHEADS, E, 0.03f, &d.index_proj);
            c.index_q_b = f16(IQ, QR, 0.05f, &d.index_q_b);
            c.index_ape = floats(4 * INDEX_DIM2, -0.5f, 0.5f, &d.index_ape), c.index_norm = floats(IDIM, 0.8f, 1.2f, &d.index_norm);
        }
        c.router = f16(EXPERTS, E, 0.03f, &d.router);
        if (hash) {
            int32_t *ids = (int32_t *)malloc(VOCAB * USED * 4); owned.push_back((u8 *)ids);
            for (u32 i = 0; i < VOCAB; i++) for (u32 j = 0; j < USED; j++) ids[i * USED + j] = (i * 37 + j * 41) % EXPERTS;
            c.ids = ids, d.ids = (const int32_t *)put(ids, VOCAB * USED * 4);
        } else c.bias = floats(EXPERTS, -0.1f, 0.1f, &d.bias);
        c.clamp = 10, d.expert_clamp = d.shared_clamp = 10;
        std::vector<const void *> gu, dn;
        for (u32 e = 0; e < EXPERTS; e++) {
            if (e < n_distinct) {
                check::Raw m[3];
                for (auto &r : m) {
                    const bool down = &r == &m[2];
                    r = down ? check::Raw{check::Raw::Q2K, F, nullptr} : check::Raw{check::Raw::IQ2, E, nullptr};
                    const size_t n = (down ? E : F) * (size_t)(r.n_in / 256), step = down ? 84 : 66;
                    u8 *p = bytes(n * step);
                    if (down) halves(p, n, 84, 80, 0.004f), halves(p, n, 84, 82, 0.004f);
                    else halves(p, n, 66, 0, 0.0012f);
                    r.p = p;
                }
                c.gate.push_back(m[0]), c.up.push_back(m[1]), c.down.push_back(m[2]);
                std::vector<u32> out(ds4_iq2_pair_bytes(F, E) / 4);
                for (size_t w = 0; w < out.size(); w++) out[w] = ds4_iq2_pair_word(m[0].p, m[1].p, E, w);
                gu.push_back(put(out.data(), out.size() * 4));
                out.resize(ds4_q2k_bytes(E, F) / 4);
                for (size_t w = 0; w < out.size(); w++) out[w] = ds4_q2k_word(m[2].p, F, w);
                dn.push_back(put(out.data(), out.size() * 4));
            } else {
                const u32 i = (e * 7 + 3) % n_distinct;
                c.gate.push_back(c.gate[i]), c.up.push_back(c.up[i]), c.down.push_back(c.down[i]);
                gu.push_back(gu[i]), dn.push_back(dn[i]);
            }
        }
        d.gate_up = (const void *const *)put(gu.data(), EXPERTS * sizeof(void *)), d.down = (const void *const *)put(dn.data(), EXPERTS * sizeof(void *));
        c.shared_gate = q8(F, E, &d.shared_gate), c.shared_up = q8(F, E, &d.shared_up), c.shared_down = q8(E, F, &d.shared_down);
        layers.push_back(c), device.push_back(d);
    }
};

// Random cache rows, of the shapes that a session has.
static void fill_caches(check::Caches &c, const check::Layer &l, u32 n_slots, u32 n_tokens, Random &rng) {
    using namespace ds4;
    auto bf = [&](std::vector<u16> &v, size_t n) { v.resize(n); for (auto &x : v) { const float f = rng.pm(); u32 b; memcpy(&b, &f, 4); x = b >> 16; } };
    auto fl = [&](std::vector<float> &v, size_t n) { v.resize(n); for (auto &x : v) x = rng.pm(); };
    bf(c.window, (size_t)n_slots * l.n_ring * HEAD);
    if (l.kind == DS4_SLIDING) return;
    const u32 ratio = l.kind == DS4_CSA ? 4 : 128;
    bf(c.rows, (size_t)n_tokens / ratio * HEAD);
    fl(c.frontier, (size_t)n_slots * l.n_frontier * 2 * (l.kind == DS4_CSA ? CSA_DIM : HCA_DIM));
    if (l.kind != DS4_CSA) return;
    bf(c.index_rows, (size_t)n_tokens / 4 * IDIM);
    fl(c.index_frontier, (size_t)n_slots * l.n_frontier * 2 * INDEX_DIM2);
}

// Runs the phases one by one and checks each. `get`: copy of n bytes of the device at an address; `launch(first, end)`.
template <int R> bool check_phases(Model &m, const check::Raw &head_fn, const float *head_base, const float *head_scale, const float *head_norm, const check::Raw &output,
                                   const Ds4Step &s, const std::vector<Ds4DecodeCache> &caches, std::vector<check::Caches> &host, check::Rows &rows, u32 epoch, u32 stride,
                                   std::function<void(void *, const void *, size_t)> get, std::function<void(u32, u32)> launch) {
    using namespace ds4;
    using X = Exchange<R>;
    const size_t n_ws = X::scores + (size_t)R * s.score_stride * 4;
    std::vector<u8> ws(n_ws);
    check::Checker<R> c;
    c.ws = ws.data(), c.n_layers = s.n_layers, c.stride = stride, c.score_stride = s.score_stride;
    auto phase = [&](u32 p) { launch(p, p + 1); get(ws.data(), s.workspace, n_ws); };
    auto all = [&] { std::vector<std::vector<double>> v; for (u32 r = 0; r < R; r++) v.push_back(c.streams(r)); return v; };
    phase(0);
    for (u32 i = 0; i < s.n_layers; i++) {
        const check::Layer &l = m.layers[i];
        const u32 first = 1 + DS4_PHASES_PER_LAYER * i, number = epoch * s.n_layers + i;
        phase(first + 0), c.turn(0, l.fn_attn, N_MIX, l.base_attn, l.scale_attn, l.norm_attn, number);
        phase(first + 1), c.in(l, number);
        check::Caches after = host[i];
        phase(first + 2);
        get(after.window.data(), caches[i].window, after.window.size() * 2);
        if (l.kind) get(after.rows.data(), caches[i].rows, after.rows.size() * 2), get(after.frontier.data(), caches[i].frontier, after.frontier.size() * 4);
        if (l.kind == DS4_CSA) get(after.index_rows.data(), caches[i].index_rows, after.index_rows.size() * 2), get(after.index_frontier.data(), caches[i].index_frontier, after.index_frontier.size() * 4);
        c.query(l, rows, host[i], after, s.selects, number);
        host[i] = after;
        if (l.kind == DS4_CSA && s.selects) {
            phase(first + 3), c.index_query(rows, number);
            phase(first + 4), c.score(rows, after, number);
        }
        phase(first + 5), phase(first + 6), c.attention(l, rows, after, number);
        phase(first + 7), c.out_a(l, number);
        auto old = all();
        phase(first + 8), c.out_b(l, old, number);
        phase(first + 9), c.turn(1, l.fn_ffn, N_MIX, l.base_ffn, l.scale_ffn, l.norm_ffn, number);
        phase(first + 10), c.router(l, number);
        phase(first + 11), c.gate_up(l, rows, number);
        old = all();
        phase(first + 12), c.down(l, rows, old, number);
        printf("  layer %u checked\n", i), fflush(stdout);
    }
    phase(1 + DS4_PHASES_PER_LAYER * s.n_layers), c.turn(2, head_fn, HC, head_base, head_scale, head_norm, epoch);
    phase(2 + DS4_PHASES_PER_LAYER * s.n_layers);
    std::vector<float> logits((size_t)R * VOCAB);
    get(logits.data(), s.logits, logits.size() * 4);
    c.head(output, logits.data(), epoch);
    c.table(R == 1 ? "phases, 1 row" : R == 2 ? "phases, 2 rows" : "phases, 4 rows");
    return c.ok;
}
