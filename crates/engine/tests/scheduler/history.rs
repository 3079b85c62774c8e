//! Whatever happened before, a reply is the one of a fresh engine.

use std::collections::HashMap;
use std::time::Duration;

use ds4_conformance::golden::Golden;
use ds4_engine::{BackendKind, Engine, OpenOptions, Request, Scheduler, SchedulerOptions};
use ds4_engine::{Event, SequenceId};
use proptest::prelude::*;

use crate::harness::{by_hand, greedy, long_prompt, model, open_store};

const CONTEXT: usize = 1024;
const N_SLOTS: usize = 3;
/// Longest prompt: a conversation that has grown longer begins again.
const MOST_PROMPT: usize = 700;

/// Something that a client or the server does.
#[derive(Clone, Debug)]
enum Action {
    /// A conversation goes on with so many tokens, and wants a reply of so many.
    Send { of: usize, n_new: usize, n: usize },
    /// Its last request again.
    Regenerate { of: usize, n: usize },
    /// Its last request, other from so many tokens before its end.
    Edit { of: usize, back: usize, n: usize },
    /// It begins again as a copy of another one's history.
    Branch { of: usize, from: usize },
    /// It begins again: with the common system text, cut to so many tokens.
    Restart { of: usize, n_system: usize },
    /// Its request is given up.
    Cancel { of: usize },
    /// The engine runs so many steps.
    Tick { n: usize },
    /// Slots that rest are written.
    Rest,
    /// The server starts anew on what is on disk.
    Reboot,
}

fn action() -> impl Strategy<Value = Action> {
    let of = 0..4usize;
    let n = prop::sample::select(vec![0usize, 1, 3, 20, 70, 130]);
    let n_new = prop::sample::select(vec![1usize, 2, 9, 40, 128, 200]);
    prop_oneof![
        6 => (of.clone(), n_new, n.clone()).prop_map(|(of, n_new, n)| Action::Send { of, n_new, n }),
        2 => (of.clone(), n.clone()).prop_map(|(of, n)| Action::Regenerate { of, n }),
        2 => (of.clone(), 1..150usize, n).prop_map(|(of, back, n)| Action::Edit { of, back, n }),
        2 => (of.clone(), of.clone()).prop_map(|(of, from)| Action::Branch { of, from }),
        1 => (of.clone(), prop::sample::select(vec![1usize, 60, 128, 300]))
            .prop_map(|(of, n_system)| Action::Restart { of, n_system }),
        2 => of.prop_map(|of| Action::Cancel { of }),
        6 => (1..120usize).prop_map(|n| Action::Tick { n }),
        1 => Just(Action::Rest),
        1 => Just(Action::Reboot),
    ]
}

/// What a client knows of its conversation.
#[derive(Clone, Default)]
struct Conversation {
    /// Everything said so far.
    history: Vec<u32>,
    /// Tokens of the last prompt.
    n_prompt: usize,
    n_system: usize,
    running: Option<SequenceId>,
}

struct Asked {
    of: usize,
    request: Request,
    reply: Vec<u32>,
    n_cached: usize,
}

struct World<'a> {
    golden: &'a Golden,
    backend: BackendKind,
    folder: tempfile::TempDir,
    options: SchedulerOptions,
    scheduler: Option<Scheduler>,
    conversations: Vec<Conversation>,
    asked: HashMap<SequenceId, Asked>,
    /// Prompts and what was said, all of it or its beginning.
    said: Vec<(Vec<u32>, Vec<u32>)>,
    n_cached: usize,
    n_sent: usize,
}

fn open(golden: &Golden, backend: BackendKind, n_slots: usize) -> Engine {
    let mut options = OpenOptions::new("golden");
    options.backend = backend;
    options.n_threads = Some(1);
    options.context = Some(CONTEXT);
    options.n_slots = n_slots;
    options.chunk = Some(192);
    Engine::from_gguf(&golden.gguf, &options, &mut |_| {}).expect("opens")
}

impl World<'_> {
    fn boot(&mut self) {
        // The store is closed before it is opened again.
        self.scheduler = None;
        let engine = open(self.golden, self.backend, N_SLOTS);
        let store = open_store(self.golden, &engine, self.folder.path());
        let scheduler = Scheduler::new(engine).with_store(store);
        self.scheduler = Some(scheduler.with_options(self.options.clone()));
    }

    fn scheduler(&mut self) -> &mut Scheduler {
        self.scheduler.as_mut().expect("booted")
    }

    /// Sends a conversation's history as a prompt.
    fn send(&mut self, of: usize, n: usize) {
        let conversation = &mut self.conversations[of];
        conversation.history.truncate(MOST_PROMPT);
        conversation.n_prompt = conversation.history.len();
        let request = Request {
            anchors: vec![conversation.n_system],
            affinity: of.is_multiple_of(2).then_some(of as u64),
            ..greedy(&conversation.history, n)
        };
        let id = self.scheduler().submit(request.clone());
        let id = id.expect("a good request");
        self.conversations[of].running = Some(id);
        let asked = Asked {
            of,
            request,
            reply: Vec::new(),
            n_cached: 0,
        };
        self.asked.insert(id, asked);
        self.n_sent += 1;
    }

    fn cancel(&mut self, of: usize) {
        if let Some(id) = self.conversations[of].running {
            self.scheduler().cancel(id);
        }
        while self.conversations[of].running.is_some() {
            self.tick();
        }
    }

    fn tick(&mut self) {
        let events = self.scheduler().tick().expect("nothing fails");
        for event in events {
            match event {
                Event::Prefill { id, n_cached, .. } => {
                    self.asked.get_mut(&id).expect("asked").n_cached = n_cached;
                }
                Event::Token { id, token, .. } => {
                    self.asked.get_mut(&id).expect("asked").reply.push(token);
                }
                Event::Finished { id, .. } => {
                    let asked = self.asked.remove(&id).expect("asked");
                    let conversation = &mut self.conversations[asked.of];
                    conversation.history.extend(&asked.reply);
                    conversation.running = None;
                    self.n_cached += asked.n_cached;
                    self.said.push((asked.request.tokens, asked.reply));
                }
            }
        }
    }

    fn act(&mut self, action: &Action) {
        let text = long_prompt(self.golden, 1000);
        match *action {
            Action::Send { of, n_new, n } => {
                self.cancel(of);
                let conversation = &mut self.conversations[of];
                let at = (conversation.history.len() + 37 * of) % 700;
                conversation.history.extend(&text[at..at + n_new]);
                self.send(of, n);
            }
            Action::Regenerate { of, n } => {
                self.cancel(of);
                let conversation = &mut self.conversations[of];
                conversation.history.truncate(conversation.n_prompt);
                if !conversation.history.is_empty() {
                    self.send(of, n);
                }
            }
            Action::Edit { of, back, n } => {
                self.cancel(of);
                let conversation = &mut self.conversations[of];
                conversation.history.truncate(conversation.n_prompt);
                let at = conversation.n_prompt.saturating_sub(back);
                conversation.history[at..].iter_mut().for_each(|t| *t ^= 1);
                if !conversation.history.is_empty() {
                    self.send(of, n);
                }
            }
            Action::Branch { of, from } => {
                self.cancel(of);
                let other = self.conversations[from].clone();
                self.conversations[of] = Conversation {
                    running: None,
                    ..other
                };
            }
            Action::Restart { of, n_system } => {
                self.cancel(of);
                self.conversations[of] = Conversation {
                    history: text[..n_system].to_vec(),
                    n_system,
                    ..Conversation::default()
                };
            }
            Action::Cancel { of } => self.cancel(of),
            Action::Tick { n } => (0..n).for_each(|_| self.tick()),
            Action::Rest => {
                self.scheduler().save_idle();
            }
            Action::Reboot => {
                for of in 0..self.conversations.len() {
                    self.cancel(of);
                }
                self.scheduler().save_all();
                self.boot();
            }
        }
    }
}

/// Replies of a fresh engine, each computed once.
struct Fresh {
    engine: Engine,
    replies: HashMap<Vec<u32>, Vec<u32>>,
}

impl Fresh {
    fn check(&mut self, prompt: &[u32], said: &[u32]) {
        let known = self.replies.get(prompt);
        if known.is_none_or(|reply| reply.len() < said.len()) {
            let reply = by_hand(&mut self.engine, prompt, said.len());
            self.replies.insert(prompt.to_vec(), reply);
        }
        assert_eq!(self.replies[prompt][..said.len()], *said);
    }
}

/// Runs histories and counts the tokens that were cached in them.
fn check_histories(backend: BackendKind, n_cases: u32) {
    let golden = model();
    let mut fresh = Fresh {
        engine: open(&golden, backend, 1),
        replies: HashMap::new(),
    };
    let mut n_cached = 0;
    let mut n_sent = 0;
    let config = ProptestConfig {
        cases: n_cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let histories = (
        prop::collection::vec(action(), 10..40),
        prop::sample::select(vec![0, 2 << 20, 1 << 40]),
        any::<bool>(),
    );
    let world = std::cell::RefCell::new((&mut fresh, &mut n_cached, &mut n_sent));
    let outcome = runner.run(&histories, |(actions, snapshot_bytes, rests_at_once)| {
        let (fresh, n_cached, n_sent) = &mut *world.borrow_mut();
        let mut world = World {
            golden: &golden,
            backend,
            folder: tempfile::tempdir().expect("a temporary folder"),
            options: SchedulerOptions {
                snapshot_bytes,
                idle_save: Duration::from_secs(u64::from(!rests_at_once) << 40),
                ..SchedulerOptions::default()
            },
            scheduler: None,
            conversations: Vec::new(),
            asked: HashMap::new(),
            said: Vec::new(),
            n_cached: 0,
            n_sent: 0,
        };
        let text = long_prompt(&golden, 300);
        let system = |n_system: usize| Conversation {
            history: text[..n_system].to_vec(),
            n_system,
            ..Conversation::default()
        };
        world.conversations = [60, 128, 300, 300].map(system).to_vec();
        world.boot();
        for action in &actions {
            world.act(action);
        }
        while !world.scheduler().is_idle() {
            world.tick();
        }
        assert_eq!(world.said.len(), world.n_sent, "every request ended");
        for (prompt, said) in &world.said {
            fresh.check(prompt, said);
        }
        assert_eq!(world.scheduler().take_store_notices(), [""; 0]);
        **n_cached += world.n_cached;
        **n_sent += world.n_sent;
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    // Histories in which little is cached would show little. The least seen is 48 a request.
    assert!(
        n_cached > 20 * n_sent,
        "{n_cached} tokens in {n_sent} requests"
    );
}

#[test]
fn no_history_changes_a_reply_of_the_reference() {
    check_histories(BackendKind::Reference, 16);
}

#[test]
fn no_history_changes_a_reply_of_the_processor() {
    check_histories(BackendKind::Cpu, 32);
}

#[test]
#[ignore = "ten minutes: cargo test --release -p ds4-engine --test scheduler history -- --ignored"]
fn no_history_of_thousands_changes_a_reply() {
    check_histories(BackendKind::Reference, 2_000);
    check_histories(BackendKind::Cpu, 4_000);
}
