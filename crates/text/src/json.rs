//! JSON text as it stands in prompts: written the way Python's `json.dumps(…, ensure_ascii=False)`
//! writes it, because the model was trained on that spelling.

use std::borrow::Cow;
use std::fmt::Write;

use serde_json::{Number, Value};

/// Reads JSON text. Key order is kept, numbers keep their spelling, of equal keys the last value
/// stands at the first one's place, and an escaped surrogate without its partner is U+FFFD.
///
/// # Errors
/// Text that is not one JSON value, `NaN` and infinities included, or nested deeper than 128.
pub fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(&paired(text))
}

/// `value` as JSON text with `", "` and `": "` between its parts.
pub fn to_string(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

/// Appends `value` as JSON text with `", "` and `": "` between its parts.
pub fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_number(number, out),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (i, (key, member)) in members.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_string(key, out);
                out.push_str(": ");
                write(member, out);
            }
            out.push('}');
        }
    }
}

/// Appends `text` as a JSON string with its quotes.
pub fn write_string(text: &str, out: &mut String) {
    out.push('"');
    escape(text, out);
    out.push('"');
}

/// Appends `text` as it stands between the quotes of a JSON string. Only `"`, `\` and the
/// characters below U+0020 are escaped, so pieces of a text can be escaped one by one.
pub fn escape(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
        out.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            0x08 => out.push_str("\\b"),
            0x0c => out.push_str("\\f"),
            control => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{control:04x}");
            }
        }
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
}

fn write_number(number: &Number, out: &mut String) {
    let literal = number.to_string();
    if !literal.contains(['.', 'e', 'E']) {
        out.push_str(if literal == "-0" { "0" } else { &literal });
        return;
    }
    match literal.parse::<f64>() {
        Ok(value) if value.is_finite() => out.push_str(&float(value)),
        _ => out.push_str(&literal),
    }
}

/// The shortest digits that read back as `value`, laid out as Python's `repr` does: with an
/// exponent of at least two digits below 1e-4 and from 1e16 on, otherwise with a decimal point.
fn float(value: f64) -> String {
    let shortest = format!("{value:e}");
    let n_decimals = shortest.find('e').unwrap_or(0).saturating_sub(
        // What stands before the decimals: the sign, a digit and the point.
        if value.is_sign_negative() { 3 } else { 2 },
    );
    // Of two equally short and equally near spellings Python takes the even one, as formatting
    // to a given precision does, and formatting to the shortest does not.
    let nearest = format!("{value:.n_decimals$e}");
    let chosen = if nearest.parse() == Ok(value) {
        nearest
    } else {
        shortest
    };
    let (mantissa, exponent) = chosen.split_once('e').unwrap_or((&chosen, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(mantissa) => ("-", mantissa),
        None => ("", mantissa),
    };
    let mut digits = mantissa.replace('.', "");
    // The point belongs behind digit 1 + exponent; zeros fill up to one digit on both sides.
    let n_before = if exponent < 0 {
        digits.insert_str(0, &"0".repeat(exponent.unsigned_abs() as usize));
        1
    } else {
        1 + exponent as usize
    };
    while digits.len() <= n_before {
        digits.push('0');
    }
    format!("{sign}{}.{}", &digits[..n_before], &digits[n_before..])
}

/// JSON text in which escapes of surrogates that are not a high one followed by a low one are that of
/// U+FFFD. Nothing else of it changes, its length included.
pub fn paired(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let unit = |at: usize| -> Option<u16> {
        let escape = bytes.get(at..at + 6)?;
        let digits = std::str::from_utf8(escape.strip_prefix(b"\\u")?).ok()?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut out = Cow::Borrowed(text);
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|&b| b == b'\\') {
        at += found;
        at += match (unit(at), unit(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                // The replacement is as long as what it replaces, so positions stay.
                out.to_mut().replace_range(at..at + 6, "\\ufffd");
                6
            }
            _ => 2,
        };
        if at >= bytes.len() {
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spelt_as_python_spells_them() {
        for (literal, expected) in [
            ("2.50", "2.5"),
            ("1e3", "1000.0"),
            ("1e-7", "1e-07"),
            ("1e22", "1e+22"),
            ("-0.0", "-0.0"),
            ("-0", "0"),
            ("0", "0"),
            ("-12", "-12"),
            (
                "123456789012345678901234567890",
                "123456789012345678901234567890",
            ),
            ("1e16", "1e+16"),
            ("1e15", "1000000000000000.0"),
            ("9007199254740993.0", "9007199254740992.0"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("1.5E-10", "1.5e-10"),
            ("-2.5e-300", "-2.5e-300"),
            ("5e-324", "5e-324"),
            // Too large for a double: kept, with the sign that serde_json puts there.
            ("1e400", "1e+400"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("0e5", "0.0"),
            ("3.0", "3.0"),
            ("0.1", "0.1"),
            ("-0.00012345", "-0.00012345"),
            ("-123456.789", "-123456.789"),
            ("582355980615229.25", "582355980615229.2"),
            ("2.5e-16", "2.5e-16"),
        ] {
            let value = parse(literal).expect(literal);
            assert_eq!(to_string(&value), expected, "{literal}");
        }
    }

    #[test]
    fn objects_keep_their_order_and_the_last_of_equal_keys() {
        let value = parse(r#" {"z":1,"a":[],"z":{"k":null}, "b":[true,false , "x\/y"]} "#).unwrap();
        assert_eq!(
            to_string(&value),
            r#"{"z": {"k": null}, "a": [], "b": [true, false, "x/y"]}"#
        );
    }

    #[test]
    fn only_quotes_backslashes_and_controls_are_escaped() {
        let text = "\"\\/\u{0}\u{8}\u{c}\n\r\t\u{1f}\u{7f}\u{2028}é😀";
        assert_eq!(
            to_string(&Value::from(text)),
            "\"\\\"\\\\/\\u0000\\b\\f\\n\\r\\t\\u001f\u{7f}\u{2028}é😀\""
        );
    }

    #[test]
    fn an_escaped_surrogate_without_its_partner_becomes_the_replacement_character() {
        for (text, expected) in [
            (r#""\ud83d\ude00""#, "😀"),
            (r#""\ud83d""#, "\u{fffd}"),
            (r#""\ude00\ud83d""#, "\u{fffd}\u{fffd}"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
            (r#""\\ud83d""#, "\\ud83d"),
            (r#""\\\ud83d x""#, "\\\u{fffd} x"),
            (r#""\uD83D\u0041""#, "\u{fffd}A"),
        ] {
            assert_eq!(parse(text).expect(text), Value::from(expected), "{text}");
        }
        for text in [
            "\"\\",
            "\\",
            "\"\\ud8",
            "NaN",
            "Infinity",
            "{\"a\":1,}",
            "",
            "\"a\nb\"",
        ] {
            assert!(parse(text).is_err(), "{text:?} is not JSON");
        }
    }
}
