// streams[r, j] = table[token[r]] for every stream j. Grid (n_rows).
#include "blocks.cuh"

extern "C" __global__ void __launch_bounds__(256) embed(
    Rows rows, const u8* table, u64 row_bytes, u32 n_embd, u32 n_hc, float* streams) {
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    const u8* row = table + rows.token[r] * row_bytes;
    for (u32 c = threadIdx.x; c < n_embd; c += blockDim.x) {
        float value = element<TYPE>(row, c);
        for (u32 j = 0; j < n_hc; ++j) streams[((u64)r * n_hc + j) * n_embd + c] = value;
    }
}
