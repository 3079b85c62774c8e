            // Keys are above 0, so that what is chosen is no longer the largest.
//!repeat 8 1
            var key@I@ = keys[@I@u * SUBGROUP + sub_lane];
//!end
            for (var i = 0u; i < p.k; i++) {
                let top = subgroupMax(max(max(max(key0, key1), max(key2, key3)), max(max(key4, key5), max(key6, key7))));
                // Of equal keys that of the lowest expert.
                var best = 0xffffffffu;
                if key7 == top { best = 7u * SUBGROUP + sub_lane; }
                if key6 == top { best = 6u * SUBGROUP + sub_lane; }
                if key5 == top { best = 5u * SUBGROUP + sub_lane; }
                if key4 == top { best = 4u * SUBGROUP + sub_lane; }
                if key3 == top { best = 3u * SUBGROUP + sub_lane; }
                if key2 == top { best = 2u * SUBGROUP + sub_lane; }
                if key1 == top { best = SUBGROUP + sub_lane; }
                if key0 == top { best = sub_lane; }
                let expert = subgroupMin(best);
                if expert == best {
                    chosen[i] = expert;
//!repeat 8 1
                    if expert == @I@u * SUBGROUP + sub_lane { key@I@ = 0u; }
//!end
                }
            }
