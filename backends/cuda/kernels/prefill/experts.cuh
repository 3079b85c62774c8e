// What the products of routed experts share: tiles of pairs, and the unpacking of weights to halves.
#pragma once
#include "prefill/device.cuh"
#include "prefill/prefill.h"
#include "layout.cuh"
#include "iq2_grid.cuh"

#ifdef DS4_EMULATE
static const u32 iq2_grid[256] = DS4_IQ2_GRID;
#else
static __device__ const u32 iq2_grid[256] = DS4_IQ2_GRID;
#endif

struct ExpertTile { u32 expert, first, n; };

__device__ __forceinline__ bool expert_tile(const Experts& p, ExpertTile& t) {
    if (blockIdx.y >= p.tiles[0]) return false;
    const u32* tile = p.tiles + 4 + 4 * blockIdx.y;
    t.expert = tile[0], t.first = tile[1], t.n = tile[2];
    return true;
}

// A warp copies `N` chunks of 16 bytes.
template <int N> __device__ __forceinline__ void warp_copy(smem_addr to, const unsigned char* from) {
    u32 lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < (N + 31) / 32; i++)
        if (32 * i + 32 <= N || lane < N % 32) cp16(to + (32 * i + lane) * 16, from + (32 * i + lane) * 16, true);
}

// Two halves (2 s + 1, 2 s + 1) for the nibble at bits 0..3 of both 16-bit halves of `x`, shifted left
// by one beforehand.
__device__ __forceinline__ u32 odd_scale(u32 twice) { return hsub2((twice & 0x001e001eu) | 0x64016401u, 0x64006400u); }

// Eight weights of one grid entry, without scale: {8, 25, 43} and a sign, as four pairs of halves.
// GROUP is the position of the entry in its words (layout.cuh).
// COPIES: of the grid in shared memory, side by side for each word.
template <int GROUP, int COPIES> __device__ __forceinline__ void iq2_eight(u32 ids, u32 signs, const unsigned char* lut, u32* w) {
    u32 id = prmt(ids, 0, 0x4440 + GROUP);
    u32 shifted = GROUP < 3 ? signs << GROUP : signs >> 1;
    u32 select = *(const u32*)(lut + id * (4 * COPIES)) ^ (shifted & 0x44444444u);
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
    template <int P, int ODD, int COPIES> __device__ __forceinline__ void block(const unsigned char* lut, const u32* d64, u32 (*a)[4]) const {
        u32 id = P == 0 ? ids.x : ids.y, sign = P == 0 ? signs.x : signs.y;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 w[4];
            if (h == 0) iq2_eight<2 * ODD, COPIES>(id, sign, lut, w);
            else iq2_eight<2 * ODD + 1, COPIES>(id, sign, lut, w);
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

// Half (128 columns) of a 16 x 256 tile of Q2_K as a lane sees it.
struct Q2kHalf {
    uint4 codes;
    const unsigned char* scales; // of rows g and g + 8, a word each for r = 0 .. 4; byte 2 n + s
    u32 bytes;                   // selector of byte 2 n, for a permutation that spreads it over two halves

    __device__ __forceinline__ void load(const unsigned char* tile, u32 lane, u32 half) {
        codes = *(const uint4*)(tile + half * 512 + lane * 16);
        scales = tile + DS4_Q2K_SCALES + (lane >> 2) * 32;
        bytes = 0x4040 + half * 0x0202;
    }
    // 64 times the weights of the half's 16 columns 32 R + 16 S ..: the lane's k are columns
    // 4 t + (0, 2 | 1, 3). d: (64 d, -4 dmin) of rows g and g + 8.
    template <int R, int S> __device__ __forceinline__ void step(const u32* d, u32* a) const {
        uint2 words = *(const uint2*)(scales + 8 * R);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 word = h ? words.y : words.x;
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
