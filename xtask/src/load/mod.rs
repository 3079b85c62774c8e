//! Many clients at one server, some of them badly behaved, and what becomes of it.
//!
//! Every client goes on until the time is over: it asks the next question of its conversation in
//! one of the four protocols, a question whose answer it knows, or nonsense; it reads the answer or
//! hangs up in the queue, in the prefill or in the reply. Beside them one task asks `/health` every
//! ten milliseconds and one looks at `/slots`, `/metrics` and the process.

mod mix;
pub(crate) mod process;
mod report;
pub(crate) mod wire;

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use mix::{Conversation, Leaves, N_KNOWN, Question, Random};
use process::{Started, holds};
use report::{Tally, Watched};
use wire::{STREAM_SILENCE, Wire, get};

/// Longest wait for an answer that comes in one piece, behind a full queue.
const WHOLE_SILENCE: Duration = Duration::from_secs(600);
/// Pause between two questions to `/health`.
const HEALTH_PAUSE: Duration = Duration::from_millis(10);
/// Pause between two looks at the slots.
const SLOTS_PAUSE: Duration = Duration::from_millis(50);
/// Pause between two looks at the process and the metrics.
const PROCESS_PAUSE: Duration = Duration::from_secs(2);
/// Time until a server without clients must be idle.
const SETTLE: Duration = Duration::from_secs(15);

struct Options {
    n_clients: usize,
    lasts: Duration,
    seed: u64,
    address: Option<SocketAddr>,
    pid: Option<u32>,
    flags: Vec<String>,
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        n_clients: 64,
        lasts: Duration::from_secs(600),
        seed: 1,
        address: None,
        pid: None,
        flags: ["--parallel", "4", "--ctx", "8192"]
            .map(str::to_owned)
            .to_vec(),
    };
    while let Some(name) = args.next() {
        if name == "--" {
            options.flags = args.collect();
            return Ok(options);
        }
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let bad = |e: &dyn std::fmt::Display| format!("{name} {value}: {e}");
        match name.as_str() {
            "--clients" => options.n_clients = value.parse().map_err(|e| bad(&e))?,
            "--minutes" => {
                let minutes: f64 = value.parse().map_err(|e| bad(&e))?;
                let lasts = Duration::try_from_secs_f64(minutes * 60.0);
                options.lasts = lasts.map_err(|e| bad(&e))?;
            }
            "--seed" => options.seed = value.parse().map_err(|e| bad(&e))?,
            "--url" => {
                let host = value.trim_start_matches("http://").trim_end_matches('/');
                let found = host.to_socket_addrs().map_err(|e| bad(&e))?.next();
                options.address = Some(found.ok_or_else(|| bad(&"no such host"))?);
            }
            "--pid" => options.pid = Some(value.parse().map_err(|e| bad(&e))?),
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(options)
}

/// Runs the load; whether the server stood it.
pub(crate) fn run(args: impl Iterator<Item = String>) -> Result<bool, String> {
    let options = options(args)?;
    let (started, address, pid) = match options.address {
        Some(address) => (None, address, options.pid),
        None => {
            let started = Started::of(&process::build()?, &options.flags)?;
            let (address, pid) = (started.address, started.pid());
            (Some(started), address, Some(pid))
        }
    };
    let known = known_answers(address)?;
    let tally = Tally::default();
    let mut watched = Watched {
        before: pid.and_then(holds).unwrap_or_default(),
        ..Watched::default()
    };
    let tokens_before = tokens(address)?;
    println!(
        "{} clients at http://{address} for {:.1} min",
        options.n_clients,
        options.lasts.as_secs_f64() / 60.0
    );
    let begun = Instant::now();
    let is_over = AtomicBool::new(false);
    let prefilling = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..options.n_clients)
            .map(|number| {
                let random = Random(options.seed << 32 | number as u64);
                let (known, tally) = (&known, &tally);
                scope.spawn(move || {
                    client(address, random, known, begun + options.lasts, tally);
                })
            })
            .collect();
        scope.spawn(|| probe_health(address, &is_over, &prefilling, &tally));
        scope.spawn(|| watch_slots(address, &is_over, &prefilling, &tally));
        while clients.iter().any(|client| !client.is_finished()) {
            std::thread::sleep(PROCESS_PAUSE.min(options.lasts / 20));
            let now = begun.elapsed();
            if let Some(holds) = pid.and_then(holds)
                && now < options.lasts
            {
                watched.holds.push((now, holds));
            }
            if let Err(error) = get(address, "/metrics") {
                tally.wrong(format!("/metrics: {error}"));
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    watched.lasted = begun.elapsed();
    settle(address, &mut watched)?;
    let tokens_after = tokens(address)?;
    watched.n_computed = tokens_after.0 - tokens_before.0;
    watched.n_generated = tokens_after.1 - tokens_before.1;
    // Connections that were left are closed in a moment.
    std::thread::sleep(Duration::from_secs(1));
    watched.after = pid.and_then(holds).unwrap_or_default();
    if let Some(started) = started {
        watched.store_bytes = Some(started.store_bytes());
        watched.panics = started.panics();
        watched.ended = Some(started.stop().map_err(|e| e.to_string())?);
    }
    let against = report::print(&tally, &watched);
    for line in &against {
        println!("WRONG: {line}");
    }
    Ok(against.is_empty())
}

/// Asks what has one answer, before anything else happens.
fn known_answers(address: SocketAddr) -> Result<Vec<String>, String> {
    (0..N_KNOWN)
        .map(|number| match ask(address, &mix::known(number, false)) {
            Outcome::Replied { text, .. } => Ok(text),
            other => Err(format!("the server does not answer: {other:?}")),
        })
        .collect()
}

fn client(address: SocketAddr, mut random: Random, known: &[String], end: Instant, tally: &Tally) {
    let mut conversation = Conversation::new(&mut random);
    while Instant::now() < end {
        match random.below(20) {
            0 => speak_nonsense(address, &mut random, tally),
            1..=2 => {
                let number = random.below(known.len());
                let outcome = ask(address, &mix::known(number, random.below(2) == 0));
                if let Outcome::Replied { text, .. } = &outcome
                    && *text != known[number]
                {
                    tally.wrong(format!(
                        "question {number} was answered {:?}, now {text:?}",
                        known[number]
                    ));
                }
                count(&outcome, tally);
            }
            _ => {
                let Some(question) = conversation.ask(&mut random) else {
                    conversation = Conversation::new(&mut random);
                    continue;
                };
                let outcome = ask(address, &question);
                count(&outcome, tally);
                match outcome {
                    Outcome::Replied { text, .. } => conversation.hear(text),
                    _ => conversation = Conversation::new(&mut random),
                }
            }
        }
        std::thread::sleep(Duration::from_millis(random.below(50) as u64));
    }
}

/// What became of a question.
#[derive(Debug)]
enum Outcome {
    Replied {
        text: String,
        first_text: Option<Duration>,
    },
    Left(&'static str),
    Busy,
    Wrong(String),
}

fn count(outcome: &Outcome, tally: &Tally) {
    match outcome {
        Outcome::Replied { first_text, .. } => {
            let how = match first_text {
                Some(after) => {
                    tally.first_text(*after);
                    "replied as a stream"
                }
                None => "replied whole",
            };
            tally.outcome(how);
        }
        Outcome::Left(place) => tally.outcome(place),
        Outcome::Busy => tally.outcome("turned away with a time to retry"),
        Outcome::Wrong(what) => tally.wrong(what.clone()),
    }
}

fn ask(address: SocketAddr, question: &Question) -> Outcome {
    let path = question.protocol.path();
    match try_ask(address, question) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Wrong(format!("{path}: {error}")),
    }
}

fn try_ask(address: SocketAddr, question: &Question) -> std::io::Result<Outcome> {
    let Question {
        protocol,
        stream,
        body,
        leaves,
    } = question;
    let path = protocol.path();
    let silence = match (leaves, stream) {
        (Leaves::AfterAsking(ms), _) => Duration::from_millis(*ms + 1),
        (_, true) => STREAM_SILENCE,
        (_, false) => WHOLE_SILENCE,
    };
    let begun = Instant::now();
    let mut wire = Wire::open(address, silence)?;
    wire.send("POST", path, "", body.to_string().as_bytes())?;
    if let Leaves::AfterAsking(ms) = leaves {
        std::thread::sleep(Duration::from_millis(*ms));
        return Ok(Outcome::Left("hung up after asking"));
    }
    let mut head = wire.head()?;
    match head.status {
        200 => {}
        429 | 529 | 503 if head.has_retry_after => return Ok(Outcome::Busy),
        status => {
            let body = wire.body(&mut head)?;
            let body = String::from_utf8_lossy(&body);
            return Ok(Outcome::Wrong(format!("{path}: {status} {body}")));
        }
    }
    if !stream {
        let answer = wire.body(&mut head)?;
        let answer = serde_json::from_slice(&answer).unwrap_or(Value::Null);
        return Ok(match protocol.text(&answer) {
            Some(text) => Outcome::Replied {
                text,
                first_text: None,
            },
            None => Outcome::Wrong(format!("{path}: {answer}")),
        });
    }
    if *leaves == Leaves::AfterTheHead {
        return Ok(Outcome::Left("hung up before the first text"));
    }
    let (mut text, mut n_texts, mut first_text) = (String::new(), 0, None);
    let mut ended = None;
    let mut rest = Vec::new();
    while let Some(piece) = wire.piece(&mut head)? {
        rest.extend_from_slice(&piece);
        while let Some(at) = rest.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = rest.drain(..at + 2).collect();
            let event = String::from_utf8_lossy(&event);
            let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) else {
                continue;
            };
            let value: Value = serde_json::from_str(data).unwrap_or(Value::Null);
            if let Some(delta) = protocol.delta(&value) {
                text += delta;
                n_texts += 1;
                first_text.get_or_insert_with(|| begun.elapsed());
            }
            if *leaves == Leaves::AfterTexts(n_texts) {
                return Ok(Outcome::Left("hung up in the reply"));
            }
            match protocol.ends(data, &value) {
                Some(false) => return Ok(Outcome::Wrong(format!("{path}: {data}"))),
                Some(true) => ended = Some(()),
                None => {}
            }
        }
    }
    Ok(match ended {
        Some(()) => Outcome::Replied {
            text,
            first_text: first_text.or_else(|| Some(begun.elapsed())),
        },
        None => Outcome::Wrong(format!("{path}: the stream has no terminal event")),
    })
}

fn speak_nonsense(address: SocketAddr, random: &mut Random, tally: &Tally) {
    let nonsense = mix::nonsense(random);
    let what = nonsense.what;
    let answer = Wire::open(address, STREAM_SILENCE).and_then(|mut wire| {
        wire.send(
            nonsense.method,
            nonsense.path,
            nonsense.headers,
            &nonsense.body,
        )?;
        let mut head = wire.head()?;
        let body = wire.body(&mut head)?;
        Ok((head, serde_json::from_slice::<Value>(&body)))
    });
    match answer {
        Ok((head, Ok(body))) if head.status == nonsense.status => {
            match body["error"]["message"].as_str() {
                Some(_) => tally.outcome("nonsense refused"),
                None => tally.wrong(format!("{what}: {body}")),
            }
        }
        Ok((head, _)) if head.status == 503 && head.has_retry_after => {
            tally.outcome("turned away with a time to retry");
        }
        Ok((head, body)) => tally.wrong(format!("{what}: {} {body:?}", head.status)),
        Err(error) => tally.wrong(format!("{what}: {error}")),
    }
}

fn probe_health(address: SocketAddr, is_over: &AtomicBool, prefilling: &AtomicBool, tally: &Tally) {
    let mut wire = None;
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let was_prefilling = prefilling.load(Ordering::Relaxed);
        let mut look = || {
            let open = match wire.take() {
                Some(open) => open,
                None => Wire::open(address, STREAM_SILENCE)?,
            };
            let open = wire.insert(open);
            open.send("GET", "/health", "", b"")?;
            let mut head = open.head()?;
            open.body(&mut head)?;
            Ok::<u16, std::io::Error>(head.status)
        };
        match look() {
            Ok(200) => tally.health(begun.elapsed(), was_prefilling),
            Ok(status) => tally.wrong(format!("/health: {status}")),
            Err(error) => {
                wire = None;
                tally.wrong(format!("/health: {error}"));
            }
        }
        std::thread::sleep(HEALTH_PAUSE.saturating_sub(begun.elapsed()));
    }
}

/// Slots that run a request, and whether one of them computes a prompt.
fn slots(address: SocketAddr) -> std::io::Result<(usize, bool)> {
    let (_, body) = get(address, "/slots")?;
    let slots: Value = serde_json::from_slice(&body)?;
    let busy: Vec<&Value> = slots
        .as_array()
        .into_iter()
        .flatten()
        .filter(|slot| slot["is_processing"] == true)
        .collect();
    let prefilling = busy.iter().any(|slot| slot["next_token"]["n_decoded"] == 0);
    Ok((busy.len(), prefilling))
}

fn watch_slots(address: SocketAddr, is_over: &AtomicBool, prefilling: &AtomicBool, tally: &Tally) {
    while !is_over.load(Ordering::Relaxed) {
        match slots(address) {
            Ok((_, is)) => prefilling.store(is, Ordering::Relaxed),
            Err(error) => tally.wrong(format!("/slots: {error}")),
        }
        std::thread::sleep(SLOTS_PAUSE);
    }
}

/// Waits until the server is idle, or has had time enough to be.
fn settle(address: SocketAddr, watched: &mut Watched) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let (busy, _) = slots(address).map_err(|e| e.to_string())?;
        let (_, body) = get(address, "/health?verbose=1").map_err(|e| e.to_string())?;
        let health: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
        watched.busy = busy;
        watched.waiting = health["waiting"].as_u64().unwrap_or(1) as usize;
        if busy + watched.waiting == 0 || begun.elapsed() > SETTLE {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Prompt tokens computed and tokens generated since the server started.
fn tokens(address: SocketAddr) -> Result<(f64, f64), String> {
    let (_, body) = get(address, "/metrics").map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&body);
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|value| value.trim().parse().ok());
        value.ok_or_else(|| format!("/metrics has no {name}"))
    };
    Ok((
        of("llamacpp:prompt_tokens_total ")?,
        of("llamacpp:tokens_predicted_total ")?,
    ))
}
