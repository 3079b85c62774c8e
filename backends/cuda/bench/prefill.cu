// Stand-alone harness of the prefill kernels: sampled outputs against double arithmetic on the host,
// with poisoned outputs and guard rows, then times by graph replays, predictions beside results and
// the table last.
//   nvcc -O3 -std=c++17 -Ikernels -gencode=arch=compute_90a,code=sm_90a bench/prefill.cu -o prefill && ./prefill
#include <cuda_runtime.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>
#include "../kernels/prefill/device.cuh"
#include "../kernels/prefill/prefill.h"
#include "layout.cuh"
#include "iq2_grid.cuh"
#include "../kernels/prefill/experts.cuh"
#include "../kernels/prefill/rounding.cuh"
#include "../kernels/prefill/wgmma.cuh"
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
#undef USED
#undef HIDDEN
#undef THREADS
#undef TOKENS
#undef STAGES
namespace in_wgmma {
#include "../kernels/prefill/experts_wgmma.cu"
}
#undef EMBD
#undef TOKENS
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

#define CK(x) do { cudaError_t e_ = (x); if (e_ != cudaSuccess) { printf("CUDA: %s at line %d\n", cudaGetErrorString(e_), __LINE__); fflush(stdout); exit(1); } } while (0)

static std::mt19937 rng(1);
static float uniform() { return (int)(rng() % 20001) / 10000.0f - 1.0f; }
static float half_value(u16 h) { int e = h >> 10 & 31; float m = e ? std::ldexp(1024 + (h & 1023), e - 25) : std::ldexp(h & 1023, -24); return h & 0x8000 ? -m : m; }
static u16 half_of(float f) { // for sane magnitudes
    if (f == 0) return 0;
    int e; float m = std::frexp(std::fabs(f), &e); e += 14;
    int v = e > 0 ? (int)std::lrint(m * 2048) - 1024 + (e << 10) : (int)std::lrint(std::ldexp(std::fabs(f), 24));
    return (u16)(v | (f < 0 ? 0x8000 : 0));
}
static float bf_value(u16 h) { u32 u = (u32)h << 16; float f; memcpy(&f, &u, 4); return f; }

__host__ __device__ inline u32 mixed(u32 x) { x ^= x >> 16; x *= 0x7feb352du; x ^= x >> 15; x *= 0x846ca68bu; x ^= x >> 16; return x; }
__global__ void fill_words(u32* p, size_t n, u32 seed) { for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) p[i] = mixed((u32)i * 2654435761u ^ seed ^ (u32)(i >> 32)); }
// kind 0: f32, 1: halves, 2: bf16, in +-scale
__global__ void fill_floats(void* p, size_t n, int kind, float scale, u32 seed) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        float v = scale * ((int)(mixed((u32)i ^ seed) & 0xffff) - 32768) / 32768.0f;
        if (kind == 0) ((float*)p)[i] = v; else ((u16*)p)[i] = kind == 1 ? f2h(v) : f2bf(v);
    }
}
// Bytes [off, off + len) of every record of `stride` become halves in [scale / 2, scale].
__global__ void fill_scales(u8* p, size_t n_records, u32 stride, u32 off, u32 len, float scale, u32 seed) {
    size_t per = len / 2;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n_records * per; i += (size_t)gridDim.x * blockDim.x)
        *(u16*)(p + i / per * stride + off + i % per * 2) = f2h(scale * (0.5f + (mixed((u32)i ^ seed) & 1023) / 2048.0f));
}

template <class T> struct Dev {
    T* p = nullptr;
    size_t n = 0;
    Dev() {}
    explicit Dev(size_t count, int poison = 0xff) : n(count) { CK(cudaMalloc(&p, (count + 256) * sizeof(T))); CK(cudaMemset(p, poison, (count + 256) * sizeof(T))); }
    Dev(const std::vector<T>& v) : Dev(v.size()) { CK(cudaMemcpy(p, v.data(), n * sizeof(T), cudaMemcpyHostToDevice)); }
    void fill(int kind, float scale, u32 seed) { fill_floats<<<1024, 256>>>(p, n, kind, scale, seed); CK(cudaGetLastError()); }
    void poison() { CK(cudaMemset(p, 0xff, (n + 256) * sizeof(T))); }
    std::vector<T> get() const { std::vector<T> v(n); CK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost)); return v; }
    bool guard_kept() const { std::vector<unsigned char> v(256 * sizeof(T)); CK(cudaMemcpy(v.data(), p + n, v.size(), cudaMemcpyDeviceToHost)); for (auto b : v) if (b != 0xff) return false; return true; }
    std::vector<T> row(size_t at, size_t count) const { std::vector<T> v(count); CK(cudaMemcpy(v.data(), p + at, count * sizeof(T), cudaMemcpyDeviceToHost)); return v; }
};

static std::vector<std::string> table;
static int failures = 0;
static void check(const char* what, double error, double limit, bool guard = true) {
    CK(cudaDeviceSynchronize());
    bool ok = error <= limit && guard;
    char line[160];
    snprintf(line, 160, "check %-44s %9.2e (limit %.0e)%s %s", what, error, limit, guard ? "" : " GUARD OVERWRITTEN", ok ? "ok" : "WRONG");
    printf("%s\n", line);
    fflush(stdout);
    if (!ok) { failures++; table.push_back(line); }
}
struct Relative {
    double e = 0, r = 0;
    void add(double got, double want) { e += (got - want) * (got - want); r += want * want; }
    double value() const { return std::sqrt(e / (r > 0 ? r : 1)); }
};
static bool timing = true; // `check` as second argument: small sizes only, for the sanitizer
// Median time of one of `n` launches in a graph.
static double time_us(int n, std::function<void(cudaStream_t, int)> f, int reps = 7) {
    if (!timing) return 0;
    cudaStream_t s; cudaGraph_t g; cudaGraphExec_t e; cudaEvent_t a, b;
    CK(cudaStreamCreate(&s)); CK(cudaEventCreate(&a)); CK(cudaEventCreate(&b));
    CK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < n; i++) f(s, i);
    CK(cudaStreamEndCapture(s, &g)); CK(cudaGraphInstantiate(&e, g, 0));
    std::vector<float> v;
    for (int i = 0; i < reps + 2; i++) {
        CK(cudaEventRecord(a, s)); CK(cudaGraphLaunch(e, s)); CK(cudaEventRecord(b, s)); CK(cudaEventSynchronize(b));
        float ms; CK(cudaEventElapsedTime(&ms, a, b));
        if (i >= 2) v.push_back(ms * 1000 / n);
    }
    CK(cudaGetLastError());
    std::sort(v.begin(), v.end());
    cudaGraphExecDestroy(e); cudaGraphDestroy(g); cudaStreamDestroy(s); cudaEventDestroy(a); cudaEventDestroy(b);
    return v[v.size() / 2];
}
static void result(const char* what, double us, double predicted_us, double flop, double bytes) {
    if (!timing) return;
    char line[200], rate[64] = "", bw[64] = "";
    if (flop > 0) snprintf(rate, 64, " %6.0f TFLOP/s", flop / us * 1e-6);
    if (bytes > 0) snprintf(bw, 64, " %6.0f GB/s", bytes / us * 1e-3);
    snprintf(line, 200, "%-52s %9.1f us (predicted %7.1f)%s%s", what, us, predicted_us, rate, bw);
    printf("%s\n", line);
    fflush(stdout);
    table.push_back(line);
}
template <class K> static void allow(K k, int bytes) { CK(cudaFuncSetAttribute(k, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)); }

// Rows ------------------------------------------------------------------------------------------
struct Step {
    std::vector<u32> token, position, slot, base, first_row, end_row, see_end, window_start, source;
    std::vector<float> angles;
    Dev<u32> d[9];
    Dev<float> da;
    void segment(u32 s, u32 b, u32 from, u32 n) {
        u32 first = (u32)slot.size();
        for (u32 i = 0; i < n; i++) {
            token.push_back(0), position.push_back(from + i), slot.push_back(s), base.push_back(b);
            first_row.push_back(first), end_row.push_back(first + n), see_end.push_back(first + i + 1);
            window_start.push_back(from + i + 1 > 128 ? from + i + 1 - 128 : 0), source.push_back(0);
            for (int k = 0; k < 128; k++) { float a = 3 * uniform(); angles.push_back(std::cos(a)); angles.push_back(std::sin(a)); }
        }
    }
    StepRows rows() {
        const std::vector<u32>* h[9] = {&token, &position, &slot, &base, &first_row, &end_row, &see_end, &window_start, &source};
        for (int i = 0; i < 9; i++) d[i] = Dev<u32>(*h[i]);
        da = Dev<float>(angles);
        return {d[0].p, d[1].p, d[2].p, d[3].p, d[4].p, d[5].p, d[6].p, d[7].p, d[8].p, nullptr, da.p};
    }
};

// Dense -----------------------------------------------------------------------------------------
struct GemmKernel { const char* name; void (*f)(const Gemm); int bn, shared; };
static const GemmKernel gemms[] = {
    {"gemm_256", in_gemm::gemm_256, 256, 4 * (128 + 256) * 128},
    {"gemm_128", in_gemm::gemm_128, 128, 5 * (128 + 128) * 128},
    {"gemm_64", in_gemm::gemm_64, 64, 4 * (128 + 64) * 128},
    {"gemm_wgmma_256", in_gemm::gemm_wgmma_256, 256, GEMM_WGMMA_256_STAGES * (128 + 256) * 128},
    {"gemm_wgmma_128", in_gemm::gemm_wgmma_128, 128, GEMM_WGMMA_128_STAGES * (128 + 128) * 128},
};
static u32 place(Gemm& p, int bn) {
    u32 tiles = 0;
    for (u32 i = 0; i < p.n_pieces; i++) { p.pieces[i].first_tile = tiles; tiles += (p.pieces[i].n_out + bn - 1) / bn; }
    return tiles;
}
static void run_gemm(const GemmKernel& k, Gemm p, u32 groups, cudaStream_t s = 0) {
    u32 tiles = place(p, k.bn);
    k.f<<<dim3((p.n_rows + 127) / 128, tiles, groups), 256, k.shared, s>>>(p);
}

static void check_gemms() {
    const u32 M = 333, K = 512, N1 = 700, N2 = 300, G = 2;
    Dev<u16> x(M * G * K), xl(x.n), w(G * N1 * K), wl(w.n), w2(G * N2 * K);
    x.fill(1, 1, 1), xl.fill(1, 4e-4f, 2), w.fill(1, 1, 3), wl.fill(1, 4e-4f, 4), w2.fill(1, 1, 5);
    auto hx = x.get(), hl = xl.get(), hw = w.get(), hwl = wl.get(), hw2 = w2.get();
    for (const auto& k : gemms) for (u32 passes = 1; passes <= 3; passes++) {
        Dev<float> o((size_t)M * G * N1), o2((size_t)M * G * N2);
        Dev<u16> o3((size_t)M * G * N2);
        o2.fill(0, 1, 9);
        auto before = o2.get();
        Gemm p = {x.p, xl.p, M, G * K, K, passes, 3, 0, {}};
        p.pieces[0] = {w.p, wl.p, o.p, N1, G * N1, 0, GEMM_F32};
        p.pieces[1] = {w2.p, w2.p, o2.p, N2, G * N2, 0, GEMM_ADD_F32};
        p.pieces[2] = {w2.p, w2.p, o3.p, N2, G * N2, 0, GEMM_F16};
        if (passes == 3) p.n_pieces = 1;
        run_gemm(k, p, G);
        CK(cudaGetLastError());
        auto r = o.get(), r2 = o2.get();
        auto r3 = o3.get();
        Relative e, e3;
        for (int i = 0; i < 3000; i++) {
            u32 row = i < 400 ? M - 1 - i % 3 : rng() % M, g = rng() % G, c = i < 200 ? N1 - 1 - i % 9 : rng() % N1, c2 = rng() % N2;
            double s = 0, s2 = 0;
            for (u32 j = 0; j < K; j++) {
                size_t at = (size_t)row * G * K + g * K + j;
                double xv = half_value(hx[at]) + (passes > 1 ? (double)half_value(hl[at]) : 0), wv = half_value(hw[((size_t)g * N1 + c) * K + j]);
                s += xv * wv + (passes == 3 ? (double)half_value(hx[at]) * half_value(hwl[((size_t)g * N1 + c) * K + j]) : 0);
                s2 += xv * half_value(hw2[((size_t)g * N2 + c2) * K + j]);
            }
            e.add(r[(size_t)row * G * N1 + g * N1 + c], s);
            if (passes < 3) { e.add(r2[(size_t)row * G * N2 + g * N2 + c2], s2 + before[(size_t)row * G * N2 + g * N2 + c2]); e3.add(half_value(r3[(size_t)row * G * N2 + g * N2 + c2]), s2); }
        }
        char line[64];
        snprintf(line, 64, "%s, %u passes", k.name, passes);
        check(line, std::max(e.value(), e3.value() > 5e-4 ? e3.value() : 0), 4e-6, o.guard_kept() && o2.guard_kept() && o3.guard_kept());
    }
}

static void time_gemms() {
    const u32 M = 2048;
    Dev<u16> x((size_t)M * 32768), xl((size_t)M * 4096), w((size_t)4 * 33554432);
    Dev<float> o((size_t)M * 32768);
    x.fill(1, 1, 1), xl.fill(1, 4e-4f, 2), w.fill(1, 0.05f, 3);
    struct Shape { const char* name; u32 n, k, groups, passes; } shapes[] = {
        {"q_b 32768x1024", 32768, 1024, 1, 1}, {"q_b to halves", 32768, 1024, 1, 1}, {"out_a 8 x 1024x4096", 1024, 4096, 8, 1}, {"out_b 4096x8192", 4096, 8192, 1, 1},
        {"shared gate, up 4096x4096", 4096, 4096, 1, 1}, {"shared down 4096x2048", 4096, 2048, 1, 1}, {"q_a, kv 1536x4096", 1536, 4096, 1, 1}, {"precise 2624x4096, 2 passes", 2624, 4096, 1, 2}};
    for (const auto& s : shapes) for (const auto& k : gemms) {
        if (k.bn == 64 || k.name[5] != 'w') continue;
        double flop = 2.0 * M * s.n * s.k * s.groups * s.passes;
        double us = time_us(4, [&](cudaStream_t st, int i) {
            Gemm p = {x.p, xl.p, M, s.groups * s.k, s.k, s.passes, 1, 0, {}};
            p.pieces[0] = {w.p + (size_t)i * 33554432, nullptr, o.p, s.n, s.groups * s.n, 0, s.name[4] == 't' ? GEMM_F16 : GEMM_F32};
            run_gemm(k, p, s.groups, st);
        });
        char line[80];
        snprintf(line, 80, "%s, %s", s.name, k.name);
        result(line, us, flop / (k.name[5] == 'w' ? 560e6 : 400e6), flop, 0);
    }
}

// Q8 --------------------------------------------------------------------------------------------
static void check_and_time_matrix() {
    const u32 n_out = 1024, n_in = 4096;
    std::vector<u8> q8((size_t)n_out * n_in / 32 * 34), packed(ds4_q8_bytes(n_out, n_in));
    for (auto& b : q8) b = (u8)rng();
    for (size_t i = 0; i < q8.size(); i += 34) { u16 h = half_of(0.01f + 0.005f * uniform()); memcpy(&q8[i], &h, 2); }
    for (size_t w = 0; w < packed.size() / 4; w++) { u32 v = ds4_q8_word(q8.data(), n_in, w); memcpy(&packed[w * 4], &v, 4); }
    auto weight = [&](u32 o, u32 k) { const u8* b = &q8[((size_t)o * n_in / 32 + k / 32) * 34]; return (double)half_value((u16)(b[0] | b[1] << 8)) * (signed char)b[2 + k % 32]; };
    Dev<u8> w(packed);
    Dev<u16> half((size_t)n_out * n_in);
    Expand p = {w.p, half.p, nullptr, n_out, n_in};
    in_matrix::expand_q8<<<n_out / 16 * n_in / 256 / 8, 256>>>(p);
    auto h = half.get();
    Relative e;
    for (u32 i = 0; i < 200000; i++) { u32 o = rng() % n_out, k = rng() % n_in; e.add(half_value(h[(size_t)o * n_in + k]), weight(o, k)); }
    check("expand_q8", e.value(), 3e-4, half.guard_kept());
    struct Kernel { const char* name; void (*f)(const Skinny); u32 rows, tiles; bool f16; } kernels[] = {
        {"skinny_q8_16_1", in_matrix::skinny_q8_16_1, 16, 1, false}, {"skinny_q8_16_2", in_matrix::skinny_q8_16_2, 16, 2, false},
        {"skinny_q8_32_1", in_matrix::skinny_q8_32_1, 32, 1, false}, {"skinny_q8_32_2", in_matrix::skinny_q8_32_2, 32, 2, false},
        {"skinny_q8_64_1", in_matrix::skinny_q8_64_1, 64, 1, false}, {"skinny_f16_16_1", in_matrix::skinny_f16_16_1, 16, 1, true},
        {"skinny_f16_16_2", in_matrix::skinny_f16_16_2, 16, 2, true}, {"skinny_f16_32_1", in_matrix::skinny_f16_32_1, 32, 1, true},
        {"skinny_f16_32_2", in_matrix::skinny_f16_32_2, 32, 2, true}, {"skinny_f16_64_1", in_matrix::skinny_f16_64_1, 64, 1, true}};
    auto blocks = [](const Skinny& s, u32 n_o, u32 tiles) { u32 kw = std::min(s.k / 256, 8u), per = tiles * 8 / kw; return (n_o / 16 + per - 1) / per; };
    for (u32 groups : {1u, 2u}) for (const auto& k : kernels) {
        u32 n = k.rows - 3, ld = n_out;
        Dev<u16> x((size_t)n * n_in * groups), xl(x.n);
        x.fill(1, 1, 7), xl.fill(1, 4e-4f, 8);
        Dev<float> out((size_t)n * ld);
        Skinny s = {x.p, xl.p, n, n_in * groups, n_in, groups, 1, 0, {}};
        s.pieces[0] = {k.f16 ? (void*)half.p : (void*)w.p, out.p, n_out, ld, 0, GEMM_F32};
        k.f<<<blocks(s, n_out, k.tiles), 256>>>(s);
        CK(cudaGetLastError());
        auto hx = x.get(), hl = xl.get();
        auto o = out.get();
        Relative r;
        for (int i = 0; i < 2000; i++) {
            u32 row = rng() % n, c = rng() % n_out, g = c / (n_out / groups);
            double d = 0;
            for (u32 j = 0; j < n_in; j++) { size_t at = (size_t)row * n_in * groups + g * n_in + j; d += k.f16 ? ((double)half_value(hx[at]) + half_value(hl[at])) * half_value(h[(size_t)c * n_in + j]) : half_value(hx[at]) * weight(c, j); }
            r.add(o[(size_t)row * ld + c], d);
        }
        char line[64];
        snprintf(line, 64, "%s, %u groups", k.name, groups);
        check(line, r.value(), k.f16 ? 2e-6 : 4e-4, out.guard_kept());
    }
    if (!timing) return;
    const size_t big = ds4_q8_bytes(32768, 1024);
    Dev<u8> ws(big * 5);
    fill_words<<<1024, 256>>>((u32*)ws.p, big * 5 / 4, 3);
    fill_scales<<<1024, 256>>>(ws.p, big * 5 / DS4_Q8_RECORD, DS4_Q8_RECORD, DS4_Q8_SCALES, 256, 0.001f, 5);
    Dev<u16> panel((size_t)33554432), x((size_t)64 * 32768), xl(x.n);
    Dev<float> out((size_t)64 * 32768);
    x.fill(1, 1, 7), xl.fill(1, 4e-4f, 8);
    double us = time_us(5, [&](cudaStream_t st, int i) { Expand q = {ws.p + i * big, panel.p, nullptr, 32768, 1024}; in_matrix::expand_q8<<<32768 / 16 * 4 / 8, 256, 0, st>>>(q); });
    result("expand_q8, 33.5 M weights", us, 28, 0, 3.0625 * 33554432);
    struct Shape { const char* name; u32 n, k, groups; } shapes[] = {{"q_b", 32768, 1024, 1}, {"out_a", 8192, 4096, 8}, {"out_b", 4096, 8192, 1}, {"gate, up", 4096, 4096, 1}, {"down", 4096, 2048, 1}, {"q_a, kv", 1536, 4096, 1}, {"precise", 2624, 4096, 1}};
    for (const auto& sh : shapes) for (const auto& k : kernels) {
        if (k.f16 != (sh.name[0] == 'p')) continue;
        size_t bytes = k.f16 ? (size_t)sh.n * sh.k * 2 : ds4_q8_bytes(sh.n, sh.k);
        u32 copies = (u32)std::min<size_t>(20, big * 5 / bytes);
        us = time_us(copies, [&](cudaStream_t st, int i) {
            Skinny s = {x.p, xl.p, k.rows, sh.k * sh.groups, sh.k, sh.groups, 1, 0, {}};
            s.pieces[0] = {ws.p + i * bytes, out.p, sh.n, sh.n, 0, GEMM_F32};
            k.f<<<blocks(s, sh.n, k.tiles), 256, 0, st>>>(s);
        });
        char line[80];
        snprintf(line, 80, "%s, %s", sh.name, k.name);
        result(line, us, 2.5 + bytes / 2.7e6, 0, (double)bytes);
    }
}

// Experts ---------------------------------------------------------------------------------------
static u32 order1(u32 c) { return (c & ~31u) + 16 * (c / 4 % 2) + 8 * (c / 2 % 2) + 2 * (c / 8 % 4) + c % 2; }
static u32 order2(u32 c) { return (c & ~15u) + 8 * (c % 2) + 2 * (c / 4 % 4) + c / 2 % 2; }
static float iq2_weight(const u8* row, u32 k) {
    static const u32 grid[256] = DS4_IQ2_GRID;
    const u8* b = row + k / 256 * 66;
    u32 e = k % 256, i = e / 32, l = e % 32 / 8, j = e % 8, codes;
    memcpy(&codes, b + 6 + 8 * i, 4);
    u32 signs = ds4_iq2_signs(codes >> (7 * l) & 127);
    const float magnitude[4] = {8, 25, 43, 0};
    float v = half_value((u16)(b[0] | b[1] << 8)) * (0.5f + (codes >> 28)) / 4 * magnitude[grid[b[2 + 8 * i + l]] >> (4 * j) & 15];
    return signs >> j & 1 ? -v : v;
}
static float q2k_weight(const u8* row, u32 k) {
    const u8* b = row + k / 256 * 84;
    u32 e = k % 256, n = e / 128, r = e % 128 / 32, l = e % 32, s = b[e / 16];
    return half_value((u16)(b[80] | b[81] << 8)) * (s & 15) * (b[16 + 32 * n + l] >> (2 * r) & 3) - half_value((u16)(b[82] | b[83] << 8)) * (s >> 4);
}

static void experts() {
    const size_t pair = ds4_iq2_pair_bytes(2048, 4096), low = ds4_q2k_bytes(4096, 2048);
    Dev<u8> gu(pair * 256), dn(low * 256);
    fill_words<<<2048, 256>>>((u32*)gu.p, pair * 256 / 4, 3);
    fill_scales<<<2048, 256>>>(gu.p, pair * 256 / DS4_IQ2_TILE, DS4_IQ2_TILE, DS4_IQ2_D, 32, 0.002f, 4);
    fill_words<<<2048, 256>>>((u32*)dn.p, low * 256 / 4, 5);
    fill_scales<<<2048, 256>>>(dn.p, low * 256 / DS4_Q2K_TILE, DS4_Q2K_TILE, DS4_Q2K_D, 64, 0.004f, 6);
    // Expert 7 from blocks of the file, for the check.
    std::vector<u8> gate((size_t)2048 * 16 * 66), up(gate.size()), down((size_t)4096 * 8 * 84), a(pair), b(low);
    for (auto* v : {&gate, &up, &down}) for (auto& x : *v) x = (u8)rng();
    for (auto* v : {&gate, &up}) for (size_t i = 0; i < v->size(); i += 66) { u16 h = half_of(0.002f + 0.001f * uniform()); memcpy(&(*v)[i], &h, 2); }
    for (size_t i = 0; i < down.size(); i += 84) { u16 h = half_of(0.002f + 0.001f * uniform()), m = half_of(0.002f + 0.001f * uniform()); memcpy(&down[i + 80], &h, 2); memcpy(&down[i + 82], &m, 2); }
    for (size_t w = 0; w < a.size() / 4; w++) { u32 v = ds4_iq2_pair_word(gate.data(), up.data(), 4096, w); memcpy(&a[w * 4], &v, 4); }
    for (size_t w = 0; w < b.size() / 4; w++) { u32 v = ds4_q2k_word(down.data(), 2048, w); memcpy(&b[w * 4], &v, 4); }
    CK(cudaMemcpy(gu.p + 7 * pair, a.data(), pair, cudaMemcpyHostToDevice));
    CK(cudaMemcpy(dn.p + 7 * low, b.data(), low, cudaMemcpyHostToDevice));
    std::vector<u64> ga(256), da(256);
    for (int e = 0; e < 256; e++) ga[e] = (u64)(gu.p + e * pair), da[e] = (u64)(dn.p + e * low);
    Dev<u64> gates(ga), downs(da);
    const u32 most = 4096;
    Dev<u16> x((size_t)most * 4096), hidden((size_t)most * 6 * 2048), part((size_t)most * 6 * 4096);
    Dev<u32> lists((size_t)256 * most), counts(256), tiles(4 + 4 * (256 + most * 6 / 16));
    Dev<float> shared((size_t)most * 4096), y((size_t)most * 4096);
    x.fill(1, 1, 11), shared.fill(0, 1, 12);
    auto hx = x.get();
    const int many_gu = EXPERTS_HEAD_BYTES + EXPERTS_GRID_BYTES + 2 * EXPERTS_GATE_UP_STAGE(64), many_dn = EXPERTS_HEAD_BYTES + 2 * EXPERTS_DOWN_STAGE(64);
    allow(in_few::experts_few_gate_up, EXPERTS_FEW_GATE_UP_SHARED), allow(in_few::experts_few_down, EXPERTS_FEW_DOWN_SHARED);
    allow(in_experts::experts_gate_up_many, many_gu), allow(in_experts::experts_down_many, many_dn);
    allow(in_wgmma::experts_wgmma_gate_up, EXPERTS_WGMMA_GATE_UP_SHARED), allow(in_wgmma::experts_wgmma_down, EXPERTS_WGMMA_DOWN_SHARED);
    Dev<float> xf((size_t)512 * 4096), x_scale((size_t)512 * 16), hidden_scale((size_t)512 * 48);
    Dev<u8> codes((size_t)512 * 8192);
    Dev<u16> sums((size_t)512 * 768);
    std::vector<float> hxf(xf.n);
    for (size_t i = 0; i < xf.n; i++) hxf[i] = half_value(hx[i / 4096 * 4096 + order1(i % 4096)]);
    CK(cudaMemcpy(xf.p, hxf.data(), xf.n * 4, cudaMemcpyHostToDevice));
    for (u32 n : {16u, 32u, 128u, 512u, 2048u, 4096u}) {
        std::vector<u32> ids(n * 6), slot(n, 0);
        std::vector<float> wt(n * 6);
        for (u32 r = 0; r < n; r++) {
            for (u32 i = 0; i < 6; i++) { bool again = true; while (again) { ids[r * 6 + i] = i == 3 && r % 13 == 0 ? 7 : rng() % 256; again = false; for (u32 j = 0; j < i; j++) again |= ids[r * 6 + j] == ids[r * 6 + i]; } wt[r * 6 + i] = 0.25f + uniform() / 8; }
        }
        slot[n / 2] = PAD_SLOT;
        Dev<u32> dids(ids), dslot(slot);
        Dev<float> dw(wt);
        for (int path = 0; path < 3; path++) { // few, wgmma, many
            bool few = path == 0;
            const char* names[3] = {"few", "wgmma", "many"};
            clock_t started = clock();
            printf("(%s, %u rows at %.1f s)\n", names[path], n, (double)started / CLOCKS_PER_SEC);
            if (timing ? (few ? n > 512 : path == 1 ? n < 512 : n != 2048) : n != 32) continue;
            u32 tokens = few ? 16 : 64, max_tiles = std::min(256u, 6 * n) + 6 * n / tokens;
            Experts p = {dslot.p, dids.p, dw.p, x.p, gates.p, downs.p, lists.p, counts.p, tiles.p, hidden.p, part.p, shared.p, y.p, n, tokens, 10.0f, 0, xf.p, codes.p, x_scale.p, sums.p, hidden_scale.p};
            hidden.poison(), part.poison(), y.poison();
            auto group = [&](cudaStream_t s) { in_experts::experts_group<<<256, 256, 0, s>>>(p); };
            auto cut = [&](cudaStream_t s) { in_experts::experts_tiles<<<1, 256, 0, s>>>(p); };
            auto gate_up = [&](cudaStream_t s) {
                if (few) in_few::experts_few_gate_up<<<dim3(8, max_tiles), 512, EXPERTS_FEW_GATE_UP_SHARED, s>>>(p);
                else if (path == 1) in_wgmma::experts_wgmma_gate_up<<<dim3(8, max_tiles), 512, EXPERTS_WGMMA_GATE_UP_SHARED, s>>>(p);
                else in_experts::experts_gate_up_many<<<dim3(16, max_tiles), 256, many_gu, s>>>(p);
            };
            auto lower = [&](cudaStream_t s) {
                if (few) in_few::experts_few_down<<<dim3(8, max_tiles), 512, EXPERTS_FEW_DOWN_SHARED, s>>>(p);
                else if (path == 1) in_wgmma::experts_wgmma_down<<<dim3(8, max_tiles), 512, EXPERTS_WGMMA_DOWN_SHARED, s>>>(p);
                else in_experts::experts_down_many<<<dim3(16, max_tiles), 256, many_dn, s>>>(p);
            };
            auto code = [&](cudaStream_t s) { if (few) in_few::experts_few_codes<<<n, 512, 0, s>>>(p); };
            auto sum = [&](cudaStream_t s) { in_experts::experts_sum<<<n, 256, 0, s>>>(p); };
            group(0), cut(0), code(0), gate_up(0), lower(0), sum(0);
            CK(cudaGetLastError());
            CK(cudaDeviceSynchronize());
            // Every hidden value and every part was written; expert 7 agrees with double.
            auto hh = hidden.row(0, (size_t)n * 6 * 2048);
            auto hp = part.row(0, (size_t)n * 6 * 4096);
            double unwritten = 0;
            for (u32 q = 0; q < n * 6; q++) if (slot[q / 6] != PAD_SLOT) { for (u32 c = 0; c < 2048; c += 7) unwritten += !few && hh[(size_t)q * 2048 + c] == 0xffff; for (u32 c = 0; c < 4096; c += 7) unwritten += hp[(size_t)q * 4096 + c] == 0xffff; }
            Relative e, d;
            int seen = 0;
            auto hidden_at = [&](size_t q, u32 c) {
                if (!few) return (double)half_value(hh[q * 2048 + order2(c)]);
                const signed char* at = (const signed char*)hh.data() + q * 4096 + c / 256 * 512 + c % 256 / 32 * 64 + c % 16 / 4 * 16 + c % 32 / 16 * 4 + c % 4;
                return (128.0 * at[0] + at[8]) * hidden_scale.row(q * 8 + c / 256, 1)[0];
            };
            for (u32 q = 0; q < n * 6 && seen < 3; q++) if (ids[q] == 7 && slot[q / 6] != PAD_SLOT) {
                seen++;
                std::vector<double> hv(2048);
                for (u32 k = 0; k < 2048; k++) hv[k] = few ? 0 : hidden_at(q, k);
                if (few) { auto sc = hidden_scale.row((size_t)q * 8, 8); for (u32 k = 0; k < 2048; k++) { const signed char* at = (const signed char*)hh.data() + (size_t)q * 4096 + k / 256 * 512 + k % 256 / 32 * 64 + k % 16 / 4 * 16 + k % 32 / 16 * 4 + k % 4; hv[k] = (128.0 * at[0] + at[8]) * sc[k / 256]; } }
                for (int i = 0; i < 12; i++) {
                    u32 o = rng() % 2048;
                    double g = 0, u = 0;
                    for (u32 k = 0; k < 4096; k++) { double v = half_value(hx[(size_t)(q / 6) * 4096 + order1(k)]); g += v * iq2_weight(&gate[(size_t)o * 16 * 66], k); u += v * iq2_weight(&up[(size_t)o * 16 * 66], k); }
                    g = std::min(g, 10.0), u = std::max(std::min(u, 10.0), -10.0);
                    e.add(hidden_at(q, o), wt[q] * g / (1 + std::exp(-g)) * u);
                    o = rng() % 4096;
                    double s = 0;
                    for (u32 k = 0; k < 2048; k++) s += hv[k] * q2k_weight(&down[(size_t)o * 8 * 84], k);
                    d.add(half_value(hp[(size_t)q * 4096 + o]), s);
                }
            }
            auto hy = y.row(0, (size_t)n * 4096);
            auto hs = shared.row(0, (size_t)n * 4096);
            Relative t;
            for (int i = 0; i < 2000; i++) { u32 r = rng() % n, c = rng() % 4096; if (slot[r] == PAD_SLOT) continue; double s = hs[(size_t)r * 4096 + c]; for (u32 k = 0; k < 6; k++) s += half_value(hp[((size_t)r * 6 + k) * 4096 + c]); t.add(hy[(size_t)r * 4096 + c], s); }
            char line[80];
            snprintf(line, 80, "experts %s, %u rows: unwritten", names[path], n);
            check(line, unwritten, 0, hidden.guard_kept() && part.guard_kept());
            snprintf(line, 80, "experts %s, %u rows: gate and up", names[path], n);
            check(line, e.value(), 1e-3);
            snprintf(line, 80, "experts %s, %u rows: down, sum", names[path], n);
            check(line, std::max(d.value(), t.value()), 1e-3, y.guard_kept());
            double distinct = 256 * (1 - std::pow(1 - 6.0 / 256, n)), flop = 2.0 * n * 6 * 2048 * 4096;
            auto tell = [&](const char* what, double us, double predicted, double f, double bytes) { snprintf(line, 80, "experts %s, %u rows: %s", few ? "few" : "many", n, what); result(line, us, predicted, f, bytes); };
            tell("group", time_us(3, [&](cudaStream_t s, int) { group(s); }), 3 + n / 500.0, 0, 0);
            if (few) tell("codes", time_us(3, [&](cudaStream_t s, int) { code(s); }), 3, 0, 0);
            tell("tiles", time_us(3, [&](cudaStream_t s, int) { cut(s); }), 3, 0, 0);
            tell("gate and up", time_us(2, [&](cudaStream_t s, int) { gate_up(s); }, 5), std::max(distinct * pair / 2.9e6, 2 * flop / 500e6), 2 * flop, distinct * pair);
            tell("down", time_us(2, [&](cudaStream_t s, int) { lower(s); }, 5), std::max(distinct * low / 2.9e6, flop / 500e6), flop, distinct * low);
            tell("sum", time_us(2, [&](cudaStream_t s, int) { sum(s); }, 5), 2 + n * 81920 / 4.0e6, 0, n * 81920.0);
        }
    }
}

// Attention -------------------------------------------------------------------------------------
static void attention() {
    allow(in_attend::attend, ATTEND_SHARED);
    struct Case { const char* name; u32 n, from, ratio; bool selects; u32 splits, slots; double predicted; } cases[] = {
        {"window only", 2048, 6144, 0, false, 1, 1, 110}, {"HCA at 8k", 2048, 6144, 128, false, 1, 1, 150}, {"HCA at 32k", 2048, 30720, 128, false, 1, 1, 250},
        {"CSA first 2048", 2048, 0, 4, false, 1, 1, 320}, {"CSA selected at 8k", 2048, 6144, 4, true, 1, 1, 600},
        {"16 rows CSA selected, 8 splits", 16, 2300, 4, true, 8, 16, 16}, {"16 rows CSA selected, 5 splits", 16, 2300, 4, true, 5, 16, 16}, {"16 rows window, 1 split", 16, 2300, 0, false, 1, 16, 12}, {"16 rows HCA, 2 splits", 16, 2300, 128, false, 2, 16, 10}};
    for (const auto& c : cases) {
        if (!timing && c.n != 16) continue;
        Step s;
        u32 tokens = c.from + c.n + 128;
        for (u32 i = 0; i < c.slots; i++) s.segment(i, i * (tokens / 128 * 128), c.from, c.n / c.slots);
        StepRows rows = s.rows();
        const u32 n_ring = 192;
        Dev<u16> q((size_t)c.n * 32768), kv((size_t)c.n * 512), ring((size_t)c.slots * n_ring * 512), cache((size_t)c.slots * (tokens / (c.ratio ? c.ratio : 4) + 1) * 512), out((size_t)c.n * 32768);
        q.fill(2, 1.7f, 1), kv.fill(2, 1, 2), ring.fill(2, 1, 3), cache.fill(2, 1, 4);
        std::vector<u32> sel((size_t)c.n * 512);
        if (c.selects) for (u32 r = 0; r < c.n; r++) { u32 v = (s.position[r] + 1) / c.ratio; for (u32 i = 0; i < 512; i++) sel[(size_t)r * 512 + i] = v > 512 ? (u32)((u64)i * v / 512 + (r * 7 + i) % 2 * (v >= 1024)) : i; }
        Dev<u32> selected(sel);
        std::vector<float> hs(64);
        for (auto& v : hs) v = uniform();
        Dev<float> sinks(hs), part((size_t)c.splits * (c.splits > 1 ? c.n : 0) * 32768), part_max((size_t)c.splits * c.n * 128);
        Attend p = {rows, q.p, kv.p, ring.p, c.ratio ? cache.p : nullptr, c.selects ? selected.p : nullptr, sinks.p, out.p, nullptr, part.p, part_max.p, n_ring, c.ratio, 512, 1, c.splits, c.n};
        auto run = [&](cudaStream_t st) { in_attend::attend<<<dim3(c.n, c.splits), 256, ATTEND_SHARED, st>>>(p); if (c.splits > 1) in_attend::attend_combine<<<dim3(c.n, 8), 256, 0, st>>>(p); };
        run(0);
        CK(cudaGetLastError());
        auto hq = q.get(), hk = kv.get(), hr = ring.get(), hc = cache.get(), ho = out.get();
        Relative e;
        double seen_rows = 0;
        for (int i = 0; i < 12; i++) {
            u32 r = i == 0 ? 0 : i == 1 ? c.n - 1 : rng() % c.n, h = rng() % 64, segment = s.position[r] - (r - s.first_row[r]);
            std::vector<const u16*> kvs;
            for (u32 at = s.window_start[r]; at <= s.position[r]; at++) kvs.push_back(at < segment ? &hr[((size_t)s.slot[r] * n_ring + at % n_ring) * 512] : &hk[(size_t)(s.first_row[r] + at - segment) * 512]);
            u32 visible = c.ratio ? (s.position[r] + 1) / c.ratio : 0;
            for (u32 j = 0; j < (c.selects ? std::min(visible, 512u) : visible); j++) kvs.push_back(&hc[(size_t)(s.base[r] / c.ratio + (c.selects && visible > 512 ? sel[(size_t)r * 512 + j] : j)) * 512]);
            std::vector<double> z, o(512, 0);
            double top = hs[h];
            for (auto row : kvs) { double d = 0; for (int k = 0; k < 512; k++) d += bf_value(hq[((size_t)r * 64 + h) * 512 + k]) * bf_value(row[k]); z.push_back(d / std::sqrt(512.0)); top = std::max(top, z.back()); }
            double sum = std::exp(hs[h] - top);
            for (size_t j = 0; j < kvs.size(); j++) { double w = std::exp(z[j] - top); sum += w; for (int k = 0; k < 512; k++) o[k] += w * bf_value(kvs[j][k]); }
            for (auto& v : o) v /= sum;
            for (int k = 0; k < 32; k++) { const float* cs = &s.angles[((size_t)r * 4 + 1) * 64 + 2 * k]; double x = o[448 + 2 * k], y = o[449 + 2 * k]; o[448 + 2 * k] = x * cs[0] + y * cs[1]; o[449 + 2 * k] = y * cs[0] - x * cs[1]; }
            for (int k = 0; k < 512; k++) e.add(half_value(ho[((size_t)r * 64 + h) * 512 + k]), o[k]);
        }
        for (u32 r = 0; r < c.n; r++) seen_rows += std::min(128u, s.position[r] + 1) + (c.ratio ? (c.selects ? std::min(512u, (s.position[r] + 1) / c.ratio) : (s.position[r] + 1) / c.ratio) : 0);
        char line[80];
        snprintf(line, 80, "attend, %s", c.name);
        check(line, e.value(), 4e-3, out.guard_kept());
        result(line, time_us(2, [&](cudaStream_t st, int) { run(st); }, 5), c.predicted, seen_rows * 131072, 0);
        for (auto* d : {&q, &kv, &ring, &cache, &out}) CK(cudaFree(d->p));
        CK(cudaFree(part.p));
    }
}

// Indexer ---------------------------------------------------------------------------------------
static void indexer() {
    allow(in_index::index_scores, INDEX_SCORES_SHARED), allow(in_index::index_top_k, TOP_K_SHARED(TOP_K_CACHED));
    struct Case { u32 n, from, slots, queries; double scores, top; } cases[] = {{2048, 6144, 1, 32, 90, 60}, {2048, 30720, 1, 32, 800, 250}, {16, 2300, 16, 1, 8, 8}, {16, 32768, 16, 1, 12, 14}, {64, 1000000, 1, 32, 700, 300}};
    for (const auto& c : cases) {
        if (!timing && c.n != 16) continue;
        Step s;
        u32 tokens = (c.from + c.n + 255) / 128 * 128;
        for (u32 i = 0; i < c.slots; i++) s.segment(i, i * tokens, c.from, c.n / c.slots);
        StepRows rows = s.rows();
        u32 cache_rows = c.slots * tokens / 4, most = (c.from + c.n) / 4, stride = (most + 31) / 32 * 32;
        Dev<u16> iq((size_t)c.n * 8192), cache((size_t)cache_rows * 128);
        Dev<float> w((size_t)c.n * 64), scores((size_t)c.n * stride);
        Dev<u32> selected((size_t)c.n * 512);
        iq.fill(2, 3, 1), cache.fill(2, 3, 2), w.fill(0, 1, 3);
        IndexSelect p = {rows, iq.p, w.p, cache.p, scores.p, selected.p, 0, c.n, stride, cache_rows, c.queries, 64, TOP_K_CACHED, 0};
        auto score = [&](cudaStream_t st) { in_index::index_scores<<<dim3((most + 511) / 512, (c.n + c.queries - 1) / c.queries), 256, INDEX_SCORES_SHARED, st>>>(p); };
        u32 cached = most <= 12288 ? (most + 3) / 4 * 4 : 0;
        p.cached = cached;
        auto top = [&](cudaStream_t st) { in_index::index_top_k<<<c.n, 512, TOP_K_SHARED(cached), st>>>(p); };
        score(0), top(0);
        CK(cudaGetLastError());
        auto hq = iq.get(), hk = cache.get();
        auto hw = w.get();
        Relative e;
        double wrong = 0;
        for (int i = 0; i < 6; i++) {
            u32 r = i == 0 ? 0 : i == 1 ? c.n - 1 : rng() % c.n, visible = (s.position[r] + 1) / 4;
            auto v = scores.row((size_t)r * stride, visible);
            for (int j = 0; j < 300; j++) {
                u32 at = j == 0 ? visible - 1 : rng() % visible;
                double sum = 0;
                for (u32 h = 0; h < 64; h++) { double d = 0; for (u32 k = 0; k < 128; k++) d += bf_value(hq[((size_t)r * 64 + h) * 128 + k]) * bf_value(hk[(size_t)(s.base[r] / 4 + at) * 128 + k]); sum += hw[(size_t)r * 64 + h] * std::max(0.0, d); }
                e.add(v[at], sum / std::sqrt(8192.0));
            }
            auto got = selected.row((size_t)r * 512, std::min(visible, 512u));
            std::vector<u32> order(visible);
            std::iota(order.begin(), order.end(), 0);
            std::stable_sort(order.begin(), order.end(), [&](u32 a, u32 b) { return v[a] > v[b]; });
            order.resize(std::min(visible, 512u));
            std::sort(order.begin(), order.end());
            for (size_t j = 0; j < order.size(); j++) wrong += got[j] != order[j];
        }
        char line[80];
        snprintf(line, 80, "index_scores, %u rows at %u", c.n, c.from);
        check(line, e.value(), 2e-6, scores.guard_kept());
        result(line, time_us(2, [&](cudaStream_t st, int) { score(st); }, 5), c.scores, 16384.0 * c.n * most, 0);
        snprintf(line, 80, "index_top_k, %u rows at %u", c.n, c.from);
        check(line, wrong, 0, selected.guard_kept());
        result(line, time_us(2, [&](cudaStream_t st, int) { top(st); }, 5), c.top, 0, 0);
        for (auto* d : {&iq, &cache}) CK(cudaFree(d->p));
        CK(cudaFree(scores.p));
    }
}

#include "prefill_turns.h"

int main(int argc, char** argv) {
    setbuf(stdout, nullptr);
    cudaDeviceProp prop;
    CK(cudaGetDeviceProperties(&prop, 0));
    printf("%s, %d SMs\n", prop.name, prop.multiProcessorCount);
    for (const auto& k : gemms) allow(k.f, k.shared);
    std::string only = argc > 1 ? argv[1] : "";
    timing = argc <= 2;
    auto part = [&](const char* name, std::function<void()> f) { if (only.empty() || only == name) { f(); CK(cudaDeviceSynchronize()); } };
    part("gemm", [] { check_gemms(); if (timing) time_gemms(); });
    part("experts", experts);
    part("attend", attention);
    part("matrix", check_and_time_matrix);
    part("index", indexer);
    part("turn", turns);
    part("compress", compress);
    part("rows", rows);
    printf("\n==== table ====\n");
    for (const auto& line : table) printf("%s\n", line.c_str());
    printf(failures ? "%d WRONG\n" : "all right\n", failures);
    return failures != 0;
}
