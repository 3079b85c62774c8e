//! What is said to which prompt.
//!
//! The last request that the play knows decides, with the tool results that stand behind it. Tools
//! are those of the prompt; a parameter is filled by what its name says.

use ds4_text::markers;
use serde_json::{Map, Value};

const RESULT_OPEN: &str = "<tool_result>";
const RESULT_CLOSE: &str = "</tool_result>";
const SECRET: &str = "The secret word is ";
/// The time limit of a command, in milliseconds, where its tool takes one.
const TIME_LIMIT_MS: u64 = 20_000;

/// A request that the play knows.
enum Task<'a> {
    Hello,
    Read { path: &'a str },
    Look { path: &'a str },
    Load { tool: &'a str },
    Count { of: &'a str, into: &'a str },
}

/// A tool as the prompt declares it.
struct Tool {
    name: String,
    parameters: Map<String, Value>,
    required: Vec<String>,
}

/// What a call should say; a tool takes what it has parameters for.
#[derive(Clone, Copy, Default)]
struct Wish<'a> {
    path: &'a str,
    content: &'a str,
    command: &'a str,
    query: &'a str,
}

/// The reply to a prompt.
pub(crate) fn reply(prompt: &str) -> String {
    let tools = tools(prompt);
    let said = match last_task(prompt) {
        None => "I do not know this request.".to_owned(),
        Some((_, Task::Hello)) => "Hello! 👋".to_owned(),
        // Titles and summaries are asked for without tools.
        Some(_) if tools.is_empty() => "A file and what stands in it".to_owned(),
        Some((behind, Task::Read { path })) => read(path, &results(behind), &tools),
        Some((behind, Task::Look { path })) => look(path, &results(behind), &tools),
        Some((behind, Task::Load { tool })) => load(tool, &results(behind), &tools),
        Some((behind, Task::Count { of, into })) => count(of, into, &results(behind), &tools),
    };
    if prompt.ends_with(markers::THINK_OPEN) {
        let thought = "The request is plain — “do as told” 🤔.\n\nSo be it.";
        format!("{thought}{}{said}", markers::THINK_CLOSE)
    } else {
        said
    }
}

fn read(path: &str, results: &[&str], tools: &[Tool]) -> String {
    let Some(result) = results.last() else {
        let wish = Wish {
            path,
            command: &format!("cat '{path}'"),
            ..Wish::default()
        };
        return calls("I read the file.", &[(tool(tools, &READERS), wish)]);
    };
    match result.split_once(SECRET) {
        Some((_, word)) => {
            let word = word.split_whitespace().next().unwrap_or_default();
            format!("The word is {word}.")
        }
        None => "The file holds no secret word.".to_owned(),
    }
}

fn look(path: &str, results: &[&str], tools: &[Tool]) -> String {
    if results.is_empty() {
        let wish = Wish {
            path,
            ..Wish::default()
        };
        return calls("", &[(tool(tools, &VIEWERS), wish)]);
    }
    "I have seen what I can see of it.".to_owned()
}

fn load(name: &str, results: &[&str], tools: &[Tool]) -> String {
    let wish = Wish {
        query: &format!("select:{name}"),
        ..Wish::default()
    };
    match results {
        [] => calls("", &[(tool(tools, &SEARCHES), wish)]),
        [_] => calls("", &[(tool(tools, &[name]), Wish::default())]),
        [_, _, ..] => format!("I have called {name}."),
    }
}

fn count(of: &str, into: &str, results: &[&str], tools: &[Tool]) -> String {
    let shell = tool(tools, &SHELLS);
    let number = |text: &&str| {
        let lines = text.lines().rev();
        lines
            .map(str::trim)
            .find_map(|line| line.parse::<u32>().ok())
    };
    match results {
        [] => {
            let look = Wish {
                path: of,
                command: &format!("cat '{of}'"),
                ..Wish::default()
            };
            let count = Wish {
                command: &format!("wc -l < '{of}'"),
                ..Wish::default()
            };
            let reader = tool(tools, &READERS);
            calls("", &[(reader, look), (shell, count)])
        }
        [_] => "One of two results is missing.".to_owned(),
        [_, counted] => match number(counted) {
            None => "The lines could not be counted.".to_owned(),
            Some(n) => {
                let wish = Wish {
                    path: into,
                    content: &n.to_string(),
                    command: &format!("printf %s {n} > '{into}'"),
                    ..Wish::default()
                };
                let say = format!("There are {n} lines.");
                calls(&say, &[(tool(tools, &WRITERS), wish)])
            }
        },
        [_, _, ..] => "DONE".to_owned(),
    }
}

/// Names of tools that read a file, the preferred first; a shell does too.
const READERS: [&str; 5] = ["Read", "read", "exec_command", "shell", "bash"];
/// Names of tools that show an image.
const VIEWERS: [&str; 3] = ["view_image", "Read", "read"];
/// Names of tools that find other tools.
const SEARCHES: [&str; 1] = ["ToolSearch"];
/// Names of tools that write a file.
const WRITERS: [&str; 5] = ["Write", "write", "exec_command", "shell", "bash"];
/// Names of tools that run a command.
const SHELLS: [&str; 4] = ["Bash", "bash", "exec_command", "shell"];

fn tool<'a>(tools: &'a [Tool], names: &[&str]) -> Option<&'a Tool> {
    names
        .iter()
        .find_map(|name| tools.iter().find(|tool| tool.name == *name))
}

/// Text and a block of calls, or a complaint when a tool is missing.
fn calls(text: &str, wishes: &[(Option<&Tool>, Wish)]) -> String {
    let dsml = markers::DSML;
    let mut out = format!("{text}\n\n<{dsml}tool_calls>\n");
    for (tool, wish) in wishes {
        let Some(tool) = tool else {
            return "No tool here does that.".to_owned();
        };
        out += &format!("<{dsml}invoke name=\"{}\">\n", tool.name);
        // Not in the order of the schema: clients that sort are found out.
        for (name, schema) in tool.parameters.iter().rev() {
            let Some(value) = argument(name, schema, tool.required.contains(name), wish) else {
                continue;
            };
            let (is_string, value) = match value {
                Value::String(text) => (true, text),
                other => (false, other.to_string()),
            };
            out += &format!(
                "<{dsml}parameter name=\"{name}\" string=\"{is_string}\">{value}</{dsml}parameter>\n"
            );
        }
        out += &format!("</{dsml}invoke>\n");
    }
    out + &format!("</{dsml}tool_calls>")
}

fn argument(name: &str, schema: &Value, required: bool, wish: &Wish) -> Option<Value> {
    let wanted = |text: &str| (!text.is_empty()).then(|| Value::from(text));
    match name {
        "file_path" | "filePath" | "path" => wanted(wish.path),
        "content" => wanted(wish.content),
        "query" => wanted(wish.query),
        "command" | "cmd" if schema["type"] == "array" => {
            Some(Value::from(vec!["bash", "-c", wish.command]))
        }
        "command" | "cmd" => wanted(wish.command),
        "timeout" if schema["type"] == "number" => Some(Value::from(TIME_LIMIT_MS)),
        _ if required && matches!(schema["type"].as_str(), Some("number" | "integer")) => {
            Some(Value::from(5))
        }
        _ if required => Some(Value::from("what was asked — “for” you")),
        _ => None,
    }
}

/// The tools of a prompt, also those that were found on the way: each stands on a line of its own.
fn tools(prompt: &str) -> Vec<Tool> {
    let function = |line: &str| -> Option<Tool> {
        let function: Value = serde_json::from_str(line).ok()?;
        let schema = function.get("parameters")?;
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        Some(Tool {
            name: function["name"].as_str()?.to_owned(),
            parameters: schema["properties"].as_object()?.clone(),
            required: required
                .iter()
                .filter_map(|name| Some(name.as_str()?.to_owned()))
                .collect(),
        })
    };
    prompt
        .lines()
        .filter(|line| line.starts_with('{'))
        .filter_map(|line| function(line.split(RESULT_CLOSE).next()?))
        .collect()
}

/// The last request of a prompt that the play knows, with the text behind it.
fn last_task(prompt: &str) -> Option<(&str, Task<'_>)> {
    const HELLO: &str = "Reply with one short sentence";
    const READ: &str = "Read the file ";
    const LOOK: &str = "Look at the image ";
    const LOAD: &str = "Load the tool ";
    const CREATE: &str = "Create the file ";
    const LINES: &str = "number of lines in ";
    let last = [HELLO, READ, LOOK, LOAD, CREATE]
        .into_iter()
        .filter_map(|words| Some((prompt.rfind(words)?, words)))
        .max()?;
    let (at, words) = last;
    let behind = &prompt[at + words.len()..];
    let task = match words {
        HELLO => Task::Hello,
        READ => Task::Read {
            path: path(behind)?,
        },
        LOOK => Task::Look {
            path: path(behind)?,
        },
        LOAD => Task::Load {
            tool: path(behind)?,
        },
        _ => Task::Count {
            into: path(behind)?,
            of: path(behind.split_once(LINES)?.1)?,
        },
    };
    Some((behind, task))
}

/// The path or name at the beginning of a text, without the mark that ends the sentence.
fn path(text: &str) -> Option<&str> {
    let word = text.split([' ', '\n', '"', '<']).next()?;
    Some(word.trim_end_matches(['.', ',']))
}

/// Tool results, in order.
fn results(text: &str) -> Vec<&str> {
    text.split(RESULT_OPEN)
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(RESULT_CLOSE)?.0))
        .collect()
}
