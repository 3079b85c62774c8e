//! The messages of a conversation, as the renderer takes them.

use serde_json::Value;

/// Who speaks in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions; the place of tools and of a response format.
    System,
    /// A person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call; becomes part of a user turn.
    Tool,
    /// Volatile facts such as date and place, before the user turn they concern.
    LatestReminder,
    /// An internal role of the publisher's search agent. What an API calls `developer` is
    /// [`Role::System`].
    Developer,
}

impl Role {
    /// The role of this name, in the spelling of the publisher's encoder.
    pub fn from_name(name: &str) -> Option<Role> {
        Some(match name {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            "latest_reminder" => Role::LatestReminder,
            "developer" => Role::Developer,
            _ => return None,
        })
    }
}

/// An auxiliary short generation that a turn asks for with a marker of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Whether to search or to answer.
    Action,
    /// Search queries.
    Query,
    /// How much authority the sources need.
    Authority,
    /// The topic's domain.
    Domain,
    /// A title for the conversation; stands on an assistant turn.
    Title,
    /// Whether to read a URL.
    ReadUrl,
}

impl Task {
    /// The task of this name, in the spelling of the publisher's encoder.
    pub fn from_name(name: &str) -> Option<Task> {
        Some(match name {
            "action" => Task::Action,
            "query" => Task::Query,
            "authority" => Task::Authority,
            "domain" => Task::Domain,
            "title" => Task::Title,
            "read_url" => Task::ReadUrl,
            _ => return None,
        })
    }

    /// The marker that asks for it.
    pub fn marker(self) -> &'static str {
        match self {
            Task::Action => "<｜action｜>",
            Task::Query => "<｜query｜>",
            Task::Authority => "<｜authority｜>",
            Task::Domain => "<｜domain｜>",
            Task::Title => "<｜title｜>",
            Task::ReadUrl => "<｜read_url｜>",
        }
    }
}

/// A tool call of an assistant message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// The id that the tool's result refers to.
    pub id: String,
    /// The tool.
    pub name: String,
    /// The arguments as JSON text, normally of an object.
    pub arguments: String,
}

/// One message. Fields that a role does not read are ignored.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; may be empty, except for [`Role::Developer`].
    pub content: String,
    /// Assistant: what was thought before the content. None and empty render alike.
    pub reasoning: Option<String>,
    /// Assistant: the calls, in order.
    pub tool_calls: Vec<ToolCall>,
    /// Tool: the id of the call that this is the result of.
    pub tool_call_id: String,
    /// System and developer: function objects, keys in the order in which they will be written.
    pub tools: Vec<Value>,
    /// System and developer: the schema that the reply must follow.
    pub response_format: Option<Value>,
    /// User and assistant: a task to do behind this turn.
    pub task: Option<Task>,
    /// Assistant: the turn is a prefix that the model goes on with, and gets no end marker.
    pub open_ended: bool,
}

impl Message {
    /// A message with nothing but a role and content.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message {
            role,
            content: content.into(),
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: String::new(),
            tools: Vec::new(),
            response_format: None,
            task: None,
            open_ended: false,
        }
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Message {
        Message::new(Role::System, content)
    }

    /// A user message.
    pub fn user(content: impl Into<String>) -> Message {
        Message::new(Role::User, content)
    }

    /// An assistant message without reasoning or calls.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::new(Role::Assistant, content)
    }

    /// The result of the call `tool_call_id`.
    pub fn tool(tool_call_id: impl Into<String>, content: impl Into<String>) -> Message {
        Message {
            tool_call_id: tool_call_id.into(),
            ..Message::new(Role::Tool, content)
        }
    }
}

/// The text of a message's `content` value: a string as it is, null as nothing, the text parts of
/// a list joined with an empty line, any other part as `[Unsupported TYPE]`.
///
/// `None` when the value has none of these shapes.
pub fn content_text(content: &Value) -> Option<String> {
    let part_text = |part: &Value| match part["type"].as_str()? {
        "text" => part["text"].as_str().map(str::to_owned),
        other => Some(format!("[Unsupported {other}]")),
    };
    match content {
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts: Option<Vec<String>> = parts.iter().map(part_text).collect();
            Some(texts?.join("\n\n"))
        }
        _ => None,
    }
}
