//! Safetensors files: a JSON header and the tensors' bytes, read where they lie.
//!
//! [`Checkpoint::open`] takes a folder of such files as one table. Bytes are read on demand, so that
//! a checkpoint larger than memory costs the parts that are asked for. `docs/gguf.md` has the layout.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::gguf::Quoted;

/// The largest header that is read, bytes; the published files have 9 MB.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Dtype {
    F32,
    F16,
    BF16,
    /// Floats of 8 bits, 4 of them exponent.
    F8E4M3,
    /// Powers of two.
    F8E8M0,
    I8,
    U8,
    I32,
    I64,
}

impl Dtype {
    fn from_name(name: &str) -> Option<Dtype> {
        Some(match name {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::BF16,
            "F8_E4M3" => Dtype::F8E4M3,
            "F8_E8M0" => Dtype::F8E8M0,
            "I8" => Dtype::I8,
            "U8" => Dtype::U8,
            "I32" => Dtype::I32,
            "I64" => Dtype::I64,
            _ => return None,
        })
    }

    /// Bytes of an element.
    pub const fn n_bytes(self) -> u64 {
        match self {
            Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::F8E4M3 | Dtype::F8E8M0 | Dtype::I8 | Dtype::U8 => 1,
        }
    }
}

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Found and expected.
        reason: String,
    },
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions, the contiguous one last.
    pub shape: Vec<u64>,
    /// Which file holds it.
    file: usize,
    /// Where its bytes begin in that file.
    offset: u64,
    /// How many there are.
    pub n_bytes: u64,
}

/// The tensors of all files of a folder.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, File)>,
    entries: HashMap<String, Entry>,
}

impl Checkpoint {
    /// Opens every `*.safetensors` file of a folder, or one file, and checks all headers.
    ///
    /// # Errors
    /// There is none, a header is damaged, or two files have a tensor of one name.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let mut paths = Vec::new();
        if path.is_dir() {
            for entry in std::fs::read_dir(path).map_err(io)? {
                let path = entry.map_err(io)?.path();
                if path.extension().is_some_and(|e| e == "safetensors") {
                    paths.push(path);
                }
            }
            paths.sort();
        } else {
            paths.push(path.to_owned());
        }
        if paths.is_empty() {
            return Err(Error::Format {
                path: path.to_owned(),
                reason: "no *.safetensors file is in this folder".to_owned(),
            });
        }
        let mut checkpoint = Checkpoint {
            files: Vec::new(),
            entries: HashMap::new(),
        };
        for path in paths {
            checkpoint.add(path)?;
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), Error> {
        let number = self.files.len();
        let io = |source| Error::Io {
            path: path.clone(),
            source,
        };
        let wrong = |reason: String| Error::Format {
            path: path.clone(),
            reason,
        };
        let mut file = File::open(&path).map_err(io)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length)
            .map_err(|_| wrong(format!("{file_bytes} bytes are no safetensors file")))?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES || header_bytes > file_bytes - 8 {
            return Err(wrong(format!(
                "a header of {header_bytes} bytes is announced, expected up to {}: not a \
                 safetensors file, or cut off",
                MAX_HEADER_BYTES.min(file_bytes - 8)
            )));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(io)?;
        let header: Value = serde_json::from_slice(&header)
            .map_err(|e| wrong(format!("the header is not JSON: {e}")))?;
        let members = header
            .as_object()
            .ok_or_else(|| wrong("the header is not a JSON object".to_owned()))?;
        let data_start = 8 + header_bytes;
        for (name, value) in members {
            if name == "__metadata__" {
                continue;
            }
            let entry = entry(value, number, data_start, file_bytes).map_err(|reason| {
                wrong(format!("tensor {}: {reason}", Quoted::from(name.as_str())))
            })?;
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(wrong(format!(
                    "tensor {} is in two files",
                    Quoted::from(name.as_str())
                )));
            }
        }
        self.files.push((path, file));
        Ok(())
    }

    /// A tensor by name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All names, in no given order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The length of all files together, bytes.
    pub fn file_bytes(&self) -> u64 {
        let length = |file: &File| file.metadata().map_or(0, |m| m.len());
        self.files.iter().map(|(_, file)| length(file)).sum()
    }

    /// Reads bytes of a tensor from `start` on; safe to call from several threads.
    ///
    /// # Errors
    /// The file cannot be read, or the range is outside the tensor.
    pub fn read(&self, entry: &Entry, start: u64, out: &mut [u8]) -> Result<(), Error> {
        let (path, file) = &self.files[entry.file];
        let end = start.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > entry.n_bytes) {
            return Err(Error::Format {
                path: path.clone(),
                reason: format!(
                    "{} bytes from {start} are not in a tensor of {}",
                    out.len(),
                    entry.n_bytes
                ),
            });
        }
        read_at(file, out, entry.offset + start).map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })
    }
}

/// A member of the header, checked against the file.
fn entry(value: &Value, file: usize, data_start: u64, file_bytes: u64) -> Result<Entry, String> {
    let dtype = value["dtype"].as_str().unwrap_or_default();
    let dtype = Dtype::from_name(dtype).ok_or_else(|| format!("type {dtype:?} is not known"))?;
    let numbers = |key: &str| -> Option<Vec<u64>> {
        value[key].as_array()?.iter().map(Value::as_u64).collect()
    };
    let shape = numbers("shape").ok_or("it has no shape")?;
    let n_bytes = shape
        .iter()
        .try_fold(dtype.n_bytes(), |n, d| n.checked_mul(*d))
        .ok_or("its size overflows")?;
    let offsets = numbers("data_offsets").ok_or("it has no data_offsets")?;
    let [begin, end] = offsets[..] else {
        return Err("its data_offsets are not two numbers".to_owned());
    };
    if end.checked_sub(begin) != Some(n_bytes) {
        return Err(format!(
            "its data_offsets are {begin} to {end}, expected {n_bytes} bytes for shape {shape:?}"
        ));
    }
    if end > file_bytes - data_start {
        return Err(format!(
            "it ends at byte {end} of the data, of which the file has {}: it is cut off",
            file_bytes - data_start
        ));
    }
    Ok(Entry {
        dtype,
        shape,
        file,
        offset: data_start + begin,
        n_bytes,
    })
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, n_data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..n_data).map(|i| i as u8));
        bytes
    }

    fn open(name: &str, bytes: &[u8]) -> Result<Checkpoint, String> {
        let dir =
            std::env::temp_dir().join(format!("ds4-safetensors-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("a.safetensors"), bytes).unwrap();
        let opened = Checkpoint::open(&dir).map_err(|e| e.to_string());
        std::fs::remove_dir_all(&dir).unwrap();
        opened
    }

    #[test]
    fn tensors_are_found_by_name_and_read_in_parts() {
        let header = r#"{"__metadata__":{"format":"pt"},
            "a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
            "b":{"dtype":"F8_E8M0","shape":[3],"data_offsets":[16,19]}}"#;
        let checkpoint = open("good", &file(header, 19)).unwrap();
        let b = checkpoint.get("b").unwrap();
        assert_eq!((b.dtype, &b.shape[..]), (Dtype::F8E8M0, &[3][..]));
        let mut out = [0; 2];
        checkpoint.read(b, 1, &mut out).unwrap();
        assert_eq!(out, [17, 18]);
        assert!(checkpoint.read(b, 2, &mut out).is_err());
        assert!(checkpoint.get("c").is_none());
    }

    #[test]
    fn damage_is_refused_by_what_is_wrong() {
        let tensor = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        for (i, (bytes, word)) in [
            (vec![], "no safetensors file"),
            (vec![0; 7], "no safetensors file"),
            (vec![255; 40], "header of"),
            (file("[]", 0), "not a JSON object"),
            (file("{", 0), "not JSON"),
            (file(&tensor("F99", "[1]", "[0,4]"), 4), "F99"),
            (file(&tensor("F32", "[2]", "[0,4]"), 4), "expected 8 bytes"),
            (file(&tensor("F32", "[1]", "[0,4]"), 3), "cut off"),
            (file(&tensor("F32", "[1]", "[4,0]"), 8), "4 to 0"),
            (file(&tensor("F32", "[-1]", "[0,4]"), 8), "no shape"),
            (
                file(&tensor("F32", "[4294967296,4294967296]", "[0,4]"), 8),
                "overflows",
            ),
            (file(&tensor("F32", "[1]", "[0]"), 8), "two numbers"),
        ]
        .into_iter()
        .enumerate()
        {
            let error = open(&format!("bad{i}"), &bytes).unwrap_err();
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    }
}
