//! Messages to prompt text: the publisher's encoder, reproduced with its oddities.
//!
//! Which messages an API request becomes is decided elsewhere; here a list of messages has exactly
//! one rendering. The deviations from the publisher are three replacements that
//! [`MarkerText::Defuse`] makes so that text can be read back (`"` in a parameter's name, the
//! parameter's closing tag in its value, `</tool_result>` in a result), and arguments that are
//! JSON but not an object, which the publisher's encoder fails on.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::Value;

use crate::message::{Message, Role, Task};
use crate::prompt::{MarkerText, Passage, Prompt, ReplySpan};
use crate::{dsml, json, markers};

const TOOLS_BEFORE_SCHEMAS: &str = r#"## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a "<｜DSML｜tool_calls>" block like the following:

<｜DSML｜tool_calls>
<｜DSML｜invoke name="$TOOL_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$TOOL_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

"#;
const TOOLS_AFTER_SCHEMAS: &str = "

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
";
const RESPONSE_FORMAT: &str = "## Response Format:

You MUST strictly adhere to the following schema to reply:
";
const EFFORT_ABSOLUTE: &str = "Reasoning Effort: Absolute maximum with no shortcuts permitted.
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.
Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.

";
const EFFORT_BEYOND: &str = "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.
You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying cause rather than any surface symptom.
Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that no assumption remains unchecked and no error remains undiscovered.

";

/// What stands between the parts of a user turn.
const PART_BREAK: &str = "\n\n";
const RESULT_OPEN: &str = "<tool_result>";
const RESULT_CLOSE: &str = "</tool_result>";
const RESULT_CLOSE_ESCAPED: &str = "&lt;/tool_result>";

/// Whether the model thinks before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It answers at once.
    #[default]
    Chat,
    /// It writes reasoning first.
    Thinking,
}

/// How hard to think. What it writes into the prompt depends on the [`Revision`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// Nothing is said; with it goes [`Mode::Chat`].
    #[default]
    None,
    /// Nothing is said.
    Low,
    /// Preview: nothing is said. 0731: the text that the preview calls *max*.
    High,
    /// The strongest text that the revision knows.
    Max,
}

/// Which release of the weights the prompt is for. Only the effort texts differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Revision {
    /// The first release.
    #[default]
    Preview,
    /// The release of 31 July.
    R0731,
}

/// How to render, besides the messages themselves.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// Whether the model thinks before it answers.
    pub mode: Mode,
    /// Leave out the reasoning of turns before the last user turn. Holds in thinking mode, and
    /// only while no message carries tools.
    pub drop_thinking: bool,
    /// How hard to think; written in thinking mode only.
    pub effort: Effort,
    /// Which weights the prompt is for.
    pub revision: Revision,
    /// Begin with the BOS marker (unless there is a context).
    pub bos: bool,
    /// Messages before the rendered ones that the prompt will stand behind. They are not written,
    /// but decide what is the last user turn and where reasoning is kept.
    pub context: Vec<Message>,
    /// What marker text in the messages becomes, and whether the three replacements are made.
    pub marker_text: MarkerText,
}

impl Default for RenderOptions {
    fn default() -> RenderOptions {
        RenderOptions {
            mode: Mode::default(),
            drop_thinking: true,
            effort: Effort::default(),
            revision: Revision::default(),
            bos: true,
            context: Vec::new(),
            marker_text: MarkerText::default(),
        }
    }
}

/// Why messages have no rendering.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// A developer turn is nothing but its content.
    #[error("turn {turn} (after merging) is a developer message without content")]
    EmptyDeveloper {
        /// Index of the turn, context included.
        turn: usize,
    },
}

/// Renders messages to the text that the model continues.
///
/// # Errors
/// A developer message without content.
pub fn render(messages: &[Message], options: &RenderOptions) -> Result<Prompt, RenderError> {
    let mut turns = merge(&options.context);
    let mut n_context = turns.len();
    turns.extend(merge(messages));
    let mut n_written = turns.len() - n_context;
    order_results(&mut turns);
    // Tools of user and tool messages are lost in merging.
    let has_tools = |turn: &Turn| turn.role != Role::User && !turn.source.tools.is_empty();
    let drop_thinking = options.drop_thinking && !turns.iter().any(has_tools);

    let mut prompt = Prompt {
        marker_text: options.marker_text,
        ..Prompt::default()
    };
    if options.bos && n_context == 0 {
        prompt.landmark(0, Passage::Head);
        prompt.template(markers::BOS);
    }
    if options.mode == Mode::Thinking && drop_thinking {
        // The publisher counts what is left of the context as if nothing stood behind it.
        let n_left_of_context = kept(&turns[..n_context]).filter(|&keep| keep).count();
        let keep: Vec<bool> = kept(&turns).collect();
        let mut keep = keep.into_iter();
        turns.retain(|_| keep.next().unwrap_or(true));
        n_written = turns.len().saturating_sub(n_left_of_context);
        n_context = turns.len() - n_written;
    }
    let writer = Writer {
        turns: &turns,
        last_user: last_user(&turns),
        thinking: options.mode == Mode::Thinking,
        drop_thinking,
    };
    for index in n_context..n_context + n_written {
        if index == 0 && writer.thinking {
            prompt.template(effort_text(options.effort, options.revision));
        }
        writer.turn(index, &mut prompt)?;
        writer.transition(index, &mut prompt);
    }
    Ok(prompt)
}

fn effort_text(effort: Effort, revision: Revision) -> &'static str {
    match (effort, revision) {
        (Effort::None | Effort::Low, _) | (Effort::High, Revision::Preview) => "",
        (Effort::High, Revision::R0731) | (Effort::Max, Revision::Preview) => EFFORT_ABSOLUTE,
        (Effort::Max, Revision::R0731) => EFFORT_BEYOND,
    }
}

/// One message as the model sees it.
struct Turn<'a> {
    /// Never [`Role::Tool`].
    role: Role,
    /// The message, or the first of those merged into a user turn.
    source: &'a Message,
    /// Its index in the list it came from.
    message: usize,
    /// What a user turn is made of.
    parts: Vec<Part<'a>>,
    task: Option<Task>,
}

#[derive(Clone, Copy)]
struct Part<'a> {
    /// The message's index in the list it came from.
    message: usize,
    content: PartContent<'a>,
}

#[derive(Clone, Copy)]
enum PartContent<'a> {
    Text(&'a str),
    Result(&'a Message),
}

/// Makes user turns of tool messages and of adjacent user messages.
fn merge(messages: &[Message]) -> Vec<Turn<'_>> {
    let mut turns: Vec<Turn> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let open = turns.last_mut().filter(|turn| turn.role == Role::User);
        let (role, content, task) = match message.role {
            Role::Tool => (Role::User, Some(PartContent::Result(message)), None),
            Role::User => {
                let text = PartContent::Text(&message.content);
                (Role::User, Some(text), message.task)
            }
            other => (other, None, message.task),
        };
        let part = content.map(|content| Part {
            message: index,
            content,
        });
        match (open, part) {
            // A turn that carries a task takes results, but no more text.
            (Some(turn), Some(part)) if turn.task.is_none() || message.role == Role::Tool => {
                turn.parts.push(part);
            }
            _ => turns.push(Turn {
                role,
                source: message,
                message: index,
                parts: part.into_iter().collect(),
                task,
            }),
        }
    }
    turns
}

/// Puts the results of each user turn into the order of the calls they belong to.
fn order_results(turns: &mut [Turn]) {
    let mut order: HashMap<&str, usize> = HashMap::new();
    for turn in turns {
        if turn.role == Role::Assistant && !turn.source.tool_calls.is_empty() {
            let calls = turn.source.tool_calls.iter().enumerate();
            order = calls.map(|(i, call)| (call.id.as_str(), i)).collect();
            // A call without an id is not referred to.
            order.remove("");
        }
        let mut results: Vec<(usize, Part)> = Vec::new();
        for part in &turn.parts {
            if let PartContent::Result(message) = part.content {
                let position = order.get(message.tool_call_id.as_str());
                results.push((position.copied().unwrap_or(0), *part));
            }
        }
        results.sort_by_key(|(position, _)| *position);
        let is_result = |part: &&mut Part| matches!(part.content, PartContent::Result(_));
        let slots = turn.parts.iter_mut().filter(is_result);
        for (slot, (_, part)) in slots.zip(results) {
            *slot = part;
        }
    }
}

/// Index of the last user or developer turn.
fn last_user(turns: &[Turn]) -> Option<usize> {
    let is_user = |turn: &Turn| matches!(turn.role, Role::User | Role::Developer);
    turns.iter().rposition(is_user)
}

/// For each turn, whether it stays when old reasoning is dropped: developer turns before the last
/// user turn do not.
fn kept(turns: &[Turn]) -> impl Iterator<Item = bool> {
    let last_user = last_user(turns);
    turns
        .iter()
        .enumerate()
        .map(move |(i, turn)| turn.role != Role::Developer || last_user.is_none_or(|u| i >= u))
}

struct Writer<'a> {
    turns: &'a [Turn<'a>],
    last_user: Option<usize>,
    thinking: bool,
    drop_thinking: bool,
}

impl Writer<'_> {
    fn turn(&self, index: usize, prompt: &mut Prompt) -> Result<(), RenderError> {
        let turn = &self.turns[index];
        let message = turn.source;
        match turn.role {
            Role::System => {
                prompt.landmark(turn.message, Passage::System);
                prompt.client(&message.content);
                write_tools_and_format(message, turn.message, prompt);
            }
            Role::Developer => {
                if message.content.is_empty() {
                    return Err(RenderError::EmptyDeveloper { turn: index });
                }
                prompt.landmark(turn.message, Passage::System);
                prompt.template(markers::USER);
                prompt.client(&message.content);
                write_tools_and_format(message, turn.message, prompt);
            }
            Role::User | Role::Tool => {
                for (i, part) in turn.parts.iter().enumerate() {
                    let passage = match part.content {
                        PartContent::Text(_) => Passage::User,
                        PartContent::Result(_) => Passage::ToolResult,
                    };
                    prompt.landmark(part.message, passage);
                    prompt.template(if i == 0 { markers::USER } else { PART_BREAK });
                    write_part(*part, prompt);
                }
            }
            Role::LatestReminder => {
                prompt.landmark(turn.message, Passage::Reminder);
                prompt.template(markers::LATEST_REMINDER);
                prompt.client(&message.content);
            }
            Role::Assistant => {
                prompt.landmark(turn.message, Passage::Reply);
                let start = prompt.text.len();
                let answers_task = index > 0 && self.turns[index - 1].task.is_some();
                let is_recent = self.last_user.is_none_or(|last| index > last);
                if self.thinking && !answers_task && (!self.drop_thinking || is_recent) {
                    prompt.client(message.reasoning.as_deref().unwrap_or_default());
                    prompt.template(markers::THINK_CLOSE);
                }
                prompt.client(&message.content);
                if !message.tool_calls.is_empty() {
                    prompt.template("\n\n");
                    dsml::write_block(&message.tool_calls, prompt);
                }
                prompt.replies.push(ReplySpan {
                    message: turn.message,
                    range: start..prompt.text.len(),
                });
                if !message.open_ended {
                    prompt.template(markers::EOS);
                }
            }
        }
        Ok(())
    }

    /// Writes what leads from a turn to the model's own.
    fn transition(&self, index: usize, prompt: &mut Prompt) {
        let turn = &self.turns[index];
        let next = self.turns.get(index + 1).map(|next| next.role);
        if next.is_some_and(|role| !matches!(role, Role::Assistant | Role::LatestReminder)) {
            return;
        }
        let think = |thinks| {
            if thinks {
                markers::THINK_OPEN
            } else {
                markers::THINK_CLOSE
            }
        };
        let message = turn.parts.last().map_or(turn.message, |part| part.message);
        if let Some(task) = turn.task {
            prompt.landmark(message, Passage::Opening);
            if task == Task::Action {
                prompt.template(markers::ASSISTANT);
                prompt.template(think(self.thinking));
            }
            prompt.template(task.marker());
        } else if matches!(turn.role, Role::User | Role::Developer) {
            let is_last = self.last_user.is_none_or(|last| index >= last);
            prompt.landmark(message, Passage::Opening);
            prompt.template(markers::ASSISTANT);
            prompt.template(think(self.thinking && (!self.drop_thinking || is_last)));
        }
    }
}

fn write_part(part: Part, prompt: &mut Prompt) {
    match part.content {
        PartContent::Text(text) => prompt.client(text),
        PartContent::Result(message) => {
            let content = match prompt.marker_text {
                MarkerText::Allow => Cow::Borrowed(message.content.as_str()),
                MarkerText::Defuse => message
                    .content
                    .replace(RESULT_CLOSE, RESULT_CLOSE_ESCAPED)
                    .into(),
            };
            prompt.template(RESULT_OPEN);
            prompt.client(&content);
            prompt.template(RESULT_CLOSE);
        }
    }
}

fn write_tools_and_format(message: &Message, index: usize, prompt: &mut Prompt) {
    if !message.tools.is_empty() {
        prompt.landmark(index, Passage::Tools);
        prompt.template("\n\n");
        prompt.template(TOOLS_BEFORE_SCHEMAS);
        for (i, tool) in message.tools.iter().enumerate() {
            if i > 0 {
                prompt.template("\n");
            }
            prompt.client(&json::to_string(tool));
        }
        prompt.template(TOOLS_AFTER_SCHEMAS);
    }
    if let Some(schema) = message
        .response_format
        .as_ref()
        .filter(|v| says_something(v))
    {
        prompt.landmark(index, Passage::ResponseFormat);
        prompt.template("\n\n");
        prompt.template(RESPONSE_FORMAT);
        prompt.client(&json::to_string(schema));
    }
}

/// Whether the publisher's encoder takes a value for one: empty, zero and false it does not.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}
