//! Enough of NumPy's formats to read test data: an `.npz` is a zip of `.npy` arrays, here stored
//! without compression.

use std::collections::BTreeMap;
use std::path::Path;

/// An array of a golden file: little-endian bytes in C order.
pub(crate) struct Npy {
    /// NumPy's type string, such as `<f4` or `|u1`.
    pub(crate) descr: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Npy {
    fn check_shape(&self, item_bytes: usize) {
        assert_eq!(
            self.shape.iter().product::<usize>() * item_bytes,
            self.bytes.len()
        );
    }

    pub(crate) fn f32(&self) -> Vec<f32> {
        self.check_shape(4);
        assert_eq!(self.descr, "<f4");
        self.bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect()
    }

    pub(crate) fn u8(&self) -> &[u8] {
        self.check_shape(1);
        assert_eq!(self.descr, "|u1");
        &self.bytes
    }
}

fn u16_at(b: &[u8], at: usize) -> usize {
    u16::from_le_bytes([b[at], b[at + 1]]).into()
}

fn u32_at(b: &[u8], at: usize) -> usize {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap()) as usize
}

pub(crate) fn read_npz(path: &Path) -> BTreeMap<String, Npy> {
    let zip = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let end = (0..zip.len() - 21)
        .rev()
        .find(|&i| zip[i..].starts_with(b"PK\x05\x06"));
    let end = end.expect("the end of the zip directory");
    let mut entry = u32_at(&zip, end + 16);
    let mut arrays = BTreeMap::new();
    for _ in 0..u16_at(&zip, end + 10) {
        assert!(zip[entry..].starts_with(b"PK\x01\x02"));
        assert_eq!(u16_at(&zip, entry + 10), 0, "only stored members are read");
        let size = u32_at(&zip, entry + 24);
        let name_len = u16_at(&zip, entry + 28);
        let name = str::from_utf8(&zip[entry + 46..][..name_len]).unwrap();
        let local = u32_at(&zip, entry + 42);
        let data = local + 30 + u16_at(&zip, local + 26) + u16_at(&zip, local + 28);
        let name = name.strip_suffix(".npy").unwrap().to_owned();
        arrays.insert(name, read_npy(&zip[data..data + size]));
        entry += 46 + name_len + u16_at(&zip, entry + 30) + u16_at(&zip, entry + 32);
    }
    arrays
}

fn read_npy(npy: &[u8]) -> Npy {
    assert!(npy.starts_with(b"\x93NUMPY\x01"));
    let data = 10 + u16_at(npy, 8);
    let header = str::from_utf8(&npy[10..data]).unwrap();
    let field = |name: &str| {
        let (_, rest) = header.split_once(name).unwrap();
        rest.trim_start_matches([':', ' '])
    };
    assert!(field("'fortran_order'").starts_with("False"));
    let (shape, _) = field("'shape'").split_once(')').unwrap();
    let shape = shape.trim_start_matches('(').split(',').map(str::trim);
    Npy {
        descr: field("'descr'").split('\'').nth(1).unwrap().to_owned(),
        shape: shape
            .filter(|n| !n.is_empty())
            .map(|n| n.parse().unwrap())
            .collect(),
        bytes: npy[data..].to_vec(),
    }
}
