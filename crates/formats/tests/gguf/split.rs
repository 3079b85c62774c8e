//! Models in several files.

use std::path::PathBuf;

use ds4_formats::gguf::{Gguf, Metadata};
use ds4_formats::{GgmlType, Tensor};

use crate::files::{Scratch, file, tensor};

fn metadata(no: u16, count: u16, n_tensors: i32) -> Metadata {
    let mut metadata = Metadata::new();
    if no == 0 {
        metadata.insert("general.architecture", "sample");
    }
    metadata.insert("split.no", no);
    metadata.insert("split.count", count);
    metadata.insert("split.tensors.count", n_tensors);
    metadata
}

/// The files of a model: name, metadata, tensors.
type Files = Vec<(String, Metadata, Vec<Tensor>)>;

/// A model of three files, the first without tensors; `change` may damage it before it is written.
fn model(name: &str, change: impl FnOnce(&mut Files)) -> (Scratch, PathBuf) {
    let scratch = Scratch::new(name);
    let file_name = |no: usize| format!("m-q2-{no:05}-of-00003.gguf");
    let mut files = vec![
        (file_name(1), metadata(0, 3, 3), vec![]),
        (
            file_name(2),
            metadata(1, 3, 3),
            vec![tensor("a", GgmlType::F32, &[9])],
        ),
        (
            file_name(3),
            metadata(2, 3, 3),
            vec![
                tensor("b", GgmlType::F32, &[3]),
                tensor("c", GgmlType::Q8_0, &[32, 2]),
            ],
        ),
    ];
    change(&mut files);
    for (name, metadata, tensors) in &files {
        std::fs::write(scratch.0.join(name), file(metadata.clone(), tensors)).unwrap();
    }
    let first = scratch.0.join(&files[0].0);
    (scratch, first)
}

#[test]
fn the_first_file_opens_the_whole_model() {
    let (_scratch, first) = model("whole", |_| ());
    let gguf = Gguf::open(&first).unwrap();
    assert_eq!(
        gguf.metadata().str("general.architecture").unwrap(),
        "sample"
    );
    assert_eq!(gguf.shards().len(), 3);
    let names: Vec<(&str, usize)> = gguf
        .tensors()
        .map(|spec| (spec.name.as_str(), spec.shard))
        .collect();
    assert_eq!(names, [("a", 1), ("b", 2), ("c", 2)]);
    for (name, ty, ne) in [
        ("a", GgmlType::F32, &[9][..]),
        ("c", GgmlType::Q8_0, &[32, 2]),
    ] {
        assert_eq!(
            *gguf.tensor(name).unwrap().data,
            *tensor(name, ty, ne).data,
            "{name}"
        );
    }
    for (shard, n_tensors) in gguf.shards().iter().zip([0, 1, 2]) {
        let path = shard.path.as_ref().unwrap();
        assert_eq!(shard.n_tensors, n_tensors, "{}", path.display());
        assert_eq!(
            std::fs::metadata(path).unwrap().len(),
            shard.bytes.len() as u64
        );
    }
}

#[test]
fn files_that_do_not_fit_together_are_refused() {
    type Change = fn(&mut Files);
    let cases: [(&str, Change, &str); 8] = [
        (
            "missing",
            |f| drop(f.remove(1)),
            "m-q2-00002-of-00003.gguf: cannot read",
        ),
        (
            "second-first",
            |f| f.rotate_left(1),
            "this is file 2 of 3; open the first, m-q2-00001-of-00003.gguf",
        ),
        (
            "renamed",
            |f| f[0].0 = "model.gguf".into(),
            "its name does not end in -00001-of-00003.gguf",
        ),
        (
            "other-count",
            |f| f[0].1 = metadata(0, 4, 3),
            "the name says file 1 of 3, the metadata say file 1 of 4",
        ),
        (
            "swapped",
            |f| f[2].1 = metadata(1, 3, 3),
            "m-q2-00003-of-00003.gguf: split file: found file 2 of 3, expected file 3 of 3",
        ),
        (
            "unsplit",
            |f| f[1].1 = Metadata::new(),
            "found a file that is not split, expected file 2 of 3",
        ),
        (
            "duplicate",
            |f| f[2].2[0].name = "a".into(),
            "m-q2-00003-of-00003.gguf: tensor \"a\" occurs twice",
        ),
        (
            "total",
            |f| f[0].1 = metadata(0, 3, 1328),
            "found 3 tensors in all files, expected 1328",
        ),
    ];
    for (name, change, expected) in cases {
        let (_scratch, first) = model(name, change);
        let error = Gguf::open(&first).unwrap_err().to_string();
        assert!(
            error.contains(expected),
            "{name}: found {error:?}, expected {expected:?}"
        );
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Gguf::open("no/such/model.gguf").unwrap_err().to_string();
    assert!(
        error.starts_with("no/such/model.gguf: cannot read: "),
        "{error}"
    );
}
