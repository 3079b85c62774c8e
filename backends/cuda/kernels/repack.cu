// Repacking of weights on the device, from the file's rows to the layouts of layout.cuh. One thread
// makes one 32-bit word of the destination; launch with any grid.
#include "layout.cuh"

#define DS4_FOR_WORDS(n)                                                                             \
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < (n); i += (size_t)gridDim.x * blockDim.x)

extern "C" __global__ void __launch_bounds__(256) ds4_repack_q8(const uint8_t *src, uint32_t *out, uint32_t n_in,
                                                                size_t n_words) {
    DS4_FOR_WORDS(n_words) out[i] = ds4_q8_word(src, n_in, i);
}

extern "C" __global__ void __launch_bounds__(256) ds4_repack_iq2_pair(const uint8_t *gate, const uint8_t *up,
                                                                      uint32_t *out, uint32_t n_in, size_t n_words) {
    DS4_FOR_WORDS(n_words) out[i] = ds4_iq2_pair_word(gate, up, n_in, i);
}

// Gate (part 0) or up (part 1) alone: the other half of every record stays as it is.
extern "C" __global__ void __launch_bounds__(256) ds4_repack_iq2_half(const uint8_t *src, uint32_t part, uint32_t *out,
                                                                      uint32_t n_in, size_t n_words) {
    const uint32_t half = DS4_IQ2_PAIR / 8;
    DS4_FOR_WORDS(n_words / 2) {
        const size_t word = i / half * (2 * half) + part * half + i % half;
        out[word] = ds4_iq2_pair_word(src, src, n_in, word);
    }
}

extern "C" __global__ void __launch_bounds__(256) ds4_repack_q2k(const uint8_t *src, uint32_t *out, uint32_t n_in,
                                                                 size_t n_words) {
    DS4_FOR_WORDS(n_words) out[i] = ds4_q2k_word(src, n_in, i);
}

extern "C" __global__ void __launch_bounds__(256) ds4_repack_hc(const uint8_t *src, uint32_t *out, uint32_t n_mix,
                                                                uint32_t n_hc, uint32_t n_embd, size_t n_words) {
    DS4_FOR_WORDS(n_words) out[i] = ds4_hc_word(src, n_mix, n_hc, n_embd, i);
}
