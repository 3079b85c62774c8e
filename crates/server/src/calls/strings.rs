//! Strings as schemas describe them, and as they stand between tags: without quotes and escapes.

use serde_json::Value;

use super::closing::Closing;
use super::rules::{MAX_NESTING, deref};

/// Alternatives of a string beyond which any string is taken.
const MAX_ALTERNATIVES: usize = 64;

/// What one string may be: all of it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TextRule {
    /// The strings that it may be, when they are listed.
    choices: Option<Vec<String>>,
    /// Regular expressions that the whole of it follows, in the dialect of the grammar.
    patterns: Vec<String>,
    min_chars: u64,
    max_chars: Option<u64>,
}

impl TextRule {
    /// The rules of which a string must follow one; none when it may be no string.
    pub(super) fn of(schema: &Value, root: &Value) -> Vec<TextRule> {
        let mut rules = texts(schema, root, MAX_NESTING);
        if rules.len() > MAX_ALTERNATIVES {
            rules = vec![TextRule::default()];
        }
        rules
    }

    /// A terminal of the grammar for such a string and the tag that closes it; `None` for any
    /// string.
    pub(super) fn terminal(&self, text: &str, close: &str) -> Option<String> {
        if let Some(choices) = &self.choices {
            let choices = choices.iter().filter(|text| Closing::admits(text));
            let choices: Vec<String> = choices.map(|text| literal(text)).collect();
            if choices.is_empty() {
                return None;
            }
            return Some(format!("({}) {close}", choices.join(" | ")));
        }
        let mut parts = vec![text.to_owned()];
        parts.extend(self.patterns.iter().map(|pattern| format!("/{pattern}/")));
        if self.min_chars > 0 || self.max_chars.is_some() {
            let max = self.max_chars.map(|n| n.to_string()).unwrap_or_default();
            parts.push(format!("/(?s:.{{{},{max}}})/", self.min_chars));
        }
        (parts.len() > 1).then(|| format!("({}) {close}", parts.join(" & ")))
    }

    fn and(&self, other: &TextRule) -> TextRule {
        let choices = match (&self.choices, &other.choices) {
            (Some(a), Some(b)) => Some(a.iter().filter(|text| b.contains(text)).cloned().collect()),
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        TextRule {
            choices,
            patterns: self
                .patterns
                .iter()
                .chain(&other.patterns)
                .cloned()
                .collect(),
            min_chars: self.min_chars.max(other.min_chars),
            max_chars: match (self.max_chars, other.max_chars) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        }
    }
}

/// A text as a literal of the grammar.
pub(super) fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

fn texts(schema: &Value, root: &Value, nesting: usize) -> Vec<TextRule> {
    let free = || vec![TextRule::default()];
    let Value::Object(members) = schema else {
        return match schema {
            Value::Bool(false) => Vec::new(),
            _ => free(),
        };
    };
    if nesting == 0 {
        return free();
    }
    let is_string = match members.get("type") {
        Some(Value::String(name)) => name == "string",
        Some(Value::Array(names)) if !names.is_empty() => names.iter().any(|name| name == "string"),
        _ => true,
    };
    if !is_string {
        return Vec::new();
    }
    let listed = match (members.get("enum"), members.get("const")) {
        (Some(Value::Array(values)), _) => Some(values.as_slice()),
        (_, Some(value)) => Some(std::slice::from_ref(value)),
        _ => None,
    };
    let mut own = TextRule::default();
    if let Some(listed) = listed {
        let strings = listed.iter().filter_map(Value::as_str).map(str::to_owned);
        let strings: Vec<String> = strings.collect();
        if strings.is_empty() {
            return Vec::new();
        }
        own.choices = Some(strings);
    }
    let word = |name: &str| members.get(name).and_then(Value::as_str);
    own.patterns.extend(word("pattern").map(whole_pattern));
    own.patterns
        .extend(word("format").and_then(format_pattern).map(str::to_owned));
    let count = |name: &str| members.get(name).and_then(Value::as_f64);
    own.min_chars = count("minLength").map_or(0, |n| n.max(0.0) as u64);
    own.max_chars = count("maxLength").map(|n| n.max(0.0) as u64);

    let mut rules = vec![own];
    let combine = |rules: &mut Vec<TextRule>, more: Vec<TextRule>| {
        let all = rules
            .iter()
            .flat_map(|a| more.iter().map(move |b| a.and(b)));
        *rules = all.take(MAX_ALTERNATIVES + 1).collect();
    };
    if let Some(target) = deref(schema, root) {
        combine(&mut rules, texts(target, root, nesting - 1));
    }
    for name in ["anyOf", "oneOf"] {
        if let Some(Value::Array(schemas)) = members.get(name) {
            let each = schemas
                .iter()
                .flat_map(|schema| texts(schema, root, nesting - 1));
            combine(&mut rules, each.collect());
        }
    }
    if let Some(Value::Array(schemas)) = members.get("allOf") {
        for schema in schemas {
            combine(&mut rules, texts(schema, root, nesting - 1));
        }
    }
    rules
}

/// A schema's pattern, which is looked for anywhere, as one that the whole text follows.
fn whole_pattern(pattern: &str) -> String {
    let alternatives = alternatives(pattern).into_iter().map(|one| {
        let (before, rest) = match one.strip_prefix('^') {
            Some(rest) => ("", rest),
            None => ("(?s:.*)", one),
        };
        let (rest, behind) = match rest.strip_suffix('$') {
            Some(rest) if !ends_escaped(rest) => (rest, ""),
            _ => (rest, "(?s:.*)"),
        };
        format!("{before}(?:{rest}){behind}")
    });
    let alternatives: Vec<String> = alternatives.collect();
    // Classes are those of ECMA-262, and a slash ends no pattern.
    llguidance::regex_to_lark(&alternatives.join("|"), "dw")
}

/// Whether a backslash at the end of a text escapes what follows.
fn ends_escaped(text: &str) -> bool {
    let n = text.len() - text.trim_end_matches('\\').len();
    n % 2 == 1
}

/// The parts between the bars outside of groups and classes.
fn alternatives(pattern: &str) -> Vec<&str> {
    let (mut depth, mut in_class, mut escaped, mut from) = (0usize, false, false, 0);
    let mut parts = Vec::new();
    for (at, c) in pattern.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ']' => in_class = false,
            _ if in_class => {}
            '[' => in_class = true,
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => {
                parts.push(&pattern[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&pattern[from..]);
    parts
}

/// Formats of JSON Schema that say what every character is.
fn format_pattern(name: &str) -> Option<&'static str> {
    const DATE: &str = "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))";
    const TIME: &str = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
    const DATE_TIME: &str = "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
    const BYTE: &str = "(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
    const DURATION: &str = "P(?:[0-9]+W|(?:[0-9]+D|[0-9]+M(?:[0-9]+D)?|[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?)(?:T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))?|T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))";
    const IPV6: &str = "(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|(?:[0-9a-fA-F]{1,4}:){1,7}:|(?:[0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4}|(?:[0-9a-fA-F]{1,4}:){1,5}(?::[0-9a-fA-F]{1,4}){1,2}|(?:[0-9a-fA-F]{1,4}:){1,4}(?::[0-9a-fA-F]{1,4}){1,3}|(?:[0-9a-fA-F]{1,4}:){1,3}(?::[0-9a-fA-F]{1,4}){1,4}|(?:[0-9a-fA-F]{1,4}:){1,2}(?::[0-9a-fA-F]{1,4}){1,5}|[0-9a-fA-F]{1,4}:(?::[0-9a-fA-F]{1,4}){1,6}|:(?::[0-9a-fA-F]{1,4}){1,7}|::";
    // A slash would end the pattern.
    const URI: &str = "[A-Za-z][A-Za-z0-9+.-]*:(?:\\/\\/[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:\\/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*|(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)(?:\\?(?:[A-Za-z0-9._~!$&'()*+,;=:@\\/?-]|%[0-9A-Fa-f]{2})*)?(?:#(?:[A-Za-z0-9._~!$&'()*+,;=:@\\/?-]|%[0-9A-Fa-f]{2})*)?";
    Some(match name {
        "duration" => DURATION,
        "ipv6" => IPV6,
        "uri" => URI,
        "date" => DATE,
        "time" => TIME,
        "date-time" => DATE_TIME,
        "uuid" => "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",
        "ipv4" => BYTE,
        "email" => {
            "[A-Za-z0-9_+-]+(?:\\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)+"
        }
        "hostname" => {
            "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pattern_is_looked_for_where_its_anchors_let_it() {
        for (pattern, expected) in [
            ("^a$", "(?:a)"),
            ("a", "(?s:.*)(?:a)(?s:.*)"),
            ("^a|b$", "(?:a)(?s:.*)|(?s:.*)(?:b)"),
            ("^[|]\\|(x|y)\\$", "(?:[|]\\|(x|y)\\$)(?s:.*)"),
            ("^a\\\\$", "(?:a\\\\)"),
            ("^/\\d+$", "(?:\\/[0-9]+)"),
        ] {
            assert_eq!(whole_pattern(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn a_string_is_told_through_references_and_alternatives() {
        let root = json!({"$defs": {"c": {"enum": ["a", "b", 3]}, "n": {"type": "integer"}}});
        let choices = |schema: Value| {
            let rules = TextRule::of(&schema, &root);
            rules
                .into_iter()
                .map(|rule| rule.choices)
                .collect::<Vec<_>>()
        };
        let ab = Some(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(
            choices(json!({"$ref": "#/$defs/c"})),
            std::slice::from_ref(&ab)
        );
        assert_eq!(choices(json!({"$ref": "#/$defs/n"})), []);
        assert_eq!(
            choices(json!({"anyOf": [{"$ref": "#/$defs/c"}, {"type": "null"}]})),
            [ab]
        );
        assert_eq!(
            choices(json!({"allOf": [{"$ref": "#/$defs/c"}, {"enum": ["b", "z"]}]})),
            [Some(vec!["b".to_owned()])]
        );
        assert_eq!(choices(json!({})), [None]);
        assert_eq!(choices(json!({"const": 3})), []);
        assert_eq!(choices(json!({"type": ["null", "string"]})), [None]);
    }
}
