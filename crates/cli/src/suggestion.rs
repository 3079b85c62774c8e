//! What a misspelt word may have been meant to be.

/// The likeliest of some names that differs from a word by few letters; `None` when none does, or
/// when the word is one of them.
pub(crate) fn nearest<'n>(word: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    // Two letters off in a word of six, one in shorter ones.
    let allowed = word.chars().count().div_ceil(3).min(2);
    names
        .into_iter()
        .map(|name| (distance(word, name), name))
        .filter(|(distance, _)| (1..=allowed).contains(distance))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Letters put in, left out, exchanged or swapped with their neighbour (the restricted
/// Damerau-Levenshtein distance).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // Distances of the first i letters of `a` to every beginning of `b`; rows i - 2, i - 1, i.
    let mut before = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let exchanged = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = exchanged.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                let swapped: &Vec<usize> = &before;
                best = best.min(swapped[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_and_far_ones_are_not() {
        let names = ["inspect", "bench", "logits", "text", "kv"];
        for (word, expected) in [
            ("inspct", Some("inspect")),
            ("isnpect", Some("inspect")),
            ("bnech", Some("bench")),
            ("benches", Some("bench")),
            ("tex", Some("text")),
            ("kw", Some("kv")),
            ("text", None),
            ("hello", None),
            ("", None),
            ("b", None),
        ] {
            assert_eq!(nearest(word, names), expected, "{word}");
        }
    }

    #[test]
    fn distances_count_letters() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("abc", "axc", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
