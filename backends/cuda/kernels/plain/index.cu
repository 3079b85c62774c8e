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

// The bin in which the k-th falls: counts from the top, 8 bins a lane of the first warp. In whole blocks.
__device__ __forceinline__ void choose_bin(const u32* bins, u32 prefix, int shift, u32 left, u32* state) {
    if (threadIdx.x < 32) {
        u32 top = 255 - 8 * threadIdx.x, sum = 0;
        for (u32 i = 0; i < 8; ++i) sum += bins[top - i];
        u32 before = sum;
        for (u32 step = 1; step < 32; step *= 2) {
            u32 other = __shfl_up_sync(FULL_WARP, before, step);
            if (threadIdx.x >= step) before += other;
        }
        before -= sum;
        if (before < left && before + sum >= left) {
            u32 bin = top, rest = left - before;
            while (bins[bin] < rest) rest -= bins[bin--];
            state[0] = prefix | bin << shift;
            state[1] = rest;
        }
    }
    __syncthreads();
}

// The `k` largest of `n` keys of 32 bits: the key of the k-th and how many equal
// to it belong to them. Four rounds of a histogram of 8 bits. `bins` has 256 counts.
__device__ void kth_key(const float* values, u32 n, u32 k, u32* bins, u32* state) {
    u32 prefix = 0, left = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (u32 b = threadIdx.x; b < 256; b += blockDim.x) bins[b] = 0;
        __syncthreads();
        // Most values of a row fall into a few bins: the lanes of a warp that share one add once.
        for (u32 at = 0; at < n; at += blockDim.x) {
            u32 i = at + threadIdx.x, key = i < n ? order_key(values[i]) : 0;
            bool counts = i < n && (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8));
            u32 bin = counts ? (key >> shift) & 255 : 256;
            u32 peers = __match_any_sync(FULL_WARP, bin);
            if (counts && (peers & ((1u << threadIdx.x % 32) - 1)) == 0) atomicAdd(&bins[bin], (u32)__popc(peers));
        }
        __syncthreads();
        choose_bin(bins, prefix, shift, left, state);
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

// Of `n` values those that are among the k largest, ties to the lowest index, in order of index, at
// most k of them: calls `take(place, index)` for each. In whole blocks; k <= n.
template <typename Take>
__device__ void for_largest(const float* values, u32 n, u32 k, u32* bins, u32* state, u32* counts, Take take) {
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
        if (taken) take(place, i);
    }
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
    for_largest(values, n, k, bins, state, counts, [&](u32 place, u32 i) { out[place] = i; });
}

// Values of a choice that a thread holds in registers.
constexpr u32 HELD = 8;

// As `for_largest` for keys that a block holds: thread t has those of the values HELD * t on, `n_held` of them.
// Calls `take(place, j)` for the j-th of the thread. In whole blocks; k is at most the number of all.
template <typename Take>
__device__ void for_largest_held(const u32 (&keys)[HELD], u32 n_held, u32 k, u32* bins, u32* state, u32* counts, Take take) {
    u32 prefix = 0, left = k, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (u32 b = threadIdx.x; b < 256; b += blockDim.x) bins[b] = 0;
        __syncthreads();
#pragma unroll
        for (u32 j = 0; j < HELD; ++j) {
            bool counted = j < n_held && (shift == 24 || keys[j] >> (shift + 8) == prefix >> (shift + 8));
            u32 bin = counted ? (keys[j] >> shift) & 255 : 256;
            u32 peers = __match_any_sync(FULL_WARP, bin);
            if (counted && (peers & ((1u << lane) - 1)) == 0) atomicAdd(&bins[bin], (u32)__popc(peers));
        }
        __syncthreads();
        choose_bin(bins, prefix, shift, left, state);
        prefix = state[0];
        left = state[1];
        __syncthreads();
    }
    // Those above the threshold in the lower half, those equal to it in the upper: at most 8,192 of each.
    u32 mine = 0;
#pragma unroll
    for (u32 j = 0; j < HELD; ++j) {
        if (j < n_held) mine += keys[j] > prefix ? 1u : keys[j] == prefix ? 1u << 16 : 0u;
    }
    u32 before = mine;
    for (u32 step = 1; step < 32; step *= 2) {
        u32 other = __shfl_up_sync(FULL_WARP, before, step);
        if (lane >= step) before += other;
    }
    if (lane == 31) counts[warp] = before;
    __syncthreads();
    before -= mine;
    for (u32 w = 0; w < warp; ++w) before += counts[w];
    u32 above = before & 0xffff, equal = before >> 16;
#pragma unroll
    for (u32 j = 0; j < HELD; ++j) {
        if (j >= n_held) continue;
        if (keys[j] > prefix) {
            take(above++ + min(equal, left), j);
        } else if (keys[j] == prefix) {
            if (equal < left) take(above + equal, j);
            ++equal;
        }
    }
}

// What a share of a row's logits has: its largest, and sums of exponentials relative to its maximum.
struct Share {
    float most;
    float one;
    float own;
    float wrong;
};

// The k largest of every share of a row, in order of id, missing ones as -inf with id PAD_SLOT; k <= 256.
// Grid (shares, outputs).
extern "C" __global__ void __launch_bounds__(512) choose_shares(
    Rows rows, const float* logits, u32 n, u32 k, Share* shares, float* values, u32* ids) {
    __shared__ u32 bins[256];
    __shared__ u32 state[2];
    __shared__ u32 counts[32];
    __shared__ float scratch[32];
    u32 r = blockIdx.y;
    if (rows.slot[r] == PAD_SLOT) return;
    u32 each = (n + gridDim.x - 1) / gridDim.x, start = min(blockIdx.x * each, n), m = min(each, n - start);
    const float* z = logits + (u64)r * n + start;
    // What a thread holds of a share that the block can hold; longer ones are read again and again.
    u32 held_from = HELD * threadIdx.x, n_held = m > HELD * blockDim.x || held_from >= m ? 0 : min(HELD, m - held_from);
    bool is_held = m <= HELD * blockDim.x;
    float held[HELD];
#pragma unroll
    for (u32 j = 0; j < HELD; ++j) held[j] = j < n_held ? z[held_from + j] : 0.0f;
    float most = -__int_as_float(0x7f800000), wrong = 0.0f;
    auto each_value = [&](auto use) {
        if (is_held) {
#pragma unroll
            for (u32 j = 0; j < HELD; ++j) {
                if (j < n_held) use(held[j]);
            }
        } else {
            for (u32 i = threadIdx.x; i < m; i += blockDim.x) use(z[i]);
        }
    };
    each_value([&](float x) {
        most = fmaxf(most, x);
        if (!isfinite(x)) wrong = 1.0f;
    });
    most = block_max(most, scratch);
    wrong = block_max(wrong, scratch);
    float t = rows.inv_temperature[r], one = 0.0f, own = 0.0f;
    each_value([&](float x) {
        one += expf(x - most);
        own += expf((x - most) * t);
    });
    one = block_sum(one, scratch);
    own = block_sum(own, scratch);
    u64 share = (u64)r * gridDim.x + blockIdx.x;
    if (threadIdx.x == 0) shares[share] = Share{most, one, own, wrong};
    values += share * k;
    ids += share * k;
    u32 taken = min(k, m);
    for (u32 i = taken + threadIdx.x; i < k; i += blockDim.x) {
        values[i] = -__int_as_float(0x7f800000);
        ids[i] = PAD_SLOT;
    }
    if (taken == 0) return;
    if (is_held) {
        u32 keys[HELD];
#pragma unroll
        for (u32 j = 0; j < HELD; ++j) keys[j] = order_key(held[j]);
        for_largest_held(keys, n_held, taken, bins, state, counts, [&](u32 place, u32 j) {
            values[place] = z[held_from + j];
            ids[place] = start + held_from + j;
        });
        return;
    }
    for_largest(z, m, taken, bins, state, counts, [&](u32 place, u32 i) {
        values[place] = z[i];
        ids[place] = start + i;
    });
}

// The `k` largest logits of a row in descending order, of equal ones the lowest
// id first, from those of its shares, and the log-sum-exp of the logits at
// temperature 1 and at the row's own, NaN when a logit is not finite. k <= 256,
// no more than the row has; n_shares * k <= HELD * 1024. Grid (outputs), 1024 threads.
extern "C" __global__ void __launch_bounds__(1024) choose(
    Rows rows, const Share* shares, const float* share_values, const u32* share_ids, u32 n_shares, u32 k,
    u32* ids, float* values, float* lse) {
    __shared__ u32 bins[256];
    __shared__ u32 state[2];
    __shared__ u32 counts[32];
    __shared__ u32 chosen[256];
    __shared__ u32 chosen_at[256];
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    shares += (u64)r * n_shares;
    share_values += (u64)r * n_shares * k;
    share_ids += (u64)r * n_shares * k;
    if (threadIdx.x < 32) {
        float most = -__int_as_float(0x7f800000), wrong = 0.0f, one = 0.0f, own = 0.0f;
        for (u32 i = threadIdx.x; i < n_shares; i += 32) {
            most = fmaxf(most, shares[i].most);
            wrong = fmaxf(wrong, shares[i].wrong);
        }
        most = warp_max(most);
        wrong = warp_max(wrong);
        float t = rows.inv_temperature[r];
        for (u32 i = threadIdx.x; i < n_shares; i += 32) {
            if (shares[i].one == 0.0f) continue;
            one += shares[i].one * expf(shares[i].most - most);
            own += shares[i].own * expf((shares[i].most - most) * t);
        }
        one = warp_sum(one);
        own = warp_sum(own);
        if (threadIdx.x == 0) {
            float nan = __int_as_float(0x7fc00000);
            lse[2 * r] = wrong != 0.0f ? nan : most + logf(one);
            lse[2 * r + 1] = wrong != 0.0f ? nan : most * t + logf(own);
            state[0] = wrong != 0.0f;
        }
    }
    __syncthreads();
    bool is_wrong = state[0];
    __syncthreads();
    if (is_wrong) return;
    u32 first = HELD * threadIdx.x, n = n_shares * k, n_held = first >= n ? 0 : min(HELD, n - first);
    u32 keys[HELD];
#pragma unroll
    for (u32 j = 0; j < HELD; ++j) keys[j] = j < n_held ? order_key(share_values[first + j]) : 0;
    for_largest_held(keys, n_held, k, bins, state, counts, [&](u32 place, u32 j) {
        chosen[place] = keys[j];
        chosen_at[place] = first + j;
    });
    __syncthreads();
    // The rank of each among the chosen, which are in order of id: four threads count for one.
    u32 i = threadIdx.x / 4, rank = 0;
    u32 key = i < k ? chosen[i] : 0;
    for (u32 j = threadIdx.x % 4; j < k; j += 4) rank += chosen[j] > key || (chosen[j] == key && j < i);
    rank += __shfl_xor_sync(FULL_WARP, rank, 1);
    rank += __shfl_xor_sync(FULL_WARP, rank, 2);
    if (i < k && threadIdx.x % 4 == 0) {
        ids[(u64)r * k + rank] = share_ids[chosen_at[i]];
        values[(u64)r * k + rank] = share_values[chosen_at[i]];
    }
}
