//! Every kernel against the scalar products of `ds4-formats`.

use ds4_formats::GgmlType;
use ds4_formats::quant::{ActQ8, Activation, BlockQ8K, dot, quantize_q8, quantize_q8_k};

use super::*;

/// A small generator of reproducible numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Random blocks whose scales are ordinary numbers.
fn random_weights(random: &mut Random, ty: GgmlType, n_bytes: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..n_bytes).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        let halves: &[usize] = match ty {
            GgmlType::Q2_K => &[80, 82],
            GgmlType::Q3_K => &[108],
            GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
            GgmlType::Q6_K => &[208],
            GgmlType::MXFP4 | GgmlType::IQ1_M | GgmlType::F32 | GgmlType::BF16 => &[],
            _ => &[0],
        };
        for &at in halves {
            // A half between 2^-6 and 1, of any sign.
            block[at + 1] = (block[at + 1] & 0x8f) | (0x20 + (random.next() as u8 & 0x18));
        }
        match ty {
            GgmlType::MXFP4 => block[0] = 118 + block[0] % 12,
            // Exponents about that of 1.
            GgmlType::F32 => block[3] = (block[3] & 0x80) | 0x3f,
            GgmlType::BF16 => block[1] = (block[1] & 0x80) | 0x3f,
            GgmlType::IQ1_M => block[55] = (block[55] & 0x0f) | 0x20,
            _ => {}
        }
    }
    bytes
}

/// The product as `ds4-formats` computes it, and the sum of the magnitudes of what it adds up.
fn expected(ty: GgmlType, row: &[u8], x: &[f32]) -> (f32, f32) {
    let mut w = vec![0.0; x.len()];
    ds4_formats::quant::decode_row(ty, row, &mut w);
    let magnitude = w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum();
    let product = match Kernel::new(scalar(), ty, false).form {
        Form::Q8(_) => {
            let mut blocks = vec![ActQ8::ZERO; x.len() / 32];
            quantize_q8(x, &mut blocks);
            dot(ty, row, &Activation::Q8(&blocks))
        }
        _ => {
            let mut blocks = vec![BlockQ8K::ZERO; x.len() / 256];
            quantize_q8_k(x, &mut blocks);
            dot(ty, row, &Activation::Q8K(&blocks))
        }
    };
    (product, magnitude)
}

fn products(
    cpu: Cpu,
    kernel: Kernel,
    row_dots: RowDots,
    ty: GgmlType,
    weights: &[u8],
    n_in: usize,
    x: &[Vec<f32>],
) -> Vec<Vec<f32>> {
    let row_bytes = ty.row_bytes(n_in).unwrap();
    let n_out = weights.len() / row_bytes;
    let act_stride = kernel.form.row_bytes(n_in);
    let mut acts = crate::memory::Aligned::<u8>::new(act_stride * x.len()).unwrap();
    for (x, act) in x.iter().zip(acts.chunks_exact_mut(act_stride)) {
        kernel.form.write(cpu, x, act);
    }
    // Rows backwards, to see that both numbers of a pair are used.
    let n = x.len() as u32;
    let pairs: Vec<RowPair> = (0..n)
        .map(|i| RowPair {
            from: i,
            to: n - 1 - i,
        })
        .collect();
    let mut out = vec![f32::NAN; x.len() * n_out];
    let job = Job {
        ty,
        weights,
        row_bytes,
        n_in,
        acts: &acts,
        act_stride,
        pairs: &pairs,
        out: out.as_mut_ptr(),
        out_stride: n_out,
    };
    let mut scratch = Scratch::new(scratch_bytes(n_in)).unwrap();
    // SAFETY: the path is available, and the job describes the vectors above.
    unsafe { row_dots(cpu, &job, &mut scratch) };
    out.chunks_exact(n_out).rev().map(<[f32]>::to_vec).collect()
}

fn scalar() -> Cpu {
    Cpu::new(Path::Scalar).expect("every machine has it")
}

fn cpus() -> impl Iterator<Item = Cpu> {
    Path::ALL.into_iter().filter_map(Cpu::new)
}

fn quantised_types() -> impl Iterator<Item = GgmlType> {
    GgmlType::all()
        .iter()
        .copied()
        .filter(|ty| ty.block_len() > 1)
}

/// Every way a type is multiplied on a path.
fn ways(kernel: Kernel) -> impl Iterator<Item = (&'static str, RowDots)> {
    let panel = kernel.panel.map(|panel| ("panel", panel.row_dots));
    std::iter::once(("rows", kernel.row_dots)).chain(panel)
}

fn random_rows(random: &mut Random, n_rows: usize, n_in: usize) -> Vec<Vec<f32>> {
    (0..n_rows)
        .map(|_| (0..n_in).map(|_| random.float()).collect())
        .collect()
}

/// The codes, sums and scales of a row in a form, in natural order.
fn parts(form: Form, n: usize, row: &[u8]) -> (Vec<i8>, Vec<i32>, Vec<f32>) {
    let ints = |bytes: &[u8]| -> Vec<i32> {
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| i32::from_ne_bytes(*b))
            .collect()
    };
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_ne_bytes(*b))
            .collect()
    };
    let place = |e: usize| match form {
        Form::Q8(Order::Pairs) => e / 64 * 64 + 8 * (e % 32 / 4) + 4 * (e % 64 / 32) + e % 4,
        Form::Q8K(Order::Planes) => e / 256 * 256 + 64 * (e % 4) + e % 256 / 4,
        _ => e,
    };
    let codes = (0..n).map(|e| row[place(e)] as i8).collect();
    match form {
        Form::Q8(_) => {
            let (scales, sums) = (activation::q8_scales(n), activation::q8_sums(n));
            (
                codes,
                ints(&row[sums..][..n / 8]),
                floats(&row[scales..][..n / 8]),
            )
        }
        _ => {
            let (scales, sums) = (activation::q8k_scales(n), activation::q8k_sums(n));
            (
                codes,
                ints(&row[sums..][..n / 4]),
                floats(&row[scales..][..n / 64]),
            )
        }
    }
}

#[test]
fn activations_are_quantised_as_the_formats_crate_does() {
    let mut random = Random(0x7777_5678_9abc_def1);
    let mut rows = random_rows(&mut random, 3, 768);
    rows[1].fill(0.0);
    rows[1][300] = 1e-39;
    rows[2][5] = f32::INFINITY;
    rows[2][700] = f32::NAN;
    for cpu in cpus() {
        for ty in [GgmlType::Q8_0, GgmlType::Q2_K] {
            let form = Kernel::new(cpu, ty, false).form;
            for (x, n) in rows.iter().flat_map(|x| [(x, 768), (x, 256)]) {
                let x = &x[..n];
                let mut row = vec![0xa5; form.row_bytes(n)];
                form.write(cpu, x, &mut row);
                let (codes, sums, scales) = parts(form, n, &row);
                let what = format!("{} {form:?}", cpu.path());
                let same = |a: f32, b: f32| a == b || a.is_nan() && b.is_nan();
                if let Form::Q8(_) = form {
                    let mut blocks = vec![ActQ8::ZERO; n / 32];
                    quantize_q8(x, &mut blocks);
                    for (i, block) in blocks.iter().enumerate() {
                        assert_eq!(codes[32 * i..][..32], block.qs, "{what}, block {i}");
                        assert!(same(scales[i], block.d), "{what}, block {i}");
                        let sum: i32 = block.qs.iter().map(|q| i32::from(*q)).sum();
                        assert_eq!(sums[i], -128 * sum, "{what}, block {i}");
                    }
                } else {
                    let mut blocks = vec![BlockQ8K::ZERO; n / 256];
                    quantize_q8_k(x, &mut blocks);
                    for (i, block) in blocks.iter().enumerate() {
                        assert_eq!(codes[256 * i..][..256], block.qs, "{what}, block {i}");
                        assert!(same(scales[i], block.d), "{what}, block {i}");
                        let negated = block.bsums.map(|sum| -i32::from(sum));
                        assert_eq!(sums[16 * i..][..16], negated, "{what}, block {i}");
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_every_type_equal_the_scalar_ones_up_to_the_order_of_f32_sums() {
    let mut random = Random(0x1234_5678_9abc_def1);
    // Outputs and rows that are no multiples of what the kernels take at a time.
    let shapes = [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 5),
        (7, 9),
        (6, 17),
        (33, 12),
        (65, 6),
    ];
    for (cpu, ty) in cpus().flat_map(|cpu| quantised_types().map(move |ty| (cpu, ty))) {
        let kernel = Kernel::new(cpu, ty, false);
        let path = cpu.path();
        for (way, row_dots) in ways(kernel) {
            for n_blocks in [1, 2, 3, 5, 16] {
                let n_in = n_blocks * ty.block_len();
                for (n_out, n_rows) in shapes {
                    let row_bytes = ty.row_bytes(n_in).unwrap();
                    let weights = random_weights(&mut random, ty, n_out * row_bytes);
                    let x = random_rows(&mut random, n_rows, n_in);
                    let found = products(cpu, kernel, row_dots, ty, &weights, n_in, &x);
                    for (r, x) in x.iter().enumerate() {
                        for (o, row) in weights.chunks_exact(row_bytes).enumerate() {
                            let (expected, magnitude) = expected(ty, row, x);
                            let difference = (found[r][o] - expected).abs();
                            // A few roundings of 2^-24 of what is summed.
                            assert!(
                                difference <= 4e-7 * magnitude,
                                "{path} {ty} {way}: {n_in} x {n_out}, row {r} of {n_rows}, output \
                                 {o}: {} instead of {expected}, magnitude {magnitude}",
                                found[r][o]
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_products_alone_and_among_others_and_either_way() {
    let mut random = Random(0xfeed_5678_9abc_def1);
    let types = || GgmlType::all().iter().filter(|ty| **ty != GgmlType::I32);
    for (cpu, ty) in cpus().flat_map(|cpu| types().map(move |ty| (cpu, *ty))) {
        let kernel = Kernel::new(cpu, ty, false);
        for n_in in [ty.block_len() * 6, ty.block_len() * 19] {
            let weights = random_weights(&mut random, ty, 37 * ty.row_bytes(n_in).unwrap());
            let x = random_rows(&mut random, 17, n_in);
            let alone: Vec<Vec<f32>> = x
                .iter()
                .map(std::slice::from_ref)
                .flat_map(|x| products(cpu, kernel, kernel.row_dots, ty, &weights, n_in, x))
                .collect();
            for (way, row_dots) in ways(kernel) {
                let together = products(cpu, kernel, row_dots, ty, &weights, n_in, &x);
                assert_eq!(alone, together, "{} {ty} {way}", cpu.path());
            }
        }
    }
}

#[test]
fn products_with_f32_activations_equal_those_of_decoded_weights() {
    let mut random = Random(0x0bad_5678_9abc_def1);
    let types = || GgmlType::all().iter().filter(|ty| **ty != GgmlType::I32);
    for (cpu, ty) in cpus().flat_map(|cpu| types().map(move |ty| (cpu, *ty))) {
        let kernel = Kernel::new(cpu, ty, true);
        assert_eq!(kernel.form, Form::F32);
        let widths = match ty.block_len() {
            1 => vec![1, 7, 16, 99, 130],
            n => vec![n, 3 * n],
        };
        for n_in in widths {
            for (n_out, n_rows) in [(1, 1), (3, 2), (4, 9), (9, 25)] {
                let row_bytes = ty.row_bytes(n_in).unwrap();
                let weights = random_weights(&mut random, ty, n_out * row_bytes);
                let x = random_rows(&mut random, n_rows, n_in);
                let found = products(cpu, kernel, kernel.row_dots, ty, &weights, n_in, &x);
                for (x, found) in x.iter().zip(found) {
                    for (row, found) in weights.chunks_exact(row_bytes).zip(found) {
                        let mut w = vec![0.0; n_in];
                        ds4_formats::quant::decode_row(ty, row, &mut w);
                        let terms = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                        let (exact, magnitude) =
                            terms.fold((0.0, 0.0), |(sum, abs), t: f64| (sum + t, abs + t.abs()));
                        assert!(
                            (f64::from(found) - exact).abs() <= 4e-7 * magnitude,
                            "{} {ty}: {n_in} x {n_out}, {n_rows} rows: {found}, not {exact}",
                            cpu.path()
                        );
                    }
                }
            }
        }
    }
}

/// Rows and columns of the weights whose instructions are counted, and activation rows of a panel.
const COUNTED: (usize, usize, usize) = (16, 2048, 32);

/// Runs every kernel of the fastest path once, one activation row or a panel of them, for a counter
/// outside: `.ci/arm-count` and `.ci/x86-count`. The latter tells calls apart, and so also counts
/// kernels without a panel with many rows.
#[test]
#[ignore = "a counter of instructions runs it"]
fn every_kernel_runs_once() {
    let mut random = Random(0x5eed_5678_9abc_def1);
    let cpu = cpus().last().expect("a path");
    let (n_out, n_in, n_rows) = COUNTED;
    for ty in quantised_types() {
        let kernel = Kernel::new(cpu, ty, false);
        let weights = random_weights(&mut random, ty, n_out * ty.row_bytes(n_in).unwrap());
        for (way, row_dots) in ways(kernel) {
            let n_rows = if way == "panel" { n_rows } else { 1 };
            let x = random_rows(&mut random, n_rows, n_in);
            let found = products(cpu, kernel, row_dots, ty, &weights, n_in, &x);
            assert!(found.iter().flatten().all(|y| y.is_finite()), "{ty} {way}");
        }
        if kernel.panel.is_none() && cfg!(target_arch = "x86_64") {
            let x = random_rows(&mut random, n_rows, n_in);
            let found = products(cpu, kernel, kernel.row_dots, ty, &weights, n_in, &x);
            assert!(found.iter().flatten().all(|y| y.is_finite()), "{ty}");
        }
    }
}
