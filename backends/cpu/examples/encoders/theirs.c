/* Encodes a file of numbers with llama.cpp's quantisers: the other side of main.rs.
 *
 *     theirs NUMBERS WEIGHTS|- COLUMNS OUT
 *
 * NUMBERS and WEIGHTS are f32; WEIGHTS has COLUMNS of them, for every row the same. Encodes each type
 * that TYPES names, writes its blocks to OUT.NAME, and says `NAME SECONDS` of processor time. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ggml-quants.h"

typedef size_t (*quantizer)(const float *, void *, int64_t, int64_t, const float *);

static const struct {
    const char *name;
    enum ggml_type type;
    size_t block_len, block_bytes;
    quantizer run;
} TYPES[] = {
    {"Q8_0", GGML_TYPE_Q8_0, 32, 34, quantize_q8_0},
    {"Q2_K", GGML_TYPE_Q2_K, 256, 84, quantize_q2_K},
    {"Q3_K", GGML_TYPE_Q3_K, 256, 110, quantize_q3_K},
    {"Q4_K", GGML_TYPE_Q4_K, 256, 144, quantize_q4_K},
    {"Q5_K", GGML_TYPE_Q5_K, 256, 176, quantize_q5_K},
    {"Q6_K", GGML_TYPE_Q6_K, 256, 210, quantize_q6_K},
    {"IQ2_XXS", GGML_TYPE_IQ2_XXS, 256, 66, quantize_iq2_xxs},
    {"IQ2_XS", GGML_TYPE_IQ2_XS, 256, 74, quantize_iq2_xs},
    {"IQ2_S", GGML_TYPE_IQ2_S, 256, 82, quantize_iq2_s},
    {"IQ3_XXS", GGML_TYPE_IQ3_XXS, 256, 98, quantize_iq3_xxs},
    {"IQ3_S", GGML_TYPE_IQ3_S, 256, 110, quantize_iq3_s},
    {"IQ1_S", GGML_TYPE_IQ1_S, 256, 50, quantize_iq1_s},
    {"IQ1_M", GGML_TYPE_IQ1_M, 256, 56, quantize_iq1_m},
    {"IQ4_NL", GGML_TYPE_IQ4_NL, 32, 18, quantize_iq4_nl},
    {"IQ4_XS", GGML_TYPE_IQ4_XS, 256, 136, quantize_iq4_xs},
    {"MXFP4", GGML_TYPE_MXFP4, 32, 17, quantize_mxfp4},
};
enum { N_TYPES = sizeof(TYPES) / sizeof(TYPES[0]) };

void iq2xs_init_impl(enum ggml_type type);
void iq3xs_init_impl(int grid_size);

/* What the quantisers ask of the rest of ggml. */
void ggml_abort(const char *file, int line, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, format, args);
    va_end(args);
    exit(1);
}
size_t ggml_row_size(enum ggml_type type, int64_t n) {
    for (int i = 0; i < N_TYPES; i++)
        if (TYPES[i].type == type) return (size_t)n / TYPES[i].block_len * TYPES[i].block_bytes;
    ggml_abort(__FILE__, __LINE__, "type %d", type);
    return 0;
}
size_t ggml_type_size(enum ggml_type type) { return ggml_row_size(type, 256); }
const char *ggml_type_name(enum ggml_type type) {
    (void)type;
    return "a type";
}

static float *numbers(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    if (!file) ggml_abort(path, 0, "cannot be read\n");
    fseek(file, 0, SEEK_END);
    *n = (size_t)ftell(file) / sizeof(float);
    rewind(file);
    float *x = malloc(*n * sizeof(float));
    if (fread(x, sizeof(float), *n, file) != *n) ggml_abort(path, 0, "is cut off\n");
    fclose(file);
    return x;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "theirs NUMBERS WEIGHTS|- COLUMNS OUT\n");
        return 2;
    }
    size_t n, n_weights;
    float *x = numbers(argv[1], &n);
    float *w = strcmp(argv[2], "-") ? numbers(argv[2], &n_weights) : NULL;
    const int64_t columns = atoll(argv[3]), rows = (int64_t)n / columns;
    for (int i = 0; i < N_TYPES; i++) {
        switch (TYPES[i].type) {
        case GGML_TYPE_IQ3_XXS: iq3xs_init_impl(256); break;
        case GGML_TYPE_IQ3_S: iq3xs_init_impl(512); break;
        case GGML_TYPE_IQ2_XXS: case GGML_TYPE_IQ2_XS: case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ1_S: case GGML_TYPE_IQ1_M: iq2xs_init_impl(TYPES[i].type); break;
        default: break;
        }
        /* Some of their quantisers refuse to run without importances. */
        const int needs = TYPES[i].type == GGML_TYPE_IQ2_XXS || TYPES[i].type == GGML_TYPE_IQ2_XS ||
                          TYPES[i].type == GGML_TYPE_IQ1_S || TYPES[i].type == GGML_TYPE_IQ1_M;
        float *ones = NULL;
        if (needs && !w) {
            ones = malloc((size_t)columns * sizeof(float));
            for (int64_t c = 0; c < columns; c++) ones[c] = 1.0f;
        }
        const size_t n_bytes = n / TYPES[i].block_len * TYPES[i].block_bytes;
        void *out = calloc(n_bytes, 1);
        double least = 1e30;
        for (int run = 0; run < 3; run++) {
            const double start = seconds();
            TYPES[i].run(x, out, rows, columns, w ? w : ones);
            const double took = seconds() - start;
            if (took < least) least = took;
        }
        char path[4096];
        snprintf(path, sizeof path, "%s.%s", argv[4], TYPES[i].name);
        FILE *file = fopen(path, "wb");
        if (!file || fwrite(out, 1, n_bytes, file) != n_bytes || fclose(file))
            ggml_abort(path, 0, "cannot be written\n");
        printf("%s %.9f\n", TYPES[i].name, least);
        free(out);
        free(ones);
    }
    return 0;
}
