//! The official grammar of a completion, without recovery and without streaming. It is the
//! measure for [`crate::ReplyParser`], and a check of recorded completions.

use std::collections::HashSet;

use crate::dsml::{BLOCK_CLOSE, BLOCK_OPEN, INVOKE_CLOSE, PARAMETER_CLOSE};
use crate::json;
use crate::markers::{BOS, DSML, EOS, THINK_CLOSE, THINK_OPEN};
use crate::parse::{ParsedCall, Reply};

/// Where a completion leaves the grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of the completion: expected {expected}, found {found:?}")]
pub struct StrictError {
    /// Byte offset.
    pub at: usize,
    /// What the grammar asks for there.
    pub expected: String,
    /// The beginning of what stands there.
    pub found: String,
}

/// Reads a whole completion, its end-of-sentence marker included:
///
/// ```text
/// completion = [ reasoning "</think>" ] content [ block ] EOS
/// block      = "\n\n<｜DSML｜tool_calls>\n" invoke { "\n" invoke } "\n</｜DSML｜tool_calls>"
/// invoke     = "<｜DSML｜invoke" blanks 'name="' name '">' "\n" [ "\n" ] { parameter "\n" }
///              "</｜DSML｜invoke>"
/// parameter  = '<｜DSML｜parameter name="' key '" string="' ( "true" | "false" ) '">' value
///              "</｜DSML｜parameter>"
/// ```
///
/// Reasoning is there exactly when `thinking`. A value that is not a string is taken as it
/// stands, JSON or not.
///
/// # Errors
/// Text outside the grammar, a parameter given twice, or a marker inside reasoning or content.
pub fn parse_strict(text: &str, thinking: bool) -> Result<Reply, StrictError> {
    let mut cursor = Cursor { text, at: 0 };
    let mut reply = Reply::default();
    if thinking {
        reply.reasoning = cursor.plain_until(THINK_CLOSE)?.to_owned();
        cursor.expect(THINK_CLOSE)?;
    }
    let opener = format!("\n\n{BLOCK_OPEN}\n");
    let block = cursor.rest().find(&opener).unwrap_or(usize::MAX);
    if block < cursor.rest().find(EOS).unwrap_or(usize::MAX) {
        reply.content = cursor.plain_until(&opener)?.to_owned();
        reply.block_start = Some(cursor.at);
        cursor.expect(&opener)?;
        loop {
            reply.tool_calls.push(cursor.invoke()?);
            cursor.expect("\n")?;
            if cursor.take(BLOCK_CLOSE) {
                break;
            }
        }
    } else {
        reply.content = cursor.plain_until(EOS)?.to_owned();
    }
    cursor.expect(EOS)?;
    if !cursor.rest().is_empty() {
        return Err(cursor.error("the end of the text"));
    }
    Ok(reply)
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn error(&self, expected: &str) -> StrictError {
        StrictError {
            at: self.at,
            expected: expected.to_owned(),
            found: self.rest().chars().take(24).collect(),
        }
    }

    fn take(&mut self, literal: &str) -> bool {
        let is_next = self.rest().starts_with(literal);
        self.at += if is_next { literal.len() } else { 0 };
        is_next
    }

    fn expect(&mut self, literal: &str) -> Result<(), StrictError> {
        if self.take(literal) {
            return Ok(());
        }
        Err(self.error(&format!("{literal:?}")))
    }

    /// The text before the next `stop`, which is left.
    fn until(&mut self, stop: &str) -> Result<&'a str, StrictError> {
        let Some(n_bytes) = self.rest().find(stop) else {
            return Err(self.error(&format!("text that ends with {stop:?}")));
        };
        let found = &self.rest()[..n_bytes];
        self.at += n_bytes;
        Ok(found)
    }

    /// [`Cursor::until`] for text that must not contain a marker.
    fn plain_until(&mut self, stop: &str) -> Result<&'a str, StrictError> {
        let start = self.at;
        let found = self.until(stop)?;
        for marker in [BOS, EOS, THINK_OPEN, THINK_CLOSE, DSML] {
            if let Some(at) = found.find(marker) {
                self.at = start + at;
                return Err(self.error("text without markers"));
            }
        }
        Ok(found)
    }

    fn invoke(&mut self) -> Result<ParsedCall, StrictError> {
        self.expect("<｜DSML｜invoke")?;
        self.at += self.rest().len() - self.rest().trim_start().len();
        self.expect("name=\"")?;
        let name = self.until("\">\n")?.to_owned();
        self.expect("\">\n")?;
        self.take("\n");
        let mut keys = HashSet::new();
        let mut arguments = String::from("{");
        while !self.take(INVOKE_CLOSE) {
            let start = self.at;
            self.expect("<｜DSML｜parameter name=\"")?;
            let key = self.until("\" string=\"")?;
            self.expect("\" string=\"")?;
            if !keys.insert(key) {
                self.at = start;
                return Err(self.error("a parameter that was not given before"));
            }
            let is_string = self.take("true");
            if !is_string {
                self.expect("false")?;
            }
            self.expect("\">")?;
            let value = self.until(PARAMETER_CLOSE)?;
            self.expect(PARAMETER_CLOSE)?;
            self.expect("\n")?;
            if keys.len() > 1 {
                arguments.push_str(", ");
            }
            json::write_string(key, &mut arguments);
            arguments.push_str(": ");
            if is_string {
                json::write_string(value, &mut arguments);
            } else {
                arguments.push_str(value);
            }
        }
        arguments.push('}');
        Ok(ParsedCall {
            name,
            arguments,
            complete: true,
        })
    }
}
