//! `ds4-server`: the model behind HTTP.
//!
//! The port is open before the model is loaded, and says so. Ctrl+C or SIGTERM lets running
//! requests finish for a while; a second one ends the program at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{CommandFactory as _, Parser};
use ds4_engine::store::{
    BUDGET_BYTES, MIN_TOKENS, QUEUE_BYTES, Store, StoreOptions, TurnLogOptions,
};
use ds4_engine::{Engine, SNAPSHOT_BYTES, Scheduler, SchedulerOptions};
use ds4_formats::gguf::Gguf;
use ds4_server::generation::Thinking;
use ds4_server::http::{
    Cors, DEFAULT_MAX_QUEUE, DEFAULT_MAX_TOKENS, DEFAULT_MODEL_ID, ModelFacts, Server,
    ServerOptions, bind,
};
use ds4_server::prompt::{PromptRules, ReasoningHistory};
use ds4_server::trace::Trace;
use ds4_server::turns::DEFAULT_MAX_CALL_IDS;
use ds4_text::{Effort, MarkerText, Mode, Revision, Tokenizer};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::args::{
    EffortArg, EngineArgs, NO_LIMIT, RevisionArg, VerbosityArgs, reply_tokens, spelled_for_clap,
    tokens,
};
use crate::console::Console;
use crate::error;
use crate::model::{context_within, name_of, open_engine_of, open_file, revision_of};
use crate::model_choice::ModelChoice;
use crate::options::EngineOptions;
use crate::other_names;
use crate::protocol_args::ProtocolArgs;
use crate::reply_writer::printable;
use crate::states;
use crate::stop::Stop;
use crate::store_args::StoreArgs;
use crate::switch::Switch;

/// Arguments of `ds4-server`.
#[derive(Debug, Parser)]
#[command(
    name = "ds4-server",
    version = crate::version::SHORT,
    long_version = crate::version::LONG,
    about = "Serve DeepSeek V4 Flash to coding agents",
    long_about = "Serve DeepSeek V4 Flash over the OpenAI Chat Completions, Responses and \
        Completions APIs and the Anthropic Messages API."
)]
struct ServerArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// Context of every slot in tokens, such as 32k [default: what fits in memory, up to 32768]
    #[arg(short, long, value_name = "N", value_parser = tokens)]
    ctx: Option<usize>,
    /// Replies in the making at once; each has a context of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    parallel: usize,
    /// Most rows of one prefill step [default: what suits the device]
    #[arg(long, value_name = "N", hide_short_help = true)]
    chunk: Option<usize>,
    /// Most tokens of a reply whose request does not say; -1 is the default
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = DEFAULT_MAX_TOKENS,
        value_parser = reply_tokens,
        allow_negative_numbers = true
    )]
    tokens: usize,

    /// Address to listen on, or localhost
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = address)]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// A key of which requests must carry one; may be repeated
    #[arg(long, value_name = "KEY", env = "DS4_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,
    /// A file with a key on every line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Listen beyond this machine without a key: whoever can connect can use the server
    #[arg(long)]
    without_key: bool,
    /// Let web pages of any origin use the server
    #[arg(long)]
    cors: bool,
    /// Let web pages of this origin use the server; may be repeated
    #[arg(long, value_name = "ORIGIN", conflicts_with = "cors")]
    cors_origin: Vec<String>,
    /// A host name by which the server may be called; may be repeated
    #[arg(long, value_name = "NAME")]
    allowed_host: Vec<String>,

    /// Id under which the model is served
    #[arg(long, value_name = "ID", default_value = DEFAULT_MODEL_ID)]
    model_id: String,
    /// Another name of the model: NAME, or NAME= and think, nothink, low, high or max; may be
    /// repeated
    #[arg(long, value_name = "NAME[=PRESET]")]
    alias: Vec<String>,
    /// Refuse model names that are not known
    #[arg(long)]
    strict_models: bool,
    /// Refuse tools that only a vendor's servers can run, rather than leave them out
    #[arg(long)]
    strict_tools: bool,
    /// Whether to think when a request does not say
    #[arg(long, value_name = "on|off", default_value = "on")]
    default_thinking: Switch,
    /// How hard to think when a request does not say
    #[arg(long, value_enum, value_name = "EFFORT", default_value_t)]
    default_effort: EffortArg,
    /// Most reasoning tokens of any reply
    #[arg(long, value_name = "N")]
    max_thinking_tokens: Option<usize>,
    /// Smallest context in which maximum effort is not lowered; 0 is any
    #[arg(long, value_name = "N", default_value_t = 393_216)]
    think_max_min_ctx: usize,
    /// Which release's prompts to write
    #[arg(long, value_enum, value_name = "NAME", default_value_t)]
    prompt_revision: RevisionArg,
    /// What markers of the chat protocol become in text that comes from clients
    #[arg(long, value_enum, value_name = "RULE", default_value_t)]
    marker_text: MarkerArg,
    /// Which reasoning of old turns stays in the prompt
    #[arg(long, value_enum, value_name = "RULE", default_value_t)]
    reasoning_history: HistoryArg,
    #[command(flatten)]
    protocol: ProtocolArgs,

    /// Keep states of conversations in this folder, over restarts too
    #[arg(long, value_name = "DIR")]
    kv_disk_dir: Option<PathBuf>,
    /// Bytes of that folder [default: 16384]
    #[arg(long, value_name = "MIB", requires = "kv_disk_dir")]
    kv_disk_space_mb: Option<u64>,
    /// Shortest state that is kept
    #[arg(long, value_name = "TOKENS", default_value_t = MIN_TOKENS, hide_short_help = true)]
    kv_cache_min_tokens: usize,
    #[command(flatten)]
    store: StoreArgs,

    /// Memory of every slot for places in its past to go back to; 0 for none
    #[arg(long, value_name = "MIB", default_value_t = SNAPSHOT_BYTES >> 20)]
    snapshot_mem: usize,

    /// Requests that can wait
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_QUEUE)]
    max_queue: usize,
    /// Largest body of a request
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    max_body_mb: usize,
    /// Seconds of silence after which a stream says that it is alive; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    sse_ping_interval: u64,
    /// Send line feeds ahead of a reply that is not streamed while it is long in coming
    #[arg(long)]
    nonstream_keepalive: bool,
    /// Whether a client that closes its sending side is gone
    #[arg(long, value_name = "on|off", default_value = "on")]
    half_close_cancels: Switch,
    /// Seconds that running requests have when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    shutdown_grace: u64,
    /// Whether /metrics answers
    #[arg(long, value_name = "on|off", default_value = "on")]
    metrics: Switch,
    /// Append everything of every request to this file, its text included
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Call ids whose turns are remembered in the model's own tokens
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_CALL_IDS)]
    tool_memory_max_ids: usize,
    /// Always render what clients send back, however they changed it
    #[arg(long, alias = "disable-exact-dsml-tool-replay")]
    disable_exact_replay: bool,

    #[command(flatten)]
    verbosity: VerbosityArgs,
}

/// What marker text becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum MarkerArg {
    /// Ordinary text
    #[default]
    Defuse,
    /// The marker, as the publisher has it
    Allow,
}

/// Which reasoning stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum HistoryArg {
    /// All of it in conversations with calls
    #[default]
    Sticky,
    /// All of it while tools are declared
    Official,
}

/// An address of this machine.
fn address(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => text.parse().map_err(|_| {
            "expected an address of this machine: 127.0.0.1 or localhost, or 0.0.0.0 for all"
                .to_owned()
        }),
    }
}

/// The arguments as clap describes them.
pub(crate) fn command() -> clap::Command {
    ServerArgs::command()
}

/// Runs the server with flags that another program was given.
///
/// # Errors
/// As the server's; flags that are wrong end the program, as everywhere.
pub(crate) fn run_with(flags: Vec<OsString>) -> Result<()> {
    let args = std::iter::once(OsString::from("ds4-server")).chain(flags);
    run(ServerArgs::parse_from(spelled_for_clap(args)))
}

/// Runs `ds4-server` with the arguments of the process.
pub fn main() -> ExitCode {
    match run(ServerArgs::parse_from(
        spelled_for_clap(std::env::args_os()),
    )) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "ds4-server: {}", error::one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: ServerArgs) -> Result<()> {
    let console = Console::new(args.verbosity);
    let engine_options = EngineOptions::new(&args.engine)?;
    if let Some(without_effect) = other_names::without_effect(&args.engine) {
        console.report(&without_effect);
    }
    let keys = keys(&args)?;
    let loopback = args.host.is_loopback();
    if !loopback && keys.is_empty() {
        if !args.without_key {
            bail!(
                "--host {}: whoever can connect could use the server; set --api-key, or \
                 --without-key if that is wanted",
                args.host
            );
        }
        console.report(&format!(
            "anybody who reaches {} can use this server",
            args.host
        ));
    }
    let ignored = args.store.without_effect();
    if !ignored.is_empty() {
        console.report(&format!(
            "without effect: {}; the store decides by itself when a state is kept",
            ignored.join(", ")
        ));
    }
    let name = name_of(&engine_options.model);
    let mut options = server_options(&args, keys)?;
    let quiet = args.verbosity.quiet;
    options.log = Arc::new(move |line| {
        if !quiet {
            // Nothing can be done about a stderr that does not take it.
            let _ = writeln!(io::stderr(), "{line}");
        }
    });
    options.note = Arc::new(move |line| {
        if !quiet {
            // Nothing can be done about a stderr that does not take it.
            let _ = writeln!(io::stderr(), "{line}");
        }
    });
    if let Some(path) = &args.trace {
        let trace =
            Trace::open(path).with_context(|| format!("cannot open --trace {}", path.display()))?;
        options.trace = Some(Arc::new(trace));
    }
    // The names tell the release; the metadata's own name is known only after loading.
    options.prompt.revision = match args.prompt_revision {
        RevisionArg::Preview => Revision::Preview,
        RevisionArg::R0731 => Revision::R0731,
        RevisionArg::Auto => revision_of(&name, ""),
    };

    let runtime = Runtime::new().context("cannot start the threads that answer")?;
    let address = SocketAddr::new(args.host, args.port);
    let bound = runtime
        .block_on(bind(address))
        .with_context(|| format!("cannot listen on {address}"))?;
    let address = bound.address();
    let server = Server::new(options, loopback);
    let (ended, mut end) = watch::channel(false);
    let serving = runtime.spawn({
        let server = Arc::clone(&server);
        async move {
            bound
                .serve(server, async move {
                    // A sender that is gone means the same.
                    let _ = end.wait_for(|end| *end).await;
                })
                .await;
        }
    });

    let folder = args.store.folder(args.kv_disk_dir.as_deref())?;
    let gguf = open_file(&engine_options.model)?;
    let context = context_within(args.ctx, &gguf, &engine_options.model, &console);
    let engine = open_engine_of(&gguf, &engine_options, &console, |open| {
        open.context = context;
        open.n_slots = args.parallel;
        open.chunk = args.chunk;
        open.snapshot_bytes = args.snapshot_mem << 20;
        if folder.is_some() {
            open.store_bytes = QUEUE_BYTES as u64;
        }
    })?;
    console.announce(&engine_options.model, engine.name());
    let tokenizer = Arc::clone(engine.tokenizer().with_context(|| {
        format!(
            "{} has no tokenizer, so it cannot read text",
            name.display()
        )
    })?);
    let facts = ModelFacts {
        name: engine.name().to_owned(),
        file_name: name
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        n_context: engine.context(),
        n_context_train: engine.geometry().max_context,
        n_params: ds4_model::requirements(engine.geometry())
            .iter()
            .map(|need| need.ne.iter().product::<u64>())
            .sum(),
        size_bytes: engine.plan().weights_bytes,
        n_slots: engine.n_slots(),
    };
    let n_context = facts.n_context;
    let n_slots = facts.n_slots;
    let model_name = facts.name.clone();
    let keeping = SchedulerOptions {
        snapshot_bytes: args.snapshot_mem << 20,
        ..SchedulerOptions::responsive()
    };
    let (scheduler, turn_log) = match folder {
        None => (Scheduler::new(engine), None),
        Some(folder) => {
            let store = open_store(&args, folder, &gguf, &engine, &tokenizer)?;
            let usage = store.usage();
            console.report(&format!(
                "{}: {} states, {} MiB",
                folder.display(),
                usage.n_points,
                usage.n_bytes >> 20
            ));
            let log = match store.open_turn_log(TurnLogOptions::default()) {
                Err(_) if store.is_read_only() => None,
                log => Some(log?),
            };
            (Scheduler::new(engine).with_store(store), log)
        }
    };
    server
        .load(scheduler.with_options(keeping), tokenizer, facts, turn_log)
        .context("cannot start the thread of the engine")?;
    console.report(&format!(
        "listening on http://{address}, {n_slots} slot(s) of {n_context} tokens, serving {}",
        printable(&model_name)
    ));

    #[cfg(unix)]
    ds4_formats::name_lost_pages();
    // Until here a signal ends the program at once: there is nothing to save.
    let stop = Stop::watch_signals()?;
    if let ModelChoice::File { path, .. } = &engine_options.model {
        stop.watch_file(path)?;
    }
    let reason = runtime.block_on(stop.reason());
    console.report(&reason);
    let _ = ended.send(true);
    runtime.block_on(serving).context("serving failed")?;
    server.join();
    // What still runs reads or compiles something that nobody waits for any more.
    runtime.shutdown_background();
    Ok(())
}

/// The store of this model in a folder.
fn open_store(
    args: &ServerArgs,
    folder: &Path,
    gguf: &Gguf,
    engine: &Engine,
    tokenizer: &Tokenizer,
) -> Result<Store> {
    let (key, layout) = states::compat(gguf, engine, tokenizer);
    let mut options = StoreOptions {
        budget_bytes: args.kv_disk_space_mb.map_or(BUDGET_BYTES, |mib| mib << 20),
        min_tokens: args.kv_cache_min_tokens,
        max_tokens: engine.context(),
        ..StoreOptions::default()
    };
    args.store.apply(&mut options);
    Ok(Store::open(folder, options, key, layout)?)
}

fn keys(args: &ServerArgs) -> Result<Vec<String>> {
    let mut keys = args.api_key.clone();
    if keys.iter().any(|key| key.trim().is_empty()) {
        bail!(
            "--api-key is empty, as it is when a variable is not set: expected a key, or no such \
             flag and no DS4_API_KEY"
        );
    }
    if let Some(path) = &args.api_key_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("--api-key-file {}", path.display()))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        keys.extend(lines.map(str::to_owned));
    }
    if keys.is_empty() && args.api_key_file.is_some() {
        bail!("--api-key-file holds no key: expected one on every line");
    }
    Ok(keys)
}

fn server_options(args: &ServerArgs, api_keys: Vec<String>) -> Result<ServerOptions> {
    let effort = match args.default_effort {
        EffortArg::Low => Effort::Low,
        EffortArg::High => Effort::High,
        EffortArg::Max => Effort::Max,
    };
    let thinking = |effort| Thinking {
        mode: Mode::Thinking,
        effort,
        budget: args.max_thinking_tokens,
    };
    let on = thinking(effort);
    let off = Thinking {
        mode: Mode::Chat,
        effort: Effort::None,
        budget: None,
    };
    let mut aliases = BTreeMap::from([
        ("deepseek-chat".to_owned(), Some(off)),
        ("deepseek-reasoner".to_owned(), Some(on)),
        ("deepseek-v4-flash-0731".to_owned(), None),
    ]);
    for alias in &args.alias {
        let (name, preset) = match alias.split_once('=') {
            None => (alias.as_str(), None),
            Some((name, "think")) => (name, Some(on)),
            Some((name, "nothink")) => (name, Some(off)),
            Some((name, "low")) => (name, Some(thinking(Effort::Low))),
            Some((name, "high")) => (name, Some(thinking(Effort::High))),
            Some((name, "max")) => (name, Some(thinking(Effort::Max))),
            Some((_, other)) => {
                bail!("--alias {alias}: found {other:?}, expected think, nothink, low, high or max")
            }
        };
        aliases.insert(name.to_owned(), preset);
    }
    Ok(ServerOptions {
        model_id: args.model_id.clone(),
        aliases,
        strict_models: args.strict_models,
        strict_tools: args.strict_tools,
        preferences: args.protocol.preferences(on, off),
        default_thinking: match args.default_thinking {
            Switch::On => on,
            Switch::Off => off,
        },
        default_max_tokens: match args.tokens {
            NO_LIMIT => DEFAULT_MAX_TOKENS,
            n => n,
        },
        api_keys,
        cors: if args.cors {
            Cors::Any
        } else if args.cors_origin.is_empty() {
            Cors::Off
        } else {
            Cors::Origins(args.cors_origin.clone())
        },
        allowed_hosts: args.allowed_host.clone(),
        max_body_bytes: args.max_body_mb << 20,
        max_queue: args.max_queue,
        ping_interval: Duration::from_secs(args.sse_ping_interval),
        nonstream_keepalive: args.nonstream_keepalive,
        half_close_cancels: args.half_close_cancels == Switch::On,
        shutdown_grace: Duration::from_secs(args.shutdown_grace),
        metrics: args.metrics == Switch::On,
        prompt: PromptRules {
            revision: Revision::default(),
            marker_text: match args.marker_text {
                MarkerArg::Defuse => MarkerText::Defuse,
                MarkerArg::Allow => MarkerText::Allow,
            },
            reasoning_history: match args.reasoning_history {
                HistoryArg::Sticky => ReasoningHistory::Sticky,
                HistoryArg::Official => ReasoningHistory::Official,
            },
            max_effort_min_context: args.think_max_min_ctx,
        },
        max_call_ids: if args.disable_exact_replay {
            0
        } else {
            args.tool_memory_max_ids
        },
        ..ServerOptions::default()
    })
}

#[cfg(test)]
mod tests;
