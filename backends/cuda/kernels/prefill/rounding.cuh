// Rounding of cache rows (E4M3 of attention rows, Hadamard and E2M1 of index rows), four channels a lane.
#pragma once
#include "prefill/device.cuh"

// 2^ceil(log2(x)) as its exponent, for positive normal x.
__device__ __forceinline__ int ceil_log2_of(float x) {
    u32 bits = __float_as_uint(x);
    return (int)(bits >> 23) - 127 + ((bits & 0x7fffffu) != 0);
}
__device__ __forceinline__ float power_of_two(int e) { return __uint_as_float((u32)(e + 127) << 23); }

// The nearest E4M3 value, ties to the even code, for |x| <= 448.
__device__ __forceinline__ float to_e4m3(float x) {
    float m = fabsf(x), rounded;
    if (m < 0.015625f) {
        rounded = rintf(m * 512.0f) * (1.0f / 512);
    } else {
        u32 bits = __float_as_uint(m);
        rounded = fminf(__uint_as_float((bits + 0x7ffffu + ((bits >> 20) & 1u)) & 0xfff00000u), 448.0f);
    }
    return copysignf(rounded, x);
}

// The nearest E2M1 value, ties to the even code, for |x| <= 6.
__device__ __forceinline__ float to_e2m1(float x) {
    float m = fabsf(x), rounded;
    if (m <= 2.0f) rounded = rintf(m * 2.0f) * 0.5f;   // steps of 0.5; ties to even codes
    else if (m <= 4.0f) rounded = rintf(m);            // 2, 3, 4: 2.5 to 2, 3.5 to 4
    else rounded = m <= 5.0f ? 4.0f : 6.0f;            // 5 is a tie and goes to 4
    return copysignf(rounded, x);
}

// Four channels of an attention row; 16 neighbouring lanes share a scale, rotated channels become bf16.
__device__ __forceinline__ void kv_round4(float* v, bool rotated) {
    float most = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3])));
#pragma unroll
    for (int o = 8; o; o >>= 1) most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, o));
    int e = ceil_log2_of(fmaxf(most, 1e-4f) * (1.0f / 448));
    float scale = power_of_two(e), down = power_of_two(-e);
#pragma unroll
    for (int j = 0; j < 4; j++)
        v[j] = rotated ? bf2f(f2bf(v[j])) : to_e4m3(fminf(fmaxf(v[j] * down, -448.0f), 448.0f)) * scale;
}

// Four channels of an index row of 128, one warp a row: orthonormal Hadamard transform, then E2M1 with a
// scale for 8 neighbouring lanes.
__device__ __forceinline__ void index_round4(float* v, u32 lane) {
    float a = v[0] + v[1], b = v[0] - v[1], c = v[2] + v[3], d = v[2] - v[3];
    v[0] = a + c, v[1] = b + d, v[2] = a - c, v[3] = b - d;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float other = __shfl_xor_sync(FULL_WARP, v[j], o);
            v[j] = lane & o ? other - v[j] : v[j] + other;
        }
    float most = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        v[j] *= 0.08838834764831845f; // 128^-0.5
        most = fmaxf(most, fabsf(v[j]));
    }
    // Blocks of 32 channels are 8 lanes.
#pragma unroll
    for (int o = 4; o; o >>= 1) most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, o));
    int e = max(ceil_log2_of(fmaxf(most, 7.0526e-38f) * (1.0f / 6)), -126);
    float scale = power_of_two(e), down = power_of_two(min(-e, 127));
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = to_e2m1(fminf(fmaxf(v[j] * down, -6.0f), 6.0f)) * scale;
}
