//! The raw text of a tool that has a grammar of its own.
//!
//! The grammar of the block takes any text here: a rule of the tool's own grammar, put into it,
//! might take the closing tag for its text. The text is therefore read beside it, by a grammar that
//! knows nothing of tags, and the tag may begin where that grammar may end.

use llguidance::Matcher;

use super::DelicateTokens;
use super::grammar::VALUE_CLOSE;
use crate::schema::first_line;

/// What opens the input of a tool, from its name on.
pub(super) fn opening(tool: &str) -> Vec<u8> {
    let name = crate::api::tools::INPUT;
    format!("invoke name=\"{tool}\">\n<｜DSML｜parameter name=\"{name}\" string=\"true\">")
        .into_bytes()
}

/// Whether a token can be what comes next of a tag, of which this is left, and of what is behind it.
pub(super) fn may_follow(rest: &[u8], token: &[u8]) -> bool {
    !token.is_empty() && (rest.starts_with(token) || token.starts_with(rest))
}

/// Reads such a text up to the end of its closing tag.
pub(super) struct InputReader {
    matcher: Matcher,
    /// Whether what was read can still be text.
    is_text: bool,
    /// Bytes of the closing tag that the end of what was read can be; 0 where it is none of it.
    n_closed: usize,
}

impl InputReader {
    pub(super) fn new(matcher: Matcher) -> InputReader {
        InputReader {
            matcher,
            is_text: true,
            n_closed: 0,
        }
    }

    /// Leaves those of the admitted tokens, which are bits of words, that the grammar admits too.
    ///
    /// # Errors
    /// Why the grammar can no longer be followed.
    pub(super) fn narrow(
        &mut self,
        admitted: &mut [u32],
        tokens: &DelicateTokens,
    ) -> Result<(), String> {
        let own = match self.is_text && !self.matcher.is_stopped() {
            true => Some(self.matcher.compute_mask().map_err(first_line)?),
            false => None,
        };
        let own = own.as_ref().map(|mask| mask.as_slice());
        let going_on = (self.n_closed > 0).then_some(self.n_closed);
        let beginning = self.may_end()?.then_some(0);
        let mut closing = Vec::new();
        for n_closed in going_on.into_iter().chain(beginning) {
            let all = tokens.closers(n_closed).iter().copied();
            closing.extend(all.filter(|token| {
                let (word, bit) = (*token as usize / 32, 1 << (token % 32));
                admitted[word] & bit != 0
            }));
        }
        for (i, word) in admitted.iter_mut().enumerate() {
            *word &= own.and_then(|own| own.get(i)).copied().unwrap_or_default();
        }
        for token in closing {
            admitted[token as usize / 32] |= 1 << (token % 32);
        }
        Ok(())
    }

    /// Whether a whole text was read.
    fn may_end(&mut self) -> Result<bool, String> {
        Ok(self.is_text && self.matcher.is_accepting().map_err(first_line)?)
    }

    /// Whether the closing tag is complete.
    pub(super) fn is_over(&self) -> bool {
        self.n_closed == VALUE_CLOSE.len()
    }

    /// Reads a token; whether it can be text or a part of the closing tag.
    pub(super) fn push(&mut self, token: u32, bytes: &[u8]) -> bool {
        let close = VALUE_CLOSE.as_bytes();
        let follows = |n_closed: usize| may_follow(&close[n_closed..], bytes);
        let may_end = self.may_end().unwrap_or_default();
        self.n_closed = match self.n_closed {
            n if n > 0 && follows(n) => (n + bytes.len()).min(close.len()),
            _ if may_end && follows(0) => bytes.len().min(close.len()),
            _ => 0,
        };
        self.is_text = self.is_text
            && self
                .matcher
                .try_consume_tokens(&[token])
                .is_ok_and(|n| n == 1);
        self.is_text || self.n_closed > 0
    }
}
