// Attention of many queries: one block takes one query with its 64 heads over the window, the
// compressed rows and the sink. K and V are the same bf16 row; products run on tensor cores with f32
// sums, the softmax is computed online in base 2 and starts from the sink, a key without a value.
#include "prefill/device.cuh"
#include "prefill/prefill.h"

#define HEADS 64
#define DIM 512
#define ROPE 64
#define BN ATTEND_BN
#define P_STRIDE (BN * 2 + 16)

namespace {

// Offset of 16-byte chunk `chunk` (0..63) of a row of 1,024 bytes.
__device__ __forceinline__ u32 row_chunk(u32 row, u32 chunk) { return row * 1024 + ((chunk ^ (row & 7)) << 4); }

// The rows one query sees, in order: ring, batch, compressed.
struct Seen {
    const u16 *ring, *batch, *cache;
    const u32* selected;
    u32 n_window_ring, n_window, n_all, ring_first, n_ring;

    __device__ __forceinline__ const u16* row(u32 j) const {
        if (j < n_window_ring) {
            u32 at = ring_first + j;
            return ring + (u64)(at >= n_ring ? at - n_ring : at) * DIM;
        }
        if (j < n_window) return batch + (u64)(j - n_window_ring) * DIM;
        u32 c = j - n_window;
        return cache + (u64)(selected ? selected[c] : c) * DIM;
    }
};

__device__ __forceinline__ Seen seen_by(const Attend& p, u32 r) {
    Seen s;
    u32 position = p.rows.position[r], first = p.rows.first_row[r], base = p.rows.base[r];
    u32 segment = position - (r - first), start = p.rows.window_start[r];
    u32 batch_from = max(start, segment);
    s.n_ring = p.n_ring;
    s.ring = p.ring + (u64)p.rows.slot[r] * p.n_ring * DIM;
    s.n_window_ring = start < segment ? segment - start : 0;
    s.ring_first = start % p.n_ring;
    s.batch = p.kv + (u64)(first + (batch_from - segment)) * DIM;
    s.n_window = s.n_window_ring + (p.rows.see_end[r] - first - (batch_from - segment));
    s.cache = nullptr;
    s.selected = nullptr;
    u32 compressed = 0;
    if (p.cache) {
        compressed = (position + 1) / p.ratio;
        s.cache = p.cache + (u64)(base / p.ratio) * DIM;
        if (p.selected && compressed > p.top_k) {
            compressed = p.top_k;
            s.selected = p.selected + (u64)r * p.top_k;
        }
    }
    s.n_all = s.n_window + compressed;
    return s;
}

// Copies rows j0 .. j0 + BN of the seen rows into a stage; missing ones are zeros.
template <int WARPS> __device__ __forceinline__ void load_rows(const Seen& s, smem_addr stage, u32 j0, u32 end) {
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    constexpr int PER_WARP = BN / WARPS;
    u32 mine = j0 + warp * PER_WARP + lane;
    u64 address = 0;
    if (lane < PER_WARP && mine < end) address = (u64)s.row(mine);
#pragma unroll
    for (int i = 0; i < PER_WARP; i++) {
        u64 a = __shfl_sync(FULL_WARP, address, i);
        u32 row = warp * PER_WARP + i;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 chunk = lane + 32 * h;
            cp16(stage + row_chunk(row, chunk), a ? (const u16*)a + chunk * 8 : s.batch, a != 0);
        }
    }
}

// 4 PARTS warps: warp w takes heads 16 (w % 4) .. + 16; of the scores part w / 4 of the stage's rows, of
// the output part w / 4 of the channels. The warps of the same heads meet at barrier 1 + w % 4.
template <int PARTS> __device__ __forceinline__ void attend_query(const Attend& p) {
    constexpr int THREADS = 128 * PARTS, ROWS = BN / PARTS, CHANNELS = DIM / PARTS, NT = CHANNELS / 8;
    DYNAMIC_SHARED(shared);
    u32 r = blockIdx.x, split = blockIdx.y, tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    u32 wm = warp & 3, part = warp >> 2, g = lane >> 2, t = lane & 3;
    if (p.rows.slot[r] == PAD_SLOT) return;
    Seen seen = seen_by(p, r);
    u32 per_split = (seen.n_all + p.n_splits - 1) / p.n_splits;
    per_split = (per_split + BN - 1) / BN * BN;
    u32 j_begin = min(split * per_split, seen.n_all), j_end = min(j_begin + per_split, seen.n_all);
    u32 n_tiles = (j_end - j_begin + BN - 1) / BN;

    smem_addr q_s = smem(shared), kv_s = q_s + HEADS * 1024, p_s = kv_s + 2 * BN * 1024;
    float* exchange = (float*)(shared + HEADS * 1024 + 2 * BN * 1024 + HEADS * P_STRIDE); // [PARTS][64], then sums
    const u16* q = p.q + (u64)r * HEADS * DIM;
#pragma unroll
    for (int i = 0; i < HEADS * 64 / THREADS; i++) {
        u32 at = tid + THREADS * i;
        cp16(q_s + row_chunk(at >> 6, at & 63), q + at * 8, true);
    }
    load_rows<4 * PARTS>(seen, kv_s, j_begin, j_end);
    cp_commit();
    load_rows<4 * PARTS>(seen, kv_s + BN * 1024, j_begin + BN, j_end);
    cp_commit();

    float o[NT][4];
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) o[i][e] = 0.0f;
    const float LOG2E = 1.4426950408889634f, scale = 0.044194173824159216f * LOG2E; // 512^-0.5
    float top[2], sum[2] = {0.0f, 0.0f}; // of heads g and g + 8 of this warp's 16
#pragma unroll
    for (int e = 0; e < 2; e++) {
        top[e] = split == 0 ? p.sinks[wm * 16 + g + 8 * e] * LOG2E : -1e30f;
        // The sink counts once: in part 0, lane t = 0.
        if (split == 0 && part == 0 && t == 0) sum[e] = 1.0f;
    }
    for (u32 tile = 0; tile < n_tiles; tile++) {
        smem_addr kv = kv_s + (tile & 1) * BN * 1024;
        cp_wait<1>();
        __syncthreads();
        // Scores: 16 heads x ROWS rows.
        constexpr int ST = ROWS / 8;
        float s[ST][4];
#pragma unroll
        for (int j = 0; j < ST; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[j][e] = 0.0f;
        u32 a_row = wm * 16 + (lane & 15), a_chunk = lane >> 4;
        if constexpr (ST > 1) {
        u32 b_row = part * ROWS + (lane & 7) + ((lane >> 4) << 3), b_chunk = (lane >> 3) & 1;
#pragma unroll 8
        for (int k = 0; k < DIM / 16; k++) {
            u32 a[4], b[(ST + 1) / 2][4];
            ldm4(a, q_s + row_chunk(a_row, 2 * k + a_chunk));
#pragma unroll
            for (int j = 0; j < ST / 2; j++) ldm4(b[j], kv + row_chunk(b_row + 16 * j, 2 * k + b_chunk));
#pragma unroll
            for (int j = 0; j < ST; j++) mma_bf16(s[j], a[0], a[1], a[2], a[3], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
        } else {
        // 8 rows a warp: one load brings their fragments of two k-steps.
        u32 b_row = part * 8 + (lane & 7), b_chunk = lane >> 3;
#pragma unroll 4
        for (int k = 0; k < DIM / 32; k++) {
            u32 a[4], a2[4], b[4];
            ldm4(a, q_s + row_chunk(a_row, 4 * k + a_chunk));
            ldm4(a2, q_s + row_chunk(a_row, 4 * k + 2 + a_chunk));
            ldm4(b, kv + row_chunk(b_row, 4 * k + b_chunk));
            mma_bf16(s[0], a[0], a[1], a[2], a[3], b[0], b[1]);
            mma_bf16(s[0], a2[0], a2[1], a2[2], a2[3], b[2], b[3]);
        }
        }
        u32 j0 = j_begin + tile * BN + part * ROWS + 2 * t;
        float m[2] = {-1e30f, -1e30f};
#pragma unroll
        for (int j = 0; j < ST; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                bool there = j0 + 8 * j + (e & 1) < j_end;
                s[j][e] = there ? s[j][e] * scale : -1e30f;
                m[e >> 1] = fmaxf(m[e >> 1], s[j][e]);
            }
#pragma unroll
        for (int e = 0; e < 2; e++) {
            m[e] = fmaxf(m[e], __shfl_xor_sync(FULL_WARP, m[e], 1));
            m[e] = fmaxf(m[e], __shfl_xor_sync(FULL_WARP, m[e], 2));
        }
        if (t == 0) {
            exchange[part * HEADS + wm * 16 + g] = m[0];
            exchange[part * HEADS + wm * 16 + g + 8] = m[1];
        }
        bar_named(1 + wm, 32 * PARTS);
        float shrink[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            m[e] = top[e];
#pragma unroll
            for (int i = 0; i < PARTS; i++) m[e] = fmaxf(m[e], exchange[i * HEADS + wm * 16 + g + 8 * e]);
            shrink[e] = exp2_fast(top[e] - m[e]);
            top[e] = m[e];
            sum[e] *= shrink[e];
        }
        unsigned char* weights = shared + HEADS * 1024 + 2 * BN * 1024;
#pragma unroll
        for (int j = 0; j < ST; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float w0 = exp2_fast(s[j][2 * e] - top[e]), w1 = exp2_fast(s[j][2 * e + 1] - top[e]);
                sum[e] += w0 + w1;
                *(u32*)(weights + (wm * 16 + g + 8 * e) * P_STRIDE + (part * ROWS + 8 * j + 2 * t) * 2) = pack_bf(w0, w1);
            }
        bar_named(1 + wm, 32 * PARTS);
#pragma unroll
        for (int i = 0; i < NT; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) o[i][e] *= shrink[e >> 1];
        // Output: 16 heads x CHANNELS channels.
#pragma unroll
        for (int k = 0; k < BN / 16; k++) {
            u32 a[4];
            ldm4(a, p_s + (wm * 16 + (lane & 15)) * P_STRIDE + k * 32 + (lane >> 4) * 16);
#pragma unroll
            for (int n = 0; n < NT / 2; n++) {
                u32 b[4];
                ldm4t(b, kv + row_chunk(k * 16 + (lane & 15), part * (CHANNELS / 8) + 2 * n + (lane >> 4)));
                mma_bf16(o[2 * n], a[0], a[1], a[2], a[3], b[0], b[1]);
                mma_bf16(o[2 * n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
            }
        }
        __syncthreads();
        load_rows<4 * PARTS>(seen, kv, j_begin + (tile + 2) * BN, j_end);
        cp_commit();
    }
    // Sums over the lanes of a head and over the parts.
#pragma unroll
    for (int e = 0; e < 2; e++) {
        sum[e] += __shfl_xor_sync(FULL_WARP, sum[e], 1);
        sum[e] += __shfl_xor_sync(FULL_WARP, sum[e], 2);
    }
    float* sums = exchange + PARTS * HEADS;
    if (t == 0) {
        sums[part * HEADS + wm * 16 + g] = sum[0];
        sums[part * HEADS + wm * 16 + g + 8] = sum[1];
    }
    __syncthreads();
    float inverse[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        u32 head = wm * 16 + g + 8 * e;
        sum[e] = 0.0f;
#pragma unroll
        for (int i = 0; i < PARTS; i++) sum[e] += sums[i * HEADS + head];
        inverse[e] = 1.0f / sum[e];
    }
    if (p.n_splits > 1) {
        u64 at = ((u64)r * p.n_splits + split) * HEADS;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            u32 head = wm * 16 + g + 8 * e;
            if (part == 0 && t == 0) *(float2*)(p.part_max + (at + head) * 2) = make_float2(top[e], sum[e]);
#pragma unroll
            for (int n = 0; n < NT; n++)
                *(float2*)(p.part + (at + head) * DIM + part * CHANNELS + 8 * n + 2 * t) = make_float2(o[n][2 * e], o[n][2 * e + 1]);
        }
        return;
    }
    const float* angles = p.rows.angles + ((u64)r * 4 + p.table) * ROPE;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            u32 channel = part * CHANNELS + 8 * n + 2 * t;
            float a = o[n][2 * e] * inverse[e], b = o[n][2 * e + 1] * inverse[e];
            u64 at = ((u64)r * HEADS + wm * 16 + g + 8 * e) * DIM + channel;
            if (p.out_f32) {
                *(float2*)(p.out_f32 + at) = make_float2(a, b);
                continue;
            }
            if (n >= NT - ROPE / 8 && part == PARTS - 1) {
                float2 cs = *(const float2*)(angles + (channel - (DIM - ROPE)));
                float x = a * cs.x + b * cs.y;
                b = b * cs.x - a * cs.y;
                a = x;
            }
            *(u32*)(p.out + at) = pack_h(a, b);
        }
}

} // namespace

extern "C" __global__ void __launch_bounds__(256, 1) attend(const __grid_constant__ Attend p) { attend_query<2>(p); }

// The shares of a query, weighted by their sums relative to the largest score of all.
extern "C" __global__ void __launch_bounds__(256) attend_combine(const __grid_constant__ Attend p) {
    u32 r = blockIdx.x, head = blockIdx.y * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (p.rows.slot[r] == PAD_SLOT) return;
    u64 at = (u64)r * p.n_splits * HEADS + head;
    float top = -1e30f;
    for (u32 s = 0; s < p.n_splits; s++) top = fmaxf(top, p.part_max[(at + (u64)s * HEADS) * 2]);
    float o[16], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; i++) o[i] = 0.0f;
    for (u32 s = 0; s < p.n_splits; s++) {
        float2 ms = *(const float2*)(p.part_max + (at + (u64)s * HEADS) * 2);
        float w = exp2_fast(ms.x - top);
        sum += w * ms.y;
        const float* part = p.part + (at + (u64)s * HEADS) * DIM;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 v = *(const float4*)(part + 128 * i + 4 * lane);
            o[4 * i] += w * v.x;
            o[4 * i + 1] += w * v.y;
            o[4 * i + 2] += w * v.z;
            o[4 * i + 3] += w * v.w;
        }
    }
    float inverse = 1.0f / sum;
    const float* angles = p.rows.angles + ((u64)r * 4 + p.table) * ROPE;
    u64 out = ((u64)r * HEADS + head) * DIM;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 channel = 128 * i + 4 * lane;
        float v[4];
#pragma unroll
        for (int e = 0; e < 4; e++) v[e] = o[4 * i + e] * inverse;
        if (p.out_f32) {
            *(float4*)(p.out_f32 + out + channel) = make_float4(v[0], v[1], v[2], v[3]);
            continue;
        }
        if (channel >= DIM - ROPE) {
            float4 cs = *(const float4*)(angles + (channel - (DIM - ROPE)));
            float a = v[0] * cs.x + v[1] * cs.y, b = v[1] * cs.x - v[0] * cs.y;
            float c = v[2] * cs.z + v[3] * cs.w, d = v[3] * cs.z - v[2] * cs.w;
            v[0] = a, v[1] = b, v[2] = c, v[3] = d;
        }
        *(uint2*)(p.out + out + channel) = make_uint2(pack_h(v[0], v[1]), pack_h(v[2], v[3]));
    }
}
