//! How a client declared a tool, and the item in which it wants a call of it back.
//!
//! The model knows functions with JSON arguments and nothing else. Custom tools become a function
//! with one string `input`; namespaces become a part of the name; the tools that clients run
//! themselves (shells, patches) become functions with documented parameters. What is here turns
//! calls of them back, and the calls of a history forth.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::api::tools::INPUT;

/// The name in the prompt of tool `name` of namespace `namespace`.
pub fn flat_name(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        None | Some("") => name.to_owned(),
        // A namespace that brings its own separator is joined as it is.
        Some(space) if space.ends_with(['_', '.', ':', '/', '-']) => format!("{space}{name}"),
        Some(space) => format!("{space}__{name}"),
    }
}

/// How a client declared one tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A function.
    Function {
        /// The namespace it was declared in.
        namespace: Option<String>,
        /// Its name there.
        name: String,
    },
    /// A tool that takes raw text.
    Custom {
        /// The namespace it was declared in.
        namespace: Option<String>,
        /// Its name there.
        name: String,
    },
    /// `local_shell`.
    LocalShell,
    /// `shell`.
    Shell,
    /// `apply_patch`.
    ApplyPatch,
}

impl Origin {
    /// What the ids of its items begin with.
    pub(super) fn item_prefix(&self) -> &'static str {
        match self {
            Origin::Function { .. } => "fc",
            Origin::Custom { .. } => "ctc",
            Origin::LocalShell => "lsh",
            Origin::Shell => "sh",
            Origin::ApplyPatch => "apc",
        }
    }

    /// Whether its item takes arguments while they are written, or has no shape before they are
    /// complete.
    pub(super) fn streams(&self) -> bool {
        matches!(self, Origin::Function { .. } | Origin::Custom { .. })
    }

    pub(super) fn is_custom(&self) -> bool {
        matches!(self, Origin::Custom { .. })
    }

    /// The name that the client gave it; `flat` is the one in the prompt.
    pub(super) fn client_name<'a>(&'a self, flat: &'a str) -> &'a str {
        match self {
            Origin::Function { name, .. } | Origin::Custom { name, .. } => name,
            Origin::LocalShell | Origin::Shell | Origin::ApplyPatch => flat,
        }
    }

    fn namespace(&self) -> Option<&str> {
        match self {
            Origin::Function { namespace, .. } | Origin::Custom { namespace, .. } => {
                namespace.as_deref()
            }
            Origin::LocalShell | Origin::Shell | Origin::ApplyPatch => None,
        }
    }

    /// The item of a call with these arguments. JSON text that is not complete yet stands in a
    /// function call as it is.
    pub(super) fn item(
        &self,
        id: &str,
        call_id: &str,
        flat: &str,
        arguments: &str,
        status: &str,
    ) -> Value {
        let mut item = Map::new();
        let mut put = |name: &str, value: Value| {
            item.insert(name.to_owned(), value);
        };
        put("id", id.into());
        let kind = match self {
            Origin::Function { .. } => "function_call",
            Origin::Custom { .. } => "custom_tool_call",
            Origin::LocalShell => "local_shell_call",
            Origin::Shell => "shell_call",
            Origin::ApplyPatch => "apply_patch_call",
        };
        put("type", kind.into());
        put("call_id", call_id.into());
        match self {
            Origin::Function { .. } | Origin::Custom { .. } => {
                put("name", self.client_name(flat).into());
                if let Some(namespace) = self.namespace() {
                    put("namespace", namespace.into());
                }
                match self.is_custom() {
                    true => put(INPUT, raw_input(arguments).into()),
                    false => put("arguments", arguments.into()),
                }
            }
            Origin::LocalShell => put("action", local_shell_action(&object(arguments))),
            Origin::Shell => put("action", shell_action(&object(arguments))),
            Origin::ApplyPatch => put("operation", object(arguments).into()),
        }
        put("status", status.into());
        item.into()
    }
}

/// The declared tools by their name in the prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(HashMap<String, Origin>);

impl FromIterator<(String, Origin)> for Origins {
    fn from_iter<I: IntoIterator<Item = (String, Origin)>>(tools: I) -> Origins {
        Origins(tools.into_iter().collect())
    }
}

impl Origins {
    /// How the tool that the model calls `name` was declared.
    ///
    /// A model that leaves out the namespace means the only tool of that name, if there is only
    /// one. A tool that was not declared is a function of its own name.
    pub fn of(&self, name: &str) -> Origin {
        if let Some(origin) = self.0.get(name) {
            return origin.clone();
        }
        let mut of_this_name = self.0.values().filter(|origin| match origin {
            Origin::Function { name: n, .. } | Origin::Custom { name: n, .. } => n == name,
            Origin::LocalShell | Origin::Shell | Origin::ApplyPatch => false,
        });
        match (of_this_name.next(), of_this_name.next()) {
            (Some(origin), None) => origin.clone(),
            _ => Origin::Function {
                namespace: None,
                name: name.to_owned(),
            },
        }
    }
}

fn object(arguments: &str) -> Map<String, Value> {
    match ds4_text::json::parse(arguments) {
        Ok(Value::Object(members)) => members,
        _ => Map::new(),
    }
}

/// A list of strings; a lone string counts as a list of itself.
fn strings(value: Option<&Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(items)) => items.iter().filter(|i| i.is_string()).cloned().collect(),
        Some(Value::String(text)) => vec![text.as_str().into()],
        _ => Vec::new(),
    }
}

fn local_shell_action(arguments: &Map<String, Value>) -> Value {
    let command = match arguments.get("command") {
        // A whole line is for a shell to take apart.
        Some(Value::String(line)) => vec!["bash".into(), "-lc".into(), line.as_str().into()],
        list => strings(list),
    };
    let env = match arguments.get("env") {
        Some(Value::Object(env)) => env.clone(),
        _ => Map::new(),
    };
    let mut action = json!({"type": "exec", "command": command, "env": env});
    for name in ["timeout_ms", "user", "working_directory"] {
        if let Some(value) = arguments.get(name) {
            action[name] = value.clone();
        }
    }
    action
}

fn shell_action(arguments: &Map<String, Value>) -> Value {
    let mut action = json!({"commands": strings(arguments.get("commands"))});
    for name in ["timeout_ms", "max_output_length"] {
        if let Some(value) = arguments.get(name) {
            action[name] = value.clone();
        }
    }
    action
}

/// The arguments that became this action or operation, as far as it tells.
pub(super) fn arguments_of(action: &Value) -> String {
    let Value::Object(members) = action else {
        return "{}".to_owned();
    };
    let mut members = members.clone();
    if members.get("type").is_some_and(|kind| kind == "exec") {
        members.shift_remove("type");
    }
    if members
        .get("env")
        .and_then(Value::as_object)
        .is_some_and(Map::is_empty)
    {
        members.shift_remove("env");
    }
    members.retain(|_, value| !value.is_null());
    ds4_text::json::to_string(&members.into())
}

/// The function object of a client-run tool, as OpenAI documents its calls.
pub(super) fn native_function(origin: &Origin) -> Option<Value> {
    let function = match origin {
        Origin::LocalShell => json!({
            "name": "local_shell",
            "description": "Runs a command on the user's machine and returns its output.",
            "parameters": {
                "type": "object",
                "properties": {
                    "command": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "The program and its arguments.",
                    },
                    "working_directory": {"type": "string"},
                    "timeout_ms": {"type": "integer"},
                    "env": {"type": "object", "additionalProperties": {"type": "string"}},
                    "user": {"type": "string"},
                },
                "required": ["command"],
            },
        }),
        Origin::Shell => json!({
            "name": "shell",
            "description": "Runs shell commands on the user's machine and returns their output.",
            "parameters": {
                "type": "object",
                "properties": {
                    "commands": {
                        "type": "array",
                        "items": {"type": "string"},
                        "description": "Command lines, run one after another.",
                    },
                    "timeout_ms": {"type": "integer"},
                    "max_output_length": {"type": "integer"},
                },
                "required": ["commands"],
            },
        }),
        Origin::ApplyPatch => json!({
            "name": "apply_patch",
            "description": "Creates, changes or deletes one file.",
            "parameters": {
                "type": "object",
                "properties": {
                    "type": {
                        "type": "string",
                        "enum": ["create_file", "update_file", "delete_file"],
                    },
                    "path": {"type": "string"},
                    "diff": {
                        "type": "string",
                        "description": "What to change, as a V4A diff; absent for delete_file.",
                    },
                },
                "required": ["type", "path"],
            },
        }),
        Origin::Function { .. } | Origin::Custom { .. } => return None,
    };
    Some(function)
}

/// The raw input in a custom tool's complete or cut arguments.
pub(crate) fn raw_input(arguments: &str) -> String {
    let mut input = InputText::default();
    input.push(arguments);
    input.finish(arguments);
    input.text
}

/// Reads the raw input of a custom tool out of its arguments while they are written.
///
/// As long as the arguments are `{"input": "…` the text is given at once; arguments of any other
/// shape are read when they are complete.
#[derive(Clone, Debug, Default)]
pub(super) struct InputText {
    state: InputState,
    /// JSON text that is not decoded yet.
    raw: String,
    text: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum InputState {
    /// Before the value's quote.
    #[default]
    Before,
    Inside,
    Behind,
}

impl InputText {
    /// Everything read so far.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Takes more of the arguments and gives what is new of the input.
    pub(super) fn push(&mut self, arguments: &str) -> String {
        let n_before = self.text.len();
        self.raw.push_str(arguments);
        if self.state == InputState::Before
            && let Some(begin) = value_begin(&self.raw)
        {
            self.raw.drain(..begin);
            self.state = InputState::Inside;
        }
        if self.state == InputState::Inside {
            self.decode();
        }
        self.text[n_before..].to_owned()
    }

    /// Gives what of the input can only be read in the complete `arguments`.
    pub(super) fn finish(&mut self, arguments: &str) -> String {
        if self.state != InputState::Before {
            return String::new();
        }
        self.text = match ds4_text::json::parse(arguments) {
            Ok(Value::Object(members)) => match (members.get(INPUT), members.len()) {
                (Some(Value::String(text)), _) => text.clone(),
                (None, 1) => match members.values().next() {
                    Some(Value::String(text)) => text.clone(),
                    _ => arguments.to_owned(),
                },
                (None, 0) => String::new(),
                _ => arguments.to_owned(),
            },
            _ => arguments.to_owned(),
        };
        self.state = InputState::Behind;
        self.text.clone()
    }

    fn decode(&mut self) {
        let mut at = 0;
        while let Some(c) = self.raw[at..].chars().next() {
            match c {
                '"' => {
                    self.state = InputState::Behind;
                    break;
                }
                '\\' => match unescape(&self.raw[at..]) {
                    Some((c, n_bytes)) => {
                        self.text.push(c);
                        at += n_bytes;
                    }
                    // The rest of the escape is still to come.
                    None => break,
                },
                c => {
                    self.text.push(c);
                    at += c.len_utf8();
                }
            }
        }
        self.raw.drain(..at);
    }
}

/// Where the string behind `{"input":` begins, once that much is there.
fn value_begin(raw: &str) -> Option<usize> {
    let mut rest = raw;
    for token in ["{", "\"input\"", ":", "\""] {
        rest = rest.trim_start().strip_prefix(token)?;
    }
    Some(raw.len() - rest.len())
}

/// The character of the JSON escape at the beginning of `raw` and the bytes it takes, or `None`
/// while it is not complete.
fn unescape(raw: &str) -> Option<(char, usize)> {
    let unit = |at: usize| -> Option<u32> {
        let digits = raw.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let c = match raw.as_bytes().get(1)? {
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'u' => {
            if raw.len() < 6 {
                return None;
            }
            let high = unit(0).unwrap_or(0xfffd);
            if (0xd800..0xdc00).contains(&high)
                && b"\\u".starts_with(&raw.as_bytes()[6..raw.len().min(8)])
            {
                if raw.len() < 12 {
                    return None;
                }
                if let Some(low @ 0xdc00..0xe000) = unit(6) {
                    let c = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                    return Some((char::from_u32(c)?, 12));
                }
            }
            return Some((char::from_u32(high).unwrap_or('\u{fffd}'), 6));
        }
        _ => {
            // The escapes of a character by itself: quote, backslash and slash.
            let c = raw[1..].chars().next()?;
            return Some((c, 1 + c.len_utf8()));
        }
    };
    Some((c, 2))
}
