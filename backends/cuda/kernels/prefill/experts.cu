// Routed experts on tensor cores. Weights are the A operand, unpacked in registers from their records
// to halves; the tokens of one expert are the columns. What a quantised block's scale does not reach
// is exact: IQ2_XXS magnitudes and signs come from byte permutations, Q2_K codes from the mantissa of
// 1024 + code. Scales are rounded to halves, sums are f32.
#include "device.cuh"
#include "prefill.h"
#include "layout.cuh"
#include "iq2_grid.cuh"

#define N_EXPERTS 256
#define USED 6
#define EMBD 4096
#define HIDDEN 2048
#define THREADS (32 * EXPERTS_WARPS)
#define TOKENS EXPERTS_MANY_TOKENS
#define STAGES 2
#define X_STRIDE 576   // bytes of a token's 256 columns in shared memory; quads of 8 lanes cover all banks
#define H_STRIDE 544   // the same for 8-byte reads

#ifdef DS4_EMULATE
static const u32 iq2_grid[256] = DS4_IQ2_GRID;
#else
__device__ const u32 iq2_grid[256] = DS4_IQ2_GRID;
#endif

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

struct ExpertTile { u32 expert, first, n; };

__device__ __forceinline__ bool expert_tile(const Experts& p, ExpertTile& t) {
    if (blockIdx.y >= p.tiles[0]) return false;
    const u32* tile = p.tiles + 4 + 4 * blockIdx.y;
    t.expert = tile[0], t.first = tile[1], t.n = tile[2];
    return true;
}

// Two halves (2 s + 1, 2 s + 1) for the nibble at bits 0..3 of both 16-bit halves of `x`, shifted left
// by one beforehand.
__device__ __forceinline__ u32 odd_scale(u32 twice) { return hsub2((twice & 0x001e001eu) | 0x64016401u, 0x64006400u); }

// Eight weights of one grid entry, without scale: {8, 25, 43} and a sign, as four pairs of halves.
// GROUP is the position of the entry in its words (layout.cuh).
template <int GROUP> __device__ __forceinline__ void iq2_eight(u32 ids, u32 signs, const unsigned char* lut, u32* w) {
    u32 id = prmt(ids, 0, 0x4440 + GROUP);
    u32 shifted = GROUP < 3 ? signs << GROUP : signs >> 1;
    u32 select = *(const u32*)(lut + id * 32) ^ (shifted & 0x44444444u);
    u32 high = prmt(0x00514e48u, 0x00d1cec8u, select), low = prmt(0x00604000u, 0x00604000u, select);
    w[0] = prmt(low, high, 0x5140);
    w[1] = prmt(low, high, 0x7362);
    select >>= 16;
    high = prmt(0x00514e48u, 0x00d1cec8u, select), low = prmt(0x00604000u, 0x00604000u, select);
    w[2] = prmt(low, high, 0x5140);
    w[3] = prmt(low, high, 0x7362);
}

// Half (128 columns) of a 16 x 256 tile of IQ2_XXS as a lane sees it.
struct Iq2Half {
    uint2 ids, signs;
    u32 nibbles; // byte 2 q + h: blocks 2 q (low) and 2 q + 1 of row g + 8 h

    __device__ __forceinline__ void load(const unsigned char* tile, u32 lane, u32 half) {
        ids = *(const uint2*)(tile + lane * 16 + half * 8);
        signs = *(const uint2*)(tile + DS4_IQ2_SIGNS + lane * 16 + half * 8);
        nibbles = *(const u32*)(tile + DS4_IQ2_NIBBLES + (lane >> 2) * 8 + half * 4);
    }
    // 512 times the weights of the half's block 2 P + ODD: a[step][operand] of two m16n8k16 steps, whose
    // k are the lane's columns 8 t + (0, 1 | 2, 3) and (4, 5 | 6, 7). d64: 64 d of rows g and g + 8.
    template <int P, int ODD> __device__ __forceinline__ void block(const unsigned char* lut, const u32* d64, u32 (*a)[4]) const {
        u32 id = P == 0 ? ids.x : ids.y, sign = P == 0 ? signs.x : signs.y;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 w[4];
            if (h == 0) iq2_eight<2 * ODD>(id, sign, lut, w);
            else iq2_eight<2 * ODD + 1>(id, sign, lut, w);
            u32 both = prmt(nibbles, 0, (h == 0 ? 0x4040 : 0x4141) + P * 0x0202);
            u32 scale = hmul2(odd_scale(ODD ? both >> 3 : both << 1), d64[h]);
            a[0][h] = hmul2(w[0], scale);
            a[0][2 + h] = hmul2(w[1], scale);
            a[1][h] = hmul2(w[2], scale);
            a[1][2 + h] = hmul2(w[3], scale);
        }
    }
};

// 64 d of a tile's rows g and g + 8, each in both halves.
__device__ __forceinline__ void iq2_d64(const unsigned char* tile, u32 lane, u32* d64) {
    u32 d = *(const u32*)(tile + DS4_IQ2_D + (lane >> 2) * 4);
    d64[0] = hmul2(prmt(d, d, 0x1010), 0x54005400u);
    d64[1] = hmul2(prmt(d, d, 0x3232), 0x54005400u);
}

template <int NT, int P, int ODD> __device__ __forceinline__ void gate_up_block(const Iq2Half& gate, const Iq2Half& up, const u32* dg, const u32* du, const unsigned char* lut, const unsigned char* x, float (*cg)[4], float (*cu)[4]) {
    u32 ag[2][4], au[2][4];
    gate.block<P, ODD>(lut, dg, ag);
    up.block<P, ODD>(lut, du, au);
#pragma unroll
    for (int n = 0; n < NT; n++) {
        uint4 b = *(const uint4*)(x + n * 8 * X_STRIDE + (2 * P + ODD) * 64);
        mma_f16(cg[n], ag[0][0], ag[0][1], ag[0][2], ag[0][3], b.x, b.y);
        mma_f16(cu[n], au[0][0], au[0][1], au[0][2], au[0][3], b.x, b.y);
        mma_f16(cg[n], ag[1][0], ag[1][1], ag[1][2], ag[1][3], b.z, b.w);
        mma_f16(cu[n], au[1][0], au[1][1], au[1][2], au[1][3], b.z, b.w);
    }
}

// Copies 256 columns (512 bytes from `column_bytes` on) of the tile's tokens.
template <int STRIDE> __device__ __forceinline__ void tokens_stage(smem_addr x, const u64* rows, u32 column_bytes, u32 n_tokens) {
    u32 chunk = threadIdx.x & 31;
    for (u32 token = threadIdx.x >> 5; token < n_tokens; token += EXPERTS_WARPS)
        cp16(x + token * STRIDE + chunk * 16, (const unsigned char*)rows[token] + column_bytes + chunk * 16, true);
}

// A warp copies `N` chunks of 16 bytes.
template <int N> __device__ __forceinline__ void warp_copy(smem_addr to, const unsigned char* from) {
    u32 lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < (N + 31) / 32; i++)
        if (32 * i + 32 <= N || lane < N % 32) cp16(to + (32 * i + lane) * 16, from + (32 * i + lane) * 16, true);
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
    const unsigned char* w = (const unsigned char*)p.gate_up[t.expert] + (u64)blockIdx.x * (EXPERTS_WARPS / 2) * N_KC * DS4_IQ2_PAIR;
    // A warp copies its own tiles: rows 16 (warp % 2) of a pair, of gate and of up.
    w += (warp >> 1) * (N_KC * DS4_IQ2_PAIR) + (warp & 1) * DS4_IQ2_TILE;
    smem_addr base = smem(stages);
    auto fill = [&](u32 s, u32 kc) {
        smem_addr tile = base + s * STAGE + (warp >> 1) * DS4_IQ2_PAIR + (warp & 1) * DS4_IQ2_TILE;
        warp_copy<DS4_IQ2_TILE / 16>(tile, w + kc * DS4_IQ2_PAIR);
        warp_copy<DS4_IQ2_TILE / 16>(tile + 2 * DS4_IQ2_TILE, w + kc * DS4_IQ2_PAIR + 2 * DS4_IQ2_TILE);
        tokens_stage<X_STRIDE>(base + s * STAGE + EXPERTS_WARPS / 2 * DS4_IQ2_PAIR, rows, kc * 512, *n_tokens);
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
        const unsigned char* x = stage + EXPERTS_WARPS / 2 * DS4_IQ2_PAIR + g * X_STRIDE + q * 16;
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
    // Through shared memory to whole lines: [token][channel], every 4 channels in the order 0, 2, 1, 3.
    constexpr u32 CHANNELS = 16 * EXPERTS_WARPS, LINE = CHANNELS * 2 + 16;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            u32 token = 8 * n + 2 * q + (e & 1), channel = warp * 16 + g + 8 * (e >> 1);
            if (token < t.n) {
                float gate = fminf(cg[n][e] * (1.0f / 512), p.clamp), up = fminf(fmaxf(cu[n][e] * (1.0f / 512), -p.clamp), p.clamp);
                float h = p.weights[list[token]] * gate / (1.0f + __expf(-gate)) * up;
                u32 place = (channel & ~3u) | (channel & 1) << 1 | (channel >> 1 & 1);
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

// Half (128 columns) of a 16 x 256 tile of Q2_K as a lane sees it.
struct Q2kHalf {
    uint4 codes;
    uint4 scales[2]; // of rows g (x, z) and g + 8 (y, w): sub-blocks r = 0, 1 | 2, 3; byte 2 n + s
    u32 bytes;       // selector of byte 2 n, for a permutation that spreads it over two halves

    __device__ __forceinline__ void load(const unsigned char* tile, u32 lane, u32 half) {
        codes = *(const uint4*)(tile + half * 512 + lane * 16);
        scales[0] = *(const uint4*)(tile + DS4_Q2K_SCALES + (lane >> 2) * 32);
        scales[1] = *(const uint4*)(tile + DS4_Q2K_SCALES + (lane >> 2) * 32 + 16);
        bytes = 0x4040 + half * 0x0202;
    }
    // 64 times the weights of the half's 16 columns 32 R + 16 S ..: the lane's k are columns
    // 4 t + (0, 2 | 1, 3). d: (64 d, -4 dmin) of rows g and g + 8.
    template <int R, int S> __device__ __forceinline__ void step(const u32* d, u32* a) const {
        const uint4& sc = scales[R >> 1];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 word = (R & 1) ? (h ? sc.w : sc.z) : (h ? sc.y : sc.x);
            u32 both = prmt(word, 0, bytes + S * 0x0101);
            u32 unit = hsub2((both & 0x00f0000fu) | 0x64006400u, 0x64006400u); // (scale, 16 min)
            // d / 4^R, exact: only the low half's exponent changes.
            constexpr u32 QUARTERS = R == 0 ? 0x3c003c00u : R == 1 ? 0x3c003400u : R == 2 ? 0x3c002c00u : 0x3c002400u;
            u32 dm = hmul2(R == 0 ? unit : hmul2(unit, QUARTERS), d[h]);
            u32 scale = prmt(dm, dm, 0x1010), min = prmt(dm, dm, 0x3232);
            u32 code = S ? (h ? codes.w : codes.z) : (h ? codes.y : codes.x);
            constexpr u32 MASK = 0x00030003u << (2 * R);
            a[h] = hfma2(hsub2((code & MASK) | 0x64006400u, 0x64006400u), scale, min);
            a[2 + h] = hfma2(hsub2((code >> 8 & MASK) | 0x64006400u, 0x64006400u), scale, min);
        }
    }
};

template <int NT, int R, int S> __device__ __forceinline__ void down_step(const Q2kHalf* tiles, const u32 (*d)[2], const unsigned char* x, float (*c)[NT][4]) {
    u32 a[2][4];
    tiles[0].step<R, S>(d[0], a[0]);
    tiles[1].step<R, S>(d[1], a[1]);
#pragma unroll
    for (int n = 0; n < NT; n++) {
        uint2 b = *(const uint2*)(x + n * 8 * H_STRIDE + (2 * R + S) * 32);
        mma_f16(c[0][n], a[0][0], a[0][1], a[0][2], a[0][3], b.x, b.y);
        mma_f16(c[1][n], a[1][0], a[1][1], a[1][2], a[1][3], b.x, b.y);
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
    const unsigned char* w = (const unsigned char*)p.down[t.expert] + ((u64)blockIdx.x * EXPERTS_WARPS + warp) * N_KC * DS4_Q2K_PAIR;
    smem_addr base = smem(stages);
    auto fill = [&](u32 s, u32 kc) {
        warp_copy<DS4_Q2K_PAIR / 16>(base + s * STAGE + warp * DS4_Q2K_PAIR, w + kc * DS4_Q2K_PAIR);
        tokens_stage<H_STRIDE>(base + s * STAGE + EXPERTS_WARPS * DS4_Q2K_PAIR, rows, kc * 512, t.n);
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
        const unsigned char* x = stage + EXPERTS_WARPS * DS4_Q2K_PAIR + g * H_STRIDE + q * 8;
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
            down_step<NT, 0, 0>(tiles, d, x, c);
            down_step<NT, 0, 1>(tiles, d, x, c);
            down_step<NT, 1, 0>(tiles, d, x, c);
            down_step<NT, 1, 1>(tiles, d, x, c);
            down_step<NT, 2, 0>(tiles, d, x, c);
            down_step<NT, 2, 1>(tiles, d, x, c);
            down_step<NT, 3, 0>(tiles, d, x, c);
            down_step<NT, 3, 1>(tiles, d, x, c);
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    __syncthreads();
    constexpr u32 CHANNELS = 32 * EXPERTS_WARPS, LINE = CHANNELS * 2 + 16;
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
    else if (t.n <= 56) gate_up<7>(p);
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
    else if (t.n <= 56) down<7>(p, t);
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
