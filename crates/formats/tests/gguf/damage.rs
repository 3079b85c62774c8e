//! Files that are wrong: every kind of damage has its error, and none is a panic.

use proptest::prelude::*;

use crate::exercise::exercise;
use crate::files::sample;

#[test]
fn the_sample_is_accepted() {
    let gguf = exercise(&sample()).unwrap();
    assert_eq!((gguf.metadata().len(), gguf.tensors().len()), (16, 5));
}

#[test]
fn a_file_cut_at_any_byte_is_an_error() {
    let whole = sample();
    for len in 0..whole.len() {
        assert!(
            exercise(&whole[..len]).is_err(),
            "accepted after {len} of {} bytes",
            whole.len()
        );
    }
}

#[test]
fn a_file_with_any_byte_changed_never_panics() {
    let whole = sample();
    for at in 0..whole.len() {
        for change in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] ^= change;
            let _ = exercise(&damaged);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_after_a_good_start_never_panic(
        version in 2u32..4,
        counts in prop::array::uniform2(prop_oneof![0u64..4, any::<u64>()]),
        rest in prop::collection::vec(prop_oneof![Just(0u8), 0u8..13, any::<u8>()], 0..300),
    ) {
        let mut file = b"GGUF".to_vec();
        file.extend(version.to_le_bytes());
        counts.iter().for_each(|n| file.extend(n.to_le_bytes()));
        file.extend(rest);
        let _ = exercise(&file);
    }

    #[test]
    fn several_changes_to_a_good_file_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = sample();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        let _ = exercise(&file);
    }
}

/// Bytes of a file, written field by field.
#[derive(Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(n_tensors: u64, n_kv: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(n_tensors).u64(n_kv)
    }

    fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend(bytes);
        self
    }

    fn u32(self, v: u32) -> Raw {
        self.bytes(&v.to_le_bytes())
    }

    fn u64(self, v: u64) -> Raw {
        self.bytes(&v.to_le_bytes())
    }

    fn string(self, s: &str) -> Raw {
        self.u64(s.len() as u64).bytes(s.as_bytes())
    }

    fn tensor(self, name: &str, ne: &[u64], ty: u32, offset: u64) -> Raw {
        let raw = self.string(name).u32(ne.len() as u32);
        ne.iter()
            .fold(raw, |raw, &n| raw.u64(n))
            .u32(ty)
            .u64(offset)
    }

    /// Pads to the default alignment and adds tensor data.
    fn data(mut self, n_bytes: usize) -> Raw {
        self.0
            .resize(self.0.len().next_multiple_of(32) + n_bytes, 0);
        self
    }
}

#[test]
fn every_kind_of_damage_is_named() {
    // One value, one alignment, or one tensor "t" with room for its data.
    let kv = |ty: u32| Raw::header(0, 1).string("k").u32(ty);
    let alignment = |ty: u32| Raw::header(0, 1).string("general.alignment").u32(ty);
    let one = |ne: &[u64], ty, offset| Raw::header(1, 0).tensor("t", ne, ty, offset).data(999);
    let big_endian = Raw(b"GGUF".to_vec())
        .bytes(&3u32.to_be_bytes())
        .u64(0)
        .u64(0);
    let version = |n: u32| Raw(b"GGUF".to_vec()).u32(n);
    let nested = (0..5).fold(kv(9), |raw, _| raw.u32(9).u64(1));
    let huge_key = Raw::header(0, 1).u64(u64::MAX).data(32);
    let not_utf8 = Raw::header(0, 1).u64(2).bytes(&[0xc3, 0x28]).data(32);
    let twice = Raw::header(0, 2)
        .string("k")
        .u32(0)
        .bytes(&[1])
        .string("k")
        .u32(0)
        .bytes(&[1]);
    let five_dims = Raw::header(1, 0).string("t").u32(5).data(32);
    let short = Raw::header(1, 0).tensor("t", &[4], 0, 0).data(15);
    let same_name = Raw::header(2, 0)
        .tensor("t", &[4], 0, 0)
        .tensor("t", &[4], 0, 32);
    let overlapping = Raw::header(2, 0)
        .tensor("t", &[4], 0, 32)
        .tensor("u", &[9], 0, 0);
    let escape = Raw::header(1, 0).tensor("t\u{1b}[31m\n", &[4], 77, 0);

    let cases: Vec<(Raw, &str)> = vec![
        (Raw::default(), "not a GGUF file: it begins with \"\""),
        (
            Raw(b"<!doctype".to_vec()),
            "it begins with \"<!do\", expected \"GGUF\"",
        ),
        (
            big_endian,
            "big-endian GGUF file (version 3); use the little-endian file",
        ),
        (version(1), "GGUF version 1, expected 2 or 3"),
        (version(4), "GGUF version 4, expected 2 or 3"),
        (
            version(3).u64(0),
            "ends within the metadata count: 8 bytes needed at byte 16, 0 left",
        ),
        (
            Raw::header(0, 1 << 60),
            "within the metadata (count 1152921504606846976)",
        ),
        (
            Raw::header(0, u64::MAX),
            "within the metadata (count 18446744073709551615)",
        ),
        (
            Raw::header(u64::MAX, 0),
            "within the tensor table (count 18446744073709551615)",
        ),
        (
            huge_key,
            "within metadata key number 0: 18446744073709551615",
        ),
        (not_utf8, "metadata key number 0 at byte 32 is not UTF-8"),
        (kv(13).u64(0), "key \"k\": value type 13, expected 0 to 12"),
        (
            kv(7).bytes(&[2]),
            "key \"k\": boolean byte 2, expected 0 or 1",
        ),
        (
            kv(9).u32(7).u64(2).bytes(&[1, 3]),
            "key \"k\": boolean byte 3, expected 0 or 1",
        ),
        (
            kv(8).u64(999),
            "within the value of metadata key \"k\": 999 bytes needed",
        ),
        (
            kv(9).u32(6).u64(1 << 62),
            "within the array (count 4611686018427387904) of metadata key \"k\"",
        ),
        (
            kv(9).u32(8).u64(1 << 61),
            "within the array (count 2305843009213693952) of metadata key \"k\"",
        ),
        (
            kv(9).u32(9).u64(1 << 60),
            "within the array (count 1152921504606846976) of metadata key \"k\"",
        ),
        (kv(9).u32(99).u64(0), "key \"k\": value type 99"),
        (nested, "key \"k\": arrays nested more than 4 deep"),
        (twice, "metadata key \"k\" occurs twice"),
        (
            alignment(4).u32(48),
            "\"general.alignment\": found 48, expected a power of two from 8",
        ),
        (
            alignment(4).u32(0),
            "\"general.alignment\": found 0, expected a power of two",
        ),
        (
            alignment(4).u32(1 << 25),
            "\"general.alignment\": found 33554432, expected a power",
        ),
        (
            alignment(8).string("32"),
            "found string \"32\", expected an integer",
        ),
        (
            five_dims,
            "tensor \"t\": it has 5 dimensions, expected 1 to 4",
        ),
        (
            one(&[], 0, 0),
            "tensor \"t\": it has 0 dimensions, expected 1 to 4",
        ),
        (
            one(&[4, 0], 0, 0),
            "tensor \"t\": dimension 1 is 0, expected at least 1",
        ),
        (
            one(&[33], 8, 0),
            "tensor \"t\": its rows of 33 elements are not whole Q8_0 blocks of 32",
        ),
        (
            one(&[1 << 40, 1 << 40], 0, 0),
            "tensor \"t\": its size overflows 63 bits",
        ),
        (
            one(&[256], 40, 0),
            "tensor \"t\": type id 40 is not supported; supported are F32 (0), ",
        ),
        (
            one(&[256], 41, 0),
            "tensor \"t\": type id 41 is not supported",
        ),
        (
            one(&[4], 0, 16),
            "tensor \"t\": offset 16, expected a multiple of the alignment 32",
        ),
        (
            short,
            "tensor \"t\": 16 bytes at offset 0 of 15 bytes of tensor data",
        ),
        (
            one(&[4], 0, u64::MAX - 31),
            "16 bytes at offset 18446744073709551584 of 999 bytes",
        ),
        (same_name.data(64), "tensor \"t\" occurs twice"),
        (overlapping.data(64), "tensors \"u\" and \"t\" overlap"),
        (escape.data(64), r#"tensor "t\u{1b}[31m\n": type id 77"#),
    ];
    for (raw, expected) in cases {
        let error = match exercise(&raw.0) {
            Err(error) => error,
            Ok(_) => panic!("accepted, expected {expected:?}"),
        };
        assert!(
            error.contains(expected),
            "found {error:?}, expected {expected:?}"
        );
    }
}

#[test]
fn a_long_name_is_cut_in_errors() {
    let name = "n".repeat(5000);
    let file = Raw::header(1, 0).tensor(&name, &[4], 40, 0).data(64).0;
    let error = exercise(&file).unwrap_err();
    assert!(
        error.starts_with(&format!("tensor \"{}\"...: type", "n".repeat(100))),
        "{error}"
    );
}

#[test]
fn a_file_without_tensors_needs_no_padding() {
    let file = Raw::header(0, 1).string("k").u32(0).bytes(&[1]).0;
    assert_eq!(exercise(&file).unwrap().metadata().u32("k").unwrap(), 1);
}

#[test]
fn the_deepest_array_may_be_an_empty_array_of_arrays() {
    let kv = Raw::header(0, 1).string("k").u32(9);
    let file = (0..3).fold(kv, |raw, _| raw.u32(9).u64(1)).u32(9).u64(0).0;
    exercise(&file).unwrap();
}

#[test]
fn version_2_is_read_like_version_3() {
    let mut file = sample();
    file[4] = 2;
    assert_eq!(exercise(&file).unwrap().tensors().len(), 5);
}
