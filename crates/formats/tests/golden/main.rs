//! Decoders, encoders and small floats against values from other implementations.

mod npz;
mod products;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use ds4_formats::small_float::{
    e2m1_to_f32, e4m3_to_f32, f32_to_e2m1, f32_to_e4m3, f32_to_ue8m0_ceil, ue8m0_to_f32,
};
use ds4_formats::{GgmlType, quant};
use npz::{Npy, read_npz};

fn testdata(file: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/quant");
    folder.join(file)
}

/// A file of the shared test data, which not every checkout has beside it.
fn shared(file: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = root
        .ancestors()
        .map(|dir| dir.join("shared/data").join(file))
        .find(|p| p.exists());
    if found.is_none() {
        // Not `println!`, which the test harness keeps to itself.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: what needs shared/data/{file}, which is not beside any parent folder"
        );
    }
    found
}

fn check_decoders(arrays: &BTreeMap<String, Npy>, types: &[GgmlType]) {
    for ty in types {
        let raw = arrays[&format!("{ty}_raw")].u8();
        let expected = arrays[&format!("{ty}_f32")].f32();
        let mut found = vec![f32::NAN; expected.len()];
        quant::decode_row(*ty, raw, &mut found);
        for (e, (f, x)) in found.iter().zip(&expected).enumerate() {
            // Equal as numbers: a zero times a negative scale may have either sign.
            assert!(f == x, "{ty}, element {e}: found {f:e}, expected {x:e}");
        }
    }
}

#[test]
fn every_type_decodes_to_the_values_of_the_gguf_package() {
    let types: Vec<GgmlType> = GgmlType::all()
        .iter()
        .copied()
        .filter(|&ty| ty != GgmlType::I32)
        .collect();
    check_decoders(&read_npz(&testdata("blocks.npz")), &types);
}

#[test]
fn shared_blocks_decode_to_the_values_of_the_gguf_package() {
    let Some(path) = shared("golden/quant_blocks.npz") else {
        return;
    };
    let types: Vec<GgmlType> = GgmlType::all()
        .iter()
        .copied()
        .filter(|ty| ty.block_len() > 1)
        .collect();
    check_decoders(&read_npz(&path), &types);
}

#[test]
fn encoders_write_the_bytes_of_the_gguf_package() {
    let arrays = read_npz(&testdata("blocks.npz"));
    let x = arrays["encode_in"].f32();
    for ty in [GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0] {
        let expected = arrays[&format!("encode_{ty}")].u8();
        let mut found = vec![0; expected.len()];
        quant::encoder(ty).unwrap()(&x, &mut found);
        for (b, (f, x)) in found
            .chunks(ty.block_bytes())
            .zip(expected.chunks(ty.block_bytes()))
            .enumerate()
        {
            assert_eq!(f, x, "{ty}, block {b}");
        }
    }
}

/// The largest magnitude of a block.
fn amax(block: &[f32]) -> f32 {
    block.iter().fold(0.0, |amax, v| amax.max(v.abs()))
}

/// Rounded rows: those of the project, and all of the shared data where it is.
fn rounded_rows() -> impl Iterator<Item = BTreeMap<String, Npy>> {
    let all = [Some(testdata("rounding.npz")), shared("golden/unit.npz")];
    all.into_iter().flatten().map(|path| read_npz(&path))
}

#[test]
fn cache_rows_round_to_the_same_e4m3_codes_and_scales() {
    rounded_rows().for_each(|arrays| check_cache_rows(&arrays));
}

fn check_cache_rows(arrays: &BTreeMap<String, Npy>) {
    let (input, output) = (arrays["kv_in"].f32(), arrays["kv_out"].f32());
    let (codes, scales) = (arrays["kv_codes"].u8(), arrays["kv_scale_e8m0"].u8());
    // Rows of 512: seven blocks of 64 are rounded, the last 64 channels are kept.
    for (row, x) in input.chunks(512).enumerate() {
        for (block, x) in x[..448].chunks(64).enumerate() {
            let scale = f32_to_ue8m0_ceil(amax(x).max(1e-4) * (1.0 / 448.0));
            assert_eq!(
                scale,
                scales[7 * row + block],
                "scale of row {row}, block {block}"
            );
            for (e, &x) in x.iter().enumerate() {
                let at = 448 * row + 64 * block + e;
                let code = f32_to_e4m3(x / ue8m0_to_f32(scale));
                assert_eq!(
                    code,
                    codes[at],
                    "code of row {row}, channel {}",
                    64 * block + e
                );
                let value = e4m3_to_f32(code) * ue8m0_to_f32(scale);
                assert_eq!(
                    value,
                    output[512 * row + 64 * block + e],
                    "row {row}, element {e}"
                );
            }
        }
    }
}

#[test]
fn index_rows_round_to_the_same_e2m1_values() {
    rounded_rows().for_each(|arrays| check_index_rows(&arrays));
}

fn check_index_rows(arrays: &BTreeMap<String, Npy>) {
    let (input, output) = (arrays["idx_hadamard"].f32(), arrays["idx_out"].f32());
    for (block, (x, expected)) in input.chunks(32).zip(output.chunks(32)).enumerate() {
        let least = 6.0 * f32::MIN_POSITIVE;
        let scale = ue8m0_to_f32(f32_to_ue8m0_ceil(amax(x).max(least) * (1.0 / 6.0)));
        for (e, (&x, &expected)) in x.iter().zip(expected).enumerate() {
            let found = e2m1_to_f32(f32_to_e2m1(x / scale)) * scale;
            assert_eq!(found, expected, "block {block}, element {e}: {x:e}");
        }
    }
}
