//! Input items to messages.

use std::borrow::Cow;

use ds4_text::{Message, Role, ToolCall};
use serde_json::{Value, json};

use super::origin::{self, flat_name};
use crate::api::Media;
use crate::api::fields::Fields;
use crate::api::json::{Json, Kind};
use crate::api::tools::{self, INPUT};
use crate::generation::{Failure, Tool};

/// Between the parts of one message, and between the messages of one turn.
const PART_BREAK: &str = "\n\n";

/// What a list of input items says.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    pub(super) messages: Vec<Message>,
    /// What becomes of images and the like in what a user says.
    pub(super) media: Media,
    /// `encrypted_content` of reasoning items, oldest first.
    pub(super) turn_handles: Vec<String>,
    /// What was left out.
    pub(super) warnings: Vec<String>,
    /// Where the first tool result stands whose call is not in the conversation.
    pub(super) orphan: Option<String>,
}

impl Conversation {
    /// Reads one item more. `declared` are the tools of the request and of the items.
    pub(super) fn item(&mut self, item: &Fields, declared: &[Tool]) -> Result<(), Failure> {
        match item_type(item)? {
            "message" => self.message(item),
            "reasoning" => self.reasoning(item),
            kind @ ("function_call" | "custom_tool_call" | "local_shell_call" | "shell_call"
            | "apply_patch_call") => {
                let call = call(item, kind)?;
                self.turn().tool_calls.push(call);
                Ok(())
            }
            "function_call_output"
            | "custom_tool_call_output"
            | "local_shell_call_output"
            | "shell_call_output"
            | "apply_patch_call_output" => self.output(item),
            "additional_tools" => {
                let names: Vec<String> = super::request::item_tools(item)?
                    .into_iter()
                    .map(|(tool, _)| tool.name)
                    .collect();
                let text = tools::found_text(&names, declared);
                self.messages.push(Message::system(text));
                Ok(())
            }
            kind if is_hosted(kind) => {
                self.warnings
                    .push(format!("{}: {kind} left out", item.path()));
                if let Some(text) = hosted_text(item) {
                    let note = format!("[{kind}] {text}");
                    add_paragraph(&mut self.turn().content, &note);
                }
                Ok(())
            }
            "compaction" | "context_compaction" | "compaction_trigger" => {
                self.warnings
                    .push(format!("{}: a compaction that is not ours", item.path()));
                Ok(())
            }
            other => Err(item.unknown_word("type", other, "an input item of a local model")),
        }
    }

    /// The assistant turn that the next part of one belongs to.
    fn turn(&mut self) -> &mut Message {
        if self.messages.last().map(|m| m.role) != Some(Role::Assistant) {
            self.messages.push(Message::assistant(""));
        }
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }

    fn message(&mut self, item: &Fields) -> Result<(), Failure> {
        let role = item.str("role")?;
        let parts = self.parts(item, "content")?;
        match role {
            "user" => self.messages.push(Message::user(parts.join(PART_BREAK))),
            "system" | "developer" => {
                self.messages.push(Message::system(parts.join(PART_BREAK)));
            }
            // The parts of one answer are pieces of one text.
            "assistant" => add_paragraph(&mut self.turn().content, &parts.concat()),
            other => {
                let expected = "user, assistant, system or developer";
                return Err(item.unknown_word("role", other, expected));
            }
        }
        Ok(())
    }

    fn reasoning(&mut self, item: &Fields) -> Result<(), Failure> {
        if let Some(handle) = item.optional_str("encrypted_content")?
            && !handle.is_empty()
        {
            self.turn_handles.push(handle.to_owned());
        }
        let mut texts = Vec::new();
        for name in ["content", "summary"] {
            for part in item.objects(name)? {
                let text = part.optional_str("text")?;
                texts.extend(text.filter(|t| !t.trim().is_empty()).map(str::to_owned));
            }
            if !texts.is_empty() {
                break;
            }
        }
        // Reasoning behind a call or behind an answer begins another turn.
        let begins_turn = match self.messages.last() {
            Some(last) => {
                last.role != Role::Assistant
                    || !last.tool_calls.is_empty()
                    || !last.content.is_empty()
            }
            None => true,
        };
        if begins_turn {
            self.messages.push(Message::assistant(""));
        }
        if !texts.is_empty() {
            let text = self.turn().reasoning.get_or_insert_default();
            for more in texts {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&more);
            }
        }
        Ok(())
    }

    fn output(&mut self, item: &Fields) -> Result<(), Failure> {
        let call_id = item.str("call_id")?;
        let is_known = self
            .messages
            .iter()
            .flat_map(|message| &message.tool_calls)
            .any(|call| call.id == call_id);
        if !is_known && self.orphan.is_none() {
            self.orphan = Some(item.path_of("call_id"));
        }
        let text = match item.get("output") {
            // What a shell gives back has no type by which to tell text from other parts.
            Some(parts) if parts.kind() == Kind::Array && has_untyped_part(parts)? => {
                ds4_text::json::to_string(&parts.value()?)
            }
            Some(other) if other.kind() == Kind::Object => {
                ds4_text::json::to_string(&other.value()?)
            }
            _ => self.parts(item, "output")?.join(PART_BREAK),
        };
        self.messages.push(Message::tool(call_id, text));
        Ok(())
    }

    /// The texts of a string or of a list of parts. Other parts are named, unless the server is
    /// to refuse them: refusing ends the session, because the client sends them again with every
    /// turn.
    fn parts(&mut self, item: &Fields, name: &str) -> Result<Vec<String>, Failure> {
        match item.kind(name) {
            Kind::Nothing => return Ok(Vec::new()),
            Kind::Text => return Ok(vec![item.text(name)?]),
            Kind::Array => {}
            _ => return Err(item.mismatch(name, "a string or an array of parts")),
        }
        let mut texts = Vec::new();
        for part in item.objects(name)? {
            let noun = match part.str("type")? {
                "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text" => {
                    texts.push(part.text("text")?);
                    continue;
                }
                "refusal" => {
                    texts.push(part.str("refusal")?.to_owned());
                    continue;
                }
                "input_image" | "image" | "image_url" | "computer_screenshot" => "image",
                "input_audio" | "audio" => "audio",
                "input_file" | "file" => "file",
                other => other,
            };
            if self.media == Media::Refuse && item.optional_str("role")? == Some("user") {
                return Err(tools::refused(part.path(), noun));
            }
            self.warnings
                .push(format!("{}: {noun} left out", part.path()));
            let file_name = part.optional_str("filename")?;
            texts.push(match file_name {
                Some(file_name) => format!("{file_name} {}", tools::omitted(noun)),
                None => tools::omitted(noun),
            });
        }
        texts.retain(|text| !text.is_empty());
        Ok(texts)
    }
}

/// Whether a list has anything in it that does not say its type.
fn has_untyped_part(parts: Json<'_>) -> Result<bool, Failure> {
    let mut found = false;
    parts.each(|part| {
        found |= part.kind() != Kind::Object || !part.members()?.iter().any(|m| m.name == "type");
        Ok(())
    })?;
    Ok(found)
}

/// An item with a role and no type is a message.
pub(super) fn item_type<'f>(item: &'f Fields<'_>) -> Result<&'f str, Failure> {
    match item.optional_str("type")? {
        Some(kind) => Ok(kind),
        None if item.get("role").is_some() => Ok("message"),
        None => Err(item.mismatch("type", "the type of an input item")),
    }
}

fn add_paragraph(text: &mut String, paragraph: &str) {
    if !text.is_empty() && !paragraph.is_empty() {
        text.push_str(PART_BREAK);
    }
    text.push_str(paragraph);
}

fn call(item: &Fields, kind: &str) -> Result<ToolCall, Failure> {
    let id = item.str("call_id")?.to_owned();
    let flat = || -> Result<String, Failure> {
        Ok(flat_name(
            item.optional_str("namespace")?,
            item.str("name")?,
        ))
    };
    let action = |name: &str| -> Result<String, Failure> {
        let action = item.value(name)?.unwrap_or(Value::Null);
        Ok(origin::arguments_of(&action))
    };
    let (name, arguments) = match kind {
        "function_call" => (flat()?, item.text("arguments")?),
        "custom_tool_call" => {
            let input = json!({INPUT: item.str("input")?});
            (flat()?, ds4_text::json::to_string(&input))
        }
        "local_shell_call" => ("local_shell".to_owned(), action("action")?),
        "shell_call" => ("shell".to_owned(), action("action")?),
        _ => ("apply_patch".to_owned(), action("operation")?),
    };
    Ok(ToolCall {
        id,
        name,
        arguments,
    })
}

/// Whether items of this type tell of tools that a vendor's server ran.
fn is_hosted(kind: &str) -> bool {
    const TYPES: [&str; 12] = [
        "web_search_call",
        "file_search_call",
        "computer_call",
        "computer_call_output",
        "code_interpreter_call",
        "image_generation_call",
        "program",
        "program_output",
        "tool_search_call",
        "tool_search_output",
        "configuration_update",
        "steer",
    ];
    TYPES.contains(&kind) || kind.starts_with("mcp_")
}

/// What a hosted tool's item says in words.
fn hosted_text(item: &Fields) -> Option<String> {
    let texts = ["name", "query", "code", "arguments", "output", "result"];
    let action = item.object("action").ok().flatten();
    let query = action.as_ref().and_then(|a| a.get("query"));
    let words: Vec<Cow<'_, str>> = texts
        .iter()
        .filter(|name| {
            // The result of an image generation is the image.
            **name != "result" || item_type(item).is_ok_and(|kind| kind != "image_generation_call")
        })
        .filter_map(|name| item.get(name))
        .chain(query)
        .filter_map(Json::as_text)
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}
