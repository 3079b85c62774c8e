//! Reading what a folder holds: the index is rebuilt from the files' heads.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::file::{Damage, FileKind, Head};
use super::index::{BlockEntry, Index, PointEntry, Uses};
use super::key::{ChainHash, CompatKey, FileId};
use super::volume::{self, Listed, TEMPORARY_AGE, TEMPORARY_PREFIX};

/// Name of the file that says what a folder is.
pub(crate) const FORMAT_FILE: &str = "format";
/// What it contains.
pub(crate) const FORMAT_TEXT: &str = "dsv4-cache 2\n";
/// Name of the lock that every server holds.
pub(crate) const LOCK_FILE: &str = "lock";
/// Where damaged files go.
pub(crate) const QUARANTINE_DIR: &str = "quarantine";
/// How the folders of compatibility keys are called.
pub(crate) const COMPAT_PREFIX: &str = "compat-";
/// Held while files are deleted, and shared while a point is written.
pub(crate) const GC_LOCK_FILE: &str = "gc.lock";
/// How often points were used, rewritten as a whole.
pub(crate) const JOURNAL_FILE: &str = "journal";
/// What was sampled in the turns of this key.
pub(crate) const TURN_LOG_FILE: &str = "turns.log";

const BLOCKS_DIR: &str = "blocks";
const POINTS_DIR: &str = "points";
const BLOCK_SUFFIX: &str = ".blk";
const POINT_SUFFIX: &str = ".pt";

/// The folder of one compatibility key.
#[derive(Clone, Debug)]
pub(crate) struct CompatDir {
    pub(crate) path: PathBuf,
}

impl CompatDir {
    pub(crate) fn new(dir: &Path, name: &str) -> CompatDir {
        CompatDir {
            path: dir.join(name),
        }
    }

    pub(crate) fn points(&self) -> PathBuf {
        self.path.join(POINTS_DIR)
    }

    pub(crate) fn point(&self, id: FileId) -> PathBuf {
        self.points().join(format!("{id}{POINT_SUFFIX}"))
    }

    pub(crate) fn block(&self, id: FileId) -> PathBuf {
        let name = id.to_string();
        let dir = self.path.join(BLOCKS_DIR).join(&name[..2]);
        dir.join(format!("{name}{BLOCK_SUFFIX}"))
    }

    pub(crate) fn gc_lock(&self) -> PathBuf {
        self.path.join(GC_LOCK_FILE)
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.path.join(JOURNAL_FILE)
    }

    pub(crate) fn turn_log(&self) -> PathBuf {
        self.path.join(TURN_LOG_FILE)
    }

    /// Creates the folder and what is always in it.
    pub(crate) fn create(&self) -> io::Result<()> {
        volume::create_dir(&self.points())?;
        volume::create_dir(&self.path.join(BLOCKS_DIR))
    }

    /// Checks that it and what is always in it are folders, if they are there, and no links to
    /// somewhere else.
    pub(crate) fn check(&self) -> io::Result<()> {
        volume::expect_folder(&self.path)?;
        volume::expect_folder(&self.points())?;
        volume::expect_folder(&self.path.join(BLOCKS_DIR))
    }

    /// All block files, by name.
    pub(crate) fn list_blocks(&self) -> io::Result<Vec<(FileId, Listed)>> {
        let mut found = Vec::new();
        for folder in volume::list(&self.path.join(BLOCKS_DIR))? {
            if folder.is_dir {
                found.extend(named(volume::list(&folder.path)?, BLOCK_SUFFIX));
            }
        }
        Ok(found)
    }

    /// All point files, by name.
    pub(crate) fn list_points(&self) -> io::Result<Vec<(FileId, Listed)>> {
        Ok(named(volume::list(&self.points())?, POINT_SUFFIX))
    }

    /// Removes files that were being written when their writer ended: those
    /// that are older than an hour.
    pub(crate) fn remove_temporaries(&self, now: SystemTime) -> io::Result<usize> {
        let mut n = 0;
        for listed in volume::list_deep(&self.path)? {
            let age = now.duration_since(listed.modified).unwrap_or_default();
            if listed.name.starts_with(TEMPORARY_PREFIX) && age >= TEMPORARY_AGE {
                volume::remove(&listed.path)?;
                n += 1;
            }
        }
        Ok(n)
    }
}

fn named(listed: Vec<Listed>, suffix: &str) -> Vec<(FileId, Listed)> {
    let id = |name: &str| FileId::from_hex(name.strip_suffix(suffix)?);
    listed
        .into_iter()
        .filter(|file| file.is_file)
        .filter_map(|file| Some((id(&file.name)?, file)))
        .collect()
}

/// Moves a damaged file out of the way; where there is no other way it is
/// deleted.
pub(crate) fn quarantine(dir: &Path, path: &Path) {
    let quarantine = dir.join(QUARANTINE_DIR);
    let name = path.file_name().expect("a file of the store has a name");
    let moved =
        volume::create_dir(&quarantine).and_then(|()| fs::rename(path, quarantine.join(name)));
    if moved.is_err() {
        // What stays is found damaged again.
        let _ = volume::remove(path);
    }
}

/// What a scan found besides good files.
#[derive(Debug, Default)]
pub(crate) struct ScanReport {
    /// Files with what is wrong with them.
    pub(crate) damaged: Vec<(PathBuf, Damage)>,
    /// Points whose blocks are not all there.
    pub(crate) incomplete: Vec<PathBuf>,
}

fn wrong_name(head: &Head, found: FileId) -> Damage {
    Damage::Field {
        what: "the name",
        found: found.to_string(),
        expected: format!("that of tokens {}..{}", head.first, head.end()),
    }
}

/// Reads the head of a file; `None` when the file vanished.
fn read_head(path: &Path) -> io::Result<Option<Result<Head, Damage>>> {
    match File::open(path) {
        Ok(mut file) => Head::read(&mut file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Checks that a block's head belongs to its name and to a key.
pub(crate) fn check_block(head: &Head, id: FileId, key: CompatKey) -> Result<(), Damage> {
    let is_named = head.parent.then(&head.tokens).block_id() == id;
    if head.kind != FileKind::Block || !is_named || key != head.key {
        return Err(wrong_name(head, id));
    }
    Ok(())
}

/// Checks that a point's head belongs to its name and to a key.
pub(crate) fn check_point(
    head: &Head,
    id: FileId,
    key: CompatKey,
    block_tokens: Option<usize>,
) -> Result<(), Damage> {
    let wrong = || Err(wrong_name(head, id));
    let FileKind::Point(point) = &head.kind else {
        return wrong();
    };
    let before = point.chain.last().copied();
    let is_named = head.parent == before.unwrap_or(ChainHash::root(head.key))
        && head.parent.point_id(&head.tokens) == id;
    let fits = block_tokens.is_none_or(|n| {
        head.first as u64 == point.chain.len() as u64 * n as u64 && head.tokens.len() < n
    });
    if !is_named || !fits || key != head.key {
        return wrong();
    }
    Ok(())
}

/// The files that an index knows, as they were when somebody began to look.
pub(crate) struct Known {
    blocks: HashSet<FileId>,
    points: HashSet<FileId>,
}

impl Known {
    pub(crate) fn of(index: &Index) -> Known {
        Known {
            blocks: index.blocks().keys().copied().collect(),
            points: index.points().keys().copied().collect(),
        }
    }
}

/// How the files differ from what is known of them.
#[derive(Default)]
pub(crate) struct Look {
    new_blocks: Vec<(FileId, BlockEntry)>,
    gone_blocks: Vec<FileId>,
    new_points: Vec<(FileId, PathBuf, PointEntry)>,
    /// Points that are known and still there.
    same_points: Vec<(FileId, PathBuf)>,
    gone_points: Vec<FileId>,
    damaged: Vec<(PathBuf, Damage)>,
}

/// Reads a folder: the heads of the files that are not known.
pub(crate) fn look(
    compat: &CompatDir,
    key: CompatKey,
    block_tokens: Option<usize>,
    known: Known,
) -> io::Result<Look> {
    let mut found = Look::default();
    // A point is written behind its blocks, so that theirs are listed later.
    let listed_points = compat.list_points()?;
    let listed_blocks = compat.list_blocks()?;

    let mut gone = known.blocks;
    for (id, listed) in listed_blocks {
        if gone.remove(&id) {
            continue;
        }
        let Some(head) = read_head(&listed.path)? else {
            continue;
        };
        let checked = head.and_then(|head| check_block(&head, id, key).map(|()| head));
        match checked {
            Ok(head) => found.new_blocks.push((
                id,
                BlockEntry {
                    tokens: head.tokens.into(),
                    n_bytes: listed.n_bytes,
                    modified: listed.modified,
                },
            )),
            Err(damage) => found.damaged.push((listed.path, damage)),
        }
    }
    found.gone_blocks.extend(gone);

    let mut gone = known.points;
    for (id, listed) in listed_points {
        if gone.remove(&id) {
            found.same_points.push((id, listed.path));
            continue;
        }
        let Some(head) = read_head(&listed.path)? else {
            continue;
        };
        let checked = head.and_then(|h| check_point(&h, id, key, block_tokens).map(|()| h));
        match checked {
            Ok(head) => {
                let entry = point_entry(head, listed.n_bytes);
                found.new_points.push((id, listed.path, entry));
            }
            Err(damage) => found.damaged.push((listed.path, damage)),
        }
    }
    found.gone_points.extend(gone);
    Ok(found)
}

impl Look {
    /// Brings an index up to date. What it has learnt meanwhile stays.
    pub(crate) fn apply(self, index: &mut Index) -> ScanReport {
        let mut report = ScanReport {
            damaged: self.damaged,
            ..ScanReport::default()
        };
        for (id, entry) in self.new_blocks {
            if !index.blocks().contains_key(&id) {
                index.add_block(id, entry);
            }
        }
        for id in self.gone_blocks {
            index.remove_block(id);
        }
        for id in self.gone_points {
            index.remove_point(id);
        }
        for (id, path) in self.same_points {
            let Some(entry) = index.points().get(&id) else {
                continue;
            };
            if !entry.blocks().all(|b| index.blocks().contains_key(&b)) {
                index.remove_point(id);
                report.incomplete.push(path);
            }
        }
        for (id, path, entry) in self.new_points {
            if !entry.blocks().all(|b| index.blocks().contains_key(&b)) {
                report.incomplete.push(path);
            } else if !index.points().contains_key(&id) {
                index.add_point(id, entry);
            }
        }
        report
    }
}

/// Brings an index up to date with the files: adds those that it does not
/// know and forgets those that are gone.
pub(crate) fn scan(
    compat: &CompatDir,
    key: CompatKey,
    block_tokens: Option<usize>,
    index: &mut Index,
) -> io::Result<ScanReport> {
    Ok(look(compat, key, block_tokens, Known::of(index))?.apply(index))
}

/// The index of a folder whose model is not known: the key is taken from the
/// files, and those that disagree with the first count as damaged.
pub(crate) fn scan_unknown(compat: &CompatDir) -> io::Result<(Index, ScanReport)> {
    let points = compat.list_points()?;
    let blocks = compat.list_blocks()?;
    let mut found = None;
    for (_, listed) in points.iter().chain(&blocks) {
        if let Some(Ok(head)) = read_head(&listed.path)?
            && compat
                .path
                .file_name()
                .is_some_and(|name| name == head.key.folder().as_str())
        {
            found = Some(head.key);
            break;
        }
    }
    let root = found.unwrap_or(CompatKey([0; 32]));
    // Block sizes matter to lookups only, and nothing is looked up here.
    let mut index = Index::new(ChainHash::root(root), usize::MAX);
    let report = scan(compat, root, None, &mut index)?;
    Ok((index, report))
}

/// The index entry of a point with this head.
pub(crate) fn point_entry(head: Head, n_bytes: u64) -> PointEntry {
    let n_tokens = head.end();
    let FileKind::Point(point) = head.kind else {
        unreachable!("the caller checked the kind");
    };
    PointEntry {
        n_tokens,
        chain: point.chain.into(),
        tail: head.tokens.into(),
        reason: point.reason,
        text_keys: point.text_keys,
        n_bytes,
        created: point.created,
        uses: Uses {
            score: 0.0,
            at: point.created,
        },
        pin: Arc::new(()),
        not_before: None,
    }
}
