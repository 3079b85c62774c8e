//! The table of routes, and the answers that need no reply.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use ds4_engine::store::TurnLog;
use ds4_text::{Prompt, Tokenizer};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tower::{Layer as _, ServiceExt as _};
use tower_http::decompression::RequestDecompressionLayer;

use crate::api::{RequestContext, chat, completions, messages, models, responses, utility};
use crate::calls::CallReader;
use crate::generation::{Failure, FailureKind, Generation};
use crate::id::new_id;
use crate::log::endpoint_name;
use crate::prompt::{Prompter, TokenPrompt};
use crate::schema::{SchemaReader, Schemas};
use crate::truncate;
use crate::turns::{DEFAULT_MAX_BYTES, Turns};
use crate::worker::{Health, STALLED_AFTER, SlotRequest, TokenSource, Worker, WorkerOptions};

use super::body::BodyReader;
use super::compile::Compilations;
use super::confine::{Panicked, confine};
use super::error::{HttpError, json as json_response, json_text};
use super::generate::{self, Shape};
use super::guard::Guard;
use super::metrics::Metrics;
use super::notices::Notices;
use super::options::{ModelFacts, ServerOptions};
use super::page;
use super::utility::Utility;
use super::wire::{Wire, canonical_path};

/// Responses kept for clients that refer to them.
const MAX_STORED_RESPONSES: usize = 1000;
/// Bytes of JSON of those.
const MAX_STORED_BYTES: usize = 256 << 20;
/// Request headers that protocols read.
const READ_HEADERS: [&str; 8] = [
    "anthropic-version",
    "anthropic-beta",
    "x-claude-code-session-id",
    "session-id",
    "session_id",
    "thread-id",
    "x-session-id",
    "x-session-affinity",
];

type Answer = Result<Response, HttpError>;
/// What the content and the calls of a reply must follow, and what of it is not enforced.
type Constraints = (Option<SchemaReader>, Option<CallReader>, Vec<String>);

/// Everything that needs a loaded model.
pub(super) struct Ready {
    pub(super) worker: Worker,
    pub(super) prompter: Prompter,
    facts: ModelFacts,
    /// Names what a seed's effect depends on.
    fingerprint: String,
    /// Made when the first schema or tool comes: it takes a while.
    schemas: OnceLock<Result<Schemas, String>>,
    pub(super) compilations: Compilations,
    /// Where prompts are counted, and texts made tokens of and back.
    pub(super) utility: Utility,
    stored: Mutex<responses::MemoryStore>,
}

impl Ready {
    /// What keeps a reply's content on its schema and its calls well-formed, and what of the schema
    /// is not enforced.
    ///
    /// # Errors
    /// A schema that cannot be enforced.
    pub(super) fn constraints(&self, generation: &Generation) -> Result<Constraints, Failure> {
        let schemas = self.schemas()?;
        let (calls, mut warnings) = schemas.calls(generation)?;
        let schema = match &generation.schema {
            Some(schema) => {
                let (reader, more) = schemas.compile(schema)?;
                warnings.extend(more);
                Some(reader)
            }
            None => None,
        };
        Ok((schema, calls, warnings))
    }

    /// What compiles schemas.
    fn schemas(&self) -> Result<&Schemas, Failure> {
        let schemas = self
            .schemas
            .get_or_init(|| Schemas::new(self.prompter.tokenizer()));
        schemas.as_ref().map_err(|reason| Failure {
            kind: FailureKind::Unsupported,
            message: format!("this model's vocabulary cannot follow schemas: {reason}"),
            param: None,
        })
    }

    /// The prompt of a request. Where `truncates` says so, the oldest turns of one that is too long
    /// are dropped, and a warning tells of it.
    ///
    /// # Errors
    /// Messages that have no rendering, or a prompt that is too long.
    pub(super) fn prompt(
        &self,
        generation: &mut Generation,
        truncates: bool,
        warnings: &mut Vec<String>,
    ) -> Result<TokenPrompt, Failure> {
        if !truncates {
            return self.prompter.tokens(generation);
        }
        let n_context = self.facts.n_context;
        let (prompt, n_gone) = truncate::fitting(&self.prompter, generation, n_context)?;
        if n_gone > 0 {
            warnings.push(format!(
                "input: the oldest {n_gone} messages are left out, as truncation allows"
            ));
        }
        Ok(prompt)
    }

    /// The responses that clients may refer to.
    fn stored(&self) -> MutexGuard<'_, responses::MemoryStore> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.expire(now_unix());
        stored
    }

    /// Keeps a response for clients that refer to it.
    pub(super) fn keep(&self, input: &[Arc<Value>], response: &Value) {
        self.stored().put(responses::StoredResponse {
            input: input.to_vec(),
            response: response.clone(),
        });
    }
}

/// A server: what all connections share.
pub struct Server {
    options: ServerOptions,
    guard: Guard,
    bodies: BodyReader,
    router: OnceLock<Router>,
    ready: OnceLock<Arc<Ready>>,
    pub(super) metrics: Metrics,
    notices: Notices,
    started: Instant,
    started_unix: u64,
}

impl Server {
    /// A server without a model, which says that it is loading. `loopback` says that only this
    /// machine can connect.
    pub fn new(options: ServerOptions, loopback: bool) -> Arc<Server> {
        let server = Arc::new(Server {
            guard: Guard::new(&options, loopback),
            bodies: BodyReader::new(&options),
            options,
            router: OnceLock::new(),
            ready: OnceLock::new(),
            metrics: Metrics::default(),
            notices: Notices::default(),
            started: Instant::now(),
            started_unix: now_unix(),
        });
        let router = router(Arc::clone(&server));
        let _ = server.router.set(router);
        server
    }

    /// Gives the server its model, and where turns outlive it.
    ///
    /// # Errors
    /// The system gives no thread for the worker.
    pub fn load(
        &self,
        source: impl TokenSource + 'static,
        tokenizer: Arc<Tokenizer>,
        facts: ModelFacts,
        turn_log: Option<TurnLog>,
    ) -> std::io::Result<()> {
        let turns = Turns::new(self.options.max_call_ids, DEFAULT_MAX_BYTES);
        let turns = Arc::new(match turn_log {
            Some(log) => turns.with_log(log),
            None => turns,
        });
        let options = WorkerOptions {
            n_slots: facts.n_slots,
            max_queue: self.options.max_queue,
            default_max_tokens: self.options.default_max_tokens,
            log: Arc::clone(&self.options.log),
            note: Arc::clone(&self.options.note),
            stalled_after: STALLED_AFTER,
            trace: self.options.trace.clone(),
        };
        let worker = Worker::start(source, Arc::clone(&tokenizer), Arc::clone(&turns), options)?;
        let _ = self.ready.set(Arc::new(Ready {
            worker,
            prompter: Prompter::new(tokenizer, turns, self.options.prompt, facts.n_context),
            fingerprint: fingerprint(&facts),
            facts,
            schemas: OnceLock::new(),
            compilations: Compilations::default(),
            utility: Utility::default(),
            stored: Mutex::new(responses::MemoryStore::new(
                MAX_STORED_RESPONSES,
                MAX_STORED_BYTES,
            )),
        }));
        Ok(())
    }

    /// How it behaves.
    pub fn options(&self) -> &ServerOptions {
        &self.options
    }

    /// Says something of a request in the log, once.
    pub(super) fn note(&self, wire: &Wire, notice: &str) {
        note_warnings(self, wire, &[notice.to_owned()]);
    }

    /// Takes no more requests and says how long those that run may take.
    pub(super) fn shut_down(&self) -> Duration {
        if let Some(ready) = self.ready.get() {
            ready.worker.shut_down(self.options.shutdown_grace);
        }
        self.options.shutdown_grace
    }

    /// Waits until what happened so far is written down.
    pub fn settle(&self) {
        if let Some(ready) = self.ready.get() {
            ready.worker.settle();
        }
    }

    /// Waits for the worker after the connections are closed, so that the engine is free.
    pub fn join(&self) {
        if let Some(ready) = self.ready.get() {
            ready.worker.join();
        }
    }

    fn ready(&self) -> Result<Arc<Ready>, HttpError> {
        self.ready
            .get()
            .cloned()
            .ok_or_else(|| HttpError::new(FailureKind::Unavailable, "the model is still loading"))
    }

    /// Answers one request.
    pub(super) async fn answer(&self, mut request: Request) -> Response {
        let path = canonical_path(request.uri().path());
        let method = request.method().clone();
        let wire = Wire::new(&path, request.headers());
        let asked = request.headers().clone();
        let checked = self.guard.check(&method, &path, &asked);
        let mut response = match (checked, self.router.get()) {
            (Err(error), _) => error.response(&wire),
            (Ok(()), _) if method == Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
            (Ok(()), Some(router)) => {
                let query = request.uri().query();
                let target = query.map_or(path.clone(), |query| format!("{path}?{query}"));
                if let Ok(uri) = target.parse() {
                    *request.uri_mut() = uri;
                }
                request.extensions_mut().insert(wire.clone());
                // The limit of a body counts what comes of it.
                let router = RequestDecompressionLayer::new().layer(router.clone());
                match confine(router.oneshot(request)).await {
                    Ok(Ok(response)) => response.map(Body::new),
                    Ok(Err(never)) => match never {},
                    Err(Panicked) => {
                        HttpError::new(FailureKind::Internal, "answering failed by a bug")
                            .response(&wire)
                    }
                }
            }
            (Ok(()), None) => {
                HttpError::new(FailureKind::Unavailable, "the server is starting").response(&wire)
            }
        };
        if response.status() == StatusCode::METHOD_NOT_ALLOWED {
            let allow = response.headers().get(header::ALLOW).cloned();
            response = HttpError::of_http(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                format!("{method} is not a method of {path}"),
            )
            .response(&wire);
            if let Some(allow) = allow {
                response.headers_mut().insert(header::ALLOW, allow);
            }
        } else if response.status() == StatusCode::BAD_REQUEST && !is_json(&response) {
            response = HttpError::new(
                FailureKind::Invalid,
                "the path or the query of the address is not well-formed UTF-8",
            )
            .response(&wire);
        }
        if response.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE && !is_json(&response) {
            response = HttpError::of_http(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_content_encoding",
                "content-encoding: expected identity, gzip, deflate, br or zstd",
            )
            .response(&wire);
        }
        if matches!(response.status().as_u16(), 429 | 529)
            && let Some(ready) = self.ready.get()
        {
            let seconds = HeaderValue::from(ready.worker.retry_after_s());
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        let label = if response.status() == StatusCode::NOT_FOUND {
            "other"
        } else {
            route_label(&path)
        };
        self.metrics.answered(label, response.status().as_u16());
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(&wire.request_id) {
            if wire.anthropic {
                headers.insert("request-id", id.clone());
            }
            headers.insert("x-request-id", id);
        }
        self.guard.add_cors(&asked, &mut response);
        response
    }

    fn card(&self, ready: &Ready) -> models::ModelCard {
        let facts = &ready.facts;
        models::ModelCard {
            created: self.started_unix,
            owned_by: "deepseek".to_owned(),
            display_name: facts.name.clone(),
            n_context: facts.n_context,
            n_context_trained: facts.n_context_train,
            max_tokens: self.options.default_max_tokens.min(facts.n_context),
            n_vocab: ready.prompter.tokenizer().n_vocab(),
            n_params: facts.n_params,
            size_bytes: facts.size_bytes,
        }
    }

    fn context(&self, ready: &Ready, wire: &Wire, headers: &HeaderMap) -> RequestContext {
        let header = |name: &&str| {
            let value = headers.get(*name)?.to_str().ok()?;
            Some(((*name).to_owned(), value.to_owned()))
        };
        RequestContext {
            default_thinking: self.options.default_thinking,
            model_id: self.options.model_id.clone(),
            aliases: self.options.aliases.clone(),
            strict_models: self.options.strict_models,
            strict_tools: self.options.strict_tools,
            preferences: self.options.preferences.clone(),
            system_fingerprint: Some(ready.fingerprint.clone()),
            default_max_tokens: self.options.default_max_tokens,
            n_context: ready.facts.n_context,
            now_unix: now_unix(),
            request_id: wire.request_id.clone(),
            new_id: || new_id("", 32),
            headers: READ_HEADERS.iter().filter_map(header).collect(),
        }
    }
}

fn is_json(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind == "application/json")
}

/// Names what a seed's effect depends on, as far as it is known here: this program's version, the
/// weights, and the slots that are stepped together.
fn fingerprint(facts: &ModelFacts) -> String {
    let told = (
        env!("CARGO_PKG_VERSION"),
        &facts.name,
        &facts.file_name,
        facts.n_params,
        facts.size_bytes,
        facts.n_slots,
    );
    let digest = Sha256::digest(format!("{told:?}"));
    let digits: String = digest[..6].iter().map(|b| format!("{b:02x}")).collect();
    format!("fp_{digits}")
}

fn now_unix() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Paths that metrics tell apart.
const LABELS: [&str; 19] = [
    "/",
    "/health",
    "/healthz",
    "/ping",
    "/version",
    "/metrics",
    "/props",
    "/slots",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/chat/completions/input_tokens",
    "/v1/chat/completions/control",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses/input_tokens",
];

/// What metrics call a path: one of a fixed number of names, whatever clients ask for.
fn route_label(path: &str) -> &'static str {
    if let Some(label) = LABELS.iter().find(|label| **label == path) {
        return label;
    }
    for prefix in ["/v1/models", "/v1/responses", "/v1/cancel"] {
        let behind = path.strip_prefix(prefix);
        if behind.is_some_and(|behind| behind.is_empty() || behind.starts_with('/')) {
            return prefix;
        }
    }
    match page::is_part(path) {
        true => "/",
        false => "other",
    }
}

fn router(server: Arc<Server>) -> Router {
    page::with_page(Router::new())
        .route("/health", get(health))
        .route("/healthz", get(health))
        .route("/ping", get(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/props", get(props))
        .route("/slots", get(slots))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/apply-template", post(apply_template))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*name}", get(one_model))
        .route("/v1/chat/completions", post(post_chat))
        .route("/v1/chat/completions/input_tokens", post(count_chat))
        .route("/v1/chat/completions/control", post(control))
        .route("/v1/completions", post(post_completions))
        .route("/v1/messages", post(post_messages))
        .route("/v1/messages/count_tokens", post(count_messages))
        .route("/v1/responses", post(post_responses).get(no_websocket))
        .route("/v1/responses/input_tokens", post(count_responses))
        .route(
            "/v1/responses/{id}",
            get(get_response).delete(delete_response),
        )
        .route("/v1/responses/{id}/input_items", get(get_input_items))
        .route("/v1/responses/{id}/cancel", post(cancel_response))
        .route("/v1/cancel/{id}", post(cancel))
        .fallback(not_found)
        .with_state(server)
}

type Call = (State<Arc<Server>>, axum::Extension<Wire>, HeaderMap);

async fn not_found(wire: axum::Extension<Wire>, request: Request) -> Response {
    let path = request.uri().path();
    let first = path.trim_start_matches("/v1").trim_start_matches('/');
    let what = match first.split('/').next().unwrap_or_default() {
        "embeddings" | "embedding" => {
            "this model makes no embeddings; ask a server of an embedding model"
        }
        "rerank" | "reranking" => "this model ranks nothing; ask a server of a ranking model",
        "moderations" => "there are no moderations; ask the model itself in a chat",
        "batches" | "files" => {
            "there are no batches and files; send the requests one by one, as many at once as \
             --parallel and --max-queue let in"
        }
        "images" | "audio" => "this model reads and writes text only",
        "assistants" | "threads" | "conversations" => {
            "there are no assistants and conversations; use /v1/responses with \
             previous_response_id, or /v1/chat/completions"
        }
        _ => {
            let message = format!("there is nothing at {path}");
            return HttpError::new(FailureKind::NotFound, message).response(&wire);
        }
    };
    let message = format!("there is nothing at {path}: {what}");
    HttpError::new(FailureKind::NotFound, message).response(&wire)
}

/// Answers, or the error in the client's words.
fn in_words(answer: Answer, wire: &Wire) -> Response {
    answer.unwrap_or_else(|error| error.response(wire))
}

async fn health(
    State(server): State<Arc<Server>>,
    query: Query<Vec<(String, String)>>,
) -> Response {
    let Some(ready) = server.ready.get() else {
        let mut response = json_response(&json!({
            "error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}
        }));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return response;
    };
    let (status, code) = match ready.worker.health() {
        Health::Well => ("ok", StatusCode::OK),
        Health::Stalled => ("stalled", StatusCode::SERVICE_UNAVAILABLE),
        Health::Ended => ("engine stopped", StatusCode::SERVICE_UNAVAILABLE),
    };
    let mut body = json!({"status": status});
    if query.iter().any(|(name, _)| name == "verbose") {
        let (running, waiting) = ready.worker.load();
        body["running"] = json!(running);
        body["waiting"] = json!(waiting);
        body["slots"] = json!(ready.facts.n_slots);
        body["uptime_s"] = json!(server.started.elapsed().as_secs());
        body["log_left_out"] = json!(ready.worker.n_left_out());
    }
    let mut response = json_response(&body);
    *response.status_mut() = code;
    response
}

async fn version() -> Response {
    json_response(&json!({"version": env!("CARGO_PKG_VERSION")}))
}

async fn metrics(State(server): State<Arc<Server>>, wire: axum::Extension<Wire>) -> Response {
    if !server.options.metrics {
        return HttpError::new(FailureKind::NotFound, "metrics are off").response(&wire);
    }
    let answer = server.ready().map(|ready| {
        let mut response = Response::new(Body::from(
            server.metrics.text(&ready.worker, ready.facts.size_bytes),
        ));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4"),
        );
        response
    });
    in_words(answer, &wire)
}

async fn props(State(server): State<Arc<Server>>, wire: axum::Extension<Wire>) -> Response {
    let answer = server.ready().map(|ready| {
        let facts = &ready.facts;
        json_response(&json!({
            "default_generation_settings": {
                "n_ctx": facts.n_context,
                "params": {
                    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.05,
                    "n_predict": server.options.default_max_tokens,
                },
            },
            "total_slots": facts.n_slots,
            "model_path": facts.file_name,
            "model_alias": server.options.model_id,
            "model_name": facts.name,
            "chat_template": "(rendered natively)",
            "build_info": concat!("ds4-server ", env!("CARGO_PKG_VERSION")),
            "is_sleeping": false,
            "prompt_revision": format!("{:?}", server.options.prompt.revision),
        }))
    });
    in_words(answer, &wire)
}

async fn slots(State(server): State<Arc<Server>>, wire: axum::Extension<Wire>) -> Response {
    let answer = server.ready().map(|ready| {
        let slots = ready.worker.slots().into_iter().enumerate();
        let rows: Vec<Value> = slots
            .map(|(id, slot)| {
                json!({
                    "id": id,
                    "n_ctx": ready.facts.n_context,
                    "is_processing": slot.request_id.is_some(),
                    "request_id": slot.request_id,
                    "n_past": slot.n_tokens,
                    "cache_tokens": slot.n_tokens,
                    "next_token": {"n_decoded": slot.n_decoded},
                    "last_prompt": slot.last.as_ref().map_or("", |last| &last.why),
                    "last_request": slot.last.as_ref().map(last_request),
                })
            })
            .collect();
        json_response(&Value::from(rows))
    });
    in_words(answer, &wire)
}

/// The story of a slot's request.
fn last_request(last: &SlotRequest) -> Value {
    json!({
        "id": last.request_id,
        "endpoint": endpoint_name(last.endpoint),
        "client": last.client.name,
        "session": last.client.session,
        "prompt_tokens": last.usage.n_prompt,
        "cached_tokens": last.usage.n_cached,
        "cache_source": last.source,
        "why": last.why,
        "generated_tokens": last.usage.n_generated,
        "reasoning_tokens": last.usage.n_reasoning,
        "prefill_per_second": last.prefill_rate,
        "decode_per_second": last.decode_rate,
        "finish": last.finish,
    })
}

async fn tokenize(call: Call, body: Body) -> Response {
    let (State(server), wire, headers) = call;
    let answer = async {
        let ready = server.ready()?;
        let body = server.bodies.json(body).await?;
        let context = server.context(&ready, &wire, &headers);
        let request = body.read(|body| utility::parse_tokenize(body, &context))?;
        let room = body.into_room();
        let tools = Arc::clone(&ready);
        let answer = ready.utility.run(move || {
            let _room = room;
            let tokenizer = tools.prompter.tokenizer();
            let ids = token_ids(&tools, &request.source)?;
            let bytes_of = |id| tokenizer.token_bytes(id);
            let n_context = tools.facts.n_context;
            Ok(utility::tokenized(&request, &ids, bytes_of, n_context))
        });
        Ok(json_text(answer.await?))
    };
    in_words(answer.await, &wire)
}

/// The tokens that `/tokenize` is asked for.
fn token_ids(ready: &Ready, source: &utility::Source) -> Result<Vec<u32>, Failure> {
    let tokenizer = ready.prompter.tokenizer();
    let (text, add_special, parse_special) = match source {
        utility::Source::Chat(generation) => return ready.prompter.encode(generation),
        utility::Source::Text {
            text,
            add_special,
            parse_special,
        } => (text, *add_special, *parse_special),
    };
    let mut ids = Vec::new();
    if add_special {
        ids.push(tokenizer.protocol().bos);
    }
    if parse_special {
        ids.extend(tokenizer.encode(text));
    } else {
        // What a client wrote, with nothing trusted in it.
        let whole = 0..text.len();
        ids.extend(tokenizer.encode_prompt(&Prompt {
            text: text.clone(),
            untrusted: vec![whole],
            ..Prompt::default()
        }));
    }
    Ok(ids)
}

async fn detokenize(call: Call, body: Body) -> Response {
    let (State(server), wire, _) = call;
    let answer = async {
        let ready = server.ready()?;
        let body = server.bodies.json(body).await?;
        let n_vocab = ready.prompter.tokenizer().n_vocab();
        let ids = body.read(|body| utility::parse_detokenize(body, n_vocab))?;
        let room = body.into_room();
        let tools = Arc::clone(&ready);
        let text = ready.utility.run(move || {
            let _room = room;
            let decoded = tools.prompter.tokenizer().decode(&ids);
            decoded.map_err(|e| crate::api::invalid("tokens", e.to_string()))
        });
        Ok(json_response(&utility::detokenized(&text.await?)))
    };
    in_words(answer.await, &wire)
}

async fn apply_template(call: Call, body: Body) -> Response {
    let (State(server), wire, headers) = call;
    let answer = async {
        let ready = server.ready()?;
        let body = server.bodies.json(body).await?;
        let context = server.context(&ready, &wire, &headers);
        let generation = body.read(|body| chat::parse(body, &context))?.generation;
        let room = body.into_room();
        let tools = Arc::clone(&ready);
        let answer = ready.utility.run(move || {
            let _room = room;
            let text = tools.prompter.text(&generation)?.text;
            let n = tools.prompter.encode(&generation)?.len();
            Ok(utility::applied_template(&text, n))
        });
        Ok(json_response(&answer.await?))
    };
    in_words(answer.await, &wire)
}

async fn list_models(call: Call) -> Response {
    let (State(server), wire, headers) = call;
    let answer = server.ready().map(|ready| {
        let context = server.context(&ready, &wire, &headers);
        json_response(&models::list(&server.card(&ready), &context))
    });
    in_words(answer, &wire)
}

async fn one_model(call: Call, Path(name): Path<String>) -> Response {
    let (State(server), wire, headers) = call;
    let answer = server.ready().and_then(|ready| {
        let context = server.context(&ready, &wire, &headers);
        Ok(json_response(&models::one(
            &server.card(&ready),
            &name,
            &context,
        )?))
    });
    in_words(answer, &wire)
}

fn missing(param: &str, expected: &str) -> HttpError {
    HttpError::from(crate::api::invalid(
        param,
        format!("{param} must be {expected}"),
    ))
}

async fn post_chat(call: Call, body: Body) -> Response {
    let (State(server), wire, headers) = call;
    let answer = async {
        let ready = server.ready()?;
        let body = server.bodies.json(body).await?;
        let context = server.context(&ready, &wire, &headers);
        let parsed = body.read(|body| chat::parse(body, &context))?;
        note_warnings(&server, &wire, &parsed.warnings);
        let shape = Shape::Chat(Box::new(parsed.reply));
        let (server, room) = (Arc::clone(&server), body.into_room());
        generate::answer(server, ready, &wire, parsed.generation, shape, room).await
    };
    in_words(answer.await, &wire)
}

async fn count_chat(call: Call, body: Body) -> Response {
    let (State(server), wire, headers) = call;
    let answer = async {
        let ready = server.ready()?;
        let body = server.bodies.json(body).await?;
        let context = server.context(&ready, &wire, &headers);
        let parsed = body.read(|body| chat::parse(body, &context))?;
        let n = generate::count(&ready, parsed.generation, false, body.into_room()).await?;
        Ok(json_response(&chat::token_count(n)))
    };
    in_words(answer.await, &wire)
}

async fn post_completions(call: Call, body: Body) -> Response {
    let (State(server), wire, headers) = call;
    let answer = async {
        let ready = server.ready()?;
        let body = server.bodies.json(body).await?;
        let context = server.context(&ready, &wire, &headers);
        let parsed = body.read(|body| completions::parse(body, &context))?;
        let shape = Shape::Completions(Box::new(parsed.reply));
        let (server, room) = (Arc::clone(&server), body.into_room());
        generate::answer(server, ready, &wire, parsed.generation, shape, room).await
    };
    in_words(answer.await, &wire)
}

async fn post_messages(call: Call, body: Body) -> Response {
    let (State(server), wire, headers) = call;
    let answer = async {
        let ready = server.ready()?;
        let body = server.bodies.json(body).await?;
        let context = server.context(&ready, &wire, &headers);
        let parsed = body.read(|body| messages::parse(body, &context))?;
        note_warnings(&server, &wire, &parsed.warnings);
        let shape = Shape::Messages(parsed.reply);
        let (server, room) = (Arc::clone(&server), body.into_room());
        generate::answer(server, ready, &wire, parsed.generation, shape, room).await
    };
    in_words(answer.await, &wire)
}

async fn count_messages(call: Call, body: Body) -> Response {
    let (State(server), wire, headers) = call;
    let answer = async {
        let ready = server.ready()?;
        let body = server.bodies.json(body).await?;
        let context = server.context(&ready, &wire, &headers);
        let parsed = body.read(|body| messages::parse(body, &context))?;
        let n = generate::count(&ready, parsed.generation, false, body.into_room()).await?;
        Ok(json_response(&messages::token_count(n)))
    };
    in_words(answer.await, &wire)
}

async fn post_responses(call: Call, body: Body) -> Response {
    let (State(server), wire, headers) = call;
    let answer = async {
        let ready = server.ready()?;
        let body = server.bodies.json(body).await?;
        let context = server.context(&ready, &wire, &headers);
        let parsed =
            body.read(|body| responses::parse_with_store(body, &context, &*ready.stored()))?;
        note_warnings(&server, &wire, &parsed.warnings);
        let shape = Shape::Responses {
            shape: Box::new(parsed.reply),
            input: parsed.store.then_some(parsed.input),
            truncate: parsed.truncate,
        };
        let (server, room) = (Arc::clone(&server), body.into_room());
        generate::answer(server, ready, &wire, parsed.generation, shape, room).await
    };
    in_words(answer.await, &wire)
}

async fn count_responses(call: Call, body: Body) -> Response {
    let (State(server), wire, headers) = call;
    let answer = async {
        let ready = server.ready()?;
        let body = server.bodies.json(body).await?;
        let context = server.context(&ready, &wire, &headers);
        let parsed =
            body.read(|body| responses::parse_with_store(body, &context, &*ready.stored()))?;
        let n =
            generate::count(&ready, parsed.generation, parsed.truncate, body.into_room()).await?;
        Ok(json_response(&responses::token_count(n)))
    };
    in_words(answer.await, &wire)
}

/// One agent tries a WebSocket first, and goes on with HTTP at once when it is told to.
async fn no_websocket(wire: axum::Extension<Wire>, headers: HeaderMap) -> Response {
    let (status, code) = if headers.contains_key(header::UPGRADE) {
        (StatusCode::UPGRADE_REQUIRED, "upgrade_required")
    } else {
        (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")
    };
    let mut response =
        HttpError::of_http(status, code, "use POST; there are no WebSockets here").response(&wire);
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static("POST"));
    response
}

fn no_such_response(id: &str) -> HttpError {
    HttpError::from(Failure {
        kind: FailureKind::NotFound,
        message: format!("there is no stored response {id}"),
        param: Some("response_id".to_owned()),
    })
}

async fn get_response(
    State(server): State<Arc<Server>>,
    wire: axum::Extension<Wire>,
    Path(id): Path<String>,
) -> Response {
    let answer = server.ready().and_then(|ready| {
        let found = responses::ResponseStore::response(&*ready.stored(), &id);
        let found = found.ok_or_else(|| no_such_response(&id))?;
        Ok(json_response(&found.response))
    });
    in_words(answer, &wire)
}

async fn get_input_items(
    State(server): State<Arc<Server>>,
    wire: axum::Extension<Wire>,
    Path(id): Path<String>,
    query: Query<HashMap<String, String>>,
) -> Response {
    let answer = server.ready().and_then(|ready| {
        let found = responses::ResponseStore::response(&*ready.stored(), &id);
        let found = found.ok_or_else(|| no_such_response(&id))?;
        let of = |name: &str| query.get(name).map(String::as_str);
        let limit = of("limit")
            .map(|limit| limit.parse().map_err(|_| missing("limit", "a number")))
            .transpose()?;
        let page = responses::input_items(&found, of("order"), of("after"), limit)?;
        Ok(json_response(&page))
    });
    in_words(answer, &wire)
}

async fn cancel(
    State(server): State<Arc<Server>>,
    wire: axum::Extension<Wire>,
    Path(id): Path<String>,
) -> Response {
    let answer = server.ready().and_then(|ready| {
        if ready.worker.cancel(&id) {
            Ok(json_response(&json!({"id": id, "cancelled": true})))
        } else {
            Err(HttpError::new(
                FailureKind::NotFound,
                format!("no request {id} is running or waiting"),
            ))
        }
    });
    in_words(answer, &wire)
}

/// Ends the reasoning of a reply that is being streamed, as llama.cpp has it.
async fn control(call: Call, body: Body) -> Response {
    let (State(server), wire, _) = call;
    let answer = async {
        let ready = server.ready()?;
        let body = server.bodies.json(body).await?;
        let id = body.read(utility::parse_control)?;
        if ready.worker.end_reasoning(&id) {
            Ok(json_response(&json!({"id": id, "success": true})))
        } else {
            Err(HttpError::new(
                FailureKind::NotFound,
                format!("no request {id} is running or waiting"),
            ))
        }
    };
    in_words(answer.await, &wire)
}

/// A response is stored when it is complete, so one that is found has nothing left to cancel.
async fn cancel_response(
    State(server): State<Arc<Server>>,
    wire: axum::Extension<Wire>,
    Path(id): Path<String>,
) -> Response {
    let answer = server.ready().and_then(|ready| {
        let found = responses::ResponseStore::response(&*ready.stored(), &id);
        found.ok_or_else(|| no_such_response(&id))?;
        Err(HttpError::from(crate::api::invalid(
            "response_id",
            "response_id: this response is complete; a running one is cancelled by closing its \
             connection, or by POST /v1/cancel/ and its x-request-id.",
        )))
    });
    in_words(answer, &wire)
}

async fn delete_response(
    State(server): State<Arc<Server>>,
    wire: axum::Extension<Wire>,
    Path(id): Path<String>,
) -> Response {
    let answer = server.ready().and_then(|ready| {
        if ready.stored().remove(&id) {
            Ok(json_response(&responses::deleted(&id)))
        } else {
            Err(no_such_response(&id))
        }
    });
    in_words(answer, &wire)
}

fn note_warnings(server: &Server, wire: &Wire, warnings: &[String]) {
    for warning in warnings.iter().filter(|w| server.notices.is_fresh(w)) {
        if let Some(ready) = server.ready.get() {
            ready.worker.note(format!("{} {warning}", wire.request_id));
        }
    }
}
