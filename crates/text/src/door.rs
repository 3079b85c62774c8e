//! The crate's functions over JSON lines: one object in, one object out. What a command line, a
//! test in another language or a comparison with another implementation needs.
//!
//! Every row has an `id`, any JSON value, which comes back beside the result.

use serde_json::{Map, Value};

use crate::json;
use crate::message::{Message, Role, Task, ToolCall, content_text};
use crate::parse::{EndReason, ReplyParser, Start, ToolSchemas};
use crate::prompt::MarkerText;
use crate::render::{Effort, Mode, RenderOptions, Revision, render};
use crate::tokenizer::{Tokenizer, UnknownToken};

/// Why a line has no answer.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// It is not JSON.
    #[error("not a JSON line: {0}")]
    Json(#[from] serde_json::Error),
    /// A member is missing or has another shape.
    #[error("{member}: found {found}, expected {expected}")]
    Member {
        /// Where in the row.
        member: String,
        /// What stands there.
        found: String,
        /// What must stand there.
        expected: &'static str,
    },
    /// An id outside the vocabulary.
    #[error("ids: {0}")]
    UnknownToken(#[from] UnknownToken),
}

/// `{"id", "text"}` to `{"id", "ids"}`; the text of added tokens becomes those tokens.
///
/// # Errors
/// A line of another shape.
pub fn tokenize_line(tokenizer: &Tokenizer, line: &str) -> Result<String, DoorError> {
    let value = json::parse(line)?;
    let row = Row::with_id(&value)?;
    let ids = tokenizer.encode(row.text("text")?);
    Ok(row.answer([("ids", Value::from(ids))]))
}

/// `{"id", "ids"}` to `{"id", "text"}`.
///
/// # Errors
/// A line of another shape, or an id outside the vocabulary.
pub fn detokenize_line(tokenizer: &Tokenizer, line: &str) -> Result<String, DoorError> {
    const EXPECTED: &str = "an array of token ids";
    let value = json::parse(line)?;
    let row = Row::with_id(&value)?;
    let ids = row.array("ids", EXPECTED)?.iter().enumerate();
    let id = |(i, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| member(format!("ids[{i}]"), value, "a token id"))
    };
    let ids: Vec<u32> = ids.map(id).collect::<Result<_, _>>()?;
    let text = tokenizer.decode(&ids)?;
    Ok(row.answer([("text", Value::from(text))]))
}

/// A conversation to `{"id", "prompt"}`, or to `{"id", "error"}` where it has no rendering.
///
/// Members besides `id` and `messages`, all optional: `context`, `thinking_mode` (`chat` or
/// `thinking`), `drop_thinking`, `revision` (`preview` or `0731`), `reasoning_effort` (`low`,
/// `high`, `max` or null), `add_bos`, `marker_text` (`allow`, unless it says `defuse`). Messages
/// have the members of the publisher's encoder.
///
/// # Errors
/// A line of another shape. A message of another shape is an answer with `error`.
pub fn render_line(line: &str) -> Result<String, DoorError> {
    let value = json::parse(line)?;
    let row = Row::with_id(&value)?;
    const EXPECTED: &str = "an array of messages";
    let messages = row.array("messages", EXPECTED)?;
    let context = match row.member("context") {
        None => &[],
        Some(_) => row.array("context", EXPECTED)?,
    };
    let options = RenderOptions {
        mode: row.choice(
            "thinking_mode",
            "chat or thinking",
            &[("chat", Mode::Chat), ("thinking", Mode::Thinking)],
        )?,
        drop_thinking: row.flag("drop_thinking", true)?,
        effort: row.choice(
            "reasoning_effort",
            "low, high, max or null",
            &[
                ("none", Effort::None),
                ("low", Effort::Low),
                ("high", Effort::High),
                ("max", Effort::Max),
            ],
        )?,
        revision: row.choice(
            "revision",
            "preview or 0731",
            &[("preview", Revision::Preview), ("0731", Revision::R0731)],
        )?,
        bos: row.flag("add_bos", true)?,
        context: Vec::new(),
        marker_text: row.choice(
            "marker_text",
            "allow or defuse",
            &[("allow", MarkerText::Allow), ("defuse", MarkerText::Defuse)],
        )?,
    };
    let rendered = read_messages("context", context).and_then(|context| {
        let messages = read_messages("messages", messages)?;
        let options = RenderOptions { context, ..options };
        render(&messages, &options).map_err(|e| e.to_string())
    });
    Ok(match rendered {
        Ok(prompt) => row.answer([("prompt", Value::from(prompt.text))]),
        Err(error) => row.answer([("error", Value::from(error))]),
    })
}

/// The model's text to `{"id", "reasoning", "content", "tool_calls", "malformed",
/// "implicit_think_end"}`.
///
/// Members: `text` (without the end-of-sentence marker), `start_in_reasoning`, `end` (`stop`,
/// `length` or `cancelled`), `tools` (name to parameter schema) and `tools_declared`, which is
/// true by default when there are `tools`.
///
/// # Errors
/// A line of another shape.
pub fn parse_line(line: &str) -> Result<String, DoorError> {
    let value = json::parse(line)?;
    let row = Row::with_id(&value)?;
    let text = row.text("text")?;
    let start = if row.flag("start_in_reasoning", false)? {
        Start::Reasoning
    } else {
        Start::Content
    };
    let end = row.choice(
        "end",
        "stop, length or cancelled",
        &[
            ("stop", EndReason::Stop),
            ("length", EndReason::Length),
            ("cancelled", EndReason::Cancelled),
        ],
    )?;
    let tools = row.member("tools");
    let tools = if row.flag("tools_declared", tools.is_some())? {
        match tools {
            Some(Value::Object(tools)) => tools.clone().into_iter().collect(),
            other => {
                let found = other.unwrap_or(&Value::Null);
                return Err(member("tools", found, "an object of parameter schemas"));
            }
        }
    } else {
        ToolSchemas::default()
    };
    let mut parser = ReplyParser::new(start, tools);
    parser.push(text);
    let (_, reply) = parser.finish(end);
    let calls: Vec<Value> = reply
        .tool_calls
        .iter()
        .map(|call| {
            serde_json::json!({
                "name": call.name,
                "arguments": call.arguments,
                "complete": call.complete,
            })
        })
        .collect();
    Ok(row.answer([
        ("reasoning", Value::from(reply.reasoning)),
        ("content", Value::from(reply.content)),
        ("tool_calls", Value::from(calls)),
        ("malformed", Value::from(reply.malformed)),
        ("implicit_think_end", Value::from(reply.implicit_think_end)),
    ]))
}

/// A message in the shape that the publisher's encoder takes: `role`, `content`,
/// `reasoning_content`, `tool_calls`, `tool_call_id`, `tools`, `response_format`, `task`,
/// `wo_eos`.
///
/// # Errors
/// A member of another shape, or an unknown role or task.
pub fn read_message(value: &Value) -> Result<Message, DoorError> {
    let row = Row::of("message", value)?;
    let role = row.text("role")?;
    let role = Role::from_name(role).ok_or_else(|| {
        let expected = "system, user, assistant, tool, latest_reminder or developer";
        member("role", &value["role"], expected)
    })?;
    let content = content_text(&value["content"]);
    let content = content.ok_or_else(|| {
        member(
            "content",
            &value["content"],
            "a string, null or a list of parts",
        )
    })?;
    let task = match row.member("task") {
        None => None,
        Some(task) => Some(task.as_str().and_then(Task::from_name).ok_or_else(|| {
            let expected = "action, query, authority, domain, title or read_url";
            member("task", task, expected)
        })?),
    };
    let list =
        |name: &str, read: &dyn Fn(&Value) -> Result<Value, DoorError>| match row.member(name) {
            None => Ok(Vec::new()),
            Some(_) => row.array(name, "an array")?.iter().map(read).collect(),
        };
    let function = |item: &Value| match &item["function"] {
        Value::Null => Err(member(
            "function",
            item,
            "an object with a member \"function\"",
        )),
        function => Ok(function.clone()),
    };
    let mut tool_calls = Vec::new();
    for item in list("tool_calls", &|item| Ok(item.clone()))? {
        let function = function(&item)?;
        let function = Row::of("function", &function)?;
        let id = [&item["id"], &function.value["id"]]
            .into_iter()
            .find_map(Value::as_str);
        tool_calls.push(ToolCall {
            id: id.unwrap_or_default().to_owned(),
            name: function.text("name")?.to_owned(),
            arguments: function.text("arguments")?.to_owned(),
        });
    }
    Ok(Message {
        role,
        content,
        reasoning: row.optional_text("reasoning_content")?,
        tool_calls,
        tool_call_id: row.optional_text("tool_call_id")?.unwrap_or_default(),
        tools: list("tools", &function)?,
        response_format: row.member("response_format").cloned(),
        task,
        open_ended: row.flag("wo_eos", false)?,
    })
}

fn read_messages(list: &str, values: &[Value]) -> Result<Vec<Message>, String> {
    let read = |(i, value)| read_message(value).map_err(|e| format!("{list}[{i}]: {e}"));
    values.iter().enumerate().map(read).collect()
}

fn member(member: impl Into<String>, found: &Value, expected: &'static str) -> DoorError {
    let mut found = found.to_string();
    if let Some((end, _)) = found.char_indices().nth(60) {
        found.truncate(end);
        found.push('…');
    }
    DoorError::Member {
        member: member.into(),
        found,
        expected,
    }
}

/// An object and the checked way to its members. A member that is null counts as absent.
struct Row<'a> {
    value: &'a Value,
}

impl<'a> Row<'a> {
    fn of(name: &str, value: &'a Value) -> Result<Row<'a>, DoorError> {
        if value.is_object() {
            Ok(Row { value })
        } else {
            Err(member(name, value, "an object"))
        }
    }

    fn with_id(value: &'a Value) -> Result<Row<'a>, DoorError> {
        let row = Row::of("the line", value)?;
        match value.get("id") {
            Some(_) => Ok(row),
            None => Err(member("id", &Value::Null, "the row's name")),
        }
    }

    fn answer<const N: usize>(&self, results: [(&str, Value); N]) -> String {
        let mut answer = Map::new();
        answer.insert("id".to_owned(), self.value["id"].clone());
        answer.extend(results.map(|(name, value)| (name.to_owned(), value)));
        Value::from(answer).to_string()
    }

    fn member(&self, name: &str) -> Option<&'a Value> {
        self.value.get(name).filter(|value| !value.is_null())
    }

    fn found(&self, name: &str) -> &'a Value {
        self.value.get(name).unwrap_or(&Value::Null)
    }

    fn text(&self, name: &str) -> Result<&'a str, DoorError> {
        let found = self.found(name);
        found
            .as_str()
            .ok_or_else(|| member(name, found, "a string"))
    }

    fn optional_text(&self, name: &str) -> Result<Option<String>, DoorError> {
        match self.member(name) {
            None => Ok(None),
            Some(_) => self.text(name).map(|text| Some(text.to_owned())),
        }
    }

    fn array(&self, name: &str, expected: &'static str) -> Result<&'a [Value], DoorError> {
        let found = self.found(name);
        let array = found.as_array().map(Vec::as_slice);
        array.ok_or_else(|| member(name, found, expected))
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, DoorError> {
        match self.member(name) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| member(name, value, "true or false")),
        }
    }

    /// The first choice when the member is absent.
    fn choice<T: Copy>(
        &self,
        name: &str,
        expected: &'static str,
        choices: &[(&str, T)],
    ) -> Result<T, DoorError> {
        let found = self.found(name);
        let text = if found.is_null() {
            choices.first().map(|c| c.0)
        } else {
            found.as_str()
        };
        let choice = choices.iter().find(|choice| Some(choice.0) == text);
        choice
            .map(|choice| choice.1)
            .ok_or_else(|| member(name, found, expected))
    }
}
