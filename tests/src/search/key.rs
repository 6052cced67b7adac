//! What makes two nodes the same: everything they are, but for the names of actions.
//!
//! An `OpId` counts up with each action, and only says which answer belongs to which; so the numbers are
//! replaced by the order in which they are first met.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::machine::Machine;

/// What a node is, in words; only for [`of`] and [`mentions`].
pub fn text(machine: &Machine) -> String {
    let mut text = String::with_capacity(16 << 10);
    let _ = write!(text, "{machine:?}");
    without_counters(&text)
}

/// The questions and transfers that a node has anything to do with, as it prints them.
pub fn mentions(text: &str) -> HashSet<String> {
    let mut found = HashSet::new();
    for word in ["QuestionId {", "TransferId {"] {
        for (at, _) in text.match_indices(word) {
            let rest = &text[at..];
            found.extend(rest.split_inclusive('}').next().map(str::to_owned));
        }
    }
    found
}

/// Names everything a node is, in 128 bits.
pub fn of(text: &str) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, text).hash(&mut hasher);
        hasher.finish()
    };
    u128::from(half(1)) << 64 | u128::from(half(2))
}

fn without_counters(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut names: HashMap<&str, usize> = HashMap::new();
    let mut rest = text;
    while let Some(at) = next_counter(rest) {
        let (head, tail) = rest.split_at(at);
        out.push_str(head);
        let digits = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = tail.split_at(digits);
        if head.ends_with("OpId(") {
            let fresh = names.len();
            let _ = write!(out, "{}", names.entry(number).or_insert(fresh));
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// Where the next counter's digits begin.
fn next_counter(text: &str) -> Option<usize> {
    ["OpId(", "next_op: "].into_iter().filter_map(|word| Some(text.find(word)? + word.len())).min()
}

#[cfg(test)]
mod tests {
    use super::without_counters;

    #[test]
    fn numbers_of_actions_are_named_by_their_order() {
        let text = "A { op: OpId(7) } B { op: OpId(9), again: OpId(7), next_op: 10, x: 3 }";
        let want = "A { op: OpId(0) } B { op: OpId(1), again: OpId(0), next_op: , x: 3 }";
        assert_eq!(without_counters(text), want);
    }
}
