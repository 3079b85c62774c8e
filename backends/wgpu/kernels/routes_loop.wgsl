            for (var i = 0u; i < p.k; i++) {
                var key = 0u;
                var best = 0u;
                for (var e = sub_lane; e < N_EXPERTS; e += width) {
                    if keys[e] > key {
                        key = keys[e];
                        best = e;
                    }
                }
                let top = subgroupMax(key);
                let expert = subgroupMin(select(0xffffffffu, best, key == top));
                if best == expert && key == top {
                    keys[expert] = 0u;
                    chosen[i] = expert;
                }
            }
