//! Responses that a client may refer to later.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::invalid;
use crate::generation::Failure;
use crate::memory;

/// Most items that one page of [`input_items`] lists.
const MAX_PAGE: usize = 100;
/// Seconds after which a response is dropped: 30 days.
pub const MAX_AGE_S: u64 = 30 * 24 * 60 * 60;
/// Items of a page when the client does not say.
const DEFAULT_PAGE: usize = 20;

/// A response and what it answered. Items are shared with the responses before it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredResponse {
    /// All input items as JSON text, those of earlier responses and their output included.
    pub input: Vec<Arc<str>>,
    /// The response object.
    pub response: Value,
}

impl StoredResponse {
    /// The response's id.
    pub fn id(&self) -> &str {
        self.response["id"].as_str().unwrap_or_default()
    }

    /// The output items.
    pub fn output(&self) -> &[Value] {
        self.response["output"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// What the next turn begins with: input and output.
    pub fn conversation(&self) -> Vec<Arc<str>> {
        let output = self.output().iter().map(|item| item.to_string().into());
        self.input.iter().cloned().chain(output).collect()
    }
}

/// Where responses are kept.
pub trait ResponseStore {
    /// The response of this id.
    fn response(&self, id: &str) -> Option<Arc<StoredResponse>>;

    /// The response whose output has an item of this id.
    fn response_with_item(&self, item_id: &str) -> Option<Arc<StoredResponse>>;

    /// The response that made this call.
    fn response_with_call(&self, call_id: &str) -> Option<Arc<StoredResponse>>;
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoStore;

impl ResponseStore for NoStore {
    fn response(&self, _: &str) -> Option<Arc<StoredResponse>> {
        None
    }

    fn response_with_item(&self, _: &str) -> Option<Arc<StoredResponse>> {
        None
    }

    fn response_with_call(&self, _: &str) -> Option<Arc<StoredResponse>> {
        None
    }
}

/// Keeps the latest responses in memory, up to a number and a size.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    max_responses: usize,
    max_bytes: usize,
    n_bytes: usize,
    /// Numbers the responses in the order in which they came.
    n_put: u64,
    by_id: HashMap<String, Kept>,
    /// Ids of responses by the ids of their output items and calls.
    by_item: HashMap<String, String>,
    /// Input items by address, which stays theirs while a response holds them.
    shared: HashMap<usize, SharedItem>,
}

/// An input item that responses share, and which is counted once.
#[derive(Clone, Copy, Debug)]
struct SharedItem {
    n_holders: usize,
    n_bytes: usize,
}

#[derive(Clone, Debug)]
struct Kept {
    response: Arc<StoredResponse>,
    n_bytes: usize,
    number: u64,
}

impl MemoryStore {
    /// An empty store. `max_bytes` counts what is held in memory, about.
    pub fn new(max_responses: usize, max_bytes: usize) -> MemoryStore {
        MemoryStore {
            max_responses,
            max_bytes,
            n_bytes: 0,
            n_put: 0,
            by_id: HashMap::new(),
            by_item: HashMap::new(),
            shared: HashMap::new(),
        }
    }

    /// Keeps a response and drops the oldest ones until the limits hold again. One that exceeds
    /// them by itself is not kept.
    pub fn put(&mut self, response: StoredResponse) {
        let id = response.id().to_owned();
        self.remove(&id);
        let n_bytes = memory::of(&response.response) + response.input.len() * size_of::<Arc<str>>();
        for item in &response.input {
            let shared = self.shared.entry(address_of(item)).or_insert_with(|| {
                let n_bytes = memory::of_shared_text(item);
                self.n_bytes += n_bytes;
                SharedItem {
                    n_holders: 0,
                    n_bytes,
                }
            });
            shared.n_holders += 1;
        }
        for key in item_keys(&response) {
            self.by_item.insert(key, id.clone());
        }
        self.n_put += 1;
        self.n_bytes += n_bytes;
        let kept = Kept {
            response: Arc::new(response),
            n_bytes,
            number: self.n_put,
        };
        self.by_id.insert(id, kept);
        while self.by_id.len() > self.max_responses || self.n_bytes > self.max_bytes {
            let oldest = self.by_id.iter().min_by_key(|(_, kept)| kept.number);
            let Some(oldest) = oldest.map(|(id, _)| id.clone()) else {
                break;
            };
            self.remove(&oldest);
        }
    }

    /// Drops the responses that were made more than [`MAX_AGE_S`] before `now_unix`.
    pub fn expire(&mut self, now_unix: u64) {
        let is_old = |kept: &Kept| {
            let created = kept.response.response["created_at"].as_u64();
            created.is_some_and(|at| at.saturating_add(MAX_AGE_S) < now_unix)
        };
        let old = self.by_id.iter().filter(|(_, kept)| is_old(kept));
        let old: Vec<String> = old.map(|(id, _)| id.clone()).collect();
        for id in old {
            self.remove(&id);
        }
    }

    /// Drops a response; whether there was one.
    pub fn remove(&mut self, id: &str) -> bool {
        let Some(kept) = self.by_id.remove(id) else {
            return false;
        };
        self.n_bytes -= kept.n_bytes;
        for item in &kept.response.input {
            let address = address_of(item);
            if let Some(shared) = self.shared.get_mut(&address) {
                shared.n_holders -= 1;
                if shared.n_holders == 0 {
                    self.n_bytes -= shared.n_bytes;
                    self.shared.remove(&address);
                }
            }
        }
        for key in item_keys(&kept.response) {
            if self.by_item.get(&key).is_some_and(|owner| owner == id) {
                self.by_item.remove(&key);
            }
        }
        true
    }

    /// How many responses are kept.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    fn by_key(&self, key: &str) -> Option<Arc<StoredResponse>> {
        self.response(self.by_item.get(key)?)
    }
}

impl ResponseStore for MemoryStore {
    fn response(&self, id: &str) -> Option<Arc<StoredResponse>> {
        self.by_id.get(id).map(|kept| Arc::clone(&kept.response))
    }

    fn response_with_item(&self, item_id: &str) -> Option<Arc<StoredResponse>> {
        self.by_key(item_id)
    }

    fn response_with_call(&self, call_id: &str) -> Option<Arc<StoredResponse>> {
        self.by_key(call_id)
    }
}

fn address_of(item: &Arc<str>) -> usize {
    Arc::as_ptr(item).cast::<u8>().addr()
}

/// Ids of output items and of calls; their prefixes keep them apart.
fn item_keys(response: &StoredResponse) -> Vec<String> {
    let ids = |item: &Value| {
        ["id", "call_id"]
            .iter()
            .filter_map(|name| item[*name].as_str())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    response.output().iter().flat_map(ids).collect()
}

/// The answer to a DELETE of a response.
pub fn deleted(id: &str) -> Value {
    json!({"id": id, "object": "response", "deleted": true})
}

/// A page of a response's input items: the answer to GET `/v1/responses/{id}/input_items`.
///
/// `order` is `desc` (the default, latest first) or `asc`, `after` the id of the item before the
/// page, `limit` 1 to 100, by default 20. Items without an id get one that says their place.
///
/// # Errors
/// Another order or limit, or an `after` that is not there.
pub fn input_items(
    stored: &StoredResponse,
    order: Option<&str>,
    after: Option<&str>,
    limit: Option<usize>,
) -> Result<Value, Failure> {
    let limit = limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(invalid(
            "limit",
            format!("limit: found {limit}, expected 1 to {MAX_PAGE}."),
        ));
    }
    let digits = stored.id().trim_start_matches("resp_").to_owned();
    let item = |i: usize| -> Value {
        // What is stored was read before.
        let mut item = serde_json::from_str(&stored.input[i]).unwrap_or_default();
        if let Value::Object(members) = &mut item {
            members
                .entry("type")
                .or_insert_with(|| Value::from("message"));
            if !members.get("id").is_some_and(Value::is_string) {
                members.insert("id".to_owned(), format!("item_{digits}_{i}").into());
            }
        }
        item
    };
    let mut order: Vec<usize> = match order {
        None | Some("desc") => (0..stored.input.len()).rev().collect(),
        Some("asc") => (0..stored.input.len()).collect(),
        Some(_) => return Err(invalid("order", "order: expected asc or desc.")),
    };
    if let Some(id) = after {
        let found = order.iter().position(|i| item(*i)["id"] == id);
        let at = found.ok_or_else(|| invalid("after", "after: no input item has this id."))?;
        order.drain(..=at);
    }
    let has_more = order.len() > limit;
    order.truncate(limit);
    let page: Vec<Value> = order.into_iter().map(item).collect();
    let id_of = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    Ok(json!({
        "object": "list",
        "data": page,
        "first_id": id_of(page.first()),
        "last_id": id_of(page.last()),
        "has_more": has_more,
    }))
}
