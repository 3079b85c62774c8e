//! Strings that end the content.

/// Looks for stop strings in content as it arrives.
///
/// The match that begins first wins, of those the longest; what may be the beginning of a match is
/// held back, so however the text is cut, the same part of it is let through.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
}

/// What can be said of a piece of content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Content that is before any match.
    pub text: String,
    /// The string that ended it.
    pub stop: Option<String>,
}

impl StopStrings {
    /// Looks for these, none of them empty.
    pub fn new(strings: Vec<String>) -> StopStrings {
        StopStrings {
            strings,
            held: String::new(),
        }
    }

    /// More content.
    pub fn push(&mut self, text: &str) -> Scanned {
        self.held.push_str(text);
        self.scan(false)
    }

    /// The end of the content: what was held back is no beginning any more.
    pub fn finish(&mut self) -> Scanned {
        self.scan(true)
    }

    fn scan(&mut self, ended: bool) -> Scanned {
        for (at, _) in self.held.char_indices() {
            let rest = &self.held[at..];
            let may_grow = self
                .strings
                .iter()
                .any(|s| s.len() > rest.len() && s.starts_with(rest));
            if may_grow && !ended {
                return self.release(at, None);
            }
            let matches = self.strings.iter().filter(|s| rest.starts_with(*s));
            if let Some(stop) = matches.max_by_key(|s| s.len()).cloned() {
                return self.release(at, Some(stop));
            }
        }
        self.release(self.held.len(), None)
    }

    fn release(&mut self, n_bytes: usize, stop: Option<String>) -> Scanned {
        Scanned {
            text: self.held.drain(..n_bytes).collect(),
            stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is let through of a text that arrives in these pieces.
    fn run(strings: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let mut stop = StopStrings::new(strings.iter().map(|s| (*s).to_owned()).collect());
        let mut out = String::new();
        for piece in pieces {
            let scanned = stop.push(piece);
            out += &scanned.text;
            if scanned.stop.is_some() {
                return (out, scanned.stop);
            }
        }
        let scanned = stop.finish();
        (out + &scanned.text, scanned.stop)
    }

    #[test]
    fn the_same_text_stops_at_the_same_place_however_it_is_cut() {
        let cases: [(&[&str], &str, &str, Option<&str>); 8] = [
            (&["END"], "to the END of", "to the ", Some("END")),
            (&["END"], "to the EN", "to the EN", None),
            (&["ab", "abc"], "xabcd", "x", Some("abc")),
            (&["ab", "abc"], "xabd", "x", Some("ab")),
            (&["abcd", "bc"], "abcx", "a", Some("bc")),
            (&["abcd", "bc"], "abcd", "", Some("abcd")),
            (&["éé"], "aéééa", "a", Some("éé")),
            (&["aab"], "aaab", "a", Some("aab")),
        ];
        for (strings, text, expected, stop) in cases {
            let expected = (expected.to_owned(), stop.map(str::to_owned));
            assert_eq!(run(strings, &[text]), expected, "{text} whole");
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(run(strings, &chars), expected, "{text} by character");
            for cut in text.char_indices().map(|(at, _)| at) {
                let pieces = [&text[..cut], &text[cut..]];
                assert_eq!(run(strings, &pieces), expected, "{text} at {cut}");
            }
        }
    }

    #[test]
    fn text_that_begins_no_match_is_let_through_at_once() {
        let mut stop = StopStrings::new(vec!["\n\n".to_owned()]);
        assert_eq!(stop.push("a\nb").text, "a\nb");
        assert_eq!(stop.push("c\n").text, "c");
        assert_eq!(stop.push("d").text, "\nd");
    }
}
