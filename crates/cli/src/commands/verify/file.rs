//! `ds4 verify FILE`: its sums where they are known, its table, and every block of it.

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use ds4_formats::GgmlType;
use ds4_formats::gguf::{Gguf, TensorSpec};
use ds4_formats::quant::decode_row;
use ds4_model::{Geometry, weights};
use serde_json::json;

use super::{go_on, write_json};
use crate::args::VerifyArgs;
use crate::console::Console;
use crate::reply_writer::printable;
use crate::sums::{Sums, is_sha256};
use crate::units;

/// Bytes of a tensor that one thread takes at once.
const TASK_BYTES: u64 = 4 << 20;
/// Findings that are listed; the others are counted.
const MAX_LISTED: usize = 20;
/// A run of zeros in a matrix at least so long was never written, bytes.
const ZEROS_BYTES: u64 = 1 << 16;
/// Time between two looks at what the threads do.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Runs the check.
///
/// # Errors
/// The file is damaged, after the report, or cannot be read.
pub(super) fn run(
    path: &Path,
    args: &VerifyArgs,
    console: &Console,
    out: &mut dyn Write,
) -> Result<()> {
    let gguf = Gguf::open(path)?;
    let n_bytes = gguf.file_bytes();
    let mut findings = Vec::new();
    let is_model = gguf.spec("token_embd.weight").is_some();
    if is_model {
        let checked = Geometry::from_metadata(gguf.metadata())
            .map_err(anyhow::Error::from)
            .and_then(|geometry| Ok(weights::check(&geometry, &|name| gguf.tensor(name))?));
        if let Err(error) = checked {
            findings.push(crate::error::one_line(&error));
        }
    }

    let known = Known::of(path, args.sha256.as_deref())?;
    let mut sums = None;
    if gguf.shards().len() == 1 && (known.is_some() || args.write_sums) {
        let found = Sums::of(path, &gguf, &mut |n| {
            go_on()?;
            console.progress(&format!("sums: {} %", n * 100 / n_bytes.max(1)));
            Ok(())
        })?;
        console.end_progress();
        match &known {
            Some(Known::Sums(expected)) => {
                findings.extend(expected.differences(&found).iter().map(ToString::to_string));
            }
            Some(Known::Sha256(expected, from)) if found.sha256 != *expected => {
                findings.push(format!(
                    "the file's SHA-256 is {}, expected {expected} by {from}",
                    found.sha256
                ));
            }
            _ => {}
        }
        sums = Some(found);
    }
    findings.extend(check_blocks(&gguf, console)?);
    console.end_progress();

    let is_good = findings.is_empty();
    let compared = match &known {
        None => None,
        Some(Known::Sums(_)) => Some("the file of sums".to_owned()),
        Some(Known::Sha256(_, from)) => Some(from.clone()),
    };
    if args.write_sums && is_good {
        match &sums {
            Some(sums) => sums.write_beside(path)?,
            None => bail!("sums are kept for models in one file, and this one is in several"),
        }
    }
    if args.json {
        let report = json!({
            "file": path.display().to_string(),
            "n_bytes": n_bytes,
            "n_tensors": gguf.tensors().len(),
            "sha256": sums.as_ref().map(|s| &s.sha256),
            "compared_with": compared,
            "findings": findings,
            "is_good": is_good,
        });
        write_json(&report, out)?;
    } else {
        writeln!(out, "{}", path.display())?;
        let n_tensors = gguf.tensors().len();
        writeln!(
            out,
            "  {} of {} read",
            units::bytes(n_bytes),
            units::plural(n_tensors, "tensor")
        )?;
        if let Some(sums) = &sums {
            writeln!(out, "  SHA-256 {}", sums.sha256)?;
        }
        match &compared {
            Some(with) => writeln!(out, "  compared with {with}")?,
            None => writeln!(
                out,
                "  no sums of it are known: a wrong byte that still decodes to a number would not \
                 be seen; --sha256 HEX compares with one"
            )?,
        }
        for finding in findings.iter().take(MAX_LISTED) {
            writeln!(out, "  wrong: {}", printable(finding))?;
        }
        if findings.len() > MAX_LISTED {
            writeln!(out, "  and {} more", findings.len() - MAX_LISTED)?;
        }
        if is_good {
            writeln!(out, "  good")?;
        }
        out.flush()?;
    }
    match findings.first() {
        None => Ok(()),
        Some(first) => bail!(
            "{}: {}: {first}; fetch or make the file again",
            path.display(),
            match findings.len() {
                1 => "1 thing is wrong".to_owned(),
                n => format!("{n} things are wrong"),
            }
        ),
    }
}

/// What the file should be.
enum Known {
    /// Everything about it.
    Sums(Box<Sums>),
    /// Its SHA-256, and who says so.
    Sha256(String, String),
}

impl Known {
    /// By what the user says, else by what lies beside the file.
    fn of(path: &Path, flag: Option<&str>) -> Result<Option<Known>> {
        if let Some(text) = flag {
            let text = text.trim().to_lowercase();
            if !is_sha256(&text) {
                bail!("--sha256 {text:?}: expected 64 hexadecimal digits");
            }
            return Ok(Some(Known::Sha256(text, "--sha256".to_owned())));
        }
        if let Some(sums) = Sums::beside(path)? {
            return Ok(Some(Known::Sums(Box::new(sums))));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let beside = |ending: &str| path.with_file_name(format!("{name}{ending}"));
        // As `sha256sum` writes it.
        if let Ok(text) = fs::read_to_string(beside(".sha256"))
            && let Some(sum) = text.split_whitespace().next()
            && is_sha256(sum)
        {
            return Ok(Some(Known::Sha256(
                sum.to_lowercase(),
                format!("{name}.sha256"),
            )));
        }
        // The hub's own tools keep the sum of what they fetched: as the second line of a file
        // beside it, or as the name of the file in their cache.
        let download = format!(".cache/huggingface/download/{name}.metadata");
        if let Ok(text) = fs::read_to_string(path.with_file_name(download))
            && let Some(sum) = text.lines().nth(1)
            && is_sha256(sum.trim())
        {
            let from = "the record of the download".to_owned();
            return Ok(Some(Known::Sha256(sum.trim().to_lowercase(), from)));
        }
        if let Ok(real) = path.canonicalize()
            && let Some(sum) = real.file_name().and_then(|name| name.to_str())
            && is_sha256(sum)
        {
            let from = "the name of the file in the cache".to_owned();
            return Ok(Some(Known::Sha256(sum.to_lowercase(), from)));
        }
        Ok(None)
    }
}

/// Rows of a tensor.
struct Task<'a> {
    spec: &'a TensorSpec,
    rows: Range<u64>,
}

/// Decodes everything, on all cores; says what is no number and what was never written.
fn check_blocks(gguf: &Gguf, console: &Console) -> Result<Vec<String>> {
    let mut tasks = Vec::new();
    for spec in gguf.tensors() {
        let n_rows: u64 = spec.ne[1..].iter().product();
        let row_bytes = spec.n_bytes / n_rows;
        let step = (TASK_BYTES / row_bytes.max(1)).max(1);
        let mut first = 0;
        while first < n_rows {
            let rows = first..(first + step).min(n_rows);
            first = rows.end;
            tasks.push(Task { spec, rows });
        }
    }
    let n_total: u64 = tasks.iter().map(|t| t.rows.end - t.rows.start).sum();
    let (next, n_done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let findings = Mutex::new(Vec::new());
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut stopped = Ok(());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..n_threads)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(task) = tasks.get(i) else { return };
                        if let Some(finding) = check_task(gguf, task) {
                            let mut findings = findings.lock().unwrap_or_else(|e| e.into_inner());
                            findings.push((i, finding));
                        }
                        n_done.fetch_add(task.rows.end - task.rows.start, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        while !workers.iter().all(|w| w.is_finished()) {
            std::thread::sleep(LOOK_INTERVAL);
            let done = n_done.load(Ordering::Relaxed);
            console.progress(&format!("blocks: {} %", done * 100 / n_total.max(1)));
            stopped = go_on();
            if stopped.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
    stopped?;
    let mut findings = findings.into_inner().unwrap_or_else(|e| e.into_inner());
    findings.sort();
    Ok(findings.into_iter().map(|(_, finding)| finding).collect())
}

/// The first thing that is wrong in some rows.
fn check_task(gguf: &Gguf, task: &Task<'_>) -> Option<String> {
    let spec = task.spec;
    let row_len = spec.ne[0] as usize;
    let row_bytes = spec.ty.row_bytes(row_len)?;
    let data = gguf.data(spec);
    let (first, end) = (task.rows.start as usize, task.rows.end as usize);
    let bytes = &data[first * row_bytes..end * row_bytes];
    let place = |row: usize| {
        let n_out = spec.ne.get(1).map_or(1, |n| *n as usize);
        match spec.ne.len() {
            0..=2 => format!("row {row}"),
            _ => format!("expert {}, row {}", row / n_out, row % n_out),
        }
    };
    let is_weight = spec.ty != GgmlType::I32 && spec.ne.len() > 1;
    if is_weight && bytes.len() as u64 >= ZEROS_BYTES {
        let zeros = bytes
            .chunks_exact(ZEROS_BYTES as usize)
            .position(|chunk| chunk.iter().all(|&b| b == 0));
        if let Some(i) = zeros {
            let at = i as u64 * ZEROS_BYTES;
            return Some(format!(
                "{}: {} bytes of zeros at byte {} of the file: a part that was never written",
                spec.name,
                ZEROS_BYTES,
                spec.offset + (first * row_bytes) as u64 + at
            ));
        }
    }
    if spec.ty == GgmlType::I32 {
        return None;
    }
    let mut values = vec![0.0; row_len];
    for (i, row) in bytes.chunks_exact(row_bytes).enumerate() {
        decode_row(spec.ty, row, &mut values);
        if let Some(j) = values.iter().position(|v| !v.is_finite()) {
            let block = j / spec.ty.block_len();
            let offset = spec.offset
                + ((first + i) * row_bytes) as u64
                + (block * spec.ty.block_bytes()) as u64;
            return Some(format!(
                "{}: {}, value {j} is {}; its {} block is at byte {offset} of the file",
                spec.name,
                place(first + i),
                values[j],
                spec.ty
            ));
        }
    }
    None
}
