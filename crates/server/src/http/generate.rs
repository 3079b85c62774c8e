//! From a parsed request to its answer, whole or as a stream.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::api::{CallWriter, Frame, Logprobs, chat, completions, messages, responses};
use crate::generation::{Failure, FailureKind, Finish, Generation, Outcome, ReplyEvent, Usage};
use crate::log::Client;
use crate::prompt::TokenPrompt;
use crate::worker::Job;

use super::body::Room;
use super::error::{HttpError, json};
use super::replies::Replies;
use super::routes::{Constraints, Ready, Server};
use super::several::{self, Several};
use super::wire::Wire;

/// Pieces of a stream that wait for the client to read before the next are joined.
const STREAM_PIECES: usize = 4;
/// Bytes of a stream that may wait for its client.
const MAX_BACKLOG_BYTES: usize = 4 << 20;
/// How long a stream's headers wait for what the cache holds, which stands in one of them.
const HEADER_WAIT: Duration = Duration::from_millis(100);
/// The header that says what of a prompt was cached, and why not more.
const CACHE_HEADER: &str = "x-ds4-cache";

/// The header that says what of the request is not done.
const WARNINGS_HEADER: &str = "x-ds4-warnings";
/// Longest value of that.
const MAX_WARNINGS_CHARS: usize = 1000;

/// How a reply is written, by protocol.
#[derive(Clone)]
pub(super) enum Shape {
    Chat(Box<chat::ReplyShape>),
    Completions(Box<completions::ReplyShape>),
    Messages {
        shape: Box<messages::ReplyShape>,
        /// The conversation to keep beside the message, for a client that goes on by its id.
        thread: Option<Box<messages::Thread>>,
    },
    Responses {
        shape: Box<responses::ReplyShape>,
        /// What to keep beside the response, if it is kept.
        input: Option<Vec<Arc<str>>>,
        /// Whether to drop the oldest turns of a prompt that is too long.
        truncate: bool,
    },
}

/// What writes a reply as a stream.
pub(super) enum Encoder {
    Chat(Box<chat::Stream>),
    Completions(Box<completions::Stream>),
    Messages(messages::Stream),
    Responses(Box<responses::Stream>),
}

impl Encoder {
    pub(super) fn new(shape: &Shape) -> Encoder {
        match shape {
            Shape::Chat(shape) => Encoder::Chat(Box::new(chat::Stream::new((**shape).clone()))),
            Shape::Completions(shape) => {
                Encoder::Completions(Box::new(completions::Stream::new((**shape).clone())))
            }
            Shape::Messages { shape, .. } => {
                Encoder::Messages(messages::Stream::new((**shape).clone()))
            }
            Shape::Responses { shape, .. } => {
                Encoder::Responses(Box::new(responses::Stream::new((**shape).clone())))
            }
        }
    }

    pub(super) fn open(&mut self) -> Vec<Frame> {
        match self {
            Encoder::Chat(stream) => stream.open(),
            Encoder::Completions(stream) => stream.open(),
            Encoder::Messages(stream) => stream.open(),
            Encoder::Responses(stream) => stream.open(),
        }
    }

    pub(super) fn event(&mut self, event: &ReplyEvent) -> Vec<Frame> {
        match self {
            Encoder::Chat(stream) => stream.event(event),
            Encoder::Completions(stream) => stream.event(event),
            Encoder::Messages(stream) => stream.event(event),
            Encoder::Responses(stream) => stream.event(event),
        }
    }

    pub(super) fn keep_alive(&mut self, idle: Duration) -> Vec<Frame> {
        match self {
            Encoder::Chat(stream) => stream.keep_alive(idle),
            Encoder::Completions(stream) => stream.keep_alive(idle),
            Encoder::Messages(stream) => stream.keep_alive(idle),
            Encoder::Responses(stream) => stream.keep_alive(idle),
        }
    }

    /// The end of a reply of several choices, which have all ended.
    pub(super) fn close_all(&self, together: &Outcome) -> Vec<Frame> {
        match self {
            Encoder::Chat(stream) => stream.close_all(together),
            Encoder::Completions(stream) => stream.close_all(together),
            // These have one reply.
            Encoder::Messages(_) | Encoder::Responses(_) => Vec::new(),
        }
    }

    /// The object that a store keeps, once the stream is over.
    pub(super) fn stored(&self) -> Option<&Value> {
        match self {
            Encoder::Responses(stream) => stream.response(),
            Encoder::Chat(_) | Encoder::Completions(_) | Encoder::Messages(_) => None,
        }
    }
}

impl Shape {
    fn reply_id(&self) -> &str {
        match self {
            Shape::Chat(shape) => &shape.envelope.id,
            Shape::Completions(shape) => &shape.envelope.id,
            Shape::Messages { shape, .. } => &shape.id,
            Shape::Responses { shape, .. } => &shape.id,
        }
    }

    pub(super) fn complete(&self, outcome: &Outcome, logprobs: &Logprobs) -> Value {
        match self {
            Shape::Chat(shape) => chat::complete(outcome, logprobs, shape),
            Shape::Completions(shape) => completions::complete(outcome, logprobs, shape),
            Shape::Messages { shape, .. } => messages::complete(outcome, shape),
            Shape::Responses { shape, .. } => responses::complete(outcome, logprobs, shape),
        }
    }

    fn truncates(&self) -> bool {
        matches!(self, Shape::Responses { truncate: true, .. })
    }

    /// Tells the client what of its request is not done.
    fn warn(&mut self, warnings: Vec<String>) {
        match self {
            Shape::Chat(shape) => shape.envelope.warnings.extend(warnings),
            Shape::Completions(shape) => shape.envelope.warnings.extend(warnings),
            Shape::Messages { shape, .. } => shape.warnings.extend(warnings),
            Shape::Responses { shape, .. } => shape.warnings.extend(warnings),
        }
    }

    /// That of one of several choices, of which every prompt has `n_choices`.
    pub(super) fn of_choice(&self, choice: usize, n_choices: usize) -> Shape {
        match self {
            Shape::Chat(shape) => Shape::Chat(Box::new(shape.of_choice(choice))),
            Shape::Completions(shape) => {
                Shape::Completions(Box::new(shape.of_choice(choice, n_choices)))
            }
            Shape::Messages { .. } | Shape::Responses { .. } => self.clone(),
        }
    }

    /// Keeps what a client may refer to later: a response with its input, or a conversation with its
    /// last message.
    fn keep(&self, ready: &Ready, outcome: &Outcome, response: Option<&Value>) {
        match (self, response) {
            (
                Shape::Responses {
                    input: Some(input), ..
                },
                Some(response),
            ) => ready.keep(input, response),
            (
                Shape::Messages {
                    shape,
                    thread: Some(thread),
                },
                _,
            ) if outcome.finish != Finish::Cancelled => {
                ready.keep_thread(thread, &shape.id, messages::said(outcome, shape));
            }
            _ => {}
        }
    }
}

/// Runs a request and answers it. `room` is what its body takes.
pub(super) async fn answer(
    server: Arc<Server>,
    ready: Arc<Ready>,
    wire: &Wire,
    mut generation: Generation,
    mut shape: Shape,
    room: Room,
) -> Result<Response, HttpError> {
    let n_prompt_started = Instant::now();
    let preparer = Arc::clone(&ready);
    let n_choices = generation.n_choices;
    let truncates = shape.truncates();
    let n = n_choices * (1 + generation.more_prompts.len());
    let most = ready.facts.n_slots + server.options().max_queue;
    if n > most {
        return Err(HttpError::new(
            FailureKind::Invalid,
            format!(
                "n: found {n} choices of all prompts, expected at most {most}, as many as \
                 --parallel and --max-queue let in"
            ),
        ));
    }
    let mut constraints = Vec::new();
    if constrains(&generation) {
        let compile = move || {
            let each = (0..n).map(|_| preparer.constraints(&generation));
            let constraints: Vec<Constraints> = each.collect::<Result<_, Failure>>()?;
            Ok((generation, constraints))
        };
        (generation, constraints) = ready.compilations.run(compile).await?;
    }
    let mut warnings = constraints
        .first_mut()
        .map_or_else(Vec::new, |(_, _, warnings)| std::mem::take(warnings));
    let least = server.options().prompt.max_effort_min_context;
    let found = ready.facts.n_context;
    let preparer = Arc::clone(&ready);
    let prepared = tokio::task::spawn_blocking(move || {
        // Until the prompt is known to fit, it takes as much as the body that it came from.
        let _room = room;
        let mut all: Vec<(Generation, TokenPrompt)> = Vec::new();
        for (i, mut generation) in generation.into_single().into_iter().enumerate() {
            let prompt = match all.last() {
                Some((_, prompt)) if i % n_choices != 0 => prompt.clone(),
                _ => {
                    let prompt = preparer.prompt(&mut generation, truncates, &mut warnings)?;
                    if prompt.effort != generation.thinking.effort {
                        warnings.push(format!(
                            "effort: max needs a context of {least} tokens and this one has \
                             {found}, so high is used"
                        ));
                    }
                    prompt
                }
            };
            all.push((generation, prompt));
        }
        Ok::<_, Failure>((all, warnings))
    });
    let (all, warnings) = prepared.await.map_err(|_| {
        HttpError::new(
            FailureKind::Internal,
            "rendering the prompt failed by a bug",
        )
    })??;
    // They may name parts of a schema, which is prompt text, so the log has their number only.
    let warned = warnings_header(&warnings);
    if warned.is_some() {
        let note = format!("{} wishes of the request are not met", warnings.len());
        server.note(wire, &note);
    }
    shape.warn(warnings);
    server.metrics.render_ms(n_prompt_started.elapsed());
    let mut streams = false;
    let mut constraints = constraints.into_iter();
    let jobs = all.into_iter().map(|(generation, prompt)| {
        let (schema, calls, _) = constraints.next().unwrap_or_default();
        streams = generation.stream;
        Job {
            request_id: wire.request_id.clone(),
            reply_id: shape.reply_id().to_owned(),
            client: Client::new(wire.user_agent.as_deref(), generation.affinity.as_deref()),
            generation: Arc::new(generation),
            prompt,
            schema,
            calls,
        }
    });
    let replies = Replies::submit(&ready.worker, jobs.collect())?;
    let mut response = if streams {
        stream(server, ready, shape, n_choices, replies).await
    } else if server.options().nonstream_keepalive {
        padded(server, ready, wire.clone(), shape, n_choices, replies).await?
    } else {
        whole(&server, &ready, &shape, n_choices, replies).await?
    };
    if let Some(warned) = warned {
        let name = header::HeaderName::from_static(WARNINGS_HEADER);
        response.headers_mut().insert(name, warned);
    }
    Ok(response)
}

/// What of a request is not done, for a header: printable, and as much of it as is reasonable.
fn warnings_header(warnings: &[String]) -> Option<HeaderValue> {
    let text = warnings.join("; ");
    let printable = text.chars().map(|c| match c {
        ' '..='~' => c,
        _ => '?',
    });
    let text: String = printable.take(MAX_WARNINGS_CHARS).collect();
    (!text.is_empty()).then(|| HeaderValue::from_str(&text).ok())?
}

/// Whether anything holds for the tokens of a reply that must be compiled.
fn constrains(generation: &Generation) -> bool {
    generation.schema.is_some() || !generation.tools.is_empty()
}

/// Tokens of a request's prompt, however many; where the oldest turns of one that is too long are
/// dropped, what is left. `room` is what its body takes.
pub(super) async fn count(
    ready: &Arc<Ready>,
    mut generation: Generation,
    truncates: bool,
    room: Room,
) -> Result<usize, HttpError> {
    let preparer = Arc::clone(ready);
    let counted = ready.utility.run(move || {
        let _room = room;
        if truncates {
            let prompt = preparer.prompt(&mut generation, truncates, &mut Vec::new())?;
            return Ok(prompt.tokens.len());
        }
        Ok(preparer.prompter.encode(&generation)?.len())
    });
    counted.await
}

async fn whole(
    server: &Server,
    ready: &Ready,
    shape: &Shape,
    n_choices: usize,
    mut replies: Replies,
) -> Result<Response, HttpError> {
    let n = replies.len();
    let mut logprobs = vec![Logprobs::default(); n];
    let mut outcomes: Vec<Option<Outcome>> = vec![None; n];
    let started = Instant::now();
    let mut first = None;
    while let Some((i, event)) = replies.recv().await {
        logprobs[i].collect(&event);
        match event {
            ReplyEvent::Finished(outcome) => {
                server.metrics.finished(&outcome, first.unwrap_or_default());
                if outcome.finish == Finish::Cancelled {
                    return Err(HttpError::new(
                        FailureKind::Unavailable,
                        "the request was cancelled",
                    ));
                }
                outcomes[i] = Some(*outcome);
            }
            ReplyEvent::Failed(failure) => return Err(failure.into()),
            ReplyEvent::Content { .. }
            | ReplyEvent::Reasoning { .. }
            | ReplyEvent::ToolStart { .. } => {
                first.get_or_insert_with(|| started.elapsed());
            }
            _ => {}
        }
    }
    drop(replies);
    let outcomes: Vec<Outcome> = outcomes.into_iter().flatten().collect();
    let Some(told) = outcomes.first() else {
        return Err(HttpError::new(FailureKind::Internal, "there is no reply"));
    };
    let body = match outcomes.as_slice() {
        [outcome] => shape.complete(outcome, &logprobs[0]),
        several => several::complete(shape, several, &logprobs, n_choices),
    };
    shape.keep(ready, told, Some(&body));
    let mut response = json(&body);
    let Usage {
        n_prompt, n_cached, ..
    } = told.usage;
    let (source, why) = (told.timings.cache_source, &told.timings.cache_miss);
    put_cache_header(&mut response, n_prompt, n_cached, source, why);
    Ok(response)
}

/// As [`whole`], with a line feed ahead of the body after every interval of silence. The first one
/// commits the answer to status 200.
async fn padded(
    server: Arc<Server>,
    ready: Arc<Ready>,
    wire: Wire,
    shape: Shape,
    n_choices: usize,
    replies: Replies,
) -> Result<Response, HttpError> {
    let interval = server.options().ping_interval;
    let mut reply =
        Box::pin(async move { whole(&server, &ready, &shape, n_choices, replies).await });
    if interval.is_zero() {
        return reply.await;
    }
    if let Ok(early) = tokio::time::timeout(interval, &mut reply).await {
        return early;
    }
    let (pieces, body) = mpsc::channel::<Result<Bytes, Infallible>>(STREAM_PIECES);
    tokio::spawn(async move {
        let mut padding = Bytes::from_static(b"\n");
        let reply = loop {
            if pieces.send(Ok(std::mem::take(&mut padding))).await.is_err() {
                return;
            }
            tokio::select! {
                reply = &mut reply => break reply,
                () = tokio::time::sleep(interval) => padding = Bytes::from_static(b"\n"),
                () = pieces.closed() => return,
            }
        };
        let reply = reply.unwrap_or_else(|error| error.response(&wire));
        // A body that is in memory cannot fail.
        if let Ok(body) = reply.into_body().collect().await {
            let _ = pieces.send(Ok(body.to_bytes())).await;
        }
    });
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(body)));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

/// A reply that its client does not keep up with.
fn too_slow() -> Failure {
    Failure {
        kind: FailureKind::Internal,
        message: format!(
            "{} MiB of this reply wait to be read; the rest was given up",
            MAX_BACKLOG_BYTES >> 20
        ),
        param: None,
    }
}

async fn stream(
    server: Arc<Server>,
    ready: Arc<Ready>,
    shape: Shape,
    n_choices: usize,
    mut replies: Replies,
) -> Response {
    let first = tokio::time::timeout(HEADER_WAIT, replies.recv()).await;
    let first = first.ok().flatten();
    let (pieces, body) = mpsc::channel::<Result<Bytes, Infallible>>(STREAM_PIECES);
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(body)));
    if let Some((
        _,
        ReplyEvent::Started {
            n_prompt,
            n_cached,
            source,
            why,
        },
    )) = &first
    {
        put_cache_header(&mut response, *n_prompt, *n_cached, source, why);
    }
    put_stream_headers(&mut response);
    let pump = Pump {
        calls: (0..replies.len())
            .map(|_| CallWriter::new(server.options().preferences.calls))
            .collect(),
        encoder: Several::new(&shape, replies.len(), n_choices),
        server,
        ready,
        shape,
        started: Instant::now(),
        first_text: None,
        ended: false,
    };
    tokio::spawn(pump.run(first, replies, pieces));
    response
}

/// What every stream of events says of itself.
pub(super) fn put_stream_headers(response: &mut Response) {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// What moves events from the worker to the client.
struct Pump {
    calls: Vec<CallWriter>,
    encoder: Several,
    server: Arc<Server>,
    ready: Arc<Ready>,
    shape: Shape,
    started: Instant,
    first_text: Option<Duration>,
    ended: bool,
}

impl Pump {
    /// Runs until the reply is over or nobody reads it any more. Dropping the ticket then stops
    /// the work. Events are taken as they come, so that what waits for a slow client is counted
    /// in one place.
    async fn run(
        mut self,
        first: Option<(usize, ReplyEvent)>,
        mut replies: Replies,
        pieces: mpsc::Sender<Result<Bytes, Infallible>>,
    ) {
        let mut bytes = Vec::new();
        for frame in self.encoder.open() {
            bytes.extend_from_slice(&frame.0);
        }
        if let Some((i, event)) = first {
            self.encode(i, &event, &mut bytes);
        }
        let ping = self.server.options().ping_interval;
        let mut last_write = Instant::now();
        loop {
            // What came meanwhile goes out as one piece.
            while bytes.len() <= MAX_BACKLOG_BYTES
                && !self.ended
                && let Some((i, event)) = replies.try_recv()
            {
                self.encode(i, &event, &mut bytes);
            }
            if bytes.len() > MAX_BACKLOG_BYTES && !self.ended {
                let i = self.encoder.unfinished();
                self.encode(i, &ReplyEvent::Failed(too_slow()), &mut bytes);
            }
            if self.ended && bytes.is_empty() {
                break;
            }
            if self.ended {
                replies.cancel();
            }
            let due = last_write + ping;
            tokio::select! {
                room = pieces.reserve(), if !bytes.is_empty() => {
                    let Ok(room) = room else { break };
                    room.send(Ok(Bytes::from(std::mem::take(&mut bytes))));
                    last_write = Instant::now();
                }
                event = replies.recv(), if !self.ended => match event {
                    Some((i, event)) => self.encode(i, &event, &mut bytes),
                    None => self.ended = true,
                },
                () = tokio::time::sleep_until(due), if !ping.is_zero() && bytes.is_empty() => {
                    for frame in self.encoder.keep_alive(last_write.elapsed()) {
                        bytes.extend_from_slice(&frame.0);
                    }
                    last_write = Instant::now();
                }
                () = pieces.closed() => break,
            }
        }
        drop(replies);
    }

    /// Writes an event of reply `i`.
    fn encode(&mut self, i: usize, event: &ReplyEvent, bytes: &mut Vec<u8>) {
        if self.ended {
            return;
        }
        match event {
            ReplyEvent::Reasoning { .. }
            | ReplyEvent::Content { .. }
            | ReplyEvent::ToolStart { .. } => {
                self.first_text
                    .get_or_insert_with(|| self.started.elapsed());
            }
            _ => {}
        }
        for passed in self.calls[i].pass(event) {
            for frame in self.encoder.event(i, &passed) {
                bytes.extend_from_slice(&frame.0);
            }
        }
        if let ReplyEvent::Finished(outcome) = event {
            let first = self.first_text.unwrap_or_default();
            self.server.metrics.finished(outcome, first);
            self.shape.keep(&self.ready, outcome, self.encoder.stored());
        }
        self.ended = self.encoder.has_ended();
    }
}

fn put_cache_header(
    response: &mut Response,
    n_prompt: usize,
    n_cached: usize,
    source: &str,
    why: &str,
) {
    let value = format!("cached={n_cached}; prompt={n_prompt}; source={source}; why={why:?}");
    if let Ok(value) = HeaderValue::from_str(&value) {
        let headers = response.headers_mut();
        headers.insert(header::HeaderName::from_static(CACHE_HEADER), value);
    }
}
