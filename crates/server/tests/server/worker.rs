//! What a request sees of the worker, under the protocols.

use std::sync::{Arc, Mutex};

use ds4_conformance::speaking_model;
use ds4_engine::{BackendKind, Engine, OpenOptions, SamplingOptions, Scheduler};
use ds4_server::generation::{Finish, Outcome, OutputSchema, PromptSource, ReplyEvent, ToolChoice};
use ds4_text::{Message, Mode, ToolCall};
use serde_json::json;

use crate::bench::{Bench, block, chat, outcome_of, with_tools};
use crate::script::{Behaviour, Script, Seen};

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
    let line = bench.log()[0].clone();
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
        bench.log()[1]
    );
    assert_eq!(answer.usage.n_cached, answer.usage.n_prompt - n_new);
    let line = bench.log()[1].clone();
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
        let line = bench.log().last().unwrap().clone();
        assert!(line.contains(replayed), "{content}: {line}");
    }
    assert!(bench.turns.knows_call(&outcome.calls[0].id));
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
    let line = bench.log()[2].clone();
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
        let line = bench.log().last().unwrap().clone();
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
    let lines = bench.log().join("\n");
    assert!(lines.contains("(copy)"), "{lines}");
    assert!(lines.contains("copied from slot 0"), "{lines}");
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
