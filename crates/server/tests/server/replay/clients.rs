//! How coding agents keep a conversation and send it back, as far as it touches the prompt.

use ds4_server::api::responses::flat_name;
use serde_json::{Map, Value, json};

/// Which agent, and by which protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Habit {
    /// Messages: a first system block that changes, blocks that turn into strings one request
    /// later, a system message in the middle, arguments in the schema's order, results in the order
    /// in which they came, a tool that is loaded by a search, no text of blanks. Reasoning is left
    /// out of the stream and comes back as a signature.
    ClaudeCode,
    /// Responses without a store: output items as they came, a custom tool and a namespace.
    Codex,
    /// Chat: compact arguments, reasoning in full.
    OpencodeChat,
    /// Responses: items without ids, reasoning as encrypted content and summary.
    OpencodeResponses,
    /// Messages: reasoning in full.
    OpencodeMessages,
    /// Chat: a developer message, compact arguments, no text of blanks.
    PiChat,
}

impl Habit {
    pub(super) const ALL: [Habit; 6] = [
        Habit::ClaudeCode,
        Habit::Codex,
        Habit::OpencodeChat,
        Habit::OpencodeResponses,
        Habit::OpencodeMessages,
        Habit::PiChat,
    ];

    fn api(self) -> Api {
        match self {
            Habit::ClaudeCode | Habit::OpencodeMessages => Api::Messages,
            Habit::Codex | Habit::OpencodeResponses => Api::Responses,
            Habit::OpencodeChat | Habit::PiChat => Api::Chat,
        }
    }

    /// The name by which the model knows a tool.
    pub(super) fn name_in_prompt(self, tool: &str) -> String {
        match self {
            Habit::Codex if tool == "spawn" => flat_name(Some("agents"), tool),
            _ => tool.to_owned(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Api {
    Chat,
    Messages,
    Responses,
}

/// A call as the client read it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: Value,
}

/// One agent with one conversation.
#[derive(Clone)]
pub(super) struct Client {
    habit: Habit,
    /// Messages or input items.
    history: Vec<Value>,
    /// Makes what changes in every request.
    n_requests: usize,
    /// Tools that a search has loaded.
    loaded: Vec<&'static str>,
    session: &'static str,
}

const SYSTEM: &str = "You are an agent that works in a folder. Read before you write, say what you \
    found in few words, and run the tests when there are any. Paths are relative to the folder. ";

fn schema(tool: &str) -> Value {
    let properties = match tool {
        "read" => json!({"path": {"type": "string"}, "limit": {"type": "number"}}),
        "exec" => json!({
            "command": {"type": "string"},
            "description": {"type": "string"},
            "timeout": {"type": "number"},
            "env": {"type": "array", "items": {"type": "string"}},
        }),
        "fetch" => json!({"url": {"type": "string"}}),
        "search" => json!({"query": {"type": "string"}}),
        "patch" => json!({"input": {"type": "string"}}),
        "spawn" => json!({"task": {"type": "string"}}),
        other => panic!("no tool {other}"),
    };
    json!({"type": "object", "properties": properties})
}

const TOOLS: [&str; 6] = ["exec", "fetch", "patch", "read", "search", "spawn"];

fn description(tool: &str) -> String {
    format!("Use {tool} when {tool} is what is needed, and never otherwise.")
}

/// Arguments with their keys in the schema's order.
fn in_schema_order(name: &str, arguments: &Value) -> Value {
    let properties = schema(name)["properties"].clone();
    let mut ordered = Map::new();
    for key in properties.as_object().expect("properties").keys() {
        if let Some(value) = arguments.get(key) {
            ordered.insert(key.clone(), value.clone());
        }
    }
    ordered.into()
}

/// JSON as JavaScript writes what it has parsed: compact, and whole numbers without a point.
fn by_javascript(value: &Value) -> Value {
    match value {
        Value::Number(number) => {
            let number = number.as_f64().expect("a number");
            match number.fract() == 0.0 {
                true => json!(number as i64),
                false => json!(number),
            }
        }
        Value::Array(items) => items.iter().map(by_javascript).collect(),
        Value::Object(members) => {
            let members = members.iter();
            members
                .map(|(key, value)| (key.clone(), by_javascript(value)))
                .collect::<Map<_, _>>()
                .into()
        }
        other => other.clone(),
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in {text:?}"))
}

impl Client {
    pub(super) fn new(habit: Habit, session: &'static str) -> Client {
        let mut history = Vec::new();
        match habit {
            Habit::Codex => {
                let part = json!([{"type": "input_text", "text": SYSTEM.repeat(8)}]);
                history.push(json!({"type": "message", "role": "developer", "content": part}));
            }
            Habit::OpencodeResponses => {
                history.push(json!({"role": "developer", "content": SYSTEM.repeat(8)}));
            }
            Habit::OpencodeChat => {
                history.push(json!({"role": "system", "content": SYSTEM.repeat(8)}));
            }
            Habit::PiChat => {
                history.push(json!({"role": "developer", "content": SYSTEM.repeat(8)}));
            }
            Habit::ClaudeCode | Habit::OpencodeMessages => {}
        }
        Client {
            habit,
            history,
            n_requests: 0,
            loaded: Vec::new(),
            session,
        }
    }

    pub(super) fn path(&self) -> &'static str {
        match self.habit.api() {
            Api::Chat => "/v1/chat/completions",
            Api::Messages => "/v1/messages?beta=true",
            Api::Responses => "/v1/responses",
        }
    }

    pub(super) fn headers(&self) -> Vec<(&'static str, &'static str)> {
        match self.habit {
            Habit::ClaudeCode => vec![
                ("anthropic-version", "2023-06-01"),
                ("x-claude-code-session-id", self.session),
            ],
            Habit::OpencodeMessages => vec![("anthropic-version", "2023-06-01")],
            Habit::Codex => vec![("session-id", self.session)],
            Habit::OpencodeChat | Habit::OpencodeResponses => vec![("x-session-id", self.session)],
            Habit::PiChat => Vec::new(),
        }
    }

    /// What the user says.
    pub(super) fn ask(&mut self, text: &str) {
        let text = format!("{text} ({})", self.session);
        match self.habit {
            Habit::ClaudeCode => {
                let cached = json!({"type": "ephemeral"});
                self.history.push(json!({"role": "user", "content": [
                    {"type": "text", "text": text, "cache_control": cached},
                ]}));
                if self.history.len() == 1 {
                    let about = "The folder has 4 files. A tool can be loaded: fetch.";
                    self.history.push(
                        json!({"role": "system", "content": [{"type": "text", "text": about}]}),
                    );
                }
            }
            Habit::Codex => self.history.push(json!({
                "type": "message", "role": "user",
                "content": [{"type": "input_text", "text": text}],
            })),
            _ => self.history.push(json!({"role": "user", "content": text})),
        }
    }

    /// The next request.
    pub(super) fn request(&mut self) -> Value {
        self.n_requests += 1;
        let mut body = json!({"model": "deepseek-v4-flash", "stream": true});
        match self.habit.api() {
            Api::Chat => {
                let tools = TOOLS.map(|name| {
                    json!({"type": "function", "function": {
                        "name": name, "description": description(name), "parameters": schema(name),
                    }})
                });
                body["messages"] = self.history.clone().into();
                body["tools"] = tools.to_vec().into();
                body["stream_options"] = json!({"include_usage": true});
                if self.habit == Habit::PiChat {
                    body["max_completion_tokens"] = json!(4000);
                    body["store"] = json!(false);
                    body["reasoning_effort"] = json!("medium");
                }
            }
            Api::Messages => self.put_messages(&mut body),
            Api::Responses => self.put_responses(&mut body),
        }
        body
    }

    fn put_messages(&mut self, body: &mut Value) {
        let is_claude = self.habit == Habit::ClaudeCode;
        let mut tools = Vec::new();
        for name in TOOLS {
            let mut tool = json!({
                "name": name, "description": description(name), "input_schema": schema(name),
            });
            if is_claude && name == "fetch" {
                if !self.loaded.contains(&name) {
                    continue;
                }
                tool["defer_loading"] = json!(true);
            }
            tools.push(tool);
        }
        body["tools"] = tools.into();
        body["max_tokens"] = json!(32000);
        let system = json!({"type": "text", "text": SYSTEM.repeat(8)});
        if is_claude {
            let billing = format!(
                "x-anthropic-billing-header: cc_version=2.1.329.{:03x}; cc_entrypoint=sdk-cli;",
                self.n_requests * 77
            );
            body["system"] = json!([{"type": "text", "text": billing}, system]);
            body["thinking"] = json!({"type": "adaptive", "display": "omitted"});
            body["output_config"] = json!({"effort": "high"});
            body["context_management"] = json!({"edits": [{"type": "clear_thinking_20251015"}]});
        } else {
            body["system"] = json!([system]);
            body["thinking"] = json!({"type": "enabled", "budget_tokens": 16000});
        }
        body["messages"] = self.history.clone().into();
        if is_claude {
            // Texts are blocks in the request that brings them and strings in all later ones.
            for message in &mut self.history {
                let text = message["content"]
                    .as_array()
                    .and_then(|blocks| match &blocks[..] {
                        [block] if message["role"] != "assistant" => block["text"].as_str(),
                        _ => None,
                    })
                    .map(str::to_owned);
                if let Some(text) = text {
                    message["content"] = text.into();
                }
            }
        }
    }

    fn put_responses(&mut self, body: &mut Value) {
        let function = |name: &str| {
            json!({
                "type": "function", "name": name, "description": description(name),
                "parameters": schema(name), "strict": false,
            })
        };
        let is_codex = self.habit == Habit::Codex;
        let tools: Vec<Value> = TOOLS
            .iter()
            .map(|name| match *name {
                "patch" if is_codex => json!({
                    "type": "custom", "name": name, "description": description(name),
                    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /(.|\\n)+/"},
                }),
                "spawn" if is_codex => json!({
                    "type": "namespace", "name": "agents", "tools": [function(name)],
                }),
                _ => function(name),
            })
            .chain(is_codex.then(|| json!({"type": "web_search"})))
            .collect();
        body["tools"] = tools.into();
        body["input"] = self.history.clone().into();
        body["store"] = json!(false);
        body["include"] = json!(["reasoning.encrypted_content"]);
        body["reasoning"] = json!({"summary": "auto"});
        body["prompt_cache_key"] = self.session.into();
    }

    /// Takes a reply's events into the history; the calls that it makes.
    pub(super) fn hear(&mut self, events: &[(String, Value)]) -> Vec<Call> {
        match self.habit.api() {
            Api::Chat => self.hear_chat(events),
            Api::Messages => self.hear_messages(events),
            Api::Responses => self.hear_responses(events),
        }
    }

    fn hear_chat(&mut self, events: &[(String, Value)]) -> Vec<Call> {
        let (mut reasoning, mut content) = (String::new(), String::new());
        let mut calls: Vec<(String, String, String)> = Vec::new();
        let mut finish = Value::Null;
        for (_, event) in events {
            let Some(choice) = event["choices"].get(0) else {
                continue;
            };
            let delta = &choice["delta"];
            reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
            content += delta["content"].as_str().unwrap_or_default();
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let at = call["index"].as_u64().expect("an index") as usize;
                if let Some(id) = call["id"].as_str() {
                    assert_eq!(at, calls.len());
                    let name = call["function"]["name"].as_str().expect("a name");
                    calls.push((id.to_owned(), name.to_owned(), String::new()));
                }
                calls[at].2 += call["function"]["arguments"].as_str().unwrap_or_default();
            }
            if !choice["finish_reason"].is_null() {
                finish = choice["finish_reason"].clone();
            }
        }
        let called = !calls.is_empty();
        assert_eq!(finish, if called { "tool_calls" } else { "stop" });
        if self.habit == Habit::PiChat && content.trim().is_empty() {
            content.clear();
        }
        let mut message = json!({"role": "assistant", "content": content});
        if content.is_empty() {
            message["content"] = match self.habit {
                Habit::PiChat => "".into(),
                _ => Value::Null,
            };
        }
        message["reasoning_content"] = reasoning.into();
        let calls: Vec<Call> = calls
            .into_iter()
            .map(|(id, name, arguments)| Call {
                id,
                name,
                arguments: parsed(&arguments),
            })
            .collect();
        if called {
            let calls = calls.iter().map(|call| {
                json!({"id": call.id, "type": "function", "function": {
                    "name": call.name, "arguments": by_javascript(&call.arguments).to_string(),
                }})
            });
            message["tool_calls"] = calls.collect::<Vec<_>>().into();
        }
        self.history.push(message);
        calls
    }

    fn hear_messages(&mut self, events: &[(String, Value)]) -> Vec<Call> {
        let mut blocks: Vec<Value> = Vec::new();
        let mut inputs: Vec<String> = Vec::new();
        let mut stop = Value::Null;
        for (name, event) in events {
            let at = event["index"].as_u64().unwrap_or_default() as usize;
            match name.as_str() {
                "content_block_start" => {
                    assert_eq!(at, blocks.len());
                    blocks.push(event["content_block"].clone());
                    inputs.push(String::new());
                }
                "content_block_delta" => {
                    let delta = &event["delta"];
                    let mut append = |name: &str| {
                        let more = delta[name].as_str().expect("text");
                        let text = blocks[at][name].as_str().unwrap_or_default();
                        blocks[at][name] = format!("{text}{more}").into();
                    };
                    match delta["type"].as_str().expect("a type") {
                        "text_delta" => append("text"),
                        "thinking_delta" => append("thinking"),
                        "signature_delta" => append("signature"),
                        "input_json_delta" => {
                            inputs[at] += delta["partial_json"].as_str().expect("JSON");
                        }
                        other => panic!("an unknown delta: {other}"),
                    }
                }
                "message_delta" => stop = event["delta"]["stop_reason"].clone(),
                "message_start" | "content_block_stop" | "message_stop" | "ping" => {}
                other => panic!("an unknown event: {other}"),
            }
        }
        let mut calls = Vec::new();
        for (block, input) in blocks.iter_mut().zip(inputs) {
            if block["type"] == "tool_use" {
                let name = block["name"].as_str().expect("a name").to_owned();
                let mut arguments = by_javascript(&parsed(&input));
                if self.habit == Habit::ClaudeCode {
                    arguments = in_schema_order(&name, &arguments);
                }
                block["input"] = arguments.clone();
                calls.push(Call {
                    id: block["id"].as_str().expect("an id").to_owned(),
                    name,
                    arguments,
                });
            }
        }
        if self.habit == Habit::ClaudeCode {
            let mut thinking = blocks.iter().filter(|block| block["type"] == "thinking");
            assert!(thinking.all(|block| block["thinking"] == ""));
        }
        blocks.retain(|block| {
            let text = block["text"].as_str();
            text.is_none_or(|text| !text.trim().is_empty())
        });
        assert_eq!(
            stop,
            if calls.is_empty() {
                "end_turn"
            } else {
                "tool_use"
            }
        );
        self.history
            .push(json!({"role": "assistant", "content": blocks}));
        calls
    }

    fn hear_responses(&mut self, events: &[(String, Value)]) -> Vec<Call> {
        let (last, _) = events.last().expect("events");
        assert_eq!(last, "response.completed");
        let mut calls = Vec::new();
        for (name, event) in events {
            if name != "response.output_item.done" {
                continue;
            }
            let mut item = event["item"].clone();
            match item["type"].as_str().expect("a type") {
                "function_call" => {
                    let arguments = parsed(item["arguments"].as_str().expect("text"));
                    if self.habit == Habit::OpencodeResponses {
                        item["arguments"] = by_javascript(&arguments).to_string().into();
                    }
                    calls.push(Call {
                        id: item["call_id"].as_str().expect("an id").to_owned(),
                        name: item["name"].as_str().expect("a name").to_owned(),
                        arguments,
                    });
                }
                "custom_tool_call" => calls.push(Call {
                    id: item["call_id"].as_str().expect("an id").to_owned(),
                    name: item["name"].as_str().expect("a name").to_owned(),
                    arguments: json!({"input": item["input"]}),
                }),
                "reasoning" => assert!(item["encrypted_content"].is_string()),
                "message" => {}
                other => panic!("an unknown item: {other}"),
            }
            if self.habit == Habit::OpencodeResponses {
                let item = item.as_object_mut().expect("an object");
                item.remove("id");
                item.remove("status");
                // Of the reasoning only what cannot be read and its summary come back.
                if let Some(content) = item.remove("content")
                    && item["type"] == "message"
                {
                    let text = content[0]["text"].clone();
                    let part = json!([{"type": "output_text", "text": text}]);
                    item.insert("content".to_owned(), part);
                }
            }
            self.history.push(item);
        }
        calls
    }

    /// What the calls gave, in the order of the calls.
    pub(super) fn give(&mut self, calls: &[Call], results: &[String]) {
        assert_eq!(calls.len(), results.len());
        let pairs: Vec<_> = calls.iter().zip(results).collect();
        match self.habit.api() {
            Api::Chat => {
                for (call, result) in pairs {
                    self.history.push(json!({
                        "role": "tool", "tool_call_id": call.id, "content": result,
                    }));
                }
            }
            Api::Responses => {
                for (call, result) in pairs {
                    let kind = match (self.habit, call.name.as_str()) {
                        (Habit::Codex, "patch") => "custom_tool_call_output",
                        _ => "function_call_output",
                    };
                    self.history
                        .push(json!({"type": kind, "call_id": call.id, "output": result}));
                }
            }
            Api::Messages => {
                let is_claude = self.habit == Habit::ClaudeCode;
                let mut blocks: Vec<Value> = pairs
                    .into_iter()
                    .map(|(call, result)| {
                        let content = match call.name.as_str() {
                            "search" if is_claude => {
                                self.loaded.push("fetch");
                                json!([{"type": "tool_reference", "tool_name": "fetch"}])
                            }
                            _ => result.as_str().into(),
                        };
                        json!({"type": "tool_result", "tool_use_id": call.id, "content": content})
                    })
                    .collect();
                if is_claude {
                    // The last call was done first.
                    blocks.reverse();
                }
                self.history
                    .push(json!({"role": "user", "content": blocks}));
            }
        }
    }
}
