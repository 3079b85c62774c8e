// The decode step on a device: every phase checked in double precision on a model of three layers, then
// timed at full size (43 layers, 256 experts each, random valid blocks) as graph replays.
//   nvcc -std=c++17 -O3 -arch=sm_90a decode.cu -o decode && ./decode [check] [time]
//   nvcc ... -DDS4_STAMPS=2048 decode.cu -o decode_stamps && ./decode_stamps stamps
#include "../kernels/decode/step.cu"
#include "../kernels/repack.cu"
#include "decode_model.h"
#include <chrono>

#define CHECK(x)                                                                                               \
    do {                                                                                                       \
        const cudaError_t err_ = (x);                                                                             \
        if (err_ != cudaSuccess) { printf("CUDA: %s at line %d\n", cudaGetErrorString(err_), __LINE__); fflush(stdout); exit(1); } \
    } while (0)

#ifdef DS4_ONLY_ONE_ROW
constexpr int MOST_ROWS = 1;
static void *kernel(int) { return (void *)ds4_decode_step_r1; }
#else
constexpr int MOST_ROWS = 4;
static void *kernel(int r) { return r == 1 ? (void *)ds4_decode_step_r1 : r == 2 ? (void *)ds4_decode_step_r2 : (void *)ds4_decode_step_r4; }
#endif
static void prepare() {
    for (int r = 1; r <= MOST_ROWS; r *= 2) CHECK(cudaFuncSetAttribute(kernel(r), cudaFuncAttributeMaxDynamicSharedMemorySize, ds4_decode_smem(r)));
}
static void launch(int r, Ds4Step s, cudaStream_t stream) {
    void *args[] = {&s};
    CHECK(cudaLaunchKernel(kernel(r), DS4_DECODE_BLOCKS, DS4_DECODE_THREADS, args, ds4_decode_smem(r), stream));
}

// Source and destination of guard bytes around an allocation.
static void *device_copy(const void *p, size_t n) {
    void *q;
    CHECK(cudaMalloc(&q, n + 512));
    CHECK(cudaMemset(q, 0xa5, n + 512));
    CHECK(cudaMemcpy((u8 *)q + 256, p, n, cudaMemcpyHostToDevice));
    return (u8 *)q + 256;
}

static std::vector<float> one; // logits of one row alone

template <int R> static bool check_rows(u32 n_layers, u32 stride) {
    using namespace ds4;
    Model m;
    m.put = device_copy;
    const u32 kinds[] = {DS4_SLIDING, DS4_CSA, DS4_HCA}, n_slots = 3, slot_tokens = 4096, n_tokens = n_slots * slot_tokens;
    std::vector<check::Caches> host(n_layers);
    std::vector<Ds4DecodeCache> caches(n_layers);
    for (u32 i = 0; i < n_layers; i++) {
        const u32 kind = kinds[i % 3], n_ring = WINDOW + 64, n_frontier = kind == DS4_CSA ? 72 : 192;
        m.add_layer(kind, i == 0, 3, n_ring, n_frontier);
        fill_caches(host[i], m.layers[i], n_slots, n_tokens, m.rng);
        auto put16 = [&](std::vector<u16> &v) { return v.empty() ? nullptr : (u16 *)m.put(v.data(), v.size() * 2); };
        auto put32 = [&](std::vector<float> &v) { return v.empty() ? nullptr : (float *)m.put(v.data(), v.size() * 4); };
        caches[i] = {put16(host[i].window), put16(host[i].rows), put32(host[i].frontier), put16(host[i].index_rows), put32(host[i].index_frontier), n_ring, n_frontier};
    }
    const auto saved = host;
    Ds4Step s{};
    check::Rows rows;
    const u32 pos[4] = {2303, 37, 2304, 0}, slot[4] = {1, 0, 1, PAD};
    for (u32 r = 0; r < R; r++) rows.position.push_back(pos[r]), rows.slot.push_back(slot[r]), rows.base.push_back(slot[r] == PAD ? 0 : slot[r] * slot_tokens), rows.token.push_back(17 + 300 * r);
    for (u32 i = 0; i < 4 * 4 * 32; i++) { const float a = 6.2831853f * m.rng.unit(); rows.angles.push_back(std::cos(a)), rows.angles.push_back(std::sin(a)); }
    const void *hfn, *out;
    const float *hb, *hs, *hn;
    const void *emb;
    m.f16(2048, E, 1.f, &emb);
    check::Raw head_fn = m.hc(HC, &hfn), output = m.q8(VOCAB, E, &out);
    const float *head_base = m.floats(HC, -0.5f, 0.5f, &hb), *head_scale = m.floats(1, 0.5f, 1.f, &hs), *head_norm = m.floats(E, 0.8f, 1.2f, &hn);
    s.layers = (const Ds4DecodeLayer *)m.put(m.device.data(), n_layers * sizeof(Ds4DecodeLayer));
    s.caches = (const Ds4DecodeCache *)m.put(caches.data(), n_layers * sizeof(Ds4DecodeCache));
    auto ids = [&](std::vector<u32> &v) { return (const u32 *)m.put(v.data(), v.size() * 4); };
    s.rows = {ids(rows.token), ids(rows.position), ids(rows.slot), ids(rows.base), (const float *)m.put(rows.angles.data(), rows.angles.size() * 4)};
    s.embedding = emb, s.head_fn = hfn, s.head_base = hb, s.head_scale = hs, s.head_norm = hn, s.output = out;
    std::vector<float> poison((size_t)R * VOCAB, NAN);
    s.logits = (float *)m.put(poison.data(), poison.size() * 4);
    s.score_stride = 1024;
    std::vector<u8> zero(ds4_decode_workspace(R, s.score_stride));
    s.workspace = m.put(zero.data(), zero.size());
    s.n_layers = n_layers, s.n_csa = 0;
    for (auto &l : m.layers) s.n_csa += l.kind == DS4_CSA;
    s.selects = 1, s.head = 1, s.in_flight = 4;
#ifdef DS4_STAMPS
    CHECK(cudaMalloc(&s.marks, DS4_DECODE_BLOCKS * DS4_STAMPS * 4));
#endif
    auto restore = [&] {
        for (u32 i = 0; i < n_layers; i++) {
            auto back = [](void *to, auto &v) { if (!v.empty()) CHECK(cudaMemcpy(to, v.data(), v.size() * sizeof v[0], cudaMemcpyHostToDevice)); };
            back(caches[i].window, saved[i].window), back(caches[i].rows, saved[i].rows), back(caches[i].frontier, saved[i].frontier), back(caches[i].index_rows, saved[i].index_rows), back(caches[i].index_frontier, saved[i].index_frontier);
        }
        CHECK(cudaMemcpy(s.logits, poison.data(), poison.size() * 4, cudaMemcpyHostToDevice));
    };
    auto get = [](void *to, const void *from, size_t n) { CHECK(cudaMemcpy(to, from, n, cudaMemcpyDeviceToHost)); };
    auto range = [&](u32 a, u32 b) { Ds4Step t = s; t.first = a, t.end = b; launch(R, t, 0); CHECK(cudaGetLastError()); CHECK(cudaDeviceSynchronize()); };
    u32 epoch = 1;
    ds4_decode_epoch<<<1, 1>>>(s.workspace);
    bool ok = check_phases<R>(m, head_fn, head_base, head_scale, head_norm, output, s, caches, host, rows, epoch, stride, get, range);
    std::vector<float> want(poison.size()), got(poison.size());
    get(want.data(), s.logits, want.size() * 4);
    int same = 0;
    for (int i = 0; i < 20; i++) {
        restore();
        ds4_decode_epoch<<<1, 1>>>(s.workspace);
        range(0, ds4_decode_phases(n_layers));
        get(got.data(), s.logits, got.size() * 4);
        same += !memcmp(want.data(), got.data(), got.size() * 4);
    }
    printf("one launch, %d rows: %d of 20 same bits as phase by phase\n", R, same), fflush(stdout);
    ok = ok && same == 20;
    if (R == 1) one = want;
    else { size_t df = 0; for (u32 i = 0; i < VOCAB; i++) df += memcmp(&one[i], &want[i], 4) != 0; printf("row 0 of %d rows against 1 row: %zu of %u logits differ\n", R, df, VOCAB); ok = ok && !df; }
    for (auto p : m.owned) free(p);
    return ok;
}

// ---- full size -----------------------------------------------------------------------------------------------

__device__ u32 hash(u64 x) { x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull, x ^= x >> 33; return (u32)x; }
__global__ void fill_words(u32 *p, size_t n, u32 seed) { for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) p[i] = hash(i ^ (u64)seed << 40); }
__device__ u16 half_of(float f) { u16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h; }
// f16 fields of `per` halves at `at` of every `stride` bytes, in +-[0.5, 1] scale (or positive).
__global__ void fill_halves(u8 *p, size_t n, u32 stride, u32 at, u32 per, float scale, u32 seed) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n * per; i += (size_t)gridDim.x * blockDim.x)
        *(u16 *)(p + i / per * stride + at + i % per * 2) = half_of(scale * (0.5f + (hash(i ^ (u64)seed << 40) & 0xffff) / 131072.f));
}
__global__ void fill_f16(u16 *p, size_t n, float scale, u32 seed) { for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) p[i] = half_of(scale * ((hash(i ^ (u64)seed << 40) & 0xffff) / 32768.f - 1)); }
__global__ void fill_f32(float *p, size_t n, float lo, float hi, u32 seed) { for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) p[i] = lo + (hi - lo) * ((hash(i ^ (u64)seed << 40) & 0xffffff) / 16777216.f); }
__global__ void fill_bf16(u16 *p, size_t n, u32 seed) { for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) p[i] = (hash(i ^ (u64)seed << 40) & 0x807f) | 0x3f00; }

struct Full {
    u32 n_layers = 43, seed = 1, n_tokens;
    std::vector<Ds4DecodeLayer> layers;
    std::vector<Ds4DecodeCache> caches;
    Ds4Step s{};
    size_t total = 0;
    u8 *take(size_t n) { void *p; CHECK(cudaMalloc(&p, (n + 255) / 256 * 256)); total += n; return (u8 *)p; }
    const void *q8(size_t n, u32 k) { const size_t b = ds4_q8_bytes(n, k); u8 *p = take(b); fill_words<<<1056, 256>>>((u32 *)p, b / 4, seed++); fill_halves<<<264, 256>>>(p, b / DS4_Q8_RECORD, DS4_Q8_RECORD, DS4_Q8_SCALES, 128, 1.8f / (73 * std::sqrt((float)k)), seed++); return p; }
    const void *f16(size_t n, float scale) { u8 *p = take(n * 2); fill_f16<<<528, 256>>>((u16 *)p, n, scale, seed++); return p; }
    const float *f32(size_t n, float lo, float hi) { u8 *p = take(n * 4); fill_f32<<<64, 256>>>((float *)p, n, lo, hi, seed++); return (const float *)p; }
    u16 *bf(size_t n) { u8 *p = take(n * 2); fill_bf16<<<528, 256>>>((u16 *)p, n, seed++); return (u16 *)p; }
    const void *const *experts(size_t each, bool down) {
        u8 *p = take(each * 256);
        fill_words<<<2112, 256>>>((u32 *)p, each * 64, seed++);
        if (down) fill_halves<<<528, 256>>>(p, each * 256 / DS4_Q2K_TILE, DS4_Q2K_TILE, DS4_Q2K_D, 32, 0.004f, seed++);
        else fill_halves<<<528, 256>>>(p, each * 256 / DS4_IQ2_TILE, DS4_IQ2_TILE, DS4_IQ2_D, 16, 0.0012f, seed++);
        std::vector<const void *> t;
        for (int e = 0; e < 256; e++) t.push_back(p + e * each);
        u8 *q = take(2048);
        CHECK(cudaMemcpy(q, t.data(), 2048, cudaMemcpyHostToDevice));
        return (const void *const *)q;
    }
    void build(u32 tokens) {
        using namespace ds4;
        n_tokens = tokens;
        std::vector<int32_t> ids(VOCAB * USED);
        for (u32 i = 0; i < VOCAB * USED; i++) ids[i] = (i / USED * 37 + i % USED * 41) % 256;
        u8 *dids = take(ids.size() * 4);
        CHECK(cudaMemcpy(dids, ids.data(), ids.size() * 4, cudaMemcpyHostToDevice));
        for (u32 i = 0; i < n_layers; i++) {
            const u32 kind = i < 2 ? DS4_SLIDING : i % 2 ? DS4_HCA : DS4_CSA;
            Ds4DecodeLayer d{};
            d.kind = kind;
            d.fn_attn = f16(N_MIX * HC * E, 0.02f), d.fn_ffn = f16(N_MIX * HC * E, 0.02f);
            d.base_attn = f32(N_MIX, -0.5f, 0.5f), d.base_ffn = f32(N_MIX, -0.5f, 0.5f), d.scale_attn = f32(3, 0.5f, 1), d.scale_ffn = f32(3, 0.5f, 1), d.norm_attn = f32(E, 0.8f, 1.2f), d.norm_ffn = f32(E, 0.8f, 1.2f);
            d.q_a = q8(QR, E), d.kv = q8(HEAD, E), d.q_b = q8(Q, QR), d.out_a = q8(U, 4096), d.out_b = q8(E, U);
            d.q_a_norm = f32(QR, 0.8f, 1.2f), d.kv_norm = f32(HEAD, 0.8f, 1.2f), d.sinks = f32(HEADS, -1, 1);
            Ds4DecodeCache c{};
            c.window_rows = WINDOW + 64, c.window = bf((size_t)4 * c.window_rows * HEAD);
            if (kind) {
                const u32 dim = kind == DS4_CSA ? CSA_DIM : HCA_DIM, ratio = kind == DS4_CSA ? 4 : 128;
                d.comp_kv = f16((size_t)dim * E, 0.03f), d.comp_gate = f16((size_t)dim * E, 0.03f), d.comp_ape = f32(ratio * dim, -0.5f, 0.5f), d.comp_norm = f32(HEAD, 0.8f, 1.2f);
                c.rows = bf((size_t)n_tokens / ratio * HEAD), c.frontier_rows = (kind == DS4_CSA ? 8 : 128) + 64;
                c.frontier = (float *)f32((size_t)4 * c.frontier_rows * 2 * dim, -1, 1);
            }
            if (kind == DS4_CSA) {
                d.index_kv = f16((size_t)INDEX_DIM2 * E, 0.03f), d.index_gate = f16((size_t)INDEX_DIM2 * E, 0.03f), d.index_proj = f16((size_t)IHEADS * E, 0.03f), d.index_q_b = f16((size_t)IQ * QR, 0.05f);
                d.index_ape = f32(4 * INDEX_DIM2, -0.5f, 0.5f), d.index_norm = f32(IDIM, 0.8f, 1.2f);
                c.index_rows = bf((size_t)n_tokens / 4 * IDIM), c.index_frontier = (float *)f32((size_t)4 * c.frontier_rows * 2 * INDEX_DIM2, -1, 1);
                s.n_csa++;
            }
            d.router = f16((size_t)EXPERTS * E, 0.03f);
            if (i < 3) d.ids = (const int32_t *)dids;
            else d.bias = f32(EXPERTS, -0.1f, 0.1f);
            d.expert_clamp = d.shared_clamp = 10;
            d.gate_up = experts(ds4_iq2_pair_bytes(F, E), false), d.down = experts(ds4_q2k_bytes(E, F), true);
            d.shared_gate = q8(F, E), d.shared_up = q8(F, E), d.shared_down = q8(E, F);
            layers.push_back(d), caches.push_back(c);
        }
        s.embedding = f16((size_t)2048 * E, 1), s.head_fn = f16(HC * HC * E, 0.02f), s.head_base = f32(HC, -0.5f, 0.5f), s.head_scale = f32(1, 0.5f, 1), s.head_norm = f32(E, 0.8f, 1.2f), s.output = q8(VOCAB, E);
        u8 *p = take(n_layers * sizeof(Ds4DecodeLayer));
        CHECK(cudaMemcpy(p, layers.data(), n_layers * sizeof(Ds4DecodeLayer), cudaMemcpyHostToDevice));
        s.layers = (const Ds4DecodeLayer *)p;
        p = take(n_layers * sizeof(Ds4DecodeCache));
        CHECK(cudaMemcpy(p, caches.data(), n_layers * sizeof(Ds4DecodeCache), cudaMemcpyHostToDevice));
        s.caches = (const Ds4DecodeCache *)p;
        s.score_stride = (n_tokens / 4 + 63) / 64 * 64;
        s.logits = (float *)take((size_t)4 * VOCAB * 4);
        s.n_layers = n_layers, s.head = 1, s.first = 0, s.end = ds4_decode_phases(n_layers), s.in_flight = 2;
        CHECK(cudaDeviceSynchronize());
        printf("full size: %.2f GB on the device\n", total / 1e9), fflush(stdout);
    }
    u32 *row_ids = nullptr;
    float *angles;
    u8 *work[5][2] = {};
    // Bytes of weights and rows that a step of R rows at this position reads.
    double bytes(int R, u32 position) const {
        using namespace ds4;
        double b = 0;
        for (auto &l : layers) {
            b += 2.0 * N_MIX * HC * E * 2 + ds4_q8_bytes(QR, E) + ds4_q8_bytes(HEAD, E) + ds4_q8_bytes(Q, QR) + ds4_q8_bytes(U, 4096) + ds4_q8_bytes(E, U) + EXPERTS * E * 2.0 + 3.0 * ds4_q8_bytes(F, E);
            b += R * USED * (double)(ds4_iq2_pair_bytes(F, E) + ds4_q2k_bytes(E, F));
            if (l.kind) b += 2.0 * (l.kind == DS4_CSA ? CSA_DIM : HCA_DIM) * E * 2;
            if (l.kind == DS4_CSA) b += (2.0 * INDEX_DIM2 + IHEADS) * E * 2 + ((position + 1) / 4 > TOP_K ? IQ * QR * 2.0 + R * (position + 1) / 4.0 * IDIM * 2 : 0);
            b += R * 1024.0 * (WINDOW + (l.kind == DS4_CSA ? std::min((position + 1) / 4, TOP_K) : l.kind ? (position + 1) / 128 : 0));
        }
        return b + ds4_q8_bytes(VOCAB, E);
    }
    void set(int R, u32 position) {
        if (!row_ids) row_ids = (u32 *)take(64), angles = (float *)f32(4 * 4 * 64, -0.7f, 0.7f);
        u32 v[16];
        for (int r = 0; r < 4; r++) v[r] = 17 + 100 * r, v[4 + r] = position, v[8 + r] = r, v[12 + r] = 0;
        CHECK(cudaMemcpy(row_ids, v, 64, cudaMemcpyHostToDevice));
        s.rows = {row_ids, row_ids + 4, row_ids + 8, row_ids + 12, angles};
        s.selects = (position + 1) / 4 > ds4::TOP_K;
        u8 *&w = work[R][s.selects];
        const size_t n = ds4_decode_workspace(R, s.score_stride);
        if (!w) { w = take(n); CHECK(cudaMemset(w, 0, n)); }
        s.workspace = w;
    }
    struct Timed { double us, low, high; };
    Timed time(int R, int n = 21) {
        cudaStream_t stream;
        cudaGraph_t g;
        cudaGraphExec_t e;
        cudaEvent_t a, b;
        CHECK(cudaStreamCreate(&stream));
        CHECK(cudaEventCreate(&a));
        CHECK(cudaEventCreate(&b));
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        ds4_decode_epoch<<<1, 1, 0, stream>>>(s.workspace);
        launch(R, s, stream);
        CHECK(cudaStreamEndCapture(stream, &g));
        CHECK(cudaGraphInstantiate(&e, g, 0));
        std::vector<float> v;
        for (int i = 0; i < n + 3; i++) {
            CHECK(cudaEventRecord(a, stream));
            CHECK(cudaGraphLaunch(e, stream));
            CHECK(cudaEventRecord(b, stream));
            CHECK(cudaEventSynchronize(b));
            float ms;
            CHECK(cudaEventElapsedTime(&ms, a, b));
            if (i >= 3) v.push_back(ms * 1000);
        }
        std::sort(v.begin(), v.end());
        CHECK(cudaGraphExecDestroy(e));
        CHECK(cudaGraphDestroy(g));
        CHECK(cudaStreamDestroy(stream));
        return {v[v.size() / 2], v[0], v.back()};
    }
};

static void report(Full &f, int R, u32 position, double predicted, std::vector<std::string> &table) {
    f.set(R, position);
#ifdef DS4_STAMPS
    if (!f.s.marks) CHECK(cudaMalloc(&f.s.marks, DS4_DECODE_BLOCKS * DS4_STAMPS * 4));
#endif
    const Full::Timed t = f.time(R);
    std::vector<float> l((size_t)R * ds4::VOCAB);
    CHECK(cudaMemcpy(l.data(), f.s.logits, l.size() * 4, cudaMemcpyDeviceToHost));
    size_t bad = 0;
    for (float x : l) bad += !(std::fabs(x) < 1e30f);
    const double bound = f.bytes(R, position) / 4541e3;
    char line[300];
    snprintf(line, sizeof line, "%d row%s at %6u, %u in flight: %8.1f us (%.1f .. %.1f) = %6.1f tokens/s; predicted %.0f us; bound %.0f us (%.0f %%)%s", R, R > 1 ? "s" : " ", position + 1, f.s.in_flight, t.us, t.low, t.high, R * 1e6 / t.us,
             predicted, bound, 100 * bound / t.us, bad ? "  LOGITS NOT FINITE" : "");
    puts(line), fflush(stdout);
    table.push_back(line);
}

#ifdef DS4_STAMPS
static void stamps(Full &f, u32 position) {
    using namespace ds4;
    f.set(1, position);
    if (!f.s.marks) CHECK(cudaMalloc(&f.s.marks, DS4_DECODE_BLOCKS * DS4_STAMPS * 4));
    CHECK(cudaMemset(f.s.marks, 0, DS4_DECODE_BLOCKS * DS4_STAMPS * 4));
    const Full::Timed t = f.time(1);
    std::vector<u32> m(DS4_DECODE_BLOCKS * DS4_STAMPS);
    CHECK(cudaMemcpy(m.data(), f.s.marks, m.size() * 4, cudaMemcpyDeviceToHost));
    printf("stamps at %u: %.1f us. us (at 1.98 GHz), mean over layers of a kind and 128 blocks: till the inputs are here, from then to the end (least, most over blocks)\n", position + 1, t.us);
    const char *names[] = {"turn", "in", "query", "index query", "scores", "attend", "combine", "out_a", "out_b", "turn", "router", "gate_up", "down"};
    for (u32 kind = 0; kind < 3; kind++) {
        double sum = 0;
        printf("  %s layers:", kind == 0 ? "sliding" : kind == 1 ? "ratio-4" : "ratio-128");
        for (int p = 0; p < 13; p++) {
            double wait = 0, work = 0, low = 0, high = 0, n = 0;
            for (u32 i = 2; i < f.n_layers; i++) {
                if (f.layers[i].kind != kind || (kind == 0 && i != 1)) continue;
                double lo = 1e9, hi = 0;
                for (u32 b = 0; b < W; b++) {
                    const u32 *at = &m[(size_t)b * DS4_STAMPS];
                    auto end = [&](int q) { while (q >= 0 && !at[i * 32 + 2 * q + 1]) q--; return q >= 0 ? at[i * 32 + 2 * q + 1] : at[(i - 1) * 32 + 25]; };
                    const u32 from = end(p - 1), ready = at[i * 32 + 2 * p], to = at[i * 32 + 2 * p + 1];
                    if (!to) continue;
                    const double a = ready ? (ready - from) / 1980.0 : 0, c = (to - (ready ? ready : from)) / 1980.0;
                    wait += a, work += c, lo = std::min(lo, c), hi = std::max(hi, c), n += 1;
                }
                low += lo, high += hi;
            }
            if (!n) continue;
            const double layers = n / W;
            printf(" %s %.2f + %.2f (%.2f, %.2f);", names[p], wait / n, work / n, low / layers, high / layers);
            sum += (wait + work) / n;
        }
        // Inside attend: flags and scores (27), selection (26); inside down: the shared expert (28).
        double fl = 0, sel = 0, sh = 0, n = 0;
        for (u32 i = 2; i < f.n_layers; i++) if (f.layers[i].kind == kind) for (u32 b = 0; b < W; b++) {
            const u32 *at = &m[(size_t)b * DS4_STAMPS + i * 32];
            fl += (at[27] - (at[9] ? at[9] : at[5])) / 1980.0, sel += at[26] ? (at[26] - at[27]) / 1980.0 : 0, sh += (at[28] - at[23]) / 1980.0, n++;
        }
        if (n) printf(" [attend: flags %.2f, selection %.2f; down: shared %.2f] = %.2f us\n", fl / n, sel / n, sh / n, sum);
        else printf("\n");
    }
    fflush(stdout);
}
#endif

int main(int n, char **v) {
    auto has = [&](const char *w) { for (int i = 1; i < n; i++) if (!strcmp(v[i], w)) return true; return false; };
    const auto start = std::chrono::steady_clock::now();
    auto clock = [&](const char *what) { printf("[%.1f s] %s\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), what), fflush(stdout); };
    if (has("dry")) { printf("arguments read\n"); return 0; }
    cudaDeviceProp p;
    CHECK(cudaGetDeviceProperties(&p, 0));
    printf("%s, %d multiprocessors\n", p.name, p.multiProcessorCount);
    prepare();
    bool ok = true;
    if (has("check")) {
        ok = check_rows<1>(3, 37), clock("1 row checked");
        if (MOST_ROWS > 1) ok = check_rows<2>(3, 97) && ok, clock("2 rows checked");
        if (MOST_ROWS > 2) ok = check_rows<4>(3, 97) && ok, clock("4 rows checked");
        printf("CHECKS %s\n", ok ? "PASSED" : "FAILED"), fflush(stdout);
    }
    std::vector<std::string> table;
    if (has("time") || has("stamps") || has("profile")) {
        Full f;
        f.build(132 * 1024);
        clock("built");
#ifdef DS4_STAMPS
        if (has("experiments")) {
            // Phases of layer 20 (ratio 4) and the head, each as a launch of its own.
            f.set(1, 1999);
            if (!f.s.marks) CHECK(cudaMalloc(&f.s.marks, DS4_DECODE_BLOCKS * DS4_STAMPS * 4));
            const u32 all = f.s.end, head = all - 2;
            for (u32 x : {0u, 1u, 3u, 5u, 4u, 8u}) {
                CHECK(cudaMemcpyToSymbol(ds4_experiment, &x, 4));
                printf("experiment %u:", x);
                if (x & 1) {
                    for (u32 flight : {2u, 4u, 8u}) f.s.in_flight = flight, f.s.first = 0, f.s.end = all, printf(" whole (%u) %.0f us;", flight, f.time(1, 7).us);
                    f.s.in_flight = 4;
                    for (u32 p : {1u, 2u, 7u, 8u, 11u, 12u}) f.s.first = 1 + 13 * 20 + p, f.s.end = f.s.first + 1, printf(" phase %u %.1f;", p, f.time(1, 7).us);
                    f.s.first = head + 1, f.s.end = all, printf(" head %.1f;", f.time(1, 7).us);
                } else if (x != 4) f.s.first = 0, f.s.end = all, printf(" whole %.0f us;", f.time(1, 7).us);
                f.s.first = 0, f.s.end = all;
                puts(""), fflush(stdout);
            }
            const u32 x = 0;
            CHECK(cudaMemcpyToSymbol(ds4_experiment, &x, 4));
        }
        if (has("local")) for (u32 x : {5u, 1u}) {
            CHECK(cudaMemcpyToSymbol(ds4_experiment, &x, 4));
            printf("experiment %u\n", x), stamps(f, 1999), stamps(f, 2103);
            const u32 none = 0;
            CHECK(cudaMemcpyToSymbol(ds4_experiment, &none, 4));
        }
        const u32 usual = 1000u << 20 | 400u << 8;
        CHECK(cudaMemcpyToSymbol(ds4_experiment, &usual, 4));
        if (has("polls")) {
            for (u32 worker : {300u, 400u, 600u, 800u, 1200u})
                for (u32 flight : {2u, 3u}) {
                    const u32 x = 1000u << 20 | worker << 8;
                    CHECK(cudaMemcpyToSymbol(ds4_experiment, &x, 4));
                    f.s.in_flight = flight;
                    printf("pause of workers %u ns: ", worker), report(f, 1, 1999, 0, table);
                    printf("pause of workers %u ns: ", worker), report(f, 1, 2103, 0, table);
                    printf("pause of workers %u ns: ", worker), report(f, 1, 32767, 0, table);
                }
            CHECK(cudaMemcpyToSymbol(ds4_experiment, &usual, 4));
            f.s.in_flight = 4;
        }
        if (has("stamps")) for (u32 position : {1999u, 2103u, 8099u, 32763u, 131067u, 32767u}) stamps(f, position);
#endif
        if (has("profile")) // launches to sample under a profiler
            for (u32 position : {1999u, 2103u, 131067u})
                for (int i = 0; i < 2; i++) {
                    f.set(1, position);
                    ds4_decode_epoch<<<1, 1>>>(f.s.workspace);
                    launch(1, f.s, 0);
                    CHECK(cudaDeviceSynchronize());
                }
        if (has("time")) {
        f.s.in_flight = 2;
        for (u32 position : {1999u, 2103u, 8191u, 8099u, 32767u, 32763u, 131071u, 131067u, 1999u, 2103u}) report(f, 1, position, 3300, table);
        if (MOST_ROWS > 2) {
            report(f, 2, 2103, 4500, table);
            report(f, 4, 2103, 6500, table);
            report(f, 2, 32767, 4700, table);
            report(f, 4, 32767, 6900, table);
        }
        }

        clock("timed");
    }
    printf("---- table\n");
    for (auto &l : table) puts(l.c_str());
    printf("%s\n", ok ? "ok" : "NOT OK");
    return !ok;
}
