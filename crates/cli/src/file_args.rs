//! Arguments of the commands that fetch, check, make and judge files.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::args::{EngineArgs, count, tokens};

/// `ds4 inspect`.
#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// The GGUF file; of a split model the first
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// One JSON document instead of tables
    #[arg(long)]
    pub json: bool,
    /// Memory bandwidth you measured, in GB/s: says how long a token takes at least
    #[arg(long, value_name = "GB/S", value_parser = bandwidth)]
    pub bandwidth: Option<f64>,
}

/// `ds4 pull`.
#[derive(Args, Clone, Debug)]
pub(crate) struct PullArgs {
    /// What to fetch: a name of the list, or OWNER/REPOSITORY/FILE.gguf [default: show the list]
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Where the file goes [default: the folder in which ds4 looks for models]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Repository of the file
    #[arg(long, value_name = "OWNER/NAME")]
    pub repository: Option<String>,
    /// Branch, tag or commit
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub revision: String,
    /// Connections at once
    #[arg(long, value_name = "N", value_parser = connections, default_value_t = 8)]
    pub connections: usize,
    /// Silence after which a connection is given up
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600), default_value_t = 30)]
    pub stall_timeout: u64,
    /// Failures in a row, with no byte between them, after which the pull is given up
    #[arg(long, value_name = "N", value_parser = count, default_value_t = 20)]
    pub retries: usize,
    /// Bytes that one request asks for
    #[arg(long, value_name = "KIB", value_parser = clap::value_parser!(u64).range(1..=1 << 30), default_value_t = 64 << 10, hide = true)]
    pub piece_kib: u64,
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// `ds4 eval`.
#[derive(Args, Clone, Debug)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The text to predict; a .json file holds token ids
    #[arg(value_name = "TEXT")]
    pub text: Option<PathBuf>,
    /// Lines of JSON to score instead: {"prompt", "answer"}, or {"prompt", "choices", "answer"} with
    /// the index of the right choice
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub lines: Option<PathBuf>,
    /// Render the prompts of the lines as what a user says
    #[arg(long, requires = "lines")]
    pub chat: bool,
    /// Tokens of a piece of the text, the one that begins every prompt included
    #[arg(long, value_name = "N", value_parser = tokens, default_value_t = 512)]
    pub chunk_tokens: usize,
    /// Most pieces or lines [default: all]
    #[arg(long, value_name = "N", value_parser = count)]
    pub chunks: Option<usize>,
    /// Store the likeliest tokens of every position, for --kl
    #[arg(long, value_name = "FILE")]
    pub save_logits: Option<PathBuf>,
    /// Compare with what --save-logits stored of another model, quant or backend
    #[arg(long, value_name = "FILE")]
    pub kl: Option<PathBuf>,
    /// Keep what is done, as CSV; the same command goes on from there
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Draw the divergence, or without --kl the negative log-likelihood, by position, as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// `ds4 imatrix`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ImatrixArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The text
    #[arg(value_name = "TEXT")]
    pub text: PathBuf,
    /// The file to write, in llama.cpp's format; what is there of the same text goes on
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
    /// Tokens of a piece, the one that begins every prompt included
    #[arg(long, value_name = "N", value_parser = tokens, default_value_t = 512)]
    pub chunk_tokens: usize,
    /// Most pieces that are read [default: all of the text]
    #[arg(long, value_name = "N", value_parser = count)]
    pub chunks: Option<usize>,
    /// Time between two writings of what is counted so far; 0 writes after every piece
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub save_seconds: u64,
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// `ds4 quantize`.
#[derive(Args, Clone, Debug)]
pub(crate) struct QuantizeArgs {
    /// A folder of safetensors with config.json and tokenizer.json, or a GGUF file
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// The file to make
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
    /// Types of the tensors, as in the published files
    #[arg(long, value_enum, value_name = "NAME")]
    pub mix: MixArg,
    /// Another type for the tensors whose names match; * stands for anything, the last match wins
    #[arg(long = "type", value_name = "PATTERN=TYPE")]
    pub types: Vec<String>,
    /// Importances of the columns, as `ds4 imatrix` or llama.cpp writes them
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// Take the draft blocks of a checkpoint instead of the model
    #[arg(long)]
    pub draft: bool,
    /// Threads [default: the machine's cores]
    #[arg(short, long, value_name = "N", value_parser = count)]
    pub threads: Option<usize>,
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// Types of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MixArg {
    /// Routed experts IQ2_XXS and Q2_K
    Q2,
    /// As q2, the last six layers' experts Q4_K
    #[value(name = "q2-q4")]
    Q2Q4,
    /// Routed experts Q4_K
    Q4,
    /// Routed experts MXFP4, bit for bit as published
    Mxfp4,
    /// As in a GGUF source
    Keep,
}

/// `ds4 verify`.
#[derive(Args, Clone, Debug)]
pub(crate) struct VerifyArgs {
    /// A GGUF file whose bytes are checked; without it and --vectors, the backend is tested
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// SHA-256 that the file should have
    #[arg(long, value_name = "HEX", requires = "file")]
    pub sha256: Option<String>,
    /// Keep the sums of a file that was found good beside it
    #[arg(long, requires = "file")]
    pub write_sums: bool,
    /// Test the backend with the built-in model alone, not every op at the widths of Flash
    #[arg(long, conflicts_with_all = ["file", "vectors", "recall"])]
    pub quick: bool,
    /// Ask the model for what stands far back in texts of so many tokens, and to go on with a
    /// passage that stands there [default: 11000,60000,200000]
    #[arg(
        long, value_name = "TOKENS,...", num_args = 0..=1, require_equals = true,
        default_missing_value = "", conflicts_with_all = ["file", "vectors"]
    )]
    pub recall: Option<String>,
    /// A folder of the publisher's continuations, which the model should agree with
    #[arg(long, value_name = "DIR")]
    pub vectors: Option<PathBuf>,
    /// Least share of their tokens, or of what --recall asks, that has to be right
    #[arg(long, value_name = "SHARE", conflicts_with = "file", value_parser = share, default_value_t = 0.0)]
    pub min_agreement: f64,
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// A number of connections that a server bears.
fn connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=64) => Ok(n),
        _ => Err("expected a whole number from 1 to 64".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if (0.0..=1.0).contains(&n) => Ok(n),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

fn bandwidth(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n.is_finite() && n > 0.0 => Ok(n),
        _ => Err("expected a positive number".to_owned()),
    }
}
