//! Arguments of `ds4 kv` as typed.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ds4_engine::store::BUDGET_BYTES;

/// `ds4 kv`.
#[derive(Args, Clone, Debug)]
pub(crate) struct KvArgs {
    #[command(subcommand)]
    pub command: KvCommand,
}

/// What to do with a KV store's folder.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// Show the states of every model: tokens, bytes, age
    List(KvReadArgs),
    /// Read every byte; move damaged files to the folder's quarantine and exit with 1 if there are any
    Verify(KvReadArgs),
    /// Delete what is of no use, then the states of least value, until the rest fits
    Gc(KvGcArgs),
    /// Delete everything; refused while a server uses the folder
    Clear(KvClearArgs),
}

/// Which folder.
#[derive(Args, Clone, Debug)]
pub(crate) struct KvFolderArgs {
    /// The folder that was given to ds4-server under the same name
    #[arg(long, value_name = "DIR")]
    pub kv_disk_dir: PathBuf,
}

/// `ds4 kv list` and `ds4 kv verify`.
#[derive(Args, Clone, Debug)]
pub(crate) struct KvReadArgs {
    #[command(flatten)]
    pub folder: KvFolderArgs,
    /// One JSON document instead of tables
    #[arg(long)]
    pub json: bool,
}

/// `ds4 kv gc`.
#[derive(Args, Clone, Debug)]
pub(crate) struct KvGcArgs {
    #[command(flatten)]
    pub folder: KvFolderArgs,
    /// What may be left
    #[arg(long, value_name = "MIB", default_value_t = BUDGET_BYTES >> 20, value_parser = mebibytes)]
    pub kv_disk_space_mb: u64,
}

/// `ds4 kv clear`.
#[derive(Args, Clone, Debug)]
pub(crate) struct KvClearArgs {
    #[command(flatten)]
    pub folder: KvFolderArgs,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// A number of MiB whose bytes can be counted.
fn mebibytes(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(n) if n <= u64::MAX >> 20 => Ok(n),
        _ => Err(format!("expected a whole number up to {}", u64::MAX >> 20)),
    }
}
