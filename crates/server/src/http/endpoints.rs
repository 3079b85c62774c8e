//! The answers of every route, of which those that need a reply are made in [`super::generate`].

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use ds4_text::Prompt;
use serde_json::{Value, json};

use crate::api::{
    Document, RequestContext, chat, completions, messages, models, responses, utility,
};
use crate::generation::{Failure, FailureKind, Generation};
use crate::log::endpoint_name;
use crate::worker::{Health, SlotRequest};

use super::body::Room;
use super::error::{HttpError, json as json_response, json_text};
use super::generate::{self, Shape};
use super::routes::{Ready, Server};
use super::wire::Wire;

type Answer = Result<Response, HttpError>;
pub(super) type Call = (State<Arc<Server>>, axum::Extension<Wire>, HeaderMap);

pub(super) async fn not_found(wire: axum::Extension<Wire>, request: Request) -> Response {
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
pub(super) fn in_words(answer: Answer, wire: &Wire) -> Response {
    answer.unwrap_or_else(|error| error.response(wire))
}

pub(super) async fn health(
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
        Health::Lost => ("device lost", StatusCode::SERVICE_UNAVAILABLE),
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

pub(super) async fn version() -> Response {
    json_response(&json!({"version": env!("CARGO_PKG_VERSION")}))
}

pub(super) async fn metrics(
    State(server): State<Arc<Server>>,
    wire: axum::Extension<Wire>,
) -> Response {
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

pub(super) async fn props(
    State(server): State<Arc<Server>>,
    wire: axum::Extension<Wire>,
) -> Response {
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

pub(super) async fn slots(
    State(server): State<Arc<Server>>,
    wire: axum::Extension<Wire>,
) -> Response {
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
pub(super) fn last_request(last: &SlotRequest) -> Value {
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

/// What a client asks for, and what its body takes.
struct Asked<T> {
    ready: Arc<Ready>,
    request: T,
    room: Room,
}

/// Reads a request's body by the parser of its endpoint.
async fn asked<T>(
    (State(server), wire, headers): &Call,
    body: Body,
    parse: impl FnOnce(Document<'_>, &RequestContext, &Ready) -> Result<T, Failure>,
) -> Result<Asked<T>, HttpError> {
    let ready = server.ready()?;
    let body = server.bodies.json(body).await?;
    let context = server.context(&ready, wire, headers);
    let request = body.read(|body| parse(body, &context, &ready))?;
    Ok(Asked {
        ready,
        request,
        room: body.into_room(),
    })
}

pub(super) async fn tokenize(call: Call, body: Body) -> Response {
    let answer = async {
        let parse = |body: Document<'_>, context: &RequestContext, _: &Ready| {
            utility::parse_tokenize(body, context)
        };
        let Asked {
            ready,
            request,
            room,
        } = asked(&call, body, parse).await?;
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
    in_words(answer.await, &call.1)
}

/// The tokens that `/tokenize` is asked for.
pub(super) fn token_ids(ready: &Ready, source: &utility::Source) -> Result<Vec<u32>, Failure> {
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

pub(super) async fn detokenize(call: Call, body: Body) -> Response {
    let answer = async {
        let parse = |body: Document<'_>, _: &RequestContext, ready: &Ready| {
            utility::parse_detokenize(body, ready.prompter.tokenizer().n_vocab())
        };
        let Asked {
            ready,
            request: ids,
            room,
        } = asked(&call, body, parse).await?;
        let tools = Arc::clone(&ready);
        let text = ready.utility.run(move || {
            let _room = room;
            let decoded = tools.prompter.tokenizer().decode(&ids);
            decoded.map_err(|e| crate::api::invalid("tokens", e.to_string()))
        });
        Ok(json_response(&utility::detokenized(&text.await?)))
    };
    in_words(answer.await, &call.1)
}

pub(super) async fn apply_template(call: Call, body: Body) -> Response {
    let answer = async {
        let Asked {
            ready,
            request,
            room,
        } = asked(&call, body, |body, context, _| chat::parse(body, context)).await?;
        let tools = Arc::clone(&ready);
        let answer = ready.utility.run(move || {
            let _room = room;
            let text = tools.prompter.text(&request.generation)?.text;
            let n = tools.prompter.encode(&request.generation)?.len();
            Ok(utility::applied_template(&text, n))
        });
        Ok(json_response(&answer.await?))
    };
    in_words(answer.await, &call.1)
}

pub(super) async fn list_models(call: Call) -> Response {
    let (State(server), wire, headers) = call;
    let answer = server.ready().map(|ready| {
        let context = server.context(&ready, &wire, &headers);
        json_response(&models::list(&server.card(&ready), &context))
    });
    in_words(answer, &wire)
}

pub(super) async fn one_model(call: Call, Path(name): Path<String>) -> Response {
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

pub(super) fn missing(param: &str, expected: &str) -> HttpError {
    HttpError::from(crate::api::invalid(
        param,
        format!("{param} must be {expected}"),
    ))
}

/// Reads a request by the parser of its endpoint and has a reply made. `parts` says what to generate,
/// what was left out of the request, and how to write the reply.
async fn answered<T>(
    call: Call,
    body: Body,
    parse: impl FnOnce(Document<'_>, &RequestContext, &Ready) -> Result<T, Failure>,
    parts: impl FnOnce(T) -> (Generation, Vec<String>, Shape),
) -> Response {
    let answer = async {
        let Asked {
            ready,
            request,
            room,
        } = asked(&call, body, parse).await?;
        let (State(server), wire, _) = &call;
        let (generation, warnings, shape) = parts(request);
        note_warnings(server, wire, &warnings);
        generate::answer(Arc::clone(server), ready, wire, generation, shape, room).await
    };
    in_words(answer.await, &call.1)
}

pub(super) async fn post_chat(call: Call, body: Body) -> Response {
    let parse =
        |body: Document<'_>, context: &RequestContext, _: &Ready| chat::parse(body, context);
    answered(call, body, parse, |request| {
        let shape = Shape::Chat(Box::new(request.reply));
        (request.generation, request.warnings, shape)
    })
    .await
}

pub(super) async fn count_chat(call: Call, body: Body) -> Response {
    let answer = async {
        let asked = asked(&call, body, |body, context, _| chat::parse(body, context)).await?;
        let generation = asked.request.generation;
        let n = generate::count(&asked.ready, generation, false, asked.room).await?;
        Ok(json_response(&chat::token_count(n)))
    };
    in_words(answer.await, &call.1)
}

pub(super) async fn post_completions(call: Call, body: Body) -> Response {
    let parse =
        |body: Document<'_>, context: &RequestContext, _: &Ready| completions::parse(body, context);
    answered(call, body, parse, |request| {
        let shape = Shape::Completions(Box::new(request.reply));
        (request.generation, Vec::new(), shape)
    })
    .await
}

pub(super) async fn post_messages(call: Call, body: Body) -> Response {
    answered(call, body, parse_messages, |request| {
        let shape = Shape::Messages {
            shape: Box::new(request.reply),
            thread: request.thread.map(Box::new),
        };
        (request.generation, request.warnings, shape)
    })
    .await
}

fn parse_messages(
    body: Document<'_>,
    context: &RequestContext,
    ready: &Ready,
) -> Result<messages::Parsed, Failure> {
    messages::parse_with_threads(body, context, &ready.threads)
}

pub(super) async fn count_messages(call: Call, body: Body) -> Response {
    let answer = async {
        let asked = asked(&call, body, parse_messages).await?;
        let generation = asked.request.generation;
        let n = generate::count(&asked.ready, generation, false, asked.room).await?;
        Ok(json_response(&messages::token_count(n)))
    };
    in_words(answer.await, &call.1)
}

pub(super) async fn post_responses(call: Call, body: Body) -> Response {
    answered(call, body, parse_responses, |request| {
        let shape = Shape::Responses {
            shape: Box::new(request.reply),
            input: request.store.then_some(request.input),
            truncate: request.truncate,
        };
        (request.generation, request.warnings, shape)
    })
    .await
}

fn parse_responses(
    body: Document<'_>,
    context: &RequestContext,
    ready: &Ready,
) -> Result<responses::Parsed, Failure> {
    responses::parse_with_store(body, context, ready)
}

pub(super) async fn count_responses(call: Call, body: Body) -> Response {
    let answer = async {
        let asked = asked(&call, body, parse_responses).await?;
        let responses::Parsed {
            generation,
            truncate,
            ..
        } = asked.request;
        let n = generate::count(&asked.ready, generation, truncate, asked.room).await?;
        Ok(json_response(&responses::token_count(n)))
    };
    in_words(answer.await, &call.1)
}

/// One agent tries a WebSocket first, and goes on with HTTP at once when it is told to.
pub(super) async fn no_websocket(wire: axum::Extension<Wire>, headers: HeaderMap) -> Response {
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

pub(super) fn no_such_response(id: &str) -> HttpError {
    HttpError::from(Failure {
        kind: FailureKind::NotFound,
        message: format!("there is no stored response {id}"),
        param: Some("response_id".to_owned()),
    })
}

pub(super) async fn get_response(
    State(server): State<Arc<Server>>,
    wire: axum::Extension<Wire>,
    Path(id): Path<String>,
    query: Query<HashMap<String, String>>,
) -> Response {
    let answer = server.ready().and_then(|ready| {
        let found = responses::ResponseStore::response(&*ready.stored(), &id);
        let found = found.ok_or_else(|| no_such_response(&id))?;
        let streams = match query.get("stream").map(String::as_str) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(missing("stream", "true or false")),
        };
        if !streams {
            let write = || json_response(&found.response);
            return Ok(tokio::task::block_in_place(write));
        }
        let after = query
            .get("starting_after")
            .map(|after| {
                after
                    .parse()
                    .map_err(|_| missing("starting_after", "a number"))
            })
            .transpose()?;
        let mut bytes = Vec::new();
        for frame in responses::replay(&found.response, after) {
            bytes.extend_from_slice(&frame.0);
        }
        let mut response = Response::new(Body::from(bytes));
        generate::put_stream_headers(&mut response);
        Ok(response)
    });
    in_words(answer, &wire)
}

pub(super) async fn get_input_items(
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

pub(super) async fn cancel(
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
pub(super) async fn control(call: Call, body: Body) -> Response {
    let answer = async {
        let asked = asked(&call, body, |body, _, _| utility::parse_control(body)).await?;
        let id = asked.request;
        if asked.ready.worker.end_reasoning(&id) {
            Ok(json_response(&json!({"id": id, "success": true})))
        } else {
            Err(HttpError::new(
                FailureKind::NotFound,
                format!("no request {id} is running or waiting"),
            ))
        }
    };
    in_words(answer.await, &call.1)
}

/// A response is stored when it is complete, so one that is found has nothing left to cancel.
pub(super) async fn cancel_response(
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

pub(super) async fn delete_response(
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

pub(super) fn note_warnings(server: &Server, wire: &Wire, warnings: &[String]) {
    for warning in warnings.iter().filter(|w| server.notices.is_fresh(w)) {
        if let Some(ready) = server.ready.get() {
            ready.worker.note(format!("{} {warning}", wire.request_id));
        }
    }
}
