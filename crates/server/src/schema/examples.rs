//! Short texts that patterns match, for strings that must be ended.

use regex_syntax::hir::{Class, Hir, HirKind};
use serde_json::Value;

/// Patterns of a schema that are looked at.
const MAX_EXAMPLES: usize = 32;
/// Bytes of a text that serves to end a string.
const MAX_EXAMPLE_BYTES: usize = 64;

/// For the patterns of a schema's strings, a short text that each matches, as it stands in JSON
/// between quotes. A pattern that cannot be read, or that matches long texts only, has none.
pub(super) fn of(schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look_into(schema, &mut found);
    found
}

fn look_into(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if found.len() == MAX_EXAMPLES {
                    return;
                }
                match (name.as_str(), member) {
                    ("pattern", Value::String(pattern)) => found.extend(example(pattern)),
                    ("patternProperties", Value::Object(schemas)) => {
                        found.extend(schemas.keys().filter_map(|pattern| example(pattern)));
                        look_into(member, found);
                    }
                    _ => look_into(member, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| look_into(item, found)),
        _ => {}
    }
}

fn example(pattern: &str) -> Option<String> {
    let read = regex_syntax::parse(pattern).ok()?;
    let mut bytes = Vec::new();
    write(&read, &mut bytes)?;
    let text = serde_json::to_string(std::str::from_utf8(&bytes).ok()?).ok()?;
    let inside = &text[1..text.len() - 1];
    (!inside.is_empty()).then(|| inside.to_owned())
}

/// Writes a short match; `None` when it is too long or there is none.
fn write(pattern: &Hir, text: &mut Vec<u8>) -> Option<()> {
    match pattern.kind() {
        HirKind::Empty | HirKind::Look(_) => {}
        HirKind::Literal(literal) => text.extend_from_slice(&literal.0),
        HirKind::Class(class) => match class {
            Class::Unicode(class) => {
                let ranges = class.ranges();
                let has = |c: &char| ranges.iter().any(|r| (r.start()..=r.end()).contains(c));
                let first = ranges.iter().map(|range| range.start());
                let plain = ['a', 'A', '0'].into_iter().find(has);
                let character = plain.or_else(|| first.min_by_key(|c| (c.is_control(), *c)));
                text.extend_from_slice(character?.encode_utf8(&mut [0; 4]).as_bytes());
            }
            Class::Bytes(class) => text.push(class.ranges().first()?.start()),
        },
        HirKind::Repetition(repetition) => {
            for _ in 0..repetition.min {
                write(&repetition.sub, text)?;
                if text.len() > MAX_EXAMPLE_BYTES {
                    break;
                }
            }
        }
        HirKind::Capture(capture) => write(&capture.sub, text)?,
        HirKind::Concat(parts) => {
            for part in parts {
                write(part, text)?;
            }
        }
        HirKind::Alternation(choices) => {
            let shortest = choices.iter().filter_map(|choice| {
                let mut text = Vec::new();
                write(choice, &mut text).map(|()| text)
            });
            text.extend(shortest.min_by_key(Vec::len)?);
        }
    }
    (text.len() <= MAX_EXAMPLE_BYTES).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_a_short_example_that_it_matches() {
        for (pattern, expected) in [
            ("x", Some("x")),
            ("^(abc|de)+-[0-9]{2,4}$", Some("de-00")),
            ("[^\"]\\\\n\\w", Some("a\\\\na")),
            ("qu\"x", Some("qu\\\"x")),
            ("a*", None),
            ("[a-z]{100}", None),
            ("(?:a{50}){50}{50}", None),
            ("(", None),
        ] {
            assert_eq!(example(pattern).as_deref(), expected, "{pattern}");
        }
    }
}
