// Checks of the decode step, phase by phase, in double precision: after each phase what it wrote into the
// workspace, the caches or the logits is computed anew from what it read there, from the file's blocks.
// The same code serves the host emulation and the device; both give copies in host memory.
#pragma once
#include "../kernels/decode/exchange.cuh"
#include "../kernels/iq2_grid.cuh"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace check {
using namespace ds4;

static inline double half_value(u32 h) {
    const int e = h >> 10 & 31, m = h & 1023;
    const double v = e ? std::ldexp(1024.0 + m, e - 25) : std::ldexp((double)m, -24);
    return h >> 15 & 1 ? -v : v;
}
static inline float word_float(u32 v) { float f; memcpy(&f, &v, 4); return f; }
static inline u32 float_word(float f) { u32 v; memcpy(&v, &f, 4); return v; }
static inline double bf16_value(u16 v) { return word_float((u32)v << 16); }

// A weight as in the file.
struct Raw {
    enum Type { Q8, IQ2, Q2K, F16 } type;
    u32 n_in = 0;
    const u8 *p = nullptr;
    size_t row_bytes() const { return type == Q8 ? n_in / 32 * 34 : type == IQ2 ? n_in / 256 * 66 : type == Q2K ? n_in / 256 * 84 : n_in * 2; }
    void decode(size_t row, std::vector<double> &out) const {
        static const u32 grid[256] = DS4_IQ2_GRID;
        static const int level[3] = {8, 25, 43};
        out.resize(n_in);
        const u8 *r = p + row * row_bytes();
        for (u32 c = 0; c < n_in; c++) {
            if (type == F16) out[c] = half_value(ds4_load16(r + 2 * c));
            else if (type == Q8) { const u8 *b = r + c / 32 * 34; out[c] = half_value(ds4_load16(b)) * (int8_t)b[2 + c % 32]; }
            else if (type == IQ2) {
                const u8 *b = r + c / 256 * 66, *q = b + 2 + c % 256 / 32 * 8;
                const u32 w = ds4_load32(q + 4); const int l = c % 32 / 8, j = c % 8, s = w >> (7 * l) & 127;
                const bool neg = j < 7 ? s >> j & 1 : __builtin_parity(s);
                const double v = half_value(ds4_load16(b)) * (0.5 + (w >> 28)) / 4 * level[grid[q[l]] >> (4 * j) & 15];
                out[c] = neg ? -v : v;
            } else {
                const u8 *b = r + c / 256 * 84; const int e = c % 256;
                const int code = b[16 + e / 128 * 32 + e % 32] >> (2 * (e % 128 / 32)) & 3;
                out[c] = half_value(ds4_load16(b + 80)) * (b[e / 16] & 15) * code - half_value(ds4_load16(b + 82)) * (b[e / 16] >> 4);
            }
        }
    }
};

struct Layer { // host side of a Ds4DecodeLayer
    u32 kind; bool hash;
    Raw fn_attn, fn_ffn, q_a, kv, q_b, out_a, out_b, comp_kv, comp_gate, index_kv, index_gate, index_proj, index_q_b, router, shared_gate, shared_up, shared_down;
    std::vector<Raw> gate, up, down; // of every expert
    const float *base_attn, *scale_attn, *norm_attn, *base_ffn, *scale_ffn, *norm_ffn, *q_a_norm, *kv_norm, *sinks, *comp_ape, *comp_norm, *index_ape, *index_norm, *bias;
    const int32_t *ids;
    float clamp;
    u32 n_ring, n_frontier;
};
struct Rows { std::vector<u32> token, position, slot, base; std::vector<float> angles; };
struct Caches { // host copies
    std::vector<u16> window, rows, index_rows; std::vector<float> frontier, index_frontier;
};

struct Report {
    const char *phase; double worst; double limit;
};

template <int R> struct Checker {
    using X = Exchange<R>;
    const u8 *ws; // copy after the phase
    u32 n_layers, stride = 1, score_stride = 0;
    bool ok = true;
    std::vector<std::pair<std::string, double>> worst;
    std::vector<double> row;

    const float *stamped(size_t at) const { return (const float *)(ws + at); }
    void note(const std::string &what, double err, double limit) {
        for (auto &w : worst) if (w.first == what) { w.second = std::max(w.second, err); goto done; }
        worst.push_back({what, err});
    done:
        if (!(err <= limit)) { if (ok || err > 10 * limit) printf("  FAILED %s: %.3g above %.3g\n", what.c_str(), err, limit); ok = false; }
    }
    void tags(const char *what, size_t at, size_t n, u32 number) {
        size_t bad = 0;
        for (size_t i = 0; i < n; i++) bad += ((ds4_load32(ws + at + 4 * i) ^ number) & 3) != 0;
        note(std::string(what) + " words not written", (double)bad, 0);
    }
    void lines(size_t at, size_t n, u32 number, std::vector<double> &out, const char *what) {
        out.resize(n);
        size_t bad = 0;
        for (size_t i = 0; i < n / 8; i++) {
            const u8 *l = ws + at + i * 16;
            bad += ds4_load32(l + 12) != number;
            const double s = word_float(ds4_load32(l + 8));
            for (int j = 0; j < 8; j++) out[8 * i + j] = (int8_t)l[j] * s;
        }
        note(std::string(what) + " lines not written", (double)bad, 0);
    }
    // Codes against values: half a step and a little.
    void quantised(const char *what, size_t at, const std::vector<double> &want, u32 number) {
        std::vector<double> got;
        lines(at, want.size(), number, got, what);
        double worst_step = 0;
        for (size_t b = 0; b < want.size() / 32; b++) {
            double top = 0;
            for (int i = 0; i < 32; i++) top = std::max(top, std::fabs(want[32 * b + i]));
            for (int i = 0; i < 32; i++) worst_step = std::max(worst_step, std::fabs(got[32 * b + i] - want[32 * b + i]) / (top / 127 + 1e-30));
        }
        note(std::string(what) + " (int8 steps)", worst_step, 0.53);
    }
    static void quantise(std::vector<double> &v) { // as the kernels do
        for (size_t b = 0; b < v.size() / 32; b++) {
            float top = 0;
            for (int i = 0; i < 32; i++) top = std::max(top, std::fabs((float)v[32 * b + i]));
            const float inverse = 127.f / top, scale = top / 127.f;
            for (int i = 0; i < 32; i++) v[32 * b + i] = top > 0 ? (double)scale * std::rint((float)v[32 * b + i] * inverse) : 0;
        }
    }
    double dot(const Raw &m, size_t r, const double *x) {
        m.decode(r, row);
        double s = 0;
        for (u32 i = 0; i < m.n_in; i++) s += row[i] * x[i];
        return s;
    }
    // y = scale * M x against stamped words, relative to the largest.
    void product(const char *what, const Raw &m, size_t n_out, const std::vector<double> &x, size_t at, u32 number, double limit, double scale = 1, size_t row0 = 0) {
        tags(what, at, n_out, number);
        double err = 0, top = 0;
        for (size_t o = 0; o < n_out; o += stride) {
            const double y = scale * dot(m, row0 + o, x.data());
            top = std::max(top, std::fabs(y));
            err = std::max(err, std::fabs(y - stamped(at)[o]));
        }
        note(what, err / top, limit);
    }
    std::vector<double> floats(size_t at, size_t n) { return std::vector<double>(stamped(at), stamped(at) + n); }
    static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

    // Streams are [W][R][HC][32].
    std::vector<double> streams(u32 r) const {
        std::vector<double> v(HC * E);
        for (u32 b = 0; b < W; b++) for (u32 j = 0; j < HC; j++) for (u32 c = 0; c < 32; c++)
            v[j * E + b * 32 + c] = ((const float *)(ws + X::streams))[((b * R + r) * HC + j) * 32 + c];
        return v;
    }
    void turn(u32 which, const Raw &fn, u32 n_mix, const float *base, const float *scale, const float *norm, u32 number) {
        for (u32 r = 0; r < R; r++) {
            const auto v = streams(r);
            double ss = 0;
            for (double x : v) ss += x * x;
            const double inv = 1 / std::sqrt(ss / (HC * E) + 1e-6);
            std::vector<double> mix(n_mix), x(E);
            for (u32 m = 0; m < n_mix; m++) mix[m] = dot(fn, m, v.data()) * inv;
            double xx = 0;
            for (u32 c = 0; c < E; c++) {
                for (u32 j = 0; j < HC; j++) x[c] += (sigmoid(mix[j] * scale[0] + base[j]) + 1e-6) * v[j * E + c];
                xx += x[c] * x[c];
            }
            for (u32 c = 0; c < E; c++) x[c] *= norm[c] / std::sqrt(xx / E + 1e-6);
            quantised("turn x", X::x + (which * R + r) * E * 2, x, number);
            if (which == 2) continue;
            tags("turn xf", X::xf + (which * R + r) * E * 4, E, number);
            double err = 0, top = 0;
            for (u32 c = 0; c < E; c++) err = std::max(err, std::fabs(stamped(X::xf + (which * R + r) * E * 4)[c] - x[c])), top = std::max(top, std::fabs(x[c]));
            note("turn xf", err / top, 1e-5);
            double c[4][4];
            for (u32 j = 0; j < 4; j++) {
                double t = -1e30, s = 0;
                for (u32 k = 0; k < 4; k++) t = std::max(t, c[j][k] = mix[8 + 4 * j + k] * scale[2] + base[8 + 4 * j + k]);
                for (u32 k = 0; k < 4; k++) s += c[j][k] = std::exp(c[j][k] - t);
                for (u32 k = 0; k < 4; k++) c[j][k] = c[j][k] / s + 1e-6;
            }
            for (int i = 0; i < DS4_N_SINKHORN; i++) {
                if (i) for (auto &row : c) { double s = 1e-6; for (double x : row) s += x; for (double &x : row) x /= s; }
                for (u32 k = 0; k < 4; k++) { double s = 1e-6; for (u32 j = 0; j < 4; j++) s += c[j][k]; for (u32 j = 0; j < 4; j++) c[j][k] /= s; }
            }
            const float *g = stamped(X::gates + (which * R + r) * 256);
            tags("gates", X::gates + (which * R + r) * 256, 20, number);
            double e = 0;
            for (u32 j = 0; j < 4; j++) e = std::max(e, std::fabs(g[j] - 2 * sigmoid(mix[4 + j] * scale[1] + base[4 + j])));
            for (u32 j = 0; j < 16; j++) e = std::max(e, std::fabs(g[4 + j] - c[j / 4][j % 4]));
            note("gates", e, 1e-5);
        }
    }
    void in(const Layer &l, u32 number) {
        for (u32 r = 0; r < R; r++) {
            std::vector<double> x;
            lines(X::x + r * E * 2, E, number, x, "in x");
            const auto xf = floats(X::xf + r * E * 4, E);
            product("q_a", l.q_a, QR, x, X::qr + r * QR * 4, number, 2e-6);
            product("kv", l.kv, HEAD, x, X::kv + r * HEAD * 4, number, 2e-6);
            if (l.kind == DS4_SLIDING) continue;
            const u32 dim = l.kind == DS4_CSA ? CSA_DIM : HCA_DIM;
            product("compressor kv", l.comp_kv, dim, xf, X::comp + r * CSA_DIM * 4, number, 2e-6);
            product("compressor gate", l.comp_gate, dim, xf, X::comp + (R + r) * CSA_DIM * 4, number, 2e-6);
            if (l.kind != DS4_CSA) continue;
            product("index kv", l.index_kv, INDEX_DIM2, xf, X::icomp + r * INDEX_DIM2 * 4, number, 2e-6);
            product("index gate", l.index_gate, INDEX_DIM2, xf, X::icomp + (R + r) * INDEX_DIM2 * 4, number, 2e-6);
            product("index proj", l.index_proj, IHEADS, xf, X::iw + r * IHEADS * 4, number, 2e-6);
        }
    }
    static double e4m3(double x) {
        const double a = std::fabs(x);
        if (a == 0) return 0;
        const int e = std::max(std::ilogb(a), -6);
        return std::copysign(std::rint(std::ldexp(a, 3 - e)) * std::ldexp(1.0, e - 3), x);
    }
    static double ceil_pow2(float x) { int e; const float m = std::frexp(x, &e); return std::ldexp(1.0, m == 0.5f ? e - 1 : e); }
    static void rope(double *v, u32 n, const float *a, bool inverse) { // n: the last 64 of n
        for (u32 i = 0; i < 32; i++) {
            double &x = v[n - 64 + 2 * i], &y = v[n - 63 + 2 * i];
            const double c = a[2 * i], s = inverse ? -a[2 * i + 1] : a[2 * i + 1], z = x;
            x = z * c - y * s, y = z * s + y * c;
        }
    }
    static void hadamard_round(double *v, double *scales) {
        for (u32 h = 1; h < 128; h *= 2) for (u32 i = 0; i < 128; i++) if (!(i & h)) { const double a = v[i], b = v[i + h]; v[i] = a + b, v[i + h] = a - b; }
        for (u32 b = 0; b < 4; b++) {
            double top = 0;
            for (u32 i = 0; i < 32; i++) { v[32 * b + i] /= std::sqrt(128.0); top = std::max(top, std::fabs(v[32 * b + i])); }
            scales[b] = ceil_pow2((float)top * (1.f / 6.f));
        }
    }
    // A stored row against the unrounded one: within half a step of its rounding (and a little).
    void rounded_row(const char *what, const u16 *got, std::vector<double> v, const float *norm, const float *angles, bool index) {
        const u32 d = index ? IDIM : HEAD;
        double ss = 0;
        for (double x : v) ss += x * x;
        for (u32 i = 0; i < d; i++) v[i] *= norm[i] / std::sqrt(ss / d + 1e-6);
        double err = 0;
        if (index) {
            double s[4];
            rope(v.data(), d, angles, false);
            hadamard_round(v.data(), s);
            for (u32 i = 0; i < d; i++) {
                const double a = std::fabs(v[i]) / s[i / 32], step = a < 2 ? 0.5 : a < 4 ? 1 : 2;
                err = std::max(err, std::fabs(bf16_value(got[i]) - v[i]) / s[i / 32] / step);
            }
        } else {
            for (u32 b = 0; b < 7; b++) {
                double top = 0;
                for (u32 i = 0; i < 64; i++) top = std::max(top, std::fabs(v[64 * b + i]));
                const double s = ceil_pow2(std::max((float)top, 1e-4f) * (1.f / 448.f));
                for (u32 i = 0; i < 64; i++) {
                    const double x = v[64 * b + i] / s, step = std::ldexp(1.0, std::max(x == 0 ? -6 : std::ilogb(std::fabs(x)), -6) - 3);
                    err = std::max(err, std::fabs(bf16_value(got[64 * b + i]) / s - x) / step);
                }
            }
            rope(v.data(), d, angles, false);
            for (u32 i = 448; i < 512; i++) err = std::max(err, std::fabs(bf16_value(got[i]) - v[i]) / (std::fabs(v[i]) / 256 + 1e-9));
        }
        note(std::string(what) + " (steps)", err, index ? 0.52 : 1.01);
    }
    void query(const Layer &l, const Rows &rows, const Caches &before, const Caches &after, bool selects, u32 number) {
        for (u32 r = 0; r < R; r++) {
            auto v = floats(X::qr + r * QR * 4, QR);
            double ss = 0;
            for (double x : v) ss += x * x;
            for (u32 i = 0; i < QR; i++) v[i] = (float)v[i] * l.q_a_norm[i];
            const double inv = 1 / std::sqrt(ss / QR + 1e-6);
            auto q = v;
            quantise(q);
            product("q_b", l.q_b, Q, q, X::q + r * Q * 4, number, 2e-6, inv);
            if (l.kind == DS4_CSA && selects) product("index q_b", l.index_q_b, IQ, v, X::iqf + r * IQ * 4, number, 2e-6, inv);
            if (rows.slot[r] == PAD) continue;
            const u32 p = rows.position[r], slot = rows.slot[r];
            const float *own = &rows.angles[(r * 4 + (l.kind ? 1 : 0)) * 64];
            rounded_row("window row", &after.window[((size_t)slot * l.n_ring + p % l.n_ring) * HEAD], floats(X::kv + r * HEAD * 4, HEAD), l.kv_norm, own, false);
            if (l.kind == DS4_SLIDING) continue;
            for (int index = 0; index < (l.kind == DS4_CSA ? 2 : 1); index++) {
                const u32 d = index ? IDIM : HEAD, dim = l.kind == DS4_CSA ? 2 * d : d, ratio = l.kind == DS4_CSA ? 4 : 128, stride_ = index ? INDEX_DIM2 : CSA_DIM;
                const float *a = stamped((index ? X::icomp : X::comp) + r * stride_ * 4), *g = stamped((index ? X::icomp : X::comp) + (R + r) * stride_ * 4);
                const float *ape = (index ? l.index_ape : l.comp_ape) + p % ratio * dim;
                const std::vector<float> &f = index ? after.index_frontier : after.frontier;
                const float *ring = &f[(size_t)slot * l.n_frontier * 2 * dim], *mine = ring + (size_t)(p % l.n_frontier) * 2 * dim;
                double e = 0;
                for (u32 i = 0; i < dim; i++) e = std::max(e, std::max((double)std::fabs(mine[i] - a[i]), (double)std::fabs(mine[dim + i] - (g[i] + ape[i]))));
                note("frontier", e, 1e-5);
                if ((p + 1) % ratio) continue;
                const u32 end = p + 1, n_pooled = l.kind == DS4_CSA ? 8 : 128;
                std::vector<double> v(d);
                for (u32 c = 0; c < d; c++) {
                    double top = -1e300, w = 0, s = 0;
                    for (int pass = 0; pass < 2; pass++)
                        for (u32 t = end > n_pooled ? end - n_pooled : 0; t < end; t++) {
                            const float *row = ring + (size_t)(t % l.n_frontier) * 2 * dim + (l.kind == DS4_CSA && t + ratio >= end ? d : 0) + c;
                            if (!pass) top = std::max(top, (double)row[dim]);
                            else { const double q = std::exp(row[dim] - top); w += q, s += q * row[0]; }
                        }
                    v[c] = s / w;
                }
                const u16 *got = index ? &after.index_rows[(size_t)(rows.base[r] / ratio + end / ratio - 1) * d] : &after.rows[(size_t)(rows.base[r] / ratio + end / ratio - 1) * d];
                rounded_row(index ? "index row" : "compressed row", got, v, index ? l.index_norm : l.comp_norm, &rows.angles[(r * 4 + (l.kind == DS4_CSA ? 2 : 3)) * 64], index);
            }
        }
    }
    void index_query(const Rows &rows, u32 number) {
        for (u32 r = 0; r < R; r++) {
            std::vector<double> got;
            lines(X::iq + r * IQ * 2, IQ, number, got, "index query");
            double err = 0;
            for (u32 h = 0; h < IHEADS; h++) {
                auto v = floats(X::iqf + (r * IQ + h * IDIM) * 4, IDIM);
                double s[4];
                rope(v.data(), IDIM, &rows.angles[(r * 4 + 1) * 64], false);
                hadamard_round(v.data(), s);
                for (u32 i = 0; i < IDIM; i++) {
                    const double a = std::fabs(v[i]) / s[i / 32], step = a < 2 ? 0.5 : a < 4 ? 1 : 2;
                    err = std::max(err, std::fabs(got[h * IDIM + i] - v[i]) / s[i / 32] / step);
                }
            }
            note("index query (steps)", err, 0.52);
        }
    }
    const float *scores(u32 r) const { return (const float *)(ws + X::scores) + (size_t)r * score_stride; }
    void score(const Rows &rows, const Caches &c, u32 number) {
        for (u32 r = 0; r < R; r++) {
            const u32 n = (rows.position[r] + 1) / 4;
            if (rows.slot[r] == PAD || n <= TOP_K) continue;
            std::vector<double> iq;
            lines(X::iq + r * IQ * 2, IQ, number, iq, "index query");
            const float *w = stamped(X::iw + r * IHEADS * 4);
            double err = 0, top = 0;
            for (u32 i = 0; i < n; i += stride) {
                const u16 *k = &c.index_rows[(size_t)(rows.base[r] / 4 + i) * IDIM];
                double s = 0, scale = 0;
                for (u32 h = 0; h < IHEADS; h++) {
                    double d = 0;
                    for (u32 j = 0; j < IDIM; j++) d += iq[h * IDIM + j] * bf16_value(k[j]);
                    s += w[h] / std::sqrt(8192.0) * std::max(d, 0.0);
                    scale += std::fabs(w[h]) / std::sqrt(8192.0) * std::max(d, 0.0);
                }
                top = std::max(top, scale);
                err = std::max(err, std::fabs(s - scores(r)[i]));
            }
            note("scores", err / top, 2e-6);
        }
    }
    // The rows that the kernel's own scores select.
    std::vector<u32> selected(u32 r, u32 n) {
        std::vector<u32> order(n);
        for (u32 i = 0; i < n; i++) order[i] = i;
        const float *s = scores(r);
        std::stable_sort(order.begin(), order.end(), [&](u32 a, u32 b) { return s[a] > s[b]; });
        order.resize(TOP_K);
        return order;
    }
    // After attend and combine.
    void attention(const Layer &l, const Rows &rows, const Caches &c, u32 number) {
        for (u32 r = 0; r < R; r++) {
            std::vector<double> got;
            lines(X::o + (size_t)r * Q * 2, Q, number, got, "attention");
            if (rows.slot[r] == PAD) continue;
            const u32 p = rows.position[r], slot = rows.slot[r], ratio = l.kind == DS4_CSA ? 4 : 128, n_visible = l.kind ? (p + 1) / ratio : 0;
            std::vector<const u16 *> list;
            for (u32 t = p + 1 > WINDOW ? p + 1 - WINDOW : 0; t <= p; t++) list.push_back(&c.window[((size_t)slot * l.n_ring + t % l.n_ring) * HEAD]);
            if (l.kind == DS4_CSA && n_visible > TOP_K) for (u32 i : selected(r, n_visible)) list.push_back(&c.rows[(size_t)(rows.base[r] / ratio + i) * HEAD]);
            else for (u32 i = 0; i < n_visible; i++) list.push_back(&c.rows[(size_t)(rows.base[r] / ratio + i) * HEAD]);
            double e2 = 0, n2 = 0;
            for (u32 h = 0; h < HEADS; h += stride > 1 ? 3 : 1) {
                auto q = floats(X::q + ((size_t)r * Q + h * HEAD) * 4, HEAD);
                double ss = 0;
                for (double x : q) ss += x * x;
                for (double &x : q) x /= std::sqrt(ss / HEAD + 1e-6);
                rope(q.data(), HEAD, &rows.angles[(r * 4 + (l.kind ? 1 : 0)) * 64], false);
                std::vector<double> z(list.size()), o(HEAD);
                double top = l.sinks[h], den;
                for (size_t i = 0; i < list.size(); i++) {
                    double d = 0;
                    for (u32 j = 0; j < HEAD; j++) d += q[j] * bf16_value(list[i][j]);
                    top = std::max(top, z[i] = d / std::sqrt(512.0));
                }
                den = std::exp(l.sinks[h] - top);
                for (size_t i = 0; i < list.size(); i++) {
                    const double w = std::exp(z[i] - top);
                    den += w;
                    for (u32 j = 0; j < HEAD; j++) o[j] += w * bf16_value(list[i][j]);
                }
                for (double &x : o) x /= den;
                rope(o.data(), HEAD, &rows.angles[(r * 4 + (l.kind ? 1 : 0)) * 64], true);
                for (u32 j = 0; j < HEAD; j++) e2 += (got[h * HEAD + j] - o[j]) * (got[h * HEAD + j] - o[j]), n2 += o[j] * o[j];
            }
            note("attention (relative)", std::sqrt(e2 / n2), 1.2e-2);
        }
    }
    void out_a(const Layer &l, u32 number) {
        for (u32 r = 0; r < R; r++) {
            std::vector<double> o, u(U);
            lines(X::o + (size_t)r * Q * 2, Q, number, o, "out_a o");
            for (u32 i = 0; i < U; i++) u[i] = dot(l.out_a, i, &o[i / OUT_RANK * 4096]);
            quantised("out_a", X::u + (size_t)r * U * 2, u, number);
        }
    }
    void post(const char *what, u32 r, const std::vector<double> &old, const std::vector<double> &y, u32 which) {
        const float *g = stamped(X::gates + (which * R + r) * 256);
        const auto got = streams(r);
        double err = 0, top = 0;
        for (u32 c = 0; c < E; c += stride) for (u32 i = 0; i < HC; i++) {
            double v = g[i] * y[c];
            for (u32 j = 0; j < HC; j++) v += g[4 + 4 * j + i] * old[j * E + c];
            err = std::max(err, std::fabs(v - got[i * E + c]));
            top = std::max(top, std::fabs(v));
        }
        note(what, err / top, 5e-6);
    }
    void out_b(const Layer &l, const std::vector<std::vector<double>> &old, u32 number) {
        for (u32 r = 0; r < R; r++) {
            std::vector<double> u, y(E);
            lines(X::u + (size_t)r * U * 2, U, number, u, "out_b u");
            for (u32 c = 0; c < E; c += stride) y[c] = dot(l.out_b, c, u.data());
            post("out_b and hc_post", r, old[r], y, 0);
        }
    }
    void router(const Layer &l, u32 number) {
        for (u32 r = 0; r < R; r++) {
            std::vector<double> x;
            lines(X::x + (R + r) * E * 2, E, number, x, "router x");
            product("router", l.router, EXPERTS, floats(X::xf + (R + r) * E * 4, E), X::router + r * EXPERTS * 4, number, 2e-6);
            tags("shared hidden", X::shared + r * F * 4, F, number);
            double err = 0, top = 0;
            for (u32 i = 0; i < F; i += stride) {
                const double g = std::min(dot(l.shared_gate, i, x.data()), (double)l.clamp), u = std::max(std::min(dot(l.shared_up, i, x.data()), (double)l.clamp), -(double)l.clamp);
                const double h = g * sigmoid(g) * u;
                top = std::max(top, std::fabs(h));
                err = std::max(err, std::fabs(h - stamped(X::shared + r * F * 4)[i]));
            }
            note("shared hidden", err / top, 5e-6);
        }
    }
    void routes(const Layer &l, const Rows &rows, u32 r, u32 *ids, double *weights) {
        const float *z = stamped(X::router + r * EXPERTS * 4);
        std::vector<double> s(EXPERTS);
        for (u32 e = 0; e < EXPERTS; e++) s[e] = std::sqrt(std::max((double)z[e], 0.0) + std::log1p(std::exp(-std::fabs((double)z[e]))));
        if (l.hash) for (u32 i = 0; i < USED; i++) ids[i] = l.ids[rows.token[r] * USED + i];
        else {
            std::vector<u32> o(EXPERTS);
            for (u32 e = 0; e < EXPERTS; e++) o[e] = e;
            std::stable_sort(o.begin(), o.end(), [&](u32 a, u32 b) { return (float)s[a] + l.bias[a] > (float)s[b] + l.bias[b]; });
            for (u32 i = 0; i < USED; i++) ids[i] = o[i];
        }
        double total = 0;
        for (u32 i = 0; i < USED; i++) total += s[ids[i]];
        for (u32 i = 0; i < USED; i++) weights[i] = 1.5 * s[ids[i]] / total;
    }
    void gate_up(const Layer &l, const Rows &rows, u32 number) {
        for (u32 r = 0; r < R; r++) {
            u32 ids[USED];
            double w[USED];
            routes(l, rows, r, ids, w);
            std::vector<double> x;
            lines(X::x + (R + r) * E * 2, E, number, x, "gate_up x");
            for (u32 i = 0; i < USED; i++) {
                std::vector<double> h, got;
                const u32 n = stride > 1 ? 256 : F, from = stride > 1 ? (i * 320) % (F - n) / 32 * 32 : 0;
                for (u32 o = from; o < from + n; o++) {
                    const double g = std::min(dot(l.gate[ids[i]], o, x.data()), (double)l.clamp), u = std::max(std::min(dot(l.up[ids[i]], o, x.data()), (double)l.clamp), -(double)l.clamp);
                    h.push_back(w[i] * g * sigmoid(g) * u);
                }
                quantised("experts' hidden", X::hidden + ((r * USED + i) * F + from) * 2, h, number);
                lines(X::hidden + (r * USED + i) * F * 2, F, number, got, "experts' hidden");
            }
        }
    }
    void down(const Layer &l, const Rows &rows, const std::vector<std::vector<double>> &old, u32 number) {
        for (u32 r = 0; r < R; r++) {
            u32 ids[USED];
            double w[USED];
            routes(l, rows, r, ids, w);
            auto sh = floats(X::shared + r * F * 4, F);
            quantise(sh);
            std::vector<double> h[USED], y(E);
            for (u32 i = 0; i < USED; i++) lines(X::hidden + (r * USED + i) * F * 2, F, number, h[i], "down hidden");
            for (u32 c = 0; c < E; c += stride) {
                y[c] = dot(l.shared_down, c, sh.data());
                for (u32 i = 0; i < USED; i++) y[c] += dot(l.down[ids[i]], c, h[i].data());
            }
            post("down and hc_post", r, old[r], y, 1);
        }
    }
    void head(const Raw &output, const float *logits, u32 number) {
        for (u32 r = 0; r < R; r++) {
            std::vector<double> x;
            lines(X::x + (2 * R + r) * E * 2, E, number, x, "head x");
            double err = 0, top = 0;
            for (u32 o = 0; o < VOCAB; o += stride * 7) {
                const double y = dot(output, o, x.data());
                top = std::max(top, std::fabs(y)), err = std::max(err, std::fabs(y - logits[(size_t)r * VOCAB + o]));
            }
            size_t bad = 0;
            for (u32 o = 0; o < VOCAB; o++) bad += !(std::fabs(logits[(size_t)r * VOCAB + o]) < 1e30);
            note("logits not written", (double)bad, 0);
            note("logits", err / top, 2e-6);
        }
    }
    void table(const char *title) {
        printf("%s: %s\n", title, ok ? "all within limits" : "FAILED");
        for (auto &w : worst) if (w.first.find("not written") == std::string::npos) printf("    %-32s %.3g\n", w.first.c_str(), w.second);
    }
};
} // namespace check
