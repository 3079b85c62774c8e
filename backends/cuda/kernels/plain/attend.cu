// Attention with sinks over the window and the compressed rows, f32. A block
// takes one head of one row, 256 attended rows at a time with a running maximum.
// Grid (heads, rows); (2 * dim + 256) floats of shared memory.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256, 2) attend(
    Rows rows, const float* q, const float* kv, Cache ring, Cache compressed, u32 ratio,
    const u32* selected, u32 n_selected, const float* sinks, float scale, float* out) {
    extern __shared__ float shared[];
    __shared__ float scratch[32];
    u32 h = blockIdx.x, r = blockIdx.y, dim = ring.width;
    if (rows.slot[r] == PAD_SLOT) return;
    float* query = shared;
    float* sum = shared + dim;
    float* p = shared + 2 * dim;
    u64 at = ((u64)r * gridDim.x + h) * dim;
    for (u32 c = threadIdx.x; c < dim; c += blockDim.x) {
        query[c] = q[at + c];
        sum[c] = 0.0f;
    }
    u32 slot = rows.slot[r], position = rows.position[r];
    u32 batch_start = segment_position(rows, r), first_row = rows.first_row[r];
    // Window rows in order of position: of the ring, then of the batch.
    u32 first = rows.window_start[r];
    u32 n_window = batch_start + (rows.see_end[r] - first_row) - first;
    u32 n_compressed = ratio ? (position + 1) / ratio : 0;
    if (selected) n_compressed = min(n_compressed, n_selected);
    u32 n = n_window + n_compressed, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float most = sinks[h], total = 1.0f;
    __syncthreads();
    for (u32 start = 0; start < n; start += 256) {
        u32 m = min(n - start, 256u);
        for (u32 i = warp; i < m; i += blockDim.x / 32) {
            float z = 0.0f;
            u32 a = start + i;
            if (a < n_window) {
                u32 position_a = first + a;
                if (position_a >= batch_start) {
                    const float* row = kv + (u64)(first_row + position_a - batch_start) * dim;
                    for (u32 c = lane; c < dim; c += 32) z += query[c] * row[c];
                } else {
                    u64 row = ring_row(ring, slot, position_a);
                    for (u32 c = lane; c < dim; c += 32) z += query[c] * cache_get(ring, row, c);
                }
            } else {
                u32 index = selected ? selected[(u64)r * n_selected + a - n_window] : a - n_window;
                u64 row = compressed_row(rows, r, index, ratio);
                for (u32 c = lane; c < dim; c += 32) z += query[c] * cache_get(compressed, row, c);
            }
            z = warp_sum(z) * scale;
            if (lane == 0) p[i] = z;
        }
        __syncthreads();
        float z = threadIdx.x < m ? p[threadIdx.x] : -__int_as_float(0x7f800000);
        float now = fmaxf(most, block_max(z, scratch));
        float rescale = expf(most - now);
        float e = threadIdx.x < m ? expf(z - now) : 0.0f;
        total = total * rescale + block_sum(e, scratch);
        most = now;
        p[threadIdx.x] = e;
        __syncthreads();
        for (u32 c = threadIdx.x; c < dim; c += blockDim.x) {
            float s = sum[c] * rescale;
            for (u32 i = 0; i < m; ++i) {
                u32 a = start + i;
                float value;
                if (a < n_window) {
                    u32 position_a = first + a;
                    value = position_a >= batch_start ? kv[(u64)(first_row + position_a - batch_start) * dim + c]
                                                      : cache_get(ring, ring_row(ring, slot, position_a), c);
                } else {
                    u32 index = selected ? selected[(u64)r * n_selected + a - n_window] : a - n_window;
                    value = cache_get(compressed, compressed_row(rows, r, index, ratio), c);
                }
                s += p[i] * value;
            }
            sum[c] = s;
        }
        __syncthreads();
    }
    // The sink entered as exp(sink - most) = 1 at the start.
    for (u32 c = threadIdx.x; c < dim; c += blockDim.x) out[at + c] = sum[c] / total;
}
