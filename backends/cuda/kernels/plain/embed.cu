// streams[r, j] = table[token[r]] for every stream j. Grid (n_rows).
#include "blocks.cuh"

extern "C" __global__ void __launch_bounds__(256) embed(Rows rows, Matrix table, u32 n_hc, float* streams) {
    u32 r = blockIdx.x, n_embd = table.n_in;
    if (rows.slot[r] == PAD_SLOT) return;
    for (u32 c = threadIdx.x; c < n_embd; c += blockDim.x) {
        float value = weight_at<TYPE>(table, table.data, rows.token[r], c);
        for (u32 j = 0; j < n_hc; ++j) streams[((u64)r * n_hc + j) * n_embd + c] = value;
    }
}
