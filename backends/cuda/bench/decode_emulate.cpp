// The decode step on the host: the kernel's own source, run as fibers (simt.h), checked phase by phase in
// double precision, then run as one launch, which must give the same bits.
//   c++ -std=c++17 -O2 -DDS4_EMULATE -DDS4_N_VOCAB=4112 decode_emulate.cpp -o decode_emulate && ./decode_emulate [1|2|4]
#define DS4_EMULATE 1
#include <cstdint>
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
#include "simt.h"
#include "../kernels/decode/step.cu"
#include "decode_model.h"

template <int R> static bool run(u32 n_layers) {
    using namespace ds4;
    Model m;
    std::vector<void *> kept;
    m.put = [&](const void *p, size_t n) { void *q = aligned_alloc(256, (n + 255) / 256 * 256); memcpy(q, p, n); return q; };
    const u32 kinds[] = {DS4_SLIDING, DS4_CSA, DS4_HCA, DS4_CSA};
    const u32 n_slots = 3, slot_tokens = 4096, n_tokens = n_slots * slot_tokens;
    std::vector<check::Caches> host(n_layers);
    std::vector<Ds4DecodeCache> caches(n_layers);
    for (u32 i = 0; i < n_layers; i++) {
        const u32 kind = kinds[i % 4], n_ring = WINDOW + 3, n_frontier = kind == DS4_CSA ? 8 + 3 : 128 + 3;
        m.add_layer(kind, i == 0, 3, n_ring, n_frontier);
        fill_caches(host[i], m.layers[i], n_slots, n_tokens, m.rng);
        auto put16 = [&](std::vector<u16> &v) { return v.empty() ? nullptr : (u16 *)m.put(v.data(), v.size() * 2); };
        auto put32 = [&](std::vector<float> &v) { return v.empty() ? nullptr : (float *)m.put(v.data(), v.size() * 4); };
        caches[i] = {put16(host[i].window), put16(host[i].rows), put32(host[i].frontier), put16(host[i].index_rows), put32(host[i].index_frontier), n_ring, n_frontier};
    }
    Ds4Step s{};
    check::Rows rows;
    // A row that completes rows of both ratios and selects; a short one; a draft behind the first; padding.
    const u32 pos[4] = {2303, 37, 2304, 0}, slot[4] = {1, 0, 1, PAD};
    for (u32 r = 0; r < R; r++) rows.position.push_back(pos[r]), rows.slot.push_back(slot[r]), rows.base.push_back(slot[r] == PAD ? 0 : slot[r] * slot_tokens), rows.token.push_back(17 + 300 * r);
    for (u32 i = 0; i < 4 * 4 * 32; i++) { const float a = 6.2831853f * m.rng.unit(); rows.angles.push_back(std::cos(a)), rows.angles.push_back(std::sin(a)); }
    const void *emb, *hfn, *out;
    const float *hb, *hs, *hn;
    m.f16(VOCAB, E, 1.f, &emb);
    check::Raw head_fn = m.hc(HC, &hfn), output = m.q8(VOCAB, E, &out);
    const float *head_base = m.floats(HC, -0.5f, 0.5f, &hb), *head_scale = m.floats(1, 0.5f, 1.f, &hs), *head_norm = m.floats(E, 0.8f, 1.2f, &hn);
    s.layers = m.device.data(), s.caches = caches.data();
    s.rows = {rows.token.data(), rows.position.data(), rows.slot.data(), rows.base.data(), rows.angles.data()};
    s.embedding = emb, s.head_fn = hfn, s.head_base = hb, s.head_scale = hs, s.head_norm = hn, s.output = out;
    std::vector<float> logits((size_t)R * VOCAB, NAN);
    s.logits = logits.data();
    s.score_stride = 1024;
    const size_t n_ws = Exchange<R>::scores + (size_t)R * s.score_stride * 4;
    s.workspace = aligned_alloc(256, (n_ws + 255) / 256 * 256);
    memset(s.workspace, 0, n_ws);
    s.n_layers = n_layers, s.n_csa = 0;
    for (auto &l : m.layers) s.n_csa += l.kind == DS4_CSA;
    s.selects = 1, s.head = 1, s.in_flight = 4;
    u32 epoch = 0;
    auto launch = [&](u32 a, u32 b) { Ds4Step t = s; t.first = a, t.end = b; simt::run(DS4_DECODE_BLOCKS, DS4_DECODE_THREADS, Shared<R>::bytes, [&] { ds4::step<R>(t); }); };
    auto saved = host;
    *(u32 *)s.workspace = ++epoch;
    bool ok = check_phases<R>(m, head_fn, head_base, head_scale, head_norm, output, s, caches, host, rows, epoch, 5, [](void *to, const void *from, size_t n) { memcpy(to, from, n); }, launch);
    const std::vector<float> want = logits;
    for (int again = 0; again < 2; again++) {
        for (u32 i = 0; i < n_layers; i++) {
            auto back = [](void *to, auto &v) { if (!v.empty()) memcpy(to, v.data(), v.size() * sizeof v[0]); };
            back(caches[i].window, saved[i].window), back(caches[i].rows, saved[i].rows), back(caches[i].frontier, saved[i].frontier), back(caches[i].index_rows, saved[i].index_rows), back(caches[i].index_frontier, saved[i].index_frontier);
        }
        std::fill(logits.begin(), logits.end(), NAN);
        *(u32 *)s.workspace = ++epoch;
        launch(0, ds4_decode_phases(n_layers));
        const bool same = !memcmp(want.data(), logits.data(), want.size() * 4);
        printf("one launch, %d rows: %s\n", R, same ? "same bits as phase by phase" : "DIFFERS");
        ok = ok && same;
        fflush(stdout);
    }
    for (auto p : m.owned) free(p);
    // The first row's logits, to compare between numbers of rows.
    FILE *f = fopen((std::string("/tmp/logits_r") + char('0' + R)).c_str(), "wb");
    fwrite(logits.data(), 4, VOCAB, f), fclose(f);
    return ok;
}

int main(int n, char **v) {
    const int r = n > 1 ? atoi(v[1]) : 1;
    const u32 layers = n > 2 ? atoi(v[2]) : 3;
    return !(r == 4 ? run<4>(layers) : r == 2 ? run<2>(layers) : run<1>(layers));
}
