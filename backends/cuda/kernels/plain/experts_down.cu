// out[r, o] = sum over the row's experts of W[o] . hidden[r, i].
// A warp computes one output of one row: grid (n_out / 8, n_rows).
#include "blocks.cuh"

extern "C" __global__ void __launch_bounds__(256) experts_down(
    Rows rows, Matrix down, const u64* downs, u32 n_used, const float* hidden, const u32* experts, float* out) {
    u32 o = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32, r = blockIdx.y;
    if (o >= down.n_out || rows.slot[r] == PAD_SLOT) return;
    float sum = 0.0f;
    for (u32 i = 0; i < n_used; ++i) {
        const u8* data = (const u8*)downs[experts[(u64)r * n_used + i]];
        const float* h = hidden + ((u64)r * n_used + i) * down.n_in;
        for (u32 k = lane; k < down.n_in; k += 32) sum += weight_at<TYPE>(down, data, o, k) * h[k];
    }
    sum = warp_sum(sum);
    if (lane == 0) out[(u64)r * down.n_out + o] = sum;
}
