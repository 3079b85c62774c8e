//! What all connections share, and the table of routes.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use ds4_engine::store::TurnLog;
use ds4_text::Tokenizer;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tower::{Layer as _, ServiceExt as _};
use tower_http::decompression::RequestDecompressionLayer;

use crate::api::{RequestContext, messages, models, responses};
use crate::calls::CallReader;
use crate::generation::{Failure, FailureKind, Generation};
use crate::id::new_id;
use crate::prompt::{Prompter, TokenPrompt};
use crate::schema::{SchemaReader, Schemas};
use crate::threads::Threads;
use crate::truncate;
use crate::turns::{DEFAULT_MAX_BYTES, Turns};
use crate::worker::{STALLED_AFTER, TokenSource, Worker, WorkerOptions};

use super::body::BodyReader;
use super::compile::Compilations;
use super::confine::{Panicked, confine};
use super::endpoints::*;
use super::error::HttpError;
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

/// What the content and the calls of a reply must follow, and what of it is not enforced.
pub(super) type Constraints = (Option<SchemaReader>, Option<CallReader>, Vec<String>);

/// Everything that needs a loaded model.
pub(super) struct Ready {
    pub(super) worker: Worker,
    pub(super) prompter: Prompter,
    turns: Arc<Turns>,
    pub(super) facts: ModelFacts,
    /// Names what a seed's effect depends on.
    pub(super) fingerprint: String,
    /// Made when the first schema or tool comes: it takes a while.
    schemas: OnceLock<Result<Schemas, String>>,
    pub(super) compilations: Compilations,
    /// Where prompts are counted, and texts made tokens of and back.
    pub(super) utility: Utility,
    stored: Mutex<responses::MemoryStore>,
    /// Conversations that clients go on with by the id of their last message.
    pub(super) threads: Threads,
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
    pub(super) fn stored(&self) -> MutexGuard<'_, responses::MemoryStore> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.expire(now_unix());
        stored
    }

    /// Keeps a conversation up to a message of the model's, in memory and in the log.
    pub(super) fn keep_thread(&self, thread: &messages::Thread, id: &str, reply: Value) {
        let record = thread.record(&reply);
        self.threads.put(thread, id, reply, now_unix());
        let (turns, id) = (Arc::clone(&self.turns), id.to_owned());
        self.worker
            .write_down(move || turns.write_thread(&id, &record));
    }

    /// Keeps a response for clients that refer to it.
    pub(super) fn keep(&self, input: &[Arc<str>], response: &Value) {
        self.stored().put(responses::StoredResponse {
            input: input.to_vec(),
            response: response.clone(),
        });
    }
}

/// What is stored, held by nobody for as long as a request is read.
impl responses::ResponseStore for Ready {
    fn response(&self, id: &str) -> Option<Arc<responses::StoredResponse>> {
        self.stored().response(id)
    }

    fn response_with_item(&self, item_id: &str) -> Option<Arc<responses::StoredResponse>> {
        self.stored().response_with_item(item_id)
    }

    fn response_with_call(&self, call_id: &str) -> Option<Arc<responses::StoredResponse>> {
        self.stored().response_with_call(call_id)
    }
}

/// A server: what all connections share.
pub struct Server {
    pub(super) options: ServerOptions,
    pub(super) guard: Guard,
    pub(super) bodies: BodyReader,
    router: OnceLock<Router>,
    pub(super) ready: OnceLock<Arc<Ready>>,
    pub(super) metrics: Metrics,
    pub(super) notices: Notices,
    pub(super) started: Instant,
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
            threads: Threads::new(Arc::clone(&turns)),
            prompter: Prompter::new(
                tokenizer,
                Arc::clone(&turns),
                self.options.prompt,
                facts.n_context,
            ),
            turns,
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

    pub(super) fn ready(&self) -> Result<Arc<Ready>, HttpError> {
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

    pub(super) fn card(&self, ready: &Ready) -> models::ModelCard {
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

    pub(super) fn context(
        &self,
        ready: &Ready,
        wire: &Wire,
        headers: &HeaderMap,
    ) -> RequestContext {
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
