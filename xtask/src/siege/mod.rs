//! What an adversary tried, against a server that is started for it on this machine: bodies that
//! take memory, schemas that never compile, connections that are slow, and signals in the midst of
//! it. Everything is bounded, and every number is printed with the bound that it has.

mod bodies;
mod connections;
mod probe;
mod schemas;
mod signals;

use std::path::PathBuf;
use std::time::Duration;

use crate::load::process::{self, Started};
use probe::Watched;

/// What a siege is given.
struct Options {
    server: Option<PathBuf>,
    only: Option<String>,
    flags: Vec<String>,
}

/// One number of a siege and what it must not exceed.
pub(crate) struct Row {
    attack: &'static str,
    what: String,
    found: f64,
    bound: f64,
    unit: &'static str,
}

/// What was found.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
    /// What is wrong whatever its number.
    wrong: Vec<String>,
}

impl Table {
    pub(crate) fn row(
        &mut self,
        attack: &'static str,
        what: impl Into<String>,
        found: f64,
        bound: f64,
        unit: &'static str,
    ) {
        let what = what.into();
        let row = Row {
            attack,
            what,
            found,
            bound,
            unit,
        };
        println!("{}", row.line());
        self.rows.push(row);
    }

    pub(crate) fn wrong(&mut self, what: String) {
        println!("WRONG: {what}");
        self.wrong.push(what);
    }

    /// Checks that what came is one of what may come.
    pub(crate) fn expect(&mut self, what: &str, found: &[u16], expected: &[u16]) {
        if let Some(status) = found.iter().find(|status| !expected.contains(status)) {
            self.wrong(format!("{what}: {status}, expected one of {expected:?}"));
        }
    }

    /// The numbers of an attack that every attack has.
    fn watched(&mut self, attack: &'static str, watched: &Watched, max_mib: f64) {
        let (n, p99, max) = watched.health();
        self.row(attack, format!("/health, p99 of {n}"), p99, 50.0, "ms");
        self.row(attack, "/health, longest", max, 1000.0, "ms");
        if let Some(peak) = watched.peak_mib {
            self.row(attack, "peak memory", peak, max_mib, "MiB");
        }
        if let Some(after) = watched.after_mib {
            self.row(attack, "memory after it", after, max_mib, "MiB");
        }
        for wrong in &watched.wrong {
            self.wrong(format!("{attack}: {wrong}"));
        }
    }
}

impl Row {
    fn line(&self) -> String {
        let Row {
            attack,
            what,
            found,
            bound,
            unit,
        } = self;
        let verdict = if self.holds() { "" } else { "  EXCEEDED" };
        format!("{attack:<12} {what:<44} {found:>9.1} {unit:<4} at most {bound:>7.0}{verdict}")
    }

    fn holds(&self) -> bool {
        self.found <= self.bound
    }
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        server: None,
        only: None,
        flags: ["--ctx", "8192", "--parallel", "2"]
            .map(str::to_owned)
            .into(),
    };
    while let Some(name) = args.next() {
        if name == "--" {
            options.flags = args.collect();
            return Ok(options);
        }
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--server" => options.server = Some(value.into()),
            "--only" => options.only = Some(value),
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(options)
}

/// What attacks a server: it gets one of its own.
type Attack = fn(Started, &mut Table) -> Result<(), String>;

const ATTACKS: [(&str, Attack); 4] = [
    ("bodies", bodies::run),
    ("schemas", schemas::run),
    ("connections", connections::run),
    ("signals", signals::run),
];

/// Runs the siege; whether the server stood it.
pub(crate) fn run(args: impl Iterator<Item = String>) -> Result<bool, String> {
    let options = options(args)?;
    let server = match &options.server {
        Some(server) => server.clone(),
        None => process::build()?,
    };
    let mut table = Table::default();
    for (name, attack) in ATTACKS {
        if options.only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        attack(Started::of(&server, &options.flags)?, &mut table)?;
    }
    let exceeded = table.rows.iter().filter(|row| !row.holds()).count();
    println!(
        "{} numbers, {exceeded} over their bounds; {} things wrong",
        table.rows.len(),
        table.wrong.len()
    );
    Ok(exceeded == 0 && table.wrong.is_empty())
}

/// Ends a server and says what its log has of panics.
fn end(server: Started, attack: &'static str, table: &mut Table) -> Result<(), String> {
    for panic in server.panics() {
        table.wrong(format!("{attack}: {panic}"));
    }
    let (took, ended_well) = server.stop().map_err(|e| e.to_string())?;
    table.row(attack, "until it ended", took.as_secs_f64(), 10.0, "s");
    if !ended_well {
        table.wrong(format!("{attack}: it did not end well"));
    }
    Ok(())
}

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(120);
