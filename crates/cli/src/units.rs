//! Numbers as people read them.

/// Bytes in decimal units, as bandwidths and file sizes are given: `9.56 GB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    // Half a hundredth below the next unit would print as 1000.00.
    while value >= 999.995 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ => format!("{value:.2} {}", UNITS[unit]),
    }
}

/// A count with thousands separated: `1,048,576`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 token`, `2 tokens`.
pub(crate) fn plural(n: usize, what: &str) -> String {
    let n_text = count(n as u64);
    if n == 1 {
        format!("{n_text} {what}")
    } else {
        format!("{n_text} {what}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_three_digits_and_change_unit_at_a_thousand() {
        for (n, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (999_994, "999.99 kB"),
            (999_996, "1.00 MB"),
            (9_559_000_000, "9.56 GB"),
            (86_720_111_488, "86.72 GB"),
            (u64::MAX, "18446744.07 TB"),
        ] {
            assert_eq!(bytes(n), expected, "{n}");
        }
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        for (n, expected) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_048_576, "1,048,576"),
        ] {
            assert_eq!(count(n), expected);
        }
        assert_eq!(plural(1, "token"), "1 token");
        assert_eq!(plural(4096, "token"), "4,096 tokens");
    }
}
