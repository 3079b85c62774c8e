// The choice of experts. One block a row.
#include "common.cuh"

// sqrt(softplus(x)), in place.
extern "C" __global__ void __launch_bounds__(256) router_scores(Rows rows, float* scores, u32 n_experts) {
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    for (u32 e = threadIdx.x; e < n_experts; e += blockDim.x) {
        float x = scores[(u64)r * n_experts + e];
        scores[(u64)r * n_experts + e] = sqrtf(fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))));
    }
}

// Scores of the chosen experts, normalised to a sum of `scale`, in one thread.
__device__ void mixing_weights(const float* scores, const u32* experts, u32 k, float scale, float* weights) {
    float sum = 0.0f;
    for (u32 i = 0; i < k; ++i) sum += scores[experts[i]];
    for (u32 i = 0; i < k; ++i) weights[i] = scale * scores[experts[i]] / fmaxf(sum, 1.17549435e-38f);
}

extern "C" __global__ void __launch_bounds__(32) route_hash(
    Rows rows, const u32* ids, const float* scores, u32 n_experts, u32 k, float scale, u32* experts, float* weights) {
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT || threadIdx.x != 0) return;
    for (u32 i = 0; i < k; ++i) experts[(u64)r * k + i] = ids[(u64)rows.token[r] * k + i];
    mixing_weights(scores + (u64)r * n_experts, experts + (u64)r * k, k, scale, weights + (u64)r * k);
}

// The k largest of scores + bias, ties to the lowest id, in descending order: k
// times the best key that is below the last. A key is the ordered score, then
// the id from the end.
extern "C" __global__ void __launch_bounds__(32) route_top_k(
    Rows rows, const float* bias, const float* scores, u32 n_experts, u32 k, float scale, u32* experts, float* weights) {
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    scores += (u64)r * n_experts;
    u64 last = ~0ull;
    for (u32 i = 0; i < k; ++i) {
        u64 best = 0;
        for (u32 e = threadIdx.x; e < n_experts; e += 32) {
            u64 key = (u64)order_key(scores[e] + bias[e]) << 32 | (0xffffffffu - e);
            if (key < last && key > best) best = key;
        }
        for (int step = 16; step > 0; step /= 2) {
            u64 other = __shfl_xor_sync(FULL_WARP, best, step);
            if (other > best) best = other;
        }
        last = best;
        if (threadIdx.x == 0) experts[(u64)r * k + i] = 0xffffffffu - (u32)best;
    }
    if (threadIdx.x == 0) mixing_weights(scores, experts + (u64)r * k, k, scale, weights + (u64)r * k);
}
