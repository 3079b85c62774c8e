// out[r, o] = sum over k of W[o, k] * x[r, k], f32, for weights of any type.
// `group_rank` outputs share a group of `n_in` channels of x (0: one group).
// A warp computes one output for up to 8 rows: grid (n_out / 8, n_rows / 8).
#include "blocks.cuh"

#define ROWS 8

extern "C" __global__ void __launch_bounds__(256) matmul(
    Matrix m, u32 group_rank, const float* x, u32 x_width, float* out, u32 out_width, u32 n_rows) {
    u32 o = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (o >= m.n_out) return;
    u32 first = blockIdx.y * ROWS;
    x += (u64)first * x_width + (group_rank ? o / group_rank * m.n_in : 0);
    float sums[ROWS] = {};
    for (u32 k = lane; k < m.n_in; k += 32) {
        float w = weight_at<TYPE>(m, m.data, o, k);
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r)
            if (first + r < n_rows) sums[r] += w * x[(u64)r * x_width + k];
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
        float sum = warp_sum(sums[r]);
        if (lane == 0 && first + r < n_rows) out[(u64)(first + r) * out_width + o] = sum;
    }
}
