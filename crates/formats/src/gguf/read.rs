//! Parsing and checking.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::error::{Error, Quote, optional};
use super::metadata::{Array, Metadata, Value};
use super::{MAGIC, alignment, split};
use crate::{Bytes, GgmlType, Origin, ShapeError, Tensor};

/// How deep arrays may be nested in arrays: an array of numbers has depth 1.
pub const MAX_ARRAY_DEPTH: usize = 4;

/// The shortest metadata value: an empty key, a type, one byte.
const MIN_KV_BYTES: u64 = 8 + 4 + 1;

/// The shortest row of the tensor table: an empty name, one dimension, a type, an offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// A GGUF file, or the files of a split model as one, checked.
#[derive(Clone, Debug)]
pub struct Gguf {
    metadata: Metadata,
    alignment: u64,
    tensors: Vec<TensorSpec>,
    by_name: HashMap<String, usize>,
    shards: Vec<Shard>,
}

/// One file of the model; a model that is not split has one.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Where it was opened; `None` when it was parsed from memory.
    pub path: Option<PathBuf>,
    /// The whole file.
    pub bytes: Bytes,
    /// GGUF version, 2 or 3.
    pub version: u32,
    /// Where the tensor data begins, bytes from the start of the file.
    pub data_start: u64,
    /// Number of tensors in this file.
    pub n_tensors: usize,
}

/// What a file says of its place in a split model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Which file, counted from 0.
    pub no: u32,
    /// How many files.
    pub count: u32,
    /// How many tensors in all files, if it says so.
    pub n_tensors: Option<u64>,
}

/// A row of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// Element type.
    pub ty: GgmlType,
    /// Elements in each dimension, the contiguous one first; 1 to 4 entries.
    pub ne: Vec<u64>,
    /// Where its data begins, bytes from the start of the file that holds it.
    pub offset: u64,
    /// Length of its data, bytes, without padding.
    pub n_bytes: u64,
    /// Which file of the model holds it, an index of [`Gguf::shards`].
    pub shard: usize,
}

impl Gguf {
    /// Opens a file by mapping it. The first file of a split model, named
    /// `NAME-00001-of-0000N.gguf`, opens the others beside it and presents all tensors as one
    /// table; metadata is that of the first.
    ///
    /// # Errors
    /// [`Error::InFile`], naming the file and what is wrong with it.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf, Error> {
        let path = path.as_ref();
        let mut whole = open_one(path)?;
        let siblings = whole
            .split()
            .and_then(|split| split::siblings(path, split))
            .map_err(|e| e.in_file(path))?;
        for (i, sibling) in siblings.iter().enumerate() {
            let shard = open_one(sibling)?;
            split::check_sibling(&whole, &shard, i as u32 + 1)
                .and_then(|()| whole.append(shard))
                .map_err(|e| e.in_file(sibling))?;
        }
        if !siblings.is_empty() {
            split::check_total(&whole).map_err(|e| e.in_file(path))?;
        }
        Ok(whole)
    }

    /// Parses a file from memory. Of a split model this is one file and its own tensors.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn parse(bytes: Bytes) -> Result<Gguf, Error> {
        let file_bytes = bytes.len() as u64;
        let mut cursor = Cursor {
            bytes: &bytes,
            at: 0,
        };

        let version = read_magic_and_version(&mut cursor)?;
        let n_tensors = cursor.u64(&"the tensor count")?;
        let n_kv = cursor.u64(&"the metadata count")?;
        cursor.expect(
            n_kv,
            MIN_KV_BYTES,
            &format_args!("the metadata (count {n_kv})"),
        )?;
        let metadata = read_metadata(&mut cursor, n_kv)?;
        let alignment = alignment(&metadata)?;

        cursor.expect(
            n_tensors,
            MIN_TENSOR_BYTES,
            &format_args!("the tensor table (count {n_tensors})"),
        )?;
        let mut tensors = Vec::new();
        let mut by_name = HashMap::new();
        for i in 0..n_tensors {
            let tensor = read_tensor_spec(&mut cursor, i)?;
            if !tensor.offset.is_multiple_of(alignment) {
                let TensorSpec { name, offset, .. } = &tensor;
                return Err(Error::TensorOffset {
                    tensor: name.as_str().into(),
                    offset: *offset,
                    alignment,
                });
            }
            insert_name(&mut by_name, &tensor.name, tensors.len())?;
            tensors.push(tensor);
        }

        // A file without tensors may end where its table ends.
        let data_start = (cursor.at as u64).next_multiple_of(alignment);
        let available = file_bytes.saturating_sub(data_start);
        for tensor in &mut tensors {
            let TensorSpec {
                offset, n_bytes, ..
            } = *tensor;
            if offset
                .checked_add(n_bytes)
                .is_none_or(|end| end > available)
            {
                return Err(Error::TensorRange {
                    tensor: tensor.name.as_str().into(),
                    offset,
                    n_bytes,
                    available,
                });
            }
            tensor.offset += data_start;
        }
        check_overlap(&tensors)?;

        let shard = Shard {
            path: None,
            bytes,
            version,
            data_start,
            n_tensors: tensors.len(),
        };
        Ok(Gguf {
            metadata,
            alignment,
            tensors,
            by_name,
            shards: vec![shard],
        })
    }

    /// A model in buffers of this program, each a shard, in which tensors may share bytes.
    ///
    /// # Errors
    /// A tensor lies outside its buffer or is there twice.
    pub fn over(
        metadata: Metadata,
        buffers: Vec<Bytes>,
        tensors: Vec<TensorSpec>,
    ) -> Result<Gguf, Error> {
        let mut by_name = HashMap::new();
        for (at, tensor) in tensors.iter().enumerate() {
            let &TensorSpec {
                offset, n_bytes, ..
            } = tensor;
            let available = buffers.get(tensor.shard).map_or(0, |b| b.len() as u64);
            if offset
                .checked_add(n_bytes)
                .is_none_or(|end| end > available)
            {
                return Err(Error::TensorRange {
                    tensor: tensor.name.as_str().into(),
                    offset,
                    n_bytes,
                    available,
                });
            }
            insert_name(&mut by_name, &tensor.name, at)?;
        }
        let shards = buffers.into_iter().enumerate().map(|(shard, bytes)| Shard {
            path: None,
            bytes,
            version: 3,
            data_start: 0,
            n_tensors: tensors.iter().filter(|t| t.shard == shard).count(),
        });
        Ok(Gguf {
            alignment: alignment(&metadata)?,
            metadata,
            by_name,
            shards: shards.collect(),
            tensors,
        })
    }

    /// The metadata; of a split model, that of the first file.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Alignment of tensors, bytes; of a split model, that of the first file.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The tensor table, in the order of the file or files.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorSpec> {
        self.tensors.iter()
    }

    /// The table's row for a name.
    pub fn spec(&self, name: &str) -> Option<&TensorSpec> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// The tensor of a name, sharing the file's memory.
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        let spec = self.spec(name)?;
        Some(Tensor {
            name: spec.name.clone(),
            ty: spec.ty,
            ne: spec.ne.clone(),
            data: self.data(spec),
            origin: self.shards[spec.shard].path.as_deref().map(|path| Origin {
                file: path.into(),
                offset: spec.offset,
            }),
        })
    }

    /// The bytes of a tensor of this table.
    ///
    /// # Panics
    /// When `spec` comes from another file and does not fit this one.
    pub fn data(&self, spec: &TensorSpec) -> Bytes {
        let start = spec.offset as usize;
        self.shards[spec.shard]
            .bytes
            .slice(start..start + spec.n_bytes as usize)
    }

    /// The files of the model.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The length of all files together, bytes.
    pub fn file_bytes(&self) -> u64 {
        self.shards
            .iter()
            .map(|shard| shard.bytes.len() as u64)
            .sum()
    }

    /// What the metadata say of a split; `None` for a model in one file.
    ///
    /// # Errors
    /// A split key has a value that is no count.
    pub fn split(&self) -> Result<Option<Split>, Error> {
        let Some(count) = optional(self.metadata.u32("split.count"))? else {
            return Ok(None);
        };
        if count <= 1 {
            return Ok(None);
        }
        Ok(Some(Split {
            no: self.metadata.u32("split.no")?,
            count,
            n_tensors: optional(self.metadata.u64("split.tensors.count"))?,
        }))
    }

    /// Takes over the tensors of the next file of a split model.
    fn append(&mut self, next: Gguf) -> Result<(), Error> {
        let shard = self.shards.len();
        self.shards.extend(next.shards);
        for mut tensor in next.tensors {
            tensor.shard = shard;
            insert_name(&mut self.by_name, &tensor.name, self.tensors.len())?;
            self.tensors.push(tensor);
        }
        Ok(())
    }
}

fn open_one(path: &Path) -> Result<Gguf, Error> {
    let open = || {
        let bytes = Bytes::open(path)?;
        Gguf::parse(bytes)
    };
    let mut gguf = open().map_err(|e| e.in_file(path))?;
    gguf.shards[0].path = Some(path.to_owned());
    Ok(gguf)
}

fn read_magic_and_version(cursor: &mut Cursor<'_>) -> Result<u32, Error> {
    let head = &cursor.bytes[..cursor.bytes.len().min(4)];
    if head != MAGIC {
        return Err(Error::Magic {
            found: head.to_vec(),
        });
    }
    cursor.at = MAGIC.len();
    match cursor.u32(&"the version")? {
        version @ 2..=3 => Ok(version),
        found if (1..=3).contains(&found.swap_bytes()) => Err(Error::BigEndian {
            version: found.swap_bytes(),
        }),
        found => Err(Error::Version { found }),
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, n_kv: u64) -> Result<Metadata, Error> {
    let mut metadata = Metadata::new();
    for i in 0..n_kv {
        let key = cursor.string(&format_args!("metadata key number {i}"))?;
        if metadata.contains(key) {
            return Err(Error::DuplicateKey { key: key.into() });
        }
        let type_id = cursor.u32(&format_args!("the type of metadata key {}", Quote(key)))?;
        let value = read_value(cursor, key, type_id)?;
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn read_value(cursor: &mut Cursor<'_>, key: &str, type_id: u32) -> Result<Value, Error> {
    let what = format_args!("the value of metadata key {}", Quote(key));
    Ok(match type_id {
        0 => Value::U8(u8::from_le_bytes(cursor.array(&what)?)),
        1 => Value::I8(i8::from_le_bytes(cursor.array(&what)?)),
        2 => Value::U16(u16::from_le_bytes(cursor.array(&what)?)),
        3 => Value::I16(i16::from_le_bytes(cursor.array(&what)?)),
        4 => Value::U32(u32::from_le_bytes(cursor.array(&what)?)),
        5 => Value::I32(i32::from_le_bytes(cursor.array(&what)?)),
        6 => Value::F32(f32::from_le_bytes(cursor.array(&what)?)),
        7 => Value::Bool(boolean(key, cursor.array(&what)?)?),
        8 => Value::String(cursor.string(&what)?.to_owned()),
        9 => Value::Array(read_array(cursor, key, 1)?),
        10 => Value::U64(u64::from_le_bytes(cursor.array(&what)?)),
        11 => Value::I64(i64::from_le_bytes(cursor.array(&what)?)),
        12 => Value::F64(f64::from_le_bytes(cursor.array(&what)?)),
        found => {
            return Err(Error::ValueType {
                key: key.into(),
                found,
            });
        }
    })
}

fn boolean(key: &str, [byte]: [u8; 1]) -> Result<bool, Error> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(Error::BoolByte {
            key: key.into(),
            found,
        }),
    }
}

fn read_array(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Array, Error> {
    if depth > MAX_ARRAY_DEPTH {
        return Err(Error::ArrayDepth {
            key: key.into(),
            limit: MAX_ARRAY_DEPTH,
        });
    }
    let type_id = cursor.u32(&format_args!(
        "the element type of metadata key {}",
        Quote(key)
    ))?;
    let count = cursor.u64(&format_args!(
        "the array length of metadata key {}",
        Quote(key)
    ))?;
    let what = format_args!("the array (count {count}) of metadata key {}", Quote(key));
    Ok(match type_id {
        0 => Array::U8(cursor.numbers(count, u8::from_le_bytes, &what)?),
        1 => Array::I8(cursor.numbers(count, i8::from_le_bytes, &what)?),
        2 => Array::U16(cursor.numbers(count, u16::from_le_bytes, &what)?),
        3 => Array::I16(cursor.numbers(count, i16::from_le_bytes, &what)?),
        4 => Array::U32(cursor.numbers(count, u32::from_le_bytes, &what)?),
        5 => Array::I32(cursor.numbers(count, i32::from_le_bytes, &what)?),
        6 => Array::F32(cursor.numbers(count, f32::from_le_bytes, &what)?),
        7 => {
            let bytes = cursor.numbers(count, |byte: [u8; 1]| byte, &what)?;
            Array::Bool(
                bytes
                    .into_iter()
                    .map(|b| boolean(key, b))
                    .collect::<Result<_, _>>()?,
            )
        }
        8 => {
            cursor.expect(count, 8, &what)?;
            let strings = (0..count).map(|_| Ok(cursor.string(&what)?.to_owned()));
            Array::String(strings.collect::<Result<_, Error>>()?)
        }
        9 => {
            cursor.expect(count, 12, &what)?;
            let arrays = (0..count).map(|_| read_array(cursor, key, depth + 1));
            Array::Array(arrays.collect::<Result<_, _>>()?)
        }
        10 => Array::U64(cursor.numbers(count, u64::from_le_bytes, &what)?),
        11 => Array::I64(cursor.numbers(count, i64::from_le_bytes, &what)?),
        12 => Array::F64(cursor.numbers(count, f64::from_le_bytes, &what)?),
        found => {
            return Err(Error::ValueType {
                key: key.into(),
                found,
            });
        }
    })
}

/// Reads a row of the table. Its `offset` is still relative to the tensor data.
fn read_tensor_spec(cursor: &mut Cursor<'_>, i: u64) -> Result<TensorSpec, Error> {
    let name = cursor.string(&format_args!("the name of tensor number {i}"))?;
    let what = format_args!("the table row of tensor {}", Quote(name));
    let shape_error = |source| Error::Shape {
        tensor: name.into(),
        source,
    };

    let n_dims = cursor.u32(&what)?;
    if n_dims as usize > GgmlType::MAX_DIMS {
        return Err(shape_error(ShapeError::Rank {
            found: n_dims.into(),
        }));
    }
    let ne = cursor.numbers(n_dims.into(), u64::from_le_bytes, &what)?;
    let id = cursor.u32(&what)?;
    let offset = cursor.u64(&what)?;

    let ty = GgmlType::from_id(id).ok_or(Error::TensorType {
        tensor: name.into(),
        id,
    })?;
    let n_bytes = ty.tensor_bytes(&ne).map_err(shape_error)?;
    Ok(TensorSpec {
        name: name.to_owned(),
        ty,
        ne,
        offset,
        n_bytes,
        shard: 0,
    })
}

fn insert_name(by_name: &mut HashMap<String, usize>, name: &str, i: usize) -> Result<(), Error> {
    match by_name.insert(name.to_owned(), i) {
        Some(_) => Err(Error::DuplicateTensor {
            tensor: name.into(),
        }),
        None => Ok(()),
    }
}

fn check_overlap(tensors: &[TensorSpec]) -> Result<(), Error> {
    let mut by_offset: Vec<&TensorSpec> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        if pair[0].offset + pair[0].n_bytes > pair[1].offset {
            return Err(Error::Overlap {
                first: pair[0].name.as_str().into(),
                second: pair[1].name.as_str().into(),
            });
        }
    }
    Ok(())
}

/// A position in the file. Every read says what it reads, for the error when bytes run out.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn available(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// Checks a count from the file against the bytes left, before anything is allocated for it.
    fn expect(&self, count: u64, least_bytes: u64, what: &dyn Display) -> Result<(), Error> {
        let needed = count.saturating_mul(least_bytes);
        if needed > self.available() {
            return Err(self.truncated(needed, what));
        }
        Ok(())
    }

    fn truncated(&self, needed: u64, what: &dyn Display) -> Error {
        Error::Truncated {
            what: what.to_string(),
            at: self.at as u64,
            needed,
            available: self.available(),
        }
    }

    fn take(&mut self, n_bytes: u64, what: &dyn Display) -> Result<&'a [u8], Error> {
        self.expect(n_bytes, 1, what)?;
        let bytes = &self.bytes[self.at..][..n_bytes as usize];
        self.at += bytes.len();
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &dyn Display) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &dyn Display) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &dyn Display) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, what: &dyn Display) -> Result<&'a str, Error> {
        let n_bytes = self.u64(what)?;
        let at = self.at as u64;
        let bytes = self.take(n_bytes, what)?;
        str::from_utf8(bytes).map_err(|_| Error::NotUtf8 {
            what: what.to_string(),
            at,
        })
    }

    fn numbers<T, const N: usize>(
        &mut self,
        count: u64,
        value: fn([u8; N]) -> T,
        what: &dyn Display,
    ) -> Result<Vec<T>, Error> {
        let bytes = self.take(count.saturating_mul(N as u64), what)?;
        Ok(bytes
            .as_chunks()
            .0
            .iter()
            .map(|&word| value(word))
            .collect())
    }
}
