//! Output items while their text grows.

use serde_json::{Value, json};

use super::origin::{InputText, Origin};
use super::reply::{ReasoningDisplay, ReplyShape};
use crate::generation::{Call, Finish};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    InProgress,
    Completed,
    Incomplete,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Status::InProgress => "in_progress",
            Status::Completed => "completed",
            Status::Incomplete => "incomplete",
        }
    }
}

/// Of the text that a reply ends in.
pub(super) fn last_status(finish: &Finish) -> Status {
    match finish {
        Finish::Stop | Finish::StopString(_) | Finish::ToolCalls => Status::Completed,
        Finish::Length | Finish::ContextFull | Finish::Cancelled => Status::Incomplete,
    }
}

pub(super) fn call_status(call: &Call) -> Status {
    match call.complete {
        true => Status::Completed,
        false => Status::Incomplete,
    }
}

/// An output item while its text grows.
#[derive(Clone, Debug)]
pub(super) struct OpenItem {
    pub(super) kind: Kind,
    pub(super) id: String,
    /// The reasoning, the content or the arguments so far.
    pub(super) text: String,
    pub(super) logprobs: Vec<Value>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Reasoning,
    Message,
    Call {
        call_id: String,
        name: String,
        origin: Origin,
        /// Reads the raw input of a custom tool out of the arguments.
        input: InputText,
    },
}

impl OpenItem {
    pub(super) fn reasoning(shape: &ReplyShape) -> OpenItem {
        OpenItem::new(Kind::Reasoning, format!("rs_{}", shape.item_digits(0)))
    }

    pub(super) fn message(shape: &ReplyShape) -> OpenItem {
        OpenItem::new(Kind::Message, format!("msg_{}", shape.item_digits(1)))
    }

    pub(super) fn call(call_id: &str, name: &str, shape: &ReplyShape) -> OpenItem {
        let origin = shape.origins.of(name);
        let digits = call_id.strip_prefix("call_").unwrap_or(call_id);
        let digits = digits
            .get(digits.len().saturating_sub(24)..)
            .unwrap_or(digits);
        let id = format!("{}_{digits}", origin.item_prefix());
        let kind = Kind::Call {
            call_id: call_id.to_owned(),
            name: name.to_owned(),
            origin,
            input: InputText::default(),
        };
        OpenItem::new(kind, id)
    }

    pub(super) fn new(kind: Kind, id: String) -> OpenItem {
        OpenItem {
            kind,
            id,
            text: String::new(),
            logprobs: Vec::new(),
        }
    }

    /// Whether there is an item of this status.
    ///
    /// A shell's has no shape before its arguments are complete. A custom tool's raw input has no
    /// closing bracket that would tell a whole one from half of one, so half of one is added, but
    /// never done.
    pub(super) fn is_shown(&self, status: Status) -> bool {
        match (&self.kind, status) {
            (Kind::Reasoning | Kind::Message, _) | (_, Status::Completed) => true,
            (Kind::Call { origin, .. }, Status::InProgress) => origin.streams(),
            (Kind::Call { origin, .. }, Status::Incomplete) => {
                origin.streams() && !origin.is_custom()
            }
        }
    }

    pub(super) fn value(&self, shape: &ReplyShape, status: Status) -> Value {
        let started = status != Status::InProgress;
        match &self.kind {
            Kind::Reasoning => self.reasoning_value(shape, status),
            Kind::Message => {
                let parts = match started {
                    true => vec![self.text_part()],
                    false => Vec::new(),
                };
                json!({
                    "id": self.id,
                    "type": "message",
                    "role": "assistant",
                    "status": status.name(),
                    "content": parts,
                })
            }
            Kind::Call {
                call_id,
                name,
                origin,
                ..
            } => origin.item(&self.id, call_id, name, &self.text, status.name()),
        }
    }

    pub(super) fn reasoning_value(&self, shape: &ReplyShape, status: Status) -> Value {
        let mut summary = Vec::new();
        let mut content = Vec::new();
        if status != Status::InProgress {
            match shape.reasoning {
                ReasoningDisplay::Summary => summary.push(self.summary_part()),
                ReasoningDisplay::Text => content.push(self.reasoning_part()),
                ReasoningDisplay::Hidden => {}
            }
        }
        let mut item = json!({"id": self.id, "type": "reasoning", "summary": summary});
        if shape.reasoning == ReasoningDisplay::Text {
            item["content"] = content.into();
        }
        if let (Some(handle), true) = (&shape.encrypted_content, status != Status::InProgress) {
            item["encrypted_content"] = handle.as_str().into();
        }
        item["status"] = status.name().into();
        item
    }

    pub(super) fn text_part(&self) -> Value {
        json!({
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": self.logprobs,
        })
    }

    pub(super) fn reasoning_part(&self) -> Value {
        json!({"type": "reasoning_text", "text": self.text})
    }

    pub(super) fn summary_part(&self) -> Value {
        json!({"type": "summary_text", "text": self.text})
    }
}
