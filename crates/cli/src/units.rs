//! Numbers as people read them.

use std::time::Duration;

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

/// Bytes in MiB, as limits of memory and disk are given: `12.5 MiB`.
pub(crate) fn mib(n_bytes: u64) -> String {
    let tenths = (u128::from(n_bytes) * 10 + (1 << 19)) >> 20;
    let whole = u64::try_from(tenths / 10).unwrap_or(u64::MAX);
    format!("{}.{} MiB", count(whole), tenths % 10)
}

/// A time gone by, in its largest unit: `45 s`, `12 min`, `3 h`, `20 d`.
pub(crate) fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
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
    fn mebibytes_have_one_digit_behind_the_point() {
        for (n, expected) in [
            (0, "0.0 MiB"),
            (1, "0.0 MiB"),
            (52_429, "0.1 MiB"),
            (1 << 20, "1.0 MiB"),
            (1_280 << 20, "1,280.0 MiB"),
            (u64::MAX, "17,592,186,044,416.0 MiB"),
        ] {
            assert_eq!(mib(n), expected, "{n}");
        }
    }

    #[test]
    fn ages_are_told_in_their_largest_unit() {
        for (seconds, expected) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3_599, "59 min"),
            (3_600, "1 h"),
            (172_799, "47 h"),
            (172_800, "2 d"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), expected);
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
