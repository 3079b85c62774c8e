// Runs the source of the prefill kernels on the host (emulate.h) and compares with plain double
// arithmetic: index maps, masks, tails and padding at small and awkward sizes.
//   g++ -std=c++17 -O2 -DDS4_EMULATE -Ikernels bench/prefill_check.cpp -o prefill_check && ./prefill_check
#include "emulate.h"
#include "../kernels/prefill/device.cuh"
#include "../kernels/prefill/prefill.h"
#include "../kernels/layout.cuh"
#include "../kernels/iq2_grid.cuh"
#include "../kernels/prefill/experts.cuh"
#include "../kernels/prefill/rounding.cuh"
namespace in_gemm {
#include "../kernels/prefill/gemm.cu"
}
namespace in_attend {
#include "../kernels/prefill/attend.cu"
}
#undef HEADS
#undef DIM
#undef ROPE
#undef BN
namespace in_experts {
#include "../kernels/prefill/experts.cu"
}
#undef EMBD
#undef USED
#undef HIDDEN
#undef THREADS
#undef TOKENS
#undef STAGES
#undef X_STRIDE
namespace in_few {
#include "../kernels/prefill/experts_few.cu"
}
#undef EMBD
#undef TOKENS
#undef STAGES
namespace in_index {
#include "../kernels/prefill/index.cu"
}
namespace in_hc {
#include "../kernels/prefill/hc.cu"
}
#undef EPS
#undef EMBD
namespace in_rows {
#include "../kernels/prefill/rows.cu"
}
#undef EPS
#undef ROPE
namespace in_compress {
#include "../kernels/prefill/compress.cu"
}
namespace in_matrix {
#include "../kernels/prefill/matrix.cu"
}
#include <algorithm>
#include <numeric>
#include <random>

static std::mt19937 rng(1);
static float uniform() { return (int)(rng() % 20001) / 10000.0f - 1.0f; }
static int failures = 0;
static void report(const char* what, double error, double limit) {
    bool ok = error <= limit; // NaN fails
    printf("%-58s %9.2e (limit %.0e) %s\n", what, error, limit, ok ? "ok" : "WRONG");
    failures += !ok;
}
struct Relative {
    double e = 0, r = 0;
    void add(double got, double want) { e += (got - want) * (got - want); r += want * want; }
    double value() const { return std::sqrt(e / (r > 0 ? r : 1)); }
};
template <class T> std::vector<T> filled(size_t n, T v) { return std::vector<T>(n, v); }

static u32 order1(u32 c) { return (c & ~31u) + 16 * (c / 4 % 2) + 8 * (c / 2 % 2) + 2 * (c / 8 % 4) + c % 2; }
static u32 order2(u32 c) { return (c & ~15u) + 8 * (c % 2) + 2 * (c / 4 % 4) + c / 2 % 2; }

struct Step {
    std::vector<u32> token, position, slot, base, first_row, end_row, see_end, window_start, source;
    std::vector<float> angles;
    void segment(u32 s, u32 b, u32 from, u32 n, u32 window) {
        u32 first = (u32)slot.size();
        for (u32 i = 0; i < n; i++) {
            token.push_back(0), position.push_back(from + i), slot.push_back(s), base.push_back(b);
            first_row.push_back(first), end_row.push_back(first + n), see_end.push_back(first + i + 1);
            window_start.push_back(from + i + 1 > window ? from + i + 1 - window : 0), source.push_back(0);
            for (int k = 0; k < 4 * 32; k++) { float a = 6 * uniform(); angles.push_back(std::cos(a)); angles.push_back(std::sin(a)); }
        }
    }
    void pad() { segment(0, 0, 0, 1, 1); slot.back() = PAD_SLOT; }
    StepRows rows() { return {token.data(), position.data(), slot.data(), base.data(), first_row.data(), end_row.data(), see_end.data(), window_start.data(), source.data(), nullptr, angles.data()}; }
};

static void check_gemm() {
    const u32 M = 200, K = 128, N1 = 150, N2 = 70, G = 2;
    std::vector<u16> xh(M * G * K), xl(xh.size()), w1(G * N1 * K), w2(G * N2 * K), w1l(w1.size());
    std::vector<double> x(xh.size()), w(w1.size());
    for (size_t i = 0; i < xh.size(); i++) { float v = uniform(); xh[i] = f2h(v); xl[i] = f2h(v - h2f(xh[i])); x[i] = (double)h2f(xh[i]) + h2f(xl[i]); }
    for (size_t i = 0; i < w1.size(); i++) { float v = uniform(); w1[i] = f2h(v); w1l[i] = f2h(v - h2f(w1[i])); w[i] = (double)h2f(w1[i]) + h2f(w1l[i]); }
    for (auto& v : w2) v = f2h(uniform());
    auto run = [&](const char* name, auto kernel, int bn, int stages) {
        for (u32 passes = 1; passes <= 3; passes++) {
            std::vector<float> o1(M * G * N1, NAN), o2(M * G * N2, 1.0f);
            Gemm p = {xh.data(), xl.data(), M, G * K, K, passes, 2, 0, {}};
            p.pieces[0] = {w1.data(), w1l.data(), o1.data(), N1, G * N1, 0, GEMM_F32};
            p.pieces[1] = {w2.data(), w2.data(), o2.data(), N2, G * N2, (N1 + bn - 1) / bn, GEMM_ADD_F32};
            if (passes == 3) p.n_pieces = 1;
            u32 tiles = (N1 + bn - 1) / bn + (p.n_pieces == 2 ? (N2 + bn - 1) / bn : 0);
            (void)stages;
            emulate::launch(dim3((M + 127) / 128, tiles, G), dim3(256), [&] { kernel(p); });
            Relative a, b;
            for (u32 g = 0; g < G; g++) for (u32 r = 0; r < M; r += 7) {
                for (u32 o = 0; o < N1; o++) {
                    double s = 0;
                    for (u32 k = 0; k < K; k++) s += (passes == 1 ? h2f(xh[r * G * K + g * K + k]) : x[r * G * K + g * K + k]) * (passes == 3 ? w[(g * N1 + o) * K + k] - (double)h2f(xl[r * G * K + g * K + k]) * h2f(w1l[(g * N1 + o) * K + k]) / 1e9 : h2f(w1[(g * N1 + o) * K + k]));
                    a.add(o1[r * G * N1 + g * N1 + o], s);
                }
                if (p.n_pieces == 2) for (u32 o = 0; o < N2; o++) {
                    double s = 1;
                    for (u32 k = 0; k < K; k++) s += (passes == 1 ? h2f(xh[r * G * K + g * K + k]) : x[r * G * K + g * K + k]) * h2f(w2[(g * N2 + o) * K + k]);
                    b.add(o2[r * G * N2 + g * N2 + o], s);
                }
            }
            char line[80];
            snprintf(line, 80, "%s, %u passes", name, passes);
            report(line, std::max(a.value(), b.value()), 1e-6);
        }
    };
    run("gemm_256", in_gemm::gemm_256, 256, GEMM_256_STAGES);
    run("gemm_128", in_gemm::gemm_128, 128, GEMM_128_STAGES);
    run("gemm_64", in_gemm::gemm_64, 64, GEMM_64_STAGES);
}

static void check_attend(bool selects, u32 splits) {
    Step s;
    const u32 window = 128, n_ring = 192, ratio = 4, top_k = 96;
    s.segment(1, 512, 300, 3, window);
    s.segment(0, 0, 0, 5, window);
    s.pad();
    u32 n = (u32)s.slot.size();
    std::vector<u16> q((size_t)n * 64 * 512), kv(n * 512), ring(2 * n_ring * 512), cache(300 * 512), out(q.size(), 0x7e00);
    for (auto* v : {&q, &kv, &ring, &cache}) for (auto& e : *v) e = f2bf(uniform());
    std::vector<u32> selected(n * top_k);
    for (u32 r = 0; r < n; r++) for (u32 i = 0; i < top_k; i++) selected[r * top_k + i] = i * (s.position[r] + 1) / ratio / top_k;
    std::vector<float> sinks(64), part((size_t)n * splits * 64 * 512, NAN), part_max((size_t)n * splits * 128, NAN);
    for (auto& v : sinks) v = 2 * uniform();
    Attend p = {s.rows(), q.data(), kv.data(), ring.data(), cache.data(), selects ? selected.data() : nullptr, sinks.data(), out.data(), nullptr, part.data(), part_max.data(), n_ring, ratio, selects ? 16u : top_k, 1, splits, n};
    if (selects) { p.top_k = 16; for (u32 r = 0; r < n; r++) for (u32 i = 0; i < 16; i++) selected[r * 16 + i] = i * ((s.position[r] + 1) / ratio) / 16; }
    emulate::launch(dim3(n, splits), dim3(256), [&] { in_attend::attend(p); });
    if (splits > 1) emulate::launch(dim3(n, 8), dim3(256), [&] { in_attend::attend_combine(p); });
    Relative e;
    for (u32 r = 0; r < n; r++) {
        if (s.slot[r] == PAD_SLOT) { if (out[(size_t)r * 64 * 512] != 0x7e00) e.add(1e9, 1); continue; }
        std::vector<const u16*> rows;
        u32 segment = s.position[r] - (r - s.first_row[r]);
        for (u32 at = s.window_start[r]; at <= s.position[r]; at++) rows.push_back(at < segment ? &ring[(s.slot[r] * n_ring + at % n_ring) * 512] : &kv[(s.first_row[r] + at - segment) * 512]);
        u32 visible = (s.position[r] + 1) / ratio;
        for (u32 c = 0; c < std::min(visible, selects ? 16u : visible); c++) rows.push_back(&cache[(s.base[r] / ratio + (selects && visible > 16 ? selected[r * 16 + c] : c)) * 512]);
        for (u32 h = 0; h < 64; h += 5) {
            std::vector<double> z;
            double top = sinks[h], sum = 0;
            for (auto row : rows) { double d = 0; for (int c = 0; c < 512; c++) d += bf2f(q[((size_t)r * 64 + h) * 512 + c]) * bf2f(row[c]); z.push_back(d / std::sqrt(512.0)); top = std::max(top, z.back()); }
            std::vector<double> o(512, 0);
            sum = std::exp(sinks[h] - top);
            for (size_t j = 0; j < rows.size(); j++) { double w = std::exp(z[j] - top); sum += w; for (int c = 0; c < 512; c++) o[c] += w * bf2f(rows[j][c]); }
            for (int c = 0; c < 512; c++) o[c] /= sum;
            for (int i = 0; i < 32; i++) { const float* cs = &s.angles[(r * 4 + 1) * 64 + 2 * i]; double a = o[448 + 2 * i], b = o[449 + 2 * i]; o[448 + 2 * i] = a * cs[0] + b * cs[1]; o[449 + 2 * i] = b * cs[0] - a * cs[1]; }
            for (int c = 0; c < 512; c++) e.add(h2f(out[((size_t)r * 64 + h) * 512 + c]), o[c]);
        }
    }
    char line[80];
    snprintf(line, 80, "attend, %s rows, %u splits", selects ? "selected" : "all", splits);
    report(line, e.value(), 4e-3);
}

static float iq2_weight(const unsigned char* row, u32 k) {
    static const u32 grid[256] = DS4_IQ2_GRID;
    const unsigned char* b = row + k / 256 * 66;
    u32 e = k % 256, i = e / 32, l = e % 32 / 8, j = e % 8, codes, d = b[0] | b[1] << 8;
    memcpy(&codes, b + 6 + 8 * i, 4);
    u32 signs = ds4_iq2_signs(codes >> (7 * l) & 127);
    const float magnitude[4] = {8, 25, 43, 0};
    float v = h2f((u16)d) * (0.5f + (codes >> 28)) / 4 * magnitude[grid[b[2 + 8 * i + l]] >> (4 * j) & 15];
    return signs >> j & 1 ? -v : v;
}
static float q2k_weight(const unsigned char* row, u32 k) {
    const unsigned char* b = row + k / 256 * 84;
    u32 e = k % 256, n = e / 128, r = e % 128 / 32, l = e % 32, s = b[e / 16];
    return h2f(b[80] | b[81] << 8) * (s & 15) * (b[16 + 32 * n + l] >> (2 * r) & 3) - h2f(b[82] | b[83] << 8) * (s >> 4);
}

static void check_experts(bool few, bool two = false) {
    const u32 n = few ? 20 : 48, tokens = few ? EXPERTS_FEW_TOKENS : EXPERTS_MANY_TOKENS;
    std::vector<u32> slot(n, 0), experts(n * 6);
    slot[3] = PAD_SLOT;
    std::vector<float> weights(n * 6);
    for (u32 r = 0; r < n; r++) for (u32 i = 0; i < 6; i++) { experts[r * 6 + i] = i == 0 ? two && r % 10 > 0 ? 8u : 7u : 10 + (r * 5 + i * 37) % 240; weights[r * 6 + i] = 0.25f + uniform() / 8; }
    std::vector<u16> x((size_t)n * 4096), hidden((size_t)n * 6 * 2048, 0x7e00), part((size_t)n * 6 * 4096, 0x7e00);
    for (auto& v : x) v = f2h(uniform());
    std::vector<float> xf, x_scale(n * 16), hidden_scale(n * 48, NAN);
    for (size_t i = 0; i < x.size(); i++) xf.push_back(h2f(x[i / 4096 * 4096 + order1(i % 4096)]));
    std::vector<unsigned char> codes((size_t)n * 8192);
    std::vector<u16> hidden_sums((size_t)n * 6 * 128, 0x7e00);
    const size_t gate_bytes = (size_t)2048 * 16 * 66, down_bytes = (size_t)4096 * 8 * 84;
    std::vector<unsigned char> gate(gate_bytes), up(gate_bytes), down(down_bytes), packed(ds4_iq2_pair_bytes(2048, 4096)), packed_down(ds4_q2k_bytes(4096, 2048));
    for (auto* v : {&gate, &up, &down}) for (auto& b : *v) b = (unsigned char)rng();
    for (auto* v : {&gate, &up}) for (size_t i = 0; i < gate_bytes; i += 66) { u16 h = f2h(0.002f + 0.001f * uniform()); memcpy(&(*v)[i], &h, 2); }
    for (size_t i = 0; i < down_bytes; i += 84) { u16 h = f2h(0.002f + 0.001f * uniform()), m = f2h(0.002f + 0.001f * uniform()); memcpy(&down[i + 80], &h, 2); memcpy(&down[i + 82], &m, 2); }
    for (size_t w = 0; w < packed.size() / 4; w++) { u32 v = ds4_iq2_pair_word(gate.data(), up.data(), 4096, w); memcpy(&packed[w * 4], &v, 4); }
    for (size_t w = 0; w < packed_down.size() / 4; w++) { u32 v = ds4_q2k_word(down.data(), 2048, w); memcpy(&packed_down[w * 4], &v, 4); }
    std::vector<u64> gates(256, (u64)packed.data()), downs(256, (u64)packed_down.data());
    u32 max_tiles = std::min(256u, 6 * n) + 6 * n / tokens;
    std::vector<u32> lists((size_t)256 * n, 0xdeadbeef), counts(256), tiles(4 + 4 * max_tiles);
    std::vector<float> shared((size_t)n * 4096), y((size_t)n * 4096, NAN);
    for (auto& v : shared) v = uniform();
    Experts p = {slot.data(), experts.data(), weights.data(), x.data(), gates.data(), downs.data(), lists.data(), counts.data(), tiles.data(), hidden.data(), part.data(), shared.data(), y.data(), n, tokens, 1.0f, 0, xf.data(), codes.data(), x_scale.data(), hidden_sums.data(), hidden_scale.data()};
    emulate::launch(dim3(256), dim3(256), [&] { in_experts::experts_group(p); });
    emulate::launch(dim3(1), dim3(256), [&] { in_experts::experts_tiles(p); });
    std::vector<u32> seen(n * 6, 0);
    for (u32 i = 0; i < tiles[0]; i++) for (u32 j = 0; j < tiles[4 + 4 * i + 2]; j++) { u32 pair = lists[(size_t)tiles[4 + 4 * i] * n + tiles[4 + 4 * i + 1] + j]; seen[pair]++; if (experts[pair] != tiles[4 + 4 * i]) failures++; }
    double lost = 0;
    for (u32 i = 0; i < n * 6; i++) lost += seen[i] != (slot[i / 6] != PAD_SLOT);
    report("experts_group: every pair once", lost + (tiles[0] > max_tiles), 0);
    if (few) emulate::launch(dim3(n), dim3(512), [&] { in_few::experts_few_codes(p); });
    // Where a hidden value of the few path has its high byte, and its low byte 8 further.
    auto place_of = [](u32 col) { return col / 256 * 512 + col % 256 / 32 * 64 + col % 16 / 4 * 16 + col % 32 / 16 * 4 + col % 4; };
    auto hidden_value = [&](size_t pair, u32 col) { const signed char* at = (const signed char*)hidden.data() + pair * 4096 + place_of(col); return (128.0 * at[0] + at[8]) * hidden_scale[pair * 8 + col / 256]; };
    // The tiles of expert 7 only (all rows), and one block of channels: the rest is the same code.
    for (u32 tile = 0; tile < tiles[0]; tile++) if (tiles[4 + 4 * tile] == 7)
        emulate::launch(dim3(1), dim3(few ? 512 : 256), [&] { emulate::block_id.x = 2, emulate::block_id.y = tile; if (few) in_few::experts_few_gate_up(p); else in_experts::experts_gate_up_many(p); });
    Relative e;
    for (u32 r = 0; r < n; r++) if (slot[r] != PAD_SLOT && experts[r * 6] == 7) for (u32 o = 0; o < (few ? 256u : 128u); o += 3) {
        u32 channel = 2 * (few ? 256 : 128) + o;
        double g = 0, u = 0;
        for (u32 k = 0; k < 4096; k++) { double v = h2f(x[(size_t)r * 4096 + order1(k)]); g += v * iq2_weight(&gate[(size_t)channel * 16 * 66], k); u += v * iq2_weight(&up[(size_t)channel * 16 * 66], k); }
        g = std::min(g, 1.0), u = std::max(std::min(u, 1.0), -1.0);
        u32 place = order2(channel);
        e.add(few ? hidden_value((size_t)r * 6, channel) : h2f(hidden[(size_t)r * 6 * 2048 + place]), weights[r * 6] * g / (1 + std::exp(-g)) * u);
    }
    report(few ? "experts_few_gate_up" : "experts_gate_up_many", e.value(), 1e-3);
    if (few) {
        Relative sums;
        for (u32 r = 0; r < n; r++) if (slot[r] != PAD_SLOT && experts[r * 6] == 7) for (u32 c = 512; c < 768; c += 16) { double s = 0; for (u32 k = 0; k < 16; k++) s += hidden_value((size_t)r * 6, c + k); sums.add(h2f(hidden_sums[(size_t)r * 6 * 128 + c / 16]), s); }
        report("experts_few_gate_up: sums of sixteen", sums.value(), 4e-4);
        for (auto& b : hidden) b = (u16)(rng() % 256 | rng() % 256 << 8);
        for (size_t i = 0; i < (size_t)n * 6 * 4096; i++) if (i % 16 >= 8) ((signed char*)hidden.data())[i] /= 2;
        for (auto& v : hidden_scale) v = (1.5f + uniform()) / 16256;
        for (size_t q = 0; q < n * 6; q++) for (u32 c = 0; c < 2048; c += 16) { double s = 0; for (u32 k = 0; k < 16; k++) s += hidden_value(q, c + k); hidden_sums[q * 128 + c / 16] = f2h(s); }
    } else for (auto& h : hidden) h = f2h(uniform());
    for (u32 tile = 0; tile < tiles[0]; tile++) if (tiles[4 + 4 * tile] == 7)
        emulate::launch(dim3(1), dim3(few ? 512 : 256), [&] { emulate::block_id.x = 3, emulate::block_id.y = tile; if (few) in_few::experts_few_down(p); else in_experts::experts_down_many(p); });
    Relative d;
    for (u32 r = 0; r < n; r++) if (slot[r] != PAD_SLOT && experts[r * 6] == 7) for (u32 o = 0; o < (few ? 512u : 256u); o += 5) {
        u32 channel = 3 * (few ? 512 : 256) + o;
        double s = 0;
        for (u32 k = 0; k < 2048; k++) s += (few ? hidden_value((size_t)r * 6, k) : (double)h2f(hidden[(size_t)r * 6 * 2048 + order2(k)])) * q2k_weight(&down[(size_t)channel * 8 * 84], k);
        d.add(h2f(part[(size_t)r * 6 * 4096 + channel]), s);
    }
    report(few ? "experts_few_down" : "experts_down_many", d.value(), 1e-3);
    for (auto& h : part) h = f2h(uniform());
    emulate::launch(dim3(n), dim3(256), [&] { in_experts::experts_sum(p); });
    Relative t;
    for (u32 r = 0; r < n; r++) if (slot[r] != PAD_SLOT) for (u32 c = 0; c < 4096; c += 11) {
        double s = shared[(size_t)r * 4096 + c];
        for (u32 i = 0; i < 6; i++) s += h2f(part[((size_t)r * 6 + i) * 4096 + c]);
        t.add(y[(size_t)r * 4096 + c], s);
    }
    report("experts_sum", t.value(), 1e-6);
}

static void check_index() {
    Step s;
    s.segment(0, 0, 2600, 4, 128);
    s.segment(1, 4096, 2399, 3, 128);
    s.pad();
    u32 n = (u32)s.slot.size(), rows = 2000, stride = 704;
    std::vector<u16> iq((size_t)n * 64 * 128), cache(rows * 128);
    for (auto* v : {&iq, &cache}) for (auto& e : *v) e = f2bf((int)(rng() % 13) / 2.0f - 3);
    std::vector<float> w(n * 64), scores((size_t)n * stride, NAN);
    for (auto& v : w) v = uniform();
    std::vector<u32> selected(n * 512, 0xffffffff);
    IndexSelect p = {s.rows(), iq.data(), w.data(), cache.data(), scores.data(), selected.data(), 1, n - 1, stride, rows, 3, 64, 400, 0};
    emulate::launch(dim3(2, 3), dim3(256), [&] { in_index::index_scores(p); });
    Relative e;
    double wrong = 0;
    for (u32 r = 1; r < n; r++) {
        u32 visible = s.slot[r] == PAD_SLOT ? 0 : (s.position[r] + 1) / 4;
        for (u32 c = 0; c < visible; c += 3) {
            double sum = 0;
            for (u32 h = 0; h < 64; h++) { double d = 0; for (u32 k = 0; k < 128; k++) d += bf2f(iq[((size_t)r * 64 + h) * 128 + k]) * bf2f(cache[(s.base[r] / 4 + c) * 128 + k]); sum += w[r * 64 + h] * std::max(0.0, d); }
            e.add(scores[(r - 1) * stride + c], sum / std::sqrt(128.0 * 64));
        }
        for (u32 c = visible; c < stride; c++) wrong += !std::isnan(scores[(r - 1) * stride + c]);
    }
    report("index_scores", e.value(), 1e-6);
    report("index_scores: nothing beyond the visible rows", wrong, 0);
    for (u32 cached : {400u, 4096u}) for (int ties = 0; ties < 2; ties++) {
        for (u32 r = 1; r < n; r++) for (u32 c = 0; c < stride; c++) scores[(r - 1) * stride + c] = ties ? (float)(rng() % 5) - 2 : uniform();
        p.cached = cached;
        emulate::launch(dim3(n - 1), dim3(512), [&] { in_index::index_top_k(p); });
        wrong = 0;
        for (u32 r = 1; r < n; r++) {
            u32 visible = s.slot[r] == PAD_SLOT ? 0 : (s.position[r] + 1) / 4;
            std::vector<u32> order(visible);
            std::iota(order.begin(), order.end(), 0);
            const float* v = &scores[(r - 1) * stride];
            std::stable_sort(order.begin(), order.end(), [&](u32 a, u32 b) { return v[a] > v[b]; });
            order.resize(std::min(visible, 512u));
            std::sort(order.begin(), order.end());
            for (size_t i = 0; i < order.size(); i++) wrong += selected[r * 512 + i] != order[i];
        }
        report(ties ? "index_top_k with ties" : "index_top_k", wrong, 0);
    }
}

static void check_turn(bool post) {
    const u32 n = 19, steps = 4;
    std::vector<u32> slot(n, 0);
    slot[5] = PAD_SLOT;
    std::vector<float> y((size_t)n * 4096), gates(n * 24), streams((size_t)n * 16384), base(24), scale = {0.7f, 1.1f, 0.9f}, norm(4096), part(16 * n * 32, NAN), x((size_t)n * 4096, NAN);
    std::vector<u16> fn_file(24 * 16384), fn(24 * 16384), xh(x.size()), xl(x.size()), xe(x.size());
    for (auto* v : {&y, &gates, &base, &norm}) for (auto& e : *v) e = uniform();
    for (auto& e : streams) e = 30 * uniform();
    for (auto& e : fn_file) e = f2h(0.05f * uniform());
    for (size_t w = 0; w < fn.size() / 2; w++) { u32 v = ds4_hc_word((unsigned char*)fn_file.data(), 24, 4, 4096, w); memcpy(&fn[2 * w], &v, 4); }
    std::vector<double> want(streams.begin(), streams.end());
    if (post) for (u32 r = 0; r < n; r++) if (slot[r] != PAD_SLOT) for (u32 c = 0; c < 4096; c++) for (int k = 0; k < 4; k++) {
        double s = (double)gates[r * 24 + 4 + k] * y[(size_t)r * 4096 + c];
        for (int j = 0; j < 4; j++) s += (double)gates[r * 24 + 8 + 4 * j + k] * streams[(size_t)r * 16384 + j * 4096 + c];
        want[(size_t)r * 16384 + k * 4096 + c] = s;
    }
    Turn p = {slot.data(), post ? y.data() : nullptr, nullptr, gates.data(), streams.data(), fn.data(), base.data(), scale.data(), norm.data(), part.data(), x.data(), xh.data(), xl.data(), xe.data(), n, steps};
    emulate::launch(dim3((n + 15) / 16, 64 / steps), dim3(256), [&] { in_hc::turn_mix(p); });
    emulate::launch(dim3(n), dim3(288), [&] { in_hc::turn_pre(p); });
    Relative es, eg, ex;
    for (u32 r = 0; r < n; r++) if (slot[r] != PAD_SLOT) {
        const double* v = &want[(size_t)r * 16384];
        double ss = 0, mix[24];
        for (int i = 0; i < 16384; i++) { ss += v[i] * v[i]; es.add(streams[(size_t)r * 16384 + i], v[i]); }
        for (int m = 0; m < 24; m++) { double d = 0; for (int i = 0; i < 16384; i++) d += v[i] * h2f(fn_file[m * 16384 + i]); mix[m] = d / std::sqrt(ss / 16384 + 1e-6); }
        double g[24];
        for (int j = 0; j < 4; j++) { g[j] = 1 / (1 + std::exp(-(mix[j] * scale[0] + base[j]))) + 1e-6; g[4 + j] = 2 / (1 + std::exp(-(mix[4 + j] * scale[1] + base[4 + j]))); }
        for (int i = 8; i < 24; i++) g[i] = mix[i] * scale[2] + base[i];
        double* c = g + 8;
        for (int j = 0; j < 4; j++) { double m = -1e9, s = 0; for (int k = 0; k < 4; k++) m = std::max(m, c[4 * j + k]); for (int k = 0; k < 4; k++) s += c[4 * j + k] = std::exp(c[4 * j + k] - m); for (int k = 0; k < 4; k++) c[4 * j + k] = c[4 * j + k] / s + 1e-6; }
        for (int it = 0; it < 20; it++) {
            if (it) for (int j = 0; j < 4; j++) { double s = 1e-6; for (int k = 0; k < 4; k++) s += c[4 * j + k]; for (int k = 0; k < 4; k++) c[4 * j + k] /= s; }
            for (int k = 0; k < 4; k++) { double s = 1e-6; for (int j = 0; j < 4; j++) s += c[4 * j + k]; for (int j = 0; j < 4; j++) c[4 * j + k] /= s; }
        }
        for (int i = 0; i < 24; i++) eg.add(gates[r * 24 + i], g[i]);
        std::vector<double> o(4096);
        double s2 = 0;
        for (int i = 0; i < 4096; i++) { for (int j = 0; j < 4; j++) o[i] += g[j] * v[j * 4096 + i]; s2 += o[i] * o[i]; }
        for (int i = 0; i < 4096; i++) { double w = norm[i] * o[i] / std::sqrt(s2 / 4096 + 1e-6); ex.add(x[(size_t)r * 4096 + i], w); ex.add((double)h2f(xh[(size_t)r * 4096 + i]) + h2f(xl[(size_t)r * 4096 + i]), w); if (xe[(size_t)r * 4096 + order1(i)] != xh[(size_t)r * 4096 + i]) ex.add(9, 0); }
    }
    report(post ? "turn: streams" : "turn without y: streams", es.value(), 1e-6);
    report("turn: gates", eg.value(), 2e-6);
    report("turn: x, halves and rest", ex.value(), 2e-6);
}

static void check_matrix() {
    const u32 n_out = 128, n_in = 1024;
    std::vector<unsigned char> q8((size_t)n_out * n_in / 32 * 34), packed(ds4_q8_bytes(n_out, n_in));
    for (auto& b : q8) b = (unsigned char)rng();
    for (size_t i = 0; i < q8.size(); i += 34) { u16 h = f2h(0.01f + 0.005f * uniform()); memcpy(&q8[i], &h, 2); }
    for (size_t w = 0; w < packed.size() / 4; w++) { u32 v = ds4_q8_word(q8.data(), n_in, w); memcpy(&packed[w * 4], &v, 4); }
    auto weight = [&](u32 o, u32 k) { const unsigned char* b = &q8[((size_t)o * n_in / 32 + k / 32) * 34]; return (double)h2f(b[0] | b[1] << 8) * (int8_t)b[2 + k % 32]; };
    std::vector<u16> half((size_t)n_out * n_in, 0x7e00);
    Expand p = {packed.data(), half.data(), nullptr, n_out, n_in};
    emulate::launch(dim3((n_out / 16 * n_in / 256 + 7) / 8), dim3(256), [&] { in_matrix::expand_q8(p); });
    Relative e;
    for (u32 o = 0; o < n_out; o++) for (u32 k = 0; k < n_in; k++) e.add(h2f(half[(size_t)o * n_in + k]), weight(o, k));
    report("expand_q8", e.value(), 3e-4);
    for (u32 groups : {1u, 2u}) for (u32 n : {13u, 29u, 64u}) {
        std::vector<u16> x((size_t)n * n_in * groups), low(x.size());
        std::vector<double> full(x.size());
        for (size_t i = 0; i < x.size(); i++) { float v = uniform(); x[i] = f2h(v); low[i] = f2h(v - h2f(x[i])); full[i] = (double)h2f(x[i]) + h2f(low[i]); }
        for (int t = 1; t <= (n > 32 ? 1 : 2); t++) for (int f16 = 0; f16 < 2; f16++) {
            u32 ld = n_out + 2;
            std::vector<float> out((size_t)n * ld, NAN);
            Skinny s = {x.data(), low.data(), n, n_in * groups, n_in, groups, 1, 0, {}};
            u32 per = t * 2; // kw = 4
            if (n_out / 16 / groups % per) continue;
            s.pieces[0] = {f16 ? (void*)half.data() : (void*)packed.data(), out.data(), n_out, ld, 0, GEMM_F32};
            auto k = [&] {
                if (n <= 16) { if (t == 1) f16 ? in_matrix::skinny_f16_16_1(s) : in_matrix::skinny_q8_16_1(s); else f16 ? in_matrix::skinny_f16_16_2(s) : in_matrix::skinny_q8_16_2(s); }
                else if (n <= 32) { if (t == 1) f16 ? in_matrix::skinny_f16_32_1(s) : in_matrix::skinny_q8_32_1(s); else f16 ? in_matrix::skinny_f16_32_2(s) : in_matrix::skinny_q8_32_2(s); }
                else f16 ? in_matrix::skinny_f16_64_1(s) : in_matrix::skinny_q8_64_1(s);
            };
            emulate::launch(dim3((n_out / 16 + per - 1) / per), dim3(256), k);
            Relative r;
            for (u32 row = 0; row < n; row++) for (u32 o = 0; o < n_out; o += 3) {
                double d = 0;
                u32 g = o / (n_out / groups);
                for (u32 c = 0; c < n_in; c++) { size_t at = (size_t)row * n_in * groups + g * n_in + c; d += f16 ? full[at] * h2f(half[(size_t)o * n_in + c]) : h2f(x[at]) * weight(o, c); }
                r.add(out[(size_t)row * ld + o], d);
            }
            char line[80];
            snprintf(line, 80, "skinny %s, %u rows, %d tiles, %u groups", f16 ? "f16" : "q8", n, t, groups);
            report(line, r.value(), f16 ? 1e-6 : 4e-4);
        }
    }
}

static void check_rows() {
    Step s;
    s.segment(0, 0, 100, 5, 128);
    s.pad();
    u32 n = (u32)s.slot.size();
    std::vector<float> q((size_t)n * 64 * 512), kv(n * 512), iq((size_t)n * 64 * 128), w(512);
    for (auto* v : {&q, &kv, &iq, &w}) for (auto& e : *v) e = 3 * uniform();
    auto q0 = q, kv0 = kv, iq0 = iq;
    std::vector<u16> qo(q.size()), kvo(kv.size()), iqo(iq.size());
    Prepare pq = {s.rows(), q.data(), qo.data(), nullptr, nullptr, n, 1, 1, 0}, pk = {s.rows(), kv.data(), kvo.data(), w.data(), nullptr, n, 0, 0, 0}, pi = {s.rows(), iq.data(), iqo.data(), nullptr, nullptr, n, 1, 0, 0};
    emulate::launch(dim3(n, 8), dim3(256), [&] { in_rows::q_prepare(pq); });
    emulate::launch(dim3((n + 7) / 8), dim3(256), [&] { in_rows::kv_prepare(pk); });
    emulate::launch(dim3(n, 8), dim3(256), [&] { in_rows::iq_prepare(pi); });
    auto norm_rope = [&](const float* x, int dim, bool norm, const float* weight, const float* cs, double* o) {
        double ss = 0;
        for (int i = 0; i < dim; i++) ss += (double)x[i] * x[i];
        for (int i = 0; i < dim; i++) o[i] = (norm ? x[i] / std::sqrt(ss / dim + 1e-6) : x[i]) * (weight ? weight[i] : 1.0);
        for (int i = 0; i < 32; i++) { double a = o[dim - 64 + 2 * i], b = o[dim - 63 + 2 * i]; o[dim - 64 + 2 * i] = a * cs[2 * i] - b * cs[2 * i + 1]; o[dim - 63 + 2 * i] = a * cs[2 * i + 1] + b * cs[2 * i]; }
    };
    Relative eq, ek, ei;
    std::vector<double> o(512);
    for (u32 r = 0; r < n - 1; r++) {
        for (u32 h = 0; h < 64; h++) {
            norm_rope(&q0[((size_t)r * 64 + h) * 512], 512, true, nullptr, &s.angles[(r * 4 + 1) * 64], o.data());
            for (int c = 0; c < 512; c++) eq.add(bf2f(qo[((size_t)r * 64 + h) * 512 + c]), o[c]);
            norm_rope(&iq0[((size_t)r * 64 + h) * 128], 128, false, nullptr, &s.angles[(r * 4 + 1) * 64], o.data());
            for (int c = 0; c < 128; c++) ei.add(bf2f(iqo[((size_t)r * 64 + h) * 128 + c]), o[c]);
        }
        norm_rope(&kv0[r * 512], 512, true, w.data(), &s.angles[r * 4 * 64], o.data());
        for (int c = 0; c < 512; c++) ek.add(kv[r * 512 + c], o[c]);
    }
    report("q_prepare", eq.value(), 3e-3);
    std::vector<u16> q_half, same(qo.size());
    for (auto& v : q0) q_half.push_back(f2h(v)), v = h2f(q_half.back());
    q = q0;
    emulate::launch(dim3(n, 8), dim3(256), [&] { in_rows::q_prepare(pq); });
    pq.out = same.data(), pq.x_half = q_half.data(), pq.x = nullptr;
    emulate::launch(dim3(n, 8), dim3(256), [&] { in_rows::q_prepare(pq); });
    double differ = 0;
    for (size_t i = 0; i < same.size(); i++) differ += same[i] != qo[i];
    report("q_prepare of halves", differ, 0);
    report("kv_prepare, not rounded", ek.value(), 1e-6);
    report("iq_prepare, not rounded", ei.value(), 3e-3);
    // Rounded rows: from what the unrounded run gives, by the definition.
    auto kv_want = kv;
    kv = kv0;
    pk.rounded = 1;
    emulate::launch(dim3((n + 7) / 8), dim3(256), [&] { in_rows::kv_prepare(pk); });
    double wrong = 0;
    for (u32 r = 0; r < n - 1; r++) for (int c = 0; c < 448; c++) {
        double amax = 1e-4;
        for (int j = c / 64 * 64; j < c / 64 * 64 + 64; j++) amax = std::max(amax, (double)std::fabs(kv_want[r * 512 + j]));
        double scale = std::exp2(std::ceil(std::log2(amax / 448))), v = kv_want[r * 512 + c] / scale, best = 1e9, at = 0;
        for (int code = 0; code < 127; code++) { double m = code < 8 ? code / 512.0 : std::ldexp(1 + (code & 7) / 8.0, (code >> 3) - 7); if (std::fabs(std::fabs(v) - m) < best) best = std::fabs(std::fabs(v) - m), at = m; }
        wrong += std::fabs(std::fabs(kv[r * 512 + c]) - at * scale) > 1e-9 || bf2f(kvo[r * 512 + c]) != kv[r * 512 + c];
    }
    report("kv_prepare, rounded, values that differ", wrong, 0);
    pi.rounded = 1;
    emulate::launch(dim3(n, 8), dim3(256), [&] { in_rows::iq_prepare(pi); });
    wrong = 0;
    for (u32 r = 0; r < n - 1; r++) for (u32 h = 0; h < 64; h++) {
        norm_rope(&iq0[((size_t)r * 64 + h) * 128], 128, false, nullptr, &s.angles[(r * 4 + 1) * 64], o.data());
        for (int half = 1; half < 128; half *= 2) for (int i = 0; i < 128; i++) if (!(i & half)) { double a = o[i], b = o[i + half]; o[i] = a + b; o[i + half] = a - b; }
        const double grid[8] = {0, .5, 1, 1.5, 2, 3, 4, 6};
        for (int c = 0; c < 128; c++) {
            double amax = 0;
            for (int j = c / 32 * 32; j < c / 32 * 32 + 32; j++) amax = std::max(amax, std::fabs(o[j] / std::sqrt(128.0)));
            double scale = std::exp2(std::ceil(std::log2(amax / 6))), v = std::fabs(o[c] / std::sqrt(128.0)) / scale, best = 1e9, at = 0;
            for (double m : grid) if (std::fabs(v - m) < best) best = std::fabs(v - m), at = m;
            double got = std::fabs(bf2f(iqo[((size_t)r * 64 + h) * 128 + c]) / scale);
            if (got != at && std::fabs(std::fabs(v - got) - best) > 1e-5) wrong++;
        }
    }
    report("iq_prepare, rounded, values that differ", wrong, 0);
    const u32 width = 1024, rows = 3;
    std::vector<float> x(rows * width), nw(width);
    for (auto* v : {&x, &nw}) for (auto& e : *v) e = uniform();
    auto x0 = x;
    std::vector<u16> hi(x.size()), lo(x.size());
    RowsHalf ph = {x.data(), nullptr, nw.data(), hi.data(), lo.data(), rows, width, 0, 0};
    emulate::launch(dim3(rows), dim3(256), [&] { in_rows::norm_half(ph); });
    Relative en;
    for (u32 r = 0; r < rows; r++) { double ss = 0; for (u32 c = 0; c < width; c++) ss += (double)x0[r * width + c] * x0[r * width + c]; for (u32 c = 0; c < width; c++) { double want = nw[c] * x0[r * width + c] / std::sqrt(ss / width + 1e-6); en.add(x[r * width + c], want); en.add((double)h2f(hi[r * width + c]) + h2f(lo[r * width + c]), want); } }
    report("norm_half", en.value(), 1e-6);
    Relative eb;
    double misplaced = 0;
    for (u32 order : {0u, 1u, 2u}) {
        ph.order = order;
        ph.x = x.data();
        emulate::launch(dim3((rows * width + 2047) / 2048), dim3(256), [&] { in_rows::rows_to_half(ph); });
        for (u32 i = 0; i < rows * width; i++) misplaced += hi[order == 0 ? i : order == 1 ? order1(i) : order2(i)] != f2h(x[i]);
        auto back = x;
        ph.x = back.data();
        if (order != 1) emulate::launch(dim3((rows * width + 2047) / 2048), dim3(256), [&] { in_rows::rows_from_half(ph); });
        for (size_t i = 0; i < x.size(); i++) eb.add(back[i], x[i]);
    }
    report("rows_to_half: misplaced", misplaced, 0);
    report("rows_to_half and back", eb.value(), 4e-4);
}

static void check_compress(u32 ratio) {
    Step s;
    s.segment(1, 1024, ratio == 4 ? 5 : 120, ratio == 4 ? 9 : 20, 128);
    s.segment(0, 0, 0, 4, 128);
    s.segment(2, 2048, 254, 70, 128);
    s.pad();
    const u32 n = (u32)s.slot.size(), n_ring = 64, n_frontier = ratio == 4 ? 68 : 192, n_parts = ratio == 4 ? 2 : 1;
    std::vector<float> kv[2], gate[2], ape[2], norm[2], frontier[2];
    std::vector<u16> cache[2], rows(n * 512), window(3 * n_ring * 512, 0x7fc0);
    for (auto& v : rows) v = f2bf(uniform());
    CompressRows p = {s.rows(), rows.data(), window.data(), n_ring, 0, n_parts, 0, {}};
    u32 dims[2] = {512, 128}, widths[2];
    for (u32 i = 0; i < n_parts; i++) {
        widths[i] = ratio == 4 ? 2 * dims[i] : dims[i];
        kv[i].resize(n * widths[i]), gate[i].resize(n * widths[i]), ape[i].resize(ratio * widths[i]), norm[i].resize(dims[i]), frontier[i].resize(3 * n_frontier * 2 * widths[i]);
        for (auto* v : {&kv[i], &gate[i], &ape[i], &norm[i], &frontier[i]}) for (auto& e : *v) e = 2 * uniform();
        cache[i].assign(3072 / ratio * dims[i], 0x7fc0);
        p.parts[i] = {kv[i].data(), gate[i].data(), ape[i].data(), norm[i].data(), frontier[i].data(), cache[i].data(), widths[i], dims[i], ratio, n_frontier};
    }
    auto before = frontier[0];
    for (u32 rounded = 0; rounded < 2; rounded++) {
        p.rounded = rounded;
        emulate::launch(dim3(n, n_parts), dim3(128), [&] { in_compress::compress_rows(p); });
        for (u32 i = 0; i < n_parts; i++) {
            Relative e;
            double written = 0, expected = 0;
            for (auto v : cache[i]) written += v != 0x7fc0;
            for (u32 r = 0; r < n; r++) {
                u32 end = s.position[r] + 1, dim = dims[i], w = widths[i];
                if (s.slot[r] == PAD_SLOT || end % ratio) continue;
                expected += dim;
                std::vector<double> v(dim);
                double ss = 0;
                u32 segment = s.position[r] - (r - s.first_row[r]), pooled = ratio == 4 ? 8 : 128;
                for (u32 c = 0; c < dim; c++) {
                    double top = -1e30, sum = 0, weight = 0;
                    for (int pass = 0; pass < 2; pass++) for (u32 at = end > pooled ? end - pooled : 0; at < end; at++) {
                        u32 ch = c + (ratio == 4 && at + 4 >= end ? dim : 0);
                        size_t row = s.first_row[r] + at - segment, ring = ((size_t)s.slot[r] * n_frontier + at % n_frontier) * 2 * w;
                        double a = at >= segment ? kv[i][row * w + ch] : frontier[i][ring + ch], g = at >= segment ? (double)gate[i][row * w + ch] + ape[i][at % ratio * w + ch] : frontier[i][ring + w + ch];
                        if (pass == 0) top = std::max(top, g); else { double x = std::exp(g - top); weight += x; sum += x * a; }
                    }
                    v[c] = sum / weight, ss += v[c] * v[c];
                }
                for (u32 c = 0; c < dim; c++) v[c] *= norm[i][c] / std::sqrt(ss / dim + 1e-6);
                const float* cs = &s.angles[(r * 4 + (ratio == 4 ? 2 : 3)) * 64];
                for (u32 k = 0; k < 32; k++) { double a = v[dim - 64 + 2 * k], b = v[dim - 63 + 2 * k]; v[dim - 64 + 2 * k] = a * cs[2 * k] - b * cs[2 * k + 1]; v[dim - 63 + 2 * k] = a * cs[2 * k + 1] + b * cs[2 * k]; }
                if (rounded && i == 1) { for (u32 half = 1; half < 128; half *= 2) for (u32 k = 0; k < 128; k++) if (!(k & half)) { double a = v[k], b = v[k + half]; v[k] = a + b; v[k + half] = a - b; } for (auto& x : v) x /= std::sqrt(128.0); }
                for (u32 c = 0; c < dim; c++) e.add(bf2f(cache[i][(size_t)(s.base[r] / ratio + end / ratio - 1) * dim + c]), v[c]);
            }
            char line[80];
            snprintf(line, 80, "compress_rows, ratio %u, dim %u, %s", ratio, dims[i], rounded ? "rounded" : "not rounded");
            // Rounding moves a value by up to 1 / 16 (E4M3) or 1 / 4 (E2M1) of itself.
            report(line, e.value(), rounded ? (i ? 0.15 : 0.03) : 3e-3);
            report("compress_rows: elements written", std::fabs(written - expected), 0);
        }
    }
    if (frontier[0] != before) report("compress_rows: frontier untouched", 1, 0);
    emulate::launch(dim3(n, n_parts + 1), dim3(128), [&] { in_compress::store_rows(p); });
    double wrong = 0;
    for (u32 r = 0; r < n; r++) if (s.slot[r] != PAD_SLOT) {
        if (s.end_row[r] - r <= n_ring) for (u32 c = 0; c < 512; c++) wrong += window[(s.slot[r] * n_ring + s.position[r] % n_ring) * 512 + c] != rows[r * 512 + c];
        for (u32 i = 0; i < n_parts; i++) if (s.end_row[r] - r <= n_frontier) for (u32 c = 0; c < widths[i]; c++) {
            size_t at = ((size_t)s.slot[r] * n_frontier + s.position[r] % n_frontier) * 2 * widths[i] + c;
            wrong += frontier[i][at] != kv[i][r * widths[i] + c] || frontier[i][at + widths[i]] != gate[i][r * widths[i] + c] + ape[i][s.position[r] % ratio * widths[i] + c];
        }
    }
    report("store_rows: values that differ", wrong, 0);
}

int main(int argc, char**) {
    setbuf(stdout, nullptr);
    if (argc > 1) { check_experts(true); check_experts(true, true); check_experts(false); return failures; }
    check_gemm();
    check_rows();
    check_matrix();
    check_index();
    check_compress(4);
    check_compress(128);
    check_turn(true);
    check_turn(false);
    check_attend(false, 1);
    check_attend(true, 1);
    check_attend(false, 3);
    check_experts(true);
    check_experts(true, true);
    check_experts(false);
    printf(failures ? "%d WRONG\n" : "all right\n", failures);
    return failures != 0;
}
