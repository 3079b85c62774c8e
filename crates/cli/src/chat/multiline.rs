//! Messages of several lines.

use std::borrow::Cow;

/// A line of these opens a message that the next such line closes; they are not part of it.
const QUOTES: &str = "\"\"\"";
/// A line that begins with these opens a code block that the next such line closes; they are part
/// of the message.
const FENCE: &str = "```";

/// Whether more lines belong to what was typed so far.
pub(super) fn is_open(text: &str) -> bool {
    let mut open: Option<&str> = None;
    let mut continues = false;
    for (i, line) in text.split('\n').enumerate() {
        let trimmed = line.trim();
        continues = open.is_none() && line.ends_with('\\');
        match open {
            Some(QUOTES) if trimmed == QUOTES => open = None,
            Some(FENCE) if trimmed == FENCE => open = None,
            Some(_) => {}
            None if i == 0 && trimmed == QUOTES => open = Some(QUOTES),
            None if opens_fence(trimmed) => open = Some(FENCE),
            None => {}
        }
    }
    open.is_some() || continues
}

/// The message that was typed: without the quotes around it, and with the lines that end in a
/// backslash joined to the next by the line break alone.
pub(super) fn message(text: &str) -> Cow<'_, str> {
    let inner = text
        .split_once('\n')
        .filter(|(first, _)| first.trim() == QUOTES)
        .and_then(|(_, rest)| rest.rsplit_once('\n').or(Some(("", rest))))
        .filter(|(_, last)| last.trim() == QUOTES);
    if let Some((inner, _)) = inner {
        return Cow::Borrowed(inner);
    }
    if !text.contains("\\\n") {
        return Cow::Borrowed(text);
    }
    let mut message = String::with_capacity(text.len());
    let mut in_fence = false;
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            message.push('\n');
        }
        let trimmed = line.trim();
        if in_fence {
            in_fence = trimmed != FENCE;
            message.push_str(line);
        } else {
            in_fence = opens_fence(trimmed);
            message.push_str(line.strip_suffix('\\').unwrap_or(line));
        }
    }
    Cow::Owned(message)
}

/// A fence that is closed on its own line, as in ```` ```code``` ````, opens nothing.
fn opens_fence(line: &str) -> bool {
    line.strip_prefix(FENCE)
        .is_some_and(|rest| !rest.contains(FENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_open_until_what_opened_it_closes_it() {
        for (text, open, expected) in [
            ("", false, ""),
            ("one line", false, "one line"),
            ("a\\", true, "a\\"),
            ("a\\\nb", false, "a\nb"),
            ("a\\\nb\\\nc", false, "a\nb\nc"),
            // A pasted text has line breaks already.
            ("a\nb", false, "a\nb"),
            ("\"\"\"", true, "\"\"\""),
            ("\"\"\"\na", true, "\"\"\"\na"),
            ("\"\"\"\na\\\n\nb\n\"\"\"", false, "a\\\n\nb"),
            ("\"\"\"\n\"\"\"", false, ""),
            ("say \"\"\" here", false, "say \"\"\" here"),
            ("look:\\\n```c", true, "look:\n```c"),
            (
                "look:\\\n```c\nx = 1; \\\n```",
                false,
                "look:\n```c\nx = 1; \\\n```",
            ),
            ("```\nopen", true, "```\nopen"),
            ("```\nclosed\n```", false, "```\nclosed\n```"),
            ("```closed```", false, "```closed```"),
        ] {
            assert_eq!(is_open(text), open, "{text:?}");
            assert_eq!(message(text), expected, "{text:?}");
        }
    }
}
