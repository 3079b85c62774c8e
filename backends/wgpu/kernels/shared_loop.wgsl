        x_at[0] = r * p.shared_in / X_LEN;
        for (var u = sub_lane; u < p.shared_in / shared_UNIT; u += width) {
            multiply_shared(&sums, o, p.n_out, u, &x_at);
        }
