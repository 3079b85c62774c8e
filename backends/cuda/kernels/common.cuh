// What every kernel here shares: integer names, the rows of a step, cache
// elements, sums over a warp and a block. No header of a toolkit is needed, so
// that NVRTC compiles with nothing but this folder.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;

// Slot of a row that only fills a step up to its size.
#define PAD_SLOT 0xffffffffu
#define FULL_WARP 0xffffffffu

// The per-step numbers, one array each; ds4_model::RowsImage says what they are.
struct Rows {
    const u32* token;
    const u32* position;
    const u32* slot;
    const u32* base;
    const u32* first_row;
    const u32* end_row;
    const u32* see_end;
    const u32* window_start;
    const u32* source;
    const float* inv_temperature;
    // [n_rows, 4 tables, rope_dim / 2, 2]
    const float* angles;
};

// Elements of a cache are f32 or bf16.
struct Cache {
    void* data;
    u32 is_bf16;
    // Rows of one slot.
    u32 n_rows;
    u32 width;
    u32 reserved;
};

__device__ __forceinline__ float bf16_value(u16 code) { return __uint_as_float((u32)code << 16); }

// To nearest even; a NaN stays a NaN.
__device__ __forceinline__ u16 bf16_code(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ __forceinline__ float f16_value(u16 code) {
    float value;
    asm("{ .reg .b16 h; mov.b16 h, %1; cvt.f32.f16 %0, h; }" : "=f"(value) : "h"(code));
    return value;
}

__device__ __forceinline__ float cache_get(const Cache& cache, u64 row, u32 channel) {
    u64 at = row * cache.width + channel;
    return cache.is_bf16 ? bf16_value(((const u16*)cache.data)[at]) : ((const float*)cache.data)[at];
}

__device__ __forceinline__ void cache_set(const Cache& cache, u64 row, u32 channel, float value) {
    u64 at = row * cache.width + channel;
    if (cache.is_bf16) ((u16*)cache.data)[at] = bf16_code(value);
    else ((float*)cache.data)[at] = value;
}

// Row of a ring, by slot and position.
__device__ __forceinline__ u64 ring_row(const Cache& ring, u32 slot, u32 position) {
    return (u64)slot * ring.n_rows + position % ring.n_rows;
}

// Row of a cache of compressed rows: slots share one space of tokens, in which
// `base` is where the row's slot begins.
__device__ __forceinline__ u64 compressed_row(const Rows& rows, u32 r, u32 index, u32 ratio) {
    return rows.base[r] / ratio + index;
}

// Position at which the segment of row `r` begins: older tokens are in the
// cache, this one and younger ones are rows of the batch.
__device__ __forceinline__ u32 segment_position(const Rows& rows, u32 r) {
    return rows.position[r] - (r - rows.first_row[r]);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// weight * silu(min(g, clamp)) * clamp(u, +-clamp)
__device__ __forceinline__ float swiglu(float g, float u, float clamp, float weight) {
    g = fminf(g, clamp);
    u = fminf(fmaxf(u, -clamp), clamp);
    return weight * (g * sigmoid(g)) * u;
}

__device__ __forceinline__ float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, step));
    return x;
}

// Sum over a block of whole warps, the same in every thread. `scratch` has 32
// floats and may be used again after the next barrier.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0.0f;
    for (u32 w = 0; w < blockDim.x / 32; ++w) total += scratch[w];
    return total;
}

__device__ __forceinline__ float block_max(float x, float* scratch) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float most = scratch[0];
    for (u32 w = 1; w < blockDim.x / 32; ++w) most = fmaxf(most, scratch[w]);
    return most;
}

// 2^e for exponents of normal numbers.
__device__ __forceinline__ float exp2_int(int e) { return __uint_as_float((u32)(e + 127) << 23); }

// Exponent of the smallest power of two that is at least x, positive.
__device__ __forceinline__ int ceil_log2(float x) {
    u32 bits = __float_as_uint(x);
    return (int)(bits >> 23) - 127 + ((bits & 0x7fffffu) != 0);
}

// The nearest E4M3 value, ties to the even code, for |x| <= 448.
__device__ __forceinline__ float e4m3_round(float x) {
    float magnitude = fabsf(x);
    float rounded;
    if (magnitude < 0.015625f) {
        rounded = rintf(magnitude * 512.0f) / 512.0f;
    } else {
        u32 bits = __float_as_uint(magnitude);
        bits = (bits + 0x7ffffu + ((bits >> 20) & 1u)) & 0xfff00000u;
        rounded = fminf(__uint_as_float(bits), 448.0f);
    }
    return copysignf(rounded, x);
}

// The nearest E2M1 value, ties to the even code, for |x| <= 6.
__device__ __forceinline__ float e2m1_round(float x) {
    float m = fabsf(x);
    float rounded = m <= 0.25f ? 0.0f : m < 0.75f ? 0.5f : m <= 1.25f ? 1.0f : m < 1.75f ? 1.5f
                  : m <= 2.5f ? 2.0f : m < 3.5f ? 3.0f : m <= 5.0f ? 4.0f : 6.0f;
    return copysignf(rounded, x);
}

// A key that orders like the float, -0 below +0.
__device__ __forceinline__ u32 order_key(float x) {
    u32 bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
