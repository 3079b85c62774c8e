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
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::api::{CallWriter, Frame, Logprobs, chat, completions, messages, responses};
use crate::generation::{Failure, FailureKind, Finish, Generation, Outcome, ReplyEvent, Usage};
use crate::log::Client;
use crate::worker::{Job, Ticket};

use super::body::Room;
use super::error::{HttpError, json};
use super::routes::{Ready, Server};
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
    Messages(messages::ReplyShape),
    Responses {
        shape: Box<responses::ReplyShape>,
        /// What to keep beside the response, if it is kept.
        input: Option<Vec<Arc<str>>>,
        /// Whether to drop the oldest turns of a prompt that is too long.
        truncate: bool,
    },
}

enum Encoder {
    Chat(Box<chat::Stream>),
    Completions(Box<completions::Stream>),
    Messages(messages::Stream),
    Responses(Box<responses::Stream>),
}

impl Encoder {
    fn new(shape: &Shape) -> Encoder {
        match shape {
            Shape::Chat(shape) => Encoder::Chat(Box::new(chat::Stream::new((**shape).clone()))),
            Shape::Completions(shape) => {
                Encoder::Completions(Box::new(completions::Stream::new((**shape).clone())))
            }
            Shape::Messages(shape) => Encoder::Messages(messages::Stream::new(shape.clone())),
            Shape::Responses { shape, .. } => {
                Encoder::Responses(Box::new(responses::Stream::new((**shape).clone())))
            }
        }
    }

    fn open(&mut self) -> Vec<Frame> {
        match self {
            Encoder::Chat(stream) => stream.open(),
            Encoder::Completions(stream) => stream.open(),
            Encoder::Messages(stream) => stream.open(),
            Encoder::Responses(stream) => stream.open(),
        }
    }

    fn event(&mut self, event: &ReplyEvent) -> Vec<Frame> {
        match self {
            Encoder::Chat(stream) => stream.event(event),
            Encoder::Completions(stream) => stream.event(event),
            Encoder::Messages(stream) => stream.event(event),
            Encoder::Responses(stream) => stream.event(event),
        }
    }

    fn keep_alive(&mut self, idle: Duration) -> Vec<Frame> {
        match self {
            Encoder::Chat(stream) => stream.keep_alive(idle),
            Encoder::Completions(stream) => stream.keep_alive(idle),
            Encoder::Messages(stream) => stream.keep_alive(idle),
            Encoder::Responses(stream) => stream.keep_alive(idle),
        }
    }

    /// The object that a store keeps, once the stream is over.
    fn stored(&self) -> Option<&Value> {
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
            Shape::Messages(shape) => &shape.id,
            Shape::Responses { shape, .. } => &shape.id,
        }
    }

    fn complete(&self, outcome: &Outcome, logprobs: &Logprobs) -> Value {
        match self {
            Shape::Chat(shape) => chat::complete(outcome, logprobs, shape),
            Shape::Completions(shape) => completions::complete(outcome, logprobs, shape),
            Shape::Messages(shape) => messages::complete(outcome, shape),
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
            Shape::Messages(shape) => shape.warnings.extend(warnings),
            Shape::Responses { shape, .. } => shape.warnings.extend(warnings),
        }
    }

    /// Input items to keep beside a response.
    fn kept_input(&self) -> Option<&Vec<Arc<str>>> {
        match self {
            Shape::Responses { input, .. } => input.as_ref(),
            Shape::Chat(_) | Shape::Completions(_) | Shape::Messages(_) => None,
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
    let mut constraints = (None, None, Vec::new());
    if constrains(&generation) {
        let compile = move || {
            let constraints = preparer.constraints(&generation)?;
            Ok((generation, constraints))
        };
        (generation, constraints) = ready.compilations.run(compile).await?;
    }
    let (schema, calls, mut warnings) = constraints;
    let preparer = Arc::clone(&ready);
    let truncates = shape.truncates();
    let prepared = tokio::task::spawn_blocking(move || {
        // Until the prompt is known to fit, it takes as much as the body that it came from.
        let _room = room;
        let prompt = preparer.prompt(&mut generation, truncates, &mut warnings)?;
        Ok::<_, Failure>((generation, prompt, warnings))
    });
    let (generation, prompt, warnings) = prepared.await.map_err(|_| {
        HttpError::new(
            FailureKind::Internal,
            "rendering the prompt failed by a bug",
        )
    })??;
    // They may name parts of a schema, which is prompt text, so the log has their number only.
    let warned = warnings_header(&warnings);
    if warned.is_some() {
        let note = format!(
            "{} parts of schemas and tools are not enforced",
            warnings.len()
        );
        server.note(wire, &note);
    }
    shape.warn(warnings);
    let generation = Arc::new(generation);
    server.metrics.render_ms(n_prompt_started.elapsed());
    let (events, ticket) = ready.worker.submit(Job {
        request_id: wire.request_id.clone(),
        reply_id: shape.reply_id().to_owned(),
        client: Client::new(wire.user_agent.as_deref(), generation.affinity.as_deref()),
        generation: Arc::clone(&generation),
        prompt,
        schema,
        calls,
    })?;
    let mut response = if generation.stream {
        stream(server, ready, shape, events, ticket).await
    } else if server.options().nonstream_keepalive {
        padded(server, ready, wire.clone(), shape, events, ticket).await?
    } else {
        whole(&server, &ready, &shape, events, ticket).await?
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
    mut events: UnboundedReceiver<ReplyEvent>,
    ticket: Ticket,
) -> Result<Response, HttpError> {
    let mut logprobs = Logprobs::default();
    let started = Instant::now();
    let mut first = None;
    while let Some(event) = events.recv().await {
        logprobs.collect(&event);
        match event {
            ReplyEvent::Finished(outcome) => {
                drop(ticket);
                server.metrics.finished(&outcome, first.unwrap_or_default());
                if outcome.finish == Finish::Cancelled {
                    return Err(HttpError::new(
                        FailureKind::Unavailable,
                        "the request was cancelled",
                    ));
                }
                let body = shape.complete(&outcome, &logprobs);
                if let Some(input) = shape.kept_input() {
                    ready.keep(input, &body);
                }
                let mut response = json(&body);
                let Usage {
                    n_prompt, n_cached, ..
                } = outcome.usage;
                let timings = &outcome.timings;
                let (source, why) = (timings.cache_source, &timings.cache_miss);
                put_cache_header(&mut response, n_prompt, n_cached, source, why);
                return Ok(response);
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
    Err(lost().into())
}

/// As [`whole`], with a line feed ahead of the body after every interval of silence. The first one
/// commits the answer to status 200.
async fn padded(
    server: Arc<Server>,
    ready: Arc<Ready>,
    wire: Wire,
    shape: Shape,
    events: UnboundedReceiver<ReplyEvent>,
    ticket: Ticket,
) -> Result<Response, HttpError> {
    let interval = server.options().ping_interval;
    let mut reply = Box::pin(async move { whole(&server, &ready, &shape, events, ticket).await });
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

/// A reply whose worker went away without a word.
fn lost() -> Failure {
    Failure {
        kind: FailureKind::Internal,
        message: "the engine stopped; the request is lost".to_owned(),
        param: None,
    }
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
    mut events: UnboundedReceiver<ReplyEvent>,
    ticket: Ticket,
) -> Response {
    let first = tokio::time::timeout(HEADER_WAIT, events.recv()).await;
    let first = first.ok().flatten();
    let (pieces, body) = mpsc::channel::<Result<Bytes, Infallible>>(STREAM_PIECES);
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(body)));
    if let Some(ReplyEvent::Started {
        n_prompt,
        n_cached,
        source,
        why,
    }) = &first
    {
        put_cache_header(&mut response, *n_prompt, *n_cached, source, why);
    }
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let pump = Pump {
        calls: CallWriter::new(server.options().preferences.calls),
        encoder: Encoder::new(&shape),
        server,
        ready,
        shape,
        started: Instant::now(),
        first_text: None,
        ended: false,
    };
    tokio::spawn(pump.run(first, events, ticket, pieces));
    response
}

/// What moves events from the worker to the client.
struct Pump {
    calls: CallWriter,
    encoder: Encoder,
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
        first: Option<ReplyEvent>,
        mut events: UnboundedReceiver<ReplyEvent>,
        ticket: Ticket,
        pieces: mpsc::Sender<Result<Bytes, Infallible>>,
    ) {
        let mut ticket = Some(ticket);
        let mut bytes = Vec::new();
        for frame in self.encoder.open() {
            bytes.extend_from_slice(&frame.0);
        }
        if let Some(event) = first {
            self.encode(&event, &mut bytes);
        }
        let ping = self.server.options().ping_interval;
        let mut last_write = Instant::now();
        loop {
            // What came meanwhile goes out as one piece.
            while bytes.len() <= MAX_BACKLOG_BYTES
                && !self.ended
                && let Ok(event) = events.try_recv()
            {
                self.encode(&event, &mut bytes);
            }
            if bytes.len() > MAX_BACKLOG_BYTES && !self.ended {
                self.encode(&ReplyEvent::Failed(too_slow()), &mut bytes);
            }
            if self.ended && bytes.is_empty() {
                break;
            }
            if self.ended {
                ticket.take();
            }
            let due = last_write + ping;
            tokio::select! {
                room = pieces.reserve(), if !bytes.is_empty() => {
                    let Ok(room) = room else { break };
                    room.send(Ok(Bytes::from(std::mem::take(&mut bytes))));
                    last_write = Instant::now();
                }
                event = events.recv(), if !self.ended => {
                    let event = event.unwrap_or_else(|| ReplyEvent::Failed(lost()));
                    self.encode(&event, &mut bytes);
                }
                () = tokio::time::sleep_until(due), if !ping.is_zero() && bytes.is_empty() => {
                    for frame in self.encoder.keep_alive(last_write.elapsed()) {
                        bytes.extend_from_slice(&frame.0);
                    }
                    last_write = Instant::now();
                }
                () = pieces.closed() => break,
            }
        }
        drop(ticket);
    }

    fn encode(&mut self, event: &ReplyEvent, bytes: &mut Vec<u8>) {
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
        for passed in self.calls.pass(event) {
            for frame in self.encoder.event(&passed) {
                bytes.extend_from_slice(&frame.0);
            }
        }
        match event {
            ReplyEvent::Finished(outcome) => {
                self.ended = true;
                let first = self.first_text.unwrap_or_default();
                self.server.metrics.finished(outcome, first);
                if let (Some(input), Some(response)) =
                    (self.shape.kept_input(), self.encoder.stored())
                {
                    self.ready.keep(input, response);
                }
            }
            ReplyEvent::Failed(_) => self.ended = true,
            _ => {}
        }
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
