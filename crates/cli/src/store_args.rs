//! Flags of `ds4-server` for the folder that keeps states.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result};
use ds4_engine::store::{
    self, Codec, KEEP_FREE_BYTES, StoreError, StoreOptions, WRITE_BUDGET_BYTES_PER_DAY,
};

/// How the folder of `--kv-disk-dir` is used.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StoreArgs {
    /// GiB that may be written there in a day, after which only the most useful states are kept
    #[arg(
        long,
        value_name = "GIB",
        default_value_t = WRITE_BUDGET_BYTES_PER_DAY >> 30,
        hide_short_help = true
    )]
    kv_write_budget_gb_per_day: u64,
    /// MiB of the volume that stay free, or a twentieth of it where that is less
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = KEEP_FREE_BYTES >> 20,
        hide_short_help = true
    )]
    kv_keep_free_mb: u64,
    /// Refuse to start when another server uses that folder, and keep others out of it
    #[arg(long, requires = "kv_disk_dir", hide_short_help = true)]
    kv_exclusive: bool,
    /// How the files there are compressed
    #[arg(
        long,
        value_enum,
        value_name = "CODEC",
        default_value_t,
        hide_short_help = true
    )]
    kv_codec: CodecArg,
    /// Forget at the start what that folder holds
    #[arg(long, requires = "kv_disk_dir")]
    kv_clear: bool,
    /// Keep nothing on disk, whatever --kv-disk-dir says
    #[arg(long)]
    no_kv_disk: bool,

    // What the C original has for its own files. Its scripts keep working; there is nothing here
    // that these numbers could mean.
    #[arg(long, value_name = "N", hide = true)]
    kv_cache_cold_max_tokens: Option<u64>,
    #[arg(long, value_name = "N", hide = true)]
    kv_cache_continued_interval_tokens: Option<u64>,
    #[arg(long, value_name = "N", hide = true)]
    kv_cache_boundary_trim_tokens: Option<u64>,
    #[arg(long, value_name = "N", hide = true)]
    kv_cache_boundary_align_tokens: Option<u64>,
    #[arg(long, hide = true)]
    kv_cache_reject_different_quant: bool,
}

/// How files are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum CodecArg {
    /// By zstd
    #[default]
    Zstd,
    /// Not at all
    None,
}

impl StoreArgs {
    /// The folder to use, where `--kv-disk-dir` says `folder`, emptied if that is asked for.
    ///
    /// # Errors
    /// A folder that cannot be emptied.
    pub(crate) fn folder<'a>(&self, folder: Option<&'a Path>) -> Result<Option<&'a Path>> {
        let Some(folder) = folder.filter(|_| !self.no_kv_disk) else {
            return Ok(None);
        };
        if self.kv_clear {
            match store::clear(folder) {
                // Nothing was kept there.
                Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                cleared => {
                    cleared.with_context(|| format!("--kv-clear {}", folder.display()))?;
                }
            }
        }
        Ok(Some(folder))
    }

    /// What of `options` these flags decide.
    pub(crate) fn apply(&self, options: &mut StoreOptions) {
        options.write_budget_bytes_per_day =
            self.kv_write_budget_gb_per_day.saturating_mul(1 << 30);
        options.keep_free_bytes = self.kv_keep_free_mb.saturating_mul(1 << 20);
        options.exclusive = self.kv_exclusive;
        options.codec = match self.kv_codec {
            CodecArg::Zstd => Codec::Zstd,
            CodecArg::None => Codec::None,
        };
    }

    /// The flags that have no meaning here and were given.
    pub(crate) fn without_effect(&self) -> Vec<&'static str> {
        [
            (
                "--kv-cache-cold-max-tokens",
                self.kv_cache_cold_max_tokens.is_some(),
            ),
            (
                "--kv-cache-continued-interval-tokens",
                self.kv_cache_continued_interval_tokens.is_some(),
            ),
            (
                "--kv-cache-boundary-trim-tokens",
                self.kv_cache_boundary_trim_tokens.is_some(),
            ),
            (
                "--kv-cache-boundary-align-tokens",
                self.kv_cache_boundary_align_tokens.is_some(),
            ),
            (
                "--kv-cache-reject-different-quant",
                self.kv_cache_reject_different_quant,
            ),
        ]
        .into_iter()
        .filter_map(|(name, is_given)| is_given.then_some(name))
        .collect()
    }
}
