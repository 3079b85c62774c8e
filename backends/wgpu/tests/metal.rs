//! Every kernel in every specialisation becomes Metal source, and stays within the limits that Apple
//! publishes for the GPUs of M1 to M5 (docs/wgpu.md has the table).

use std::collections::BTreeSet;

use ds4_wgpu::{Specialisation, Stored, kernel_names};
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// Arguments of a kernel that are buffers.
const MAX_BUFFERS: usize = 31;
/// Bytes of threadgroup memory.
const MAX_THREADGROUP_BYTES: u32 = 32 << 10;
/// Threads of a threadgroup.
const MAX_THREADS: u32 = 1024;
/// Language versions of macOS 13 to 26, of which wgpu takes the newest that the system has.
const LANGUAGES: [(u8, u8); 4] = [(3, 0), (3, 1), (3, 2), (4, 0)];

const INTEGERS: [Stored; 5] = [
    Stored::Q8_0,
    Stored::Q2K,
    Stored::Q4K,
    Stored::Iq2Xxs,
    Stored::Mxfp4,
];

/// (head, index row, routed experts, experts of a row): of Flash, and of the test geometries.
const WIDTHS: [(usize, usize, usize, usize); 3] =
    [(512, 128, 256, 6), (128, 128, 9, 3), (96, 64, 5, 2)];

/// Every specialisation that the backend asks for; on Metal `integer` is never set, on other
/// adapters it may be.
fn catalogue() -> Vec<Specialisation> {
    let mut all = Vec::new();
    let of = Specialisation::of;
    for kernel in [
        "add",
        "add_pairs",
        "add_position_bias",
        "copy_rows",
        "fill_random",
        "halves",
        "hc_post",
        "hc_pre",
        "head_norm",
        "kv_round",
        "pool",
        "q_norm_rope",
        "quantise",
        "rms_norm",
        "rope",
        "route_hash",
        "route_top_k",
        "router_scores",
        "select_rows",
        "store_frontier",
        "tap",
        "top_k",
        "turn_gates",
    ] {
        all.push(of(kernel));
    }
    for lanes in [256usize, 1024] {
        all.push(of("choose").with("WG", lanes));
    }
    for flag in [false, true] {
        for kernel in ["index_scores", "store_compressed", "store_window"] {
            all.push(of(kernel).with("BF16", flag));
        }
        all.push(of("turn_a").with("POST", flag));
        all.push(of("turn_b").with("QUANTISED", flag));
    }
    for stored in Stored::ALL {
        for kernel in ["embed", "experts_down", "hc_gates", "hc_head", "matmul"] {
            all.push(of(kernel).decoding("w", stored));
        }
        for routed in [false, true] {
            all.push(
                of("gate_up")
                    .with("ROUTED", routed)
                    .decoding("gate", stored)
                    .decoding("up", stored),
            );
        }
        for integer in [false, true] {
            if !integer || INTEGERS.contains(&stored) {
                few(&mut all, stored, integer);
            }
        }
        for (mode, columns) in [(0usize, 128usize), (1, 64), (2, 64), (3, 128)] {
            let half = match stored {
                Stored::Q8_0 => Some((32usize, 16usize)),
                Stored::F16 => Some((32, 8)),
                Stored::Q2K | Stored::Iq2Xxs => Some((64, 64)),
                _ => None,
            };
            if let Some((step, unit)) = half {
                all.push(
                    of("gemm_half")
                        .decoding("a", stored)
                        .decoding("b", stored)
                        .with("MODE", mode)
                        .with("MATRIX", 16usize)
                        .with("DIRECT", mode == 0)
                        .with("BN", columns)
                        .with("BK", step)
                        .with("N_TILES", columns / 32)
                        .with("W_EACH", step / unit)
                        .with("X_EACH", columns * step / 4 / 128),
                );
            }
            for matrix in [0usize, 8, 16] {
                let columns = if matrix == 0 { 64 } else { columns };
                let tiles = 32usize.checked_div(matrix).unwrap_or(0);
                all.push(
                    of("gemm")
                        .decoding("a", stored)
                        .decoding("b", stored)
                        .with("MODE", mode)
                        .with("BN", columns)
                        .with("MATRIX", matrix)
                        .with("M_TILES", tiles)
                        .with("N_TILES", (columns / 2).checked_div(matrix).unwrap_or(0))
                        .with("N_BLOCKS", columns / 32),
                );
            }
        }
    }
    for (head_dim, index_dim, n_experts, _) in WIDTHS {
        all.push(
            of("sort_pairs")
                .with("N_EXPERTS", n_experts)
                .with("TILE", 64usize),
        );
        all.push(of("index_round").with("INDEX_DIM", index_dim));
        all.push(of("iq_rope_round").with("INDEX_DIM", index_dim));
        all.push(
            of("index_scores_few")
                .with("INDEX_DIM", index_dim)
                .with("N_HEADS", 64usize),
        );
        for flag in [false, true] {
            all.push(
                of("route")
                    .with("N_EXPERTS", n_experts)
                    .with("HASHED", flag),
            );
            all.push(
                of("route_few")
                    .with("WG", 256usize)
                    .with("HASHED", flag)
                    .with("KEYS_EACH", if n_experts == 256 { 8usize } else { 0 })
                    .with("SUBGROUP", 32usize)
                    .with("N_EXPERTS", n_experts),
            );
            all.push(
                of("attend_combine")
                    .with("HEAD_DIM", head_dim)
                    .with("INVERSE", flag)
                    .with("QUANTISED", flag),
            );
            for mode in 0usize..3 {
                all.push(
                    of("attend")
                        .with("HEAD_DIM", head_dim)
                        .with("BF16", flag)
                        .with("COMPRESSED", mode),
                );
                for raw in [false, true] {
                    if head_dim % 64 == 0 {
                        all.push(
                            of("attend_matrix")
                                .with("MATRIX", 16usize)
                                .with("K_STEPS", head_dim / 64)
                                .with("Q_EACH", head_dim / 32)
                                .with("HEAD_DIM", head_dim)
                                .with("COMPRESSED", mode)
                                .with("SPLIT", flag)
                                .with("RAW", raw),
                        );
                    }
                    all.push(
                        of("attend_tile")
                            .with("HEAD_DIM", head_dim)
                            .with("COMPRESSED", mode)
                            .with("SPLIT", flag)
                            .with("RAW", raw),
                    );
                }
            }
            for rounding in 0usize..3 {
                for (dim, stored) in [(head_dim, false), (head_dim, true)] {
                    all.push(
                        of("kv_norm_rope")
                            .with("APART", stored)
                            .with("ROW_DIM", dim)
                            .with("ROUNDING", rounding.min(1))
                            .with("STORED", stored)
                            .with("BF16", flag),
                    );
                }
                for dim in [head_dim, index_dim] {
                    all.push(
                        of("compress")
                            .with("ROW_DIM", dim)
                            .with("ROUNDING", rounding)
                            .with("BF16", flag),
                    );
                }
            }
        }
    }
    all
}

/// The products of few rows.
fn few(all: &mut Vec<Specialisation>, stored: Stored, integer: bool) {
    let of = |kernel| Specialisation::of(kernel).integer(integer);
    for rows in [1usize, 2, 4, 8] {
        for (lanes, per, wg_rows, quantised, indexed) in [
            (256usize, 1usize, 8usize, false, false),
            (256, 2, 16, false, false),
            (512, 2, 32, true, false),
            (1024, 1, 32, true, false),
            (256, 2, 128, false, true),
            (1024, 1, 128, false, true),
            (512, 2, 64, false, true),
        ] {
            let weighted = quantised;
            for normed in [false, true] {
                for steps in [0usize, 2] {
                    all.push(
                        of("gemv")
                            .decoding("w", stored)
                            .with("ROWS", rows)
                            .with("WG", lanes)
                            .with("PER", per)
                            .with("WG_ROWS", wg_rows)
                            .with("NORMED", normed)
                            .with("QUANTISED", quantised)
                            .with("WEIGHTED", weighted)
                            .with("INDEXED", indexed)
                            .with("UNROLL", steps)
                            .with("ROUNDED", indexed)
                            .with("STEPS", steps)
                            .with("SUBGROUP", 32usize),
                    );
                }
            }
        }
    }
    // Of one row a turn is part of the product before it.
    for (lanes, per) in [(256usize, 2usize), (512, 2), (1024, 1)] {
        for steps in [0usize, 2] {
            all.push(
                of("gemv")
                    .decoding("w", stored)
                    .with("ROWS", 1usize)
                    .with("WG", lanes)
                    .with("PER", per)
                    .with("WG_ROWS", 32usize)
                    .with("NORMED", false)
                    .with("QUANTISED", false)
                    .with("WEIGHTED", false)
                    .with("INDEXED", false)
                    .with("UNROLL", steps)
                    .with("STEPS", steps)
                    .with("SUBGROUP", 32usize)
                    .with("TURN", true),
            );
            all.push(
                of("experts_down_few")
                    .decoding("w", stored)
                    .decoding("shared", stored)
                    .with("WG", lanes)
                    .with("WG_ROWS", 32usize)
                    .with("K_USED", 6usize)
                    .with("HALVES", 1usize)
                    .with("EXPERTS_EACH", 6usize)
                    .with("SHARED_EACH", steps)
                    .with("PARTED", false)
                    .with("SHARED", true)
                    .with("STEPS", steps)
                    .with("LOCAL", integer)
                    .with("X_LOCAL", 768usize)
                    .with("SUBGROUP", 32usize)
                    .with("TURN", true),
            );
        }
    }
    for quantised in [false, true] {
        for (routed, routes, hashed) in [
            (false, false, false),
            (true, false, false),
            (true, true, false),
            (true, true, true),
        ] {
            for (_, _, n_experts, _) in WIDTHS {
                all.push(
                    of("gate_up_few")
                        .decoding("gate", stored)
                        .decoding("up", stored)
                        .with("WG", if routed { 512usize } else { 1024 })
                        .with("PER", if routed { 2usize } else { 1 })
                        .with("ROUTED", routed)
                        .with("ROUTES", routes)
                        .with("HASHED", hashed)
                        .with("KEYS_EACH", if n_experts == 256 { 8usize } else { 0 })
                        .with("N_EXPERTS", n_experts)
                        .with("LOCAL", integer && routed)
                        .with("X_LOCAL", 256usize)
                        .with("QUANTISED", quantised)
                        .with("STEPS", 2usize)
                        .with("SUBGROUP", 32usize),
                );
            }
        }
    }
    for (_, _, _, used) in WIDTHS {
        for (shared, parted, steps) in [
            (None, false, 1usize),
            (None, true, 0),
            (Some(stored), false, 1),
            (Some(stored), false, 0),
        ] {
            let mut what = of("experts_down_few").decoding("w", stored);
            if let Some(shared) = shared {
                what = what.decoding("shared", shared);
            }
            all.push(
                what.with("WG", 512usize)
                    .with("WG_ROWS", 8usize)
                    .with("K_USED", used)
                    .with(
                        "HALVES",
                        if steps > 0 && used % 2 == 0 {
                            2usize
                        } else {
                            1
                        },
                    )
                    .with(
                        "EXPERTS_EACH",
                        if steps > 0 && used % 2 == 0 {
                            used / 2
                        } else {
                            used
                        },
                    )
                    .with("SHARED_EACH", steps * usize::from(shared.is_some()))
                    .with("PARTED", parted)
                    .with("SHARED", shared.is_some())
                    .with("STEPS", steps)
                    .with("LOCAL", integer)
                    .with("X_LOCAL", 768usize)
                    .with("SUBGROUP", 32usize),
            );
        }
    }
}

/// Bytes of the workgroup's variables.
fn workgroup_bytes(module: &naga::Module) -> u32 {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).expect("types have sizes");
    module
        .global_variables
        .iter()
        .filter(|(_, global)| global.space == naga::AddressSpace::WorkGroup)
        .map(|(_, global)| layouter[global.ty].size.next_multiple_of(16))
        .sum()
}

#[test]
fn every_kernel_is_in_the_catalogue() {
    let found: BTreeSet<&str> = catalogue().iter().map(|what| what.kernel).collect();
    let missing: Vec<&str> = kernel_names()
        .filter(|name| !found.contains(name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_specialisation_becomes_metal_within_apples_limits() {
    let mut widest = (0, "");
    let mut most_buffers = 0;
    for what in catalogue() {
        let name = format!("{what:?}");
        let source = what.source();
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(&source)));
        let mut validator = Validator::new(
            ValidationFlags::all(),
            Capabilities::IMMEDIATES
                | Capabilities::SUBGROUP
                | Capabilities::SHADER_FLOAT16
                | Capabilities::SHADER_FLOAT16_IN_FLOAT32
                | Capabilities::COOPERATIVE_MATRIX,
        );
        validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
        validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
        let info = validator
            .validate(&module)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(&source)));

        let bytes = workgroup_bytes(&module);
        // 16 x 16 matrices are of other adapters.
        let foreign = source.contains("coop_mat16x16");
        let most = if foreign {
            48 << 10
        } else {
            MAX_THREADGROUP_BYTES
        };
        assert!(bytes <= most, "{name}: {bytes} bytes of threadgroup memory");
        if !foreign && bytes > widest.0 {
            widest = (bytes, what.kernel);
        }
        let entry = &module.entry_points[0];
        let threads: u32 = entry.workgroup_size.iter().product();
        assert!(threads <= MAX_THREADS, "{name}: {threads} threads");

        // wgpu numbers buffers in the order of bindings, with the immediates before them and the
        // sizes after them.
        let mut resources = naga::back::msl::EntryPointResources::default();
        let mut n_buffers: u8 = 1;
        for (_, global) in module.global_variables.iter() {
            if let Some(binding) = &global.binding {
                let target = naga::back::msl::BindTarget {
                    buffer: Some(n_buffers),
                    mutable: true,
                    ..Default::default()
                };
                resources.resources.insert(*binding, target);
                n_buffers += 1;
            }
        }
        resources.immediates_buffer = Some(0);
        resources.sizes_buffer = Some(n_buffers);
        n_buffers += 1;
        most_buffers = most_buffers.max(n_buffers);
        assert!(
            usize::from(n_buffers) <= MAX_BUFFERS,
            "{name}: {n_buffers} buffers"
        );

        if foreign {
            let options = naga::back::spv::Options {
                lang_version: (1, 6),
                ..Default::default()
            };
            naga::back::spv::write_vec(&module, &info, &options, None)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            continue;
        }
        for language in LANGUAGES {
            let options = naga::back::msl::Options {
                lang_version: language,
                per_entry_point_map: [("main".to_owned(), resources.clone())].into(),
                fake_missing_bindings: false,
                zero_initialize_workgroup_memory: false,
                force_loop_bounding: false,
                ..Default::default()
            };
            let pipeline = naga::back::msl::PipelineOptions {
                entry_point: Some((naga::ShaderStage::Compute, "main".to_owned())),
                ..Default::default()
            };
            let (text, translation) =
                naga::back::msl::write_string(&module, &info, &options, &pipeline)
                    .unwrap_or_else(|error| panic!("{name}, Metal {language:?}: {error}"));
            translation.entry_point_names[0]
                .as_ref()
                .unwrap_or_else(|error| panic!("{name}, Metal {language:?}: {error}"));
            for line in text.lines().filter(|line| line.contains("simdgroup_")) {
                let foreign = ["16x16", "16x8"].iter().any(|size| line.contains(size));
                assert!(!foreign, "{name}: {line}");
            }
        }
    }
    println!(
        "most threadgroup memory: {} bytes, {}; most buffers: {most_buffers}",
        widest.0, widest.1
    );
}
