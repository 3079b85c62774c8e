//! What must hold of the reader of checkpoints on any bytes; the fuzz target runs it too.

use std::path::Path;

use ds4_formats::safetensors::Checkpoint;

/// A folder with one file of these bytes, opened; it may be refused, and what its table says must
/// be there to read.
pub(crate) fn open(dir: &Path, bytes: &[u8]) -> Result<Checkpoint, String> {
    std::fs::write(dir.join("a.safetensors"), bytes).expect("a temporary file");
    let checkpoint = Checkpoint::open(dir).map_err(|error| error.to_string())?;
    assert_eq!(checkpoint.file_bytes(), bytes.len() as u64);
    let names: Vec<&str> = checkpoint.names().collect();
    for name in names {
        let entry = checkpoint.get(name).expect("a name of the table");
        let n: u64 = entry.shape.iter().product::<u64>() * entry.dtype.n_bytes();
        assert!(n <= bytes.len() as u64, "{name}");
        let mut all = vec![0; n as usize];
        checkpoint.read(entry, 0, &mut all).expect("all of it");
        if let Some((last, _)) = all.split_last() {
            let mut one = [0];
            checkpoint.read(entry, n - 1, &mut one).expect("its last");
            assert_eq!(one[0], *last);
        }
        let behind = checkpoint.read(entry, n, &mut [0]);
        assert!(behind.is_err(), "{name}: nothing is behind it");
    }
    Ok(checkpoint)
}
