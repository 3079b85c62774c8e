// The turn between two sublayers: streams' = post y + comb^T streams, the mix of the new streams, the
// gates, and the normed input of the next sublayer. Streams are read twice and written once.
#include "prefill/device.cuh"
#include "prefill/prefill.h"

#define EMBD 4096
#define MIX 24
#define N_SINKHORN 20
#define EPS 1e-6f
#define STRIDE 258 // floats of a row of 4 x 64 channels: 8-byte reads of 4 rows x 4 lanes hit all banks

// A block takes 16 rows and `steps` times 64 channels of all four streams. The mix is a product on
// tensor cores with both factors exact: halves are tf32 values, and the streams are split into two.
// Warp w multiplies stream w / 2, channels 32 (w % 2) .. of the step.
extern "C" __global__ void __launch_bounds__(256) turn_mix(const __grid_constant__ Turn p) {
    __shared__ float tile[16 * STRIDE];
    __shared__ float mix[8][16][MIX + 1];
    u32 tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
    u32 row = tid >> 4, r = blockIdx.x * 16 + row;
    bool there = r < p.n_rows && p.slot[min(r, p.n_rows - 1)] != PAD_SLOT;
    float post[4], comb[16];
    if (p.y && there) {
        const float* gates = p.gates + (u64)r * MIX;
#pragma unroll
        for (int k = 0; k < 4; k++) post[k] = gates[4 + k];
#pragma unroll
        for (int i = 0; i < 16; i++) comb[i] = gates[8 + i];
    }
    float c[3][4], squares = 0.0f;
#pragma unroll
    for (int n = 0; n < 3; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) c[n][e] = 0.0f;
#pragma unroll 1
    for (u32 step = 0; step < p.steps; step++) {
        u32 channel0 = (blockIdx.y * p.steps + step) * 64, channel = channel0 + (tid & 15) * 4;
        float4 s[4];
#pragma unroll
        for (int j = 0; j < 4; j++) s[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (there) {
            float* streams = p.streams + (u64)r * 4 * EMBD + channel;
#pragma unroll
            for (int j = 0; j < 4; j++) s[j] = *(const float4*)(streams + j * EMBD);
            if (p.y) {
                float4 y = *(const float4*)(p.y + (u64)r * EMBD + channel);
                if (p.y2) {
                    float4 z = *(const float4*)(p.y2 + (u64)r * EMBD + channel);
                    y.x += z.x, y.y += z.y, y.z += z.z, y.w += z.w;
                }
                float4 o[4];
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    o[k].x = post[k] * y.x + (comb[k] * s[0].x + comb[4 + k] * s[1].x + comb[8 + k] * s[2].x + comb[12 + k] * s[3].x);
                    o[k].y = post[k] * y.y + (comb[k] * s[0].y + comb[4 + k] * s[1].y + comb[8 + k] * s[2].y + comb[12 + k] * s[3].y);
                    o[k].z = post[k] * y.z + (comb[k] * s[0].z + comb[4 + k] * s[1].z + comb[8 + k] * s[2].z + comb[12 + k] * s[3].z);
                    o[k].w = post[k] * y.w + (comb[k] * s[0].w + comb[4 + k] * s[1].w + comb[8 + k] * s[2].w + comb[12 + k] * s[3].w);
                }
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    s[k] = o[k];
                    *(float4*)(streams + k * EMBD) = o[k];
                }
            }
        }
        // The channel order within a stream's 32 channels is kept; lane t multiplies 8 t .. 8 t + 8.
        __syncthreads();
#pragma unroll
        for (int j = 0; j < 4; j++) {
            squares += s[j].x * s[j].x + s[j].y * s[j].y + s[j].z * s[j].z + s[j].w * s[j].w;
            float* to = tile + row * STRIDE + j * 64 + (tid & 15) * 4;
            *(float2*)to = make_float2(s[j].x, s[j].y);
            *(float2*)(to + 2) = make_float2(s[j].z, s[j].w);
        }
        __syncthreads();
        u32 stream = warp >> 1, part = warp & 1;
        uint4 b[3];
#pragma unroll
        for (int n = 0; n < 3; n++)
            b[n] = *(const uint4*)(p.fn + (((u64)(channel0 / 32 + part) * MIX + 8 * n + g) * 4 + stream) * 32 + 8 * t);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float* a = tile + g * STRIDE + stream * 64 + part * 32 + 8 * t + 2 * k;
            float2 v = *(const float2*)a, w = *(const float2*)(a + 8 * STRIDE);
            u32 h0 = tf32(v.x), h1 = tf32(w.x), h2 = tf32(v.y), h3 = tf32(w.y);
            u32 l0 = tf32(v.x - __uint_as_float(h0)), l1 = tf32(w.x - __uint_as_float(h1));
            u32 l2 = tf32(v.y - __uint_as_float(h2)), l3 = tf32(w.y - __uint_as_float(h3));
#pragma unroll
            for (int n = 0; n < 3; n++) {
                u32 pair = k == 0 ? b[n].x : k == 1 ? b[n].y : k == 2 ? b[n].z : b[n].w;
                u32 b0 = __float_as_uint(h2f((u16)pair)), b1 = __float_as_uint(h2f((u16)(pair >> 16)));
                mma_tf32(c[n], h0, h1, h2, h3, b0, b1);
                mma_tf32(c[n], l0, l1, l2, l3, b0, b1);
            }
        }
    }
#pragma unroll
    for (int n = 0; n < 3; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) mix[warp][g + 8 * (e >> 1)][8 * n + 2 * t + (e & 1)] = c[n][e];
#pragma unroll
    for (int o = 8; o; o >>= 1) squares += __shfl_xor_sync(FULL_WARP, squares, o);
    __syncthreads();
    float* part = p.part + ((u64)blockIdx.y * p.n_rows + blockIdx.x * 16) * 32;
    for (u32 i = tid; i < 16 * MIX; i += 256) {
        u32 at = i / MIX, n = i % MIX;
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < 8; w++) sum += mix[w][at][n];
        if (blockIdx.x * 16 + at < p.n_rows) part[at * 32 + n] = sum;
    }
    if ((tid & 15) == 0 && r < p.n_rows) part[row * 32 + MIX] = squares;
}

namespace {
__device__ __forceinline__ float gate_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
} // namespace

// Warps 0 to 7 make x. Warp 8 makes the gates: from `pre`, which the others wait for, it goes on to the
// rest by itself.
extern "C" __global__ void __launch_bounds__(288) turn_pre(const __grid_constant__ Turn p) {
    __shared__ float pre[4], sums[8];
    u32 r = blockIdx.x, tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    if (p.slot[r] == PAD_SLOT) return;
    float mix = 0.0f;
    if (warp == 8) {
        if (lane <= MIX)
            for (u32 s = 0; s < 64 / p.steps; s++) mix += p.part[((u64)s * p.n_rows + r) * 32 + lane];
        float squares = __shfl_sync(FULL_WARP, mix, MIX);
        mix *= 1.0f / sqrtf(squares * (1.0f / (4 * EMBD)) + EPS);
        if (lane < 4) {
            mix = gate_sigmoid(mix * p.scale[0] + p.base[lane]) + EPS;
            pre[lane] = mix;
        }
    }
    __syncthreads();
    if (warp == 8) {
        // Gates: lanes 4 to 7 post, lanes 8 + 4 j + k comb from source j to destination k.
        float* gates = p.gates + (u64)r * MIX;
        if (lane < 4) gates[lane] = mix;
        else if (lane < 8) gates[lane] = 2.0f * gate_sigmoid(mix * p.scale[1] + p.base[lane]);
        float value = __shfl_sync(FULL_WARP, mix, (lane & 15) + 8) * p.scale[2] + p.base[8 + (lane & 15)];
        float most = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, 1));
        most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, 2));
        value = expf(value - most);
#pragma unroll 1
        for (int i = 0; i < N_SINKHORN; i++) {
            float sum = value + __shfl_xor_sync(FULL_WARP, value, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            value = i == 0 ? value / sum + EPS : value / (sum + EPS);
            sum = value + __shfl_xor_sync(FULL_WARP, value, 4);
            sum += __shfl_xor_sync(FULL_WARP, sum, 8);
            value = value / (sum + EPS);
        }
        if (lane < 16) gates[8 + lane] = value;
        return;
    }
    float w[4] = {pre[0], pre[1], pre[2], pre[3]}, v[16], squares = 0.0f;
    const float* streams = p.streams + (u64)r * 4 * EMBD;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 channel = (tid + 256 * i) * 4;
        float4 s[4];
#pragma unroll
        for (int j = 0; j < 4; j++) s[j] = *(const float4*)(streams + j * EMBD + channel);
        v[4 * i] = w[0] * s[0].x + w[1] * s[1].x + w[2] * s[2].x + w[3] * s[3].x;
        v[4 * i + 1] = w[0] * s[0].y + w[1] * s[1].y + w[2] * s[2].y + w[3] * s[3].y;
        v[4 * i + 2] = w[0] * s[0].z + w[1] * s[1].z + w[2] * s[2].z + w[3] * s[3].z;
        v[4 * i + 3] = w[0] * s[0].w + w[1] * s[1].w + w[2] * s[2].w + w[3] * s[3].w;
#pragma unroll
        for (int e = 0; e < 4; e++) squares += v[4 * i + e] * v[4 * i + e];
    }
    squares = warp_sum(squares);
    if (lane == 0) sums[warp] = squares;
    bar_named(1, 256);
    squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) squares += sums[i];
    float inv = 1.0f / sqrtf(squares * (1.0f / EMBD) + EPS);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 channel = (tid + 256 * i) * 4;
        u64 at = (u64)r * EMBD + channel;
        float4 n = *(const float4*)(p.norm + channel);
        float x[4] = {n.x * (v[4 * i] * inv), n.y * (v[4 * i + 1] * inv), n.z * (v[4 * i + 2] * inv), n.w * (v[4 * i + 3] * inv)};
        if (p.x) *(float4*)(p.x + at) = make_float4(x[0], x[1], x[2], x[3]);
        if (p.x_experts) {
            // Order 1: 16 (c / 4 % 2) + 8 (c / 2 % 2) + 2 (c / 8 % 4) + c % 2 of the 32.
            u16* to = p.x_experts + (at & ~31ull) + (channel >> 2 & 6) + (channel << 2 & 16);
            *(u32*)to = pack_h(clamp_h(x[0]), clamp_h(x[1]));
            *(u32*)(to + 8) = pack_h(clamp_h(x[2]), clamp_h(x[3]));
        }
        if (p.x_half) {
            u32 h[2] = {pack_h(clamp_h(x[0]), clamp_h(x[1])), pack_h(clamp_h(x[2]), clamp_h(x[3]))};
            *(uint2*)(p.x_half + at) = make_uint2(h[0], h[1]);
            if (p.x_low)
                *(uint2*)(p.x_low + at) = make_uint2(pack_h(x[0] - h2f((u16)h[0]), x[1] - h2f((u16)(h[0] >> 16))), pack_h(x[2] - h2f((u16)h[1]), x[3] - h2f((u16)(h[1] >> 16))));
        }
    }
}
