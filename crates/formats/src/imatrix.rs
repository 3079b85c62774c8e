//! Importance matrices: for every weight matrix the mean squares of what each of its columns is
//! multiplied with, for mixtures one for each expert.
//!
//! Files are those of llama.cpp: GGUF with two tensors for each matrix, `NAME.in_sum2` (sums of
//! squares, `[columns, experts]`) and `NAME.counts` (rows that were summed, `[1, experts]`); and the
//! older binary list, which is read as well. `docs/gguf.md` has both.

use std::collections::BTreeMap;
use std::path::Path;

use crate::gguf::{Array, Gguf, Metadata, Value, Writer};
use crate::{GgmlType, gguf};

/// The most values that a matrix of the older format may have.
const MAX_VALUES: usize = 1 << 28;

/// Importances of one weight tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    /// Columns of the matrix.
    pub n_columns: usize,
    /// Sums of squares, `[experts, columns]`; one expert for a plain matrix.
    pub sums: Vec<f32>,
    /// Rows that were summed, for each expert.
    pub counts: Vec<f32>,
}

impl Columns {
    /// Nothing summed yet.
    pub fn new(n_columns: usize, n_experts: usize) -> Columns {
        Columns {
            n_columns,
            sums: vec![0.0; n_columns * n_experts],
            counts: vec![0.0; n_experts],
        }
    }

    /// Matrices, 1 for a plain one.
    pub fn n_experts(&self) -> usize {
        self.counts.len()
    }

    /// Adds a row that an expert was given.
    ///
    /// # Panics
    /// When the row has another length than there are columns.
    pub fn add(&mut self, expert: usize, row: &[f32]) {
        assert_eq!(row.len(), self.n_columns, "a value for every column");
        let sums = &mut self.sums[expert * self.n_columns..][..self.n_columns];
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += x * x;
        }
        self.counts[expert] += 1.0;
    }

    /// The mean squares for an expert; `None` when it was never reached.
    pub fn mean_squares(&self, expert: usize) -> Option<Vec<f32>> {
        let count = *self.counts.get(expert)?;
        if count <= 0.0 {
            return None;
        }
        let sums = &self.sums[expert * self.n_columns..][..self.n_columns];
        Some(sums.iter().map(|sum| sum / count).collect())
    }
}

/// An importance matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// By the name of the weight tensor.
    pub entries: BTreeMap<String, Columns>,
    /// What was read.
    pub datasets: Vec<String>,
    /// Pieces of text that were read.
    pub n_chunks: u32,
    /// Tokens of each.
    pub chunk_tokens: u32,
}

/// Why a file is no importance matrix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is GGUF and damaged.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// It holds something else.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: String,
        /// Found and expected.
        reason: String,
    },
}

impl Imatrix {
    /// Reads a file of either format.
    ///
    /// # Errors
    /// It cannot be read, or is no importance matrix.
    pub fn open(path: &Path) -> Result<Imatrix, Error> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| Error::Io {
            path: name.clone(),
            source,
        })?;
        let parsed = if bytes.starts_with(b"GGUF") {
            Imatrix::from_gguf(&Gguf::parse(bytes.into())?)
        } else {
            Imatrix::from_list(&bytes)
        };
        parsed.map_err(|reason| Error::Format { path: name, reason })
    }

    fn from_gguf(gguf: &Gguf) -> Result<Imatrix, String> {
        let metadata = gguf.metadata();
        let mut imatrix = Imatrix {
            datasets: match metadata.get("imatrix.datasets") {
                Some(Value::Array(Array::String(names))) => names.clone(),
                _ => Vec::new(),
            },
            n_chunks: metadata.u32("imatrix.chunk_count").unwrap_or(0),
            chunk_tokens: metadata.u32("imatrix.chunk_size").unwrap_or(0),
            ..Imatrix::default()
        };
        for spec in gguf.tensors() {
            let Some(name) = spec.name.strip_suffix(".in_sum2") else {
                continue;
            };
            let f32s = |name: &str| {
                let tensor = gguf.tensor(name).filter(|t| t.ty == GgmlType::F32);
                tensor.map(|t| t.to_f32())
            };
            let sums = f32s(&spec.name).ok_or_else(|| format!("{} is not F32", spec.name))?;
            let counts = f32s(&format!("{name}.counts")).ok_or_else(|| {
                format!("{name}.in_sum2 has no F32 tensor {name}.counts beside it")
            })?;
            let n_columns = spec.ne[0] as usize;
            if sums.len() != n_columns * counts.len() {
                return Err(format!(
                    "{name} has {} sums and {} counts, expected {n_columns} sums for each count",
                    sums.len(),
                    counts.len()
                ));
            }
            let columns = Columns {
                n_columns,
                sums,
                counts,
            };
            imatrix.entries.insert(name.to_owned(), columns);
        }
        if imatrix.entries.is_empty() {
            return Err(
                "no tensor NAME.in_sum2 is in it: expected an importance matrix".to_owned(),
            );
        }
        Ok(imatrix)
    }

    /// The older list: the number of entries; for each a name, the number of calls, and the mean
    /// squares times that number; then, in later files, the number of chunks and the data set.
    fn from_list(bytes: &[u8]) -> Result<Imatrix, String> {
        let mut rest = bytes;
        let number = |rest: &mut &[u8], what: &str| -> Result<usize, String> {
            let (word, after) = rest
                .split_first_chunk::<4>()
                .ok_or_else(|| format!("it ends where {what} should be"))?;
            *rest = after;
            usize::try_from(i32::from_le_bytes(*word))
                .map_err(|_| format!("{what} is negative: not an importance matrix"))
        };
        let mut imatrix = Imatrix::default();
        let n_entries = number(&mut rest, "the number of entries")?;
        if n_entries == 0 || n_entries > 1 << 20 {
            return Err(format!(
                "{n_entries} entries are announced: not an importance matrix"
            ));
        }
        for _ in 0..n_entries {
            let n = number(&mut rest, "the length of a name")?;
            let name = rest.get(..n).ok_or("it ends within a name")?;
            let name = std::str::from_utf8(name).map_err(|_| "a name is not UTF-8")?;
            rest = &rest[n..];
            let n_calls = number(&mut rest, "the number of calls")?;
            let n_values = number(&mut rest, "the number of values")?;
            if n_values == 0 || n_values > MAX_VALUES || n_values * 4 > rest.len() {
                return Err(format!("{name}: {n_values} values do not fit the file"));
            }
            let (values, after) = rest.split_at(n_values * 4);
            rest = after;
            let values = values.as_chunks::<4>().0;
            let sums: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
            // The experts of a mixture lie one after the other, and only the weights tell how many
            // they are.
            let columns = Columns {
                n_columns: n_values,
                sums,
                counts: vec![n_calls.max(1) as f32],
            };
            imatrix.entries.insert(name.to_owned(), columns);
        }
        if !rest.is_empty() {
            imatrix.n_chunks = number(&mut rest, "the number of chunks")? as u32;
            let n = number(&mut rest, "the length of a name")?;
            let name = rest.get(..n).ok_or("it ends within the data set's name")?;
            imatrix.datasets = vec![String::from_utf8_lossy(name).into_owned()];
        }
        Ok(imatrix)
    }

    /// The importances for a tensor, cut to its columns and experts; `None` when there are none.
    ///
    /// # Errors
    /// They are those of a tensor of another shape.
    pub fn for_tensor(
        &self,
        name: &str,
        n_columns: usize,
        n_experts: usize,
    ) -> Result<Option<Columns>, String> {
        let Some(found) = self.entries.get(name) else {
            return Ok(None);
        };
        let mut columns = found.clone();
        // As the older format has them.
        if columns.n_experts() == 1 && columns.n_columns == n_columns * n_experts {
            columns.n_columns = n_columns;
            columns.counts = vec![columns.counts[0]; n_experts];
        }
        if columns.n_columns != n_columns || columns.n_experts() != n_experts {
            return Err(format!(
                "{name}: the importance matrix has {} x {}, and the tensor {n_columns} columns x \
                 {n_experts} experts: it was made for another model",
                found.n_columns,
                found.n_experts()
            ));
        }
        Ok(Some(columns))
    }

    /// The bytes of the GGUF format.
    ///
    /// # Errors
    /// A name is there twice or no tensor can have the shape.
    pub fn to_gguf(&self) -> Result<Vec<u8>, gguf::Error> {
        let mut metadata = Metadata::new();
        metadata.insert("general.type", Value::String("imatrix".to_owned()));
        metadata.insert(
            "imatrix.datasets",
            Value::Array(Array::String(self.datasets.clone())),
        );
        metadata.insert("imatrix.chunk_count", Value::U32(self.n_chunks));
        metadata.insert("imatrix.chunk_size", Value::U32(self.chunk_tokens));
        let mut writer = Writer::new(metadata)?;
        let mut data = Vec::new();
        for (name, columns) in &self.entries {
            let n_experts = columns.n_experts() as u64;
            let shape = [columns.n_columns as u64, n_experts];
            writer.push(&format!("{name}.in_sum2"), GgmlType::F32, &shape)?;
            writer.push(&format!("{name}.counts"), GgmlType::F32, &[1, n_experts])?;
            data.extend([&columns.sums, &columns.counts]);
        }
        let mut bytes = Vec::new();
        let mut next = data.into_iter();
        writer.write(&mut bytes, |_, out| {
            for value in next.next().into_iter().flatten() {
                out.write_all(&value.to_le_bytes())?;
            }
            Ok(())
        })?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Imatrix {
        let mut plain = Columns::new(3, 1);
        plain.add(0, &[1.0, -2.0, 0.0]);
        plain.add(0, &[3.0, 0.0, 0.5]);
        let mut mixture = Columns::new(2, 3);
        mixture.add(1, &[2.0, 4.0]);
        Imatrix {
            entries: [
                ("a.weight".to_owned(), plain),
                ("b.weight".to_owned(), mixture),
            ]
            .into(),
            datasets: vec!["text".to_owned()],
            n_chunks: 2,
            chunk_tokens: 512,
        }
    }

    #[test]
    fn what_is_written_is_read_again_with_means_for_the_experts_that_were_reached() {
        let imatrix = example();
        let bytes = imatrix.to_gguf().unwrap();
        let read = Imatrix::from_gguf(&Gguf::parse(bytes.into()).unwrap()).unwrap();
        assert_eq!(read, imatrix);
        let plain = read.for_tensor("a.weight", 3, 1).unwrap().unwrap();
        assert_eq!(plain.mean_squares(0), Some(vec![5.0, 2.0, 0.125]));
        let mixture = read.for_tensor("b.weight", 2, 3).unwrap().unwrap();
        assert_eq!(mixture.mean_squares(0), None);
        assert_eq!(mixture.mean_squares(1), Some(vec![4.0, 16.0]));
        assert!(read.for_tensor("c.weight", 3, 1).unwrap().is_none());
        assert!(read.for_tensor("a.weight", 4, 1).is_err());
    }

    #[test]
    fn the_older_list_is_read_and_cut_by_the_shape_of_the_tensor() {
        let mut bytes = 1i32.to_le_bytes().to_vec();
        bytes.extend(3i32.to_le_bytes());
        bytes.extend(b"b.w");
        bytes.extend(2i32.to_le_bytes());
        bytes.extend(4i32.to_le_bytes());
        for x in [2.0f32, 4.0, 6.0, 8.0] {
            bytes.extend(x.to_le_bytes());
        }
        let whole = Imatrix::from_list(&bytes).unwrap();
        let columns = whole.for_tensor("b.w", 2, 2).unwrap().unwrap();
        assert_eq!(columns.mean_squares(0), Some(vec![1.0, 2.0]));
        assert_eq!(columns.mean_squares(1), Some(vec![3.0, 4.0]));
        for n in 0..bytes.len() {
            assert!(Imatrix::from_list(&bytes[..n]).is_err(), "{n}");
        }
        assert!(Imatrix::from_list(&[255; 64]).is_err());
    }
}
