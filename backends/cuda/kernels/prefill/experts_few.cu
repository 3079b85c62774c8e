// Routed experts for a few tokens each, where reading the weights is the time: integer tensor cores on
// weights as bytes. Activations are 15-bit integers in two bytes (128 high + low), one scale for 256
// of them, so products are as good as with halves; two integer products cost less than making halves
// of the weights.
#include "prefill/device.cuh"
#include "prefill/prefill.h"
#include "prefill/experts.cuh"

#if DS4_SHARED_KB > 99

#define USED 6
#define EMBD 4096
#define HIDDEN 2048
#define THREADS (32 * EXPERTS_WARPS)
#define X_STRIDE 576 // bytes of a token's 256 columns in shared memory: the 8 lanes of a quarter-warp hit all banks
#define TOKENS EXPERTS_FEW_TOKENS
#define STAGES EXPERTS_FEW_STAGES

namespace {

// 15 bits of x / scale as two bytes.
__device__ __forceinline__ void two_bytes(float x, float inverse, int& high, int& low) {
    int v = (int)rintf(x * inverse);
    high = (v + 64) >> 7;
    low = v - 128 * high;
}

// Eight weights of one grid entry as signed bytes; `sign` as layout.cuh says.
template <int GROUP> __device__ __forceinline__ void iq2_bytes(u32 ids, u32 signs, const unsigned char* lut, u32& first, u32& second) {
    u32 id = prmt(ids, 0, 0x4440 + GROUP);
    u32 shifted = GROUP < 3 ? signs << GROUP : signs >> 1;
    u32 select = *(const u32*)(lut + id * 128) ^ (shifted & 0x44444444u);
    first = prmt(0x002b1908u, 0x00d5e7f8u, select);
    second = prmt(0x002b1908u, 0x00d5e7f8u, select >> 16);
}

struct Sums { int high[4], low[4]; };

template <int NT> __device__ __forceinline__ void add_block(Sums* sums, const u32* a, int scale0, int scale1, const uint4* b) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
        int h[4], l[4];
        mma_s8_new(h, a[0], a[1], a[2], a[3], b[n].x, b[n].y);
        mma_s8_new(l, a[0], a[1], a[2], a[3], b[n].z, b[n].w);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            sums[n].high[e] += (e < 2 ? scale0 : scale1) * h[e];
            sums[n].low[e] += (e < 2 ? scale0 : scale1) * l[e];
        }
    }
}

// Blocks 2 P and 2 P + 1 of gate or up.
template <int NT, int ODD> __device__ __forceinline__ void iq2_block(Sums* sums, u32 ids, u32 signs, u32 nibbles, const unsigned char* lut, const uint4* b) {
    u32 a[4];
    iq2_bytes<2 * ODD>(ids, signs, lut, a[0], a[2]);
    iq2_bytes<2 * ODD + 1>(ids, signs, lut, a[1], a[3]);
    int s0 = 2 * (int)(nibbles >> (4 * ODD) & 15) + 1, s1 = 2 * (int)(nibbles >> (8 + 4 * ODD) & 15) + 1;
    add_block<NT>(sums, a, s0, s1, b);
}

// NT: tiles of 8 tokens; 0: two tokens at most, whose high and low bytes and neighbouring blocks are the
// 8 columns of one product.
template <int NT> __device__ __forceinline__ void gate_up_few(const Experts& p, const ExpertTile& t) {
    DYNAMIC_SHARED(shared);
    u64* rows = (u64*)shared;
    float* scales = (float*)(shared + 8 * TOKENS); // [16 column blocks][TOKENS]
    unsigned char* lut = shared + EXPERTS_FEW_HEAD;
    unsigned char* stages = lut + EXPERTS_FEW_GRID;
    constexpr u32 W_BYTES = EXPERTS_WARPS / 2 * DS4_IQ2_PAIR, STAGE = W_BYTES + TOKENS * X_STRIDE, N_KC = EMBD / 256;
    u32 tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
    const u32* list = p.lists + (u64)t.expert * p.n_rows + t.first;
    // A warp copies its own tiles: rows 16 (warp % 2) of a pair, of gate and of up.
    const unsigned char* w = (const unsigned char*)p.gate_up[t.expert] + ((u64)blockIdx.x * (EXPERTS_WARPS / 2) + (warp >> 1)) * N_KC * DS4_IQ2_PAIR + (warp & 1) * DS4_IQ2_TILE;
    smem_addr base = smem(stages);
    auto fill_weights = [&](u32 s, u32 kc) {
        smem_addr tile = base + s * STAGE + (warp >> 1) * DS4_IQ2_PAIR + (warp & 1) * DS4_IQ2_TILE;
        warp_copy<DS4_IQ2_TILE / 16>(tile, w + kc * DS4_IQ2_PAIR);
        warp_copy<DS4_IQ2_TILE / 16>(tile + 2 * DS4_IQ2_TILE, w + kc * DS4_IQ2_PAIR + 2 * DS4_IQ2_TILE);
    };
    auto fill_tokens = [&](u32 s, u32 kc) {
        for (u32 token = warp; token < t.n; token += EXPERTS_WARPS)
            cp16(base + s * STAGE + W_BYTES + token * X_STRIDE + lane * 16, (const unsigned char*)rows[token] + kc * 512 + lane * 16, true);
        cp_commit();
    };
    // Weights are on their way while the block prepares.
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) fill_weights(s, s);
    if (tid < TOKENS) rows[tid] = tid < t.n ? (u64)(p.x_codes + (u64)(list[tid] / USED) * 2 * EMBD) : 0;
    if (tid < EXPERTS_FEW_ZEROS / 4) ((u32*)(shared + EXPERTS_FEW_ZEROS_AT))[tid] = 0;
    for (u32 i = tid; i < N_KC * TOKENS; i += THREADS) scales[i] = i % TOKENS < t.n ? p.x_scale[(u64)(list[i % TOKENS] / USED) * N_KC + i / TOKENS] : 0.0f;
    // The grid in 32 copies side by side, one for each lane: a warp writes 16 words' copies.
#pragma unroll
    for (u32 i = 0; i < 256 / EXPERTS_WARPS; i++) {
        u32 word = iq2_grid[i * EXPERTS_WARPS + warp];
        ((u32*)lut)[(i * EXPERTS_WARPS + warp) * 32 + lane] = word;
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) fill_tokens(s, s);
    constexpr int N = NT == 0 ? 1 : NT;
    float c[2][N][4]; // NT = 0: [gate or up][0][row g, g + 8]
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) c[i][n][e] = 0.0f;
    const unsigned char* my_lut = lut + lane * 4;
    u32 slot = 0;
#pragma unroll 1
    for (u32 kc = 0; kc < N_KC; kc++) {
        cp_wait<STAGES - 2>();
        __syncthreads();
        u32 next = slot == 0 ? STAGES - 1 : slot - 1;
        if (kc + STAGES - 1 < N_KC) {
            fill_weights(next, kc + STAGES - 1);
            fill_tokens(next, kc + STAGES - 1);
        } else {
            cp_commit();
        }
        const unsigned char* stage = stages + slot * STAGE;
        const unsigned char* tile = stage + (warp >> 1) * DS4_IQ2_PAIR + (warp & 1) * DS4_IQ2_TILE;
        const unsigned char* x = stage + W_BYTES + g * X_STRIDE + q * 16;
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        if constexpr (NT == 0) {
            // Column g of B: high or low byte (g / 4), token g / 2 % 2, even or odd block (g % 2); where the
            // block is the other one, zeros. The lane's column of the result is 2 q: byte q / 2, token q % 2.
            const unsigned char* mine = stage + W_BYTES + (g >> 1 & 1) * X_STRIDE + q * 16 + (g >> 2) * 8;
            const unsigned char* even = g & 1 ? shared + EXPERTS_FEW_ZEROS_AT : mine;
            const unsigned char* odd = g & 1 ? mine : shared + EXPERTS_FEW_ZEROS_AT;
            float scale = scales[kc * TOKENS + (q & 1)] * (q & 2 ? 1.0f : 128.0f);
#pragma unroll 1
            for (u32 half = 0; half < 2; half++, even += 256, odd += 256) {
                uint2 ids[2], signs[2];
                u32 nibbles[2];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const unsigned char* at = tile + i * 2 * DS4_IQ2_TILE;
                    ids[i] = *(const uint2*)(at + lane * 16 + half * 8);
                    signs[i] = *(const uint2*)(at + DS4_IQ2_SIGNS + lane * 16 + half * 8);
                    nibbles[i] = *(const u32*)(at + DS4_IQ2_NIBBLES + g * 8 + half * 4);
                }
                int sums[2][2] = {{0, 0}, {0, 0}};
#pragma unroll
                for (int b = 0; b < 2; b++) {
                    uint2 be = *(const uint2*)(even + b * 128), bo = *(const uint2*)(odd + b * 128 + 64);
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        u32 id = b ? ids[i].y : ids[i].x, sign = b ? signs[i].y : signs[i].x, nibble = nibbles[i] >> (16 * b);
                        u32 a[4];
                        int v[4];
                        iq2_bytes<0>(id, sign, my_lut, a[0], a[2]);
                        iq2_bytes<1>(id, sign, my_lut, a[1], a[3]);
                        mma_s8_new(v, a[0], a[1], a[2], a[3], be.x, be.y);
                        iq2_bytes<2>(id, sign, my_lut, a[0], a[2]);
                        iq2_bytes<3>(id, sign, my_lut, a[1], a[3]);
                        mma_s8(v, a[0], a[1], a[2], a[3], bo.x, bo.y);
                        sums[i][0] += (2 * (int)(nibble & 15) + 1) * v[0] + (2 * (int)(nibble >> 4 & 15) + 1) * v[1];
                        sums[i][1] += (2 * (int)(nibble >> 8 & 15) + 1) * v[2] + (2 * (int)(nibble >> 12 & 15) + 1) * v[3];
                    }
                }
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    u32 d = *(const u32*)(tile + i * 2 * DS4_IQ2_TILE + DS4_IQ2_D + g * 4);
                    c[i][0][0] += h2f((u16)d) * scale * (float)sums[i][0];
                    c[i][0][1] += h2f((u16)(d >> 16)) * scale * (float)sums[i][1];
                }
            }
        } else {
#pragma unroll 1
        for (u32 half = 0; half < 2; half++, x += 256) {
            // Sums of half a record stay far below 2^31: 128 * 43 * 127 * 31.
            Sums sums[2][NT];
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) sums[i][n].high[e] = sums[i][n].low[e] = 0;
            uint2 ids[2], signs[2];
            u32 nibbles[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const unsigned char* at = tile + i * 2 * DS4_IQ2_TILE;
                ids[i] = *(const uint2*)(at + lane * 16 + half * 8);
                signs[i] = *(const uint2*)(at + DS4_IQ2_SIGNS + lane * 16 + half * 8);
                nibbles[i] = *(const u32*)(at + DS4_IQ2_NIBBLES + g * 8 + half * 4);
            }
#define FEW_BLOCK(P, ODD)                                                                                  \
    {                                                                                                      \
        uint4 b[NT];                                                                                       \
        for (int n = 0; n < NT; n++) b[n] = *(const uint4*)(x + n * 8 * X_STRIDE + (2 * P + ODD) * 64);    \
        iq2_block<NT, ODD>(sums[0], P ? ids[0].y : ids[0].x, P ? signs[0].y : signs[0].x, nibbles[0] >> (16 * P), my_lut, b); \
        iq2_block<NT, ODD>(sums[1], P ? ids[1].y : ids[1].x, P ? signs[1].y : signs[1].x, nibbles[1] >> (16 * P), my_lut, b); \
    }
            FEW_BLOCK(0, 0)
            FEW_BLOCK(0, 1)
            FEW_BLOCK(1, 0)
            FEW_BLOCK(1, 1)
#undef FEW_BLOCK
#pragma unroll
            for (int i = 0; i < 2; i++) {
                u32 d = *(const u32*)(tile + i * 2 * DS4_IQ2_TILE + DS4_IQ2_D + g * 4);
                float d0 = h2f((u16)d), d1 = h2f((u16)(d >> 16));
#pragma unroll
                for (int n = 0; n < NT; n++) {
                    float2 s = *(const float2*)(scales + kc * TOKENS + 8 * n + 2 * q);
#pragma unroll
                    for (int e = 0; e < 4; e++) c[i][n][e] += (e < 2 ? d0 : d1) * (e & 1 ? s.y : s.x) * (128.0f * (float)sums[i][n].high[e] + (float)sums[i][n].low[e]);
                }
            }
        }
        }
    }
    __syncthreads();
    // The block's 256 channels of a token share a scale: through shared memory, then a warp a token.
    constexpr u32 CHANNELS = 16 * EXPERTS_WARPS, LINE = CHANNELS + 4;
    float* lines = (float*)stages;
    auto put = [&](u32 token, u32 channel, float gate, float up) {
        if (token >= t.n) return;
        gate = fminf(gate * 0.125f, p.clamp), up = fminf(fmaxf(up * 0.125f, -p.clamp), p.clamp);
        lines[token * LINE + channel] = p.weights[list[token]] * gate / (1.0f + __expf(-gate)) * up;
    };
    if constexpr (NT == 0) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float gate = c[0][0][h] + __shfl_xor_sync(FULL_WARP, c[0][0][h], 2), up = c[1][0][h] + __shfl_xor_sync(FULL_WARP, c[1][0][h], 2);
            if (q < 2) put(q, warp * 16 + g + 8 * h, gate, up);
        }
    } else {
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) put(8 * n + 2 * q + (e & 1), warp * 16 + g + 8 * (e >> 1), c[0][n][e], c[1][n][e]);
    }
    __syncthreads();
    for (u32 i = warp; i < t.n * (CHANNELS / 256); i += EXPERTS_WARPS) {
        u32 token = i / (CHANNELS / 256), part = i % (CHANNELS / 256), kc = blockIdx.x * (CHANNELS / 256) + part;
        // Lane: 8 channels 8 l ..; block of 32 l / 4, sixteen (l / 2) % 2, first of its quads 2 (l % 2).
        const float* line = lines + token * LINE + part * 256 + 8 * lane;
        float v[8], most = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = line[j], most = fmaxf(most, fabsf(v[j]));
#pragma unroll
        for (int o = 16; o; o >>= 1) most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, o));
        float scale = most * (1.0f / 16256), inverse = most > 0.0f ? 16256.0f / most : 0.0f, sum = 0.0f;
        u32 high[2] = {0, 0}, low[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int h, l;
            two_bytes(v[j], inverse, h, l);
            high[j >> 2] |= (u32)(h & 255) << (8 * (j & 3));
            low[j >> 2] |= (u32)(l & 255) << (8 * (j & 3));
            sum += (float)(128 * h + l);
        }
        sum += __shfl_xor_sync(FULL_WARP, sum, 1);
        u32 pair = list[token];
        // A quad of 4 columns: 16 bytes of a block: high of both sixteens, low of both.
        u32* to = (u32*)((unsigned char*)p.hidden + (u64)pair * 2 * HIDDEN + kc * 512 + (lane >> 2) * 64);
        u32 s = lane >> 1 & 1, quad = 2 * (lane & 1);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            to[(quad + j) * 4 + s] = high[j];
            to[(quad + j) * 4 + 2 + s] = low[j];
        }
        if ((lane & 1) == 0) p.hidden_sums[(u64)pair * (HIDDEN / 16) + kc * 16 + lane / 2] = f2h(clamp_h(sum * scale));
        if (lane == 0) p.hidden_scale[(u64)pair * (HIDDEN / 256) + kc] = scale;
    }
}

// Sixteen columns of two tiles: codes times 4^R, scales made up for by 4^(3 - R).
template <int NT, int R> __device__ __forceinline__ void q2k_block(Sums* sums, const uint4& codes, u32 word0, u32 word1, u32 shift, const uint4* b) {
    constexpr u32 MASK = 0x03030303u << (2 * R);
    u32 a0 = codes.x & MASK, a1 = codes.y & MASK, a2 = codes.z & MASK, a3 = codes.w & MASK;
#pragma unroll
    for (int s = 0; s < 2; s++) {
        int s0 = (int)((word0 >> (shift + 8 * s)) & 15) << (6 - 2 * R), s1 = (int)((word1 >> (shift + 8 * s)) & 15) << (6 - 2 * R);
#pragma unroll
        for (int n = 0; n < NT; n++) {
            int h[4], l[4];
            mma_u8s8_new(h, a0, a1, a2, a3, s ? 0 : b[n].x, s ? b[n].y : 0);
            mma_u8s8_new(l, a0, a1, a2, a3, s ? 0 : b[n].z, s ? b[n].w : 0);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                sums[n].high[e] += (e < 2 ? s0 : s1) * h[e];
                sums[n].low[e] += (e < 2 ? s0 : s1) * l[e];
            }
        }
    }
}

// The high nibbles of four bytes as two pairs of halves.
__device__ __forceinline__ void mins(u32 word, u32& first, u32& second) {
    u32 m = word >> 4 & 0x0f0f0f0fu;
    first = hsub2(prmt(m, 0x64646464u, 0x4140), 0x64006400u);
    second = hsub2(prmt(m, 0x64646464u, 0x4342), 0x64006400u);
}

template <int NT> __device__ __forceinline__ void down_few(const Experts& p, const ExpertTile& t) {
    DYNAMIC_SHARED(shared);
    u64* rows = (u64*)shared;
    float* scales = (float*)(shared + 8 * TOKENS);                     // [8][TOKENS]
    unsigned char* sums_s = shared + EXPERTS_FEW_HEAD;                 // halves [TOKENS][128], 272 bytes a token
    unsigned char* stages = sums_s + EXPERTS_FEW_SUMS;
    constexpr u32 W_BYTES = EXPERTS_WARPS * DS4_Q2K_PAIR, STAGE = W_BYTES + TOKENS * X_STRIDE, N_KC = HIDDEN / 256;
    u32 tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
    const u32* list = p.lists + (u64)t.expert * p.n_rows + t.first;
    const unsigned char* w = (const unsigned char*)p.down[t.expert] + ((u64)blockIdx.x * EXPERTS_WARPS + warp) * N_KC * DS4_Q2K_PAIR;
    smem_addr base = smem(stages);
    auto fill_weights = [&](u32 s, u32 kc) { warp_copy<DS4_Q2K_PAIR / 16>(base + s * STAGE + warp * DS4_Q2K_PAIR, w + kc * DS4_Q2K_PAIR); };
    auto fill_tokens = [&](u32 s, u32 kc) {
        for (u32 token = warp; token < t.n; token += EXPERTS_WARPS)
            cp16(base + s * STAGE + W_BYTES + token * X_STRIDE + lane * 16, (const unsigned char*)rows[token] + kc * 512 + lane * 16, true);
        cp_commit();
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) fill_weights(s, s);
    if (tid < TOKENS) rows[tid] = tid < t.n ? (u64)((const unsigned char*)p.hidden + (u64)list[tid] * 2 * HIDDEN) : 0;
    for (u32 i = tid; i < N_KC * TOKENS; i += THREADS) scales[i] = i % TOKENS < t.n ? p.hidden_scale[(u64)list[i % TOKENS] * N_KC + i / TOKENS] : 0.0f;
    for (u32 i = tid; i < TOKENS * 16; i += THREADS) {
        u32 token = i >> 4, chunk = i & 15;
        *(uint4*)(sums_s + token * 272 + chunk * 16) = token < t.n ? *(const uint4*)(p.hidden_sums + (u64)list[token] * (HIDDEN / 16) + chunk * 8) : make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) fill_tokens(s, s);
    constexpr int N = NT == 0 ? 1 : NT;
    float c[2][N][4]; // NT = 0: [tile][0][rows g, g + 8]
    float less[2][4];  // NT = 0: what the mins take away, of rows g, g + 8 and the tokens 2 q and 2 q + 1
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) c[i][n][e] = less[i][e] = 0.0f;
    u32 slot = 0;
#pragma unroll 1
    for (u32 kc = 0; kc < N_KC; kc++) {
        cp_wait<STAGES - 2>();
        __syncthreads();
        u32 next = slot == 0 ? STAGES - 1 : slot - 1;
        if (kc + STAGES - 1 < N_KC) {
            fill_weights(next, kc + STAGES - 1);
            fill_tokens(next, kc + STAGES - 1);
        } else {
            cp_commit();
        }
        const unsigned char* stage = stages + slot * STAGE;
        const unsigned char* x = stage + W_BYTES + g * X_STRIDE + q * 16;
        slot = slot + 1 == STAGES ? 0 : slot + 1;
        if constexpr (NT == 0) {
            // Column g of B: byte g / 4, token g / 2 % 2, sixteen g % 2 of a block; the lane's columns of the
            // result are both sixteens of byte q / 2, token q % 2.
            const unsigned char* mine = stage + W_BYTES + (g >> 1 & 1) * X_STRIDE + q * 16 + (g >> 2) * 8 + (g & 1) * 4;
            u32 first = g & 1 ? 0 : FULL_WARP;
            const unsigned char* pair = stage + warp * DS4_Q2K_PAIR;
            int sums[2][2] = {{0, 0}, {0, 0}};
#pragma unroll 1
            for (u32 half = 0; half < 2; half++, mine += 256) {
                uint4 codes[2], w01[2], w23[2];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    codes[i] = *(const uint4*)(pair + i * DS4_Q2K_TILE + half * 512 + lane * 16);
                    w01[i] = *(const uint4*)(pair + i * DS4_Q2K_TILE + DS4_Q2K_SCALES + g * 32);
                    w23[i] = *(const uint4*)(pair + i * DS4_Q2K_TILE + DS4_Q2K_SCALES + g * 32 + 16);
                }
                u32 shift = 16 * half;
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    u32 v = *(const u32*)(mine + r * 64), b0 = v & first, b1 = v & ~first;
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const u32 mask = 0x03030303u << (2 * r);
                        u32 s0 = (r == 0 ? w01[i].x : r == 1 ? w01[i].z : r == 2 ? w23[i].x : w23[i].z) >> shift;
                        u32 s1 = (r == 0 ? w01[i].y : r == 1 ? w01[i].w : r == 2 ? w23[i].y : w23[i].w) >> shift;
                        int o[4];
                        mma_u8s8_new(o, codes[i].x & mask, codes[i].y & mask, codes[i].z & mask, codes[i].w & mask, b0, b1);
                        sums[i][0] += ((int)(s0 & 15) * o[0] + (int)(s0 >> 8 & 15) * o[1]) * (1 << (6 - 2 * r));
                        sums[i][1] += ((int)(s1 & 15) * o[2] + (int)(s1 >> 8 & 15) * o[3]) * (1 << (6 - 2 * r));
                    }
                }
            }
            float scale = scales[kc * TOKENS + (q & 1)] * (q & 2 ? 1.0f / 64 : 2.0f);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const unsigned char* tile = pair + i * DS4_Q2K_TILE;
                uint2 dd = *(const uint2*)(tile + DS4_Q2K_D + g * 8), words = *(const uint2*)(tile + DS4_Q2K_SCALES + lane * 8);
                u32 m[4];
                mins(words.x, m[0], m[2]);
                mins(words.y, m[1], m[3]);
                const unsigned char* of = sums_s + g * 272 + kc * 32 + q * 4;
                float low[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                mma_f16(low, m[0], m[1], m[2], m[3], *(const u32*)of, *(const u32*)(of + 16));
                c[i][0][0] += h2f((u16)dd.x) * scale * (float)sums[i][0];
                c[i][0][1] += h2f((u16)dd.y) * scale * (float)sums[i][1];
#pragma unroll
                for (int e = 0; e < 4; e++) less[i][e] += h2f((u16)((e < 2 ? dd.x : dd.y) >> 16)) * low[e];
            }
        } else {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const unsigned char* tile = stage + warp * DS4_Q2K_PAIR + i * DS4_Q2K_TILE;
            // Words of rows g (even) and g + 8 (odd) for r = 0 .. 4; byte 2 n + s.
            uint4 w01 = *(const uint4*)(tile + DS4_Q2K_SCALES + g * 32), w23 = *(const uint4*)(tile + DS4_Q2K_SCALES + g * 32 + 16);
            Sums sums[NT];
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums[n].high[e] = sums[n].low[e] = 0;
#pragma unroll 1
            for (u32 half = 0; half < 2; half++) {
                uint4 codes = *(const uint4*)(tile + half * 512 + lane * 16);
                u32 shift = 16 * half;
                uint4 b[NT];
#define FEW_LOAD(R) for (int n = 0; n < NT; n++) b[n] = *(const uint4*)(x + n * 8 * X_STRIDE + (4 * half + R) * 64);
                FEW_LOAD(0)
                q2k_block<NT, 0>(sums, codes, w01.x, w01.y, shift, b);
                FEW_LOAD(1)
                q2k_block<NT, 1>(sums, codes, w01.z, w01.w, shift, b);
                FEW_LOAD(2)
                q2k_block<NT, 2>(sums, codes, w23.x, w23.y, shift, b);
                FEW_LOAD(3)
                q2k_block<NT, 3>(sums, codes, w23.z, w23.w, shift, b);
#undef FEW_LOAD
            }
            uint2 dd = *(const uint2*)(tile + DS4_Q2K_D + g * 8);
            uint2 mine = *(const uint2*)(tile + DS4_Q2K_SCALES + lane * 8);
            u32 m[4];
            mins(mine.x, m[0], m[2]);
            mins(mine.y, m[1], m[3]);
            float d0 = h2f((u16)dd.x) * (1.0f / 64), d1 = h2f((u16)dd.y) * (1.0f / 64), m0 = h2f((u16)(dd.x >> 16)), m1 = h2f((u16)(dd.y >> 16));
#pragma unroll
            for (int n = 0; n < NT; n++) {
                const unsigned char* of = sums_s + (8 * n + g) * 272 + kc * 32 + q * 4;
                float low[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                mma_f16(low, m[0], m[1], m[2], m[3], *(const u32*)of, *(const u32*)(of + 16));
                float2 s = *(const float2*)(scales + kc * TOKENS + 8 * n + 2 * q);
#pragma unroll
                for (int e = 0; e < 4; e++)
                    c[i][n][e] += (e < 2 ? d0 : d1) * (e & 1 ? s.y : s.x) * (128.0f * (float)sums[n].high[e] + (float)sums[n].low[e]) - (e < 2 ? m0 : m1) * low[e];
            }
        }
        }
    }
    __syncthreads();
    constexpr u32 CHANNELS = 32 * EXPERTS_WARPS, LINE = CHANNELS * 2 + 16;
    auto put = [&](u32 token, u32 channel, float v) {
        if (token < t.n) *(u16*)(stages + token * LINE + channel * 2) = f2h(clamp_h(v));
    };
    if constexpr (NT == 0) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                // The mins of both tokens are in the lane of columns 0 and 1.
                float v = c[i][0][h] + __shfl_xor_sync(FULL_WARP, c[i][0][h], 2);
                float m0 = __shfl_sync(FULL_WARP, less[i][2 * h], (int)(lane & ~3u)), m1 = __shfl_sync(FULL_WARP, less[i][2 * h + 1], (int)(lane & ~3u));
                if (q < 2) put(q, warp * 32 + 16 * i + g + 8 * h, v - (q ? m1 : m0));
            }
    } else {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) put(8 * n + 2 * q + (e & 1), warp * 32 + 16 * i + g + 8 * (e >> 1), c[i][n][e]);
    }
    __syncthreads();
    constexpr u32 PER_LINE = CHANNELS / 8;
    for (u32 i = tid; i < t.n * PER_LINE; i += THREADS) {
        u32 token = i / PER_LINE, chunk = i % PER_LINE;
        *(uint4*)(p.part + (u64)list[token] * EMBD + blockIdx.x * CHANNELS + chunk * 8) = *(const uint4*)(stages + token * LINE + chunk * 16);
    }
}

} // namespace

// x as codes: a warp takes 256 columns of a row, lane l columns 8 l ..; 8 columns are 16 bytes, the high
// bytes first.
extern "C" __global__ void __launch_bounds__(512) experts_few_codes(const __grid_constant__ Experts p) {
    u32 r = blockIdx.x, kc = threadIdx.x >> 5, lane = threadIdx.x & 31;
    if (p.slot[r] == PAD_SLOT) return;
    u64 at = (u64)r * EMBD + kc * 256 + 8 * lane;
    float v[8];
    float4 a = *(const float4*)(p.x_f32 + at), b = *(const float4*)(p.x_f32 + at + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    float most = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; j++) most = fmaxf(most, fabsf(v[j]));
#pragma unroll
    for (int o = 16; o; o >>= 1) most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, o));
    float inverse = most > 0.0f ? 16256.0f / most : 0.0f;
    u32 high[2] = {0, 0}, low[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int h, l;
        two_bytes(v[j], inverse, h, l);
        high[j >> 2] |= (u32)(h & 255) << (8 * (j & 3));
        low[j >> 2] |= (u32)(l & 255) << (8 * (j & 3));
    }
    *(uint4*)(p.x_codes + (u64)r * 2 * EMBD + kc * 512 + lane * 16) = make_uint4(high[0], high[1], low[0], low[1]);
    if (lane == 0) p.x_scale[(u64)r * (EMBD / 256) + kc] = most * (1.0f / 16256);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) experts_few_gate_up(const __grid_constant__ Experts p) {
    ExpertTile t;
    if (!expert_tile(p, t)) return;
    if (t.n <= 2) gate_up_few<0>(p, t);
    else if (t.n <= 8) gate_up_few<1>(p, t);
    else gate_up_few<2>(p, t);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) experts_few_down(const __grid_constant__ Experts p) {
    ExpertTile t;
    if (!expert_tile(p, t)) return;
    if (t.n <= 2) down_few<0>(p, t);
    else if (t.n <= 8) down_few<1>(p, t);
    else down_few<2>(p, t);
}

#endif
