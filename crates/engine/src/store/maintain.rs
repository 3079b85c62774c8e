//! What can be done with a store's folder without an engine.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::file::{FileKind, Head, Reason};
use super::handle::{is_compat_folder, lock_folder, read_format};
use super::index::Index;
use super::key::FileId;
use super::options::StoreError;
use super::scan::{
    CompatDir, FORMAT_FILE, LOCK_FILE, QUARANTINE_DIR, check_block, check_point, quarantine,
    scan_unknown,
};
use super::volume::{self, Listed};
use super::writer::{evict_folder, gc_lock};

/// Longest file that is read for verification: a block of full size is 7 MiB.
const MAX_VERIFIED_BYTES: u64 = 1 << 30;

/// What one model has stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedModel {
    /// Name of its folder.
    pub folder: String,
    /// Its points, most tokens first.
    pub points: Vec<ListedPoint>,
    /// Blocks.
    pub n_blocks: usize,
    /// Bytes of the blocks.
    pub block_bytes: u64,
}

/// A point on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPoint {
    /// Its name.
    pub id: FileId,
    /// Its tokens.
    pub n_tokens: usize,
    /// Blocks that it names.
    pub n_blocks: usize,
    /// Bytes of its own file.
    pub n_bytes: u64,
    /// Why it was saved.
    pub reason: Reason,
    /// When.
    pub created: SystemTime,
}

/// What verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files whose every byte is as written.
    pub n_good: usize,
    /// Bytes read.
    pub n_bytes: u64,
    /// Files that are not, with what is wrong; they are in the quarantine now.
    pub damaged: Vec<(PathBuf, String)>,
    /// Points that name a block that is not there.
    pub incomplete: Vec<PathBuf>,
}

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Bytes freed.
    pub freed_bytes: u64,
    /// Bytes left.
    pub left_bytes: u64,
}

fn models(dir: &Path) -> Result<Vec<CompatDir>, StoreError> {
    if read_format(dir)?.is_none() {
        let path = dir.join(FORMAT_FILE);
        let source = io::Error::new(io::ErrorKind::NotFound, "no KV store is here");
        return Err(StoreError::Io { path, source });
    }
    let mut found: Vec<CompatDir> = volume::list(dir)
        .map_err(StoreError::io(dir))?
        .into_iter()
        .filter(|listed| listed.is_dir && is_compat_folder(&listed.name))
        .map(|listed| CompatDir { path: listed.path })
        .collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn n_bytes(dir: &Path) -> Result<u64, StoreError> {
    let files = volume::list_deep(dir).map_err(StoreError::io(dir))?;
    Ok(files.iter().map(|file| file.n_bytes).sum())
}

/// Lists what is stored, without changing anything.
pub fn list(dir: impl AsRef<Path>) -> Result<Vec<ListedModel>, StoreError> {
    let mut listed = Vec::new();
    for compat in models(dir.as_ref())? {
        let (index, _) = scan_unknown(&compat).map_err(StoreError::io(&compat.path))?;
        listed.push(listed_model(&compat, &index));
    }
    Ok(listed)
}

fn listed_model(compat: &CompatDir, index: &Index) -> ListedModel {
    let mut points: Vec<ListedPoint> = index
        .points()
        .iter()
        .map(|(id, point)| ListedPoint {
            id: *id,
            n_tokens: point.n_tokens,
            n_blocks: point.chain.len(),
            n_bytes: point.n_bytes,
            reason: point.reason,
            created: point.created,
        })
        .collect();
    points.sort_by_key(|point| (std::cmp::Reverse(point.n_tokens), point.id));
    ListedModel {
        folder: compat
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        points,
        n_blocks: index.blocks().len(),
        block_bytes: index.blocks().values().map(|block| block.n_bytes).sum(),
    }
}

/// Reads every file and checks every byte. Damaged files are moved to the
/// quarantine; points that name a missing block are deleted.
pub fn verify(dir: impl AsRef<Path>) -> Result<Verified, StoreError> {
    let dir = dir.as_ref();
    let mut verified = Verified::default();
    for compat in models(dir)? {
        // Points first: whatever appears later has its blocks.
        let points = compat.list_points().map_err(StoreError::io(&compat.path))?;
        let blocks = compat.list_blocks().map_err(StoreError::io(&compat.path))?;
        for (id, listed) in blocks {
            verify_file(dir, &compat, id, &listed, &mut verified)?;
        }
        for (id, listed) in points {
            let Some(head) = verify_file(dir, &compat, id, &listed, &mut verified)? else {
                continue;
            };
            let FileKind::Point(point) = &head.kind else {
                continue;
            };
            let is_there = |id| compat.block(id).is_file();
            if !point.chain.iter().all(|hash| is_there(hash.block_id())) {
                volume::remove(&listed.path).map_err(StoreError::io(&listed.path))?;
                verified.n_good -= 1;
                verified.incomplete.push(listed.path);
            }
        }
    }
    Ok(verified)
}

fn verify_file(
    dir: &Path,
    compat: &CompatDir,
    id: FileId,
    listed: &Listed,
    verified: &mut Verified,
) -> Result<Option<Head>, StoreError> {
    let bytes = match volume::read_limited(&listed.path, MAX_VERIFIED_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io(&listed.path)(error)),
    };
    let checked = match &bytes {
        None => Err(format!("the file has more than {MAX_VERIFIED_BYTES} bytes")),
        Some(bytes) => Head::check(bytes)
            .and_then(|head| {
                match head.kind {
                    FileKind::Block => check_block(&head, id, head.key)?,
                    FileKind::Point(_) => check_point(&head, id, head.key, None)?,
                }
                Ok(head)
            })
            .map_err(|damage| damage.to_string()),
    };
    let checked = checked.and_then(|head| {
        let folder = compat.path.file_name().unwrap_or_default();
        match *folder == *head.key.folder() {
            true => Ok(head),
            false => Err(format!("it belongs into {}", head.key.folder())),
        }
    });
    match checked {
        Ok(head) => {
            verified.n_good += 1;
            verified.n_bytes += bytes.map_or(0, |bytes| bytes.len() as u64);
            Ok(Some(head))
        }
        Err(why) => {
            quarantine(dir, &listed.path);
            verified.damaged.push((listed.path.clone(), why));
            Ok(None)
        }
    }
}

/// Removes what is of no use (old temporary files, the quarantine, blocks that
/// no point names) and then the points of least value until `budget_bytes` are
/// left.
pub fn gc(dir: impl AsRef<Path>, budget_bytes: u64) -> Result<Collected, StoreError> {
    let dir = dir.as_ref();
    let before = n_bytes(dir)?;
    let now = SystemTime::now();
    let models = models(dir)?;
    for listed in volume::list_deep(&dir.join(QUARANTINE_DIR)).map_err(StoreError::io(dir))? {
        volume::remove(&listed.path).map_err(StoreError::io(&listed.path))?;
    }
    for compat in &models {
        let error = || StoreError::io(&compat.path);
        compat.remove_temporaries(now).map_err(error())?;
        let Some(lock) = gc_lock(compat).map_err(error())? else {
            continue;
        };
        let (index, _) = scan_unknown(compat).map_err(error())?;
        for id in index.orphans(now) {
            let path = compat.block(id);
            volume::remove(&path).map_err(StoreError::io(&path))?;
        }
        drop(lock);
    }
    for compat in &models {
        let wanted = n_bytes(dir)?.saturating_sub(budget_bytes);
        evict_folder(compat, wanted, now).map_err(StoreError::io(&compat.path))?;
    }
    let left_bytes = n_bytes(dir)?;
    Ok(Collected {
        freed_bytes: before.saturating_sub(left_bytes),
        left_bytes,
    })
}

/// Deletes everything that is stored, and nothing that the store did not make.
/// Refused while another process uses the folder.
pub fn clear(dir: impl AsRef<Path>) -> Result<u64, StoreError> {
    let dir = dir.as_ref();
    let models = models(dir)?;
    let _lock = lock_folder(dir, true)?;
    let before = n_bytes(dir)?;
    let quarantine = dir.join(QUARANTINE_DIR);
    let folders = models.into_iter().map(|compat| compat.path);
    for folder in folders.chain([quarantine]) {
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io(&folder)(error));
            }
            _ => {}
        }
    }
    let freed = before - n_bytes(dir)?;
    for name in [FORMAT_FILE, LOCK_FILE] {
        let path = dir.join(name);
        volume::remove(&path).map_err(StoreError::io(&path))?;
    }
    Ok(freed)
}
