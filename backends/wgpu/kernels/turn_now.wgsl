    turn_here(lane, o0, p.n_out);
