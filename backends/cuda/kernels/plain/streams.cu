// Hyper-connections: gates from the products of `fn`, weighted sums, and the
// mix after a sublayer. One block a row unless said.
#include "common.cuh"

// `gates` holds fn . v on entry. n_hc <= 16.
extern "C" __global__ void __launch_bounds__(256) hc_gates(
    Rows rows, const float* streams, u32 width, const float* base, const float* scale,
    u32 n_hc, u32 n_sinkhorn, float rms_eps, float hc_eps, float* gates) {
    __shared__ float scratch[32];
    __shared__ float c[256];
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    const float* v = streams + (u64)r * width;
    float square = 0.0f;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) square += v[c] * v[c];
    float inv = 1.0f / sqrtf(block_sum(square, scratch) / (float)width + rms_eps);
    if (threadIdx.x != 0) return;
    u32 n = n_hc;
    float* g = gates + (u64)r * n * (2 + n);
    for (u32 j = 0; j < n; ++j) {
        g[j] = sigmoid(g[j] * inv * scale[0] + base[j]) + hc_eps;
        g[n + j] = 2.0f * sigmoid(g[n + j] * inv * scale[1] + base[n + j]);
    }
    for (u32 i = 0; i < n * n; ++i) c[i] = g[2 * n + i] * inv * scale[2] + base[2 * n + i];
    // A softmax along the destination, then both normalisations in turn, the
    // columns last.
    for (u32 step = 0; step < n_sinkhorn; ++step) {
        for (u32 j = 0; j < n; ++j) {
            float most = c[j * n], sum = 0.0f;
            for (u32 k = 1; k < n; ++k) most = fmaxf(most, c[j * n + k]);
            for (u32 k = 0; k < n; ++k) {
                if (step == 0) c[j * n + k] = expf(c[j * n + k] - most);
                sum += c[j * n + k];
            }
            for (u32 k = 0; k < n; ++k)
                c[j * n + k] = step == 0 ? c[j * n + k] / sum + hc_eps : c[j * n + k] / (sum + hc_eps);
        }
        for (u32 k = 0; k < n; ++k) {
            float sum = 0.0f;
            for (u32 j = 0; j < n; ++j) sum += c[j * n + k];
            for (u32 j = 0; j < n; ++j) c[j * n + k] /= sum + hc_eps;
        }
    }
    for (u32 i = 0; i < n * n; ++i) g[2 * n + i] = c[i];
}

// x[r] = sum over j of gates[r, j] * streams[r, j].
extern "C" __global__ void __launch_bounds__(256) hc_pre(
    Rows rows, const float* streams, const float* gates, u32 n_gates, u32 n_hc, u32 n_embd, float* x) {
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    for (u32 c = threadIdx.x; c < n_embd; c += blockDim.x) {
        float sum = 0.0f;
        for (u32 j = 0; j < n_hc; ++j) sum += gates[(u64)r * n_gates + j] * streams[((u64)r * n_hc + j) * n_embd + c];
        x[(u64)r * n_embd + c] = sum;
    }
}

// streams'[k] = post[k] * y + sum over j of comb[j, k] * streams[j].
extern "C" __global__ void __launch_bounds__(256) hc_post(
    Rows rows, const float* y, const float* gates, u32 n_hc, u32 n_embd, float* streams) {
    u32 r = blockIdx.x, n = n_hc;
    if (rows.slot[r] == PAD_SLOT) return;
    const float* post = gates + (u64)r * n * (2 + n) + n;
    const float* comb = post + n;
    float* s = streams + (u64)r * n * n_embd;
    for (u32 c = threadIdx.x; c < n_embd; c += blockDim.x) {
        float old[16];
#pragma unroll
        for (u32 j = 0; j < 16; ++j) old[j] = j < n ? s[(u64)j * n_embd + c] : 0.0f;
        for (u32 k = 0; k < n; ++k) {
            float mixed = 0.0f;
#pragma unroll
            for (u32 j = 0; j < 16; ++j)
                if (j < n) mixed += comb[j * n + k] * old[j];
            s[(u64)k * n_embd + c] = post[k] * y[(u64)r * n_embd + c] + mixed;
        }
    }
}

// h = sum over j of w[j] * streams[j], w[j] = sigmoid(products[j] * inv * scale[0] + base[j]) + eps.
extern "C" __global__ void __launch_bounds__(256) hc_head(
    Rows rows, const float* streams, const float* products, const float* base, const float* scale,
    u32 n_hc, u32 n_embd, float rms_eps, float hc_eps, float* h) {
    __shared__ float scratch[32];
    u32 r = blockIdx.x, width = n_hc * n_embd;
    if (rows.slot[r] == PAD_SLOT) return;
    const float* v = streams + (u64)r * width;
    float square = 0.0f;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) square += v[c] * v[c];
    float inv = 1.0f / sqrtf(block_sum(square, scratch) / (float)width + rms_eps);
    for (u32 c = threadIdx.x; c < n_embd; c += blockDim.x) {
        float sum = 0.0f;
        for (u32 j = 0; j < n_hc; ++j) {
            float w = sigmoid(products[(u64)r * n_hc + j] * inv * scale[0] + base[j]) + hc_eps;
            sum += w * v[(u64)j * n_embd + c];
        }
        h[(u64)r * n_embd + c] = sum;
    }
}

// hc_head with the products of `fn` (f16, layout HC of four rows and four streams) as its first part.
extern "C" __global__ void __launch_bounds__(512) hc_head_4(
    Rows rows, const float* streams, const u16* fn, const float* base, const float* scale, u32 n_embd,
    float rms_eps, float hc_eps, float* h) {
    __shared__ float scratch[32];
    u32 r = blockIdx.x, width = 4 * n_embd;
    if (rows.slot[r] == PAD_SLOT) return;
    const float* v = streams + (u64)r * width;
    float sums[5] = {};
    for (u32 c = threadIdx.x; c < n_embd; c += blockDim.x) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            float x = v[(u64)j * n_embd + c];
            sums[4] += x * x;
#pragma unroll
            for (u32 i = 0; i < 4; ++i) sums[i] += f16_value(fn[((c / 32 * 4 + i) * 4 + j) * 32 + c % 32]) * x;
        }
    }
#pragma unroll
    for (u32 i = 0; i < 5; ++i) sums[i] = block_sum(sums[i], scratch);
    float inv = 1.0f / sqrtf(sums[4] / (float)width + rms_eps), w[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) w[i] = sigmoid(sums[i] * inv * scale[0] + base[i]) + hc_eps;
    for (u32 c = threadIdx.x; c < n_embd; c += blockDim.x) {
        float sum = 0.0f;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) sum += w[j] * v[(u64)j * n_embd + c];
        h[(u64)r * n_embd + c] = sum;
    }
}

// out[r] = x[source[r]].
extern "C" __global__ void __launch_bounds__(256) select_rows(Rows rows, const float* x, u32 width, float* out) {
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) out[(u64)r * width + c] = x[(u64)rows.source[r] * width + c];
}

// out[r] = mean over j of streams[r, j], at channel `at` of rows of `out_width`.
extern "C" __global__ void __launch_bounds__(256) tap(
    Rows rows, const float* streams, u32 n_hc, u32 n_embd, float* out, u32 out_width, u32 at) {
    u32 r = blockIdx.x;
    if (rows.slot[r] == PAD_SLOT) return;
    for (u32 c = threadIdx.x; c < n_embd; c += blockDim.x) {
        float sum = 0.0f;
        for (u32 j = 0; j < n_hc; ++j) sum += streams[((u64)r * n_hc + j) * n_embd + c];
        out[(u64)r * out_width + at + c] = sum / (float)n_hc;
    }
}
