//! Replication rounds as a table.

use flocker_core::io::RoundReport;
use flocker_engine::api::StampedRound;

use super::Names;
use crate::out::{Align, Theme, table};
use crate::quantity::{bytes, millis};

const HEADER: [(&str, Align); 8] = [
    ("round", Align::Right),
    ("what", Align::Left),
    ("bytes", Align::Right),
    ("on the wire", Align::Right),
    ("took", Align::Right),
    ("lag before", Align::Right),
    ("frozen", Align::Right),
    ("skipped", Align::Right),
];

/// What of a full round was there already is why it was cheap; of others it is no surprise.
fn what(round: &RoundReport) -> String {
    match (round.full, round.saved_bytes) {
        (false, _) => "difference".to_owned(),
        (true, 0) => "everything".to_owned(),
        (true, saved) => format!("everything, {} there", bytes(saved)),
    }
}

fn cells(round: &RoundReport) -> Vec<String> {
    vec![
        round.round.to_string(),
        what(round),
        bytes(round.stream_bytes),
        bytes(round.wire_bytes),
        millis(round.duration_ms),
        round.lag_before_ms.map_or_else(|| "-".into(), millis),
        millis(round.frozen_ms),
        round.skipped.to_string(),
    ]
}

/// Rounds to one peer.
pub(crate) fn table_of(rounds: &[RoundReport], indent: usize, theme: Theme) -> String {
    let rows: Vec<Vec<String>> = rounds.iter().map(cells).collect();
    table(theme, indent, &HEADER, &rows)
}

/// Rounds of the history, each with its moment and its peer.
pub(crate) fn stamped(rounds: &[StampedRound], names: &Names, theme: Theme) -> String {
    let mut header = vec![("at", Align::Left), ("to", Align::Left)];
    header.extend(HEADER);
    let rows: Vec<Vec<String>> = rounds
        .iter()
        .map(|stamped| {
            let mut row = vec![moment(stamped.at_unix_ms), names.name(stamped.round.peer)];
            row.extend(cells(&stamped.round));
            row
        })
        .collect();
    table(theme, 0, &header, &rows)
}

/// A wall clock moment in this machine's own time, to the millisecond.
pub(crate) fn moment(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms).map_or_else(
        |_| format!("{unix_ms} ms"),
        |moment| {
            moment
                .to_zoned(jiff::tz::TimeZone::system())
                .strftime("%Y-%m-%d %H:%M:%S%.3f")
                .to_string()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn rounds_are_lined_up() {
        let text = table_of(&[samples::round(1), samples::round(2)], 2, Theme::PLAIN);
        assert_eq!(
            text,
            "  round  what           bytes  on the wire    took  lag before  frozen  skipped\n\
             \x20     1  everything  32.0 MiB     12.0 MiB  410 ms           -    3 ms        0\n\
             \x20     2  difference  16.0 MiB      6.0 MiB  205 ms      620 ms    3 ms        1\n"
        );
    }

    #[test]
    fn a_moment_out_of_range_is_still_printed() {
        assert_eq!(moment(i64::MAX), format!("{} ms", i64::MAX));
    }
}
