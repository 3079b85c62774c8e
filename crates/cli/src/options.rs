//! Options: arguments resolved and checked.

use std::path::PathBuf;

use anyhow::{Result, bail};
use ds4_engine::{BackendKind, GpuOptions, OpenOptions, SamplingOptions, SimdPath};
use ds4_text::{Effort, Mode};
use serde::{Deserialize, Serialize};

use crate::args::{self, AskArgs, BackendArg, EffortArg, EngineArgs, RevisionArg, SimdArg};
use crate::conversation::Settings;
use crate::folders;
use crate::model_choice::ModelChoice;
use crate::other_names;
use crate::prompt_input::{PromptInput, Stdin};

/// The most tokens whose probabilities are written for each step.
const MAX_LOGPROBS: usize = 1024;

/// Whether the model thinks before it answers, and how hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Thinking {
    /// It answers at once.
    Off,
    /// With the default effort.
    On,
    /// With maximum effort.
    Max,
}

impl Thinking {
    /// The name in lines about the state.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Thinking::Off => "off",
            Thinking::On => "on",
            Thinking::Max => "max",
        }
    }
}

/// How thinking is rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThinkingRules {
    /// Effort of [`Thinking::On`].
    pub effort: Effort,
    /// Smallest context, in tokens, in which [`Thinking::Max`] is not lowered; 0 is any.
    pub max_min_context: usize,
    /// Which release's prefixes are written.
    pub revision: RevisionArg,
}

impl ThinkingRules {
    /// What the renderer is told in a context of so many tokens, and whether the thinking asked
    /// for was lowered.
    pub(crate) fn resolve(&self, thinking: Thinking, context: usize) -> (Mode, Effort, bool) {
        match thinking {
            Thinking::Off => (Mode::Chat, Effort::None, false),
            Thinking::On => (Mode::Thinking, self.effort, false),
            Thinking::Max if context < self.max_min_context => (Mode::Thinking, self.effort, true),
            Thinking::Max => (Mode::Thinking, Effort::Max, false),
        }
    }
}

/// Which model, and what runs it.
#[derive(Clone, Debug)]
pub(crate) struct EngineOptions {
    /// The model.
    pub model: ModelChoice,
    /// What computes.
    pub backend: BackendKind,
    /// Threads; `None` is the machine's.
    pub n_threads: Option<usize>,
    /// Kernels; `None` is the fastest.
    pub simd: Option<SimdPath>,
    /// Which GPU through Metal or Vulkan, and as what.
    pub gpu: GpuOptions,
}

impl EngineOptions {
    /// Resolves the arguments.
    ///
    /// # Errors
    /// There is no model, or the arguments contradict each other.
    pub(crate) fn new(args: &EngineArgs) -> Result<EngineOptions> {
        let backend = other_names::backend(args);
        let has_simd = matches!(backend, BackendArg::Auto | BackendArg::Cpu);
        if args.simd.is_some() && !has_simd {
            bail!("--simd chooses kernels of the CPU backend, and this --backend has none");
        }
        let has_gpu = matches!(backend, BackendArg::Auto | BackendArg::Wgpu);
        if !has_gpu && (args.gpu.is_some() || !args.gpu_lacks.is_empty()) {
            bail!("--gpu and --gpu-lacks are of the GPU that --backend wgpu or auto takes");
        }
        Ok(EngineOptions {
            gpu: GpuOptions {
                name: args.gpu.clone(),
                lacks: args.gpu_lacks.clone(),
            },
            model: ModelChoice::new(args.model.as_deref())?,
            backend: match backend {
                // Kernels of the CPU backend are asked for.
                BackendArg::Auto if args.simd.is_some() => BackendKind::Cpu,
                BackendArg::Auto => BackendKind::Auto,
                BackendArg::Cpu => BackendKind::Cpu,
                BackendArg::Cuda => BackendKind::Cuda,
                BackendArg::Wgpu => BackendKind::Wgpu,
                BackendArg::Reference => BackendKind::Reference,
            },
            n_threads: args.threads,
            simd: args.simd.map(|simd| match simd {
                SimdArg::Scalar => SimdPath::Scalar,
                SimdArg::Avx2 => SimdPath::Avx2,
                SimdArg::Avx512 => SimdPath::Avx512,
                SimdArg::Neon => SimdPath::Neon,
            }),
        })
    }

    /// With the defaults of what they leave open, for a model that lies there or is called so.
    pub(crate) fn open(&self, name: impl Into<PathBuf>) -> OpenOptions {
        let mut open = OpenOptions::new(name);
        open.backend = self.backend;
        open.n_threads = self.n_threads;
        open.simd = self.simd;
        open.gpu = self.gpu.clone();
        open.kernel_cache = folders::cache().map(|folder| folder.join("ds4/kernels"));
        open
    }
}

/// What to do with a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Hold a conversation.
    Chat,
    /// Answer it.
    Answer(PromptInput),
    /// Print its tokens.
    DumpTokens(PromptInput),
    /// Answer it and write the likeliest tokens of every step.
    DumpLogprobs(PromptInput, Logprobs),
}

/// Where and how many probabilities are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Logprobs {
    /// The JSON file.
    pub path: PathBuf,
    /// Tokens for each step.
    pub top_k: usize,
}

/// Asking, once or in a conversation.
#[derive(Clone, Debug)]
pub(crate) struct AskOptions {
    /// What to do.
    pub task: Task,
    /// System text.
    pub system: Option<String>,
    /// Model and machine.
    pub engine: EngineOptions,
    /// Tokens of prompt and reply together; `None` is what fits.
    pub context: Option<usize>,
    /// Rows of a prefill step; `None` is what suits the device.
    pub chunk: Option<usize>,
    /// Tokens of a reply; `None` is up to the end of the context.
    pub max_tokens: Option<usize>,
    /// Thinking and sampling.
    pub settings: Settings,
    /// Makes sampling repeatable.
    pub seed: Option<u64>,
    /// How thinking is rendered.
    pub rules: ThinkingRules,
    /// Write reasoning also where no person reads it.
    pub show_reasoning: bool,
    /// Write the answer as JSON.
    pub json: bool,
    /// Leave nothing of a conversation on disk.
    pub private: bool,
}

impl AskOptions {
    /// Resolves the arguments; without a prompt among them a terminal means a conversation, and
    /// anything else on stdin is the prompt.
    ///
    /// # Errors
    /// There is no model, or the arguments contradict each other.
    pub(crate) fn new(args: AskArgs, stdin: Stdin) -> Result<AskOptions> {
        let prompt = match (args.prompt.or(args.question), args.prompt_file) {
            (Some(text), _) if text == "-" => Some(PromptInput::Stdin),
            (Some(text), _) if stdin.holds_text() => Some(PromptInput::StdinAnd(text)),
            (Some(text), _) => Some(PromptInput::Text(text)),
            (None, Some(path)) if path.as_os_str() == "-" => Some(PromptInput::Stdin),
            (None, Some(path)) => Some(PromptInput::File(path)),
            (None, None) if stdin == Stdin::Terminal => None,
            (None, None) => Some(PromptInput::Stdin),
        };
        let needs_prompt = |flag| -> Result<PromptInput> {
            match &prompt {
                Some(prompt) => Ok(prompt.clone()),
                None => bail!("{flag} needs a prompt: add -p TEXT or --prompt-file FILE"),
            }
        };
        let task = match (args.dump_tokens, args.dump_logprobs) {
            (true, Some(_)) => {
                bail!("--dump-tokens generates nothing, so there are no --dump-logprobs")
            }
            (true, None) => Task::DumpTokens(needs_prompt("--dump-tokens")?),
            (false, Some(path)) => {
                if args.logprobs_top_k > MAX_LOGPROBS {
                    bail!(
                        "--logprobs-top-k {}: at most {MAX_LOGPROBS} tokens are written for each \
                         step",
                        args.logprobs_top_k
                    );
                }
                let top_k = args.logprobs_top_k;
                Task::DumpLogprobs(needs_prompt("--dump-logprobs")?, Logprobs { path, top_k })
            }
            (false, None) if args.json => Task::Answer(needs_prompt("--json")?),
            (false, None) => prompt.map_or(Task::Chat, Task::Answer),
        };
        let settings = Settings {
            thinking: match (args.nothink, args.think_max) {
                (true, _) => Thinking::Off,
                (false, true) => Thinking::Max,
                (false, false) => Thinking::On,
            },
            temperature: args.temp,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
        };
        let options = AskOptions {
            task,
            system: args.system.filter(|text| !text.is_empty()),
            engine: EngineOptions::new(&args.engine)?,
            context: args.ctx,
            chunk: args.chunk,
            max_tokens: args.tokens.filter(|n| *n != args::NO_LIMIT),
            settings,
            seed: args.seed,
            rules: ThinkingRules {
                effort: match args.default_effort {
                    EffortArg::Low => Effort::Low,
                    EffortArg::High => Effort::High,
                    EffortArg::Max => Effort::Max,
                },
                max_min_context: args.think_max_min_ctx,
                revision: args.prompt_revision,
            },
            show_reasoning: args.show_reasoning,
            json: args.json,
            private: args.private,
        };
        sampling(&options.settings, options.seed).validate(usize::MAX)?;
        Ok(options)
    }
}

/// The sampler's options.
pub(crate) fn sampling(settings: &Settings, seed: Option<u64>) -> SamplingOptions {
    SamplingOptions {
        temperature: settings.temperature,
        top_k: settings.top_k,
        top_p: settings.top_p,
        min_p: settings.min_p,
        seed,
        ..SamplingOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser as _;

    fn options(line: &str, stdin: Stdin) -> Result<AskOptions> {
        // A model that is named is not looked for.
        let words = ["ds4", "-m", "model.gguf"]
            .into_iter()
            .chain(line.split_whitespace());
        AskOptions::new(Cli::try_parse_from(words)?.ask, stdin)
    }

    #[test]
    fn the_prompt_or_its_absence_decides_what_is_done() {
        let text = PromptInput::Text("x".to_owned());
        let logprobs = Logprobs {
            path: "f".into(),
            top_k: 20,
        };
        use Stdin::{Device, Terminal, Text};
        let both = Task::Answer(PromptInput::StdinAnd("x".to_owned()));
        for (line, stdin, expected) in [
            ("", Terminal, Task::Chat),
            ("", Text, Task::Answer(PromptInput::Stdin)),
            ("", Device, Task::Answer(PromptInput::Stdin)),
            ("-p x", Terminal, Task::Answer(text.clone())),
            ("-p x", Device, Task::Answer(text.clone())),
            ("-p x", Text, both.clone()),
            ("x", Terminal, Task::Answer(text.clone())),
            ("x", Text, both),
            ("-p -", Terminal, Task::Answer(PromptInput::Stdin)),
            ("-p -", Text, Task::Answer(PromptInput::Stdin)),
            (
                "--prompt-file -",
                Terminal,
                Task::Answer(PromptInput::Stdin),
            ),
            (
                "--prompt-file f",
                Terminal,
                Task::Answer(PromptInput::File("f".into())),
            ),
            (
                "--dump-tokens -p x",
                Terminal,
                Task::DumpTokens(text.clone()),
            ),
            (
                "--dump-logprobs f -p x",
                Terminal,
                Task::DumpLogprobs(text, logprobs),
            ),
        ] {
            let options = options(line, stdin).unwrap();
            assert_eq!(options.task, expected, "{line:?} {stdin:?}");
        }
        for line in ["--dump-tokens", "--dump-logprobs f", "--json"] {
            let error = options(line, Terminal).unwrap_err().to_string();
            assert!(error.contains("needs a prompt"), "{line}: {error}");
        }
        for line in [
            "--dump-tokens --dump-logprobs f -p x",
            "--dump-logprobs f --logprobs-top-k 9999 -p x",
            "-p x --temp 3",
            "-p x --backend reference --simd avx2",
        ] {
            assert!(options(line, Terminal).is_err(), "{line}");
        }
    }

    #[test]
    fn maximum_thinking_is_lowered_below_its_context_and_nothing_else_is() {
        let rules = |max_min_context| ThinkingRules {
            effort: Effort::Low,
            max_min_context,
            revision: RevisionArg::Auto,
        };
        use Thinking::{Max, Off, On};
        for (thinking, min, context, expected) in [
            (Off, 100, 1, (Mode::Chat, Effort::None, false)),
            (On, 100, 1, (Mode::Thinking, Effort::Low, false)),
            (Max, 100, 99, (Mode::Thinking, Effort::Low, true)),
            (Max, 100, 100, (Mode::Thinking, Effort::Max, false)),
            (Max, 0, 1, (Mode::Thinking, Effort::Max, false)),
        ] {
            let found = rules(min).resolve(thinking, context);
            assert_eq!(found, expected, "{thinking:?} {min} {context}");
        }
    }
}
