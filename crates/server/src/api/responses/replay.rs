//! A response that is complete, once more as the events that built it.

use serde_json::{Map, Value, json};

use crate::api::Frame;

/// The events of a stored response: those of its stream, with every text in one delta. Those up to
/// the sequence number `after` are left out.
pub fn replay(response: &Value, after: Option<u64>) -> Vec<Frame> {
    let mut events = Events::default();
    let mut begun = response.clone();
    begun["status"] = "in_progress".into();
    begun["output"] = json!([]);
    for name in ["completed_at", "error", "incomplete_details", "usage"] {
        begun[name] = Value::Null;
    }
    if let Value::Object(members) = &mut begun {
        members.remove("warnings");
    }
    events.push("response.created", json!({"response": begun}));
    events.push("response.in_progress", json!({"response": begun}));
    for item in response["output"].as_array().into_iter().flatten() {
        events.item(item);
        events.n_items += 1;
    }
    let end = match response["status"].as_str() {
        Some("completed") => "response.completed",
        Some("failed") => "response.failed",
        _ => "response.incomplete",
    };
    events.push(end, json!({"response": response}));
    let n_left_out = after.map_or(0, |after| after.saturating_add(1));
    let n_left_out = usize::try_from(n_left_out).unwrap_or(usize::MAX);
    let rest = events.all.into_iter().skip(n_left_out);
    rest.map(|(name, event)| Frame::event(name, &event))
        .collect()
}

#[derive(Default)]
struct Events {
    all: Vec<(&'static str, Value)>,
    n_items: usize,
}

impl Events {
    fn push(&mut self, name: &'static str, members: Value) {
        let mut event = Map::new();
        event.insert("type".to_owned(), name.into());
        event.insert("sequence_number".to_owned(), self.all.len().into());
        if let Value::Object(members) = members {
            event.extend(members);
        }
        self.all.push((name, event.into()));
    }

    /// An event about an item: its number, and what else it says.
    fn about(&mut self, name: &'static str, item: &Value, members: Value) {
        let mut all = json!({"item_id": item["id"], "output_index": self.n_items});
        if let (Value::Object(all), Value::Object(members)) = (&mut all, members) {
            all.extend(members);
        }
        self.push(name, all);
    }

    fn item(&mut self, item: &Value) {
        let mut added = item.clone();
        added["status"] = "in_progress".into();
        let kind = item["type"].as_str().unwrap_or_default();
        match kind {
            "message" => added["content"] = json!([]),
            "reasoning" => {
                added["summary"] = json!([]);
                if let Value::Object(members) = &mut added {
                    members.remove("encrypted_content");
                    if let Some(content) = members.get_mut("content") {
                        *content = json!([]);
                    }
                }
            }
            "function_call" => added["arguments"] = "".into(),
            "custom_tool_call" => added["input"] = "".into(),
            _ => {}
        }
        let numbered = json!({"output_index": self.n_items, "item": added});
        self.push("response.output_item.added", numbered);
        match kind {
            "message" | "reasoning" => self.parts(item),
            "function_call" => {
                let arguments = &item["arguments"];
                let delta = json!({"delta": arguments});
                self.about("response.function_call_arguments.delta", item, delta);
                let done = json!({"name": item["name"], "arguments": arguments});
                self.about("response.function_call_arguments.done", item, done);
            }
            "custom_tool_call" => {
                let input = &item["input"];
                let delta = json!({"delta": input});
                self.about("response.custom_tool_call_input.delta", item, delta);
                let done = json!({"input": input});
                self.about("response.custom_tool_call_input.done", item, done);
            }
            _ => {}
        }
        let numbered = json!({"output_index": self.n_items, "item": item});
        self.push("response.output_item.done", numbered);
    }

    /// The parts of a message or of reasoning.
    fn parts(&mut self, item: &Value) {
        for (list, index) in [("summary", "summary_index"), ("content", "content_index")] {
            let parts = item[list].as_array().into_iter().flatten();
            for (i, part) in parts.enumerate() {
                let names = match part["type"].as_str() {
                    Some("summary_text") => [
                        "response.reasoning_summary_part.added",
                        "response.reasoning_summary_text.delta",
                        "response.reasoning_summary_text.done",
                        "response.reasoning_summary_part.done",
                    ],
                    Some("reasoning_text") => [
                        "response.content_part.added",
                        "response.reasoning_text.delta",
                        "response.reasoning_text.done",
                        "response.content_part.done",
                    ],
                    _ => [
                        "response.content_part.added",
                        "response.output_text.delta",
                        "response.output_text.done",
                        "response.content_part.done",
                    ],
                };
                let mut empty = part.clone();
                empty["text"] = "".into();
                let (mut delta, mut done) = (
                    json!({"delta": part["text"]}),
                    json!({"text": part["text"]}),
                );
                if let Some(logprobs) = part.get("logprobs") {
                    empty["logprobs"] = json!([]);
                    delta["logprobs"] = logprobs.clone();
                    done["logprobs"] = logprobs.clone();
                }
                let members = [json!({"part": empty}), delta, done, json!({"part": part})];
                for (k, (name, members)) in names.into_iter().zip(members).enumerate() {
                    // An empty text has no delta.
                    if k == 1 && part["text"] == "" {
                        continue;
                    }
                    let mut all = json!({});
                    all[index] = i.into();
                    if let (Value::Object(all), Value::Object(members)) = (&mut all, members) {
                        all.extend(members);
                    }
                    self.about(name, item, all);
                }
            }
        }
    }
}
