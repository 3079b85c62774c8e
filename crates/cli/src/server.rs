//! `ds4-server`: the model behind HTTP.
//!
//! The port is open before the model is loaded, and says so. Ctrl+C or SIGTERM lets running
//! requests finish for a while; a second one ends the program at once.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use ds4_engine::store::{
    BUDGET_BYTES, CompatInputs, CompatKey, MIN_TOKENS, SlotLayout, Store, StoreOptions,
    TurnLogOptions, WeightsFingerprint,
};
use ds4_engine::{CacheRounding, Engine, Scheduler};
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
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::args::{BackendArg, EffortArg, EngineArgs, RevisionArg, VerbosityArgs};
use crate::console::Console;
use crate::error;
use crate::interrupt;
use crate::model::{name_of, open_engine_of, open_file, revision_of};
use crate::options::EngineOptions;

/// Arguments of `ds4-server`.
#[derive(Debug, Parser)]
#[command(
    name = "ds4-server",
    version,
    about = "Serve DeepSeek V4 Flash to coding agents",
    long_about = "Serve DeepSeek V4 Flash over the OpenAI Chat Completions, Responses and \
        Completions APIs and the Anthropic Messages API."
)]
struct ServerArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// Context of every slot in tokens [default: what fits in memory, up to 32768]
    #[arg(short, long, value_name = "N")]
    ctx: Option<usize>,
    /// Replies in the making at once; each has a context of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    parallel: usize,
    /// Most rows of one prefill step
    #[arg(long, value_name = "N", default_value_t = 512, hide_short_help = true)]
    chunk: usize,
    /// Most tokens of a reply whose request does not say
    #[arg(short = 'n', long, value_name = "N", default_value_t = DEFAULT_MAX_TOKENS)]
    tokens: usize,

    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
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
    /// Refuse to listen beyond this machine without a key
    #[arg(long)]
    require_key: bool,
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
    /// Another name of the model: NAME, NAME=think or NAME=nothink; may be repeated
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

    /// Keep states of conversations in this folder, over restarts too
    #[arg(long, value_name = "DIR")]
    kv_disk_dir: Option<PathBuf>,
    /// Bytes of that folder [default: 16384]
    #[arg(long, value_name = "MIB", requires = "kv_disk_dir")]
    kv_disk_space_mb: Option<u64>,
    /// Shortest state that is kept
    #[arg(long, value_name = "TOKENS", default_value_t = MIN_TOKENS, hide_short_help = true)]
    kv_cache_min_tokens: usize,

    /// Requests that can wait
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_QUEUE)]
    max_queue: usize,
    /// Largest body of a request
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    max_body_mb: usize,
    /// Seconds of silence after which a stream says that it is alive; 0 for never
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    sse_ping_interval: u64,
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

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    /// Yes
    On,
    /// No
    Off,
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

/// Runs `ds4-server` with the arguments of the process.
pub fn main() -> ExitCode {
    match run(ServerArgs::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ds4-server: {}", error::one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: ServerArgs) -> Result<()> {
    let console = Console::new(args.verbosity);
    let engine_options = EngineOptions::new(&args.engine)?;
    let keys = keys(&args)?;
    let loopback = args.host.is_loopback();
    if !loopback && keys.is_empty() {
        if args.require_key {
            bail!("--require-key: listening on {} needs --api-key", args.host);
        }
        console.report(&format!(
            "anybody who reaches {} can use this server: set --api-key",
            args.host
        ));
    }
    let name = name_of(&engine_options.model);
    let mut options = server_options(&args, keys)?;
    let quiet = args.verbosity.quiet;
    options.log = Arc::new(move |line| {
        if !quiet {
            eprintln!("{line}");
        }
    });
    options.note = Arc::new(move |line| {
        if !quiet {
            eprintln!("{line}");
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
    let (stop, mut stopped) = watch::channel(false);
    let serving = runtime.spawn({
        let server = Arc::clone(&server);
        async move {
            bound
                .serve(server, async move {
                    // A sender that is gone means the same.
                    let _ = stopped.wait_for(|stop| *stop).await;
                })
                .await;
        }
    });

    if let Some(banner) = engine_options.model.banner() {
        console.note(&banner);
    }
    let gguf = open_file(&engine_options.model)?;
    let engine = open_engine_of(&gguf, &engine_options, &console, |open| {
        open.context = args.ctx;
        open.n_slots = args.parallel;
        open.chunk = args.chunk;
    })?;
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
    let (scheduler, turn_log) = match &args.kv_disk_dir {
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
            let log = store.open_turn_log(TurnLogOptions::default())?;
            (Scheduler::new(engine).with_store(store), Some(log))
        }
    };
    server
        .load(scheduler, tokenizer, facts, turn_log)
        .context("cannot start the thread of the engine")?;
    console.report(&format!(
        "listening on http://{address}, {n_slots} slot(s) of {n_context} tokens"
    ));

    wait_for_signal(&runtime)?;
    console.report("stopping; running requests may finish");
    let _ = stop.send(true);
    interrupt::watch()?;
    runtime.block_on(serving).context("serving failed")?;
    server.join();
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
    let layout = SlotLayout::new(engine.geometry(), CacheRounding::default());
    let inputs = CompatInputs {
        geometry: engine.geometry(),
        weights: WeightsFingerprint::of(gguf),
        tokenizer: tokenizer_hash(tokenizer),
        numerics_class: match args.engine.backend {
            BackendArg::Cpu => "cpu",
            BackendArg::Reference => "reference",
        },
    };
    let key = CompatKey::new(&inputs, &layout);
    let options = StoreOptions {
        budget_bytes: args.kv_disk_space_mb.map_or(BUDGET_BYTES, |mib| mib << 20),
        min_tokens: args.kv_cache_min_tokens,
        max_tokens: engine.context(),
        ..StoreOptions::default()
    };
    Ok(Store::open(folder, options, key, layout)?)
}

/// Names what the token ids of a model mean.
fn tokenizer_hash(tokenizer: &Tokenizer) -> [u8; 32] {
    let mut hash = Sha256::new();
    for token in 0..tokenizer.n_vocab() as u32 {
        let bytes = tokenizer.token_bytes(token);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hash.finalize().into()
}

/// Waits for Ctrl+C, or for the signal by which services are stopped.
fn wait_for_signal(runtime: &Runtime) -> Result<()> {
    runtime.block_on(async {
        #[cfg(unix)]
        {
            let kind = tokio::signal::unix::SignalKind::terminate();
            let mut terminate =
                tokio::signal::unix::signal(kind).context("cannot watch for SIGTERM")?;
            tokio::select! {
                pressed = tokio::signal::ctrl_c() => pressed.context("cannot watch for Ctrl+C"),
                _ = terminate.recv() => Ok(()),
            }
        }
        #[cfg(not(unix))]
        tokio::signal::ctrl_c()
            .await
            .context("cannot watch for Ctrl+C")
    })
}

fn keys(args: &ServerArgs) -> Result<Vec<String>> {
    let mut keys = args.api_key.clone();
    if let Some(path) = &args.api_key_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("--api-key-file {}", path.display()))?;
        keys.extend(text.lines().map(|line| line.trim().to_owned()));
    }
    keys.retain(|key| !key.is_empty());
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
    let on = Thinking {
        mode: Mode::Thinking,
        effort,
        budget: args.max_thinking_tokens,
    };
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
            Some((_, other)) => bail!("--alias {alias}: {other:?} is neither think nor nothink"),
        };
        aliases.insert(name.to_owned(), preset);
    }
    Ok(ServerOptions {
        model_id: args.model_id.clone(),
        aliases,
        strict_models: args.strict_models,
        strict_tools: args.strict_tools,
        default_thinking: match args.default_thinking {
            Switch::On => on,
            Switch::Off => off,
        },
        default_max_tokens: args.tokens,
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
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_of_the_arguments_holds_together() {
        ServerArgs::command().debug_assert();
    }

    #[test]
    fn the_flags_of_the_published_guides_are_taken() {
        let line =
            "ds4-server --ctx 100000 --port 0 --cors --tokens 100 --disable-exact-dsml-tool-replay";
        let args = ServerArgs::try_parse_from(line.split(' ')).expect("taken");
        assert_eq!(args.ctx, Some(100_000));
        let options = server_options(&args, Vec::new()).expect("options");
        assert_eq!(options.cors, Cors::Any);
        assert_eq!((options.default_max_tokens, options.max_call_ids), (100, 0));
    }
}
