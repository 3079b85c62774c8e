//! What must hold of the reader of importance matrices on any bytes; the fuzz target runs it too.

use std::path::Path;

use ds4_formats::imatrix::Imatrix;

/// A file of these bytes in a folder, opened; it may be refused, and what is read must be usable.
pub(crate) fn open(dir: &Path, bytes: &[u8]) -> Result<Imatrix, String> {
    let path = dir.join("x");
    std::fs::write(&path, bytes).expect("a temporary file");
    let imatrix = Imatrix::open(&path).map_err(|error| error.to_string())?;
    for (name, columns) in &imatrix.entries {
        assert_eq!(columns.sums.len(), columns.n_columns * columns.n_experts());
        for e in 0..=columns.n_experts() {
            if let Some(means) = columns.mean_squares(e) {
                assert_eq!(means.len(), columns.n_columns);
            }
        }
        // The tensor it is used for has another shape, or this one.
        let _ = imatrix.for_tensor(name, 3, 1);
        let _ = imatrix.for_tensor(name, 2, 3);
        let _ = imatrix.for_tensor(name, columns.n_columns, columns.n_experts());
    }
    Ok(imatrix)
}
