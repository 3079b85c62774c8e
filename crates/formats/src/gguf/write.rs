//! Writing.

use std::collections::HashSet;
use std::io::{self, Write};

use super::error::Error;
use super::metadata::{Array, Metadata, Value};
use super::read::{MAX_ARRAY_DEPTH, TensorSpec};
use super::{MAGIC, VERSION, alignment};
use crate::{GgmlType, Tensor};

/// Writes a GGUF file: metadata first, then the tensors in the order they were announced.
///
/// The header is known before any data is, so files larger than memory are written one tensor at a
/// time, and a file of the full published size can be made sparse: write [`Writer::header`] and
/// set the file's length to [`Writer::file_bytes`].
#[derive(Clone, Debug)]
pub struct Writer {
    metadata: Metadata,
    alignment: u64,
    tensors: Vec<TensorSpec>,
    names: HashSet<String>,
    /// Length of the tensor data announced so far, padded.
    data_bytes: u64,
}

impl Writer {
    /// A file with these metadata; `general.alignment` among them sets the alignment of tensors.
    ///
    /// # Errors
    /// The alignment is no power of two in range, or an array is nested too deeply to be read.
    pub fn new(metadata: Metadata) -> Result<Writer, Error> {
        let alignment = alignment(&metadata)?;
        for (key, value) in metadata.iter() {
            if let Value::Array(array) = value
                && depth(array) > MAX_ARRAY_DEPTH
            {
                return Err(Error::ArrayDepth {
                    key: key.into(),
                    limit: MAX_ARRAY_DEPTH,
                });
            }
        }
        Ok(Writer {
            metadata,
            alignment,
            tensors: Vec::new(),
            names: HashSet::new(),
            data_bytes: 0,
        })
    }

    /// Announces the next tensor.
    ///
    /// # Errors
    /// The shape is impossible for the type, or the name is taken.
    pub fn push(&mut self, name: &str, ty: GgmlType, ne: &[u64]) -> Result<(), Error> {
        let shape_error = |source| Error::Shape {
            tensor: name.into(),
            source,
        };
        let n_bytes = ty.tensor_bytes(ne).map_err(shape_error)?;
        let end = n_bytes
            .checked_next_multiple_of(self.alignment)
            .and_then(|padded| self.data_bytes.checked_add(padded))
            .filter(|&end| end <= i64::MAX as u64)
            .ok_or_else(|| shape_error(crate::ShapeError::TooLarge))?;
        if !self.names.insert(name.to_owned()) {
            return Err(Error::DuplicateTensor {
                tensor: name.into(),
            });
        }
        let offset = self.data_bytes;
        let (name, ne) = (name.to_owned(), ne.to_vec());
        self.tensors.push(TensorSpec {
            name,
            ty,
            ne,
            offset,
            n_bytes,
            shard: 0,
        });
        self.data_bytes = end;
        Ok(())
    }

    /// Everything before the tensor data, padded so that the data begins where it ends.
    pub fn header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            put_string(&mut out, key);
            out.extend(value.type_id().to_le_bytes());
            put_value(&mut out, value);
        }
        for tensor in &self.tensors {
            put_string(&mut out, &tensor.name);
            out.extend((tensor.ne.len() as u32).to_le_bytes());
            tensor.ne.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.ty.id().to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        out
    }

    /// The tensors in order, with the offsets they will have in the file.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let data_start = self.header().len() as u64;
        let place = |tensor: &TensorSpec| TensorSpec {
            offset: data_start + tensor.offset,
            ..tensor.clone()
        };
        self.tensors.iter().map(place).collect()
    }

    /// The length of the whole file, bytes.
    pub fn file_bytes(&self) -> u64 {
        self.header().len() as u64 + self.data_bytes
    }

    /// Writes the file; `data` is asked for each tensor in order and writes its bytes.
    ///
    /// # Errors
    /// What `out` or `data` say, and [`io::ErrorKind::InvalidData`] when `data` has written another
    /// number of bytes than the tensor has. The file is then incomplete.
    pub fn write(
        &self,
        mut out: impl Write,
        mut data: impl FnMut(&TensorSpec, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        out.write_all(&self.header())?;
        let padding = vec![0; self.alignment as usize];
        for tensor in self.tensors() {
            let mut counted = Counted {
                out: &mut out,
                n_bytes: 0,
            };
            data(&tensor, &mut counted)?;
            if counted.n_bytes != tensor.n_bytes {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "tensor {:?}: {} bytes written, expected {}",
                        tensor.name, counted.n_bytes, tensor.n_bytes
                    ),
                ));
            }
            let n_padding = tensor.n_bytes.next_multiple_of(self.alignment) - tensor.n_bytes;
            out.write_all(&padding[..n_padding as usize])?;
        }
        out.flush()
    }
}

/// Writes a file of tensors that are in memory.
///
/// # Errors
/// As [`Writer::new`], [`Writer::push`] and [`Writer::write`].
pub fn write_tensors(out: impl Write, metadata: Metadata, tensors: &[Tensor]) -> Result<(), Error> {
    let mut writer = Writer::new(metadata)?;
    for tensor in tensors {
        writer.push(&tensor.name, tensor.ty, &tensor.ne)?;
    }
    let mut next = tensors.iter();
    writer.write(out, |_, out| {
        next.next()
            .map_or(Ok(()), |tensor| out.write_all(&tensor.data))
    })?;
    Ok(())
}

struct Counted<W> {
    out: W,
    n_bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.n_bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn depth(array: &Array) -> usize {
    match array {
        Array::Array(arrays) => 1 + arrays.iter().map(depth).max().unwrap_or(0),
        _ => 1,
    }
}

fn put_string(out: &mut Vec<u8>, string: &str) {
    out.extend((string.len() as u64).to_le_bytes());
    out.extend(string.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => put_string(out, v),
        Value::Array(v) => put_array(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.type_id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::Bool(v) => v.iter().for_each(|&v| out.push(u8::from(v))),
        Array::String(v) => v.iter().for_each(|v| put_string(out, v)),
        Array::Array(v) => v.iter().for_each(|v| put_array(out, v)),
        Array::U64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
    }
}
