        // No whole turns of the subgroup.
        for (var e = 0u; e < K_USED; e++) {
            let expert = experts[r * K_USED + e];
            if expert < p.lo || expert >= p.hi { continue; }
            let row = (expert - p.lo) * p.n_out;
            x_at[0] = (e + select(r * K_USED, 0u, LOCAL)) * p.n_in / X_LEN;
            for (var u = sub_lane; u < p.n_in / w_UNIT; u += width) {
                multiply_w(&sums, row + o, row + p.n_out, u, &x_at);
            }
        }
//!when SHARED true shared_loop
