//! Arguments as typed. [`crate::options`] resolves and checks them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::kv_args::KvArgs;

pub(crate) use crate::file_args::{
    EvalArgs, ImatrixArgs, InspectArgs, MixArg, PullArgs, QuantizeArgs, VerifyArgs,
};

/// What `--help` ends with.
const EXAMPLES: &str = "\
Examples:
  ds4                                       a conversation; /help lists its commands
  ds4 \"What is a monad?\"                    one answer
  git diff | ds4 -p \"Review this change.\"   standard input goes before the question
  ds4 -m FILE --ctx 100k --nothink -p \"Hi\"  a model of your own, a long context, no reasoning
  ds4 inspect FILE                          what a model file holds and whether it fits here";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "ds4",
    version = crate::version::SHORT,
    long_version = crate::version::LONG,
    about = "Talk to DeepSeek V4 Flash on this machine",
    long_about = "Talk to DeepSeek V4 Flash on this machine.\n\n\
        With a question, -p or --prompt-file, or with text on standard input, ds4 answers once. \
        On a terminal without a question it holds a conversation; /help lists its commands.",
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_precedence_over_arg = true
)]
pub(crate) struct Cli {
    /// Asking, once or in a conversation.
    #[command(flatten)]
    pub ask: AskArgs,
    /// Everything else.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what a GGUF file holds, what a token costs, and what fits in memory
    Inspect(InspectArgs),
    /// Write the next-token logits at every position of a token list
    Logits(LogitsArgs),
    /// Tokenize, detokenize, render or parse JSON lines from stdin to stdout
    Text(TextArgs),
    /// Measure prefill and decode at growing contexts, as CSV
    Bench(BenchArgs),
    /// Fetch a published model file, or list them with what fits here
    Pull(PullArgs),
    /// Measure how well a model predicts a text, how far it is from another, how it scores answers
    Eval(EvalArgs),
    /// Count what the columns of a model's matrices are multiplied with while it reads a text
    Imatrix(ImatrixArgs),
    /// Make a GGUF file from the publisher's checkpoint or from another GGUF file
    Quantize(QuantizeArgs),
    /// Check a file's bytes, a model's answers, or this machine
    Verify(VerifyArgs),
    /// List, check, shrink or clear the folder in which ds4-server keeps states
    Kv(KvArgs),
    /// Hold a conversation, as ds4 alone does on a terminal
    #[command(hide = true)]
    Chat(Box<AskArgs>),
    /// Answer a question, as ds4 alone does with one
    #[command(hide = true)]
    Run(Box<AskArgs>),
    /// Serve the model over HTTP; the same as ds4-server
    #[command(disable_help_flag = true)]
    Serve(ServeArgs),
    /// Print the completions of a shell for ds4 or ds4-server
    Completions(CompletionsArgs),
    /// Write the manual pages of ds4 and its commands
    Man(ManArgs),
    /// Put completions and manual pages where the shells and man look
    Setup(SetupArgs),
}

/// `ds4 serve`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServeArgs {
    /// Flags of ds4-server
    #[arg(
        value_name = "FLAGS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub flags: Vec<OsString>,
}

/// `ds4 completions`.
#[derive(Args, Clone, Debug)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: clap_complete::Shell,
    /// The program whose arguments are completed
    #[arg(long, value_enum, value_name = "NAME", default_value_t)]
    pub program: ProgramArg,
}

/// A program of this project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgramArg {
    /// The program for the terminal
    #[default]
    #[value(name = "ds4")]
    Ds4,
    /// The server
    #[value(name = "ds4-server")]
    Server,
}

/// `ds4 man`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ManArgs {
    /// The folder in which the pages are written; it is made if it is not there
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

/// `ds4 setup`.
#[derive(Args, Clone, Debug)]
pub(crate) struct SetupArgs {
    /// Write below DIR/share, as packages do [default: the folders of this user]
    #[arg(long, value_name = "DIR")]
    pub prefix: Option<PathBuf>,
}

/// Which file, and what runs it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model and machine")]
pub(crate) struct EngineArgs {
    /// Model file; without it $DS4_MODEL, then ./ds4flash.gguf, the first in ./gguf and the
    /// first of the user's models, then the built-in small model
    #[arg(short, long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// What computes
    #[arg(long, value_enum, value_name = "NAME", default_value_t)]
    pub backend: BackendArg,
    /// Part of the name of the GPU that is taken through Metal or Vulkan, also of one that the processor
    /// plays [default: the best]
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub gpu: Option<String>,
    /// What that GPU is taken not to have: subgroups, f16, matrices, integers, lanes=N, ...
    #[arg(
        long,
        value_name = "WHAT[,WHAT]",
        value_delimiter = ',',
        hide_short_help = true
    )]
    pub gpu_lacks: Vec<String>,
    /// Threads of the CPU backend [default: the machine's cores]
    #[arg(short, long, value_name = "N", value_parser = count)]
    pub threads: Option<usize>,
    /// Kernels of the CPU backend, for comparison [default: the fastest that this CPU has]
    #[arg(long, value_enum, value_name = "PATH", hide_short_help = true)]
    pub simd: Option<SimdArg>,
    #[command(flatten)]
    pub others: OtherNames,
}

/// Flags by which other programs name the backend, and what those programs need to be told and
/// this one finds out. [`crate::other_names`] says what becomes of each.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct OtherNames {
    #[arg(long, hide = true, group = "device", conflicts_with = "backend")]
    pub cpu: bool,
    #[arg(long, hide = true, group = "device", conflicts_with = "backend")]
    pub cuda: bool,
    #[arg(long, hide = true, group = "device", conflicts_with = "backend")]
    pub metal: bool,
    /// Also `-ngl`.
    #[arg(
        long,
        hide = true,
        value_name = "N",
        alias = "gpu-layers",
        allow_hyphen_values = true
    )]
    pub n_gpu_layers: Option<String>,
    #[arg(long, hide = true, value_name = "FILE")]
    pub mtp: Option<PathBuf>,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendArg {
    /// The NVIDIA device when there is one and the model fits it, else another GPU, else the CPU
    #[default]
    Auto,
    /// The CPU kernels
    Cpu,
    /// An NVIDIA device
    Cuda,
    /// Any GPU, through Metal or Vulkan
    #[value(aliases = ["metal", "vulkan"])]
    Wgpu,
    /// The scalar meaning of every op: slow, for comparison
    Reference,
}

/// Kernels of the CPU backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SimdArg {
    /// Portable code
    Scalar,
    /// x86-64 with AVX2
    Avx2,
    /// x86-64 with AVX-512
    Avx512,
    /// 64-bit Arm
    Neon,
}

/// Asking.
#[derive(Args, Clone, Debug)]
pub(crate) struct AskArgs {
    /// The question
    #[arg(value_name = "QUESTION", conflicts_with_all = ["prompt", "prompt_file"])]
    pub question: Option<String>,
    /// The question; - is standard input, and what else stands there goes before the question
    #[arg(
        short,
        long,
        value_name = "TEXT",
        conflicts_with = "prompt_file",
        allow_hyphen_values = true
    )]
    pub prompt: Option<String>,
    /// A file that holds the question; - is standard input
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
    /// System text; also -sys
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,

    #[command(flatten)]
    pub engine: EngineArgs,
    /// Context in tokens, such as 32k: prompt and reply together [default: what fits in memory,
    /// up to 32768]
    #[arg(short, long, value_name = "N", value_parser = tokens, help_heading = "Model and machine")]
    pub ctx: Option<usize>,
    /// Most rows of one prefill step [default: what suits the device]
    #[arg(long, value_name = "N", value_parser = count, hide_short_help = true, help_heading = "Model and machine")]
    pub chunk: Option<usize>,

    /// Most tokens of a reply; -1 is no limit [default: up to the end of the context]
    #[arg(
        short = 'n',
        long = "tokens",
        value_name = "N",
        value_parser = reply_tokens,
        allow_negative_numbers = true,
        help_heading = "Reply"
    )]
    pub tokens: Option<usize>,
    /// Sampling temperature; 0 is greedy
    #[arg(
        long,
        value_name = "T",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Reply"
    )]
    pub temp: f32,
    /// Sample among the K likeliest tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Reply")]
    pub top_k: usize,
    /// Sample among the likeliest tokens that have this share of the probability
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Reply"
    )]
    pub top_p: f32,
    /// Drop tokens less likely than this share of the likeliest
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.05,
        allow_negative_numbers = true,
        help_heading = "Reply"
    )]
    pub min_p: f32,
    /// Make sampling repeatable [default: different every time]
    #[arg(long, value_name = "N", help_heading = "Reply")]
    pub seed: Option<u64>,

    /// Reason before answering (the default)
    #[arg(long, group = "thinking", help_heading = "Thinking")]
    pub think: bool,
    /// Answer at once
    #[arg(long, group = "thinking", help_heading = "Thinking")]
    pub nothink: bool,
    /// Reason with maximum effort; needs a large context (see --think-max-min-ctx)
    #[arg(long, group = "thinking", help_heading = "Thinking")]
    pub think_max: bool,
    /// Effort of --think
    #[arg(
        long,
        value_enum,
        value_name = "TIER",
        default_value_t,
        hide_short_help = true,
        help_heading = "Thinking"
    )]
    pub default_effort: EffortArg,
    /// Smallest context in which --think-max is not lowered to --think; 0 is any
    #[arg(
        long,
        value_name = "N",
        default_value_t = 393_216,
        hide_short_help = true,
        help_heading = "Thinking"
    )]
    pub think_max_min_ctx: usize,
    /// Which release's effort prefixes the model was trained with
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        default_value_t,
        hide_short_help = true,
        help_heading = "Thinking"
    )]
    pub prompt_revision: RevisionArg,
    /// Write the reasoning to standard output also when it is not a terminal
    #[arg(long, help_heading = "Thinking")]
    pub show_reasoning: bool,

    /// Keep nothing of a conversation on disk
    #[arg(long, help_heading = "Output")]
    pub private: bool,
    /// One JSON document instead of text: the answer, its reasoning, counts and times
    #[arg(long, conflicts_with_all = ["dump_tokens", "dump_logprobs"], help_heading = "Output")]
    pub json: bool,
    /// Print the ids and pieces of the rendered prompt, and exit
    #[arg(long, hide_short_help = true, help_heading = "Output")]
    pub dump_tokens: bool,
    /// Write the likeliest tokens of every step to a JSON file
    #[arg(
        long,
        value_name = "FILE",
        hide_short_help = true,
        help_heading = "Output"
    )]
    pub dump_logprobs: Option<PathBuf>,
    /// How many of them
    #[arg(long, value_name = "K", value_parser = count, requires = "dump_logprobs", default_value = "20", hide_short_help = true, help_heading = "Output")]
    pub logprobs_top_k: usize,

    #[command(flatten)]
    pub verbosity: VerbosityArgs,
}

/// How much goes to stderr.
#[derive(Args, Clone, Copy, Debug, Default)]
#[command(next_help_heading = "Output")]
pub(crate) struct VerbosityArgs {
    /// Say nothing but errors on standard error
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Report the memory plan and progress also when standard error is not a terminal
    #[arg(short, long)]
    pub verbose: bool,
}

/// Effort of thinking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum EffortArg {
    /// Short
    Low,
    /// As the hosted service
    #[default]
    High,
    /// As --think-max, at any context
    Max,
}

/// Release of the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum RevisionArg {
    /// By the file's name and metadata
    #[default]
    Auto,
    /// The first release
    Preview,
    /// The release of 31 July
    #[value(name = "0731")]
    R0731,
}

/// `ds4 logits`.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("input").required(true))]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Token ids
    #[arg(long, value_name = "IDS", value_delimiter = ',', group = "input")]
    pub tokens: Vec<u32>,
    /// A file of token ids: a JSON array, an object with such an array under "ids", or numbers
    /// separated by commas or white space
    #[arg(long, value_name = "FILE", group = "input")]
    pub tokens_file: Option<PathBuf>,
    /// Rows of each step; of a list the last size repeats
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', value_parser = count, default_value = "512")]
    pub chunk: Vec<usize>,
    /// Keep cache rows in f32, for comparison with implementations that do not round them
    #[arg(long)]
    pub no_cache_rounding: bool,
    /// Where the logits go: little-endian f32 [n_tokens, n_vocab]
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `ds4 text`.
#[derive(Args, Clone, Debug)]
pub(crate) struct TextArgs {
    #[command(subcommand)]
    pub door: TextDoor,
}

/// The doors of the text layer.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum TextDoor {
    /// {"text"} to {"ids"}
    Tokenize(TokenizerArgs),
    /// {"ids"} to {"text"} and the bytes of every id
    Detokenize(TokenizerArgs),
    /// A conversation to the prompt the model reads
    Render,
    /// The model's output to reasoning, content and tool calls
    Parse,
}

/// Which tokenizer.
#[derive(Args, Clone, Debug)]
pub(crate) struct TokenizerArgs {
    /// A tokenizer.json or a GGUF file [default: the tokenizer of the model that ds4 would open]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
}

/// `ds4 bench`.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// The weights of the model, or random ones of the full size, which need no file and say nothing
    #[arg(long, value_enum, value_name = "file|random", default_value_t)]
    pub weights: WeightsArg,
    /// Layers of the model of random weights [default: all 43]
    #[arg(long, value_name = "N", value_parser = count)]
    pub layers: Option<usize>,
    /// Contexts at which to measure
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', value_parser = count, default_value = "512,2048,8192")]
    pub contexts: Vec<usize>,
    /// Tokens to decode at each
    #[arg(short = 'n', long = "tokens", value_name = "N", value_parser = count, default_value_t = 32)]
    pub tokens: usize,
    /// Most rows of one prefill step [default: what suits the device]
    #[arg(long, value_name = "N", value_parser = count)]
    pub chunk: Option<usize>,
    /// Sequences that decode at once, copies of the first
    #[arg(long, value_name = "N", value_parser = count, default_value_t = 1)]
    pub sequences: usize,
    /// Measure every kernel of a device, which slows it down, and print a table of them
    #[arg(long)]
    pub timed: bool,
    /// One JSON document instead of CSV, with the model and the machine
    #[arg(long)]
    pub json: bool,
}

/// Which weights are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsArg {
    /// The model's
    #[default]
    File,
    /// Random blocks of the full model's sizes and types
    Random,
}

/// A number of tokens, at least one; `k` and `m` are 1,024 and 1,048,576 of them.
pub(crate) fn tokens(text: &str) -> Result<usize, String> {
    let digits = text.replace(['_', ','], "");
    let (digits, unit) = match digits.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1 << 10),
        None => match digits.strip_suffix(['m', 'M']) {
            Some(digits) => (digits, 1 << 20),
            None => (digits.as_str(), 1),
        },
    };
    let n: Option<usize> = digits.parse().ok();
    match n.and_then(|n| n.checked_mul(unit)) {
        Some(0) => Err("expected at least 1".to_owned()),
        Some(n) => Ok(n),
        None => Err("expected a number of tokens such as 32768 or 32k".to_owned()),
    }
}

/// The limit of a reply without a limit.
pub(crate) const NO_LIMIT: usize = usize::MAX;

/// A limit of tokens, or [`NO_LIMIT`] for `-1`.
pub(crate) fn reply_tokens(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(NO_LIMIT),
        _ => tokens(text).map_err(|error| format!("{error}, or -1 for no limit")),
    }
}

/// A number of things, at least one.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".to_owned()),
        Ok(n) => Ok(n),
        Err(e) => Err(format!("expected a whole number: {e}")),
    }
}

/// The arguments as clap reads them: the published guides write the system text as `-sys TEXT`
/// and other programs the layers on a device as `-ngl N`, which clap would take for `-s ys` and
/// `-n gl`.
pub(crate) fn spelled_for_clap(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut values_follow = false;
    args.into_iter()
        .map(|arg| {
            values_follow |= arg == "--";
            match arg.to_str().filter(|_| !values_follow) {
                Some("-sys") => OsString::from("--system"),
                Some("-ngl") => OsString::from("--n-gpu-layers"),
                _ => arg,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
