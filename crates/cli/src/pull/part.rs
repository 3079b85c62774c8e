//! The file while it is fetched, and what is known to be on disk of it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::{Identity, Order};
use crate::sums::{seal, unseal, write_whole};

const FORMAT: &str = "ds4-part";
const VERSION: u32 = 2;

/// What `.NAME.part.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: String,
    version: u32,
    /// Length of the whole file.
    n_bytes: u64,
    /// What the server calls the content.
    etag: String,
    /// Length of a piece; the last may be shorter.
    piece_bytes: u64,
    /// Bytes of each piece, from its beginning, that are on disk.
    done: Vec<u64>,
}

/// A file that is not whole yet. Dropping it leaves it for the next time.
pub(crate) struct Part {
    file: File,
    path: PathBuf,
    record_path: PathBuf,
    record: Record,
    /// Held while this process writes the part.
    _lock: File,
}

impl Part {
    /// Opens what is there of the file, if it is of this content; else begins anew.
    ///
    /// # Errors
    /// The folder cannot be written, or another process is at it.
    pub(crate) fn open(order: &Order, identity: &Identity) -> Result<Part> {
        let beside = |ending: &str| order.dir.join(format!(".{}{ending}", order.name()));
        let (path, record_path) = (beside(".part"), beside(".part.json"));
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .with_context(|| format!("cannot write {}", path.display()))
        };
        let lock_path = beside(".part.lock");
        let lock = open(&lock_path)?;
        // Another process may have finished, and removed the file, since it was opened.
        if lock.try_lock().is_err() || !is_at(&lock, &lock_path) {
            bail!(
                "another `ds4 pull` is fetching {} into {}",
                order.name(),
                order.dir.display()
            );
        }
        let file = open(&path)?;
        let n_bytes = file.metadata()?.len();
        let n_pieces = identity.n_bytes.div_ceil(order.piece_bytes) as usize;
        let kept = fs::read(&record_path)
            .ok()
            .and_then(|bytes| unseal::<Record>(&bytes))
            .filter(|record| {
                record.format == FORMAT
                    && record.version == VERSION
                    && record.n_bytes == identity.n_bytes
                    && record.etag == identity.etag
                    && n_bytes == identity.n_bytes
                    && record.is_sound()
            });
        let record = kept.unwrap_or_else(|| Record {
            format: FORMAT.to_owned(),
            version: VERSION,
            n_bytes: identity.n_bytes,
            etag: identity.etag.clone(),
            piece_bytes: order.piece_bytes,
            done: vec![0; n_pieces],
        });
        let part = Part {
            file,
            path,
            record_path,
            record,
            _lock: lock,
        };
        if part.n_done() == 0 {
            // The old record must not speak of the new bytes.
            remove(&part.record_path)?;
            // Some file systems take no file of this size, and say so here.
            let sized = part.file.set_len(0);
            let sized = sized.and_then(|()| part.file.set_len(identity.n_bytes));
            sized.with_context(|| {
                let (path, n) = (part.path.display(), identity.n_bytes);
                format!("cannot write {path}, which needs {n} bytes: choose a folder with --dir")
            })?;
        }
        Ok(part)
    }

    /// Bytes that are on disk.
    pub(crate) fn n_done(&self) -> u64 {
        self.record.done.iter().sum()
    }

    /// Bytes of each piece that are on disk.
    pub(crate) fn done(&self) -> &[u64] {
        &self.record.done
    }

    /// Which bytes a piece is.
    pub(crate) fn piece(&self, i: usize) -> std::ops::Range<u64> {
        let start = i as u64 * self.record.piece_bytes;
        start..(start + self.record.piece_bytes).min(self.record.n_bytes)
    }

    /// Another handle on the bytes, for [`write_at`].
    ///
    /// # Errors
    /// As the file system says.
    pub(crate) fn writer(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Writes down that so many bytes of each piece are there, once they are.
    ///
    /// # Errors
    /// As the file system says; what was written down before stays so.
    pub(crate) fn save(&mut self, done: Vec<u64>) -> Result<()> {
        self.file
            .sync_data()
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        self.record.done = done;
        let text = seal(&self.record)?;
        write_whole(&self.record_path, &text)
            .with_context(|| format!("cannot write {}", self.record_path.display()))
    }

    /// The path of the bytes.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// As the file system says.
    pub(crate) fn name(self, path: &Path) -> Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, path).with_context(|| format!("cannot name {}", path.display()))?;
        remove(&self.record_path)?;
        self.unlock();
        Ok(())
    }

    /// Deletes it.
    ///
    /// # Errors
    /// As the file system says.
    pub(crate) fn discard(self) -> Result<()> {
        remove(&self.record_path)?;
        remove(&self.path)?;
        self.unlock();
        Ok(())
    }

    /// Removes the file that was locked. Who waits for nothing holds it no more; who opens it now
    /// makes another.
    fn unlock(&self) {
        let lock = self.path.with_extension("part.lock");
        let _ = fs::remove_file(lock);
    }
}

impl Record {
    /// Whether the pieces are those of a file of this length.
    fn is_sound(&self) -> bool {
        let Some(n_pieces) = self.n_bytes.checked_add(self.piece_bytes.wrapping_sub(1)) else {
            return false;
        };
        self.piece_bytes > 0
            && self.done.len() as u64 == n_pieces / self.piece_bytes
            && self.done.iter().enumerate().all(|(i, &n)| {
                let start = i as u64 * self.piece_bytes;
                n <= self.piece_bytes.min(self.n_bytes - start)
            })
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whether the path still leads to the open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn order(dir: &Path) -> Order {
        Order {
            endpoint: String::new(),
            repository: String::new(),
            revision: String::new(),
            file: "folder/m.gguf".into(),
            token: None,
            dir: dir.into(),
            n_connections: 1,
            piece_bytes: 10,
            stall: Duration::ZERO,
            n_failures: 1,
        }
    }

    fn identity(n_bytes: u64, etag: &str) -> Identity {
        Identity {
            n_bytes,
            etag: etag.into(),
            sha256: None,
            has_ranges: true,
        }
    }

    #[test]
    fn what_was_saved_is_there_again_for_the_same_content_only() {
        let dir = tempfile::tempdir().unwrap();
        let order = order(dir.path());
        let mut part = Part::open(&order, &identity(25, "a")).unwrap();
        assert_eq!(part.done(), [0, 0, 0]);
        assert_eq!(part.piece(2), 20..25);
        crate::sums::write_at(&part.writer().unwrap(), b"xyz", 10).unwrap();
        part.save(vec![0, 3, 0]).unwrap();
        assert!(Part::open(&order, &identity(25, "a")).is_err(), "locked");
        drop(part);
        let part = Part::open(&order, &identity(25, "a")).unwrap();
        assert_eq!(part.done(), [0, 3, 0]);
        drop(part);
        let part = Part::open(&order, &identity(25, "b")).unwrap();
        assert_eq!(part.n_done(), 0);
        assert_eq!(fs::read(part.path()).unwrap(), [0; 25]);
        part.name(&order.path()).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    /// The record of a file of 25 bytes of which 17 are there, as it lies on disk.
    const GOLDEN: &str = "{\"format\":\"ds4-part\",\"version\":2,\"n_bytes\":25,\"etag\":\"a\",\
        \"piece_bytes\":10,\"done\":[10,3,4]}\na90a75d1bcb76321\n";

    fn done_after(record: &[u8]) -> u64 {
        let dir = tempfile::tempdir().unwrap();
        let order = order(dir.path());
        fs::write(dir.path().join(".m.gguf.part"), [7; 25]).unwrap();
        fs::write(dir.path().join(".m.gguf.part.json"), record).unwrap();
        Part::open(&order, &identity(25, "a")).unwrap().n_done()
    }

    #[test]
    fn a_record_is_read_and_written_as_it_lies_on_disk() {
        assert_eq!(done_after(GOLDEN.as_bytes()), 17);
        let dir = tempfile::tempdir().unwrap();
        let mut part = Part::open(&order(dir.path()), &identity(25, "a")).unwrap();
        part.save(vec![10, 3, 4]).unwrap();
        let written = fs::read_to_string(dir.path().join(".m.gguf.part.json")).unwrap();
        assert_eq!(written, GOLDEN);
    }

    #[test]
    fn a_damaged_record_begins_anew() {
        let golden = GOLDEN.as_bytes();
        for n in 0..golden.len() {
            assert_eq!(done_after(&golden[..n]), 0, "cut at {n}");
            for bit in [1, 4, 64] {
                let mut damaged = golden.to_vec();
                damaged[n] ^= bit;
                assert_eq!(done_after(&damaged), 0, "byte {n}, bit {bit}");
            }
        }
        // Whole records that fit no file of 25 bytes.
        for record in [
            r#"{"format":"ds4-part","version":2,"n_bytes":25,"etag":"a","piece_bytes":0,"done":[]}"#,
            r#"{"format":"ds4-part","version":2,"n_bytes":25,"etag":"a","piece_bytes":10,"done":[10,10,10]}"#,
            r#"{"format":"ds4-part","version":2,"n_bytes":25,"etag":"a","piece_bytes":10,"done":[10]}"#,
            r#"{"format":"ds4-part","version":9,"n_bytes":25,"etag":"a","piece_bytes":10,"done":[1,1,1]}"#,
        ] {
            let value: serde_json::Value = serde_json::from_str(record).unwrap();
            assert_eq!(done_after(&seal(&value).unwrap()), 0, "{record}");
        }
    }
}
