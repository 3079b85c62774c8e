// Row-parallel steps between the products: halves of activations, norms, rotations, roundings.
#include "prefill/device.cuh"
#include "prefill/prefill.h"
#include "prefill/rounding.cuh"

#define EPS 1e-6f

namespace {

__device__ __forceinline__ void store_half8(u16* out, u16* low, u64 at, const float* x, u32 order) {
    u32 h[4];
    if (order == 2) {
        // 8 (c % 2) + 2 (c / 4 % 4) + c / 2 % 2 of the 16
        u16* to = out + (at & ~15ull) + (at >> 1 & 4);
#pragma unroll
        for (int i = 0; i < 2; i++)
            *(uint2*)(to + 8 * i) = make_uint2(pack_h(clamp_h(x[i]), clamp_h(x[2 + i])), pack_h(clamp_h(x[4 + i]), clamp_h(x[6 + i])));
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) h[i] = pack_h(clamp_h(x[2 * i]), clamp_h(x[2 * i + 1]));
    if (order == 1) {
        // 16 (c / 4 % 2) + 8 (c / 2 % 2) + 2 (c / 8 % 4) + c % 2 of the 32
        u16* to = out + (at & ~31ull) + (at >> 2 & 6);
#pragma unroll
        for (int i = 0; i < 4; i++) *(u32*)(to + 8 * i) = h[i];
        return;
    }
    *(uint4*)(out + at) = make_uint4(h[0], h[1], h[2], h[3]);
    if (!low) return;
    u32 l[4];
#pragma unroll
    for (int i = 0; i < 4; i++) l[i] = pack_h(x[2 * i] - h2f((u16)h[i]), x[2 * i + 1] - h2f((u16)(h[i] >> 16)));
    *(uint4*)(low + at) = make_uint4(l[0], l[1], l[2], l[3]);
}

} // namespace

extern "C" __global__ void __launch_bounds__(256) rows_to_half(const __grid_constant__ RowsHalf p) {
    u64 at = ((u64)blockIdx.x * 256 + threadIdx.x) * 8;
    if (at >= (u64)p.n_rows * p.width) return;
    float4 a = *(const float4*)(p.x + at), b = *(const float4*)(p.x + at + 4);
    float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    store_half8(p.out, p.low, at, x, p.order);
}

extern "C" __global__ void __launch_bounds__(256) rows_from_half(const __grid_constant__ RowsHalf p) {
    u64 at = ((u64)blockIdx.x * 256 + threadIdx.x) * 8;
    if (at >= (u64)p.n_rows * p.width) return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 c = (u32)(at & 15) + i;
        u64 place = p.order ? (at & ~15ull) + 8 * (c & 1) + 2 * (c >> 2 & 3) + (c >> 1 & 1) : at + i;
        p.x[at + i] = h2f(p.out[place]);
    }
}

extern "C" __global__ void __launch_bounds__(256) gate_half(const __grid_constant__ RowsHalf p) {
    u64 at = ((u64)blockIdx.x * 256 + threadIdx.x) * 8;
    if (at >= (u64)p.n_rows * p.width) return;
    float h[8];
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        float4 a = *(const float4*)(p.x + at + i), b = *(const float4*)(p.x2 + at + i);
        float g[4] = {a.x, a.y, a.z, a.w}, u[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            g[e] = fminf(g[e], p.clamp);
            h[i + e] = g[e] / (1.0f + __expf(-g[e])) * fminf(fmaxf(u[e], -p.clamp), p.clamp);
        }
    }
    store_half8(p.out, p.low, at, h, p.order);
}

extern "C" __global__ void __launch_bounds__(256) norm_half(const __grid_constant__ RowsHalf p) {
    __shared__ float sums[8];
    u32 tid = threadIdx.x;
    u64 row = (u64)blockIdx.x * p.width;
    float4 v[4];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 c = (tid + 256 * i) * 8;
        bool in = c < p.width;
        v[2 * i] = in ? *(const float4*)(p.x + row + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        v[2 * i + 1] = in ? *(const float4*)(p.x + row + c + 4) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) squares += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
    squares = warp_sum(squares);
    if ((tid & 31) == 0) sums[tid >> 5] = squares;
    __syncthreads();
    squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) squares += sums[i];
    float inv = 1.0f / sqrtf(squares / (float)p.width + EPS);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 c = (tid + 256 * i) * 8;
        if (c >= p.width) break;
        float4 w = *(const float4*)(p.weight + c), z = *(const float4*)(p.weight + c + 4), a = v[2 * i], b = v[2 * i + 1];
        float x[8] = {w.x * (a.x * inv), w.y * (a.y * inv), w.z * (a.z * inv), w.w * (a.w * inv), z.x * (b.x * inv), z.y * (b.y * inv), z.z * (b.z * inv), z.w * (b.w * inv)};
        *(float4*)(p.x + row + c) = make_float4(x[0], x[1], x[2], x[3]);
        *(float4*)(p.x + row + c + 4) = make_float4(x[4], x[5], x[6], x[7]);
        if (p.out) store_half8(p.out, p.low, row + c, x, p.order);
    }
}

// A warp is a head; lane l has channels 4 l + 128 i.
extern "C" __global__ void __launch_bounds__(256) q_prepare(const __grid_constant__ Prepare p) {
    u32 r = blockIdx.x, head = blockIdx.y * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (p.rows.slot[r] == PAD_SLOT) return;
    u64 at = ((u64)r * 64 + head) * 512 + 4 * lane;
    float4 v[4];
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (p.x_half) {
            uint2 h = *(const uint2*)(p.x_half + at + 128 * i);
            v[i] = make_float4(h2f((u16)h.x), h2f((u16)(h.x >> 16)), h2f((u16)h.y), h2f((u16)(h.y >> 16)));
        } else {
            v[i] = *(const float4*)(p.x + at + 128 * i);
        }
        squares += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
    }
    float inv = 1.0f / sqrtf(warp_sum(squares) * (1.0f / 512) + EPS);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[i].x *= inv, v[i].y *= inv, v[i].z *= inv, v[i].w *= inv;
        if (i == 3 && lane >= 16) {
            float4 cs = *(const float4*)(p.rows.angles + ((u64)r * 4 + p.table) * 64 + 4 * (lane - 16));
            v[i] = make_float4(v[i].x * cs.x - v[i].y * cs.y, v[i].x * cs.y + v[i].y * cs.x, v[i].z * cs.z - v[i].w * cs.w, v[i].z * cs.w + v[i].w * cs.z);
        }
        *(uint2*)(p.out + at + 128 * i) = make_uint2(pack_bf(v[i].x, v[i].y), pack_bf(v[i].z, v[i].w));
    }
}

// A warp is a row of 512 channels.
extern "C" __global__ void __launch_bounds__(256) kv_prepare(const __grid_constant__ Prepare p) {
    u32 r = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (r >= p.n_rows || p.rows.slot[r] == PAD_SLOT) return;
    u64 at = (u64)r * 512 + 4 * lane;
    float v[4][4], squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float4 x = *(const float4*)(p.x + at + 128 * i);
        v[i][0] = x.x, v[i][1] = x.y, v[i][2] = x.z, v[i][3] = x.w;
        squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    }
    float inv = 1.0f / sqrtf(warp_sum(squares) * (1.0f / 512) + EPS);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float4 w = *(const float4*)(p.weight + 4 * lane + 128 * i);
        v[i][0] = w.x * (v[i][0] * inv), v[i][1] = w.y * (v[i][1] * inv), v[i][2] = w.z * (v[i][2] * inv), v[i][3] = w.w * (v[i][3] * inv);
        bool rotated = i == 3 && lane >= 16;
        if (rotated) {
            float4 cs = *(const float4*)(p.rows.angles + ((u64)r * 4 + p.table) * 64 + 4 * (lane - 16));
            float a = v[i][0] * cs.x - v[i][1] * cs.y, b = v[i][0] * cs.y + v[i][1] * cs.x;
            float c = v[i][2] * cs.z - v[i][3] * cs.w, d = v[i][2] * cs.w + v[i][3] * cs.z;
            v[i][0] = a, v[i][1] = b, v[i][2] = c, v[i][3] = d;
        }
        if (p.rounded) {
            kv_round4(v[i], rotated);
        }
        *(float4*)(p.x + at + 128 * i) = make_float4(v[i][0], v[i][1], v[i][2], v[i][3]);
        *(uint2*)(p.out + at + 128 * i) = make_uint2(pack_bf(v[i][0], v[i][1]), pack_bf(v[i][2], v[i][3]));
    }
}

// A warp is a head of 128 channels, lane l has 4 l .. 4 l + 4.
extern "C" __global__ void __launch_bounds__(256) iq_prepare(const __grid_constant__ Prepare p) {
    u32 r = blockIdx.x, head = blockIdx.y * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (p.rows.slot[r] == PAD_SLOT) return;
    u64 at = ((u64)r * 64 + head) * 128 + 4 * lane;
    float4 x = *(const float4*)(p.x + at);
    float v[4] = {x.x, x.y, x.z, x.w};
    if (lane >= 16) {
        float4 cs = *(const float4*)(p.rows.angles + ((u64)r * 4 + p.table) * 64 + 4 * (lane - 16));
        float a = v[0] * cs.x - v[1] * cs.y, b = v[0] * cs.y + v[1] * cs.x;
        float c = v[2] * cs.z - v[3] * cs.w, d = v[2] * cs.w + v[3] * cs.z;
        v[0] = a, v[1] = b, v[2] = c, v[3] = d;
    }
    if (p.rounded) {
        index_round4(v, lane);
    }
    *(uint2*)(p.out + at) = make_uint2(pack_bf(v[0], v[1]), pack_bf(v[2], v[3]));
}
