// Compressors of a layer after their projections: the rows that a step completes, and what is kept of
// its tokens in the rings.
#include "prefill/device.cuh"
#include "prefill/prefill.h"
#include "prefill/rounding.cuh"

#define EPS 1e-6f
#define ROPE 64

namespace {

__device__ __forceinline__ float4 add4(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

} // namespace

// A block is the compressed row that token r completes; a thread has 4 channels. Per channel a softmax of
// the gates over the pooled tokens, the sums rescaled as larger gates come.
extern "C" __global__ void __launch_bounds__(128) compress_rows(const __grid_constant__ CompressRows p) {
    __shared__ float sums[4];
    const CompressPart& part = p.parts[blockIdx.y];
    u32 r = blockIdx.x, tid = threadIdx.x, lane = tid & 31, c = 4 * tid, dim = part.dim, width = part.width;
    u32 position = p.rows.position[r], end = position + 1, slot = p.rows.slot[r];
    if (slot == PAD_SLOT || end % part.ratio != 0) return;
    u32 n_pooled = width == dim ? part.ratio : 2 * part.ratio, first = end > n_pooled ? end - n_pooled : 0;
    u32 segment = position - (r - p.rows.first_row[r]);
    bool in = c < dim;
    float most[4], weight[4], sum[4];
#pragma unroll
    for (int j = 0; j < 4; j++) most[j] = -3e38f, weight[j] = sum[j] = 0.0f;
    if (in) {
#pragma unroll 4
        for (u32 at = first; at < end; at++) {
            // With overlap the own window's tokens are in the upper half of the channels.
            u32 channel = c + (width != dim && at + part.ratio >= end ? dim : 0);
            float4 a, g;
            if (at >= segment) {
                u64 row = (u64)(p.rows.first_row[r] + (at - segment)) * width + channel;
                a = *(const float4*)(part.kv + row);
                g = add4(*(const float4*)(part.gate + row), *(const float4*)(part.ape + (at % part.ratio) * width + channel));
            } else {
                const float* ring = part.frontier + ((u64)slot * part.n_frontier + at % part.n_frontier) * 2 * width + channel;
                a = *(const float4*)ring;
                g = *(const float4*)(ring + width);
            }
            float av[4] = {a.x, a.y, a.z, a.w}, gv[4] = {g.x, g.y, g.z, g.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float m = fmaxf(most[j], gv[j]), shrink = expf(most[j] - m), e = expf(gv[j] - m);
                most[j] = m;
                weight[j] = weight[j] * shrink + e;
                sum[j] = sum[j] * shrink + e * av[j];
            }
        }
    }
    float v[4], squares = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        v[j] = in ? sum[j] / weight[j] : 0.0f;
        squares += v[j] * v[j];
    }
    squares = warp_sum(squares);
    if (lane == 0) sums[tid >> 5] = squares;
    __syncthreads();
    float inv = 1.0f / sqrtf((sums[0] + sums[1] + sums[2] + sums[3]) / (float)dim + EPS);
    // Whole warps leave: rows of 128 channels are one warp.
    if (!in) return;
    float4 n = *(const float4*)(part.norm + c);
    v[0] = n.x * (v[0] * inv), v[1] = n.y * (v[1] * inv), v[2] = n.z * (v[2] * inv), v[3] = n.w * (v[3] * inv);
    bool rotated = c >= dim - ROPE;
    if (rotated) {
        // Tables 2 and 3: positions of the first token of a window of 4 and of 128.
        float4 cs = *(const float4*)(p.rows.angles + ((u64)r * 4 + (part.ratio == 4 ? 2 : 3)) * ROPE + (c - (dim - ROPE)));
        float a0 = v[0] * cs.x - v[1] * cs.y, a1 = v[0] * cs.y + v[1] * cs.x;
        float a2 = v[2] * cs.z - v[3] * cs.w, a3 = v[2] * cs.w + v[3] * cs.z;
        v[0] = a0, v[1] = a1, v[2] = a2, v[3] = a3;
    }
    if (p.rounded) {
        if (dim == 128) index_round4(v, lane);
        else kv_round4(v, rotated);
    }
    u64 at = (u64)(p.rows.base[r] / part.ratio + end / part.ratio - 1) * dim + c;
    *(uint2*)(part.cache + at) = make_uint2(pack_bf(v[0], v[1]), pack_bf(v[2], v[3]));
}

// Of a segment longer than a ring only its last rows, so that no two rows write the same place.
extern "C" __global__ void __launch_bounds__(128) store_rows(const __grid_constant__ CompressRows p) {
    u32 r = blockIdx.x, slot = p.rows.slot[r], position = p.rows.position[r], left = p.rows.end_row[r] - r;
    if (slot == PAD_SLOT) return;
    if (blockIdx.y == p.n_parts) {
        if (left > p.n_ring) return;
        const uint2* from = (const uint2*)(p.window_rows + (u64)r * 512);
        ((uint2*)(p.window + ((u64)slot * p.n_ring + position % p.n_ring) * 512))[threadIdx.x] = from[threadIdx.x];
        return;
    }
    const CompressPart& part = p.parts[blockIdx.y];
    if (left > part.n_frontier) return;
    float* ring = part.frontier + ((u64)slot * part.n_frontier + position % part.n_frontier) * 2 * part.width;
    for (u32 c = 4 * threadIdx.x; c < part.width; c += 512) {
        *(float4*)(ring + c) = *(const float4*)(part.kv + (u64)r * part.width + c);
        *(float4*)(ring + part.width + c) = add4(*(const float4*)(part.gate + (u64)r * part.width + c), *(const float4*)(part.ape + (position % part.ratio) * part.width + c));
    }
}
