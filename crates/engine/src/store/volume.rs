//! Files and folders: durable writes, private modes, what is free.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Names of files that are being written start so.
pub(crate) const TEMPORARY_PREFIX: &str = ".tmp-";
/// Age after which a temporary file belongs to nobody.
pub(crate) const TEMPORARY_AGE: Duration = Duration::from_secs(3600);

/// What the store needs of a file system when it writes.
pub(crate) trait Volume: Send + Sync {
    /// Writes a file whole: after a crash there is the old one, the new one or
    /// none, and after this returns there is the new one.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Bytes free for this user, and bytes in all; `None` when unknown.
    fn space(&self, dir: &Path) -> Option<(u64, u64)>;

    /// Whether files can be made in a folder that is there.
    fn takes_files(&self, dir: &Path) -> bool;
}

/// The real one.
#[derive(Debug, Default)]
pub(crate) struct LocalVolume {
    n_written: AtomicU64,
}

impl Volume for LocalVolume {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let dir = path.parent().expect("a file of the store has a folder");
        if !dir.is_dir() {
            create_dir(dir)?;
            dir.parent().map_or(Ok(()), sync_dir)?;
        }
        let number = self.n_written.fetch_add(1, Ordering::Relaxed);
        let nanos = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |d| d.subsec_nanos());
        let name = format!(
            "{TEMPORARY_PREFIX}{}-{number}-{nanos:x}",
            std::process::id()
        );
        let temporary = dir.join(name);
        let written = (|| {
            let mut file = create_private(&temporary)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            drop(file);
            fs::rename(&temporary, path)?;
            sync_dir(dir)
        })();
        if written.is_err() {
            // The temporary file, if it is still there, is of no use; a failure
            // to remove it leaves it to the clean-up by age.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    #[cfg(unix)]
    fn space(&self, dir: &Path) -> Option<(u64, u64)> {
        let found = rustix::fs::statvfs(dir).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Some((bytes(found.f_bavail), bytes(found.f_blocks)))
    }

    #[cfg(not(unix))]
    fn space(&self, _dir: &Path) -> Option<(u64, u64)> {
        None
    }

    #[cfg(unix)]
    fn takes_files(&self, dir: &Path) -> bool {
        use rustix::fs::Access;
        rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok()
    }

    #[cfg(not(unix))]
    fn takes_files(&self, dir: &Path) -> bool {
        fs::metadata(dir).is_ok_and(|found| !found.permissions().readonly())
    }
}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

/// Creates a new file that only its owner can read.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    private(OpenOptions::new().write(true).create_new(true)).open(path)
}

/// Opens or creates a file that only its owner can read.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    expect_file(path)?;
    let mut options = OpenOptions::new();
    private(options.read(true).write(true).create(true).truncate(false)).open(path)
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
}

/// Refuses what is in the place of a file and is none: a link, which may lead anywhere, or a pipe,
/// whose reader waits for a writer.
pub(crate) fn expect_file(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => Err(io::Error::other(
            "found a link, a folder or a pipe, expected a file",
        )),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Refuses a link in the place of a folder.
pub(crate) fn expect_folder(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_dir() => Err(io::Error::other(
            "found a link or a file, expected a folder",
        )),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Creates a folder, and those above it, that only its owner can enter.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(path)
}

/// Why a folder is not one to keep conversations in; `None` when it is.
#[cfg(unix)]
pub(crate) fn insecure(path: &Path) -> io::Result<Option<String>> {
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata(path)?;
    let user = rustix::process::geteuid().as_raw();
    Ok(if found.uid() != user {
        Some(format!(
            "it belongs to user {}, expected {user}",
            found.uid()
        ))
    } else if found.mode() & 0o022 != 0 {
        let mode = found.mode() & 0o777;
        Some(format!(
            "others can write to it (mode {mode:o}), expected 700: chmod 700 it"
        ))
    } else {
        None
    })
}

/// Why a folder is not one to keep conversations in; not known here.
#[cfg(not(unix))]
pub(crate) fn insecure(_path: &Path) -> io::Result<Option<String>> {
    Ok(None)
}

/// A file, if it has at most `max_bytes`; `None` when it is longer.
pub(crate) fn read_limited(path: &Path, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let file = File::open(path)?;
    let n = file.metadata()?.len();
    if n > max_bytes {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(n as usize);
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= max_bytes).then_some(bytes))
}

/// A file or folder below another.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    pub(crate) is_dir: bool,
    /// Neither a folder nor a link nor a pipe.
    pub(crate) is_file: bool,
    pub(crate) n_bytes: u64,
    pub(crate) modified: SystemTime,
}

/// What is in a folder; nothing when it is not there. Entries that vanish
/// meanwhile, and names that are not UTF-8, are left out.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<Listed>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let (Ok(metadata), Ok(name)) = (entry.metadata(), entry.file_name().into_string()) else {
            continue;
        };
        found.push(Listed {
            path: entry.path(),
            name,
            is_dir: metadata.is_dir(),
            is_file: metadata.is_file(),
            n_bytes: metadata.len(),
            modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        });
    }
    Ok(found)
}

/// Every file below a folder, and nothing of other volumes by links.
pub(crate) fn list_deep(dir: &Path) -> io::Result<Vec<Listed>> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for listed in list(&folder)? {
            if listed.is_dir {
                folders.push(listed.path);
            } else {
                files.push(listed);
            }
        }
    }
    Ok(files)
}

/// Removes a file; one that is gone already is as good.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether an error says that the volume takes no more: full, over the quota,
/// or read-only.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(
        error.kind(),
        StorageFull | QuotaExceeded | ReadOnlyFilesystem
    )
}
