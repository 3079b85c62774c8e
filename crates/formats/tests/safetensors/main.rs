//! Checkpoints, and what damage makes of them.

mod exercise;

use exercise::open;

/// Two tensors, a scale beside the first, and what others put into the header.
fn sample() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[0,6]},"a.scale":{"dtype":"F8_E8M0","shape":[1,1],"data_offsets":[6,7]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[7,11]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(1..=11u8);
    bytes
}

#[test]
fn cut_and_changed_files_are_refused_or_read_and_never_more() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bytes = sample();
    let whole = open(dir.path(), &bytes).expect("the sample");
    assert_eq!(whole.names().count(), 3);
    for n in 0..bytes.len() {
        let error = open(dir.path(), &bytes[..n]).expect_err("a file that is cut off");
        assert!(!error.contains('\n'), "cut at {n}: {error}");
    }
    for n in 0..bytes.len() {
        for change in [0x01, 0x04, 0x40, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[n] ^= change;
            if let Err(error) = open(dir.path(), &damaged) {
                assert!(!error.contains('\n'), "byte {n}: {error}");
            }
        }
    }
}
