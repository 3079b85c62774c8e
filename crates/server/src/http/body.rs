//! Reading a request's body, within its limits.

use axum::body::Body;
use axum::http::StatusCode;
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::error::HttpError;
use super::options::READ_TIMEOUT;
use crate::generation::FailureKind;

/// The bytes of a body.
pub(crate) async fn read(body: Body, max_bytes: usize) -> Result<Vec<u8>, HttpError> {
    let mut body = body;
    let mut bytes = Vec::new();
    loop {
        let frame = tokio::time::timeout(READ_TIMEOUT, body.frame()).await;
        let frame = frame.map_err(|_| {
            HttpError::of_http(
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                format!("nothing of the body came for {} s", READ_TIMEOUT.as_secs()),
            )
        })?;
        let Some(frame) = frame else {
            return Ok(bytes);
        };
        let frame = frame.map_err(|e| {
            HttpError::new(
                FailureKind::Invalid,
                format!("the body cannot be read: {e}"),
            )
        })?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > max_bytes {
                return Err(HttpError::of_http(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "request_too_large",
                    format!(
                        "the body is larger than {} MiB, the limit of --max-body-mb",
                        max_bytes >> 20
                    ),
                ));
            }
            bytes.extend_from_slice(&data);
        }
    }
}

/// A body as JSON, whatever its content type says.
pub(crate) async fn read_json(body: Body, max_bytes: usize) -> Result<Value, HttpError> {
    let bytes = read(body, max_bytes).await?;
    let invalid = |e: &dyn std::fmt::Display| {
        HttpError::new(FailureKind::Invalid, format!("the body is not JSON: {e}"))
    };
    let text = std::str::from_utf8(&bytes).map_err(|e| invalid(&e))?;
    ds4_text::json::parse(text).map_err(|e| invalid(&e))
}
