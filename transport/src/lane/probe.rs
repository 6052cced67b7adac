//! Measuring a lane: filler for a moment, and what came of it.
//!
//! Owns: how long and how much, and the arithmetic. Leaves to others: when ([`crate::peers`]). It runs over
//! a fresh lane, as a transfer does, and its bytes are encrypted and framed like a transfer's.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};

use super::{Lane, LaneError, LaneFrameError, Until, fill, read_header, send_frame};
use crate::frame::lane::{MAX_FILLER, Probed};
use crate::frame::{FrameError, FrameType, Header};

/// For how long filler is sent: some tens of round trips on a near path, several on a far one, and so short
/// that nobody waits for it.
const PROBE_TIME: Duration = Duration::from_millis(150);

/// And how much at most: 30 ms of 10 Gbit/s.
const PROBE_BYTES: u64 = 32 << 20;

/// How long the answer may take: what was sent has still to cross a slow path.
const ANSWER_TIME: Duration = Duration::from_secs(3);

/// What a lane was measured to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// What arrived, in bytes a second, once it was under way.
    pub bytes_per_second: u64,
    /// Processor time of both nodes for a gigabyte (10^9 bytes), in milliseconds.
    pub cpu_ms_per_gb: u64,
}

fn cpu_us() -> u64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    let (s, ns) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    s.unwrap_or(0) * 1_000_000 + ns.unwrap_or(0) / 1000
}

/// Measures a lane on which a Probe was just opened. Blocks, for four seconds at most.
///
/// # Errors
/// [`LaneFrameError`]; the lane is then no good now.
pub(crate) fn measure(mut lane: Lane) -> Result<Figures, LaneFrameError> {
    let (start, cpu) = (Instant::now(), cpu_us());
    let filler = Bytes::from(vec![0; MAX_FILLER]);
    let header = Bytes::from(Header::new(FrameType::Probe, MAX_FILLER).encode().to_vec());
    let mut sent = 0;
    while start.elapsed() < PROBE_TIME && sent < PROBE_BYTES {
        let left = (PROBE_TIME + ANSWER_TIME).saturating_sub(start.elapsed());
        lane.send.send(&mut [header.clone(), filler.clone()], Until::Elapsed(left))?;
        sent += MAX_FILLER as u64;
    }
    lane.send.finish()?;
    let until = Until::Elapsed(ANSWER_TIME);
    let allowed = [FrameType::Probed];
    let header = read_header(lane.recv.as_mut(), &allowed, "the answer to a probe", until)?
        .ok_or(LaneError::Ended)?;
    let mut payload = vec![0; header.len];
    fill(lane.recv.as_mut(), &mut payload, until)?;
    // To its end, or the peer would take dropping the lane for giving it up. What it said counts either way.
    let _ = lane.recv.fill(&mut [0], until);
    let Probed { bytes, elapsed_us, cpu_us: theirs } = Probed::decode(&payload)?;
    let ours = cpu_us().saturating_sub(cpu);
    Ok(Figures {
        bytes_per_second: bytes.saturating_mul(1_000_000) / elapsed_us.max(1),
        cpu_ms_per_gb: ours.saturating_add(theirs).saturating_mul(1_000_000) / sent.max(1),
    })
}

/// Takes a probe that a peer opened, and answers. Blocks, for as long as a probe may take.
///
/// # Errors
/// [`LaneFrameError`]; the peer then finds the lane given up.
pub(crate) fn answer(mut lane: Lane) -> Result<(), LaneFrameError> {
    let (start, cpu) = (Instant::now(), cpu_us());
    let left = || Until::Elapsed((PROBE_TIME + ANSWER_TIME).saturating_sub(start.elapsed()));
    // When each frame had come: the half that counts is known only at the end.
    let mut times: Vec<Instant> = Vec::new();
    let mut filler = vec![0; MAX_FILLER];
    let allowed = [FrameType::Probe];
    while let Some(header) = read_header(lane.recv.as_mut(), &allowed, "a probe", left())? {
        if header.len != MAX_FILLER || times.len() as u64 * MAX_FILLER as u64 > PROBE_BYTES {
            let what = "its filler is of another length, or too much";
            return Err(FrameError::Payload { kind: FrameType::Probe, what }.into());
        }
        fill(lane.recv.as_mut(), &mut filler, left())?;
        times.push(Instant::now());
    }
    let probed = later_half(&times, cpu_us().saturating_sub(cpu));
    send_frame(lane.send.as_mut(), FrameType::Probed, &probed.encode(), left())?;
    lane.send.finish()?;
    Ok(lane.send.drained(left())?)
}

/// The later half, where neither the start of a connection nor what it may keep in its buffers counts as much.
fn later_half(times: &[Instant], cpu_us: u64) -> Probed {
    let half = times.len() / 2;
    let (Some(from), Some(to)) = (times.get(half.saturating_sub(1)), times.last()) else {
        return Probed { bytes: 0, elapsed_us: 0, cpu_us };
    };
    let bytes = (times.len() - half) as u64 * MAX_FILLER as u64;
    let elapsed_us = u64::try_from(to.duration_since(*from).as_micros()).unwrap_or(u64::MAX);
    Probed { bytes, elapsed_us, cpu_us }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_half_is_what_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let probed = later_half(&[at(500), at(900), at(910), at(920)], 7);
        assert_eq!(probed, Probed { bytes: 2 * MAX_FILLER as u64, elapsed_us: 20_000, cpu_us: 7 });
        assert_eq!(later_half(&[], 7), Probed { bytes: 0, elapsed_us: 0, cpu_us: 7 });
    }

    #[test]
    fn a_lane_is_measured_by_what_arrives() {
        let ((a, _), (b, _)) = crate::lane::tls::pair().unwrap();
        let answering = std::thread::spawn(|| answer(b));
        let figures = measure(a).unwrap();
        answering.join().unwrap().unwrap();
        assert!(figures.bytes_per_second > 0 && figures.cpu_ms_per_gb > 0, "{figures:?}");
    }
}
