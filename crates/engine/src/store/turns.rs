//! An append-only log of records that are found by any of their keys: what was
//! really sampled in a turn, by its call ids.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::volume;

/// Default of [`TurnLogOptions::max_bytes`].
pub const MAX_LOG_BYTES: u64 = 256 << 20;
/// Default of [`TurnLogOptions::max_keys`].
pub const MAX_LOG_KEYS: usize = 100_000;
/// Longest payload of a record.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 20;
/// Longest key of a record.
pub const MAX_KEY_BYTES: usize = 256;
/// Keys of one record.
pub const MAX_RECORD_KEYS: usize = 255;

const MAGIC: &[u8; 8] = b"DSL2\x02\0\0\0";
/// Length and checksum.
const RECORD_HEAD_BYTES: usize = 8;
/// Kind, codec, number of keys, zero, length of the payload.
const BODY_HEAD_BYTES: usize = 8;
/// Longest record: anything longer is a torn or damaged length.
const MAX_RECORD_BYTES: usize =
    BODY_HEAD_BYTES + MAX_RECORD_KEYS * (2 + MAX_KEY_BYTES) + MAX_PAYLOAD_BYTES;
/// Part of its limits that a log grows by before it is tried again to make it smaller.
const RETRY_PART: u64 = 16;
const ZSTD_LEVEL: i32 = 1;
/// Payloads shorter than this are not compressed.
const MIN_COMPRESSED_BYTES: usize = 64;

/// Limits of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnLogOptions {
    /// Bytes of the file; beyond them the records used longest ago are dropped.
    pub max_bytes: u64,
    /// Keys of all records.
    pub max_keys: usize,
}

impl Default for TurnLogOptions {
    fn default() -> TurnLogOptions {
        TurnLogOptions {
            max_bytes: MAX_LOG_BYTES,
            max_keys: MAX_LOG_KEYS,
        }
    }
}

/// Why a record was not taken, or the log not opened.
#[derive(Debug, thiserror::Error)]
pub enum TurnLogError {
    /// The file could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{}: not a turn log, or one of another version; move it away", path.display())]
    NotALog {
        /// Which.
        path: PathBuf,
    },
    /// A part of the record is too long or missing.
    #[error("{what}: {found}, expected {expected}")]
    Record {
        /// Keys, a key, or the payload.
        what: &'static str,
        /// Found.
        found: usize,
        /// Accepted.
        expected: String,
    },
}

/// A record read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnRecord {
    /// What the payload is, as the caller numbered it.
    pub kind: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Entry {
    offset: u64,
    n_bytes: u64,
    n_keys: usize,
    /// Order of last use; larger is later.
    used: u64,
}

/// The log. Several processes may append to one file.
#[derive(Debug)]
pub struct TurnLog {
    path: PathBuf,
    file: File,
    /// Whether the file can be read and not written.
    is_read_only: bool,
    options: TurnLogOptions,
    /// Records by number.
    records: HashMap<u64, Entry>,
    by_key: HashMap<Vec<u8>, u64>,
    next_record: u64,
    next_use: u64,
    /// Bytes of the file that are in the index.
    end: u64,
    /// Bytes and keys beyond which it is tried again to make the log smaller, after that failed.
    retry: Option<(u64, usize)>,
}

impl TurnLog {
    /// Opens or creates a log and reads its keys. A torn or damaged record and
    /// what follows it are cut off. A log over its limits is made smaller by the
    /// first [`TurnLog::append`], so that one that cannot be is still read; one
    /// that may only be read takes no records.
    pub fn open(path: impl AsRef<Path>, options: TurnLogOptions) -> Result<TurnLog, TurnLogError> {
        let path = path.as_ref();
        let opened = match volume::open_private(path) {
            Err(error) if is_read_only(&error) => open_to_read(path).map(|file| (file, true)),
            opened => opened.map(|file| (file, false)),
        };
        let (file, is_read_only) = opened.map_err(io_error(path))?;
        let mut log = TurnLog {
            path: path.to_owned(),
            file,
            is_read_only,
            options,
            records: HashMap::new(),
            by_key: HashMap::new(),
            next_record: 0,
            next_use: 0,
            end: 0,
            retry: None,
        };
        log.lock_current()?;
        let read = log.catch_up();
        let unlocked = log.file.unlock().map_err(io_error(path));
        read.and(unlocked)?;
        Ok(log)
    }

    /// Number of keys that find a record.
    pub fn n_keys(&self) -> usize {
        self.by_key.len()
    }

    /// Bytes of the file.
    pub fn n_bytes(&self) -> u64 {
        self.end
    }

    /// Appends a record that is found by each of `keys`; what they found before
    /// is forgotten. It survives the end of the process at once, and that of
    /// the machine after [`TurnLog::sync`]. When the log is over its limits and
    /// cannot be made smaller, an error says so although the record is there; the
    /// log grows by a sixteenth before that is tried again, and takes no more when
    /// it is twice as large as it should be.
    pub fn append(&mut self, kind: u8, keys: &[&[u8]], payload: &[u8]) -> Result<(), TurnLogError> {
        let record = record(kind, keys, payload)?;
        if self.is_read_only {
            return Ok(());
        }
        let path = self.path.clone();
        self.lock_current()?;
        let appended = self.catch_up().and_then(|()| {
            if self.end + record.len() as u64 > self.options.max_bytes.saturating_mul(2)
                && self.end > self.options.max_bytes
            {
                self.retry = None;
                self.compact_if_full()?;
            }
            self.file
                .seek(SeekFrom::Start(self.end))
                .map_err(io_error(&path))?;
            let written = self.file.write_all(&record);
            if let Err(error) = written {
                // The torn record is cut off here, or by the next reader.
                let _ = self.file.set_len(self.end);
                return Err(io_error(&path)(error));
            }
            self.insert(
                self.end,
                record.len() as u64,
                keys.iter().map(|key| key.to_vec()),
            );
            self.end += record.len() as u64;
            self.compact_if_full()
        });
        let unlocked = self.file.unlock().map_err(io_error(&path));
        appended.and(unlocked)
    }

    /// The record of a key; `None` when there is none, or when it is damaged.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<TurnRecord>, TurnLogError> {
        if !self.by_key.contains_key(key) {
            self.lock_current()?;
            let read = self.catch_up();
            self.file.unlock().map_err(io_error(&self.path))?;
            read?;
        }
        let Some(&number) = self.by_key.get(key) else {
            return Ok(None);
        };
        self.next_use += 1;
        let entry = self.records.get_mut(&number).expect("keys lead to records");
        entry.used = self.next_use;
        let (offset, n_bytes) = (entry.offset, entry.n_bytes as usize);
        let path = &self.path;
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(io_error(path))?;
        let mut bytes = vec![0; n_bytes];
        match self.file.read_exact(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other.map_err(io_error(path))?,
        }
        let Some(parsed) = parse(&bytes) else {
            return Ok(None);
        };
        if !parsed.keys.contains(&key) {
            return Ok(None);
        }
        Ok(parsed.payload().map(|payload| TurnRecord {
            kind: parsed.kind,
            payload,
        }))
    }

    /// Waits until the records are on the disk.
    pub fn sync(&self) -> Result<(), TurnLogError> {
        self.file.sync_data().map_err(io_error(&self.path))
    }

    /// Locks the file that the path names: another process may have compacted
    /// the log into a new one.
    fn lock_current(&mut self) -> Result<(), TurnLogError> {
        let path = self.path.clone();
        loop {
            let (locked, current) = match self.is_read_only {
                true => (self.file.lock_shared(), open_to_read(&path)),
                false => (self.file.lock(), volume::open_private(&path)),
            };
            locked.map_err(io_error(&path))?;
            let current = current.map_err(io_error(&path))?;
            if same_file(&self.file, &current).map_err(io_error(&path))? {
                return Ok(());
            }
            self.file = current;
            self.records.clear();
            self.by_key.clear();
            self.end = 0;
        }
    }

    /// Reads the records that are not in the index yet, under the lock.
    fn catch_up(&mut self) -> Result<(), TurnLogError> {
        let path = self.path.clone();
        let error = || io_error(&path);
        let length = self.file.metadata().map_err(error())?.len();
        if length == self.end && length > 0 {
            return Ok(());
        }
        if self.end == 0 {
            self.file.seek(SeekFrom::Start(0)).map_err(error())?;
            let mut magic = Vec::new();
            (&self.file)
                .take(MAGIC.len() as u64)
                .read_to_end(&mut magic)
                .map_err(error())?;
            if magic.len() < MAGIC.len() && MAGIC.starts_with(&magic) {
                if self.is_read_only {
                    return Ok(());
                }
                self.file.set_len(0).map_err(error())?;
                self.file.seek(SeekFrom::Start(0)).map_err(error())?;
                self.file.write_all(MAGIC).map_err(error())?;
                self.end = MAGIC.len() as u64;
                return Ok(());
            }
            if magic != MAGIC {
                return Err(TurnLogError::NotALog { path });
            }
            self.end = MAGIC.len() as u64;
        }
        self.file.seek(SeekFrom::Start(self.end)).map_err(error())?;
        let mut reader = io::BufReader::new(self.file.try_clone().map_err(error())?);
        while let Some(bytes) = next_record(&mut reader).map_err(error())? {
            let Some(parsed) = parse(&bytes) else {
                break;
            };
            let keys: Vec<Vec<u8>> = parsed.keys.iter().map(|key| key.to_vec()).collect();
            self.insert(self.end, bytes.len() as u64, keys.into_iter());
            self.end += bytes.len() as u64;
        }
        let length = self.file.metadata().map_err(error())?.len();
        if length > self.end && !self.is_read_only {
            self.file.set_len(self.end).map_err(error())?;
        }
        Ok(())
    }

    fn insert(&mut self, offset: u64, n_bytes: u64, keys: impl ExactSizeIterator<Item = Vec<u8>>) {
        let number = self.next_record;
        self.next_record += 1;
        self.next_use += 1;
        let mut n_keys = 0;
        for key in keys {
            match self.by_key.insert(key, number) {
                Some(old) if old == number => {}
                old => {
                    n_keys += 1;
                    self.lose_key(old);
                }
            }
        }
        let used = self.next_use;
        let entry = Entry {
            offset,
            n_bytes,
            n_keys,
            used,
        };
        self.records.insert(number, entry);
    }

    /// One key of a record now finds another; a record that no key finds is
    /// forgotten.
    fn lose_key(&mut self, record: Option<u64>) {
        if let Some(number) = record
            && let Some(entry) = self.records.get_mut(&number)
        {
            entry.n_keys -= 1;
            if entry.n_keys == 0 {
                self.records.remove(&number);
            }
        }
    }

    /// Rewrites the log when it is over a limit, without what no key finds and
    /// without the records used longest ago, to three quarters of the limits.
    fn compact_if_full(&mut self) -> Result<(), TurnLogError> {
        let options = self.options;
        let (max_bytes, max_keys) = self.retry.unwrap_or((options.max_bytes, options.max_keys));
        let fits = self.end <= max_bytes && self.by_key.len() <= max_keys;
        if fits || self.is_read_only {
            return Ok(());
        }
        self.retry = Some((
            self.end + options.max_bytes / RETRY_PART,
            self.by_key.len() + options.max_keys / RETRY_PART as usize,
        ));
        self.compact()?;
        self.retry = None;
        Ok(())
    }

    fn compact(&mut self) -> Result<(), TurnLogError> {
        let mut order: Vec<(u64, u64)> = self
            .records
            .iter()
            .map(|(number, entry)| (entry.used, *number))
            .collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        let (mut n_bytes, mut n_keys) = (MAGIC.len() as u64, 0);
        let n_kept = order
            .iter()
            .take_while(|(_, number)| {
                let entry = &self.records[number];
                n_bytes += entry.n_bytes;
                n_keys += entry.n_keys;
                n_bytes <= self.options.max_bytes / 4 * 3 && n_keys <= self.options.max_keys / 4 * 3
            })
            .count();
        order.truncate(n_kept);
        order.reverse();

        let path = self.path.clone();
        let error = || io_error(&path);
        let name = format!("{}{}-turns", volume::TEMPORARY_PREFIX, std::process::id());
        let temporary = path.with_file_name(name);
        volume::remove(&temporary).map_err(error())?;
        let mut file = volume::create_private(&temporary).map_err(error())?;
        // Whoever opens the new file waits until it replaces the old one.
        file.lock().map_err(error())?;
        let mut out = io::BufWriter::new(&mut file);
        out.write_all(MAGIC).map_err(error())?;
        for (_, number) in &order {
            let entry = &self.records[number];
            self.file
                .seek(SeekFrom::Start(entry.offset))
                .map_err(error())?;
            let mut bytes = vec![0; entry.n_bytes as usize];
            self.file.read_exact(&mut bytes).map_err(error())?;
            out.write_all(&bytes).map_err(error())?;
        }
        out.flush().map_err(error())?;
        drop(out);
        file.sync_data().map_err(error())?;
        fs::rename(&temporary, &path).map_err(error())?;
        drop(file);
        self.file = volume::open_private(&path).map_err(error())?;
        self.file.lock().map_err(error())?;
        self.records.clear();
        self.by_key.clear();
        self.end = 0;
        self.catch_up()
    }
}

fn is_read_only(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
}

fn open_to_read(path: &Path) -> io::Result<File> {
    volume::expect_file(path)?;
    File::open(path)
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> TurnLogError {
    |source| TurnLogError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(unix)]
fn same_file(a: &File, b: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (a, b) = (a.metadata()?, b.metadata()?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// Elsewhere an open file cannot be replaced.
#[cfg(not(unix))]
fn same_file(_a: &File, _b: &File) -> io::Result<bool> {
    Ok(true)
}

/// The bytes of a record.
fn record(kind: u8, keys: &[&[u8]], payload: &[u8]) -> Result<Vec<u8>, TurnLogError> {
    let refuse = |what, found, expected: String| {
        Err(TurnLogError::Record {
            what,
            found,
            expected,
        })
    };
    if keys.is_empty() || keys.len() > MAX_RECORD_KEYS {
        return refuse(
            "the number of keys",
            keys.len(),
            format!("1 to {MAX_RECORD_KEYS}"),
        );
    }
    if let Some(key) = keys.iter().find(|key| key.len() > MAX_KEY_BYTES) {
        return refuse(
            "the bytes of a key",
            key.len(),
            format!("at most {MAX_KEY_BYTES}"),
        );
    }
    if payload.len() > MAX_PAYLOAD_BYTES {
        let expected = format!("at most {MAX_PAYLOAD_BYTES}");
        return refuse("the bytes of a payload", payload.len(), expected);
    }
    let packed = (payload.len() >= MIN_COMPRESSED_BYTES)
        .then(|| zstd::bulk::compress(payload, ZSTD_LEVEL).ok())
        .flatten()
        .filter(|packed| packed.len() < payload.len());
    let stored = packed.as_deref().unwrap_or(payload);
    let mut body = vec![kind, u8::from(packed.is_some()), keys.len() as u8, 0];
    body.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    for key in keys {
        body.extend_from_slice(&(key.len() as u16).to_le_bytes());
        body.extend_from_slice(key);
    }
    body.extend_from_slice(stored);
    let mut out = Vec::with_capacity(RECORD_HEAD_BYTES + body.len());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    out.extend_from_slice(&body);
    Ok(out)
}

/// The bytes of the record that a reader is at; `None` at the end and at a
/// record that is torn.
fn next_record(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader
        .take(RECORD_HEAD_BYTES as u64)
        .read_to_end(&mut bytes)?;
    let Some(length) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    let n = u32::from_le_bytes(*length) as usize;
    if bytes.len() < RECORD_HEAD_BYTES || n > MAX_RECORD_BYTES {
        return Ok(None);
    }
    reader.take(n as u64).read_to_end(&mut bytes)?;
    Ok((bytes.len() == RECORD_HEAD_BYTES + n).then_some(bytes))
}

struct Parsed<'a> {
    kind: u8,
    is_packed: bool,
    payload_bytes: usize,
    keys: Vec<&'a [u8]>,
    stored: &'a [u8],
}

impl Parsed<'_> {
    fn payload(&self) -> Option<Vec<u8>> {
        if !self.is_packed {
            return Some(self.stored.to_vec());
        }
        let payload = zstd::bulk::decompress(self.stored, self.payload_bytes).ok()?;
        (payload.len() == self.payload_bytes).then_some(payload)
    }
}

/// Takes a whole record apart; `None` when it is damaged.
fn parse(bytes: &[u8]) -> Option<Parsed<'_>> {
    let (head, body) = bytes.split_at_checked(RECORD_HEAD_BYTES)?;
    let checksum = u32::from_le_bytes(head[4..8].try_into().ok()?);
    if crc32c::crc32c(body) != checksum {
        return None;
    }
    let (fields, mut rest) = body.split_at_checked(BODY_HEAD_BYTES)?;
    let payload_bytes = u32::from_le_bytes(fields[4..8].try_into().ok()?) as usize;
    let mut keys = Vec::with_capacity(usize::from(fields[2]));
    for _ in 0..fields[2] {
        let (length, after) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_le_bytes(*length));
        let (key, after) = after.split_at_checked(length)?;
        keys.push(key);
        rest = after;
    }
    let is_packed = match fields[1] {
        0 => false,
        1 => true,
        _ => return None,
    };
    let is_whole = match is_packed {
        true => payload_bytes <= MAX_PAYLOAD_BYTES,
        false => payload_bytes == rest.len(),
    };
    (is_whole && !keys.is_empty() && fields[3] == 0).then_some(Parsed {
        kind: fields[0],
        is_packed,
        payload_bytes,
        keys,
        stored: rest,
    })
}

/// Walks a log held in memory and reads every record: the number of good ones,
/// and the bytes that they take with the start of the file. For tests and
/// fuzzing of the reader.
#[doc(hidden)]
pub fn read_log_bytes(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let (mut n_records, mut end) = (0, MAGIC.len());
    while let Ok(Some(record)) = next_record(&mut rest) {
        match parse(&record).and_then(|parsed| parsed.payload()) {
            Some(_) => n_records += 1,
            None => break,
        }
        end += record.len();
    }
    Some((n_records, end))
}
