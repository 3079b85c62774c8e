// Part of prefill.cu: turns, rows, compressed rows.
#pragma once

// Turns and rows --------------------------------------------------------------------------------
static void turns() {
    for (u32 n : {2048u, 16u}) {
        if (!timing && n != 16) continue;
        const u32 steps = n == 2048 ? 4 : 1;
        Dev<float> y((size_t)n * 4096), gates((size_t)n * 24), streams((size_t)n * 16384), base(24), scale(3), norm(4096), part((size_t)64 * n * 32), x((size_t)n * 4096);
        Dev<u16> fn(24 * 16384), xh((size_t)n * 4096), xl((size_t)n * 4096), xe((size_t)n * 4096);
        y.fill(0, 1, 1), gates.fill(0, 1, 2), streams.fill(0, 30, 3), base.fill(0, 1, 4), scale.fill(0, 1, 5), norm.fill(0, 1, 6), fn.fill(1, 0.05f, 7);
        std::vector<u32> slot(n, 0);
        slot[n / 3] = PAD_SLOT;
        Dev<u32> ds(slot);
        auto g0 = gates.get(), s0 = streams.get(), hy = y.get(), hb = base.get(), hs = scale.get(), hn = norm.get();
        auto hf = fn.get();
        Turn p = {ds.p, y.p, nullptr, gates.p, streams.p, fn.p, base.p, scale.p, norm.p, part.p, x.p, xh.p, xl.p, xe.p, n, steps};
        auto mix = [&](cudaStream_t st) { in_hc::turn_mix<<<dim3((n + 15) / 16, 64 / steps), 256, 0, st>>>(p); };
        auto pre = [&](cudaStream_t st) { in_hc::turn_pre<<<n, 288, 0, st>>>(p); };
        mix(0), pre(0);
        CK(cudaGetLastError());
        auto s1 = streams.get(), g1 = gates.get(), hx = x.get();
        auto hh = xh.get(), hl = xl.get();
        Relative es, eg, ex;
        for (int i = 0; i < 6; i++) {
            u32 r = i == 0 ? n - 1 : rng() % n;
            if (slot[r] == PAD_SLOT) continue;
            std::vector<double> v(16384);
            for (u32 c = 0; c < 4096; c++) for (int k = 0; k < 4; k++) { double s = (double)g0[r * 24 + 4 + k] * hy[(size_t)r * 4096 + c]; for (int j = 0; j < 4; j++) s += (double)g0[r * 24 + 8 + 4 * j + k] * s0[(size_t)r * 16384 + j * 4096 + c]; v[k * 4096 + c] = s; }
            double ss = 0, g[24];
            for (int c = 0; c < 16384; c++) ss += v[c] * v[c], es.add(s1[(size_t)r * 16384 + c], v[c]);
            for (int m = 0; m < 24; m++) { double d = 0; for (int c = 0; c < 16384; c++) { int stream = c / 4096, channel = c % 4096; d += v[c] * half_value(hf[((channel / 32 * 24 + m) * 4 + stream) * 32 + channel % 32]); } g[m] = d / std::sqrt(ss / 16384 + 1e-6); }
            for (int j = 0; j < 4; j++) { g[j] = 1 / (1 + std::exp(-(g[j] * hs[0] + hb[j]))) + 1e-6; g[4 + j] = 2 / (1 + std::exp(-(g[4 + j] * hs[1] + hb[4 + j]))); }
            for (int j = 8; j < 24; j++) g[j] = g[j] * hs[2] + hb[j];
            double* c = g + 8;
            for (int j = 0; j < 4; j++) { double m = -1e9, s = 0; for (int k = 0; k < 4; k++) m = std::max(m, c[4 * j + k]); for (int k = 0; k < 4; k++) s += c[4 * j + k] = std::exp(c[4 * j + k] - m); for (int k = 0; k < 4; k++) c[4 * j + k] = c[4 * j + k] / s + 1e-6; }
            for (int it = 0; it < 20; it++) {
                if (it) for (int j = 0; j < 4; j++) { double s = 1e-6; for (int k = 0; k < 4; k++) s += c[4 * j + k]; for (int k = 0; k < 4; k++) c[4 * j + k] /= s; }
                for (int k = 0; k < 4; k++) { double s = 1e-6; for (int j = 0; j < 4; j++) s += c[4 * j + k]; for (int j = 0; j < 4; j++) c[4 * j + k] /= s; }
            }
            for (int j = 0; j < 24; j++) eg.add(g1[r * 24 + j], g[j]);
            double s2 = 0;
            std::vector<double> o(4096);
            for (int k = 0; k < 4096; k++) { for (int j = 0; j < 4; j++) o[k] += g[j] * v[j * 4096 + k]; s2 += o[k] * o[k]; }
            for (int k = 0; k < 4096; k++) { double want = hn[k] * o[k] / std::sqrt(s2 / 4096 + 1e-6); ex.add(hx[(size_t)r * 4096 + k], want); ex.add((double)half_value(hh[(size_t)r * 4096 + k]) + half_value(hl[(size_t)r * 4096 + k]), want); }
        }
        char line[80];
        snprintf(line, 80, "turn, %u rows: streams, gates, x", n);
        check(line, std::max(std::max(es.value(), eg.value()), ex.value()), 3e-6, streams.guard_kept() && x.guard_kept() && gates.guard_kept());
        snprintf(line, 80, "turn_mix, %u rows", n);
        // In place and with random gates the streams would grow: time on what is there, without y's growth mattering.
        result(line, time_us(4, [&](cudaStream_t st, int) { mix(st); }), 4 + n * 147456 / 4.0e6, 0, n * 147456.0);
        snprintf(line, 80, "turn_pre, %u rows", n);
        result(line, time_us(4, [&](cudaStream_t st, int) { pre(st); }), 6 + n * 98304 / 4.0e6, 0, n * 98304.0);
    }
}

static void rows() {
    const u32 n = timing ? 2048 : 64;
    Step s;
    s.segment(0, 0, 4000, n);
    StepRows r = s.rows();
    Dev<float> q((size_t)n * 32768), kv((size_t)n * 512), iq((size_t)n * 8192), w(4096), a((size_t)n * 4096);
    Dev<u16> o((size_t)n * 32768), o2((size_t)n * 4096), qh((size_t)n * 32768);
    qh.fill(1, 3, 6);
    q.fill(0, 3, 1), kv.fill(0, 3, 2), iq.fill(0, 3, 3), w.fill(0, 1, 4), a.fill(0, 1, 5);
    Prepare pq = {r, q.p, o.p, nullptr, nullptr, n, 1, 1, 0}, pqh = {r, nullptr, o.p, nullptr, qh.p, n, 1, 1, 0}, pi = {r, iq.p, o.p, nullptr, nullptr, n, 1, 1, 0}, pk = {r, kv.p, o.p, w.p, nullptr, n, 1, 1, 0};
    RowsHalf ph = {a.p, a.p, w.p, o.p, o2.p, n, 4096, 0, 10}, pn = {a.p, nullptr, w.p, o.p, nullptr, n, 1024, 0, 0}, pg = {a.p, q.p, nullptr, o.p, nullptr, n, 2048, 0, 10};
    result("q_prepare, 2048 rows", time_us(2, [&](cudaStream_t st, int) { in_rows::q_prepare<<<dim3(n, 8), 256, 0, st>>>(pq); }), 105, 0, n * 196608.0);
    result("q_prepare, 2048 rows, from halves", time_us(2, [&](cudaStream_t st, int) { in_rows::q_prepare<<<dim3(n, 8), 256, 0, st>>>(pqh); }), 70, 0, n * 131072.0);
    result("iq_prepare, 2048 rows", time_us(2, [&](cudaStream_t st, int) { in_rows::iq_prepare<<<dim3(n, 8), 256, 0, st>>>(pi); }), 30, 0, n * 49152.0);
    result("kv_prepare, 2048 rows", time_us(2, [&](cudaStream_t st, int) { in_rows::kv_prepare<<<n / 8, 256, 0, st>>>(pk); }), 4, 0, n * 5120.0);
    result("rows_to_half, 2048 x 4096, two halves", time_us(2, [&](cudaStream_t st, int) { in_rows::rows_to_half<<<n * 4096 / 2048, 256, 0, st>>>(ph); }), 17, 0, n * 32768.0);
    result("norm_half, 2048 x 1024", time_us(2, [&](cudaStream_t st, int) { in_rows::norm_half<<<n, 256, 0, st>>>(pn); }), 6, 0, n * 10240.0);
    result("gate_half, 2048 x 2048", time_us(2, [&](cudaStream_t st, int) { in_rows::gate_half<<<n, 256, 0, st>>>(pg); }), 11, 0, n * 20480.0);
}

static void compress() {
    for (u32 n : {2048u, 16u}) for (u32 ratio : {4u, 128u}) {
        if (!timing && n != 16) continue;
        Step s;
        // One segment that begins inside a window, or 16 slots of which some complete a row.
        if (n == 2048) s.segment(0, 0, 130, n);
        else for (u32 i = 0; i < 16; i++) s.segment(i, i * 1024, 120 + i, 1);
        StepRows rows = s.rows();
        const u32 n_slots = n == 2048 ? 1 : 16, n_ring = 192, n_frontier = ratio == 4 ? 72 : 192, parts = ratio == 4 ? 2 : 1, cache_rows = (n == 2048 ? 4096 : 16384) / ratio;
        Dev<u16> window_rows((size_t)n * 512), window((size_t)n_slots * n_ring * 512), cache[2];
        window_rows.fill(2, 1, 1);
        Dev<float> kv[2], gate[2], ape[2], norm[2], frontier[2];
        CompressRows p = {rows, window_rows.p, window.p, n_ring, 0, parts, 0, {}};
        const u32 dims[2] = {512, 128};
        for (u32 i = 0; i < parts; i++) {
            u32 w = ratio == 4 ? 2 * dims[i] : dims[i];
            kv[i] = Dev<float>((size_t)n * w), gate[i] = Dev<float>((size_t)n * w), ape[i] = Dev<float>((size_t)ratio * w), norm[i] = Dev<float>(dims[i]), frontier[i] = Dev<float>((size_t)n_slots * n_frontier * 2 * w);
            cache[i] = Dev<u16>((size_t)cache_rows * dims[i]);
            kv[i].fill(0, 2, 3 + i), gate[i].fill(0, 2, 5 + i), ape[i].fill(0, 2, 7 + i), norm[i].fill(0, 1, 9 + i), frontier[i].fill(0, 2, 11 + i);
            p.parts[i] = {kv[i].p, gate[i].p, ape[i].p, norm[i].p, frontier[i].p, cache[i].p, w, dims[i], ratio, n_frontier};
        }
        auto rows_of = [&](cudaStream_t st) { in_compress::compress_rows<<<dim3(n, parts), 128, 0, st>>>(p); };
        auto store = [&](cudaStream_t st) { in_compress::store_rows<<<dim3(n, parts + 1), 128, 0, st>>>(p); };
        rows_of(0);
        CK(cudaGetLastError());
        char line[80];
        for (u32 i = 0; i < parts; i++) {
            u32 w = ratio == 4 ? 2 * dims[i] : dims[i], dim = dims[i], done = 0;
            auto a = kv[i].get(), g = gate[i].get(), b = ape[i].get(), nw = norm[i].get(), f = frontier[i].get();
            auto c = cache[i].get();
            Relative e;
            for (u32 r = 0; r < n && done < 8; r++) {
                u32 end = s.position[r] + 1;
                if (end % ratio) continue;
                done++;
                u32 segment = s.position[r] - (r - s.first_row[r]), pooled = ratio == 4 ? 8 : 128;
                std::vector<double> v(dim);
                double ss = 0;
                for (u32 ch0 = 0; ch0 < dim; ch0++) {
                    double top = -1e30, sum = 0, weight = 0;
                    for (int pass = 0; pass < 2; pass++) for (u32 at = end > pooled ? end - pooled : 0; at < end; at++) {
                        u32 ch = ch0 + (ratio == 4 && at + 4 >= end ? dim : 0);
                        size_t row = s.first_row[r] + at - segment, ring = ((size_t)s.slot[r] * n_frontier + at % n_frontier) * 2 * w;
                        double av = at >= segment ? a[row * w + ch] : f[ring + ch], gv = at >= segment ? (double)g[row * w + ch] + b[at % ratio * w + ch] : f[ring + w + ch];
                        if (pass == 0) top = std::max(top, gv); else { double x = std::exp(gv - top); weight += x; sum += x * av; }
                    }
                    v[ch0] = sum / weight, ss += v[ch0] * v[ch0];
                }
                for (u32 k = 0; k < dim; k++) v[k] *= nw[k] / std::sqrt(ss / dim + 1e-6);
                const float* cs = &s.angles[((size_t)r * 4 + (ratio == 4 ? 2 : 3)) * 64];
                for (u32 k = 0; k < 32; k++) { double x = v[dim - 64 + 2 * k], y = v[dim - 63 + 2 * k]; v[dim - 64 + 2 * k] = x * cs[2 * k] - y * cs[2 * k + 1]; v[dim - 63 + 2 * k] = x * cs[2 * k + 1] + y * cs[2 * k]; }
                for (u32 k = 0; k < dim; k++) e.add(bf_value(c[(size_t)(s.base[r] / ratio + end / ratio - 1) * dim + k]), v[k]);
            }
            snprintf(line, 80, "compress_rows, %u rows, ratio %u, dim %u", n, ratio, dim);
            check(line, done ? e.value() : 0, 3e-3, cache[i].guard_kept());
        }
        store(0);
        CK(cudaGetLastError());
        auto win = window.get(), from = window_rows.get();
        double wrong = 0;
        for (u32 r = 0; r < n; r++) if (s.end_row[r] - r <= n_ring) for (u32 k = 0; k < 512; k++) wrong += win[((size_t)s.slot[r] * n_ring + s.position[r] % n_ring) * 512 + k] != from[(size_t)r * 512 + k];
        snprintf(line, 80, "store_rows, %u rows, ratio %u", n, ratio);
        check(line, wrong, 0, window.guard_kept() && frontier[0].guard_kept());
        snprintf(line, 80, "compress_rows, %u rows, ratio %u", n, ratio);
        result(line, time_us(3, [&](cudaStream_t st, int) { rows_of(st); }), 6, 0, 0);
        snprintf(line, 80, "store_rows, %u rows, ratio %u", n, ratio);
        result(line, time_us(3, [&](cudaStream_t st, int) { store(st); }), 3, 0, 0);
    }
}
