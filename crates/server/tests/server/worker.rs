//! What a request sees of the worker, under the protocols.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ds4_conformance::speaking_model;
use ds4_engine::{BackendKind, Engine, OpenOptions, SamplingOptions, Scheduler};
use ds4_server::generation::{
    Endpoint, FailureKind, Finish, Generation, Outcome, OutputSchema, PromptSource, ReplyEvent,
    Thinking, Tool, ToolChoice,
};
use ds4_server::log::Client;
use ds4_server::prompt::{PromptRules, Prompter, ReasoningHistory};
use ds4_server::schema::Schemas;
use ds4_server::turns::Turns;
use ds4_server::worker::{Job, Ticket, TokenSource, Worker, WorkerOptions};
use ds4_text::{Effort, MarkerText, Message, Mode, Revision, Role, Tokenizer, ToolCall};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::script::{Behaviour, Script, ScriptedSource, Seen, tokenizer};

/// A worker and what a test sees of it.
struct Bench {
    worker: Worker,
    prompter: Prompter,
    turns: Arc<Mutex<Turns>>,
    seen: Arc<Mutex<Seen>>,
    log: Arc<Mutex<Vec<String>>>,
    tokenizer: Arc<Tokenizer>,
}

impl Bench {
    fn scripted<T: Into<Script>>(
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

    fn new(
        source: impl TokenSource + 'static,
        tokenizer: Arc<Tokenizer>,
        behaviour: Behaviour,
        seen: Arc<Mutex<Seen>>,
    ) -> Bench {
        let turns = Arc::new(Mutex::new(Turns::new(1000, 1 << 20)));
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let options = WorkerOptions {
            n_slots: behaviour.n_slots,
            max_queue: 2,
            default_max_tokens: 1000,
            log: Arc::new(move |line| lines.lock().unwrap().push(line.to_string())),
            note: Arc::new(|_| {}),
            trace: None,
        };
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

    fn start(&self, generation: Generation) -> (UnboundedReceiver<ReplyEvent>, Ticket) {
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

    fn events(&self, generation: Generation) -> Vec<ReplyEvent> {
        let (mut receiver, _ticket) = self.start(generation);
        let mut events = Vec::new();
        while let Some(event) = receiver.blocking_recv() {
            events.push(event);
        }
        events
    }

    fn outcome(&self, generation: Generation) -> Outcome {
        outcome_of(&self.events(generation))
    }

    fn text(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens).expect("tokens")
    }
}

fn outcome_of(events: &[ReplyEvent]) -> Outcome {
    match events.last() {
        Some(ReplyEvent::Finished(outcome)) => (**outcome).clone(),
        other => panic!("no outcome: {other:?}"),
    }
}

fn chat(messages: Vec<Message>) -> Generation {
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

fn with_tools(mut generation: Generation, names: &[&str]) -> Generation {
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

fn block(calls: &[(&str, &str)]) -> String {
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

#[test]
fn a_reply_is_told_apart_and_its_deltas_add_up() {
    let text = format!("why\n\n</think>So:\n{}", block(&[("f", "1é"), ("g", "2")]));
    let bench = Bench::scripted(Behaviour::default(), [text.as_str()]);
    let events = bench.events(with_tools(chat(vec![Message::user("hi")]), &["f", "g"]));
    let outcome = outcome_of(&events);
    assert_eq!(outcome.finish, Finish::ToolCalls);
    assert_eq!(outcome.reasoning, "why\n\n");
    assert_eq!(outcome.content, "So:\n");
    let calls: Vec<_> = outcome
        .calls
        .iter()
        .map(|c| (c.name.as_str(), c.arguments.as_str(), c.complete))
        .collect();
    assert_eq!(
        calls,
        [("f", r#"{"x": "1é"}"#, true), ("g", r#"{"x": "2"}"#, true)]
    );
    assert_eq!(
        outcome.usage.n_generated,
        bench.tokenizer.encode(&text).len()
    );
    assert_eq!(
        outcome.usage.n_reasoning,
        bench.tokenizer.encode("why\n\n</think>").len()
    );
    let (mut reasoning, mut content, mut arguments) = (String::new(), String::new(), String::new());
    for event in &events {
        match event {
            ReplyEvent::Reasoning { text, .. } => reasoning += text,
            ReplyEvent::Content { text, .. } => content += text,
            ReplyEvent::ToolArguments { index: 0, text } => arguments += text,
            _ => {}
        }
    }
    assert_eq!(reasoning, outcome.reasoning);
    assert_eq!(content, outcome.content);
    assert_eq!(arguments, outcome.calls[0].arguments);
    assert!(matches!(events[0], ReplyEvent::Started { n_cached: 0, .. }));
    let line = bench.log.lock().unwrap()[0].clone();
    assert!(
        line.contains("finish=tool_calls") && line.contains("the slots are empty"),
        "{line}"
    );
    assert!(!line.contains("So:"), "no text in the log: {line}");
}

#[test]
fn the_next_turn_computes_only_what_is_new_however_the_client_writes_it() {
    let first = format!("thinking hard</think>{}", block(&[("f", "a b")]));
    let bench = Bench::scripted(
        Behaviour::default(),
        [first.as_str(), "done</think>yes", "x"],
    );
    let ask = with_tools(chat(vec![Message::user("hi")]), &["f"]);
    let outcome = bench.outcome(ask.clone());
    // The client re-writes the arguments, drops the reasoning and renames the id's prefix.
    let mut again = Message::assistant("\n");
    again.tool_calls = vec![ToolCall {
        id: outcome.calls[0].id.replace("call_", "toolu_"),
        name: "f".to_owned(),
        arguments: "{ \"x\":\"a b\" }".to_owned(),
    }];
    let PromptSource::Messages(mut messages) = ask.prompt.clone() else {
        unreachable!()
    };
    messages.push(again);
    messages.push(Message::tool("toolu_", "42"));
    let mut second = ask.clone();
    second.prompt = PromptSource::Messages(messages.clone());
    let before = bench.seen.lock().unwrap().n_prefilled;
    let answer = bench.outcome(second);
    let new = "<｜end▁of▁sentence｜><｜User｜><tool_result>42</tool_result><｜Assistant｜><think>";
    let n_new = bench.tokenizer.encode(new).len();
    assert_eq!(
        bench.seen.lock().unwrap().n_prefilled - before,
        n_new,
        "only what stands behind the call is computed: {}",
        bench.log.lock().unwrap()[1]
    );
    assert_eq!(answer.usage.n_cached, answer.usage.n_prompt - n_new);
    let line = bench.log.lock().unwrap()[1].clone();
    assert!(line.contains("replayed=1/1"), "{line}");
    assert!(line.contains("goes on where slot 0 ends"), "{line}");

    // An answer without calls is found by what it answered; a changed one is not.
    let mut said = Message::assistant("yes");
    for (content, replayed) in [("yes", "replayed=2/2"), ("no", "replayed=1/2")] {
        said.content = content.to_owned();
        let mut third = ask.clone();
        let mut messages = messages.clone();
        messages.extend([said.clone(), Message::user("more")]);
        third.prompt = PromptSource::Messages(messages);
        bench.outcome(third);
        let line = bench.log.lock().unwrap().last().unwrap().clone();
        assert!(line.contains(replayed), "{content}: {line}");
    }
    assert!(bench.turns.lock().unwrap().knows_call(&outcome.calls[0].id));
}

#[test]
fn a_difference_behind_a_replayed_turn_is_placed_in_the_tokens_that_the_engine_got() {
    let first = format!("so much thought</think>  \n{}", block(&[("f", "a")]));
    let bench = Bench::scripted(
        Behaviour {
            n_slots: 1,
            ..Behaviour::default()
        },
        [first.as_str(), "x</think>y", "x</think>y"],
    );
    let ask = with_tools(chat(vec![Message::user("hi")]), &["f"]);
    let call = bench.outcome(ask.clone()).calls.remove(0);
    let mut said = Message::assistant("");
    said.tool_calls = vec![ToolCall {
        id: call.id.clone(),
        name: call.name,
        arguments: call.arguments,
    }];
    for result in ["the result is 1", "the result is 2"] {
        let mut next = ask.clone();
        if let PromptSource::Messages(messages) = &mut next.prompt {
            messages.extend([said.clone(), Message::tool(&*call.id, result)]);
        }
        bench.outcome(next);
    }
    let prompts = bench.seen.lock().unwrap().prompts.clone();
    let [one, two] = [1, 2].map(|at| bench.text(&prompts[at].0));
    assert!(
        one.contains("so much thought</think>  \n\n\n<｜DSML｜"),
        "replayed"
    );
    let byte = one.bytes().zip(two.bytes()).take_while(|(a, b)| a == b);
    let byte = byte.count();
    let line = bench.log.lock().unwrap()[2].clone();
    assert!(
        line.contains(&format!(
            "differs from what slot 0 holds at byte {byte} of the prompt, in message 4 of 4 \
             (tool result), token "
        )),
        "{line}"
    );
}

#[test]
fn a_stop_string_ends_the_content_and_nothing_else() {
    let mut generation = chat(vec![Message::user("hi")]);
    generation.stop = vec!["END".to_owned()];
    let bench = Bench::scripted(
        Behaviour::default(),
        ["END of thought</think>to the END of it", "x</think>EN"],
    );
    let outcome = bench.outcome(generation.clone());
    assert_eq!(outcome.finish, Finish::StopString("END".to_owned()));
    assert_eq!(outcome.reasoning, "END of thought");
    assert_eq!(outcome.content, "to the ");
    let outcome = bench.outcome(generation);
    assert_eq!(
        (outcome.finish, outcome.content.as_str()),
        (Finish::Stop, "EN")
    );
}

#[test]
fn limits_end_a_reply_and_say_which() {
    let behaviour = Behaviour {
        context: 60,
        ..Behaviour::default()
    };
    let endless = Script {
        endless: true,
        ..Script::from("</think>a")
    };
    let bench = Bench::scripted(behaviour, vec![endless; 3]);
    let mut generation = chat(vec![Message::user("hi")]);
    generation.max_tokens = Some(5);
    let outcome = bench.outcome(generation.clone());
    assert_eq!(
        (outcome.finish, outcome.usage.n_generated),
        (Finish::Length, 5)
    );
    assert_eq!(outcome.content, "aaaa");
    generation.max_tokens = Some(0);
    let outcome = bench.outcome(generation.clone());
    assert_eq!(
        (outcome.finish, outcome.usage.n_generated),
        (Finish::Length, 0)
    );
    generation.max_tokens = None;
    let outcome = bench.outcome(generation);
    assert_eq!(outcome.finish, Finish::ContextFull);
    assert_eq!(outcome.usage.n_prompt + outcome.usage.n_generated, 60);
}

#[test]
fn a_thinking_budget_forces_the_end_of_thinking() {
    let bench = Bench::scripted(Behaviour::default(), ["answer"]);
    let mut generation = chat(vec![Message::user("hi")]);
    generation.thinking.budget = Some(3);
    let outcome = bench.outcome(generation);
    assert_eq!(
        (outcome.reasoning.as_str(), outcome.content.as_str()),
        ("ans", "wer")
    );
    assert_eq!(outcome.usage.n_reasoning, 4, "the forced token counts");
    assert_eq!(
        bench.seen.lock().unwrap().forced,
        [bench.tokenizer.protocol().think_close]
    );
}

#[test]
fn a_required_call_is_opened_for_the_model() {
    let rest = "<｜DSML｜parameter name=\"x\" string=\"true\">1</｜DSML｜parameter>\n\
                </｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    for mode in [Mode::Chat, Mode::Thinking] {
        let script = match mode {
            Mode::Chat => rest.to_owned(),
            Mode::Thinking => format!("hm</think>{rest}"),
        };
        let bench = Bench::scripted(Behaviour::default(), [script.as_str()]);
        let mut generation = with_tools(chat(vec![Message::user("hi")]), &["f", "g"]);
        generation.thinking.mode = mode;
        generation.tool_choice = ToolChoice::Required(vec!["g".to_owned()]);
        let events = bench.events(generation);
        assert!(matches!(events[0], ReplyEvent::Started { .. }), "{mode:?}");
        let outcome = outcome_of(&events);
        assert_eq!(outcome.finish, Finish::ToolCalls, "{mode:?}");
        assert_eq!(outcome.calls[0].name, "g");
        assert_eq!(outcome.calls[0].arguments, r#"{"x": "1"}"#);
        let forced = "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"g\">\n";
        assert_eq!(
            outcome.usage.n_generated,
            bench.tokenizer.encode(&(forced.to_owned() + &script)).len(),
            "{mode:?}: forced tokens are generated"
        );
    }
    // Of several tools the model chooses, among their names only.
    let bench = Bench::scripted(Behaviour::default(), [format!("g\">\n{rest}").as_str()]);
    let mut generation = with_tools(chat(vec![Message::user("hi")]), &["f", "gg", "g"]);
    generation.thinking.mode = Mode::Chat;
    generation.tool_choice = ToolChoice::Required(Vec::new());
    assert_eq!(bench.outcome(generation).calls[0].name, "g");
    let seen = bench.seen.lock().unwrap();
    let allowed = |at: usize| {
        let set = seen.constraints[at].allowed.clone();
        set.map(|set| {
            (0..128u8)
                .filter(|b| set.contains(bench.tokenizer.encode(&char::from(*b).to_string())[0]))
                .map(char::from)
                .collect::<String>()
        })
    };
    assert_eq!(allowed(0).as_deref(), Some("fg"));
    assert_eq!(
        allowed(1).as_deref(),
        Some("\"g"),
        "g closes, or goes on to gg"
    );
    assert_eq!(allowed(2).as_deref(), Some(">"));
    assert_eq!(allowed(3).as_deref(), Some("\n"));
    assert_eq!(allowed(4).as_deref(), Some("\n<"), "a parameter, or none");
}

#[test]
fn one_call_is_all_when_parallel_calls_are_off() {
    let script = format!("x</think>{}", block(&[("f", "1"), ("f", "2")]));
    let bench = Bench::scripted(Behaviour::default(), [script.as_str(), "</think>ok"]);
    let mut generation = with_tools(chat(vec![Message::user("hi")]), &["f"]);
    generation.parallel_tool_calls = false;
    let outcome = bench.outcome(generation.clone());
    assert_eq!(
        (outcome.finish, outcome.calls.len()),
        (Finish::ToolCalls, 1)
    );
    // The next prompt has the block closed, in the model's tokens.
    let mut again = Message::assistant("");
    again.tool_calls = vec![ToolCall {
        id: outcome.calls[0].id.clone(),
        name: "f".to_owned(),
        arguments: outcome.calls[0].arguments.clone(),
    }];
    if let PromptSource::Messages(messages) = &mut generation.prompt {
        messages.extend([again, Message::tool(&*outcome.calls[0].id, "r")]);
    }
    bench.outcome(generation);
    let seen = bench.seen.lock().unwrap();
    let prompt = bench.text(&seen.prompts[1].0);
    let expected = format!("x</think>{}<｜end▁of▁sentence｜>", block(&[("f", "1")]));
    assert!(prompt.contains(&expected), "{prompt}");
}

#[test]
fn without_tools_the_markup_is_masked_and_read_as_text() {
    let bench = Bench::scripted(Behaviour::default(), ["a</think>b", "a</think>b"]);
    let dsml = bench.tokenizer.protocol().dsml;
    bench.outcome(chat(vec![Message::user("hi")]));
    let forbidden = |at: usize| bench.seen.lock().unwrap().constraints[at].forbidden.clone();
    assert!(forbidden(0).contains(&dsml), "from the answer on");
    let n = bench.seen.lock().unwrap().constraints.len();
    bench.outcome(chat(vec![Message::user("what is ｜DSML｜?")]));
    let seen = bench.seen.lock().unwrap();
    let masked = seen.constraints[n..]
        .iter()
        .any(|c| c.forbidden.contains(&dsml));
    assert!(!masked, "a user who asks about it may be told");
}

#[test]
fn a_block_that_cannot_be_read_is_content_or_an_error_never_a_call() {
    let broken = "x</think>\n\n<｜DSML｜tool_calls>\nnonsense";
    let half = format!(
        "x</think>{}nonsense",
        block(&[("f", "1")])
            .split("</｜DSML｜invoke>")
            .next()
            .unwrap()
    );
    let bench = Bench::scripted(Behaviour::default(), [broken, &half, &half]);
    let generation = with_tools(chat(vec![Message::user("hi")]), &["f"]);
    let outcome = bench.outcome(generation.clone());
    assert_eq!(outcome.finish, Finish::Stop);
    assert!(
        outcome.content.contains("<｜DSML｜tool_calls>\nn"),
        "{outcome:?}"
    );
    assert!(outcome.calls.is_empty());
    let events = bench.events(generation.clone());
    let Some(ReplyEvent::Failed(failure)) = events.last() else {
        panic!("a call that was shown in part is an error: {events:?}");
    };
    assert!(failure.message.contains("cannot be read"), "{failure}");
    let mut whole = generation;
    whole.stream = false;
    let outcome = bench.outcome(whole);
    assert!(
        outcome.calls.is_empty() && outcome.content.contains("invoke"),
        "{outcome:?}"
    );
}

#[test]
fn a_schema_holds_from_the_content_on_whatever_the_model_would_say() {
    let folder = tempfile::tempdir().unwrap();
    let path = speaking_model::write(folder.path());
    let mut options = OpenOptions::new(&path);
    options.backend = BackendKind::Reference;
    options.context = Some(512);
    let engine = Engine::open(&options, &mut |_| {}).expect("opens");
    let tokenizer = Arc::clone(engine.tokenizer().expect("a tokenizer"));
    let behaviour = Behaviour {
        n_slots: 1,
        context: 512,
        ..Behaviour::default()
    };
    let seen = Arc::new(Mutex::new(Seen::default()));
    let bench = Bench::new(Scheduler::new(engine), tokenizer, behaviour, seen);
    for seed in 0..4 {
        let mut generation = chat(vec![Message::user("hi")]);
        generation.thinking.mode = Mode::Chat;
        generation.sampling.seed = Some(seed);
        generation.max_tokens = Some(200);
        generation.schema = Some(OutputSchema {
            schema: json!({
                "type": "object",
                "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "bc"]}},
                "required": ["ok", "kind"],
                "additionalProperties": false,
            }),
            strict: true,
            place: "schema".to_owned(),
        });
        let outcome = bench.outcome(generation);
        assert_eq!(outcome.finish, Finish::Stop, "{outcome:?}");
        let value: serde_json::Value =
            serde_json::from_str(&outcome.content).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
        assert!(value["ok"].is_boolean(), "{value}");
        assert!(
            ["a", "bc"].contains(&value["kind"].as_str().expect("a kind")),
            "{value}"
        );
    }
}

#[test]
fn content_ends_within_its_tokens_whenever_they_are_enough_for_the_shortest() {
    let folder = tempfile::tempdir().unwrap();
    let path = speaking_model::write(folder.path());
    let mut options = OpenOptions::new(&path);
    options.backend = BackendKind::Reference;
    options.context = Some(2048);
    let engine = Engine::open(&options, &mut |_| {}).expect("opens");
    let tokenizer = Arc::clone(engine.tokenizer().expect("a tokenizer"));
    let behaviour = Behaviour {
        n_slots: 1,
        context: 2048,
        ..Behaviour::default()
    };
    let seen = Arc::new(Mutex::new(Seen::default()));
    let bench = Bench::new(Scheduler::new(engine), tokenizer, behaviour, seen);
    // Every byte is a token: `{"a": "", "b": [0], "c": {"d": 0}}` takes 34.
    let schema = json!({
        "type": "object",
        "properties": {
            "a": {"type": "string"},
            "b": {"type": "array", "minItems": 1, "items": {"type": "number"}},
            "c": {"type": "object", "properties": {"d": {"type": "integer"}, "e": {}},
                  "required": ["d"], "additionalProperties": false},
        },
        "required": ["a", "b", "c"],
        "additionalProperties": false,
    });
    for (seed, max_tokens) in (0..).zip([45, 50, 60, 90, 130, 200]) {
        for mode in [Mode::Chat, Mode::Thinking] {
            let mut generation = chat(vec![Message::user("hi")]);
            generation.thinking.mode = mode;
            generation.sampling.seed = Some(seed);
            generation.max_tokens = Some(max_tokens);
            generation.schema = Some(OutputSchema {
                schema: schema.clone(),
                strict: true,
                place: "schema".to_owned(),
            });
            let outcome = bench.outcome(generation);
            let value: serde_json::Value = serde_json::from_str(&outcome.content)
                .unwrap_or_else(|e| panic!("{e}: {max_tokens} {outcome:?}"));
            assert!(value["c"]["d"].is_number(), "{value}");
            assert!(outcome.usage.n_generated <= max_tokens, "{outcome:?}");
        }
    }
}

#[test]
fn a_model_that_talks_nonsense_still_writes_calls_that_can_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = speaking_model::write(folder.path());
    let mut options = OpenOptions::new(&path);
    options.backend = BackendKind::Reference;
    options.context = Some(2048);
    let engine = Engine::open(&options, &mut |_| {}).expect("opens");
    let tokenizer = Arc::clone(engine.tokenizer().expect("a tokenizer"));
    let behaviour = Behaviour {
        n_slots: 1,
        context: 2048,
        ..Behaviour::default()
    };
    let seen = Arc::new(Mutex::new(Seen::default()));
    let bench = Bench::new(Scheduler::new(engine), tokenizer, behaviour, seen);
    let function = |name: &str| {
        json!({"name": name, "parameters": {
            "type": "object",
            "properties": {
                "ok": {"type": "boolean"},
                "kind": {"enum": ["a", "bc"]},
                "none": {"type": "null"},
            },
            "required": ["kind", "ok"],
        }})
    };
    for seed in 0..4 {
        let mut generation = with_tools(chat(vec![Message::user("hi")]), &["f", "g", "h"]);
        for tool in &mut generation.tools {
            tool.function = function(&tool.name);
        }
        generation.thinking.mode = Mode::Chat;
        generation.sampling.seed = Some(seed);
        generation.max_tokens = Some(600);
        generation.parallel_tool_calls = false;
        generation.tool_choice = ToolChoice::Required(vec!["f".to_owned(), "h".to_owned()]);
        let outcome = bench.outcome(generation);
        assert_eq!(outcome.finish, Finish::ToolCalls, "{outcome:?}");
        let [call] = outcome.calls.as_slice() else {
            panic!("one call: {outcome:?}");
        };
        assert!(["f", "h"].contains(&call.name.as_str()), "{call:?}");
        let arguments: serde_json::Value =
            serde_json::from_str(&call.arguments).unwrap_or_else(|e| panic!("{e}: {call:?}"));
        assert!(arguments["ok"].is_boolean(), "{call:?}");
        let kind = arguments["kind"].as_str().expect("a kind");
        assert!(["a", "bc"].contains(&kind), "{call:?}");
    }
}

#[test]
fn a_request_that_wants_no_cache_computes_all_of_its_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let path = speaking_model::write(folder.path());
    let mut options = OpenOptions::new(&path);
    options.backend = BackendKind::Reference;
    options.context = Some(256);
    let engine = Engine::open(&options, &mut |_| {}).expect("opens");
    let tokenizer = Arc::clone(engine.tokenizer().expect("a tokenizer"));
    let behaviour = Behaviour {
        n_slots: 1,
        context: 256,
        ..Behaviour::default()
    };
    let seen = Arc::new(Mutex::new(Seen::default()));
    let bench = Bench::new(Scheduler::new(engine), tokenizer, behaviour, seen);
    let mut generation = chat(vec![Message::user("hi")]);
    generation.max_tokens = Some(3);
    bench.outcome(generation.clone());
    for (use_cache, cached, why) in [
        (true, true, "slot 0 holds all of it"),
        (false, false, "the request asks not to use what is cached"),
        (true, false, "the slots are empty"),
    ] {
        generation.use_cache = use_cache;
        let outcome = bench.outcome(generation.clone());
        assert_eq!(outcome.usage.n_cached > 0, cached, "{why}");
        let line = bench.log.lock().unwrap().last().unwrap().clone();
        assert!(line.contains(why), "{line}");
    }
}

#[test]
fn a_request_that_is_sent_again_joins_what_is_computed_for_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = speaking_model::write(folder.path());
    let mut options = OpenOptions::new(&path);
    options.backend = BackendKind::Reference;
    options.context = Some(512);
    options.n_slots = 2;
    options.chunk = Some(32);
    let engine = Engine::open(&options, &mut |_| {}).expect("opens");
    let tokenizer = Arc::clone(engine.tokenizer().expect("a tokenizer"));
    let behaviour = Behaviour {
        n_slots: 2,
        context: 512,
        ..Behaviour::default()
    };
    let seen = Arc::new(Mutex::new(Seen::default()));
    let bench = Bench::new(Scheduler::new(engine), tokenizer, behaviour, seen);
    let mut generation = chat(vec![Message::user("0123456789".repeat(20))]);
    generation.sampling = SamplingOptions::greedy();
    generation.max_tokens = Some(12);
    let first = bench.start(generation.clone());
    let second = bench.start(generation);
    let outcomes = [first, second].map(|(mut receiver, _ticket)| {
        let mut events = Vec::new();
        while let Some(event) = receiver.blocking_recv() {
            events.push(event);
        }
        outcome_of(&events)
    });
    let [first, second] = &outcomes;
    assert_eq!(first.usage.n_cached, 0);
    assert_eq!(second.usage.n_cached, second.usage.n_prompt - 1);
    assert_eq!(second.reasoning, first.reasoning);
    let lines = bench.log.lock().unwrap().join("\n");
    assert!(lines.contains("(copy)"), "{lines}");
    assert!(lines.contains("copied from slot 0"), "{lines}");
}

#[test]
fn a_dropped_ticket_stops_the_work_and_keeps_what_was_computed() {
    let behaviour = Behaviour {
        n_slots: 1,
        chunk: 16,
        tick: Duration::from_millis(5),
        ..Behaviour::default()
    };
    let bench = Bench::scripted(behaviour, ["never said", "</think>hello"]);
    let long = chat(vec![Message::user("0123456789".repeat(100))]);
    let (mut receiver, ticket) = bench.start(long.clone());
    loop {
        match receiver.blocking_recv().expect("it runs") {
            ReplyEvent::Progress { n_done, .. } if n_done >= 160 => break,
            _ => {}
        }
    }
    drop(ticket);
    while receiver.blocking_recv().is_some() {}
    let done = bench.seen.lock().unwrap().n_prefilled;
    assert!(
        done <= 160 + 3 * 16,
        "it stops within a chunk or so: {done}"
    );
    let outcome = bench.outcome(long);
    assert_eq!(
        outcome.usage.n_cached, done,
        "a retry goes on where the first try stopped"
    );
    assert_eq!(outcome.content, "hello");
    assert!(bench.log.lock().unwrap()[0].contains("finish=cancelled"));
}

#[test]
fn a_full_queue_refuses_and_forgets_nothing() {
    let behaviour = Behaviour {
        n_slots: 1,
        tick: Duration::from_millis(2),
        ..Behaviour::default()
    };
    let endless = Script {
        endless: true,
        ..Script::from("a")
    };
    let mut scripts = vec![endless];
    scripts.extend(["1</think>", "2</think>", "3</think>"].map(Script::from));
    let bench = Bench::scripted(behaviour, scripts);
    let generation = chat(vec![Message::user("hi")]);
    let first = bench.start(generation.clone());
    let waiting: Vec<_> = (0..2).map(|_| bench.start(generation.clone())).collect();
    let prompt = bench.prompter.tokens(&generation).unwrap();
    let refused = bench.worker.submit(Job {
        request_id: "late".to_owned(),
        reply_id: String::new(),
        client: Client::default(),
        generation: Arc::new(generation.clone()),
        prompt,
        schema: None,
        calls: None,
    });
    let Err(failure) = refused else {
        panic!("one runs and two wait: that is the limit")
    };
    assert_eq!(failure.kind, FailureKind::Overloaded);
    drop(first);
    for (mut receiver, _ticket) in waiting {
        let mut last = None;
        while let Some(event) = receiver.blocking_recv() {
            last = Some(event);
        }
        assert!(matches!(last, Some(ReplyEvent::Finished(_))), "{last:?}");
    }
    bench.outcome(generation);
    let ended = Instant::now();
    while bench.worker.load() != (0, 0) {
        assert!(
            ended.elapsed() < Duration::from_secs(5),
            "nothing runs or waits"
        );
    }
}

#[test]
fn a_bug_ends_the_requests_it_hit_and_not_the_server() {
    let panics = Script {
        panics_at: Some(2),
        ..Script::from("abcdef")
    };
    let fails = Script {
        fails_at: Some(2),
        ..Script::from("abcdef")
    };
    let bench = Bench::scripted(
        Behaviour::default(),
        [panics, fails, Script::from("</think>fine")],
    );
    let generation = chat(vec![Message::user("hi")]);
    for what in ["panic", "failed step"] {
        let events = bench.events(generation.clone());
        let Some(ReplyEvent::Failed(failure)) = events.last() else {
            panic!("{what}: {events:?}");
        };
        assert_eq!(failure.kind, FailureKind::Internal, "{what}");
    }
    assert_eq!(bench.outcome(generation).content, "fine");
}

#[test]
fn shutting_down_lets_replies_finish_and_gives_up_those_that_do_not() {
    let behaviour = Behaviour {
        tick: Duration::from_millis(2),
        ..Behaviour::default()
    };
    let endless = Script {
        endless: true,
        ..Script::from("a")
    };
    let bench = Bench::scripted(behaviour, [endless, Script::from("</think>short")]);
    let generation = chat(vec![Message::user("hi")]);
    let (mut long, _long) = bench.start(generation.clone());
    while !matches!(long.blocking_recv(), Some(ReplyEvent::Reasoning { .. })) {}
    let (mut short, _short) = bench.start(generation.clone());
    while !matches!(short.blocking_recv(), Some(ReplyEvent::Content { .. })) {}
    bench.worker.shut_down(Duration::from_millis(200));
    let prompt = bench.prompter.tokens(&generation).unwrap();
    let late = bench.worker.submit(Job {
        request_id: "late".to_owned(),
        reply_id: String::new(),
        client: Client::default(),
        generation: Arc::new(generation),
        prompt,
        schema: None,
        calls: None,
    });
    assert!(late.is_err_and(|f| f.kind == FailureKind::Unavailable));
    bench.worker.join();
    let last = |receiver: &mut UnboundedReceiver<ReplyEvent>| {
        let mut last = None;
        while let Some(event) = receiver.blocking_recv() {
            last = Some(event);
        }
        last
    };
    assert!(matches!(last(&mut short), Some(ReplyEvent::Finished(_))));
    let Some(ReplyEvent::Failed(failure)) = last(&mut long) else {
        panic!("the endless one is given up");
    };
    assert_eq!(failure.kind, FailureKind::Unavailable);
}

#[test]
fn a_real_model_says_the_same_alone_and_among_others_and_goes_on_from_its_cache() {
    let folder = tempfile::tempdir().unwrap();
    let path = speaking_model::write(folder.path());
    let open = |n_slots: usize| {
        let mut options = OpenOptions::new(&path);
        options.backend = BackendKind::Reference;
        options.context = Some(256);
        options.n_slots = n_slots;
        options.chunk = Some(32);
        let engine = Engine::open(&options, &mut |_| {}).expect("opens");
        let tokenizer = Arc::clone(engine.tokenizer().expect("a tokenizer"));
        let behaviour = Behaviour {
            n_slots,
            context: 256,
            ..Behaviour::default()
        };
        let seen = Arc::new(Mutex::new(Seen::default()));
        Bench::new(Scheduler::new(engine), tokenizer, behaviour, seen)
    };
    let asks = ["one", "two two", "three three three"].map(|text| {
        let mut generation = chat(vec![Message::user(text)]);
        generation.sampling = SamplingOptions::greedy();
        generation.max_tokens = Some(12);
        generation
    });
    let alone: Vec<Outcome> = {
        let bench = open(1);
        asks.iter().map(|ask| bench.outcome(ask.clone())).collect()
    };
    let bench = open(3);
    let started: Vec<_> = asks.iter().map(|ask| bench.start(ask.clone())).collect();
    for ((mut receiver, _ticket), alone) in started.into_iter().zip(&alone) {
        let mut events = Vec::new();
        while let Some(event) = receiver.blocking_recv() {
            events.push(event);
        }
        let together = outcome_of(&events);
        assert_eq!(together.reasoning, alone.reasoning);
        assert_eq!(together.content, alone.content);
        assert_eq!(together.finish, alone.finish);
    }
    // The same request again computes its last token only.
    let again = bench.outcome(asks[2].clone());
    assert_eq!(again.usage.n_cached, again.usage.n_prompt - 1);
    assert_eq!(again.reasoning, alone[2].reasoning);
}
