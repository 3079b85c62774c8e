//! `ds4 kv`: what a KV store's folder holds, whether it is whole, and making it smaller. Works
//! beside a running server; only clearing waits until nothing else uses the folder.

use std::io::{self, BufRead as _, IsTerminal as _, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use ds4_engine::store::{ListedModel, ListedPoint, Reason, Verified, clear, gc, list, verify};
use serde_json::{Value, json};

use crate::kv_args::{KvClearArgs, KvCommand, KvGcArgs, KvReadArgs};
use crate::reply_writer::printable;
use crate::units;

/// Runs the command.
///
/// # Errors
/// The folder is no KV store or cannot be used; for `verify`, after the report, something in it is
/// damaged; for `clear`, nobody agreed, or another process uses the folder.
pub(crate) fn run(command: &KvCommand, out: &mut dyn Write) -> Result<()> {
    match command {
        KvCommand::List(args) => show_list(args, out)?,
        KvCommand::Verify(args) => show_verified(args, out)?,
        KvCommand::Gc(args) => collect(args, out)?,
        KvCommand::Clear(args) => clear_all(args, out)?,
    }
    Ok(out.flush()?)
}

fn show_list(args: &KvReadArgs, out: &mut dyn Write) -> Result<()> {
    let dir = &args.folder.kv_disk_dir;
    let models = list(dir)?;
    if args.json {
        let models: Vec<Value> = models.iter().map(model_json).collect();
        return write_json(
            &json!({"folder": dir.to_string_lossy(), "models": models}),
            out,
        );
    }
    let now = SystemTime::now();
    writeln!(out, "{}", shown(dir))?;
    writeln!(out, "  {}", totals(&models))?;
    for model in &models {
        writeln!(
            out,
            "\n{}: {}, {} of {}",
            model.folder,
            units::plural(model.points.len(), "state"),
            units::plural(model.n_blocks, "block"),
            units::mib(model.block_bytes),
        )?;
        if model.points.is_empty() {
            continue;
        }
        writeln!(
            out,
            "  {:>10} {:>7} {:>12}  {:9} {:>8}  state",
            "tokens", "blocks", "own bytes", "saved for", "age"
        )?;
        for point in &model.points {
            // A clock that went back makes nothing older.
            let age = now.duration_since(point.created).unwrap_or_default();
            writeln!(
                out,
                "  {:>10} {:>7} {:>12}  {:9} {:>8}  {}",
                units::count(point.n_tokens as u64),
                units::count(point.n_blocks as u64),
                units::mib(point.n_bytes),
                reason(point.reason),
                units::age(age),
                point.id,
            )?;
        }
    }
    Ok(())
}

/// What all models have together.
fn totals(models: &[ListedModel]) -> String {
    let n_points = models.iter().map(|model| model.points.len()).sum();
    let n_bytes = models.iter().map(|model| {
        let own: u64 = model.points.iter().map(|point| point.n_bytes).sum();
        own + model.block_bytes
    });
    format!(
        "{} of {}, {}",
        units::plural(n_points, "state"),
        units::plural(models.len(), "model"),
        units::mib(n_bytes.sum()),
    )
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Anchor => "anchor",
        Reason::TurnEnd => "turn end",
        Reason::Interval => "interval",
        Reason::Shutdown => "shutdown",
        Reason::Explicit => "request",
        Reason::Block => "block",
    }
}

fn model_json(model: &ListedModel) -> Value {
    let points: Vec<Value> = model.points.iter().map(point_json).collect();
    json!({
        "model": model.folder,
        "n_blocks": model.n_blocks,
        "block_bytes": model.block_bytes,
        "states": points,
    })
}

fn point_json(point: &ListedPoint) -> Value {
    let created = point.created.duration_since(UNIX_EPOCH);
    json!({
        "state": point.id.to_string(),
        "n_tokens": point.n_tokens,
        "n_blocks": point.n_blocks,
        "n_bytes": point.n_bytes,
        "saved_for": reason(point.reason),
        "created_unix": created.unwrap_or_default().as_secs(),
    })
}

fn show_verified(args: &KvReadArgs, out: &mut dyn Write) -> Result<()> {
    let dir = &args.folder.kv_disk_dir;
    let verified = verify(dir)?;
    let Verified {
        n_good,
        n_bytes,
        damaged,
        incomplete,
    } = &verified;
    if args.json {
        let of = |path: &Path| path.to_string_lossy().into_owned();
        let damaged: Vec<Value> = damaged
            .iter()
            .map(|(path, why)| json!({"file": of(path), "why": why}))
            .collect();
        let incomplete: Vec<String> = incomplete.iter().map(|path| of(path)).collect();
        let report = json!({
            "folder": of(dir),
            "n_good": n_good,
            "n_bytes": n_bytes,
            "damaged": damaged,
            "incomplete": incomplete,
        });
        write_json(&report, out)?;
    } else {
        writeln!(out, "{}", shown(dir))?;
        writeln!(
            out,
            "  {} of {} as they were written",
            units::plural(*n_good, "file"),
            units::mib(*n_bytes),
        )?;
        for (path, why) in damaged {
            writeln!(out, "  damaged: {}: {}", shown(path), printable(why))?;
        }
        for path in incomplete {
            writeln!(out, "  removed: {}: a block of it is gone", shown(path))?;
        }
    }
    out.flush()?;
    if damaged.is_empty() && incomplete.is_empty() {
        return Ok(());
    }
    bail!(
        "{}: {} damaged and now in its folder quarantine, {} without a block removed; what they \
         held is computed again when it is wanted, and `ds4 kv gc` deletes the quarantine; if it \
         happens again, doubt the disk",
        dir.display(),
        units::plural(damaged.len(), "file"),
        units::plural(incomplete.len(), "state"),
    );
}

fn collect(args: &KvGcArgs, out: &mut dyn Write) -> Result<()> {
    let dir = &args.folder.kv_disk_dir;
    let budget_bytes = args.kv_disk_space_mb << 20;
    let collected = gc(dir, budget_bytes)?;
    writeln!(
        out,
        "{}: {} freed, {} left",
        shown(dir),
        units::mib(collected.freed_bytes),
        units::mib(collected.left_bytes),
    )?;
    if collected.left_bytes > budget_bytes {
        writeln!(
            out,
            "  more than {}: what is young or in use stays",
            units::mib(budget_bytes)
        )?;
    }
    Ok(())
}

fn clear_all(args: &KvClearArgs, out: &mut dyn Write) -> Result<()> {
    let dir = &args.folder.kv_disk_dir;
    // A folder that is no store is refused before anybody is asked.
    let models = list(dir)?;
    if !args.yes && !agreed(dir, &totals(&models))? {
        writeln!(out, "nothing was deleted")?;
        return Ok(());
    }
    let freed_bytes = clear(dir)?;
    writeln!(out, "{}: {} freed", shown(dir), units::mib(freed_bytes))?;
    Ok(())
}

/// Asks the person at the terminal.
fn agreed(dir: &Path, totals: &str) -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("nothing was deleted: give --yes, as there is no terminal at which to ask");
    }
    eprint!("Delete {totals} in {}? [y/N] ", shown(dir));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A path as a terminal may see it.
fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy()).into_owned()
}

fn write_json(document: &Value, out: &mut dyn Write) -> Result<()> {
    let mut text = serde_json::to_string_pretty(document)?;
    text.push('\n');
    Ok(out.write_all(text.as_bytes())?)
}
