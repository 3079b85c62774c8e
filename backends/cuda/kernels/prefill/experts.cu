// Routed experts on tensor cores. Weights are the A operand, unpacked in registers from their records
// to halves; the tokens of one expert are the columns. What a quantised block's scale does not reach
// is exact: IQ2_XXS magnitudes and signs come from byte permutations, Q2_K codes from the mantissa of
// 1024 + code. Scales are rounded to halves, sums are f32.
#include "prefill/device.cuh"
#include "prefill/prefill.h"
#include "prefill/experts.cuh"

#define N_EXPERTS 256
#define USED 6
#define EMBD 4096
#define HIDDEN 2048
#define THREADS (32 * EXPERTS_MANY_WARPS)
#define TOKENS EXPERTS_MANY_TOKENS
#define STAGES 2
#define X_STRIDE 528   // bytes of a token's 256 columns in shared memory: 8 rows of a matrix lie in different banks

// The pairs of every expert, ascending. A block is an expert; each warp counts, then writes, its share.
extern "C" __global__ void __launch_bounds__(256) experts_group(const __grid_constant__ Experts p) {
    __shared__ u32 count[8];
    u32 e = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    u32 n_pairs = p.n_rows * USED, share = ((n_pairs + 7) / 8 + 31) / 32 * 32;
    u32 begin = min(warp * share, n_pairs), end = min(begin + share, n_pairs);
    u32 n = 0;
    for (u32 at = begin; at < end; at += 32) {
        u32 pair = at + lane;
        bool mine = pair < end && p.experts[min(pair, n_pairs - 1)] == e && p.slot[min(pair, n_pairs - 1) / USED] != PAD_SLOT;
        n += __popc(__ballot_sync(FULL_WARP, mine));
    }
    if (lane == 0) count[warp] = n;
    __syncthreads();
    u32 before = 0, all = 0;
    for (u32 w = 0; w < 8; w++) {
        if (w < warp) before += count[w];
        all += count[w];
    }
    u32* list = p.lists + (u64)e * p.n_rows;
    for (u32 at = begin; at < end; at += 32) {
        u32 pair = at + lane;
        bool mine = pair < end && p.experts[min(pair, n_pairs - 1)] == e && p.slot[min(pair, n_pairs - 1) / USED] != PAD_SLOT;
        u32 votes = __ballot_sync(FULL_WARP, mine);
        if (mine) list[before + __popc(votes & ((1u << lane) - 1))] = pair;
        before += __popc(votes);
    }
    if (threadIdx.x == 0) p.counts[e] = all;
}

// Cuts every list into tiles, experts in order.
extern "C" __global__ void __launch_bounds__(256) experts_tiles(const __grid_constant__ Experts p) {
    __shared__ u32 warp_total[8];
    u32 e = threadIdx.x, warp = e >> 5, lane = e & 31;
    u32 n = p.counts[e], tiles = (n + p.tokens - 1) / p.tokens, sum = tiles;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
        u32 v = __shfl_up_sync(FULL_WARP, sum, o);
        if (lane >= (u32)o) sum += v;
    }
    if (lane == 31) warp_total[warp] = sum;
    __syncthreads();
    u32 at = sum - tiles;
    for (u32 w = 0; w < warp; w++) at += warp_total[w];
    for (u32 i = 0; i < tiles; i++) {
        u32* tile = p.tiles + 4 + 4 * (at + i);
        tile[0] = e;
        tile[1] = i * p.tokens;
        tile[2] = min(p.tokens, n - i * p.tokens);
        tile[3] = 0;
    }
    if (e == N_EXPERTS - 1) p.tiles[0] = at + tiles;
}

namespace {

template <int NT, int P, int ODD> __device__ __forceinline__ void gate_up_block(const Iq2Half& gate, const Iq2Half& up, const u32* dg, const u32* du, const unsigned char* lut, smem_addr x, float (*cg)[4], float (*cu)[4]) {
    u32 ag[2][4], au[2][4];
    gate.block<P, ODD, 8>(lut, dg, ag);
    up.block<P, ODD, 8>(lut, du, au);
#pragma unroll
    for (int n = 0; n < NT; n++) {
        u32 b[4];
        ldm4(b, x + n * 8 * X_STRIDE + (2 * P + ODD) * 64);
        mma_f16(cg[n], ag[0][0], ag[0][1], ag[0][2], ag[0][3], b[0], b[1]);
        mma_f16(cu[n], au[0][0], au[0][1], au[0][2], au[0][3], b[0], b[1]);
        mma_f16(cg[n], ag[1][0], ag[1][1], ag[1][2], ag[1][3], b[2], b[3]);
        mma_f16(cu[n], au[1][0], au[1][1], au[1][2], au[1][3], b[2], b[3]);
    }
}

// Copies 256 columns (512 bytes from `column_bytes` on) of the tile's tokens.
template <int STRIDE> __device__ __forceinline__ void tokens_stage(smem_addr x, const u64* rows, u32 column_bytes, u32 n_tokens) {
    u32 chunk = threadIdx.x & 31;
    for (u32 token = threadIdx.x >> 5; token < n_tokens; token += EXPERTS_MANY_WARPS)
        cp16(x + token * STRIDE + chunk * 16, (const unsigned char*)rows[token] + column_bytes + chunk * 16, true);
}

template <int NT> __device__ __forceinline__ void gate_up(const Experts& p) {
    ExpertTile t;
    expert_tile(p, t);
    DYNAMIC_SHARED(shared);
    u64* rows = (u64*)shared;
    // In shared memory, as registers are scarce in the loop.
    volatile u32* n_tokens = (volatile u32*)(shared + 8 * TOKENS);
    unsigned char* lut = shared + EXPERTS_HEAD_BYTES;
    unsigned char* stages = lut + EXPERTS_GRID_BYTES;
    constexpr u32 STAGE = EXPERTS_GATE_UP_STAGE(TOKENS), N_KC = EMBD / 256;
    u32 tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
    const u32* list = p.lists + (u64)t.expert * p.n_rows + t.first;
    if (tid < TOKENS) rows[tid] = tid < t.n ? (u64)(p.x + (u64)(list[tid] / USED) * EMBD) : 0;
    for (u32 i = tid; i < 2048; i += THREADS) ((u32*)lut)[i] = iq2_grid[i >> 3];
    if (tid == 0) *n_tokens = t.n;
    __syncthreads();
    const unsigned char* w = (const unsigned char*)p.gate_up[t.expert] + (u64)blockIdx.x * (EXPERTS_MANY_WARPS / 2) * N_KC * DS4_IQ2_PAIR;
    // A warp copies its own tiles: rows 16 (warp % 2) of a pair, of gate and of up.
    w += (warp >> 1) * (N_KC * DS4_IQ2_PAIR) + (warp & 1) * DS4_IQ2_TILE;
    smem_addr base = smem(stages);
    auto fill = [&](u32 s, u32 kc) {
        smem_addr tile = base + s * STAGE + (warp >> 1) * DS4_IQ2_PAIR + (warp & 1) * DS4_IQ2_TILE;
        warp_copy<DS4_IQ2_TILE / 16>(tile, w + kc * DS4_IQ2_PAIR);
        warp_copy<DS4_IQ2_TILE / 16>(tile + 2 * DS4_IQ2_TILE, w + kc * DS4_IQ2_PAIR + 2 * DS4_IQ2_TILE);
        tokens_stage<X_STRIDE>(base + s * STAGE + EXPERTS_MANY_WARPS / 2 * DS4_IQ2_PAIR, rows, kc * 512, *n_tokens);
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        fill(s, s);
        cp_commit();
    }
    float cg[NT][4], cu[NT][4];
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) cg[n][e] = cu[n][e] = 0.0f;
    const unsigned char* my_lut = lut + (lane & 7) * 4;
    u32 slot = 0;
#pragma unroll 1
    for (u32 kc = 0; kc < N_KC; kc++) {
        cp_wait<STAGES - 2>();
        __syncthreads();
        u32 next = kc + STAGES - 1;
        if (next < N_KC) fill(slot == 0 ? STAGES - 1 : slot - 1, next);
        cp_commit();
        const unsigned char* stage = stages + slot * STAGE;
        const unsigned char* tile = stage + (warp >> 1) * DS4_IQ2_PAIR + (warp & 1) * DS4_IQ2_TILE;
        smem_addr x = base + slot * STAGE + EXPERTS_MANY_WARPS / 2 * DS4_IQ2_PAIR + (lane & 7) * X_STRIDE + (lane >> 3) * 16;
        u32 dg[2], du[2];
        iq2_d64(tile, lane, dg);
        iq2_d64(tile + 2 * DS4_IQ2_TILE, lane, du);
#pragma unroll 1
        for (u32 half = 0; half < 2; half++, x += 256) {
            Iq2Half gate, up;
            gate.load(tile, lane, half);
            up.load(tile + 2 * DS4_IQ2_TILE, lane, half);
            gate_up_block<NT, 0, 0>(gate, up, dg, du, my_lut, x, cg, cu);
            gate_up_block<NT, 0, 1>(gate, up, dg, du, my_lut, x, cg, cu);
            gate_up_block<NT, 1, 0>(gate, up, dg, du, my_lut, x, cg, cu);
            gate_up_block<NT, 1, 1>(gate, up, dg, du, my_lut, x, cg, cu);
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    __syncthreads();
    expert_tile(p, t);
    list = p.lists + (u64)t.expert * p.n_rows + t.first;
    // Through shared memory to whole lines: [token][channel], in order 2.
    constexpr u32 CHANNELS = 16 * EXPERTS_MANY_WARPS, LINE = CHANNELS * 2 + 16;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            u32 token = 8 * n + 2 * q + (e & 1), channel = warp * 16 + g + 8 * (e >> 1);
            if (token < t.n) {
                float gate = fminf(cg[n][e] * (1.0f / 512), p.clamp), up = fminf(fmaxf(cu[n][e] * (1.0f / 512), -p.clamp), p.clamp);
                float h = p.weights[list[token]] * gate / (1.0f + __expf(-gate)) * up;
                u32 place = (channel & ~15u) + 8 * (channel & 1) + 2 * (channel >> 2 & 3) + (channel >> 1 & 1);
                *(u16*)(stages + token * LINE + place * 2) = f2h(clamp_h(h));
            }
        }
    __syncthreads();
    constexpr u32 PER_LINE = CHANNELS / 8;
    for (u32 i = tid; i < t.n * PER_LINE; i += THREADS) {
        u32 token = i / PER_LINE, chunk = i % PER_LINE;
        *(uint4*)(p.hidden + (u64)list[token] * HIDDEN + blockIdx.x * CHANNELS + chunk * 8) = *(const uint4*)(stages + token * LINE + chunk * 16);
    }
}

template <int NT, int R> __device__ __forceinline__ void down_block(const Q2kHalf* tiles, const u32 (*d)[2], smem_addr x, float (*c)[NT][4]) {
    u32 a[2][2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        tiles[i].step<R, 0>(d[i], a[i][0]);
        tiles[i].step<R, 1>(d[i], a[i][1]);
    }
#pragma unroll
    for (int n = 0; n < NT; n++) {
        u32 b[4];
        ldm4(b, x + n * 8 * X_STRIDE + R * 64);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            mma_f16(c[i][n], a[i][0][0], a[i][0][1], a[i][0][2], a[i][0][3], b[0], b[1]);
            mma_f16(c[i][n], a[i][1][0], a[i][1][1], a[i][1][2], a[i][1][3], b[2], b[3]);
        }
    }
}

template <int NT> __device__ __forceinline__ void down(const Experts& p, const ExpertTile& t) {
    DYNAMIC_SHARED(shared);
    u64* rows = (u64*)shared;
    unsigned char* stages = shared + EXPERTS_HEAD_BYTES;
    constexpr u32 STAGE = EXPERTS_DOWN_STAGE(TOKENS), N_KC = HIDDEN / 256;
    u32 tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
    const u32* list = p.lists + (u64)t.expert * p.n_rows + t.first;
    if (tid < TOKENS) rows[tid] = tid < t.n ? (u64)(p.hidden + (u64)list[tid] * HIDDEN) : 0;
    __syncthreads();
    const unsigned char* w = (const unsigned char*)p.down[t.expert] + ((u64)blockIdx.x * EXPERTS_MANY_WARPS + warp) * N_KC * DS4_Q2K_PAIR;
    smem_addr base = smem(stages);
    auto fill = [&](u32 s, u32 kc) {
        warp_copy<DS4_Q2K_PAIR / 16>(base + s * STAGE + warp * DS4_Q2K_PAIR, w + kc * DS4_Q2K_PAIR);
        tokens_stage<X_STRIDE>(base + s * STAGE + EXPERTS_MANY_WARPS * DS4_Q2K_PAIR, rows, kc * 512, t.n);
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        fill(s, s);
        cp_commit();
    }
    float c[2][NT][4];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) c[i][n][e] = 0.0f;
    u32 slot = 0;
#pragma unroll 1
    for (u32 kc = 0; kc < N_KC; kc++) {
        cp_wait<STAGES - 2>();
        __syncthreads();
        u32 next = kc + STAGES - 1;
        if (next < N_KC) fill(slot == 0 ? STAGES - 1 : slot - 1, next);
        cp_commit();
        const unsigned char* stage = stages + slot * STAGE;
        smem_addr x = base + slot * STAGE + EXPERTS_MANY_WARPS * DS4_Q2K_PAIR + (lane & 7) * X_STRIDE + (lane >> 3) * 16;
        const unsigned char* pair = stage + warp * DS4_Q2K_PAIR;
        u32 d[2][2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint2 dd = *(const uint2*)(pair + i * DS4_Q2K_TILE + DS4_Q2K_D + g * 8);
            d[i][0] = hmul2(dd.x, 0xc4005400u);
            d[i][1] = hmul2(dd.y, 0xc4005400u);
        }
#pragma unroll 1
        for (u32 half = 0; half < 2; half++, x += 256) {
            Q2kHalf tiles[2];
            tiles[0].load(pair, lane, half);
            tiles[1].load(pair + DS4_Q2K_TILE, lane, half);
            down_block<NT, 0>(tiles, d, x, c);
            down_block<NT, 1>(tiles, d, x, c);
            down_block<NT, 2>(tiles, d, x, c);
            down_block<NT, 3>(tiles, d, x, c);
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    __syncthreads();
    constexpr u32 CHANNELS = 32 * EXPERTS_MANY_WARPS, LINE = CHANNELS * 2 + 16;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u32 token = 8 * n + 2 * q + (e & 1), channel = warp * 32 + 16 * i + g + 8 * (e >> 1);
                if (token < t.n) *(u16*)(stages + token * LINE + channel * 2) = f2h(clamp_h(c[i][n][e] * (1.0f / 64)));
            }
    __syncthreads();
    constexpr u32 PER_LINE = CHANNELS / 8;
    for (u32 i = tid; i < t.n * PER_LINE; i += THREADS) {
        u32 token = i / PER_LINE, chunk = i % PER_LINE;
        *(uint4*)(p.part + (u64)list[token] * EMBD + blockIdx.x * CHANNELS + chunk * 8) = *(const uint4*)(stages + token * LINE + chunk * 16);
    }
}

} // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) experts_gate_up_many(const __grid_constant__ Experts p) {
    ExpertTile t;
    if (!expert_tile(p, t)) return;
    if (t.n <= 16) gate_up<2>(p);
    else if (t.n <= 32) gate_up<4>(p);
#if EXPERTS_MANY_TOKENS == 64
    else if (t.n <= 48) gate_up<6>(p);
    else gate_up<8>(p);
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) experts_down_many(const __grid_constant__ Experts p) {
    ExpertTile t;
    if (!expert_tile(p, t)) return;
    if (t.n <= 16) down<2>(p, t);
    else if (t.n <= 32) down<4>(p, t);
#if EXPERTS_MANY_TOKENS == 64
    else if (t.n <= 48) down<6>(p, t);
    else down<8>(p, t);
#endif
}

extern "C" __global__ void __launch_bounds__(256) experts_sum(const __grid_constant__ Experts p) {
    u32 r = blockIdx.x;
    if (p.slot[r] == PAD_SLOT) return;
#pragma unroll
    for (int i = 0; i < EMBD / 2048; i++) {
        u32 c = (threadIdx.x + 256 * i) * 8;
        float v[8];
        if (p.shared) {
            float4 a = *(const float4*)(p.shared + (u64)r * EMBD + c), b = *(const float4*)(p.shared + (u64)r * EMBD + c + 4);
            v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
        } else {
#pragma unroll
            for (int e = 0; e < 8; e++) v[e] = 0.0f;
        }
#pragma unroll
        for (int k = 0; k < USED; k++) {
            uint4 h = load_streamed(p.part + ((u64)r * USED + k) * EMBD + c);
            const u32 w[4] = {h.x, h.y, h.z, h.w};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                v[2 * e] += h2f((u16)w[e]);
                v[2 * e + 1] += h2f((u16)(w[e] >> 16));
            }
        }
        *(float4*)(p.y + (u64)r * EMBD + c) = make_float4(v[0], v[1], v[2], v[3]);
        *(float4*)(p.y + (u64)r * EMBD + c + 4) = make_float4(v[4], v[5], v[6], v[7]);
    }
}
