//! Conversations of many turns, kept by clients as coding agents keep them: at every turn the
//! model's own tokens stand in the prompt, and only what is new is computed. The model is the
//! small one, with its real scheduler, KV state and store; what it says is written down.

#[path = "../../common/actor.rs"]
mod actor;
mod clients;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ds4_engine::store::{
    CompatInputs, CompatKey, SlotLayout, Store, StoreOptions, TurnLogOptions, WeightsFingerprint,
};
use ds4_engine::{CacheRounding, Engine, Event, OpenOptions, Request, SamplingOptions, Scheduler};
use ds4_server::http::{ModelFacts, ServerOptions};
use ds4_text::Tokenizer;
use serde_json::json;

use crate::backend::test_backend;
use crate::web::Web;
use actor::{Actor, Take, Takes};
use clients::{Client, Habit};

/// Tokens of a slot.
const CONTEXT: usize = 16_384;

/// What the model says in a turn, and what its calls give.
struct Turn {
    /// What the user says before it.
    user: Option<&'static str>,
    reasoning: &'static str,
    content: &'static str,
    /// Tool, parameters (name, whether a string, value as written), result.
    calls: &'static [(&'static str, &'static [Parameter], &'static str)],
}

type Parameter = (&'static str, bool, &'static str);

const SCRIPT: [Turn; 12] = [
    Turn {
        user: Some("Please look at the files.\nStart with a.txt."),
        reasoning: "The user wants me to look at files. I read the first one.",
        content: "",
        calls: &[(
            "read",
            &[("limit", false, "10.0"), ("path", true, "a.txt")],
            "1\tfirst line\n2\tsecond line — with a dash\n",
        )],
    },
    Turn {
        user: None,
        reasoning: "Two more, at once. 😀 Why not?\n\nYes.",
        content: "Now I list the folder twice.",
        calls: &[
            (
                "exec",
                &[
                    ("timeout", false, "1.0"),
                    ("command", true, "ls -la 'é'  \n"),
                    ("description", true, "Lists \"é\""),
                    ("env", false, "[\"A=\\u00e9\", \"B\"]"),
                ],
                "total 0\n",
            ),
            (
                "exec",
                &[("command", true, "ls < /dev/null && echo '</x>'")],
                "a.txt\nb.txt\n</x>\n",
            ),
        ],
    },
    Turn {
        user: None,
        reasoning: "I need a tool that is not there.",
        content: "\n",
        calls: &[("search", &[("query", true, "fetch")], "fetch: loaded")],
    },
    Turn {
        user: None,
        reasoning: " leading and trailing blanks ",
        content: "",
        calls: &[(
            "fetch",
            &[("url", true, "http://localhost/?q=%20&x=1")],
            "<html>&lt;p&gt; 12.50 €</html>",
        )],
    },
    Turn {
        user: None,
        reasoning: "Enough.",
        content: "There are two files. 🎉🎉\n\n- a.txt\n- b.txt\n",
        calls: &[],
    },
    Turn {
        user: Some("And now change one of them."),
        reasoning: "A patch.",
        content: "I change it.\n",
        calls: &[(
            "patch",
            &[(
                "input",
                true,
                "*** Begin\n-first line\n+First line\n*** End\n",
            )],
            "Done!",
        )],
    },
    Turn {
        user: None,
        reasoning: "Let another one look at it.",
        content: "",
        calls: &[(
            "spawn",
            &[("task", true, "Check a.txt")],
            "It says: First line",
        )],
    },
    Turn {
        user: None,
        reasoning: "",
        content: "Changed and checked.",
        calls: &[],
    },
    Turn {
        user: Some("Thanks. Once more, everything."),
        reasoning: "Everything again:\n1. read\n2. read\n3. list",
        content: "",
        calls: &[
            ("read", &[("path", true, "a.txt")], "First line\n"),
            (
                "read",
                &[("path", true, "b.txt"), ("limit", false, "2")],
                "",
            ),
            ("exec", &[("command", true, "ls")], "a.txt\nb.txt"),
        ],
    },
    Turn {
        user: None,
        reasoning: "b.txt is empty. Is it?",
        content: "Strange:",
        calls: &[(
            "exec",
            &[
                ("env", false, "[\"\\u0041=1\"]"),
                ("command", true, "wc -c b.txt"),
            ],
            "0 b.txt",
        )],
    },
    Turn {
        user: None,
        reasoning: "It is.",
        content: "",
        calls: &[("read", &[("path", true, "b.txt")], "")],
    },
    Turn {
        user: None,
        reasoning: "So be it.",
        content: "`b.txt` is empty:\n\n```\n\n```\n",
        calls: &[],
    },
];

impl Turn {
    /// The tokens of the reply. Reasoning and content are torn into pieces of three characters, so
    /// that no tokenizer would give these tokens for their text.
    fn tokens(&self, tokenizer: &Tokenizer, habit: Habit) -> Vec<u32> {
        let torn = |text: &str| -> Vec<u32> {
            let chars: Vec<char> = text.chars().collect();
            let pieces = chars
                .chunks(3)
                .map(|piece| piece.iter().collect::<String>());
            pieces
                .flat_map(|piece| tokenizer.encode_ordinary(&piece))
                .collect()
        };
        let mut tokens = torn(self.reasoning);
        tokens.extend(tokenizer.encode("</think>"));
        tokens.extend(torn(self.content));
        if self.calls.is_empty() {
            return tokens;
        }
        let mut block = "\n\n<｜DSML｜tool_calls>\n".to_owned();
        for (name, parameters, _) in self.calls {
            let name = habit.name_in_prompt(name);
            block += &format!("<｜DSML｜invoke name=\"{name}\">\n");
            for (key, is_string, value) in *parameters {
                block += &format!(
                    "<｜DSML｜parameter name=\"{key}\" string=\"{is_string}\">{value}</｜DSML｜parameter>\n"
                );
            }
            block += "</｜DSML｜invoke>\n";
        }
        block += "</｜DSML｜tool_calls>";
        tokens.extend(tokenizer.encode(&block));
        tokens
    }
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/ds4-small-q8_0.gguf")
}

fn engine(n_slots: usize) -> Engine {
    let mut options = OpenOptions::new(model());
    options.context = Some(CONTEXT);
    options.n_slots = n_slots;
    options.backend = test_backend();
    Engine::open(&options, &mut |_| {}).expect("the small model opens")
}

/// A server whose states and turns outlive it.
struct House {
    folder: tempfile::TempDir,
    n_slots: usize,
    /// Lines of the requests to come, in order.
    lines: Arc<Mutex<VecDeque<Option<Vec<u32>>>>>,
    takes: Takes,
    tokenizer: Arc<Tokenizer>,
    web: Option<Web>,
}

impl House {
    async fn open(n_slots: usize) -> House {
        let mut house = House {
            folder: tempfile::tempdir().expect("a temporary folder"),
            n_slots,
            lines: Arc::default(),
            takes: Takes::default(),
            tokenizer: Arc::clone(engine(1).tokenizer().expect("a tokenizer")),
            web: None,
        };
        house.start().await;
        house
    }

    async fn start(&mut self) {
        let engine = engine(self.n_slots);
        let layout = SlotLayout::new(engine.geometry(), CacheRounding::default());
        let key = CompatKey::new(
            &CompatInputs {
                geometry: engine.geometry(),
                weights: WeightsFingerprint([7; 32]),
                tokenizer: [7; 32],
                numerics_class: "cpu",
            },
            &layout,
        );
        let folder = self.folder.path().join("kv");
        let options = StoreOptions {
            keep_free_bytes: 0,
            ..StoreOptions::default()
        };
        let store = Store::open(folder, options, key, layout).expect("a store");
        let log = store
            .open_turn_log(TurnLogOptions::default())
            .expect("a log");
        let facts = ModelFacts {
            name: "Small".to_owned(),
            n_context: engine.context(),
            n_slots: self.n_slots,
            ..ModelFacts::default()
        };
        let scheduler = Scheduler::new(engine).with_store(store);
        let lines = Arc::clone(&self.lines);
        let next = move |_: &[u32]| lines.lock().unwrap().pop_front().expect("a line for each");
        let source = Actor::new(scheduler, Box::new(next), Arc::clone(&self.takes));
        let web = Web::loading(ServerOptions::default()).await;
        web.server
            .load(source, Arc::clone(&self.tokenizer), facts, Some(log))
            .expect("a thread");
        self.web = Some(web);
    }

    /// Stops as on SIGTERM, and starts again with nothing but what is on disk.
    async fn restart(&mut self) {
        let mut web = self.web.take().expect("it runs");
        web.begin_stop();
        let server = Arc::clone(&web.server);
        drop(web);
        tokio::task::spawn_blocking(move || server.join())
            .await
            .expect("the worker ends");
        self.start().await;
    }

    fn web(&self) -> &Web {
        self.web.as_ref().expect("it runs")
    }

    /// One turn of a client: request, reply, results. What the engine saw of it.
    async fn turn(&mut self, client: &mut Client, habit: Habit, turn: &Turn) -> Take {
        if let Some(text) = turn.user {
            client.ask(text);
        }
        let line = turn.tokens(&self.tokenizer, habit);
        self.lines.lock().unwrap().push_back(Some(line.clone()));
        let body = client.request().to_string();
        let path = client.path();
        let answer = self.web().ask("POST", path, &client.headers(), &body).await;
        let calls = client.hear(&answer.events());
        assert_eq!(calls.len(), turn.calls.len(), "{habit:?}");
        if !calls.is_empty() {
            let results: Vec<String> = turn.calls.iter().map(|c| c.2.to_owned()).collect();
            client.give(&calls, &results);
        }
        let take = self.last_take();
        assert_eq!(take.said, line, "{habit:?}");
        take
    }

    fn last_take(&self) -> Take {
        let takes = self.takes.lock().unwrap();
        takes.last().cloned().expect("a take")
    }

    /// A short request without tools, as agents send for titles.
    async fn title(&mut self, about: &str) {
        let line = self.tokenizer.encode("A title");
        self.lines.lock().unwrap().push_back(Some(line));
        let body = json!({"model": "mini", "messages": [
            {"role": "system", "content": "Give the conversation a title."},
            {"role": "user", "content": about},
        ]});
        let answer = self.web().post("/v1/chat/completions", &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Asserts that a turn begins with everything that came before it and computes nothing of that.
///
/// What a reply that ended itself said last was never given to the network, and neither was the
/// token that ends one: with the first token of what is new they are computed now.
#[track_caller]
fn assert_only_new(before: &Take, take: &Take, what: &str) {
    let whole = [&before.prompt[..], &before.said].concat();
    let n_alike = whole
        .iter()
        .zip(&take.prompt)
        .take_while(|(a, b)| a == b)
        .count();
    assert_eq!(
        n_alike,
        whole.len(),
        "{what}: the prompt departs from what was said"
    );
    assert!(
        take.n_cached + 1 >= whole.len(),
        "{what}: {} of {} tokens were computed, and only {} are new",
        take.prompt.len() - take.n_cached,
        take.prompt.len(),
        take.prompt.len() - whole.len(),
    );
}

/// Twelve turns of one client. After the turns of `restarts` the server is started again.
async fn converse(habit: Habit, restarts: &[usize]) {
    let mut house = House::open(2).await;
    let mut client = Client::new(habit, "one");
    let mut before: Option<Take> = None;
    for (number, turn) in SCRIPT.iter().enumerate() {
        let take = house.turn(&mut client, habit, turn).await;
        if let Some(before) = &before {
            assert_only_new(before, &take, &format!("{habit:?}, turn {number}"));
        }
        before = Some(take);
        if restarts.contains(&number) {
            house.restart().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_agents_conversation_computes_only_what_is_new() {
    for habit in Habit::ALL {
        converse(habit, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_agents_conversation_computes_only_what_is_new_after_every_restart() {
    for habit in Habit::ALL {
        converse(habit, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_and_titles_on_fewer_slots_compute_only_what_is_new() {
    let mut house = House::open(2).await;
    let habits = [Habit::ClaudeCode, Habit::Codex, Habit::PiChat];
    let mut clients = ["one", "two", "three"]
        .into_iter()
        .zip(habits)
        .map(|(session, habit)| (Client::new(habit, session), habit, None))
        .collect::<Vec<(Client, Habit, Option<Take>)>>();
    for (number, turn) in SCRIPT.iter().enumerate() {
        for (client, habit, before) in &mut clients {
            let take = house.turn(client, *habit, turn).await;
            if let Some(before) = before {
                assert_only_new(before, &take, &format!("{habit:?}, turn {number}"));
            }
            *before = Some(take);
            if turn.user.is_some() {
                house.title(turn.user.unwrap_or_default()).await;
            }
        }
    }
}

/// A session that is taken up again with another last message, as agents do that put the date or a
/// reminder before what the user says, and that let the user edit it.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_last_user_text_was_changed_goes_on_from_the_turn_before() {
    for habit in [Habit::ClaudeCode, Habit::Codex, Habit::PiChat] {
        let mut house = House::open(2).await;
        let mut client = Client::new(habit, "one");
        for turn in &SCRIPT[..5] {
            house.turn(&mut client, habit, turn).await;
        }
        let before = house.last_take();
        let mut resumed = client.clone();
        for turn in &SCRIPT[5..8] {
            house.turn(&mut client, habit, turn).await;
        }
        let changed = Turn {
            user: Some("Today is Tuesday. And now change the other one."),
            ..SCRIPT[5]
        };
        let take = house.turn(&mut resumed, habit, &changed).await;
        assert_only_new(&before, &take, &format!("{habit:?}"));
    }
}

/// The same when the server was started again in between: what the disk has of such a session
/// reaches to the text that was changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_last_user_text_that_changed_over_a_restart_is_all_that_is_computed() {
    for (habit, n_more) in [
        (Habit::ClaudeCode, 1),
        (Habit::Codex, 2),
        (Habit::PiChat, 3),
    ] {
        let mut house = House::open(2).await;
        let mut client = Client::new(habit, "one");
        for turn in &SCRIPT[..5] {
            house.turn(&mut client, habit, turn).await;
        }
        let before = house.last_take();
        let mut resumed = client.clone();
        for turn in &SCRIPT[5..5 + n_more] {
            house.turn(&mut client, habit, turn).await;
        }
        house.restart().await;
        let changed = Turn {
            user: Some("Today is Tuesday. And now change the other one."),
            ..SCRIPT[5]
        };
        let take = house.turn(&mut resumed, habit, &changed).await;
        assert_only_new(
            &before,
            &take,
            &format!("{habit:?}, {n_more} replies later"),
        );
    }
}

/// What was changed further back than the store has states is computed, and the log says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_user_text_that_changed_over_a_restart_is_computed_and_the_log_says_why() {
    let habit = Habit::PiChat;
    let mut house = House::open(2).await;
    let mut client = Client::new(habit, "one");
    let mut resumed = client.clone();
    for turn in &SCRIPT[..8] {
        house.turn(&mut client, habit, turn).await;
    }
    house.restart().await;
    let changed = Turn {
        user: Some("Please look at the other files."),
        ..SCRIPT[0]
    };
    let take = house.turn(&mut resumed, habit, &changed).await;
    let line = house.web().log.lock().unwrap().join("\n");
    let n_new = take.prompt.len() - take.n_cached;
    assert!(line.contains(&format!("{n_new} new: ")), "{line}");
    let why = "what is on disk differs at byte ";
    assert!(line.contains(why) && line.contains("(user text)"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_cut_short_stands_in_its_own_tokens_if_it_was_kept_and_had_thought_to_the_end() {
    let house = House::open(1).await;
    let turn = Turn {
        user: None,
        reasoning: "First I think about it for a while, in some words.",
        content: "Then I say what I think of it, in more words than there is room for.",
        calls: &[],
    };
    let line = turn.tokens(&house.tokenizer, Habit::PiChat);
    let close = house.tokenizer.protocol().think_close;
    let n_reasoning = line.iter().position(|t| *t == close).expect("it ends");
    let in_content = n_reasoning + 9;
    for (n, keeps, replays) in [
        (n_reasoning - 5, true, false),
        (in_content, true, true),
        (in_content - 1, false, false),
    ] {
        let mut messages = vec![
            json!({"role": "system", "content": "You think and say."}),
            json!({"role": "user", "content": format!("Say it. ({n})")}),
        ];
        let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
        house.lines.lock().unwrap().push_back(Some(line.clone()));
        let body = json!({
            "messages": messages, "max_tokens": n, "tools": tools, "cache_prompt": keeps,
        });
        let answer = house.web().post("/v1/chat/completions", &body).await.json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "length", "{answer}");
        let before = house.last_take();
        messages.push(choice["message"].clone());
        messages.push(json!({"role": "user", "content": "Go on."}));
        house.lines.lock().unwrap().push_back(Some(Vec::new()));
        let body = json!({"messages": messages, "tools": tools});
        let answer = house.web().post("/v1/chat/completions", &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let take = house.last_take();
        let whole = [&before.prompt[..], &before.said].concat();
        assert_eq!(take.prompt.starts_with(&whole), replays, "cut after {n}");
        let behind = &take.prompt[before.prompt.len()..];
        assert!(behind.contains(&close), "the reasoning is closed");
    }
}

/// What an engine that never saw anything says to a prompt, greedily.
fn from_nothing(prompt: &[u32], n: usize) -> Vec<u32> {
    let mut scheduler = Scheduler::new(engine(1));
    let request = Request {
        tokens: prompt.to_vec(),
        sampling: SamplingOptions::greedy(),
        max_tokens: n,
        ..Request::default()
    };
    scheduler.submit(request).expect("accepted");
    let mut said = Vec::new();
    while !scheduler.is_idle() {
        for event in scheduler.tick().expect("steps") {
            if let Event::Token { token, .. } = event {
                said.push(token);
            }
        }
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_and_read_back_goes_on_as_if_it_had_just_been_computed() {
    const N: usize = 24;
    let habit = Habit::Codex;
    let mut house = House::open(1).await;
    let mut client = Client::new(habit, "one");
    for (number, turn) in SCRIPT.iter().enumerate() {
        house.turn(&mut client, habit, turn).await;
        if number % 3 == 2 {
            house.restart().await;
        }
    }
    client.ask("What did you do?");
    let mut body = client.request();
    body["temperature"] = json!(0);
    body["max_output_tokens"] = json!(N);
    body["tool_choice"] = json!("none");
    house.lines.lock().unwrap().push_back(None);
    let answer = house.web().post(client.path(), &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let take = house.last_take();
    assert!(take.n_cached > take.prompt.len() - 64);
    assert!(!take.said.is_empty());
    let fresh = from_nothing(&take.prompt, N);
    assert_eq!(take.said[..], fresh[..take.said.len()]);
}
