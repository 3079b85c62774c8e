//! What JSON takes in memory, which is up to 80 times its text.

use serde_json::Value;

/// A value in the array or map that holds it, with the room that growing leaves free.
const VALUE_BYTES: usize = 160;
/// The name of a member, beside its text.
const NAME_BYTES: usize = 96;
/// What the system adds to a text of its own.
const TEXT_BYTES: usize = 32;
/// Levels behind which reading a text ends with an error.
const MAX_DEPTH: usize = 128;

/// Bytes that a value takes, about.
pub fn of(value: &Value) -> usize {
    VALUE_BYTES
        + match value {
            Value::Null | Value::Bool(_) => 0,
            Value::Number(_) => TEXT_BYTES,
            Value::String(text) => TEXT_BYTES + text.len(),
            Value::Array(items) => items.iter().map(of).sum(),
            Value::Object(members) => {
                let members = members.iter();
                members
                    .map(|(name, value)| NAME_BYTES + name.len() + of(value))
                    .sum()
            }
        }
}

/// Bytes that a text takes which several hold.
pub fn of_shared_text(text: &str) -> usize {
    TEXT_BYTES + text.len()
}

/// Bytes that the values of a JSON text will take beside the text itself, about: not less than
/// [`of`] says of them. Of a text that is not JSON, any number.
pub fn of_text(text: &[u8]) -> usize {
    let (mut n_values, mut n_names) = (1usize, 0usize);
    let mut in_string = false;
    let mut depth = 0usize;
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                bytes.next();
            }
            _ if in_string => {}
            // An array or object has one value more than commas, if any.
            b',' => n_values += 1,
            b'[' | b'{' => {
                n_values += 1;
                depth += 1;
                if depth > MAX_DEPTH {
                    break;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b':' => n_names += 1,
            _ => {}
        }
    }
    n_values * (VALUE_BYTES + TEXT_BYTES) + n_names * NAME_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            "[ -~\"\\\\\\[\\{,:é]{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::vec(("[a-z\"\\\\,:]{0,8}", inner), 0..6)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_text_tells_what_its_values_will_take(value in value()) {
            let text = value.to_string();
            prop_assert!(of_text(text.as_bytes()) + text.len() >= of(&value), "{text}");
        }
    }

    #[test]
    fn many_small_values_weigh_and_a_long_text_does_not() {
        let small = format!("[{}1]", "1,".repeat(999));
        assert!(of_text(small.as_bytes()) > 150 * 1000);
        let long = format!("{{\"content\":\"{}\"}}", ",[{:".repeat(1000));
        assert!(of_text(long.as_bytes()) < 1000);
    }
}
