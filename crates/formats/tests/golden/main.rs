//! Decoders, encoders and small floats against values from other implementations.

mod npz;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ds4_formats::{GgmlType, quant};
use npz::{Npy, read_npz};

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/quant/blocks.npz")
}

/// A file of the shared test data, which not every checkout has beside it.
fn shared(file: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = root
        .ancestors()
        .map(|dir| dir.join("shared/data").join(file))
        .find(|p| p.exists());
    if found.is_none() {
        println!("skipped: no shared/data/{file}");
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
    check_decoders(&read_npz(&testdata()), &types);
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
    let arrays = read_npz(&testdata());
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
