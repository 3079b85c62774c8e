//! Calls in the pieces that a stream is to have.

use std::borrow::Cow;

use crate::api::CallPieces;
use crate::generation::ReplyEvent;

/// Passes the events of a reply on, those of a call in the pieces that are wanted.
#[derive(Clone, Debug, Default)]
pub struct CallWriter {
    pieces: CallPieces,
    /// The beginning of a call that is not complete.
    start: Option<ReplyEvent>,
    /// What it has of its arguments.
    arguments: String,
}

impl CallWriter {
    /// One that has passed nothing on.
    pub fn new(pieces: CallPieces) -> CallWriter {
        CallWriter {
            pieces,
            ..CallWriter::default()
        }
    }

    /// What a stream gets for one event of the worker. Of a call that its reply cuts off it gets
    /// what there is; of one that fails it gets nothing.
    pub fn pass<'a>(&mut self, event: &'a ReplyEvent) -> Vec<Cow<'a, ReplyEvent>> {
        let mut passed = Vec::new();
        match (self.pieces, event) {
            (CallPieces::Whole, ReplyEvent::ToolStart { .. }) => {
                self.release(&mut passed);
                self.start = Some(event.clone());
                return passed;
            }
            (CallPieces::Whole, ReplyEvent::ToolArguments { text, .. }) => {
                self.arguments.push_str(text);
                return passed;
            }
            (CallPieces::Whole, ReplyEvent::Failed(_)) | (CallPieces::Delta, _) => {}
            (CallPieces::Whole, _) => self.release(&mut passed),
        }
        passed.push(Cow::Borrowed(event));
        passed
    }

    fn release(&mut self, passed: &mut Vec<Cow<'_, ReplyEvent>>) {
        let Some(start) = self.start.take() else {
            return;
        };
        let text = std::mem::take(&mut self.arguments);
        if let ReplyEvent::ToolStart { index, .. } = start {
            passed.push(Cow::Owned(start));
            if !text.is_empty() {
                passed.push(Cow::Owned(ReplyEvent::ToolArguments { index, text }));
            }
        }
    }
}
