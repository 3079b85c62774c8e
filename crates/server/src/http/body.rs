//! Reading a request's body, within its limits.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::error::HttpError;
use super::options::ServerOptions;
use super::places::GaveWay;
use crate::api::{Allowance, Document, checked};
use crate::generation::{Failure, FailureKind};

/// Bodies of the largest size that may be in memory at once, until a prompt is made of them.
const FULL_BODIES: usize = 4;
/// Room from which on what was freed is given back to the system, and the time that it takes for
/// more to come.
const LARGE_BYTES: usize = 8 << 20;
const GIVE_BACK_AFTER: Duration = Duration::from_millis(500);
/// Bodies longer than this are parsed where they hold up no other request.
const LONG_BODY_BYTES: usize = 64 << 10;
/// Bytes of a body that must come in a second, on the whole, after the longest silence.
const MIN_BYTES_PER_S: usize = 4 << 10;

/// What a request takes of the room for bodies; dropping it gives it back.
pub(crate) struct Room(Option<Taken>);

/// Room that was taken.
struct Taken(OwnedSemaphorePermit);

impl Drop for Taken {
    fn drop(&mut self) {
        if self.0.num_permits() >= LARGE_BYTES {
            give_back_soon();
        }
    }
}

/// Has what is freed from now on, too, given back to the system in a moment.
fn give_back_soon() {
    static IS_DUE: AtomicBool = AtomicBool::new(false);
    if IS_DUE.swap(true, Ordering::AcqRel) {
        return;
    }
    let thread = std::thread::Builder::new().name("ds4-memory".to_owned());
    let started = thread.spawn(|| {
        std::thread::sleep(GIVE_BACK_AFTER);
        IS_DUE.store(false, Ordering::Release);
        ds4_engine::give_back_freed();
    });
    if started.is_err() {
        IS_DUE.store(false, Ordering::Release);
    }
}

/// A body that was read: JSON, as it was sent.
pub(crate) struct JsonBody {
    text: String,
    room: RoomFor,
    /// That of a long body to be read.
    turn: Option<OwnedSemaphorePermit>,
}

/// The room of one body, which grows with what is made of it.
struct RoomFor {
    taken: RefCell<Taken>,
    /// Where more of it is.
    all: Arc<Semaphore>,
    max_bytes: usize,
}

impl Allowance for RoomFor {
    fn take(&self, n_bytes: usize) -> Result<(), Failure> {
        let (mut taken, all) = (self.taken.borrow_mut(), self.max_bytes);
        // A body that needs more than there is for all of them need not be sent again.
        if taken.0.num_permits().saturating_add(n_bytes) > all {
            return Err(Failure {
                kind: FailureKind::Invalid,
                message: format!(
                    "the body has so many small parts that reading it takes more than the {} MiB \
                     there are for all bodies, {FULL_BODIES} times --max-body-mb",
                    all >> 20
                ),
                param: None,
            });
        }
        let more = u32::try_from(n_bytes).ok();
        let more = more.and_then(|n| Arc::clone(&self.all).try_acquire_many_owned(n).ok());
        taken.0.merge(more.ok_or_else(|| full(all))?);
        Ok(())
    }
}

impl JsonBody {
    /// Makes something of the body, where that holds up no other request.
    pub(crate) fn read<T>(&self, read: impl FnOnce(Document<'_>) -> T) -> T {
        let document = Document::within(&self.text, &self.room);
        match self.turn.is_some() {
            true => tokio::task::block_in_place(|| read(document)),
            false => read(document),
        }
    }

    /// Forgets what was read. What was made of it still takes the room.
    pub(crate) fn into_room(self) -> Room {
        Room(Some(self.room.taken.into_inner()))
    }
}

/// Reads the bodies of all requests.
pub(crate) struct BodyReader {
    max_bytes: usize,
    timeout: Duration,
    /// Has a permit for every byte that may still be taken.
    room: Arc<Semaphore>,
    /// Has a permit for every long body that may be read at once: half of the processor is for others.
    turns: Arc<Semaphore>,
}

impl BodyReader {
    pub(crate) fn new(options: &ServerOptions) -> BodyReader {
        let room = options.max_body_bytes.saturating_mul(FULL_BODIES);
        let n_processors = std::thread::available_parallelism().map_or(1, usize::from);
        BodyReader {
            max_bytes: options.max_body_bytes,
            timeout: options.read_timeout,
            room: Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS))),
            turns: Arc::new(Semaphore::new((n_processors / 2).max(1))),
        }
    }

    /// A body as JSON, whatever its content type says.
    pub(crate) async fn json(&self, body: Body) -> Result<JsonBody, HttpError> {
        let (bytes, room) = self.bytes(body).await?;
        let is_long = bytes.len() > LONG_BODY_BYTES;
        let Some(room) = room.0 else {
            return Err(HttpError::new(
                FailureKind::Invalid,
                "the body is not JSON: it is empty",
            ));
        };
        let max_bytes = self.max_bytes.saturating_mul(FULL_BODIES);
        let all = Arc::clone(&self.room);
        let turn = match is_long {
            // The semaphore is never closed.
            true => Arc::clone(&self.turns).acquire_owned().await.ok(),
            false => None,
        };
        let check = move || {
            Ok(JsonBody {
                text: checked_text(bytes)?,
                room: RoomFor {
                    taken: RefCell::new(room),
                    all,
                    max_bytes,
                },
                turn,
            })
        };
        if !is_long {
            return check();
        }
        let checked = tokio::task::spawn_blocking(check);
        checked.await.map_err(|_| {
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
        let mut taken: Option<Taken> = None;
        let begun = Instant::now();
        loop {
            let enough = Duration::from_secs((bytes.len() / MIN_BYTES_PER_S) as u64);
            let left = (self.timeout + enough).saturating_sub(begun.elapsed());
            let is_slow = left < self.timeout;
            let frame = tokio::time::timeout(left.min(self.timeout), body.frame()).await;
            let frame = frame.map_err(|_| match is_slow {
                true => timed_out(format!(
                    "less than {} KiB of the body came in a second",
                    MIN_BYTES_PER_S >> 10
                )),
                false => timed_out(format!(
                    "nothing of the body came for {} s, send it without a pause",
                    self.timeout.as_secs_f64()
                )),
            })?;
            let Some(frame) = frame else {
                return Ok((bytes, Room(taken)));
            };
            let frame = frame.map_err(|e| match gave_way(&e) {
                true => timed_out(format!("the body is not read on: {GaveWay}")),
                false => HttpError::new(
                    FailureKind::Invalid,
                    format!("the body cannot be read: {e}"),
                ),
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > self.max_bytes {
                return Err(self.too_large());
            }
            let room = self.take(data.len())?;
            match &mut taken {
                Some(taken) => taken.0.merge(room),
                None => taken = Some(Taken(room)),
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
        room.ok_or_else(|| full(self.max_bytes.saturating_mul(FULL_BODIES)).into())
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

fn timed_out(message: String) -> HttpError {
    HttpError::of_http(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
}

/// Whether a body ended because its connection made room for another.
fn gave_way(error: &axum::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if error.is::<GaveWay>() {
            return true;
        }
        next = error.source();
    }
    false
}

fn full(n_bytes: usize) -> Failure {
    Failure {
        kind: FailureKind::Unavailable,
        message: format!(
            "the bodies that are being read fill the {} MiB there are for them, {FULL_BODIES} \
             times --max-body-mb; try again later",
            n_bytes >> 20
        ),
        param: None,
    }
}

/// The JSON text of a body.
fn checked_text(mut bytes: Vec<u8>) -> Result<String, HttpError> {
    let invalid = |e: &dyn std::fmt::Display| {
        HttpError::new(FailureKind::Invalid, format!("the body is not JSON: {e}"))
    };
    // Some editors put a mark of the byte order before what they save.
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    let text = String::from_utf8(bytes).map_err(|e| invalid(&e.utf8_error()))?;
    match checked(&text).map_err(|e| invalid(&e))? {
        Cow::Borrowed(_) => Ok(text),
        Cow::Owned(mended) => Ok(mended),
    }
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
        let of = |n: usize| Body::from(format!("{{\"a\":[{}1]}}", "1,".repeat(n)));
        let status_of = |failure: Failure| {
            let response = HttpError::from(failure).response(&Wire::new("/", &Default::default()));
            response.status()
        };
        let build = |body: &JsonBody| {
            let read = |document: Document<'_>| {
                let members = document.json().members()?;
                members[0].value.value().map(drop)
            };
            body.read(read)
        };
        let sent = |body| async {
            let read = reader.json(body).await;
            read.unwrap_or_else(|_| panic!("no room"))
        };
        // A text of 400 KiB whose values take 37 MiB, and nothing while nobody asks for them.
        let large = sent(of(200_000)).await;
        let refused = build(&large).expect_err("too large");
        assert_eq!(status_of(refused), StatusCode::BAD_REQUEST);
        drop(large);
        // Of values that take 2 MiB, there is room for one.
        let held = sent(of(12_000)).await;
        build(&held).expect("room");
        let held = held.into_room();
        let other = sent(of(12_000)).await;
        let refused = build(&other).expect_err("no room");
        assert_eq!(status_of(refused), StatusCode::SERVICE_UNAVAILABLE);
        drop(held);
        build(&other).expect("room");
        drop(other);
        let long = format!("{{\"content\":\"{}\"}}", "x".repeat(1 << 19));
        let first = sent(Body::from(long.clone())).await.into_room();
        assert!(reader.json(Body::from(long)).await.is_ok());
        drop(first);
        let marked = reader.json(Body::from("\u{feff}{\"a\":1}")).await;
        assert!(marked.is_ok(), "a byte order mark is no part of it");
    }
}
