// Q8 matrices: expansion to halves for the dense products, and products of few rows straight from the
// records; halves and f32 matrices beside them.
#include "prefill/device.cuh"
#include "prefill/prefill.h"
#include "layout.cuh"

namespace {

// Four signed bytes as two pairs of halves, times `scale` (in both halves). 1024 + (byte + 128) is a
// half whose mantissa is the byte, so the difference to 1152 is exact.
__device__ __forceinline__ void q8_four(u32 codes, u32 scale, u32& first, u32& second) {
    codes ^= 0x80808080u;
    first = hmul2(hsub2(prmt(codes, 0x64646464u, 0x4140), 0x64806480u), scale);
    second = hmul2(hsub2(prmt(codes, 0x64646464u, 0x4342), 0x64806480u), scale);
}

} // namespace

// A warp expands one record. Lane 4 g + t writes 8 columns of rows g and g + 8 for each block of 32.
extern "C" __global__ void __launch_bounds__(256) expand_q8(const __grid_constant__ Expand p) {
    u32 lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, n_kc = p.n_in / 256;
    u32 record = blockIdx.x * 8 + (threadIdx.x >> 5);
    if (record >= p.n_out / 16 * n_kc) return;
    const unsigned char* w = (const unsigned char*)p.w + (u64)record * DS4_Q8_RECORD;
    uint4 codes[8];
#pragma unroll
    for (int b = 0; b < 8; b++) codes[b] = load_streamed(w + b * 512 + lane * 16);
    // Scales of row g (words 0, 2, 4, 6) and g + 8 (1, 3, 5, 7), two blocks a word.
    uint4 s0 = *(const uint4*)(w + DS4_Q8_SCALES + g * 32), s1 = *(const uint4*)(w + DS4_Q8_SCALES + g * 32 + 16);
    const u32 s[8] = {s0.x, s0.y, s0.z, s0.w, s1.x, s1.y, s1.z, s1.w};
    u16* out = p.out + ((u64)(record / n_kc) * 16 + g) * p.n_in + record % n_kc * 256 + 8 * t;
#pragma unroll
    for (int b = 0; b < 8; b++) {
        u32 pick = b & 1 ? 0x3232 : 0x1010, d0 = prmt(s[b / 2 * 2], 0, pick), d1 = prmt(s[b / 2 * 2 + 1], 0, pick);
        uint4 low, high;
        q8_four(codes[b].x, d0, low.x, low.y);
        q8_four(codes[b].z, d0, low.z, low.w);
        q8_four(codes[b].y, d1, high.x, high.y);
        q8_four(codes[b].w, d1, high.z, high.w);
        *(uint4*)(out + 32 * b) = low;
        *(uint4*)(out + (u64)8 * p.n_in + 32 * b) = high;
    }
}

extern "C" __global__ void __launch_bounds__(256) split_f32(const __grid_constant__ Expand p) {
    u64 at = ((u64)blockIdx.x * 256 + threadIdx.x) * 8, n = (u64)p.n_out * p.n_in;
    for (int i = 0; i < 8 && at + i < n; i++) {
        float v = ((const float*)p.w)[at + i];
        u16 h = f2h(clamp_h(v));
        p.out[at + i] = h;
        p.out_low[at + i] = f2h(v - h2f(h));
    }
}

namespace {

// R rows of x as columns, T row tiles of 16 for each warp, its share of k.
template <bool Q8, int R, int T> __device__ __forceinline__ void skinny(const Skinny& p) {
    constexpr int NT = R / 8, BL = Q8 ? 8 / NT : NT == 2 ? 2 : 1, PASSES = Q8 ? 1 : 2;
    __shared__ float sums[8 * 16 * R];
    u32 tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
    u32 i = 0;
    while (i + 1 < p.n_pieces && blockIdx.x >= p.pieces[i + 1].first_block) i++;
    const SkinnyPiece& q = p.pieces[i];
    u32 n_kc = p.k / 256, kw = min(n_kc, 8u), kr = warp % kw;
    u32 n_tiles = q.n_out / 16, tiles_per_block = T * (8 / kw);
    u32 block_tile = (blockIdx.x - q.first_block) * tiles_per_block, tile0 = block_tile + warp / kw * T;
    // All tiles of a block are of one group: the group's tiles are a multiple of a block's.
    u32 group = block_tile / (n_tiles / p.n_groups);

    float c[T][NT][4];
#pragma unroll
    for (int a = 0; a < T; a++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) c[a][n][e] = 0.0f;
    const u16* xs[PASSES];
    xs[0] = p.x + (u64)group * p.k;
    if (!Q8) xs[PASSES - 1] = p.x_low + (u64)group * p.k;
#pragma unroll 1
    for (u32 kc = kr; kc < n_kc; kc += kw) {
#pragma unroll 1
        for (u32 part = 0; part < 8 / BL; part++) {
            u32 column = kc * 256 + part * BL * 32 + 8 * t;
            uint4 b[PASSES][BL][NT];
#pragma unroll
            for (int s = 0; s < PASSES; s++)
#pragma unroll
                for (int bl = 0; bl < BL; bl++)
#pragma unroll
                    for (int n = 0; n < NT; n++) {
                        u32 row = min((u32)(8 * n) + g, p.n_rows - 1);
                        b[s][bl][n] = *(const uint4*)(xs[s] + (u64)row * p.ld_x + column + 32 * bl);
                    }
#pragma unroll
            for (int a = 0; a < T; a++) {
                u32 tile = min(tile0 + a, n_tiles - 1);
                uint4 w[BL], w8[BL];
                u32 scales[8];
                if (Q8) {
                    const unsigned char* record = (const unsigned char*)q.w + ((u64)tile * n_kc + kc) * DS4_Q8_RECORD;
#pragma unroll
                    for (int bl = 0; bl < BL; bl++) w[bl] = load_streamed(record + (part * BL + bl) * 512 + lane * 16);
                    // Words of row g and g + 8, two blocks each.
                    const uint2* at = (const uint2*)(record + DS4_Q8_SCALES + g * 32 + part * BL / 2 * 8);
#pragma unroll
                    for (int z = 0; z < (BL + 1) / 2; z++) {
                        uint2 v = at[z];
                        scales[2 * z] = v.x, scales[2 * z + 1] = v.y;
                    }
                } else {
                    const u16* m = (const u16*)q.w + ((u64)tile * 16 + g) * p.k + column;
#pragma unroll
                    for (int bl = 0; bl < BL; bl++) {
                        w[bl] = load_streamed(m + 32 * bl);
                        w8[bl] = load_streamed(m + (u64)8 * p.k + 32 * bl);
                    }
                }
#pragma unroll
                for (int bl = 0; bl < BL; bl++) {
                    uint4 low, high; // rows g and g + 8
                    if (Q8) {
                        u32 pick = (BL == 1 ? part : bl) & 1 ? 0x3232 : 0x1010;
                        u32 d0 = prmt(scales[bl / 2 * 2], 0, pick), d1 = prmt(scales[bl / 2 * 2 + 1], 0, pick);
                        q8_four(w[bl].x, d0, low.x, low.y);
                        q8_four(w[bl].z, d0, low.z, low.w);
                        q8_four(w[bl].y, d1, high.x, high.y);
                        q8_four(w[bl].w, d1, high.z, high.w);
                    } else {
                        low = w[bl], high = w8[bl];
                    }
#pragma unroll
                    for (int s = 0; s < PASSES; s++)
#pragma unroll
                        for (int n = 0; n < NT; n++) {
                            mma_f16(c[a][n], low.x, high.x, low.y, high.y, b[s][bl][n].x, b[s][bl][n].y);
                            mma_f16(c[a][n], low.z, high.z, low.w, high.w, b[s][bl][n].z, b[s][bl][n].w);
                        }
                }
            }
        }
    }
    // Sums over the warps of a tile, in the order of k, one of the T tiles at a time.
#pragma unroll
    for (int a = 0; a < T; a++) {
        __syncthreads();
        float* mine = sums + warp * 16 * R;
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) mine[(8 * n + 2 * t + (e & 1)) * 16 + g + 8 * (e >> 1)] = c[a][n][e];
        __syncthreads();
        for (u32 j = tid; j < 8 / kw * 16 * R; j += 256) {
            u32 set = j / (16 * R), at = j % (16 * R), row = at / 16;
            float v = 0.0f;
            for (u32 w = 0; w < kw; w++) v += sums[(set * kw + w) * 16 * R + at];
            u32 tile = block_tile + set * T + a, o = tile * 16 + at % 16;
            if (tile >= n_tiles || row >= p.n_rows) continue;
            u64 to = (u64)row * q.ld_out + o;
            if (q.kind == GEMM_F32) ((float*)q.out)[to] = v;
            else if (q.kind == GEMM_ADD_F32) ((float*)q.out)[to] += v;
            else if (q.kind == GEMM_F16) ((u16*)q.out)[to] = f2h(clamp_h(v));
            else ((u16*)q.out)[to] = f2bf(v);
        }
    }
}

} // namespace

#define SKINNY(R, T) \
    extern "C" __global__ void __launch_bounds__(256, 2) skinny_q8_##R##_##T(const __grid_constant__ Skinny p) { skinny<true, R, T>(p); } \
    extern "C" __global__ void __launch_bounds__(256, R == 64 ? 1 : 2) skinny_f16_##R##_##T(const __grid_constant__ Skinny p) { skinny<false, R, T>(p); }
SKINNY(16, 1)
SKINNY(16, 2)
SKINNY(32, 1)
SKINNY(32, 2)
SKINNY(64, 1)
