//! Importance matrices of another writer, and what damage makes of them.

mod exercise;

use std::path::{Path, PathBuf};

use ds4_formats::imatrix::{Columns, Imatrix};
use exercise::open;

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../testdata/imatrix")
        .join(name)
}

/// What both samples say.
fn expected() -> [(&'static str, Columns); 2] {
    let plain = Columns {
        n_columns: 3,
        sums: vec![10.0, 4.0, 0.25],
        counts: vec![2.0],
    };
    let mixture = Columns {
        n_columns: 2,
        sums: vec![0.0, 0.0, 4.0, 16.0, 9.0, 1.0],
        counts: vec![0.0, 1.0, 2.0],
    };
    [("a.weight", plain), ("b.weight", mixture)]
}

#[test]
fn both_formats_of_another_writer_say_the_same() {
    let new = Imatrix::open(&sample("sample.gguf")).expect("the newer format");
    let old = Imatrix::open(&sample("sample.dat")).expect("the older format");
    assert_eq!(
        new.entries,
        expected().map(|(n, c)| (n.to_owned(), c)).into()
    );
    assert_eq!((new.n_chunks, new.chunk_tokens), (2, 512));
    for imatrix in [&new, &old] {
        assert_eq!(imatrix.datasets, ["text"]);
        assert_eq!(imatrix.n_chunks, 2);
        let plain = imatrix.for_tensor("a.weight", 3, 1).expect("its shape");
        let means = plain.and_then(|c| c.mean_squares(0));
        assert_eq!(means, Some(vec![5.0, 2.0, 0.125]));
    }
    // The older format has one count for all experts.
    let mixture = new
        .for_tensor("b.weight", 2, 3)
        .expect("its shape")
        .expect("it");
    assert_eq!(mixture.mean_squares(0), None);
    assert_eq!(mixture.mean_squares(2), Some(vec![4.5, 0.5]));
    let mixture = old
        .for_tensor("b.weight", 2, 3)
        .expect("its shape")
        .expect("it");
    assert_eq!(mixture.mean_squares(2), Some(vec![9.0, 1.0]));
}

#[test]
fn what_is_written_is_read_again_and_is_the_same_bytes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let imatrix = Imatrix::open(&sample("sample.gguf")).expect("a sample");
    let bytes = imatrix.to_gguf().expect("a file");
    let again = open(dir.path(), &bytes).expect("its own file");
    assert_eq!(again, imatrix);
    assert!(again.to_gguf().expect("a file") == bytes);
}

#[test]
fn cut_and_changed_files_are_refused_or_read_and_never_more() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for name in ["sample.gguf", "sample.dat"] {
        let bytes = std::fs::read(sample(name)).expect("a sample");
        let whole = open(dir.path(), &bytes).expect("a sample");
        for n in 0..bytes.len() {
            // Padding is cut from the end, or what follows the entries; nothing else.
            if let Ok(cut) = open(dir.path(), &bytes[..n]) {
                assert_eq!(cut.entries, whole.entries, "{name} cut at {n}");
            }
        }
        for n in 0..bytes.len() {
            for change in [0x01, 0x40, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[n] ^= change;
                if let Err(error) = open(dir.path(), &damaged) {
                    assert!(!error.contains('\n'), "{name}, byte {n}: {error}");
                }
            }
        }
    }
}
