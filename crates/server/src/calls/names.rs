//! The names of a call's parameters, of which none may be given twice.
//!
//! Those that a schema lists the grammar admits once. Of the others it knows only what they look
//! like.

/// What stands before the name of a tool, and before that of a parameter.
const TOOL: &[u8] = b"invoke name=\"";
const PARAMETER: &[u8] = b"parameter name=\"";

/// Reads the markup of a block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Those of the call that is being written.
    given: Vec<Vec<u8>>,
    /// The last bytes of markup, as many as stand before a name.
    tail: Vec<u8>,
    /// The beginning of the name that is being written.
    name: Option<Vec<u8>>,
}

impl Names {
    /// Reads a byte of markup; whether it does not end a name that was given before.
    pub(super) fn read(&mut self, byte: u8) -> bool {
        match (&mut self.name, byte) {
            (Some(_), b'"') => {
                let name = self.name.take().unwrap_or_default();
                if self.given.contains(&name) {
                    return false;
                }
                self.given.push(name);
            }
            (Some(name), byte) => name.push(byte),
            (None, byte) => {
                if self.tail.len() == PARAMETER.len() {
                    self.tail.remove(0);
                }
                self.tail.push(byte);
                if self.tail.ends_with(TOOL) {
                    self.given.clear();
                } else if self.tail == PARAMETER {
                    self.name = Some(Vec::new());
                }
            }
        }
        true
    }

    /// Whether no name can be given twice yet.
    pub(super) fn is_empty(&self) -> bool {
        self.given.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_once_in_a_call() {
        let reads = |text: &str| {
            let mut names = Names::default();
            text.bytes().all(|byte| names.read(byte))
        };
        let parameter = |name: &str| format!("<｜DSML｜parameter name=\"{name}\" string=\"true\">");
        let (a, b) = (parameter("a"), parameter("b"));
        let tool = "<｜DSML｜invoke name=\"a\">\n";
        assert!(reads(&format!("{tool}{a}{b}")));
        assert!(!reads(&format!("{tool}{a}{b}{a}")));
        assert!(reads(&format!("{tool}{a}{b}{tool}{b}{a}")));
        assert!(reads(&format!("{tool}{a}{}", parameter("aa"))));
    }
}
