//! Errors in the shape that each API's own SDK understands.

use serde_json::{Value, json};

use crate::generation::{Failure, FailureKind};

/// Seconds after which a client may try again when the queue is full.
pub const RETRY_AFTER_S: u32 = 5;

/// The row of the error table that a failure belongs to.
struct Row {
    status: u16,
    openai_type: &'static str,
    openai_code: Option<&'static str>,
    anthropic_type: &'static str,
}

fn row(kind: FailureKind) -> Row {
    use FailureKind::*;
    let (status, openai_type, openai_code, anthropic_type) = match kind {
        Invalid => (400, "invalid_request_error", None, "invalid_request_error"),
        Unsupported => (
            400,
            "invalid_request_error",
            Some("unsupported_value"),
            "invalid_request_error",
        ),
        UnsupportedContent => (
            400,
            "invalid_request_error",
            Some("unsupported_content_type"),
            "invalid_request_error",
        ),
        ContextOverflow { .. } => (
            400,
            "invalid_request_error",
            Some("context_length_exceeded"),
            "invalid_request_error",
        ),
        Unauthorised => (
            401,
            "invalid_request_error",
            Some("invalid_api_key"),
            "authentication_error",
        ),
        Forbidden => (
            403,
            "permission_error",
            Some("forbidden_origin"),
            "permission_error",
        ),
        NotFound => (404, "invalid_request_error", None, "not_found_error"),
        Conflict => (
            409,
            "invalid_request_error",
            Some("conflict"),
            "invalid_request_error",
        ),
        Overloaded => (
            429,
            "rate_limit_error",
            Some("rate_limit_exceeded"),
            "overloaded_error",
        ),
        Internal => (500, "server_error", Some("internal_error"), "api_error"),
        Unavailable => (
            503,
            "unavailable_error",
            Some("loading"),
            "overloaded_error",
        ),
    };
    Row {
        status,
        openai_type,
        openai_code,
        anthropic_type,
    }
}

/// HTTP status of a failure. A full queue is 529 to Anthropic clients.
pub fn status(kind: FailureKind, anthropic: bool) -> u16 {
    match kind {
        FailureKind::Overloaded if anthropic => 529,
        kind => row(kind).status,
    }
}

/// Seconds for the `Retry-After` header, where one belongs.
pub fn retry_after_s(kind: FailureKind) -> Option<u32> {
    matches!(kind, FailureKind::Overloaded | FailureKind::Unavailable).then_some(RETRY_AFTER_S)
}

/// `{"error": {"message", "type", "param", "code"}}`.
pub fn openai(failure: &Failure) -> Value {
    let row = row(failure.kind);
    let code = match (failure.kind, failure.param.as_deref()) {
        (FailureKind::NotFound, Some("model")) => Some("model_not_found"),
        (FailureKind::NotFound, Some("response_id")) => Some("response_not_found"),
        // Clients that chain responses send the whole input again when they read this code.
        (FailureKind::Invalid, Some("previous_response_id")) => Some("previous_response_not_found"),
        _ => row.openai_code,
    };
    let mut body = json!({"error": {
        "message": failure.message,
        "type": row.openai_type,
        "param": failure.param,
        "code": code,
    }});
    if let FailureKind::ContextOverflow {
        n_prompt,
        n_context,
    } = failure.kind
    {
        // In the words of llama.cpp, whose clients shorten the prompt by them.
        body["error"]["n_prompt_tokens"] = n_prompt.into();
        body["error"]["n_ctx"] = n_context.into();
    }
    body
}

/// The error that ends a stream of chunks in place of `[DONE]`.
pub fn in_stream(failure: &Failure) -> Value {
    let mut error = openai(failure);
    let code = match failure.kind {
        FailureKind::Internal => "server_error",
        FailureKind::Unavailable => "server_shutdown",
        _ => return error,
    };
    error["error"]["type"] = "server_error".into();
    error["error"]["code"] = code.into();
    error
}

/// The error in place of a reply that was given up before its end.
pub fn cancelled() -> Value {
    json!({"error": {
        "message": "The request was cancelled before its reply was complete.",
        "type": "server_error",
        "param": null,
        "code": "request_cancelled",
    }})
}

/// `{"type": "error", "error": {"type", "message"}, "request_id"}`, with `details` where clients act
/// on a code.
pub fn anthropic(failure: &Failure, request_id: &str) -> Value {
    let mut error = json!({
        "type": row(failure.kind).anthropic_type,
        "message": failure.message,
    });
    let code = match (failure.kind, failure.param.as_deref()) {
        // On this they send the whole conversation and begin another thread.
        (FailureKind::NotFound, Some("thread.previous_message_id")) => Some("thread_not_found"),
        (FailureKind::Invalid, Some("thread")) => Some("thread_fingerprint_mismatch"),
        _ => None,
    };
    if let Some(code) = code {
        error["details"] = json!({"error_code": code});
    }
    json!({"type": "error", "error": error, "request_id": request_id})
}
