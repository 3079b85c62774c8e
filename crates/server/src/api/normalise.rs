//! From the messages of an API to those that have a rendering.

use ds4_text::{Message, Role};
use serde_json::Value;

use crate::api::invalid;
use crate::generation::Failure;

/// Puts system texts, tools and neighbours where the renderer expects them.
pub(crate) fn normalise(
    messages: Vec<Message>,
    tools: Vec<Value>,
    response_format: Option<Value>,
    param: &str,
) -> Result<Vec<Message>, Failure> {
    let mut out: Vec<Message> = Vec::new();
    let mut head: Vec<String> = Vec::new();
    for message in messages {
        let is_head = out.is_empty();
        match (message.role, out.last_mut()) {
            (Role::System, _) if is_head => head.push(message.content),
            (Role::System, _) => out.push(Message::user(message.content)),
            (Role::Assistant, Some(last)) if last.role == Role::Assistant => {
                for (text, more, between) in [(&mut last.content, message.content, "\n\n")] {
                    if !text.is_empty() && !more.is_empty() {
                        text.push_str(between);
                    }
                    text.push_str(&more);
                }
                if let Some(more) = message.reasoning {
                    let text = last.reasoning.get_or_insert_default();
                    if !text.is_empty() {
                        text.push('\n');
                    }
                    text.push_str(&more);
                }
                last.tool_calls.extend(message.tool_calls);
            }
            _ => out.push(message),
        }
    }
    if !out
        .iter()
        .any(|m| matches!(m.role, Role::User | Role::Tool))
    {
        let message = format!("{param}: expected at least one user message or tool result.");
        return Err(invalid(param, message));
    }
    if !head.is_empty() || !tools.is_empty() || response_format.is_some() {
        let system = Message {
            tools,
            response_format,
            ..Message::system(head.join("\n\n"))
        };
        out.insert(0, system);
    }
    Ok(out)
}
