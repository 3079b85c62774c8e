// Scores of index rows, and the choice of the largest.
#include "common.cuh"

// scores[r - start, c] for the visible c: a thread takes one index row.
// Grid (some, rows of the range).
extern "C" __global__ void __launch_bounds__(128) index_scores(
    Rows rows, u32 start, const float* iq, const float* weights, u32 n_heads, float scale, Cache cache, float* scores, u32 scores_width) {
    u32 r = start + blockIdx.y;
    if (rows.slot[r] == PAD_SLOT) return;
    u32 n_visible = (rows.position[r] + 1) / 4, dim = cache.width;
    iq += (u64)r * n_heads * dim;
    weights += (u64)r * n_heads;
    for (u32 c = blockIdx.x * blockDim.x + threadIdx.x; c < n_visible; c += gridDim.x * blockDim.x) {
        u64 key = compressed_row(rows, r, c, 4);
        float score = 0.0f;
        for (u32 h = 0; h < n_heads; ++h) {
            float sum = 0.0f;
            for (u32 i = 0; i < dim; ++i) sum += iq[h * dim + i] * cache_get(cache, key, i);
            score += weights[h] * scale * fmaxf(sum, 0.0f);
        }
        scores[(u64)blockIdx.y * scores_width + c] = score;
    }
}

// The `k` largest of `n` keys of 32 bits: the key of the k-th and how many equal
// to it belong to them. Four rounds of a histogram of 8 bits. `bins` has 256 counts.
__device__ void kth_key(const float* values, u32 n, u32 k, u32* bins, u32* state) {
    u32 prefix = 0, left = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (u32 b = threadIdx.x; b < 256; b += blockDim.x) bins[b] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
            u32 key = order_key(values[i]);
            if (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8)) atomicAdd(&bins[(key >> shift) & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u32 bin = 255;
            while (bins[bin] < left) left -= bins[bin--];
            state[0] = prefix | bin << shift;
            state[1] = left;
        }
        __syncthreads();
        prefix = state[0];
        left = state[1];
        __syncthreads();
    }
}

// Number of threads before this one for which `flag` holds, and the total.
__device__ u32 block_rank(bool flag, u32* counts, u32& total) {
    u32 ballot = __ballot_sync(FULL_WARP, flag), warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) counts[warp] = __popc(ballot);
    __syncthreads();
    u32 before = __popc(ballot & ((1u << threadIdx.x % 32) - 1));
    total = 0;
    for (u32 w = 0; w < blockDim.x / 32; ++w) {
        if (w < warp) before += counts[w];
        total += counts[w];
    }
    __syncthreads();
    return before;
}

// The indices of the k largest visible scores, ties to the lowest, ascending; all
// visible when there are no more. Grid (rows of the range).
extern "C" __global__ void __launch_bounds__(1024) top_k(
    Rows rows, u32 start, const float* scores, u32 scores_width, u32* selected, u32 k) {
    __shared__ u32 bins[256];
    __shared__ u32 state[2];
    __shared__ u32 counts[32];
    u32 r = start + blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    u32 n = (rows.position[r] + 1) / 4;
    const float* values = scores + (u64)blockIdx.x * scores_width;
    u32* out = selected + (u64)r * k;
    if (n <= k) {
        for (u32 i = threadIdx.x; i < n; i += blockDim.x) out[i] = i;
        return;
    }
    kth_key(values, n, k, bins, state);
    u32 threshold = state[0], n_equal = state[1], n_out = 0, n_tied = 0;
    for (u32 at = 0; at < n; at += blockDim.x) {
        u32 i = at + threadIdx.x;
        u32 key = i < n ? order_key(values[i]) : 0;
        u32 total;
        u32 tie = block_rank(i < n && key == threshold, counts, total) + n_tied;
        n_tied += total;
        bool taken = i < n && (key > threshold || (key == threshold && tie < n_equal));
        u32 place = block_rank(taken, counts, total) + n_out;
        n_out += total;
        if (taken) out[place] = i;
    }
}

// The `k` largest logits of a row in descending order, of equal ones the lowest
// id first, and the log-sum-exp of the logits at temperature 1 and at the row's
// own, NaN when a logit is not finite. k <= 1024, k <= n. Grid (outputs).
extern "C" __global__ void __launch_bounds__(1024) choose(
    Rows rows, const float* logits, u32 n, u32 k, u32* ids, float* values, float* lse) {
    __shared__ u32 bins[256];
    __shared__ u32 state[2];
    __shared__ u32 counts[32];
    __shared__ float scratch[32];
    __shared__ u32 chosen[1024];
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    const float* z = logits + (u64)r * n;
    float most = -__int_as_float(0x7f800000), wrong = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        most = fmaxf(most, z[i]);
        if (!isfinite(z[i])) wrong = 1.0f;
    }
    most = block_max(most, scratch);
    if (block_max(wrong, scratch) != 0.0f) {
        if (threadIdx.x < 2) lse[2 * r + threadIdx.x] = __int_as_float(0x7fc00000);
        return;
    }
    float t = rows.inv_temperature[r], one = 0.0f, own = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) {
        one += expf(z[i] - most);
        own += expf((z[i] - most) * t);
    }
    one = block_sum(one, scratch);
    own = block_sum(own, scratch);
    if (threadIdx.x == 0) {
        lse[2 * r] = most + logf(one);
        lse[2 * r + 1] = most * t + logf(own);
    }
    kth_key(z, n, k, bins, state);
    u32 threshold = state[0], n_equal = state[1], n_out = 0, n_tied = 0;
    for (u32 at = 0; at < n; at += blockDim.x) {
        u32 i = at + threadIdx.x;
        u32 key = i < n ? order_key(z[i]) : 0;
        u32 total;
        u32 tie = block_rank(i < n && key == threshold, counts, total) + n_tied;
        n_tied += total;
        bool taken = i < n && (key > threshold || (key == threshold && tie < n_equal));
        u32 place = block_rank(taken, counts, total) + n_out;
        n_out += total;
        if (taken) chosen[place] = i;
    }
    __syncthreads();
    // The rank of each among the chosen, which are in order of id.
    for (u32 i = threadIdx.x; i < k; i += blockDim.x) {
        u32 key = order_key(z[chosen[i]]), rank = 0;
        for (u32 j = 0; j < k; ++j) {
            u32 other = order_key(z[chosen[j]]);
            rank += other > key || (other == key && j < i);
        }
        ids[(u64)r * k + rank] = chosen[i];
        values[(u64)r * k + rank] = z[chosen[i]];
    }
}
