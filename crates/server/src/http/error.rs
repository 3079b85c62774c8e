//! Failures as answers.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::Value;

use crate::api::error;
use crate::generation::{Failure, FailureKind};

use super::wire::Wire;

/// A failure on its way to the client.
#[derive(Clone, Debug)]
pub(crate) struct HttpError {
    failure: Failure,
    /// Status and code of failures that only HTTP knows.
    row: Option<(StatusCode, &'static str)>,
}

impl From<Failure> for HttpError {
    fn from(failure: Failure) -> HttpError {
        HttpError { failure, row: None }
    }
}

impl HttpError {
    /// A failure of this kind.
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> HttpError {
        HttpError::from(Failure {
            kind,
            message: message.into(),
            param: None,
        })
    }

    /// One that only HTTP knows.
    pub(crate) fn of_http(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
    ) -> HttpError {
        HttpError {
            row: Some((status, code)),
            ..HttpError::new(FailureKind::Invalid, message)
        }
    }

    /// The answer.
    pub(crate) fn response(&self, wire: &Wire) -> Response {
        let mut status = error::status(self.failure.kind, wire.anthropic);
        let mut body = if wire.anthropic {
            error::anthropic(&self.failure, &wire.request_id)
        } else {
            error::openai(&self.failure)
        };
        if let Some((own, code)) = self.row {
            status = own.as_u16();
            let kind = match own {
                StatusCode::REQUEST_TIMEOUT => "timeout_error",
                StatusCode::PAYLOAD_TOO_LARGE if wire.anthropic => "request_too_large",
                _ => "invalid_request_error",
            };
            body["error"]["type"] = Value::from(kind);
            if !wire.anthropic {
                body["error"]["code"] = Value::from(code);
            }
        }
        let mut response = json(&body);
        *response.status_mut() =
            StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if let Some(seconds) = error::retry_after_s(self.failure.kind) {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A JSON answer with status 200.
pub(crate) fn json(value: &Value) -> Response {
    json_text(value.to_string())
}

/// The same of JSON that is written already.
pub(crate) fn json_text(text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}
