//! Reading a request's body, within its limits.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::HttpError;
use super::options::ServerOptions;
use crate::generation::FailureKind;
use crate::memory;

/// Bodies of the largest size that may be in memory at once, until a prompt is made of them.
const FULL_BODIES: usize = 4;
/// Bodies longer than this are parsed where they hold up no other request.
const LONG_BODY_BYTES: usize = 64 << 10;

/// What a request takes of the room for bodies; dropping it gives it back.
pub(crate) struct Room(Option<OwnedSemaphorePermit>);

/// A body that was read.
pub(crate) struct JsonBody {
    value: Value,
    room: Room,
    is_long: bool,
}

impl JsonBody {
    /// Makes something of the body, where that holds up no other request.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Value) -> T) -> T {
        match self.is_long {
            true => tokio::task::block_in_place(|| read(&self.value)),
            false => read(&self.value),
        }
    }

    /// Forgets what was read. What was made of it still takes the room.
    pub(crate) fn into_room(self) -> Room {
        let JsonBody {
            value,
            room,
            is_long,
        } = self;
        if is_long {
            tokio::task::block_in_place(|| drop(value));
        }
        room
    }
}

/// Reads the bodies of all requests.
pub(crate) struct BodyReader {
    max_bytes: usize,
    timeout: Duration,
    /// Has a permit for every byte that may still be taken.
    room: Arc<Semaphore>,
}

impl BodyReader {
    pub(crate) fn new(options: &ServerOptions) -> BodyReader {
        let room = options.max_body_bytes.saturating_mul(FULL_BODIES);
        BodyReader {
            max_bytes: options.max_body_bytes,
            timeout: options.read_timeout,
            room: Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// A body as JSON, whatever its content type says.
    pub(crate) async fn json(&self, body: Body) -> Result<JsonBody, HttpError> {
        let (bytes, room) = self.bytes(body).await?;
        let is_long = bytes.len() > LONG_BODY_BYTES;
        let Some(mut room) = room.0 else {
            return Err(HttpError::new(
                FailureKind::Invalid,
                "the body is not JSON: it is empty",
            ));
        };
        let all = self.max_bytes.saturating_mul(FULL_BODIES);
        let more = Arc::clone(&self.room);
        let full = self.full();
        let parse = move || {
            // What comes of it takes the more room the smaller its parts are.
            let n_bytes = memory::of_text(&bytes);
            if n_bytes.saturating_add(bytes.len()) > all {
                return Err(HttpError::of_http(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "request_too_large",
                    format!(
                        "the body has so many small parts that reading it would take {} MiB, more \
                         than the {} MiB there are for all bodies, {FULL_BODIES} times \
                         --max-body-mb",
                        n_bytes >> 20,
                        all >> 20
                    ),
                ));
            }
            let taken = u32::try_from(n_bytes).ok();
            let taken = taken.and_then(|n| more.try_acquire_many_owned(n).ok());
            room.merge(taken.ok_or(full)?);
            let value = parse(&bytes)?;
            Ok(JsonBody {
                value,
                room: Room(Some(room)),
                is_long,
            })
        };
        if !is_long {
            return parse();
        }
        let parsed = tokio::task::spawn_blocking(parse);
        parsed.await.map_err(|_| {
            HttpError::new(FailureKind::Internal, "reading the body failed by a bug")
        })?
    }

    /// The bytes of a body, and the room that they take.
    async fn bytes(&self, mut body: Body) -> Result<(Vec<u8>, Room), HttpError> {
        // A client that says so, or waits to be told to go on, need not send it all.
        if body.size_hint().lower() > self.max_bytes as u64 {
            return Err(self.too_large());
        }
        let mut bytes = Vec::new();
        let mut taken: Option<OwnedSemaphorePermit> = None;
        loop {
            let frame = tokio::time::timeout(self.timeout, body.frame()).await;
            let frame = frame.map_err(|_| {
                HttpError::of_http(
                    StatusCode::REQUEST_TIMEOUT,
                    "request_timeout",
                    format!(
                        "nothing of the body came for {} s, send it without a pause",
                        self.timeout.as_secs_f64()
                    ),
                )
            })?;
            let Some(frame) = frame else {
                return Ok((bytes, Room(taken)));
            };
            let frame = frame.map_err(|e| {
                HttpError::new(
                    FailureKind::Invalid,
                    format!("the body cannot be read: {e}"),
                )
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > self.max_bytes {
                return Err(self.too_large());
            }
            let room = self.take(data.len())?;
            match &mut taken {
                Some(taken) => taken.merge(room),
                None => taken = Some(room),
            }
            bytes.extend_from_slice(&data);
        }
    }

    /// Room for so many bytes more.
    fn take(&self, n_bytes: usize) -> Result<OwnedSemaphorePermit, HttpError> {
        let room = u32::try_from(n_bytes).ok().and_then(|n| {
            let room = Arc::clone(&self.room);
            room.try_acquire_many_owned(n).ok()
        });
        room.ok_or_else(|| self.full())
    }

    fn full(&self) -> HttpError {
        HttpError::new(
            FailureKind::Unavailable,
            format!(
                "the bodies that are being read fill the {} MiB there are for them, {FULL_BODIES} \
                 times --max-body-mb; try again later",
                self.max_bytes.saturating_mul(FULL_BODIES) >> 20
            ),
        )
    }

    fn too_large(&self) -> HttpError {
        HttpError::of_http(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            format!(
                "the body is larger than {} MiB, the limit of --max-body-mb",
                self.max_bytes >> 20
            ),
        )
    }
}

fn parse(bytes: &[u8]) -> Result<Value, HttpError> {
    // Some editors put a mark of the byte order before what they save.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let invalid = |e: &dyn std::fmt::Display| {
        HttpError::new(FailureKind::Invalid, format!("the body is not JSON: {e}"))
    };
    let text = std::str::from_utf8(bytes).map_err(|e| invalid(&e))?;
    let value = ds4_text::json::parse(text).map_err(|e| invalid(&e))?;
    // Numbers keep their digits, so this is the place where one can be too large.
    let mut rest = vec![&value];
    while let Some(value) = rest.pop() {
        match value {
            Value::Number(number) if !number.as_f64().is_some_and(f64::is_finite) => {
                return Err(invalid(&"a number is beyond the range of f64"));
            }
            Value::Array(items) => rest.extend(items),
            Value::Object(members) => rest.extend(members.values()),
            _ => {}
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::wire::Wire;

    #[tokio::test]
    async fn bodies_that_are_read_at_once_share_a_limit() {
        let reader = BodyReader::new(&ServerOptions {
            max_body_bytes: 10,
            ..ServerOptions::default()
        });
        let mut held = Vec::new();
        for _ in 0..FULL_BODIES {
            held.push(reader.bytes(Body::from("0123456789")).await.expect("room"));
        }
        assert!(reader.bytes(Body::from("0")).await.is_err());
        held.pop();
        assert!(reader.bytes(Body::from("0123456789")).await.is_ok());
        assert!(reader.bytes(Body::from("0123456789a")).await.is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_body_takes_the_room_of_what_comes_of_it_and_gives_it_back() {
        let reader = BodyReader::new(&ServerOptions {
            max_body_bytes: 1 << 20,
            ..ServerOptions::default()
        });
        let of = |n: usize| Body::from(format!("[{}1]", "1,".repeat(n)));
        // A text of 400 KiB whose values take 37 MiB.
        let refused = reader.json(of(200_000)).await.err().expect("too large");
        let status = refused
            .response(&Wire::new("/", &Default::default()))
            .status();
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        // Of values that take 2 MiB, there is room for one.
        let held = reader
            .json(of(12_000))
            .await
            .unwrap_or_else(|_| panic!("no room"));
        let refused = reader.json(of(12_000)).await.err().expect("no room");
        let status = refused
            .response(&Wire::new("/", &Default::default()))
            .status();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        drop(held.into_room());
        assert!(reader.json(of(12_000)).await.is_ok());
        let long = format!("{{\"content\":\"{}\"}}", "x".repeat(1 << 19));
        let first = reader
            .json(Body::from(long.clone()))
            .await
            .unwrap_or_else(|_| panic!("no room"));
        assert!(reader.json(Body::from(long)).await.is_ok());
        drop(first);
        let marked = reader.json(Body::from("\u{feff}{\"a\":1}")).await;
        assert!(marked.is_ok(), "a byte order mark is no part of it");
    }

    #[test]
    fn numbers_that_no_f64_holds_are_refused_wherever_they_stand() {
        for (text, good) in [
            (
                r#"{"a": [1, -2.5e300, 123456789012345678901234567890]}"#,
                true,
            ),
            (r#"{"a": [{"b": 1e999}]}"#, false),
            ("-1e309", false),
            ("1e-999", true),
        ] {
            assert_eq!(parse(text.as_bytes()).is_ok(), good, "{text}");
        }
    }
}
