//! The bytes of a block and of a point: writing and reading one file.
//!
//! Both are a head (fields, tables, token ids, checksum), chunks and a footer;
//! `docs/kv-store.md` has the byte tables. Reading trusts nothing: every number
//! is compared with what the layout expects or with the bytes that are there
//! before anything is allocated for it.

use std::io::{self, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use xxhash_rust::xxh3::xxh3_64;

use super::key::{ChainHash, CompatKey, FORMAT_VERSION, TextKey};
use super::layout::{Group, kind_code};
use super::rows::Encoding;

/// Bytes of the encoded rows that one chunk holds; the last holds the rest.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Longest head that is read: tables and token ids of a point of a million
/// tokens take a tenth of it.
pub const MAX_HEAD_BYTES: usize = 16 << 20;
/// Text keys of one point.
pub const MAX_TEXT_KEYS: usize = 8;
/// Level of zstd compression.
const ZSTD_LEVEL: i32 = 1;

const FIXED_BYTES: usize = 96;
const POINT_BYTES: usize = 24;
const TEXT_KEY_BYTES: usize = 48;
const GROUP_BYTES: usize = 12;
const CHUNK_ENTRY_BYTES: usize = 16;
const HEAD_CHECKSUM_BYTES: usize = 8;
const FOOTER_BYTES: usize = 36;
const FOOTER_MAGIC: &[u8; 4] = b"DSE2";

/// General compression of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Codec {
    /// None: codes compress little.
    None,
    /// zstd level 1; a chunk that does not shrink is stored as it is.
    #[default]
    Zstd,
}

/// Why a point was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The end of what several conversations begin with.
    Anchor = 1,
    /// The end of a prompt or a reply.
    TurnEnd = 2,
    /// A place in a long prompt, against cancellation.
    Interval = 3,
    /// The program ends, or the slot is given to another conversation.
    Shutdown = 4,
    /// Somebody asked for it.
    Explicit = 5,
    /// Only completed blocks are stored, no point.
    Block = 6,
}

impl Reason {
    fn from_code(code: u8) -> Option<Reason> {
        use Reason::*;
        [Anchor, TurnEnd, Interval, Shutdown, Explicit]
            .into_iter()
            .find(|reason| *reason as u8 == code)
    }
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It ends early or goes on too long.
    #[error("the file has {found} bytes, expected {expected}")]
    Length {
        /// Bytes of the file.
        found: u64,
        /// Bytes it should have.
        expected: String,
    },
    /// A field has another value than it must have.
    #[error("{what} is {found}, expected {expected}")]
    Field {
        /// The field.
        what: &'static str,
        /// Found in the file.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// A checksum does not match.
    #[error("the checksum of {what} does not match")]
    Checksum {
        /// What it covers.
        what: &'static str,
    },
    /// A chunk cannot be decompressed.
    #[error("chunk {chunk} cannot be decompressed")]
    Chunk {
        /// Its number.
        chunk: usize,
    },
}

fn field(what: &'static str, found: impl ToString, expected: impl ToString) -> Damage {
    Damage::Field {
        what,
        found: found.to_string(),
        expected: expected.to_string(),
    }
}

/// Which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// Rows completed by the tokens of one block.
    Block,
    /// Tail and frontier at one length.
    Point(PointFields),
}

/// What only points have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PointFields {
    pub(crate) created: SystemTime,
    pub(crate) reason: Reason,
    pub(crate) text_keys: Vec<TextKey>,
    /// The chain after each of its blocks.
    pub(crate) chain: Vec<ChainHash>,
}

/// Everything of a file but its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: FileKind,
    pub(crate) key: CompatKey,
    /// The chain before the tokens of this file.
    pub(crate) parent: ChainHash,
    /// Position of the first token of this file.
    pub(crate) first: usize,
    pub(crate) tokens: Vec<u32>,
    groups: Vec<GroupEntry>,
    chunks: Vec<ChunkEntry>,
    n_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct GroupEntry {
    layer: u16,
    kind: u8,
    encoding: u8,
    first: u32,
    n_rows: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ChunkEntry {
    stored_bytes: u32,
    zstd: bool,
    checksum: u64,
}

impl Head {
    /// The head of a file to be written; tables are filled by [`Head::write`].
    pub(crate) fn new(
        kind: FileKind,
        key: CompatKey,
        parent: ChainHash,
        first: usize,
        tokens: Vec<u32>,
    ) -> Head {
        Head {
            kind,
            key,
            parent,
            first,
            tokens,
            groups: Vec::new(),
            chunks: Vec::new(),
            n_bytes: 0,
        }
    }

    /// Tokens before the end of this file.
    pub(crate) fn end(&self) -> usize {
        self.first + self.tokens.len()
    }

    fn magic(&self) -> &'static [u8; 4] {
        match self.kind {
            FileKind::Block => b"DSB2",
            FileKind::Point(_) => b"DSP2",
        }
    }

    /// The bytes of the file with these rows.
    pub(crate) fn write(mut self, groups: &[(Group, Vec<u8>)], codec: Codec) -> Vec<u8> {
        let mut stream = Vec::new();
        for (group, rows) in groups {
            let encoding = group.format.encode(rows, &mut stream);
            self.groups.push(GroupEntry {
                layer: group.layer as u16,
                kind: kind_code(group.kind),
                encoding: encoding as u8,
                first: group.range.start as u32,
                n_rows: group.range.len() as u32,
            });
        }
        let mut stored = Vec::with_capacity(stream.len());
        for chunk in stream.chunks(CHUNK_BYTES) {
            let packed = match codec {
                Codec::None => None,
                Codec::Zstd => zstd::bulk::compress(chunk, ZSTD_LEVEL).ok(),
            };
            let packed = packed.filter(|packed| packed.len() < chunk.len());
            let bytes = packed.as_deref().unwrap_or(chunk);
            self.chunks.push(ChunkEntry {
                stored_bytes: bytes.len() as u32,
                zstd: packed.is_some(),
                checksum: xxh3_64(bytes),
            });
            stored.extend_from_slice(bytes);
        }
        let mut out = self.head_bytes();
        out.reserve_exact(stored.len() + FOOTER_BYTES);
        out.extend_from_slice(&stored);
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        out.extend_from_slice(FOOTER_MAGIC);
        out
    }

    fn head_bytes(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        if let FileKind::Point(point) = &self.kind {
            let created = point.created.duration_since(UNIX_EPOCH).unwrap_or_default();
            fields.extend_from_slice(&created.as_secs().to_le_bytes());
            fields.extend_from_slice(&(point.chain.len() as u32).to_le_bytes());
            fields.extend_from_slice(&[point.reason as u8, point.text_keys.len() as u8]);
            fields.resize(POINT_BYTES, 0);
            for key in &point.text_keys {
                fields.extend_from_slice(&key.text_bytes.to_le_bytes());
                fields.extend_from_slice(&key.setting.to_le_bytes());
                fields.extend_from_slice(&key.hash);
            }
            for hash in &point.chain {
                fields.extend_from_slice(&hash.0);
            }
        }
        let n_bytes = FIXED_BYTES
            + fields.len()
            + GROUP_BYTES * self.groups.len()
            + CHUNK_ENTRY_BYTES * self.chunks.len()
            + 4 * self.tokens.len()
            + HEAD_CHECKSUM_BYTES;
        let mut out = Vec::with_capacity(n_bytes);
        out.extend_from_slice(self.magic());
        for number in [
            FORMAT_VERSION as usize,
            n_bytes,
            fields.len(),
            self.groups.len(),
            self.chunks.len(),
            self.first,
            self.tokens.len(),
        ] {
            out.extend_from_slice(&(number as u32).to_le_bytes());
        }
        out.extend_from_slice(&self.key.0);
        out.extend_from_slice(&self.parent.0);
        out.extend_from_slice(&fields);
        for group in &self.groups {
            out.extend_from_slice(&group.layer.to_le_bytes());
            out.extend_from_slice(&[group.kind, group.encoding]);
            out.extend_from_slice(&group.first.to_le_bytes());
            out.extend_from_slice(&group.n_rows.to_le_bytes());
        }
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.stored_bytes.to_le_bytes());
            out.extend_from_slice(&u32::from(chunk.zstd).to_le_bytes());
            out.extend_from_slice(&chunk.checksum.to_le_bytes());
        }
        for token in &self.tokens {
            out.extend_from_slice(&token.to_le_bytes());
        }
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        debug_assert_eq!(out.len(), n_bytes);
        out
    }

    /// Reads the head from the start of a file, and no more.
    pub(crate) fn read(file: &mut impl Read) -> io::Result<Result<Head, Damage>> {
        let mut bytes = Vec::new();
        file.take(FIXED_BYTES as u64).read_to_end(&mut bytes)?;
        let n_bytes = match head_length(&bytes) {
            Ok(n) => n,
            Err(damage) => return Ok(Err(damage)),
        };
        // A head that promises more than there is ends at the end of the file.
        file.take((n_bytes - FIXED_BYTES) as u64)
            .read_to_end(&mut bytes)?;
        Ok(Head::parse(&bytes))
    }

    /// Reads the head that `bytes` start with.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Head, Damage> {
        let n_bytes = head_length(bytes)?;
        let Some(bytes) = bytes.get(..n_bytes) else {
            return Err(Damage::Length {
                found: bytes.len() as u64,
                expected: format!("a head of {n_bytes}"),
            });
        };
        let (bytes, checksum) = bytes.split_at(n_bytes - HEAD_CHECKSUM_BYTES);
        if xxh3_64(bytes).to_le_bytes() != checksum {
            return Err(Damage::Checksum { what: "the head" });
        }
        let word = |at: usize| u32_at(bytes, at) as usize;
        let [n_fields, n_groups, n_chunks, first, n_tokens] =
            [word(12), word(16), word(20), word(24), word(28)];
        let expected = n_fields as u128
            + n_groups as u128 * GROUP_BYTES as u128
            + n_chunks as u128 * CHUNK_ENTRY_BYTES as u128
            + n_tokens as u128 * 4;
        if expected != (bytes.len() - FIXED_BYTES) as u128 {
            let found = bytes.len() - FIXED_BYTES;
            return Err(field("the length of the tables", found, expected));
        }
        let key = CompatKey(bytes[32..64].try_into().expect("32 bytes"));
        let parent = ChainHash(bytes[64..96].try_into().expect("32 bytes"));
        let (fields, rest) = bytes[FIXED_BYTES..].split_at(n_fields);
        let (groups, rest) = rest.split_at(n_groups * GROUP_BYTES);
        let (chunks, tokens) = rest.split_at(n_chunks * CHUNK_ENTRY_BYTES);
        let kind = if &bytes[..4] == b"DSB2" {
            if n_fields != 0 {
                return Err(field("the length of the fields", n_fields, 0));
            }
            FileKind::Block
        } else {
            FileKind::Point(point_fields(fields)?)
        };
        let groups = groups.chunks_exact(GROUP_BYTES).map(|entry| GroupEntry {
            layer: u16::from_le_bytes([entry[0], entry[1]]),
            kind: entry[2],
            encoding: entry[3],
            first: u32_at(entry, 4),
            n_rows: u32_at(entry, 8),
        });
        let chunks = chunks.chunks_exact(CHUNK_ENTRY_BYTES).map(|entry| {
            Ok(ChunkEntry {
                stored_bytes: u32_at(entry, 0),
                zstd: match u32_at(entry, 4) {
                    0 => false,
                    1 => true,
                    other => return Err(field("the codec of a chunk", other, "0 or 1")),
                },
                checksum: u64_at(entry, 8),
            })
        });
        Ok(Head {
            kind,
            key,
            parent,
            first,
            tokens: tokens.chunks_exact(4).map(|t| u32_at(t, 0)).collect(),
            groups: groups.collect(),
            chunks: chunks.collect::<Result<_, Damage>>()?,
            n_bytes,
        })
    }

    /// Checks a whole file but its rows: head, footer and every chunk.
    pub(crate) fn check(file: &[u8]) -> Result<Head, Damage> {
        let head = Head::parse(file)?;
        let stored: u64 = head.chunks.iter().map(|c| u64::from(c.stored_bytes)).sum();
        let expected = head.n_bytes as u64 + stored + FOOTER_BYTES as u64;
        if expected != file.len() as u64 {
            return Err(Damage::Length {
                found: file.len() as u64,
                expected: expected.to_string(),
            });
        }
        let (body, footer) = file.split_at(file.len() - FOOTER_BYTES);
        if &footer[32..] != FOOTER_MAGIC {
            let found = format!("{:?}", &footer[32..]);
            return Err(field("the footer's magic", found, "DSE2"));
        }
        if blake3::hash(body).as_bytes() != &footer[..32] {
            return Err(Damage::Checksum { what: "the file" });
        }
        for (chunk, bytes) in head.chunks.iter().zip(head.stored_chunks(file)) {
            if xxh3_64(bytes) != chunk.checksum {
                return Err(Damage::Checksum { what: "a chunk" });
            }
        }
        Ok(head)
    }

    /// The stored chunks of a file whose length was checked.
    fn stored_chunks<'a>(&self, file: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = &file[self.n_bytes..];
        self.chunks.iter().map(move |chunk| {
            let (bytes, after) = rest.split_at(chunk.stored_bytes as usize);
            rest = after;
            bytes
        })
    }

    /// Decodes the rows of a file that passed [`Head::check`] into `rows`, one
    /// slice for each of the expected groups and of its size.
    pub(crate) fn decode(
        &self,
        file: &[u8],
        expected: &[Group],
        rows: &mut [&mut [u8]],
    ) -> Result<(), Damage> {
        if self.groups.len() != expected.len() {
            let (found, expected) = (self.groups.len(), expected.len());
            return Err(field("the number of row groups", found, expected));
        }
        let mut lengths = Vec::with_capacity(expected.len());
        for (entry, group) in self.groups.iter().zip(expected) {
            let Some(row_bytes) = Encoding::from_code(entry.encoding)
                .and_then(|encoding| group.format.encoded_row_bytes(encoding))
            else {
                return Err(field(
                    "an encoding",
                    entry.encoding,
                    "0, or that of the grid",
                ));
            };
            let wanted = GroupEntry {
                layer: group.layer as u16,
                kind: kind_code(group.kind),
                encoding: entry.encoding,
                first: group.range.start as u32,
                n_rows: group.range.len() as u32,
            };
            if *entry != wanted {
                let (found, expected) = (format!("{entry:?}"), format!("{wanted:?}"));
                return Err(field("a row group", found, expected));
            }
            lengths.push(row_bytes * group.range.len());
        }
        let total: usize = lengths.iter().sum();
        if self.chunks.len() != total.div_ceil(CHUNK_BYTES) {
            let (found, expected) = (self.chunks.len(), total.div_ceil(CHUNK_BYTES));
            return Err(field("the number of chunks", found, expected));
        }
        let mut stream = vec![0; total];
        let chunks = self.chunks.iter().zip(self.stored_chunks(file));
        for (chunk, ((entry, stored), raw)) in
            chunks.zip(stream.chunks_mut(CHUNK_BYTES)).enumerate()
        {
            let n = if entry.zstd {
                zstd::bulk::decompress_to_buffer(stored, raw).ok()
            } else if stored.len() == raw.len() {
                raw.copy_from_slice(stored);
                Some(raw.len())
            } else {
                None
            };
            if n != Some(raw.len()) {
                return Err(Damage::Chunk { chunk });
            }
        }
        let mut rest = &stream[..];
        for (((entry, group), n), rows) in self.groups.iter().zip(expected).zip(lengths).zip(rows) {
            let (encoded, after) = rest.split_at(n);
            rest = after;
            let encoding = Encoding::from_code(entry.encoding).expect("checked above");
            if !group.format.decode(encoding, encoded, rows) {
                return Err(field("the length of a row group", n, rows.len()));
            }
        }
        Ok(())
    }
}

/// Most bytes a file with these rows and so many head bytes can have.
pub(crate) fn max_file_bytes(row_bytes: usize) -> u64 {
    (row_bytes + MAX_HEAD_BYTES + FOOTER_BYTES) as u64
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Checks the start of a file and returns the length of its head.
fn head_length(bytes: &[u8]) -> Result<usize, Damage> {
    if bytes.len() < FIXED_BYTES + HEAD_CHECKSUM_BYTES && bytes.len() != FIXED_BYTES {
        return Err(Damage::Length {
            found: bytes.len() as u64,
            expected: format!("at least {}", FIXED_BYTES + HEAD_CHECKSUM_BYTES),
        });
    }
    let magic = &bytes[..4];
    if magic != b"DSB2" && magic != b"DSP2" {
        return Err(field("the magic", format!("{magic:?}"), "DSB2 or DSP2"));
    }
    let version = u32_at(bytes, 4);
    if version != FORMAT_VERSION {
        return Err(field("the version", version, FORMAT_VERSION));
    }
    let n = u32_at(bytes, 8) as usize;
    let accepted = FIXED_BYTES + HEAD_CHECKSUM_BYTES..=MAX_HEAD_BYTES;
    if !accepted.contains(&n) {
        return Err(field("the length of the head", n, format!("{accepted:?}")));
    }
    Ok(n)
}

fn point_fields(bytes: &[u8]) -> Result<PointFields, Damage> {
    let wrong = |expected| field("the length of the fields", bytes.len(), expected);
    if bytes.len() < POINT_BYTES {
        return Err(wrong(POINT_BYTES));
    }
    let (n_chain, n_keys) = (u32_at(bytes, 8) as usize, bytes[13] as usize);
    let expected = POINT_BYTES as u64 + (TEXT_KEY_BYTES * n_keys) as u64 + 32 * n_chain as u64;
    if bytes.len() as u64 != expected {
        return Err(wrong(expected as usize));
    }
    if n_keys > MAX_TEXT_KEYS {
        return Err(field(
            "the number of text keys",
            n_keys,
            format!("at most {MAX_TEXT_KEYS}"),
        ));
    }
    let Some(reason) = Reason::from_code(bytes[12]) else {
        return Err(field("the reason", bytes[12], "1 to 5"));
    };
    let (keys, chain) = bytes[POINT_BYTES..].split_at(TEXT_KEY_BYTES * n_keys);
    Ok(PointFields {
        created: UNIX_EPOCH
            .checked_add(Duration::from_secs(u64_at(bytes, 0)))
            .unwrap_or(UNIX_EPOCH),
        reason,
        text_keys: keys
            .chunks_exact(TEXT_KEY_BYTES)
            .map(|key| TextKey {
                text_bytes: u64_at(key, 0),
                setting: u64_at(key, 8),
                hash: key[16..].try_into().expect("32 bytes"),
            })
            .collect(),
        chain: chain
            .chunks_exact(32)
            .map(|hash| ChainHash(hash.try_into().expect("32 bytes")))
            .collect(),
    })
}
