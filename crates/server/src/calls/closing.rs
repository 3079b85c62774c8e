//! Closing tags in the text of a value, however they are spelt.

/// How far the end of a text has gone into a closing tag: `</`, up to two bars, `DSML`, a bar.
/// With that bar a reader begins to look for a tag, whatever its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Closing {
    /// Not at all.
    #[default]
    Nowhere,
    /// `<`.
    Less,
    /// `</` and so many bars, of the next so many bytes.
    Bars { n: u8, n_bytes: u8, ascii: bool },
    /// That and so many letters of `DSML`.
    Letters { n: u8, canonical: bool },
    /// That and so many bytes of a bar.
    Bar { n_bytes: u8, canonical: bool },
}

/// What a byte makes of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Text that goes on.
    Text(Closing),
    /// `</｜DSML｜`, the beginning of a closing tag in its one right spelling.
    Closes,
    /// The beginning of another spelling of one, which readers also take for a tag.
    Lookalike,
}

/// The fullwidth bar.
const BAR: [u8; 3] = [0xef, 0xbd, 0x9c];

impl Closing {
    pub(super) fn read(self, byte: u8) -> Read {
        let next = match (self, byte) {
            (Closing::Less, b'/') => Closing::Bars {
                n: 0,
                n_bytes: 0,
                ascii: false,
            },
            (
                Closing::Bars {
                    n: n @ 0..2,
                    n_bytes: 0,
                    ..
                },
                b'|',
            ) => Closing::Bars {
                n: n + 1,
                n_bytes: 0,
                ascii: true,
            },
            (
                Closing::Bars {
                    n: n @ 0..2,
                    n_bytes,
                    ascii,
                },
                byte,
            ) if byte == BAR[usize::from(n_bytes)] => match n_bytes {
                2 => Closing::Bars {
                    n: n + 1,
                    n_bytes: 0,
                    ascii,
                },
                _ => Closing::Bars {
                    n,
                    n_bytes: n_bytes + 1,
                    ascii,
                },
            },
            (
                Closing::Bars {
                    n,
                    n_bytes: 0,
                    ascii,
                },
                b'D',
            ) => Closing::Letters {
                n: 1,
                canonical: n == 1 && !ascii,
            },
            (Closing::Letters { n: 4, .. }, b'|') => return Read::Lookalike,
            (Closing::Letters { n: 4, canonical }, byte) if byte == BAR[0] => Closing::Bar {
                n_bytes: 1,
                canonical,
            },
            (
                Closing::Letters {
                    n: n @ 0..4,
                    canonical,
                },
                byte,
            ) if byte == b"DSML"[usize::from(n)] => Closing::Letters {
                n: n + 1,
                canonical,
            },
            (Closing::Bar { n_bytes, canonical }, byte) if byte == BAR[usize::from(n_bytes)] => {
                match (n_bytes, canonical) {
                    (2, true) => return Read::Closes,
                    (2, false) => return Read::Lookalike,
                    _ => Closing::Bar {
                        n_bytes: n_bytes + 1,
                        canonical,
                    },
                }
            }
            (_, b'<') => Closing::Less,
            _ => Closing::Nowhere,
        };
        Read::Text(next)
    }

    /// Whether one more token may make a tag of it: not before its slash.
    pub(super) fn is_near(self) -> bool {
        !matches!(self, Closing::Nowhere | Closing::Less)
    }

    /// Whether a whole text can stand in a value.
    pub(super) fn admits(text: &str) -> bool {
        let mut closing = Closing::default();
        text.bytes().all(|byte| match closing.read(byte) {
            Read::Text(next) => {
                closing = next;
                true
            }
            Read::Closes | Read::Lookalike => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_closing_tag_is_seen_and_nothing_else() {
        for (text, admitted) in [
            ("a </ b </｜x </｜DSM L｜", true),
            ("<｜DSML｜invoke name=\"x\">", true),
            ("</tool_calls> </parameter> <//｜DSML｜", true),
            ("</｜｜｜DSML｜", true),
            ("</ ｜DSML｜", true),
            ("</｜DSMLL｜", true),
            ("</｜D</DSM</｜｜DSM", true),
            ("</｜DSML）", true),
            ("</｜DSML｜", false),
            ("</|DSML|", false),
            ("</DSML｜x", false),
            ("</||DSML｜", false),
            ("</｜DSML|parameter>", false),
            ("<</</｜DSML｜invoke", false),
            ("</｜</|DSML|", false),
        ] {
            assert_eq!(Closing::admits(text), admitted, "{text}");
        }
    }
}
