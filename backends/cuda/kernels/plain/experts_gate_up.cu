// hidden[r, i, o] = swiglu of row o of expert i's gate and up matrices, with the
// expert's mixing weight. Experts lie at the addresses of `gates` and `ups`;
// without `experts` there is one expert of weight 1, at the matrices' own.
// A warp computes one output of one expert of one row: grid (n_hidden / 8, n_used, n_rows).
#include "blocks.cuh"

extern "C" __global__ void __launch_bounds__(256) experts_gate_up(
    Rows rows, Matrix gate, Matrix up, const u64* gates, const u64* ups, float clamp,
    const float* x, const u32* experts, const float* weights, float* hidden) {
    u32 o = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 i = blockIdx.y, r = blockIdx.z, n_used = gridDim.y, n_in = gate.n_in;
    if (o >= gate.n_out || rows.slot[r] == PAD_SLOT) return;
    const u8 *gate_data = gate.data, *up_data = up.data;
    if (experts) {
        u32 expert = experts[(u64)r * n_used + i];
        gate_data = (const u8*)gates[expert];
        up_data = (const u8*)ups[expert];
    }
    x += (u64)r * n_in;
    float g = 0.0f, u = 0.0f;
    for (u32 k = lane; k < n_in; k += 32) {
        g += weight_at<TYPE>(gate, gate_data, o, k) * x[k];
        u += weight_at<TYPE_UP>(up, up_data, o, k) * x[k];
    }
    g = warp_sum(g);
    u = warp_sum(u);
    float weight = experts ? weights[(u64)r * n_used + i] : 1.0f;
    if (lane == 0) hidden[((u64)r * n_used + i) * gate.n_out + o] = swiglu(g, u, clamp, weight);
}
