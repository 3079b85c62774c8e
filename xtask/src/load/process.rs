//! The server's process: starting it, watching it, and ending it.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::root;

/// Longest time until a server listens, its small model being inside it.
const START: Duration = Duration::from_secs(60);

/// Builds the server; where it is.
pub(crate) fn build() -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--locked", "-p", "ds4-cli"])
        .args(["--features", "server"])
        .current_dir(root())
        .status()
        .map_err(|e| format!("cargo: {e}"))?;
    if !built.success() {
        return Err("ds4-server cannot be built".to_owned());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| root().join("target"));
    Ok(target.join("release").join("ds4-server"))
}

/// A server that this program started.
pub(crate) struct Started {
    child: Child,
    pub(crate) address: SocketAddr,
    /// Holds the log and the store.
    folder: tempfile::TempDir,
}

impl Started {
    /// Starts a server on a free port.
    pub(crate) fn of(server: &Path, flags: &[String]) -> Result<Started, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let log = File::create(folder.path().join("log")).map_err(|e| e.to_string())?;
        let mut child = Command::new(server)
            .args(["--port", "0", "--kv-disk-dir"])
            .arg(folder.path().join("store"))
            .args(["--kv-keep-free-mb", "0"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("ds4-server: {e}"))?;
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            let address = text
                .split_once("listening on http://")
                .and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
            if let Some(address) = address {
                return Ok(Started {
                    child,
                    address,
                    folder,
                });
            }
            if begun.elapsed() > START || !matches!(child.try_wait(), Ok(None)) {
                let _ = child.kill();
                return Err(format!("ds4-server does not start: {text}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of the store's files.
    pub(crate) fn store_bytes(&self) -> u64 {
        bytes_under(&self.folder.path().join("store"))
    }

    /// Lines of the log that speak of a panic.
    pub(crate) fn panics(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let panics = text.lines().filter(|line| line.contains("panicked at"));
        panics.map(str::to_owned).collect()
    }

    /// Asks it to end; how long that took, and whether it ended well.
    pub(crate) fn stop(mut self) -> io::Result<(Duration, bool)> {
        let begun = Instant::now();
        #[cfg(unix)]
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid() as i32) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        #[cfg(not(unix))]
        self.child.kill()?;
        let status = self.child.wait()?;
        Ok((begun.elapsed(), status.success()))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bytes_under(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_under(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

/// What a process holds, as Linux tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Holds {
    /// Resident memory in MiB.
    pub(crate) rss_mib: f64,
    pub(crate) n_threads: usize,
    pub(crate) n_files: usize,
}

/// What the process holds now; `None` where the system does not say.
pub(crate) fn holds(pid: u32) -> Option<Holds> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    Some(Holds {
        rss_mib: of("VmRSS:")? / 1024.0,
        n_threads: of("Threads:")? as usize,
        n_files: std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
    })
}

/// Most memory that a process had resident since [`reset_peak`], in MiB; `None` where the system
/// does not say.
pub(crate) fn peak_mib(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

/// Forgets what the most was, where the system can.
pub(crate) fn reset_peak(pid: u32) {
    let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
}
