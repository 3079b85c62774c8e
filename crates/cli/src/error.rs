//! Errors as the command shows them: one line, found, expected, where, what to do.

use std::io;

/// The error on one line: each cause that the line does not say already, after a colon.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line
}

/// Whether the reader of our output went away, which is how `ds4 ... | head` ends.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[derive(Debug, thiserror::Error)]
    #[error("model.gguf: {source}")]
    struct InFile {
        source: io::Error,
    }

    #[test]
    fn a_cause_that_the_message_quotes_is_not_said_twice() {
        let source = io::Error::new(io::ErrorKind::NotFound, "no such file");
        let error = anyhow::Error::from(InFile { source }).context("cannot open");
        assert_eq!(one_line(&error), "cannot open: model.gguf: no such file");
    }

    #[test]
    fn an_error_of_several_lines_becomes_one() {
        let error = anyhow::anyhow!("first\n  second");
        assert_eq!(one_line(&error), "first second");
    }

    #[test]
    fn a_broken_pipe_is_found_under_any_context() {
        let error = Err::<(), _>(io::Error::from(io::ErrorKind::BrokenPipe))
            .context("writing")
            .unwrap_err();
        assert!(is_broken_pipe(&error));
        assert!(!is_broken_pipe(&anyhow::anyhow!("broken pipe")));
    }
}
