// Rows into the caches, and the pooling of compressed rows. One block a row.
#include "common.cuh"

// kv at position % n_rows of the slot's ring; of a segment longer than the ring
// only its last rows, so that no two rows write the same place.
extern "C" __global__ void __launch_bounds__(256) store_window(Rows rows, const float* kv, Cache ring) {
    u32 r = blockIdx.x, slot = rows.slot[r];
    if (slot == PAD_SLOT || r + ring.n_rows < rows.end_row[r]) return;
    u64 at = ring_row(ring, slot, rows.position[r]);
    for (u32 c = threadIdx.x; c < ring.width; c += blockDim.x) cache_set(ring, at, c, kv[(u64)r * ring.width + c]);
}

// kv, then gate.
extern "C" __global__ void __launch_bounds__(256) store_frontier(Rows rows, const float* kv, const float* gate, Cache ring) {
    u32 r = blockIdx.x, slot = rows.slot[r], dim = ring.width / 2;
    if (slot == PAD_SLOT || r + ring.n_rows < rows.end_row[r]) return;
    u64 at = ring_row(ring, slot, rows.position[r]);
    for (u32 c = threadIdx.x; c < dim; c += blockDim.x) {
        cache_set(ring, at, c, kv[(u64)r * dim + c]);
        cache_set(ring, at, dim + c, gate[(u64)r * dim + c]);
    }
}

extern "C" __global__ void __launch_bounds__(256) store_compressed(Rows rows, u32 ratio, const float* pooled, Cache cache) {
    u32 r = blockIdx.x;
    u32 end = rows.position[r] + 1;
    if (rows.slot[r] == PAD_SLOT || end % ratio != 0) return;
    u64 at = compressed_row(rows, r, end / ratio - 1, ratio);
    for (u32 c = threadIdx.x; c < cache.width; c += blockDim.x) cache_set(cache, at, c, pooled[(u64)r * cache.width + c]);
}

extern "C" __global__ void __launch_bounds__(256) add_position_bias(Rows rows, const float* ape, u32 ratio, float* gate, u32 width) {
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    const float* bias = ape + (u64)(rows.position[r] % ratio) * width;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) gate[(u64)r * width + c] += bias[c];
}

// Per channel a softmax of the gates over the tokens of the row that token r
// completes, applied to their projections; zero when it completes none. With
// `overlap` the own window's tokens are in the upper half of the channels.
extern "C" __global__ void __launch_bounds__(256) pool(
    Rows rows, u32 ratio, u32 n_pooled, u32 overlap, const float* kv, const float* gate, u32 dim, Cache frontier, float* pooled, u32 d) {
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    pooled += (u64)r * d;
    u32 end = rows.position[r] + 1;
    if (end % ratio != 0) {
        for (u32 c = threadIdx.x; c < d; c += blockDim.x) pooled[c] = 0.0f;
        return;
    }
    u32 batch_start = segment_position(rows, r);
    u32 first = end > n_pooled ? end - n_pooled : 0;
    for (u32 c = threadIdx.x; c < d; c += blockDim.x) {
        float most = -__int_as_float(0x7f800000), weight = 0.0f, sum = 0.0f;
        for (u32 pass = 0; pass < 2; ++pass) {
            for (u32 p = first; p < end; ++p) {
                u32 at = c + (overlap && p + ratio >= end ? d : 0);
                float a, g;
                if (p >= batch_start) {
                    u64 row = rows.first_row[r] + (p - batch_start);
                    a = kv[row * dim + at];
                    g = gate[row * dim + at];
                } else {
                    u64 row = ring_row(frontier, rows.slot[r], p);
                    a = cache_get(frontier, row, at);
                    g = cache_get(frontier, row, dim + at);
                }
                if (pass == 0) {
                    most = fmaxf(most, g);
                } else {
                    float e = expf(g - most);
                    weight += e;
                    sum += e * a;
                }
            }
        }
        pooled[c] = sum / weight;
    }
}
