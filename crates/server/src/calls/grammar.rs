//! The grammar of a block of calls, in the Lark dialect of `llguidance`.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::rules::{ToolRules, ValueRules};
use super::strings::{TextRule, literal};

/// What ends a value.
pub(super) const VALUE_CLOSE: &str = "</｜DSML｜parameter>\n";
const INVOKE_CLOSE: &str = "</｜DSML｜invoke>\n";
/// Parameters of which each may come at any place once; more than these come in their order.
const MAX_FREE_PARAMETERS: usize = 60;
/// Longest name of a parameter that the schema does not list, in characters.
const MAX_OTHER_KEY_CHARS: usize = 128;

/// How JSON is spelt: as in prompts, which is as the model was trained to write it.
pub(crate) fn json_spelling(lenient: bool) -> Value {
    json!({
        "item_separator": ", ",
        "key_separator": ": ",
        "whitespace_flexible": false,
        // A model may escape what need not be.
        "json_allow_general_unicode_escapes": true,
        "coerce_one_of": lenient,
        "lenient": lenient,
    })
}

/// Writes the grammar of a block behind `<｜DSML｜`. Each tool says whether what cannot be enforced
/// is left out.
pub(super) fn write(tools: &[(ToolRules, bool)]) -> String {
    let mut writer = Writer::default();
    let names: Vec<String> = (0..tools.len()).map(|i| format!("tool_{i}")).collect();
    writer.rule(
        "start",
        &[format!(
            "{} call+ {}",
            literal("tool_calls>\n"),
            literal("</｜DSML｜tool_calls>")
        )],
    );
    writer.rule("call", &names);
    // A string is free but for what readers take for a closing tag.
    writer.rule(
        "TEXT",
        &["/(?s:.*)/ & ~/(?s:.*<\\/[|｜]{0,2}DSML[|｜].*)/".to_owned()],
    );
    writer.rule("VALUE", &[format!("TEXT {}", literal(VALUE_CLOSE))]);
    for ((tool, lenient), name) in tools.iter().zip(&names) {
        writer.tool(tool, name, *lenient);
    }
    writer.out
}

#[derive(Default)]
struct Writer {
    out: String,
    n_rules: usize,
    /// Rules by what they say, so that what many parameters say is there once.
    known: HashMap<String, String>,
}

impl Writer {
    /// Writes a rule of alternatives.
    fn rule(&mut self, name: &str, alternatives: &[String]) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "{name}: {}", alternatives.join("\n  | "));
    }

    /// The name of a rule that says this.
    fn named(&mut self, prefix: &str, body: String) -> String {
        if let Some(name) = self.known.get(&body) {
            return name.clone();
        }
        let name = format!("{prefix}{}", self.n_rules);
        self.n_rules += 1;
        self.rule(&name, std::slice::from_ref(&body));
        self.known.insert(body, name.clone());
        name
    }

    fn tool(&mut self, tool: &ToolRules, name: &str, lenient: bool) {
        let open = literal(&format!("<｜DSML｜invoke name=\"{}\">\n", tool.name));
        let close = literal(INVOKE_CLOSE);
        let mut whole = Vec::new();
        if tool.n_required == 0 {
            whole.push(format!("{open} {} {close}", literal("\n")));
        }
        let parameters = format!("{name}_parameters");
        let n_free = tool.parameters.len();
        let mut each: Vec<String> = Vec::new();
        for (i, parameter) in tool.parameters.iter().enumerate() {
            let key = parameter.key.replace('"', "&quot;");
            let tag = |flag: &str| {
                literal(&format!(
                    "<｜DSML｜parameter name=\"{key}\" string=\"{flag}\">"
                ))
            };
            let rule = format!("{name}_{i}");
            let input = tool.input.as_ref().filter(|_| i == 0);
            let values = self.values(&parameter.value, input, lenient, tag);
            self.rule(&rule, &values);
            each.push(rule);
        }
        let others = tool.others.as_ref().map(|value| {
            let rule = format!("{name}_others");
            let keys = self.other_key(tool);
            let tag = |flag: &str| format!("OTHER_{name}_{flag}").to_uppercase();
            for flag in ["true", "false"] {
                let before = literal("<｜DSML｜parameter name=\"");
                let behind = literal(&format!("\" string=\"{flag}\">"));
                self.rule(&tag(flag), &[format!("{before} {keys} {behind}")]);
            }
            let values = self.values(value, None, lenient, tag);
            self.rule(&rule, &values);
            rule
        });
        if n_free == 0 && others.is_none() {
            whole.push(format!("{open} {close}"));
            return self.rule(name, &whole);
        }
        if n_free == 0 || n_free > MAX_FREE_PARAMETERS {
            // In their order, with the others behind them.
            let listed = each
                .iter()
                .enumerate()
                .map(|(i, rule)| match i < tool.n_required {
                    true => rule.clone(),
                    false => format!("{rule}?"),
                });
            let mut all: Vec<String> = listed.collect();
            all.extend(others.map(|rule| format!("{rule}*")));
            whole.push(format!("{open} {} {close}", all.join(" ")));
            return self.rule(name, &whole);
        }
        let complete = match tool.n_required {
            0 => String::new(),
            n => format!(" %if is_ones([0:{n}])"),
        };
        let mut next = vec![format!("\"\"{complete}")];
        for (i, rule) in each.iter().enumerate() {
            next.push(format!(
                "{rule} {parameters}::set_bit({i}) %if bit_clear({i})"
            ));
        }
        // Others come when nothing required is missing, which their names might be mistaken for.
        next.extend(others.map(|rule| format!("{rule} {parameters}::_{complete}")));
        self.rule(&format!("{parameters}::_"), &next);
        whole.push(format!("{open} {parameters}::0x0 {close}"));
        self.rule(name, &whole);
    }

    /// A terminal for names that the schema does not list.
    fn other_key(&mut self, tool: &ToolRules) -> String {
        let any = format!("/[^\"<>&\\x00-\\x1f｜]{{1,{MAX_OTHER_KEY_CHARS}}}/");
        let listed = tool.parameters.iter();
        let listed: Vec<String> = listed.map(|parameter| literal(&parameter.key)).collect();
        let body = match listed.is_empty() {
            true => any,
            false => format!("{any} & ~({})", listed.join(" | ")),
        };
        self.named("KEY_", body)
    }

    /// The alternatives of a value: its tag, itself, and the closing tag.
    fn values(
        &mut self,
        value: &ValueRules,
        input: Option<&String>,
        lenient: bool,
        tag: impl Fn(&str) -> String,
    ) -> Vec<String> {
        let close = literal(VALUE_CLOSE);
        if let Some(regex) = input {
            let regex = llguidance::regex_to_lark(regex, "");
            let rule = self.named("INPUT_", format!("(TEXT & /(?:{regex})/) {close}"));
            return vec![format!("{} {rule}", tag("true"))];
        }
        let mut all = Vec::new();
        for rule in &value.texts {
            let terminal = self.text(rule, &close);
            all.push(format!("{} {terminal}", tag("true")));
        }
        if let Some(schema) = &value.json {
            let mut schema = schema.clone();
            if let Value::Object(members) = &mut schema {
                members.insert("x-guidance".to_owned(), json_spelling(lenient));
            }
            let rule = self.named("json_", format!("%json {schema}"));
            all.push(format!("{} {rule} {close}", tag("false")));
        }
        all.dedup();
        all
    }

    fn text(&mut self, rule: &TextRule, close: &str) -> String {
        match rule.terminal("TEXT", close) {
            Some(body) => self.named("STRING_", body),
            None => "VALUE".to_owned(),
        }
    }
}
