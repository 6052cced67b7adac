//! Durations and sizes as people write them, both ways.
//!
//! Owns: `1s`, `15m`, `10G` and their opposites for print. Leaves to others: what the values mean.

use std::time::Duration;

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuantityError {
    /// Nothing there.
    #[error("nothing is given; {form}")]
    Empty {
        /// What is expected.
        form: &'static str,
    },
    /// No number in front.
    #[error("`{text}` does not begin with a number; {form}")]
    NoNumber {
        /// What was given.
        text: String,
        /// What is expected.
        form: &'static str,
    },
    /// A number without the unit it needs.
    #[error("`{text}` has no unit; {form}")]
    NoUnit {
        /// What was given.
        text: String,
        /// What is expected.
        form: &'static str,
    },
    /// A unit nobody knows.
    #[error("`{unit}` in `{text}` is not a unit; {form}")]
    UnknownUnit {
        /// What was given.
        text: String,
        /// The part that is not understood.
        unit: String,
        /// What is expected.
        form: &'static str,
    },
    /// More than fits.
    #[error("`{text}` is too large")]
    TooLarge {
        /// What was given.
        text: String,
    },
    /// Zero where that makes no sense, or less than the smallest step.
    #[error("`{text}` comes to nothing; give at least {least}")]
    TooSmall {
        /// What was given.
        text: String,
        /// The smallest value.
        least: &'static str,
    },
}

const DURATION_FORM: &str = "write a duration such as 500ms, 1s, 15m, 2h, 1d or 1h30m";
const SIZE_FORM: &str = "write a size such as 4096, 512K, 10G or 1.5T (powers of 1024)";

/// Splits a leading decimal number off: whole part, fraction digits, rest.
fn split_number(text: &str) -> (&str, &str, &str) {
    let whole_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (whole, rest) = text.split_at(whole_end);
    match rest.strip_prefix('.') {
        Some(after) => {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let (fraction, rest) = after.split_at(end);
            (whole, fraction, rest)
        }
        None => (whole, "", rest),
    }
}

/// `whole.fraction × unit`, rounded down; `None` when it does not fit.
fn scale(whole: &str, fraction: &str, unit: u64) -> Option<u64> {
    let mut total = u128::from(whole.parse::<u64>().ok()?) * u128::from(unit);
    // Nine digits are more than any unit here needs; what follows changes nothing.
    let digits = &fraction[..fraction.len().min(9)];
    if !digits.is_empty() {
        let value = u128::from(digits.parse::<u64>().ok()?);
        total += value * u128::from(unit) / 10u128.pow(digits.len() as u32);
    }
    u64::try_from(total).ok()
}

/// Reads a duration: one or more numbers, each with its unit (`ms`, `s`, `m`, `h`, `d`).
///
/// # Errors
/// [`QuantityError`]; zero is refused, since no option of ours means anything by it.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    let form = DURATION_FORM;
    let given = text.trim();
    if given.is_empty() {
        return Err(QuantityError::Empty { form });
    }
    let too_large = || QuantityError::TooLarge { text: given.into() };
    let mut rest = given;
    let mut total_ms = 0u64;
    while !rest.is_empty() {
        let (whole, fraction, after) = split_number(rest);
        if whole.is_empty() {
            let text = given.into();
            return Err(QuantityError::NoNumber { text, form });
        }
        let unit_end = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let unit_ms = match unit {
            "ms" => 1,
            "s" | "sec" => 1000,
            "m" | "min" => 60 * 1000,
            "h" => 60 * 60 * 1000,
            "d" => 24 * 60 * 60 * 1000,
            "" if next.is_empty() => {
                let text = given.into();
                return Err(QuantityError::NoUnit { text, form });
            }
            _ => {
                return Err(QuantityError::UnknownUnit {
                    text: given.into(),
                    unit: if unit.is_empty() { next } else { unit }.into(),
                    form,
                });
            }
        };
        let part = scale(whole, fraction, unit_ms).ok_or_else(too_large)?;
        total_ms = total_ms.checked_add(part).ok_or_else(too_large)?;
        rest = next;
    }
    if total_ms == 0 {
        return Err(QuantityError::TooSmall { text: given.into(), least: "1ms" });
    }
    Ok(Duration::from_millis(total_ms))
}

/// Reads a size in bytes: a number, and `K`, `M`, `G`, `T` or `P` (powers of 1024; `B` and `iB` may follow).
///
/// # Errors
/// [`QuantityError`]; zero is refused.
pub(crate) fn parse_size(text: &str) -> Result<u64, QuantityError> {
    let form = SIZE_FORM;
    let given = text.trim();
    if given.is_empty() {
        return Err(QuantityError::Empty { form });
    }
    let (whole, fraction, after) = split_number(given);
    if whole.is_empty() {
        let text = given.into();
        return Err(QuantityError::NoNumber { text, form });
    }
    let unit = after.trim_start().to_ascii_lowercase();
    let letter = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match letter {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => {
            return Err(QuantityError::UnknownUnit {
                text: given.into(),
                unit: after.trim_start().into(),
                form,
            });
        }
    };
    match scale(whole, fraction, 1 << shift) {
        None => Err(QuantityError::TooLarge { text: given.into() }),
        Some(0) => Err(QuantityError::TooSmall { text: given.into(), least: "1 byte" }),
        Some(bytes) => Ok(bytes),
    }
}

/// Bytes with three digits and a unit: `0 B`, `999 B`, `32.0 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 99.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// Milliseconds with a unit that fits: `12 ms`, `1.25 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`.
pub(crate) fn millis(ms: u64) -> String {
    let seconds = ms / 1000;
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..10_000 => format!("{:.2} s", ms as f64 / 1000.0),
        10_000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        60_000..3_600_000 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3_600_000..86_400_000 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Bytes a second, as [`bytes`].
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// `1 round`, `2 rounds`.
pub(crate) fn count(number: u64, singular: &str) -> String {
    if number == 1 { format!("1 {singular}") } else { format!("{number} {singular}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_duration(text: &str, ms: u64) {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
    }

    fn duration_error(text: &str) -> String {
        parse_duration(text).unwrap_err().to_string()
    }

    #[test]
    fn durations_are_read_in_every_unit_and_in_sums() {
        check_duration("500ms", 500);
        check_duration("1s", 1000);
        check_duration("1.5s", 1500);
        check_duration(" 15m ", 900_000);
        check_duration("1h30m", 5_400_000);
        check_duration("1d", 86_400_000);
        check_duration("0.5h", 1_800_000);
    }

    #[test]
    fn a_bad_duration_says_what_is_wrong_and_what_to_write() {
        assert!(duration_error("").contains("nothing is given"));
        assert!(duration_error("15").contains("`15` has no unit"));
        assert!(duration_error("soon").contains("does not begin with a number"));
        assert!(duration_error("3 weeks").contains("not a unit"));
        assert!(duration_error("3w").contains("`w` in `3w` is not a unit"));
        assert!(duration_error("-1s").contains("does not begin with a number"));
        assert!(duration_error("0s").contains("comes to nothing"));
        assert!(duration_error("99999999999999999999d").contains("too large"));
        assert!(duration_error("18446744073709551615s").contains("too large"));
        assert!(duration_error("1s2").contains("has no unit"));
        for text in ["", "15", "soon", "3w"] {
            assert!(duration_error(text).contains("500ms, 1s, 15m"), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("512K"), Ok(512 << 10));
        assert_eq!(parse_size("10G"), Ok(10 << 30));
        assert_eq!(parse_size("10GiB"), Ok(10 << 30));
        assert_eq!(parse_size("10 gb"), Ok(10 << 30));
        assert_eq!(parse_size("1.5k"), Ok(1536));
        assert_eq!(parse_size("7B"), Ok(7));
    }

    #[test]
    fn a_bad_size_says_what_is_wrong() {
        let error = |text: &str| parse_size(text).unwrap_err().to_string();
        assert!(error("").contains("nothing is given"));
        assert!(error("G").contains("does not begin with a number"));
        assert!(error("10Q").contains("`Q` in `10Q` is not a unit"));
        assert!(error("0").contains("comes to nothing"));
        assert!(error("99999P").contains("too large"));
        assert!(error("١0G").contains("does not begin with a number"));
    }

    #[test]
    fn quantities_are_printed_with_a_unit_that_fits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(32 << 20), "32.0 MiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16384 PiB");
        assert_eq!(millis(0), "0 ms");
        assert_eq!(millis(1250), "1.25 s");
        assert_eq!(millis(59_900), "59.9 s");
        assert_eq!(millis(200_000), "3 min 20 s");
        assert_eq!(millis(7_500_000), "2 h 05 min");
        assert_eq!(millis(273_600_000), "3 d 4 h");
        assert_eq!(count(1, "round"), "1 round");
        assert_eq!(count(0, "round"), "0 rounds");
    }
}
