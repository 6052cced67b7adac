//! `[rates]`: how fast bytes may go to a peer, and of a unit, and when.
//!
//! Owns: the grammar of a rate with its times, and which rule holds at a moment. Leaves to others: keeping to it
//! (`flocker_transport::bulk::pace`), and looking at the clock (`crate::rates`).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::civil::{DateTime, Time, Weekday};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Slowest rate, bytes a second: below it a batch would take so long that the transfer counted as standing still.
const LEAST_RATE: u64 = 64 << 10;

/// Most rules for one thing.
const MAX_RULES: usize = 32;

/// `[rates]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RatesSection {
    /// By the peer's name here: for all that is sent to it together.
    pub peers: BTreeMap<String, Schedule>,
    /// By the unit's name: for all that is sent of it together.
    pub units: BTreeMap<String, Schedule>,
    /// Whether the last step of a move is held back too. Its workload stands still meanwhile.
    pub last_step: bool,
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{rule}` is not a rate: {reason}; write `20MiB/s`, `08:00-18:00 mon-fri 20MiB/s`, or `unlimited`"
)]
pub struct RateError {
    /// As it was written.
    pub rule: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Bytes a second, or no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate(Option<u64>);

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    text: String,
    /// From, and up to and not with; over midnight where the second is not later.
    hours: Option<(Time, Time)>,
    /// By [`Weekday::to_monday_zero_offset`].
    days: [bool; 7],
    rate: Rate,
}

/// Rules, of which the first that fits holds. Where none does there is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule(Vec<Rule>);

impl Schedule {
    /// The rate at a moment of local time, bytes a second, and the rule that says so; `None`: no limit.
    pub fn at(&self, now: DateTime) -> (Option<u64>, Option<&str>) {
        match self.0.iter().find(|rule| rule.holds(now)) {
            Some(rule) => (rule.rate.0, Some(&rule.text)),
            None => (None, None),
        }
    }

    fn new(rules: Vec<Rule>) -> Result<Self, String> {
        match rules.len() {
            1..=MAX_RULES => Ok(Self(rules)),
            0 => Err("there is no rule: leave it out, or write `unlimited`".into()),
            n => Err(format!("{n} rules are more than {MAX_RULES}")),
        }
    }
}

impl Rule {
    fn holds(&self, now: DateTime) -> bool {
        let on = |day: Weekday| self.days[day.to_monday_zero_offset() as usize];
        let (today, time) = (now.weekday(), now.time());
        match self.hours {
            None => on(today),
            Some((from, to)) if from < to => on(today) && from <= time && time < to,
            // Over midnight: the days are those on which it begins.
            Some((from, to)) => (on(today) && time >= from) || (on(today.previous()) && time < to),
        }
    }
}

impl FromStr for Rule {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let bad = |reason: String| RateError { rule: text.to_owned(), reason };
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let rate = words.pop().ok_or_else(|| bad("it is empty".into()))?;
        let rate = rate_of(rate).map_err(bad)?;
        let (mut hours, mut days) = (None, None);
        for word in words {
            if word.contains(':') {
                if hours.replace(hours_of(word).map_err(bad)?).is_some() {
                    return Err(bad("it has two times".into()));
                }
            } else if days.replace(days_of(word).map_err(bad)?).is_some() {
                return Err(bad("it has two lists of days; write `mon-fri,sun`".into()));
            }
        }
        Ok(Self { text: text.to_owned(), hours, days: days.unwrap_or([true; 7]), rate })
    }
}

fn rate_of(word: &str) -> Result<Rate, String> {
    if word == "unlimited" {
        return Ok(Rate(None));
    }
    let amount = word.strip_suffix("/s").ok_or_else(|| format!("`{word}` does not end with /s"))?;
    let digits = amount.find(|c: char| !c.is_ascii_digit()).unwrap_or(amount.len());
    let (number, unit) = amount.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("`{word}` has no whole number"))?;
    let factor = match unit {
        "B" => 1,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("`{unit}` is none of B, KB, KiB, MB, MiB, GB, GiB")),
    };
    let rate = number.checked_mul(factor).ok_or_else(|| format!("`{word}` is too much"))?;
    if rate < LEAST_RATE {
        return Err(format!("`{word}` is less than 64KiB/s: a transfer would seem to stand still"));
    }
    Ok(Rate(Some(rate)))
}

fn hours_of(word: &str) -> Result<(Time, Time), String> {
    let bad = || format!("`{word}` is not a time such as 08:00-18:00");
    let (from, to) = word.split_once('-').ok_or_else(bad)?;
    let time = |text: &str, end: bool| {
        let (hour, minute) = text.split_once(':').ok_or_else(bad)?;
        let two = |text: &str| match text.len() {
            2 => text.parse::<i8>().map_err(|_| bad()),
            _ => Err(bad()),
        };
        match (two(hour)?, two(minute)?) {
            (24, 0) if end => Ok(Time::midnight()),
            (hour, minute) => Time::new(hour, minute, 0, 0).map_err(|_| bad()),
        }
    };
    let (from, to) = (time(from, false)?, time(to, true)?);
    if from == to {
        return Err(format!("`{word}` begins when it ends; leave it out for the whole day"));
    }
    Ok((from, to))
}

fn days_of(word: &str) -> Result<[bool; 7], String> {
    const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let day = |name: &str| {
        let found = NAMES.iter().position(|known| name.eq_ignore_ascii_case(known));
        found.ok_or_else(|| format!("`{name}` is none of {}", NAMES.join(", ")))
    };
    let mut days = [false; 7];
    for part in word.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        let mut at = first;
        days[at] = true;
        while at != last {
            at = (at + 1) % 7;
            days[at] = true;
        }
    }
    Ok(days)
}

impl<'de> Deserialize<'de> for Schedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rules;
        impl<'de> Visitor<'de> for Rules {
            type Value = Schedule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rate such as \"20MiB/s\", or a list of rates with their times")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Schedule, E> {
                let rule = text.parse().map_err(E::custom)?;
                Schedule::new(vec![rule]).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Schedule, A::Error> {
                let mut rules = Vec::new();
                while let Some(text) = seq.next_element::<String>()? {
                    rules.push(text.parse().map_err(de::Error::custom)?);
                }
                Schedule::new(rules).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rules: &[&str]) -> Schedule {
        Schedule::new(rules.iter().map(|rule| rule.parse().unwrap()).collect()).unwrap()
    }

    /// At so many o'clock of a day in the week of Monday, 2026-01-05.
    fn at(schedule: &Schedule, day: i8, hour: i8, minute: i8) -> Option<u64> {
        schedule.at(jiff::civil::datetime(2026, 1, 4 + day, hour, minute, 0, 0)).0
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_lone_rate_holds_always_and_units_are_what_they_say() {
        for (text, rate) in [
            ("20MiB/s", Some(20 * MIB)),
            ("20MB/s", Some(20_000_000)),
            ("1GiB/s", Some(1 << 30)),
            ("65536B/s", Some(65536)),
            ("unlimited", None),
        ] {
            assert_eq!(at(&schedule(&[text]), 7, 23, 59), rate, "{text}");
        }
    }

    #[test]
    fn the_first_rule_that_fits_holds_and_none_is_no_limit() {
        let rules = schedule(&["08:00-18:00 mon-fri 20MiB/s", "sat,sun unlimited", "100MiB/s"]);
        assert_eq!(at(&rules, 1, 7, 59), Some(100 * MIB));
        assert_eq!(at(&rules, 1, 8, 0), Some(20 * MIB));
        assert_eq!(at(&rules, 5, 17, 59), Some(20 * MIB));
        assert_eq!(at(&rules, 5, 18, 0), Some(100 * MIB));
        assert_eq!(at(&rules, 6, 12, 0), None);
        assert_eq!(at(&schedule(&["08:00-18:00 20MiB/s"]), 1, 20, 0), None);
    }

    #[test]
    fn over_midnight_the_days_are_those_on_which_it_begins() {
        let rules = schedule(&["22:00-06:00 fri 1MiB/s"]);
        assert_eq!(at(&rules, 5, 23, 0), Some(MIB));
        assert_eq!(at(&rules, 6, 5, 59), Some(MIB));
        assert_eq!(at(&rules, 6, 6, 0), None);
        assert_eq!(at(&rules, 5, 5, 0), None);
        assert_eq!(at(&schedule(&["18:00-24:00 1MiB/s"]), 1, 23, 59), Some(MIB));
        assert_eq!(at(&schedule(&["sat-mon 1MiB/s"]), 1, 0, 0), Some(MIB), "around the week's end");
    }

    #[test]
    fn what_is_no_rule_is_named_with_what_to_write() {
        for (text, word) in [
            ("", "empty"),
            ("20", "/s"),
            ("fast/s", "whole number"),
            ("20MiBit/s", "MiBit"),
            ("1KiB/s", "64KiB/s"),
            ("0B/s", "64KiB/s"),
            ("99999999999GiB/s", "too much"),
            ("8:00-18:00 1MiB/s", "08:00-18:00"),
            ("08:00-25:00 1MiB/s", "08:00-18:00"),
            ("08:00-08:00 1MiB/s", "whole day"),
            ("08:00-09:00 10:00-11:00 1MiB/s", "two times"),
            ("mon tue 1MiB/s", "two lists"),
            ("monday 1MiB/s", "monday"),
        ] {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("20MiB/s"), "{text}: {error}");
        }
    }
}
