// One weight of any type, from the bytes of a file or from a layout of
// layout.cuh. The formulas are those of ds4_formats::quant, where the blocks are
// drawn; the numbers of the types are ggml's. Slow and plain.
#pragma once
#include "common.cuh"
#include "grids.cuh"
#include "layout.cuh"

// Layouts, beside the numbers of types.
#define LAYOUT_HC 101
#define LAYOUT_Q8 108
#define LAYOUT_Q2K 110
#define LAYOUT_IQ2_GATE 116
#define LAYOUT_IQ2_UP 117

__device__ __forceinline__ u32 le16(const u8* p) { return p[0] | (u32)p[1] << 8; }
__device__ __forceinline__ u32 le32(const u8* p) { return le16(p) | le16(p + 2) << 16; }
__device__ __forceinline__ float half_at(const u8* p) { return f16_value((u16)le16(p)); }
__device__ __forceinline__ u32 nibble_at(const u8* p, u32 i) { return (p[i / 2] >> (4 * (i % 2))) & 15; }
__device__ __forceinline__ float negate_if(float x, u32 bit) { return bit & 1 ? -x : x; }
__device__ __forceinline__ u32 even_signs(u32 code) { return code | (__popc(code) & 1u) << 7; }

// The 6-bit scale and min of sub-block j of Q4_K and Q5_K.
__device__ __forceinline__ void scale_min(const u8* s, u32 j, u32& scale, u32& min) {
    if (j < 4) {
        scale = s[j] & 63;
        min = s[j + 4] & 63;
    } else {
        scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        min = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
    }
}

__device__ __forceinline__ float ternary(u32 index, u32 j, bool down) {
    float value = (float)(i8)(GRID_IQ1[index] >> (8 * j));
    return 8.0f * value + (down ? -1.0f : 1.0f);
}

template <int T>
__device__ __forceinline__ float element(const u8* row, u32 k) {
    if (T == 0) return __uint_as_float(le32(row + 4ull * k));
    if (T == 1) return half_at(row + 2ull * k);
    if (T == 30) return bf16_value((u16)le16(row + 2ull * k));
    const u32 e = T == 8 || T == 20 || T == 39 ? k % 32 : k % 256;
    if (T == 8) {  // Q8_0
        const u8* b = row + 34ull * (k / 32);
        return half_at(b) * (float)(i8)b[2 + e];
    }
    if (T == 20) {  // IQ4_NL
        const u8* b = row + 18ull * (k / 32);
        return half_at(b) * (float)IQ4_LEVELS[(b[2 + e % 16] >> (4 * (e / 16))) & 15];
    }
    if (T == 39) {  // MXFP4, of doubled values and half the scale
        const u8* b = row + 17ull * (k / 32);
        u32 x = b[0];
        float scale = __uint_as_float(x < 2 ? 0x00200000u << x : (x - 1) << 23);
        return scale * (float)MXFP4_DOUBLED[(b[1 + e % 16] >> (4 * (e / 16))) & 15];
    }
    // The order of 2-bit and 6-bit codes: halves of 128, then 4 runs of 32.
    const u32 n = e / 128, r = e % 128 / 32, l = e % 32;
    if (T == 10) {  // Q2_K
        const u8* b = row + 84ull * (k / 256);
        u32 s = b[e / 16], v = (b[16 + 32 * n + l] >> (2 * r)) & 3;
        return half_at(b + 80) * (float)(s & 15) * (float)v - half_at(b + 82) * (float)(s >> 4);
    }
    if (T == 11) {  // Q3_K
        const u8* b = row + 110ull * (k / 256);
        u32 s = e / 16;
        u32 low = s < 8 ? b[96 + s] & 15 : b[96 + s - 8] >> 4;
        u32 high = (b[104 + s % 4] >> (2 * (s / 4))) & 3;
        int v = (int)((b[32 + 32 * n + l] >> (2 * r)) & 3) - ((b[l] >> (4 * n + r)) & 1 ? 0 : 4);
        return half_at(b + 108) * (float)((int)(low | high << 4) - 32) * (float)v;
    }
    if (T == 12 || T == 13) {  // Q4_K, Q5_K
        const u8* b = row + (T == 12 ? 144ull : 176ull) * (k / 256);
        const u8* codes = b + (T == 12 ? 16 : 48);
        u32 scale, min, j = e / 32;
        scale_min(b + 4, j, scale, min);
        u32 v = (codes[32 * (e / 64) + l] >> (4 * (j % 2))) & 15;
        if (T == 13) v |= ((b[16 + l] >> j) & 1) << 4;
        return half_at(b) * (float)scale * (float)v - half_at(b + 2) * (float)min;
    }
    if (T == 14) {  // Q6_K
        const u8* b = row + 210ull * (k / 256);
        u32 low = (b[64 * n + 32 * (r & 1) + l] >> (4 * (r / 2))) & 15;
        u32 high = (b[128 + 32 * n + l] >> (2 * r)) & 3;
        return half_at(b + 208) * (float)(i8)b[192 + e / 16] * (float)((int)(low | high << 4) - 32);
    }
    const u32 i = e / 32, g = e / 8, j = e % 8;
    if (T == 16) {  // IQ2_XXS
        const u8* b = row + 66ull * (k / 256);
        u32 signs = le32(b + 2 + 8 * i + 4);
        float scale = half_at(b) * (0.5f + (float)(signs >> 28)) / 4.0f;
        float v = (float)(u8)(GRID_IQ2_XXS[b[2 + 8 * i + g % 4]] >> (8 * j));
        return scale * negate_if(v, even_signs((signs >> (7 * (g % 4))) & 127) >> j);
    }
    if (T == 17) {  // IQ2_XS
        const u8* b = row + 74ull * (k / 256);
        u32 q = le16(b + 2 + 2 * g);
        float scale = half_at(b) * (0.5f + (float)nibble_at(b + 66, e / 16)) / 4.0f;
        return scale * negate_if((float)(u8)(GRID_IQ2_XS[q & 511] >> (8 * j)), even_signs(q >> 9) >> j);
    }
    if (T == 22) {  // IQ2_S
        const u8* b = row + 82ull * (k / 256);
        u32 q = b[2 + g] | ((b[66 + g / 4] >> (2 * (g % 4))) & 3u) << 8;
        float scale = half_at(b) * (0.5f + (float)nibble_at(b + 74, e / 16)) / 4.0f;
        return scale * negate_if((float)(u8)(GRID_IQ2_S[q] >> (8 * j)), (u32)b[34 + g] >> j);
    }
    if (T == 18) {  // IQ3_XXS
        const u8* b = row + 98ull * (k / 256);
        u32 word = le32(b + 66 + 4 * i);
        float scale = half_at(b) * (0.5f + (float)(word >> 28)) / 2.0f;
        u32 index = b[2 + 2 * g + j / 4];
        return scale * negate_if((float)(u8)(GRID_IQ3_XXS[index] >> (8 * (j % 4))), even_signs((word >> (7 * (g % 4))) & 127) >> j);
    }
    if (T == 21) {  // IQ3_S
        const u8* b = row + 110ull * (k / 256);
        u32 q = e / 4;
        u32 index = b[2 + q] | ((b[66 + i] >> (q % 8)) & 1u) << 8;
        float scale = half_at(b) * (float)(1 + 2 * nibble_at(b + 106, i));
        return scale * negate_if((float)(u8)(GRID_IQ3_S[index] >> (8 * (e % 4))), (u32)b[74 + g] >> j);
    }
    if (T == 19) {  // IQ1_S
        const u8* b = row + 50ull * (k / 256);
        u32 h = le16(b + 34 + 2 * i);
        float scale = half_at(b) * (float)(2 * ((h >> 12) & 7) + 1) / 8.0f;
        return scale * ternary(b[2 + g] | ((h >> (3 * (g % 4))) & 7) << 8, j, h & 0x8000);
    }
    if (T == 29) {  // IQ1_M
        const u8* b = row + 56ull * (k / 256);
        u32 w0 = le16(b + 48), w1 = le16(b + 50), w2 = le16(b + 52), w3 = le16(b + 54);
        float d = f16_value((u16)(w0 >> 12 | (w1 >> 8 & 0xf0) | (w2 >> 4 & 0xf00) | (w3 & 0xf000)));
        u32 s = (le16(b + 48 + 2 * (e / 64)) >> (3 * (e / 16 % 4))) & 7;
        u32 h = nibble_at(b + 32, g);
        return d * (float)(2 * s + 1) / 8.0f * ternary(b[g] | (h & 7) << 8, j, h & 8);
    }
    if (T == 23) {  // IQ4_XS
        const u8* b = row + 136ull * (k / 256);
        int scale = (int)(nibble_at(b + 4, i) | ((le16(b + 2) >> (2 * i)) & 3) << 4) - 32;
        return half_at(b) * (float)scale * (float)IQ4_LEVELS[(b[8 + 16 * i + l % 16] >> (4 * (l / 16))) & 15];
    }
    return 0.0f;
}

// Where a matrix of any type lies.
struct Matrix {
    const u8* data;
    u64 row_bytes;
    u32 n_in;
    u32 n_out;
    // Of LAYOUT_HC: streams of the input.
    u32 n_hc;
    u32 reserved;
};

// Weight (row, k) of a matrix that lies at `data`.
template <int T>
__device__ __forceinline__ float weight_at(const Matrix& m, const u8* data, u32 row, u32 k) {
    if (T < 100) return element<T>(data + row * m.row_bytes, k);
    if (T == LAYOUT_HC) {
        u32 n_embd = m.n_in / m.n_hc, stream = k / n_embd, channel = k % n_embd;
        u64 at = (((u64)(channel / 32) * m.n_out + row) * m.n_hc + stream) * 32 + channel % 32;
        return half_at(data + 2 * at);
    }
    if (T == LAYOUT_Q8)
        return half_at(data + ds4_q8_scale_at(m.n_in, row, k)) * (float)(i8)data[ds4_q8_code_at(m.n_in, row, k)];
    const u32 g = row % 8, h = row / 8 % 2, c = k % 256, b = c / 32;
    const u8* record = data + ((u64)(row / 32) * (m.n_in / 256) + k / 256) * (T == LAYOUT_Q2K ? DS4_Q2K_PAIR : DS4_IQ2_PAIR);
    if (T == LAYOUT_Q2K) {
        const u8* tile = record + row / 16 % 2 * DS4_Q2K_TILE;
        u32 n = c / 128, r = b % 4, a = h + 2 * (c / 16 % 2), t = c / 4 % 4, q = c / 16 % 8;
        u32 code = (tile[512 * n + (4 * g + t) * 16 + 4 * a + c % 4] >> (2 * r)) & 3;
        u32 s = tile[DS4_Q2K_SCALES + (4 * g + q / 2) * 8 + 4 * h + 2 * n + q % 2];
        const u8* d = tile + DS4_Q2K_D + 8 * g + 4 * h;
        return half_at(d) * (float)(s & 15) * (float)code - half_at(d + 2) * (float)(s >> 4);
    }
    const u8* tile = record + ((T == LAYOUT_IQ2_UP ? 2 : 0) + row / 16 % 2) * DS4_IQ2_TILE;
    u32 t = c / 8 % 4, j = c % 8, lane = 4 * g + t, i = 2 * (b % 2) + h;
    u32 index = tile[lane * 16 + 2 * b + h];
    u32 signs = le32(tile + DS4_IQ2_SIGNS + lane * 16 + 4 * (b / 2));
    u32 nibbles = tile[DS4_IQ2_NIBBLES + (4 * g + b / 2) * 2 + h];
    float scale = half_at(tile + DS4_IQ2_D + 4 * g + 2 * h) * (0.5f + (float)(nibbles >> (4 * (b % 2)) & 15)) / 4.0f;
    return scale * negate_if((float)(u8)(GRID_IQ2_XXS[index] >> (8 * j)), signs >> (i < 3 ? 4 * j + 2 - i : 4 * j + 3));
}
