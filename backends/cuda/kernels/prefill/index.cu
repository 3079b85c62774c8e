// The indexer for many queries: scores of all visible index rows, then the 512 best of each query.
#include "prefill/device.cuh"
#include "prefill/prefill.h"

#define HEADS 64
#define DIM 128
#define TOP_K 512
#define RATIO 4
#define Q_STRIDE 320

namespace {

__device__ __forceinline__ u32 n_visible(const IndexSelect& p, u32 r) {
    return p.rows.slot[r] == PAD_SLOT ? 0 : (p.rows.position[r] + 1) / RATIO;
}

__device__ __forceinline__ void load_query(const IndexSelect& p, smem_addr stage, u32 r, u32 end) {
    if (r >= end) return;
    const u16* q = p.iq + (u64)r * HEADS * DIM;
#pragma unroll
    for (int i = 0; i < HEADS * 16 / 256; i++) {
        u32 at = threadIdx.x + 256 * i;
        cp16(stage + (at >> 4) * Q_STRIDE + (at & 15) * 16, q + at * 8, true);
    }
    if (threadIdx.x < 16) cp16(stage + INDEX_QUERY_BYTES + threadIdx.x * 16, p.weights + (u64)r * p.ld_weights + threadIdx.x * 4, true);
}

// Adds the values of the lanes `o` apart; of 2 N values the upper lane keeps the upper N.
template <int N> __device__ __forceinline__ void fold(float* v, int o, bool upper) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        float give = upper ? v[i] : v[i + N], keep = upper ? v[i + N] : v[i];
        v[i] = keep + __shfl_xor_sync(FULL_WARP, give, o);
    }
}

} // namespace

// score[c] = sum over heads of w[h] / sqrt(128 * 64) * max(0, iq[h] . ik[c]). A warp keeps 64 index rows
// as operands in registers (lane 4 g + t: of every 32 channels, 8 t .. 8 t + 8 of row 8 n + g) and lets
// the block's queries pass by.
extern "C" __global__ void __launch_bounds__(256, 1) index_scores(const __grid_constant__ IndexSelect p) {
    DYNAMIC_SHARED(shared);
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    u32 begin = p.first + blockIdx.y * p.queries, end = min(begin + p.queries, p.first + p.n);
    u32 c0 = blockIdx.x * INDEX_TILE, mine = c0 + warp * 64;
    u32 most = 0;
    for (u32 r = begin; r < end; r++) most = max(most, n_visible(p, r));
    if (most <= c0) return;
    smem_addr base_s = smem(shared);
    constexpr u32 STAGE = INDEX_QUERY_BYTES + 256;
#pragma unroll
    for (int s = 0; s < INDEX_STAGES - 1; s++) {
        load_query(p, base_s + s * STAGE, begin + s, end);
        cp_commit();
    }
    u32 k[8][4][4]; // [n-tile][32 channels][word]
    u32 have = 0xffffffffu, slot = 0;
    const float scale = 0.011048543456039806f; // (128 * 64)^-0.5
#pragma unroll 1
    for (u32 r = begin; r < end; r++) {
        cp_wait<INDEX_STAGES - 2>();
        __syncthreads();
        load_query(p, base_s + (slot == 0 ? INDEX_STAGES - 1 : slot - 1) * STAGE, r + INDEX_STAGES - 1, end);
        cp_commit();
        u32 visible = n_visible(p, r), stage = slot * STAGE;
        slot = slot + 1 == INDEX_STAGES ? 0 : slot + 1;
        if (mine >= visible) continue;
        u32 base = p.rows.base[r] / RATIO;
        if (base != have) {
            have = base;
#pragma unroll
            for (int n = 0; n < 8; n++) {
                u32 row = min(base + mine + 8 * n + g, p.cache_rows - 1);
#pragma unroll
                for (int b = 0; b < 4; b++) {
                    uint4 v = *(const uint4*)(p.cache + (u64)row * DIM + 32 * b + 8 * t);
                    k[n][b][0] = v.x, k[n][b][1] = v.y, k[n][b][2] = v.z, k[n][b][3] = v.w;
                }
            }
        }
        const float* w = (const float*)(shared + stage + INDEX_QUERY_BYTES);
        float score[16];
#pragma unroll
        for (int i = 0; i < 16; i++) score[i] = 0.0f;
#pragma unroll 1
        for (u32 m = 0; m < HEADS / 16; m++) {
            const unsigned char* q = shared + stage + (m * 16 + g) * Q_STRIDE + t * 16;
            float c[8][4];
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) c[n][e] = 0.0f;
#pragma unroll
            for (int b = 0; b < 4; b++) {
                uint4 x = *(const uint4*)(q + b * 64), y = *(const uint4*)(q + 8 * Q_STRIDE + b * 64);
#pragma unroll
                for (int n = 0; n < 8; n++) {
                    mma_bf16(c[n], x.x, y.x, x.y, y.y, k[n][b][0], k[n][b][1]);
                    mma_bf16(c[n], x.z, y.z, x.w, y.w, k[n][b][2], k[n][b][3]);
                }
            }
            float w0 = w[m * 16 + g] * scale, w1 = w[m * 16 + g + 8] * scale;
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) score[2 * n + e] += w0 * fmaxf(c[n][e], 0.0f) + w1 * fmaxf(c[n][2 + e], 0.0f);
        }
        // Sums over g; lane 4 g + t ends with columns 8 g + 2 t and the next.
        fold<8>(score, 16, lane & 16);
        fold<4>(score, 8, lane & 8);
        fold<2>(score, 4, lane & 4);
        u32 c = mine + 2 * lane;
        float* out = p.scores + (u64)(r - p.first) * p.stride + c;
        if (c < visible) out[0] = score[0];
        if (c + 1 < visible) out[1] = score[1];
    }
}

// Exact selection: the key of the 512th largest score by three radix passes (11, 11 and 10 bits), then
// the rows above it and the first of those equal to it, in ascending order.
extern "C" __global__ void __launch_bounds__(512) index_top_k(const __grid_constant__ IndexSelect p) {
    DYNAMIC_SHARED(shared);
    u32* histogram = (u32*)shared;
    u32* keys = (u32*)(shared + 8192);
    __shared__ u32 warp_sum[16], found[2];
    u32 r = p.first + blockIdx.x, tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    u32 n = n_visible(p, r);
    u32* out = p.selected + (u64)r * TOP_K;
    if (n <= TOP_K) {
        if (tid < n) out[tid] = tid;
        return;
    }
    const float* scores = p.scores + (u64)blockIdx.x * p.stride;
    bool cached = n <= p.cached;
    auto key_of = [](float f) {
        u32 u = __float_as_uint(f);
        return u & 0x80000000u ? ~u : u | 0x80000000u;
    };
    auto key = [&](u32 i) { return cached ? keys[i] : key_of(scores[i]); };
    if (cached)
        for (u32 i = tid; i < n; i += 512) keys[i] = key_of(scores[i]);
    u32 prefix = 0, mask = 0, need = TOP_K;
#pragma unroll
    for (int pass = 0; pass < 3; pass++) {
        const u32 shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, bins = pass == 2 ? 1024 : 2048;
        for (u32 i = tid; i < 2048; i += 512) histogram[i] = 0;
        __syncthreads();
        for (u32 i = tid; i < n; i += 512) {
            u32 u = key(i);
            if ((u & mask) == prefix) atomicAdd(&histogram[(u >> shift) & (bins - 1)], 1u);
        }
        __syncthreads();
        // Thread i owns bins 4 i .. 4 i + 4; `above` counts the keys in higher bins.
        uint4 mine = *(const uint4*)(histogram + 4 * tid);
        u32 own = mine.x + mine.y + mine.z + mine.w, sum = own;
#pragma unroll
        for (int o = 1; o < 32; o <<= 1) {
            u32 v = __shfl_down_sync(FULL_WARP, sum, o);
            if (lane + o < 32) sum += v;
        }
        if (lane == 0) warp_sum[warp] = sum;
        __syncthreads();
        u32 above = sum - own;
        for (u32 w = warp + 1; w < 16; w++) above += warp_sum[w];
        const u32 counts[4] = {mine.x, mine.y, mine.z, mine.w};
#pragma unroll
        for (int j = 3; j >= 0; j--) {
            if (above < need && above + counts[j] >= need) {
                found[0] = 4 * tid + j;
                found[1] = need - above;
            }
            above += counts[j];
        }
        __syncthreads();
        prefix |= found[0] << shift;
        mask |= (bins - 1) << shift;
        need = found[1];
        __syncthreads();
    }
    // Each warp counts, then writes, a run of rows.
    u32 run = ((n + 15) / 16 + 31) / 32 * 32, begin = min(warp * run, n), end = min(begin + run, n);
    u32 n_above = 0, n_equal = 0;
    for (u32 at = begin; at < end; at += 32) {
        u32 u = at + lane < end ? key(at + lane) : 0;
        bool there = at + lane < end;
        n_above += __popc(__ballot_sync(FULL_WARP, there && u > prefix));
        n_equal += __popc(__ballot_sync(FULL_WARP, there && u == prefix));
    }
    u32* totals = histogram;
    if (lane == 0) totals[2 * warp] = n_above, totals[2 * warp + 1] = n_equal;
    __syncthreads();
    u32 above = 0, equal = 0;
    for (u32 w = 0; w < warp; w++) above += totals[2 * w], equal += totals[2 * w + 1];
    for (u32 at = begin; at < end; at += 32) {
        bool there = at + lane < end;
        u32 u = there ? key(at + lane) : 0, before = (1u << lane) - 1;
        u32 ups = __ballot_sync(FULL_WARP, there && u > prefix), sames = __ballot_sync(FULL_WARP, there && u == prefix);
        u32 ties = equal + __popc(sames & before);
        bool take = there && (u > prefix || (u == prefix && ties < need));
        if (take) out[above + __popc(ups & before) + min(ties, need)] = at + lane;
        above += __popc(ups);
        equal += __popc(sames);
    }
}
