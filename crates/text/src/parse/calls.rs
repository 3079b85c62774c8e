//! Reading a tool block: its calls, their parameters, and the JSON that they become.

use serde_json::{Map, Value};

use super::*;

impl ReplyParser {
    pub(super) fn read_block(&mut self, plain: bool) -> (State, bool) {
        let stay = (State::Block { plain }, false);
        if !self.skip_blanks() {
            return stay;
        }
        let Some(scan) = self.read_tag(plain) else {
            return stay;
        };
        let next = match scan {
            Scan::Found(tag) => match (tag.kind, tag.closes) {
                (TagKind::Invoke, false) => self.start_call(&tag, plain),
                (TagKind::ToolCalls | TagKind::OtherWrapper, true) => {
                    if self.reply.tool_calls.is_empty() {
                        self.malformed(EMPTY_BLOCK)
                    } else {
                        self.events.push(Event::BlockDone);
                        State::Done
                    }
                }
                _ => self.malformed(UNEXPECTED_TEXT),
            },
            _ => self.malformed(UNEXPECTED_TEXT),
        };
        (next, true)
    }

    pub(super) fn start_call(&mut self, tag: &Tag, plain: bool) -> State {
        let name = match tag.attribute("name") {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => return self.malformed("tool call without a name"),
        };
        self.skip(tag.n_bytes);
        let index = self.reply.tool_calls.len();
        self.reply.tool_calls.push(ParsedCall {
            name: name.clone(),
            ..ParsedCall::default()
        });
        self.events.push(Event::ToolStart { index, name });
        self.write_arguments("{");
        if tag.empty {
            return self.end_call(plain);
        }
        State::Call(Call {
            plain,
            ..Call::default()
        })
    }

    pub(super) fn end_call(&mut self, plain: bool) -> State {
        self.write_arguments("}");
        if let Some(call) = self.reply.tool_calls.last_mut() {
            call.complete = true;
        }
        let index = self.reply.tool_calls.len() - 1;
        self.events.push(Event::ToolEnd { index });
        State::Block { plain }
    }

    pub(super) fn call_name(&self) -> &str {
        self.reply.tool_calls.last().map_or("", |call| &call.name)
    }

    pub(super) fn read_call(&mut self, mut call: Call) -> (State, bool) {
        if !self.skip_blanks() {
            return (State::Call(call), false);
        }
        if call.keys.is_empty() && self.rest().starts_with('{') {
            return (State::Body(call, JsonText::default()), true);
        }
        let Some(scan) = self.read_tag(call.plain) else {
            return (State::Call(call), false);
        };
        let Scan::Found(tag) = scan else {
            return (self.malformed(UNEXPECTED_TEXT), true);
        };
        let next = match (tag.kind, tag.closes) {
            (TagKind::Parameter, false) => self.start_value(call, &tag),
            (TagKind::Parameter, true) => {
                self.skip(tag.n_bytes);
                State::Call(call)
            }
            // The closing tag of the call, or one that implies it.
            (_, true) | (TagKind::Invoke, false) => {
                if tag.kind == TagKind::Invoke && tag.closes {
                    self.skip(tag.n_bytes);
                }
                self.write_wrapped(&mut call, true);
                self.end_call(call.plain)
            }
            (TagKind::ToolCalls | TagKind::OtherWrapper, false) => self.malformed(UNEXPECTED_TEXT),
        };
        (next, true)
    }

    pub(super) fn start_value(&mut self, mut call: Call, tag: &Tag) -> State {
        let Some(key) = tag.attribute("name") else {
            return self.malformed("parameter without a name");
        };
        let key = key.replace(QUOTE_ESCAPED, "\"");
        self.skip(tag.n_bytes);
        self.write_wrapped(&mut call, false);
        let is_text = match tag.attribute("string") {
            Some("true") => true,
            Some("false") => false,
            _ => self.tools.takes_string(self.call_name(), &key),
        };
        let kind = if call.keys.contains(&key) {
            ValueKind::Repeated
        } else if is_text {
            self.write_key(&key);
            self.write_arguments("\"");
            ValueKind::Text
        } else {
            ValueKind::Json(JsonText::default())
        };
        let value = ParameterValue { key, kind };
        if tag.empty {
            return self.end_value(call, value);
        }
        State::Value(call, value)
    }

    pub(super) fn read_value(&mut self, call: Call, mut value: ParameterValue) -> (State, bool) {
        let is_text = matches!(value.kind, ValueKind::Text);
        let matters = |c: char| c == '<' || is_text && c == '&';
        loop {
            let found = self.rest().find(matters);
            let n_before = found.unwrap_or(self.rest().len());
            if n_before > 0 {
                self.write_value(&mut value, n_before);
            }
            if found.is_none() {
                return (State::Value(call, value), false);
            }
            let rest = self.rest();
            if rest.starts_with(PARAMETER_CLOSE_ESCAPED) {
                self.write_arguments(PARAMETER_CLOSE);
                self.skip(PARAMETER_CLOSE_ESCAPED.len());
                continue;
            }
            if rest.starts_with('&') {
                if PARAMETER_CLOSE_ESCAPED.starts_with(rest) {
                    return (State::Value(call, value), false);
                }
                self.write_value(&mut value, 1);
                continue;
            }
            let Some(scan) = self.read_tag(call.plain) else {
                return (State::Value(call, value), false);
            };
            match scan {
                Scan::Found(tag) if tag.kind == TagKind::Parameter && tag.closes => {
                    self.skip(tag.n_bytes);
                    return (self.end_value(call, value), true);
                }
                Scan::Found(tag)
                    if tag.kind == TagKind::Invoke
                        && tag.closes
                        && (tag.canonical || tag.plain) =>
                {
                    return (self.end_value(call, value), true);
                }
                _ => self.write_value(&mut value, 1),
            }
        }
    }

    /// Adds the next `n_bytes` to a value.
    pub(super) fn write_value(&mut self, value: &mut ParameterValue, n_bytes: usize) {
        let text = &self.held[self.at..self.at + n_bytes];
        match &mut value.kind {
            ValueKind::Text => {
                let mut escaped = String::with_capacity(text.len());
                json::escape(text, &mut escaped);
                self.write_arguments(&escaped);
            }
            ValueKind::Json(json) => json.push(text),
            ValueKind::Repeated => {}
        }
        self.skip(n_bytes);
    }

    pub(super) fn end_value(&mut self, mut call: Call, value: ParameterValue) -> State {
        match value.kind {
            ValueKind::Text => self.write_arguments("\""),
            ValueKind::Json(json) => {
                let (text, parsed) = json_value(json.text.trim());
                match parsed {
                    Value::Object(members)
                        if call.keys.is_empty() && self.is_wrapper(&value.key, &members) =>
                    {
                        call.wrapped = Some(Wrapped {
                            key: value.key.clone(),
                            value: text,
                            members,
                        });
                    }
                    _ => {
                        self.write_key(&value.key);
                        self.write_arguments(&text);
                    }
                }
            }
            ValueKind::Repeated => {}
        }
        call.keys.insert(value.key);
        State::Call(call)
    }

    pub(super) fn read_body(&mut self, mut call: Call, mut body: JsonText) -> (State, bool) {
        loop {
            let found = self.rest().find('<');
            let n_before = found.unwrap_or(self.rest().len());
            if n_before > 0 {
                body.push(&self.held[self.at..self.at + n_before]);
                self.skip(n_before);
            }
            if found.is_none() {
                return (State::Body(call, body), false);
            }
            match self.read_tag(call.plain) {
                None => return (State::Body(call, body), false),
                Some(Scan::Found(tag)) if tag.kind == TagKind::Invoke && tag.closes => {
                    let Ok(Value::Object(members)) = json::parse(&body.text) else {
                        let detail = "the arguments of a tool call are not a JSON object";
                        return (self.malformed(detail), true);
                    };
                    self.skip(tag.n_bytes);
                    self.write_members(
                        &mut call,
                        unwrapped(members, |key, inner| self.is_wrapper(key, inner)),
                    );
                    return (self.end_call(call.plain), true);
                }
                Some(_) => {
                    body.push("<");
                    self.skip(1);
                }
            }
        }
    }

    /// Whether an argument `key` that is the only one, with `members` for its value, stands for
    /// the whole arguments: the schema does not know it, but knows all that is in it.
    pub(super) fn is_wrapper(&self, key: &str, members: &Map<String, Value>) -> bool {
        let declared = |key: &str| self.tools.property(self.call_name(), key).is_some();
        matches!(key, "arguments" | "input")
            && !declared(key)
            && !members.is_empty()
            && members.keys().all(|key| declared(key))
    }

    /// Writes the parameter that was kept back, as what it holds when it is `alone`.
    pub(super) fn write_wrapped(&mut self, call: &mut Call, alone: bool) {
        let Some(wrapped) = call.wrapped.take() else {
            return;
        };
        if alone {
            self.write_members(call, wrapped.members);
        } else {
            self.write_key(&wrapped.key);
            self.write_arguments(&wrapped.value);
        }
    }

    pub(super) fn write_members(&mut self, call: &mut Call, members: Map<String, Value>) {
        for (key, value) in members {
            self.write_key(&key);
            self.write_arguments(&json::to_string(&value));
            call.keys.insert(key);
        }
    }

    pub(super) fn write_key(&mut self, key: &str) {
        let is_first = self
            .reply
            .tool_calls
            .last()
            .is_some_and(|call| call.arguments == "{");
        let mut text = String::from(if is_first { "" } else { ", " });
        json::write_string(key, &mut text);
        text.push_str(": ");
        self.write_arguments(&text);
    }

    pub(super) fn write_arguments(&mut self, text: &str) {
        let Some(call) = self.reply.tool_calls.last_mut() else {
            return;
        };
        call.arguments.push_str(text);
        let index = self.reply.tool_calls.len() - 1;
        match self.events.last_mut() {
            Some(Event::ToolArgsDelta { text: last, .. }) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.events.push(Event::ToolArgsDelta {
                index,
                text: text.to_owned(),
            }),
        }
    }
}

pub(super) fn is_declared(call: &Tag, tools: &ToolSchemas) -> bool {
    call.attribute("name")
        .is_some_and(|name| tools.contains(name))
}

/// The members of the one object in `members`, if `is_wrapper` says that it wraps them.
fn unwrapped(
    members: Map<String, Value>,
    is_wrapper: impl Fn(&str, &Map<String, Value>) -> bool,
) -> Map<String, Value> {
    match members.iter().next() {
        Some((key, Value::Object(inner))) if members.len() == 1 && is_wrapper(key, inner) => {
            inner.clone()
        }
        _ => members,
    }
}
