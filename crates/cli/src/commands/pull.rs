//! `ds4 pull`: the published files, which of them fit here, and fetching one.

use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::args::PullArgs;
use crate::catalog::{self, Kind, PUBLISHED, Published, REPOSITORY};
use crate::commands::ask::Answered;
use crate::console::Console;
use crate::{folders, units};

/// Memory that a model needs beside its weights at an ordinary context.
const BESIDE_WEIGHTS_BYTES: u64 = 2 << 30;

/// Runs the command.
///
/// # Errors
/// The name is not known, the folder cannot be written, or the file cannot be fetched.
pub(crate) fn run(args: &PullArgs, console: &Console, out: &mut dyn Write) -> Result<Answered> {
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => folders::models()
            .context("there is no home folder to keep models in: give one with --dir DIR")?,
    };
    let Some(name) = &args.name else {
        list(args, &dir, out)?;
        return Ok(Answered::Complete);
    };
    let wanted = Wanted::parse(name, args.repository.as_deref())?;
    fetch(args, &wanted, &dir, console, out)
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    repository: String,
    file: String,
}

impl Wanted {
    /// By the name of a published file, or as `OWNER/REPOSITORY/FILE.gguf`.
    fn parse(name: &str, repository: Option<&str>) -> Result<Wanted> {
        let (repository, file) = match (catalog::find(name), repository) {
            (Some(published), repository) => (repository.unwrap_or(REPOSITORY), published.file),
            (None, Some(repository)) => (repository, name),
            (None, None) => {
                let mut slashes = name.match_indices('/').map(|(i, _)| i);
                match (slashes.next(), slashes.next()) {
                    (Some(_), Some(second)) => (&name[..second], &name[second + 1..]),
                    _ => {
                        let ids: Vec<&str> = PUBLISHED.iter().map(|p| p.id).collect();
                        bail!(
                            "{name:?} is no published file: expected one of {}, or \
                             OWNER/REPOSITORY/FILE.gguf",
                            ids.join(", ")
                        )
                    }
                }
            }
        };
        let last = file.rsplit('/').next().unwrap_or_default();
        if !last.ends_with(".gguf") || last.starts_with('.') || file.split('/').any(|s| s == "..") {
            bail!("{file:?} is not the name of a GGUF file");
        }
        if last.contains("-of-0") {
            bail!("{file} is one of several files of a model, which `ds4 pull` does not fetch");
        }
        Ok(Wanted {
            repository: repository.to_owned(),
            file: file.to_owned(),
        })
    }
}

fn list(args: &PullArgs, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let free = free_bytes(dir);
    let memory = ds4_engine::available_bytes();
    if args.json {
        let files: Vec<Value> = PUBLISHED
            .iter()
            .map(|p| {
                json!({
                    "id": p.id,
                    "aliases": p.aliases,
                    "file": p.file,
                    "n_bytes": p.n_bytes,
                    "kind": match p.kind { Kind::Model => "model", Kind::Draft => "draft" },
                    "about": p.about,
                    "is_here": dir.join(p.file).exists(),
                    "fits_disk": fits(p.n_bytes, free),
                    "fits_memory": fits(p.n_bytes.map(|n| n + BESIDE_WEIGHTS_BYTES), memory),
                })
            })
            .collect();
        let report = json!({
            "repository": REPOSITORY,
            "folder": dir.display().to_string(),
            "free_bytes": free,
            "available_memory_bytes": memory,
            "files": files,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    writeln!(out, "{REPOSITORY}, into {}", dir.display())?;
    let known = |n: Option<u64>| n.map_or("unknown".to_owned(), units::bytes);
    writeln!(
        out,
        "  free there: {}; memory available now: {}\n",
        known(free),
        known(memory)
    )?;
    writeln!(
        out,
        "  {:12} {:>10}  {:22}  what it is",
        "name", "size", "here"
    )?;
    for p in PUBLISHED {
        let size = p.n_bytes.map_or("?".to_owned(), units::bytes);
        writeln!(
            out,
            "  {:12} {size:>10}  {:22}  {}",
            p.id,
            fit(p, dir, free, memory),
            p.about
        )?;
    }
    writeln!(
        out,
        "\n  `ds4 pull NAME` fetches one. A model that is larger than the memory runs from the \
         disk, slowly."
    )?;
    Ok(())
}

/// What stands in the way of a file here, in a few words.
fn fit(p: &Published, dir: &Path, free: Option<u64>, memory: Option<u64>) -> &'static str {
    let needed = p.n_bytes.map(|n| n + BESIDE_WEIGHTS_BYTES);
    if dir.join(p.file).exists() {
        "is there"
    } else if fits(p.n_bytes, free) == Some(false) {
        "too large for the disk"
    } else if p.kind == Kind::Model && fits(needed, memory) == Some(false) {
        "larger than memory"
    } else if p.n_bytes.is_none() {
        ""
    } else {
        "fits"
    }
}

fn fits(needed: Option<u64>, there: Option<u64>) -> Option<bool> {
    Some(needed? <= there?)
}

/// Bytes that this user can write in a folder, or in the first above it that exists.
#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    let dir = dir.ancestors().find(|dir| dir.is_dir())?;
    let found = rustix::fs::statvfs(dir).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_dir: &Path) -> Option<u64> {
    None
}

#[cfg(not(feature = "pull"))]
fn fetch(
    _args: &PullArgs,
    wanted: &Wanted,
    dir: &Path,
    _console: &Console,
    _out: &mut dyn Write,
) -> Result<Answered> {
    bail!(
        "this build has no downloader: build it with `--features pull`, or use `hf download {} {} \
         --local-dir {}`",
        wanted.repository,
        wanted.file,
        dir.display()
    )
}

#[cfg(feature = "pull")]
use fetching::fetch;

/// Fetching, in builds that can.
#[cfg(feature = "pull")]
mod fetching {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::interrupt;
    use crate::pull::{
        End, Failure, Finished, Identity, Order, Part, Remote, check, check_and_name,
    };

    /// Where the published files are when HF_ENDPOINT does not say.
    const ENDPOINT: &str = "https://huggingface.co";
    /// Times that the file may change on the server while it is fetched.
    const MAX_CHANGES: usize = 3;

    pub(super) fn fetch(
        args: &PullArgs,
        wanted: &Wanted,
        dir: &Path,
        console: &Console,
        out: &mut dyn Write,
    ) -> Result<Answered> {
        let hub = Hub::from_environment();
        let order = Order {
            endpoint: hub.endpoint.clone(),
            repository: wanted.repository.clone(),
            revision: args.revision.clone(),
            file: wanted.file.clone(),
            token: hub.token.clone(),
            dir: dir.to_owned(),
            n_connections: args.connections,
            piece_bytes: args.piece_kib << 10,
            stall: Duration::from_secs(args.stall_timeout),
            n_failures: args.retries,
        };
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the folder {}", dir.display()))?;
        interrupt::watch()?;
        let path = order.path();
        let start = Instant::now();
        if !path.exists()
            && let Some(cached) = hub.cached(&order)
        {
            let Some(finished) = take_from_cache(&order, &cached, console)? else {
                return Ok(Answered::Interrupted);
            };
            return said(args, &order, &finished, 0, start, console, out);
        }
        let remote = Arc::new(Remote::new(&order));
        let mut n_fetched = 0;
        for _ in 0..MAX_CHANGES {
            let identity = identify(&remote, &order)?;
            if let Some(found) = there(&path)? {
                return already_there(args, &order, &identity, found, out);
            }
            let mut part = Part::open(&order, &identity)?;
            let n_kept = part.n_done();
            enough_room(dir, identity.n_bytes - n_kept)?;
            console.note(&format!(
                "{}: {} from {}{}",
                order.name(),
                units::bytes(identity.n_bytes),
                order.endpoint,
                match n_kept {
                    0 => String::new(),
                    n => format!(", {} of it already here", units::bytes(n)),
                }
            ));
            let mut rate = Rate::new(n_kept);
            let end =
                crate::pull::fetch(&remote, &order, &identity, &mut part, &mut |n, trouble| {
                    console.progress(&rate.line(n, identity.n_bytes, trouble));
                });
            console.end_progress();
            n_fetched += part.n_done().saturating_sub(n_kept);
            match end? {
                End::Interrupted => {
                    console.report(&format!(
                        "stopped with {} of {}; the same command goes on from there",
                        units::bytes(part.n_done()),
                        units::bytes(identity.n_bytes)
                    ));
                    return Ok(Answered::Interrupted);
                }
                End::Changed => {
                    console.report("the file changed on the server: beginning anew");
                    part.discard()?;
                }
                End::Complete => {
                    let mut on = checking(console, identity.n_bytes);
                    let finished = check_and_name(&order, &identity, part, &mut on);
                    console.end_progress();
                    let Some(finished) = unless_interrupted(finished)? else {
                        return Ok(Answered::Interrupted);
                    };
                    return said(args, &order, &finished, n_fetched, start, console, out);
                }
            }
        }
        bail!(
            "{} changed {MAX_CHANGES} times on the server while it was fetched: try later",
            order.file
        )
    }

    /// What the environment says about the hub.
    struct Hub {
        endpoint: String,
        token: Option<String>,
        /// Where its own tools keep what they fetch.
        cache: Option<PathBuf>,
    }

    impl Hub {
        fn from_environment() -> Hub {
            let text = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
            let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
            let home = text("HF_HOME")
                .map(PathBuf::from)
                .or_else(|| folders::cache().map(|dir| dir.join("huggingface")));
            let in_file = || {
                let path = home.as_ref()?.join("token");
                std::fs::read_to_string(path).ok()
            };
            let token = text("HF_TOKEN").or_else(in_file);
            let cache = text("HF_HUB_CACHE")
                .map(PathBuf::from)
                .or_else(|| home.map(|dir| dir.join("hub")));
            Hub {
                endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
                token: token
                    .map(|token| token.trim().to_owned())
                    .filter(|token| !token.is_empty()),
                cache,
            }
        }

        /// The file in the cache of the hub's own tools, at the commit that it knows under the
        /// revision's name.
        fn cached(&self, order: &Order) -> Option<PathBuf> {
            let repository = format!("models--{}", order.repository.replace('/', "--"));
            let folder = self.cache.as_ref()?.join(repository);
            let commit = std::fs::read_to_string(folder.join("refs").join(&order.revision));
            let commit = commit.map_or_else(|_| order.revision.clone(), |c| c.trim().to_owned());
            let path = folder.join("snapshots").join(commit).join(&order.file);
            path.canonicalize().ok().filter(|path| path.is_file())
        }
    }

    /// Checks a file of the cache and links it into the folder; `None` when Ctrl+C came first.
    fn take_from_cache(
        order: &Order,
        cached: &Path,
        console: &Console,
    ) -> Result<Option<Finished>> {
        let name = cached.file_name().and_then(|name| name.to_str());
        // The cache names its files by their sums.
        let sha256 = name.filter(|name| crate::sums::is_sha256(name));
        let n_bytes = std::fs::metadata(cached)?.len();
        console.note(&format!(
            "{} is in the cache at {}: using it",
            order.name(),
            cached.display()
        ));
        let checked = check(cached, sha256, &mut checking(console, n_bytes));
        console.end_progress();
        let Some(sums) = unless_interrupted(checked)? else {
            return Ok(None);
        };
        let sums = sums.with_context(|| {
            format!(
                "{}: delete it from the cache, and it is fetched",
                cached.display()
            )
        })?;
        let path = order.path();
        link(cached, &path).with_context(|| format!("cannot link {}", path.display()))?;
        sums.write_beside(&path)?;
        Ok(Some(Finished {
            path,
            n_bytes,
            sha256: sums.sha256,
            is_stated: sha256.is_some(),
        }))
    }

    #[cfg(unix)]
    fn link(from: &Path, to: &Path) -> std::io::Result<()> {
        std::os::unix::fs::symlink(from, to)
    }

    #[cfg(not(unix))]
    fn link(from: &Path, to: &Path) -> std::io::Result<()> {
        std::fs::hard_link(from, to)
    }

    /// Asks the server what the file is, a few times.
    fn identify(remote: &Remote, order: &Order) -> Result<Identity> {
        let mut wait = Duration::from_millis(200);
        let mut n_failures = 0;
        loop {
            let why = match remote.identify() {
                Ok(identity) => return Ok(identity),
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Changed) => "the file changed".to_owned(),
                Err(Failure::Again(why, _)) => why,
            };
            n_failures += 1;
            if n_failures >= order.n_failures.min(5) || interrupt::requested() {
                bail!("cannot ask for {}: {why}; try again later", order.file);
            }
            std::thread::sleep(wait);
            wait *= 2;
        }
    }

    /// The length of a file that exists.
    fn there(path: &Path) -> Result<Option<u64>> {
        match std::fs::metadata(path) {
            Ok(found) => Ok(Some(found.len())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| path.display().to_string()),
        }
    }

    fn already_there(
        args: &PullArgs,
        order: &Order,
        identity: &Identity,
        found: u64,
        out: &mut dyn Write,
    ) -> Result<Answered> {
        let path = order.path();
        if found != identity.n_bytes {
            bail!(
                "{} has {found} bytes, and the file of this name on the server {}: move it away \
                 to fetch that one",
                path.display(),
                identity.n_bytes
            );
        }
        if args.json {
            let report = json!({
                "file": path.display().to_string(), "n_bytes": found,
                "sha256": identity.sha256, "was_there": true, "n_fetched": 0,
            });
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            writeln!(
                out,
                "{} is already there; `ds4 verify` checks it",
                path.display()
            )?;
        }
        Ok(Answered::Complete)
    }

    fn enough_room(dir: &Path, needed: u64) -> Result<()> {
        match free_bytes(dir) {
            Some(free) if free < needed => bail!(
                "{} more are needed, and {} are free in {}: make room, or choose another folder \
                 with --dir DIR",
                units::bytes(needed),
                units::bytes(free),
                dir.display()
            ),
            _ => Ok(()),
        }
    }

    /// The progress of reading a file of `n_bytes` again.
    fn checking(console: &Console, n_bytes: u64) -> impl FnMut(u64) -> Result<()> {
        move |n| {
            if interrupt::requested() {
                bail!(Stopped);
            }
            console.progress(&format!("checking: {} %", n * 100 / n_bytes.max(1)));
            Ok(())
        }
    }

    /// Ctrl+C while a file is read.
    #[derive(Debug)]
    struct Stopped;

    impl std::fmt::Display for Stopped {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("stopped; the same command goes on from there")
        }
    }

    fn unless_interrupted<T>(result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is::<Stopped>() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn said(
        args: &PullArgs,
        order: &Order,
        finished: &Finished,
        n_fetched: u64,
        start: Instant,
        console: &Console,
        out: &mut dyn Write,
    ) -> Result<Answered> {
        if args.json {
            let report = json!({
                "file": finished.path.display().to_string(),
                "n_bytes": finished.n_bytes,
                "sha256": finished.sha256,
                "sum_was_stated": finished.is_stated,
                "was_there": false,
                "n_fetched": n_fetched,
                "seconds": start.elapsed().as_secs_f64(),
            });
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
            return Ok(Answered::Complete);
        }
        writeln!(out, "{}", finished.path.display())?;
        out.flush()?;
        console.report(&format!(
            "{}; SHA-256 {} {}{}",
            units::bytes(finished.n_bytes),
            finished.sha256,
            if finished.is_stated {
                "as stated"
            } else {
                "(none was stated)"
            },
            match order.dir == folders::models().unwrap_or_default() {
                true => "; `ds4` finds it there",
                false => "",
            }
        ));
        Ok(Answered::Complete)
    }

    /// How fast bytes come.
    struct Rate {
        n_start: u64,
        start: Instant,
        /// Bytes that were there at moments of the last seconds.
        recent: std::collections::VecDeque<(Instant, u64)>,
    }

    impl Rate {
        /// Time over which the rate is taken.
        const SPAN: Duration = Duration::from_secs(10);

        fn new(n_start: u64) -> Rate {
            Rate {
                n_start,
                start: Instant::now(),
                recent: [(Instant::now(), n_start)].into(),
            }
        }

        fn line(&mut self, n: u64, n_total: u64, trouble: Option<&str>) -> String {
            let now = Instant::now();
            self.recent.push_back((now, n));
            while self.recent.len() > 2 && now - self.recent[0].0 > Rate::SPAN {
                self.recent.pop_front();
            }
            let (then, n_then) = self.recent[0];
            let rate = (n - n_then) as f64 / (now - then).as_secs_f64().max(1e-3);
            let left = match rate > 0.0 {
                true => {
                    let left = Duration::from_secs_f64((n_total - n) as f64 / rate);
                    format!(", {} left", units::age(left))
                }
                false => String::new(),
            };
            // Trouble is of interest while nothing comes.
            let silent = n == self.n_start && self.start.elapsed() > Duration::from_secs(2);
            let trouble = trouble.filter(|_| rate == 0.0 || silent);
            format!(
                "{} of {} ({} %), {}/s{left}{}",
                units::bytes(n),
                units::bytes(n_total),
                n * 100 / n_total.max(1),
                units::bytes(rate as u64),
                trouble.map_or(String::new(), |t| format!("; {t}"))
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_of_the_list_or_a_file_of_a_repository() {
        let parse = |name, repository| Wanted::parse(name, repository);
        let wanted = |repository: &str, file: &str| Wanted {
            repository: repository.into(),
            file: file.into(),
        };
        let q2 = catalog::find("q2").unwrap().file;
        assert_eq!(parse("q2", None).unwrap(), wanted(REPOSITORY, q2));
        assert_eq!(parse("q2", Some("a/b")).unwrap(), wanted("a/b", q2));
        assert_eq!(
            parse("x.gguf", Some("a/b")).unwrap(),
            wanted("a/b", "x.gguf")
        );
        assert_eq!(
            parse("a/b/c/x.gguf", None).unwrap(),
            wanted("a/b", "c/x.gguf")
        );
        for wrong in [
            "q3",
            "a/x.gguf",
            "a/b/../../x.gguf",
            "a/b/x.bin",
            "a/b/.gguf",
        ] {
            assert!(parse(wrong, None).is_err(), "{wrong}");
        }
        assert!(parse("a/b/x-00001-of-00003.gguf", None).is_err());
    }
}
