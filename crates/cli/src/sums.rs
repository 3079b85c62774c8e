//! Sums of a GGUF file, kept beside it as `NAME.sums`: what every tensor's bytes were when the file
//! was known to be good. `docs/cli.md` has the members.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use ds4_formats::gguf::{Gguf, TensorSpec};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Bytes of a tensor that share a sum, which is how finely damage is located.
pub(crate) const PIECE_BYTES: u64 = 1 << 20;
const FORMAT: &str = "ds4-sums";
const VERSION: u32 = 1;
/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// The sums of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sums {
    format: String,
    version: u32,
    /// Length of the file.
    pub n_bytes: u64,
    /// SHA-256 of the whole file, in hexadecimal.
    pub sha256: String,
    /// Bytes before the first tensor's.
    pub header_bytes: u64,
    /// XXH3 of them, 64 bits in hexadecimal; so are the others.
    pub header: String,
    /// Bytes of a tensor that share a sum.
    pub piece_bytes: u64,
    /// In order of offset.
    pub tensors: Vec<TensorSums>,
}

/// A tensor of the table, and the sums of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TensorSums {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub ty: String,
    /// Its dimensions, the contiguous one first.
    pub ne: Vec<u64>,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// How many there are.
    pub n_bytes: u64,
    /// Sum of all of them.
    pub sum: String,
    /// Sums of each [`Sums::piece_bytes`] of them.
    pub pieces: Vec<String>,
}

/// A way in which a file is not what its sums say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// The file has another length.
    Length { found: u64, expected: u64 },
    /// The table lists this tensor otherwise.
    Table { tensor: String, what: String },
    /// The metadata, or padding between the table and the data, are others.
    Header,
    /// The bytes of this tensor are those of another.
    Swapped { tensor: String, with: String },
    /// Bytes `range` of the file, in this tensor.
    Bytes {
        tensor: String,
        /// Which bytes of the tensor.
        range: std::ops::Range<u64>,
        /// Where the tensor begins in the file.
        offset: u64,
    },
    /// No tensor differs and the whole does: padding between tensors.
    Padding,
}

/// Where the sums of a file are kept.
pub(crate) fn path_beside(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".sums");
    file.with_file_name(name)
}

/// Hexadecimal digits of a 64-bit sum.
fn hex(sum: u64) -> String {
    format!("{sum:016x}")
}

/// The tensors of a file, in order of offset; a model in several files has a table for each.
fn in_order(gguf: &Gguf) -> Vec<&TensorSpec> {
    let mut tensors: Vec<_> = gguf.tensors().collect();
    tensors.sort_by_key(|spec| (spec.shard, spec.offset));
    tensors
}

impl Sums {
    /// Reads the file once; `on` is told how many bytes are done and says whether to go on.
    ///
    /// # Errors
    /// The file cannot be read, is one of several of a split model, or `on` said to stop.
    pub(crate) fn of(
        path: &Path,
        gguf: &Gguf,
        on: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Sums> {
        if gguf.shards().len() != 1 {
            bail!("sums are kept for models in one file, and this one is in several");
        }
        let mut reader = Reader::open(path, on)?;
        let specs = in_order(gguf);
        let header_bytes = specs.first().map_or(reader.n_bytes, |first| first.offset);
        let header = reader.part(header_bytes, header_bytes.max(1))?.0;
        let mut tensors = Vec::with_capacity(specs.len());
        for spec in specs {
            let gap = spec.offset - reader.at;
            reader.part(gap, gap.max(1))?;
            let (sum, pieces) = reader.part(spec.n_bytes, PIECE_BYTES)?;
            tensors.push(TensorSums {
                name: spec.name.clone(),
                ty: spec.ty.name().to_owned(),
                ne: spec.ne.clone(),
                offset: spec.offset,
                n_bytes: spec.n_bytes,
                sum,
                pieces,
            });
        }
        let rest = reader.n_bytes - reader.at;
        reader.part(rest, rest.max(1))?;
        Ok(Sums {
            format: FORMAT.to_owned(),
            version: VERSION,
            n_bytes: reader.n_bytes,
            sha256: sha256_hex(reader.sha256),
            header_bytes,
            header,
            piece_bytes: PIECE_BYTES,
            tensors,
        })
    }

    /// Reads the sums beside `file`; `None` when there are none.
    ///
    /// # Errors
    /// They are there and are not sums.
    pub(crate) fn beside(file: &Path) -> Result<Option<Sums>> {
        let path = path_beside(file);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        let hint = || {
            format!(
                "{} does not hold sums of version {VERSION}; delete it, and `ds4 verify --write-sums` \
                 makes it again once the file is known to be good",
                path.display()
            )
        };
        let sums: Sums = serde_json::from_slice(&text).with_context(hint)?;
        if sums.format != FORMAT || sums.version != VERSION || sums.piece_bytes == 0 {
            bail!(hint());
        }
        Ok(Some(sums))
    }

    /// Writes them beside `file`; the sums appear whole or not at all.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn write_beside(&self, file: &Path) -> Result<()> {
        let path = path_beside(file);
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        write_whole(&path, &text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn by_name(&self) -> HashMap<&str, &TensorSums> {
        self.tensors.iter().map(|t| (t.name.as_str(), t)).collect()
    }

    /// What differs in `found`, the sums of the file as it is now, from these.
    pub(crate) fn differences(&self, found: &Sums) -> Vec<Difference> {
        let mut differences = Vec::new();
        if found.n_bytes != self.n_bytes {
            differences.push(Difference::Length {
                found: found.n_bytes,
                expected: self.n_bytes,
            });
        }
        let (ours, theirs) = (self.by_name(), found.by_name());
        let mut table_differs = false;
        for expected in &self.tensors {
            let what = match theirs.get(expected.name.as_str()) {
                None => "it is not in the table".to_owned(),
                Some(t) if t.ty != expected.ty => {
                    format!("its type is {}, expected {}", t.ty, expected.ty)
                }
                Some(t) if t.ne != expected.ne => {
                    format!("its shape is {:?}, expected {:?}", t.ne, expected.ne)
                }
                Some(t) if t.offset != expected.offset => {
                    let there = self.tensors.iter().find(|other| other.offset == t.offset);
                    match there {
                        Some(other) => format!("the table gives it the place of {}", other.name),
                        None => format!("it begins at {}, expected {}", t.offset, expected.offset),
                    }
                }
                Some(_) => continue,
            };
            table_differs = true;
            differences.push(Difference::Table {
                tensor: expected.name.clone(),
                what,
            });
        }
        for t in &found.tensors {
            if !ours.contains_key(t.name.as_str()) {
                table_differs = true;
                differences.push(Difference::Table {
                    tensor: t.name.clone(),
                    what: "it should not be in the table".to_owned(),
                });
            }
        }
        if found.header != self.header && !table_differs {
            differences.push(Difference::Header);
        }
        let mut data_differs = false;
        for expected in &self.tensors {
            let Some(t) = theirs.get(expected.name.as_str()) else {
                continue;
            };
            if t.sum == expected.sum || t.offset != expected.offset {
                continue;
            }
            data_differs = true;
            let owner = self
                .tensors
                .iter()
                .find(|other| other.sum == t.sum && other.n_bytes == t.n_bytes);
            if let Some(owner) = owner {
                differences.push(Difference::Swapped {
                    tensor: t.name.clone(),
                    with: owner.name.clone(),
                });
                continue;
            }
            for (i, (a, b)) in t.pieces.iter().zip(&expected.pieces).enumerate() {
                if a != b {
                    let start = i as u64 * self.piece_bytes;
                    differences.push(Difference::Bytes {
                        tensor: t.name.clone(),
                        range: start..(start + self.piece_bytes).min(t.n_bytes),
                        offset: t.offset,
                    });
                }
            }
        }
        let whole_differs = found.sha256 != self.sha256;
        if whole_differs && differences.is_empty() && !data_differs {
            differences.push(Difference::Padding);
        }
        differences
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Difference::Length { found, expected } => {
                write!(f, "the file has {found} bytes, expected {expected}")
            }
            Difference::Table { tensor, what } => write!(f, "table: {tensor}: {what}"),
            Difference::Header => f.write_str("the metadata are not those of the good file"),
            Difference::Swapped { tensor, with } => {
                write!(f, "{tensor} holds the bytes of {with}")
            }
            Difference::Bytes {
                tensor,
                range,
                offset,
            } => write!(
                f,
                "{tensor}: wrong bytes among {} to {} of the tensor, {} to {} of the file",
                range.start,
                range.end,
                offset + range.start,
                offset + range.end
            ),
            Difference::Padding => {
                f.write_str("bytes between tensors are wrong; no weight is affected")
            }
        }
    }
}

/// A file read from front to back, summing.
struct Reader<'a> {
    file: File,
    path: PathBuf,
    n_bytes: u64,
    at: u64,
    sha256: Sha256,
    buffer: Vec<u8>,
    on: &'a mut dyn FnMut(u64) -> Result<()>,
}

impl<'a> Reader<'a> {
    fn open(path: &Path, on: &'a mut dyn FnMut(u64) -> Result<()>) -> Result<Reader<'a>> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let n_bytes = file.metadata()?.len();
        Ok(Reader {
            file,
            path: path.to_owned(),
            n_bytes,
            at: 0,
            sha256: Sha256::new(),
            buffer: vec![0; READ_BYTES],
            on,
        })
    }

    /// Sums the next `n` bytes, and each `piece` of them.
    fn part(&mut self, n: u64, piece: u64) -> Result<(String, Vec<String>)> {
        let mut whole = Xxh3::new();
        let mut pieces = Vec::new();
        let mut current = Xxh3::new();
        let mut left = n;
        let mut piece_left = piece;
        while left > 0 {
            let len = left.min(piece_left).min(READ_BYTES as u64) as usize;
            let bytes = &mut self.buffer[..len];
            self.file
                .read_exact(bytes)
                .with_context(|| format!("{}: cannot read at {}", self.path.display(), self.at))?;
            self.sha256.update(&*bytes);
            whole.update(bytes);
            current.update(bytes);
            self.at += len as u64;
            left -= len as u64;
            piece_left -= len as u64;
            if piece_left == 0 || left == 0 {
                pieces.push(hex(current.digest()));
                current.reset();
                piece_left = piece;
            }
            (self.on)(self.at)?;
        }
        let sum = if n == 0 { xxh3_64(&[]) } else { whole.digest() };
        Ok((hex(sum), pieces))
    }
}

fn sha256_hex(sum: Sha256) -> String {
    sum.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether a text is a SHA-256 in hexadecimal.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The bytes of a record of unfinished work: a line of JSON, and a line with its XXH3. What a record
/// says decides which bytes are believed to be on disk, so one that was damaged must not be read.
///
/// # Errors
/// The record has no JSON.
pub(crate) fn seal(record: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(record)?;
    let sum = hex(xxh3_64(&text));
    text.extend(format!("\n{sum}\n").bytes());
    Ok(text)
}

/// What [`seal`] wrote; `None` of anything else.
pub(crate) fn unseal<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (json, sum) = text.strip_suffix('\n')?.rsplit_once('\n')?;
    (sum == hex(xxh3_64(json.as_bytes()))).then_some(())?;
    serde_json::from_str(json).ok()
}

/// Asks whether [`write_whole`] could write there, before the work of which it is the end.
///
/// # Errors
/// The folder takes no files.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    tempfile::NamedTempFile::new_in(folder_of(path)).with_context(failed)?;
    Ok(())
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Writes a file so that after a crash there is the old one, the new one or none.
///
/// # Errors
/// As the file system says.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = tempfile::NamedTempFile::new_in(folder_of(path))?;
    file.write_all(bytes)?;
    file.as_file().sync_data()?;
    // Temporary files are private; what appears has the rights of any other new file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    file.persist(path)?;
    Ok(())
}

/// Writes bytes to their place in a file.
///
/// # Errors
/// As the file system says.
#[cfg(unix)]
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// Writes bytes to their place in a file.
///
/// # Errors
/// As the file system says.
#[cfg(windows)]
pub(crate) fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}
