//! A worker on its own, as a test sees it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use ds4_server::generation::{
    Endpoint, Generation, Outcome, PromptSource, ReplyEvent, Thinking, Tool,
};
use ds4_server::log::Client;
use ds4_server::prompt::{PromptRules, Prompter, ReasoningHistory};
use ds4_server::schema::Schemas;
use ds4_server::turns::Turns;
use ds4_server::worker::{Job, STALLED_AFTER, Ticket, TokenSource, Worker, WorkerOptions};
use ds4_text::{Effort, MarkerText, Message, Mode, Revision, Role, Tokenizer};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::script::{Behaviour, Script, ScriptedSource, Seen, tokenizer};

/// A worker and what a test sees of it.
pub(crate) struct Bench {
    pub(crate) worker: Worker,
    pub(crate) prompter: Prompter,
    pub(crate) turns: Arc<Turns>,
    pub(crate) seen: Arc<Mutex<Seen>>,
    log: Arc<Mutex<Vec<String>>>,
    pub(crate) tokenizer: Arc<Tokenizer>,
}

impl Bench {
    pub(crate) fn scripted<T: Into<Script>>(
        behaviour: Behaviour,
        scripts: impl IntoIterator<Item = T>,
    ) -> Bench {
        let tokenizer = tokenizer();
        let scripts: VecDeque<Script> = scripts.into_iter().map(Into::into).collect();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let source = ScriptedSource::new(
            Arc::clone(&tokenizer),
            behaviour.clone(),
            Arc::new(Mutex::new(scripts)),
            Arc::clone(&seen),
        );
        Bench::new(source, tokenizer, behaviour, seen)
    }

    pub(crate) fn new(
        source: impl TokenSource + 'static,
        tokenizer: Arc<Tokenizer>,
        behaviour: Behaviour,
        seen: Arc<Mutex<Seen>>,
    ) -> Bench {
        Bench::with(source, tokenizer, behaviour, seen, |_| {})
    }

    /// The same with a worker that works otherwise.
    pub(crate) fn with(
        source: impl TokenSource + 'static,
        tokenizer: Arc<Tokenizer>,
        behaviour: Behaviour,
        seen: Arc<Mutex<Seen>>,
        adjust: impl FnOnce(&mut WorkerOptions),
    ) -> Bench {
        let turns = Arc::new(Turns::new(1000, 1 << 20));
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let mut options = WorkerOptions {
            n_slots: behaviour.n_slots,
            max_queue: 2,
            default_max_tokens: 1000,
            log: Arc::new(move |line| lines.lock().unwrap().push(line.to_string())),
            note: Arc::new(|_| {}),
            stalled_after: STALLED_AFTER,
            trace: None,
        };
        adjust(&mut options);
        let rules = PromptRules {
            revision: Revision::Preview,
            marker_text: MarkerText::Defuse,
            reasoning_history: ReasoningHistory::Sticky,
            max_effort_min_context: 0,
        };
        Bench {
            worker: Worker::start(source, Arc::clone(&tokenizer), Arc::clone(&turns), options)
                .expect("a thread"),
            prompter: Prompter::new(
                Arc::clone(&tokenizer),
                Arc::clone(&turns),
                rules,
                behaviour.context,
            ),
            turns,
            seen,
            log,
            tokenizer,
        }
    }

    /// The lines of the log, those of the requests that are just over too.
    pub(crate) fn log(&self) -> Vec<String> {
        self.worker.settle();
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn start(&self, generation: Generation) -> (UnboundedReceiver<ReplyEvent>, Ticket) {
        let prompt = self.prompter.tokens(&generation).expect("a prompt");
        let schemas = Schemas::new(&self.tokenizer).expect("a vocabulary");
        let compile = |schema| schemas.compile(schema).expect("a schema").0;
        let generation_schema = generation.schema.as_ref().map(compile);
        let (calls, _) = schemas.calls(&generation).expect("tools");
        self.worker
            .submit(Job {
                request_id: "req".to_owned(),
                reply_id: "chatcmpl-1".to_owned(),
                client: Client::new(Some("agent/1.2 (linux)"), generation.affinity.as_deref()),
                generation: Arc::new(generation),
                schema: generation_schema,
                calls,
                prompt,
            })
            .expect("room")
    }

    pub(crate) fn events(&self, generation: Generation) -> Vec<ReplyEvent> {
        let (mut receiver, _ticket) = self.start(generation);
        let mut events = Vec::new();
        while let Some(event) = receiver.blocking_recv() {
            events.push(event);
        }
        events
    }

    pub(crate) fn outcome(&self, generation: Generation) -> Outcome {
        outcome_of(&self.events(generation))
    }

    pub(crate) fn text(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens).expect("tokens")
    }
}

pub(crate) fn outcome_of(events: &[ReplyEvent]) -> Outcome {
    match events.last() {
        Some(ReplyEvent::Finished(outcome)) => (**outcome).clone(),
        other => panic!("no outcome: {other:?}"),
    }
}

pub(crate) fn chat(messages: Vec<Message>) -> Generation {
    Generation {
        thinking: Thinking {
            mode: Mode::Thinking,
            effort: Effort::Low,
            budget: None,
        },
        model: "m".to_owned(),
        stream: true,
        ..Generation::new(Endpoint::Chat, PromptSource::Messages(messages))
    }
}

pub(crate) fn with_tools(mut generation: Generation, names: &[&str]) -> Generation {
    let function = |name: &str| json!({"name": name, "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}});
    generation.tools = names
        .iter()
        .map(|name| Tool {
            name: (*name).to_owned(),
            function: function(name),
            input: None,
            deferred: false,
            origin: json!(null),
        })
        .collect();
    if let PromptSource::Messages(messages) = &mut generation.prompt {
        if messages.first().is_none_or(|m| m.role != Role::System) {
            messages.insert(0, Message::system(""));
        }
        messages[0].tools = names.iter().map(|name| function(name)).collect();
    }
    generation
}

pub(crate) fn block(calls: &[(&str, &str)]) -> String {
    let invokes: Vec<String> = calls
        .iter()
        .map(|(name, x)| {
            format!(
                "<｜DSML｜invoke name=\"{name}\">\n<｜DSML｜parameter name=\"x\" \
                 string=\"true\">{x}</｜DSML｜parameter>\n</｜DSML｜invoke>"
            )
        })
        .collect();
    format!(
        "\n\n<｜DSML｜tool_calls>\n{}\n</｜DSML｜tool_calls>",
        invokes.join("\n")
    )
}
