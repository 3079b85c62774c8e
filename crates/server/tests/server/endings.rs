//! How requests end, and what is written down of them.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ds4_engine::{Constraint, Event, Request, RequestError, Reuse, SequenceId, SlotUse, StepError};
use ds4_server::bookkeeper::MAX_ENTRIES;
use ds4_server::generation::{FailureKind, ReplyEvent};
use ds4_server::http::ServerOptions;
use ds4_server::log::Client;
use ds4_server::worker::{Health, Job, TokenSource};
use ds4_text::Message;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::bench::{Bench, chat};
use crate::script::{Behaviour, Script, ScriptedSource, Seen, tokenizer};
use crate::web::Web;

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
    assert!(done < 1000, "it stops before the prompt's end: {done}");
    let outcome = bench.outcome(long);
    assert_eq!(
        outcome.usage.n_cached, done,
        "a retry goes on where the first try stopped"
    );
    assert_eq!(outcome.content, "hello");
    let line = &bench.log()[0];
    assert!(line.contains("finish=cancelled"), "{line}");
    let computed = format!(" computed={done} ");
    assert!(line.contains(&computed), "not the whole prompt: {line}");
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
            ended.elapsed() < Duration::from_secs(60),
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

/// A source like another one, but for one thing.
struct Odd {
    source: ScriptedSource,
    /// Said when a step begins; each waits until the test takes it.
    steps: Option<Sender<()>>,
    blocks: Option<Arc<Mutex<()>>>,
    panics_when_asked: bool,
    panics_when_idle: bool,
}

impl Odd {
    fn new(scripts: &[&str]) -> Odd {
        let scripts = scripts.iter().map(|script| Script::from(*script)).collect();
        Odd {
            source: ScriptedSource::new(
                tokenizer(),
                Behaviour::default(),
                Arc::new(Mutex::new(scripts)),
                Arc::new(Mutex::new(Seen::default())),
            ),
            steps: None,
            blocks: None,
            panics_when_asked: false,
            panics_when_idle: false,
        }
    }
}

impl TokenSource for Odd {
    fn submit(&mut self, request: Request) -> Result<SequenceId, RequestError> {
        self.source.submit(request)
    }
    fn constrain(&mut self, id: SequenceId, constraint: Constraint) {
        self.source.constrain(id, constraint);
    }
    fn force(&mut self, id: SequenceId, tokens: &[u32]) {
        self.source.force(id, tokens);
    }
    fn cancel(&mut self, id: SequenceId) {
        self.source.cancel(id);
    }
    fn contains(&self, id: SequenceId) -> bool {
        self.source.contains(id)
    }
    fn reuse(&self, id: SequenceId) -> Option<Reuse> {
        self.source.reuse(id)
    }
    fn slots(&self) -> Vec<SlotUse> {
        self.source.slots()
    }
    fn is_idle(&self) -> bool {
        assert!(!self.panics_when_asked, "the test says so");
        self.source.is_idle()
    }
    fn tick(&mut self) -> Result<Vec<Event>, StepError> {
        if let (Some(steps), Some(blocks)) = (&self.steps, &self.blocks) {
            let _ = steps.send(());
            drop(blocks.lock());
        }
        self.source.tick()
    }
    fn reset(&mut self) {
        self.source.reset();
    }
    fn take_notices(&mut self) -> Vec<String> {
        assert!(!self.panics_when_idle, "the test says so");
        Vec::new()
    }
    fn save_idle(&mut self) -> Option<Duration> {
        assert!(!self.panics_when_idle, "the test says so");
        None
    }
}

fn hello() -> ds4_server::generation::Generation {
    chat(vec![Message::user("hi")])
}

#[test]
fn a_log_that_panics_loses_no_reply() {
    let script = ["</think>one", "</think>two"];
    let seen = Arc::new(Mutex::new(Seen::default()));
    let odd = Odd::new(&script);
    let bench = Bench::with(odd, tokenizer(), Behaviour::default(), seen, |options| {
        options.log = Arc::new(|_| panic!("standard error is closed"));
        options.note = Arc::new(|_| panic!("standard error is closed"));
    });
    assert_eq!(bench.outcome(hello()).content, "one");
    bench.worker.settle();
    assert_eq!(bench.outcome(hello()).content, "two");
    bench.worker.note("said to nobody".to_owned());
    bench.worker.settle();
    assert_eq!(bench.worker.health(), Health::Well);
}

#[test]
fn a_log_that_takes_nothing_holds_up_nobody_and_says_later_what_it_missed() {
    let n_requests = MAX_ENTRIES + 40;
    let scripts = vec!["</think>x"; n_requests];
    let seen = Arc::new(Mutex::new(Seen::default()));
    let blocks = Arc::new(Mutex::new(()));
    let (lines, notes) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(Vec::new())));
    let held = blocks.lock().unwrap();
    let (for_log, n_lines) = (Arc::clone(&blocks), Arc::clone(&lines));
    let said = Arc::clone(&notes);
    let odd = Odd::new(&scripts);
    let bench = Bench::with(odd, tokenizer(), Behaviour::default(), seen, |options| {
        options.log = Arc::new(move |_| {
            drop(for_log.lock());
            *n_lines.lock().unwrap() += 1;
        });
        options.note = Arc::new(move |line| said.lock().unwrap().push(line.to_owned()));
    });
    for _ in 0..n_requests {
        assert_eq!(bench.outcome(hello()).content, "x");
    }
    // One is being written, and the queue is full.
    let n_left_out = bench.worker.n_left_out();
    let n_written = n_requests - n_left_out as usize;
    assert!(
        (MAX_ENTRIES..=MAX_ENTRIES + 1).contains(&n_written),
        "{n_written}"
    );
    drop(held);
    bench.worker.shut_down(Duration::from_secs(1));
    bench.worker.join();
    assert_eq!(
        *lines.lock().unwrap(),
        n_written,
        "what was queued is written"
    );
    let notes = notes.lock().unwrap().join(" ");
    assert!(notes.contains(&format!("{n_left_out} entries")), "{notes}");
}

#[test]
fn states_that_cannot_be_saved_do_not_end_the_thread() {
    let mut odd = Odd::new(&["</think>one", "</think>two"]);
    odd.panics_when_idle = true;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let bench = Bench::new(odd, tokenizer(), Behaviour::default(), seen);
    assert_eq!(bench.outcome(hello()).content, "one");
    assert_eq!(bench.outcome(hello()).content, "two");
    assert_eq!(bench.worker.health(), Health::Well);
}

#[test]
fn a_step_that_does_not_end_is_seen_from_outside() {
    let blocks = Arc::new(Mutex::new(()));
    let held = blocks.lock().unwrap();
    let (steps, begun) = channel();
    let mut odd = Odd::new(&["</think>one"]);
    (odd.steps, odd.blocks) = (Some(steps), Some(Arc::clone(&blocks)));
    let seen = Arc::new(Mutex::new(Seen::default()));
    let bench = Bench::with(odd, tokenizer(), Behaviour::default(), seen, |options| {
        options.stalled_after = Duration::ZERO;
    });
    assert_eq!(bench.worker.health(), Health::Well);
    let (mut receiver, _ticket) = bench.start(hello());
    begun.recv().expect("a step begins");
    assert_eq!(bench.worker.health(), Health::Stalled);
    drop(held);
    while receiver.blocking_recv().is_some() {}
    bench.worker.shut_down(Duration::from_secs(1));
    bench.worker.join();
    assert_eq!(bench.worker.health(), Health::Ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_when_the_engine_has_stopped() {
    let web = Web::loading(ServerOptions::default()).await;
    let mut odd = Odd::new(&[]);
    odd.panics_when_asked = true;
    web.load_source(odd, &Behaviour::default());
    loop {
        let answer = web.get("/health").await;
        if answer.status == 503 {
            assert_eq!(answer.json()["status"], "engine stopped");
            break;
        }
        assert_eq!(answer.status, 200);
        tokio::task::yield_now().await;
    }
    let body = serde_json::json!({"messages": [{"role": "user", "content": "hi"}]});
    let answer = web.post("/v1/chat/completions", &body).await;
    assert_eq!(answer.status, 503);
}

#[test]
fn a_prompt_that_is_given_up_counts_as_far_as_it_was_computed() {
    let behaviour = Behaviour {
        n_slots: 1,
        chunk: 16,
        tick: Duration::from_millis(5),
        ..Behaviour::default()
    };
    let seen = Arc::new(Mutex::new(Seen::default()));
    let source = ScriptedSource::new(
        tokenizer(),
        behaviour.clone(),
        Arc::new(Mutex::new(["never said".into()].into())),
        Arc::clone(&seen),
    );
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&lines);
    let bench = Bench::with(source, tokenizer(), behaviour, seen, |options| {
        options.log = Arc::new(move |line| kept.lock().unwrap().push(line.clone()));
    });
    let long = chat(vec![Message::user("0123456789".repeat(100))]);
    let (mut receiver, ticket) = bench.start(long);
    loop {
        match receiver.blocking_recv().expect("it runs") {
            ReplyEvent::Progress { n_done, .. } if n_done >= 160 => break,
            _ => {}
        }
    }
    drop(ticket);
    while receiver.blocking_recv().is_some() {}
    bench.worker.settle();
    let lines = lines.lock().unwrap();
    let n_computed = bench.seen.lock().unwrap().n_prefilled;
    assert_eq!(lines[0].timings.n_prefilled, n_computed);
    assert!(n_computed < lines[0].usage.n_prompt);
}
