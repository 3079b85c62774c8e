// hidden[r, i, o] = swiglu of row o of expert i's gate and up matrices, with the
// expert's mixing weight. Without `experts` there is one expert of weight 1.
// A warp computes one output of one expert of one row: grid (n_hidden / 8, n_used, n_rows).
#include "blocks.cuh"

extern "C" __global__ void __launch_bounds__(256) experts_gate_up(
    Rows rows, const u64* gates, const u64* ups, u64 gate_row_bytes, u64 up_row_bytes, u32 n_in, u32 n_hidden, float clamp,
    const float* x, const u32* experts, const float* weights, float* hidden) {
    u32 o = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 i = blockIdx.y, r = blockIdx.z, n_used = gridDim.y;
    if (o >= n_hidden || rows.slot[r] == PAD_SLOT) return;
    u32 expert = experts ? experts[(u64)r * n_used + i] : 0;
    const u8* gate = (const u8*)gates[expert] + o * gate_row_bytes;
    const u8* up = (const u8*)ups[expert] + o * up_row_bytes;
    x += (u64)r * n_in;
    float g = 0.0f, u = 0.0f;
    for (u32 k = lane; k < n_in; k += 32) {
        g += element<TYPE>(gate, k) * x[k];
        u += element<TYPE_UP>(up, k) * x[k];
    }
    g = warp_sum(g);
    u = warp_sum(u);
    float weight = weights ? weights[(u64)r * n_used + i] : 1.0f;
    if (lane == 0) hidden[((u64)r * n_used + i) * n_hidden + o] = swiglu(g, u, clamp, weight);
}
