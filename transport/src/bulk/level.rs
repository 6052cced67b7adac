//! How hard batches are compressed: what they are, and which part of the way is the slowest.
//!
//! Owns: what a batch holds ([`Content`]), what the slowest part is, seen by what the sending thread found each time
//! that it came for the next batch ([`Limit`]), and the level that follows ([`Adaptive`]). Leaves to others: when a
//! batch comes (`send`), compressing it (`codec`).
//!
//! A change of level is tried for a moment and kept only where the stream moved faster for it. So a receiver whose disk
//! is the limit, which looks like a slow link from here, costs nobody any compression that does not help.

use std::time::{Duration, Instant};

use zfs_stream::{Compression as Zio, Record};

use super::rung::Rung;

/// Levels of zstd from fast to small, after storing. Each step about halves the speed, beyond 3 for few per cent of
/// length.
pub const LADDER: [Option<i32>; 7] = [None, Some(-5), Some(-1), Some(1), Some(3), Some(6), Some(9)];

/// Where a transfer begins: level 1.
pub const START: usize = 3;

/// A window is at least this long, and has at least this many batches, before anything is concluded from it.
const WINDOW: Duration = Duration::from_millis(200);
const WINDOW_BATCHES: u32 = 12;

/// A level is kept when the stream moves by this much faster for it, in per cent.
const GAIN_PERCENT: u64 = 5;

/// A level that costs less is kept unless the stream is slower by this much, in per cent.
const LOSS_PERCENT: u64 = 3;

/// After a trial in vain the next one in that direction is so many windows later, and twice as many each further time.
const PATIENCE: u32 = 16;
const MOST_PATIENCE: u32 = 256;

/// How to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// As hard as pays: between storing and level 9, by what limits the transfer. What is compressed or encrypted
    /// already is left alone.
    #[default]
    Adaptive,
    /// Everything is stored.
    Off,
    /// zstd at this level, -7 to 19, whatever it is.
    Level(i32),
}

/// What a batch mostly holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Content {
    /// Data as they are.
    #[default]
    Plain,
    /// Compressed by something fast that leaves something to gain: lz4, lzjb, zle.
    Light,
    /// Compressed by zstd or gzip, or encrypted: no gain is left.
    Dense,
}

impl Content {
    /// All of them, by their numbers.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Light, Self::Dense];

    /// What a record holds; `raw`: in a stream of raw blocks, which may be encrypted.
    pub fn of(record: &Record, raw: bool) -> Self {
        let compression = match record {
            _ if raw => return Self::Dense,
            Record::Write(write) => write.compression,
            Record::Spill(spill) => spill.compression,
            _ => Zio::NONE,
        };
        match compression {
            Zio::NONE | Zio::OFF => Self::Plain,
            Zio::LZ4 | Zio::LZJB | Zio::ZLE => Self::Light,
            _ => Self::Dense,
        }
    }
}

/// The slowest part of the way of a batch, as the sending thread finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// No batch was there: whoever makes the stream.
    Source,
    /// One was there, and was still being compressed.
    Processor,
    /// Batches were ready and waited: the link, or what is behind it.
    Lane,
    /// Batches were ready and waited because they may go no faster ([`crate::bulk::Pace`]).
    Rate,
}

impl Limit {
    /// All of them, by their numbers.
    pub const ALL: [Self; 4] = [Self::Source, Self::Processor, Self::Lane, Self::Rate];

    /// In a word, as `status` shows it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Processor => "processor",
            Self::Lane => "link or target",
            Self::Rate => "our own rate",
        }
    }
}

impl Compression {
    /// The level for a batch on a rung; `None`: stored.
    pub fn level(self, rung: usize, content: Content) -> Option<i32> {
        match self {
            Self::Off => None,
            Self::Level(level) => Some(level),
            Self::Adaptive => level_of(rung, content),
        }
    }
}

/// The same where it is left to what limits the transfer.
fn level_of(rung: usize, content: Content) -> Option<i32> {
    match content {
        Content::Plain => LADDER[rung],
        // Worth it where the link is the limit, and never more than that.
        Content::Light => (rung > START).then_some(1),
        Content::Dense => None,
    }
}

/// A batch that was handed to the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Its bytes before compression.
    pub bytes: usize,
    /// The rung at which it was compressed.
    pub rung: usize,
    /// What it mostly holds.
    pub content: Content,
    /// What was found when it was fetched; `None`: nothing in particular.
    pub limit: Option<Limit>,
}

/// A moment's batches.
#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    bytes: u64,
    batches: u32,
    /// How often each was the limit.
    limits: [u32; Limit::ALL.len()],
}

impl Window {
    fn new(since: Instant) -> Self {
        Self { since, bytes: 0, batches: 0, limits: [0; Limit::ALL.len()] }
    }

    /// What most of its batches say.
    fn limit(&self) -> Option<Limit> {
        (Limit::ALL.into_iter().zip(self.limits))
            .find(|(_, n)| n * 2 > self.batches)
            .map(|(l, _)| l)
    }

    fn bytes_per_second(&self, now: Instant) -> u64 {
        let micros = now.duration_since(self.since).as_micros().max(1);
        u64::try_from(u128::from(self.bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)
    }
}

/// A level that is being tried.
#[derive(Debug, Clone, Copy)]
struct Trial {
    back_to: usize,
    /// What the stream did before, bytes per second.
    before: u64,
    /// What was the limit then.
    under: Limit,
    /// It costs less than what it is to replace.
    cheaper: bool,
}

/// How long no trial in a direction is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Patience {
    windows_left: u32,
    next: u32,
    /// What was the limit then. Where it is another, nothing is known of such a trial.
    under: Option<Limit>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { windows_left: 0, next: PATIENCE, under: None }
    }
}

impl Patience {
    fn in_vain(&mut self, under: Limit) {
        if self.under != Some(under) {
            *self = Self { under: Some(under), ..Self::default() };
        }
        self.windows_left = self.next;
        self.next = (self.next * 2).min(MOST_PATIENCE);
    }

    fn allows(&self, under: Limit) -> bool {
        self.windows_left == 0 || self.under != Some(under)
    }
}

/// What a transfer found out: where the next one of the same volume to the same peer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learned {
    rung: usize,
    down: Patience,
    up: Patience,
}

impl Default for Learned {
    fn default() -> Self {
        Self { rung: START, down: Patience::default(), up: Patience::default() }
    }
}

impl Learned {
    /// The zstd level for plain data; `None`: stored.
    pub fn level(&self) -> Option<i32> {
        LADDER[self.rung]
    }
}

/// Finds the level of one transfer. Told of every batch, in order.
#[derive(Debug)]
pub struct Adaptive {
    rung: usize,
    /// `None`: batches of the present rung have not come yet, or have just begun to.
    window: Option<Window>,
    /// The first window on a rung is not looked at: queues on the way still hold what came before.
    settled: bool,
    trial: Option<Trial>,
    down: Patience,
    up: Patience,
}

impl Adaptive {
    /// One that begins where the last transfer came to, and says so in `rung`.
    pub fn new(learned: Learned, rung: &Rung) -> Self {
        let Learned { rung: from, down, up } = learned;
        rung.set(from, None);
        Self { rung: from, window: None, settled: false, trial: None, down, up }
    }

    /// What it found out. A trial that was not over has shown nothing.
    pub fn learned(&self) -> Learned {
        let rung = self.trial.map_or(self.rung, |trial| trial.back_to);
        Learned { rung, down: self.down, up: self.up }
    }

    /// Takes note of a batch, and says in `rung` what follows from it.
    pub fn sent(&mut self, sent: Sent, now: Instant, rung: &Rung) {
        if sent.rung != self.rung {
            return;
        }
        // Its bytes went before the window began.
        let Some(window) = &mut self.window else {
            self.window = Some(Window::new(now));
            return;
        };
        window.bytes += sent.bytes as u64;
        window.batches += 1;
        if let Some(limit) = sent.limit {
            window.limits[limit as usize] += 1;
        }
        if window.batches < WINDOW_BATCHES || now.duration_since(window.since) < WINDOW {
            return;
        }
        let window = std::mem::replace(window, Window::new(now));
        let limit = window.limit();
        if std::mem::replace(&mut self.settled, true) {
            self.conclude(limit, window.bytes_per_second(now), sent.content, rung);
        }
        rung.set(self.rung, limit);
    }

    fn conclude(&mut self, limit: Option<Limit>, rate: u64, content: Content, shared: &Rung) {
        for patience in [&mut self.down, &mut self.up] {
            patience.windows_left = patience.windows_left.saturating_sub(1);
        }
        if let Some(Trial { back_to, before, under, cheaper }) = self.trial.take() {
            let kept = match cheaper {
                true => rate * 100 >= before * (100 - LOSS_PERCENT),
                false => rate * 100 >= before * (100 + GAIN_PERCENT),
            };
            let way = if self.rung > back_to { &mut self.up } else { &mut self.down };
            if kept {
                way.next = PATIENCE;
            } else {
                way.in_vain(under);
                return self.go(back_to);
            }
        }
        let Some(limit) = limit else { return };
        let up = match content {
            Content::Plain => Some(self.rung + 1),
            // There is one level for these, and a sample says whether it is worth a trial.
            Content::Light if self.rung <= START && shared.light_pays(rate) => Some(START + 1),
            Content::Light | Content::Dense => None,
        };
        let (stored, down) = (level_of(self.rung, content).is_none(), self.rung.wrapping_sub(1));
        match limit {
            // What a higher level gained may have been an accident, or be over: now and then a lower one has to
            // show that it is as good. A rate of our own counts what is on the wire: it is a link as narrow.
            Limit::Lane | Limit::Rate => {
                let tried = up.is_some_and(|up| self.attempt(up, rate, limit, false));
                if !tried && self.rung > START {
                    self.attempt(down, rate, limit, true);
                }
            }
            Limit::Processor if stored => {}
            Limit::Processor => {
                self.attempt(down, rate, limit, false);
            }
            // Nobody waits for compression: it may cost as much as at the beginning, and save as much.
            Limit::Source if self.rung > START => {
                self.attempt(down, rate, limit, true);
            }
            Limit::Source if self.rung < START => {
                self.attempt(self.rung + 1, rate, limit, true);
            }
            Limit::Source => {}
        }
    }

    /// Tries a rung, if there is one, and the last trial of that kind was long enough ago.
    fn attempt(&mut self, to: usize, before: u64, under: Limit, cheaper: bool) -> bool {
        let patience = if to > self.rung { self.up } else { self.down };
        let tries = to < LADDER.len() && patience.allows(under);
        if tries {
            self.trial = Some(Trial { back_to: self.rung, before, under, cheaper });
            self.go(to);
        }
        tries
    }

    fn go(&mut self, to: usize) {
        (self.rung, self.window, self.settled) = (to, None, false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::rung::Sample;
    use super::*;

    const MB: f64 = 1e6;

    /// A transfer whose parts have these speeds.
    struct Way {
        /// Stream bytes per second that the source yields.
        source: f64,
        /// Stream bytes per second that are compressed on each rung.
        processor: [f64; LADDER.len()],
        /// By what the stream is divided on each rung.
        ratio: [f64; LADDER.len()],
        /// Wire bytes per second.
        link: f64,
        /// Stream bytes per second that the target writes.
        sink: f64,
    }

    /// As measured on two processors for libraries and text.
    fn text() -> Way {
        Way {
            source: 5_000.0 * MB,
            processor: [7_000.0, 1_700.0, 1_400.0, 1_200.0, 900.0, 400.0, 190.0].map(|s| s * MB),
            ratio: [1.0, 2.62, 3.27, 3.69, 4.04, 4.3, 4.47],
            link: 125.0 * MB,
            sink: 5_000.0 * MB,
        }
    }

    fn noise() -> Way {
        Way { ratio: [1.0; LADDER.len()], ..text() }
    }

    impl Way {
        fn speed(&self, rung: usize) -> (f64, Limit) {
            let parts = [
                (self.source, Limit::Source),
                (self.processor[rung], Limit::Processor),
                (self.link * self.ratio[rung], Limit::Lane),
                (self.sink, Limit::Lane),
            ];
            parts.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).expect("parts")
        }

        /// The share of the time, of 60 s, that was spent on each rung.
        fn shares(&self) -> [f64; LADDER.len()] {
            self.noisy_shares(0.0, 1)
        }

        /// The same where speeds change by up to this part from second to second.
        fn noisy_shares(&self, noise: f64, seed: u64) -> [f64; LADDER.len()] {
            let rung = Rung::default();
            let mut adaptive = Adaptive::new(Learned::default(), &rung);
            let begun = Instant::now();
            let (mut at, mut shares) = (0.0, [0.0; LADDER.len()]);
            // Six batches are on their way between the reader and the lane.
            let mut queue = std::collections::VecDeque::from([START; 6]);
            while at < 60.0 {
                queue.push_back(rung.get());
                let sent = queue.pop_front().expect("a batch");
                let (speed, limit) = self.speed(sent);
                let drawn = blake3::hash(&[seed, at as u64].map(u64::to_le_bytes).concat());
                let drawn = f64::from(drawn.as_bytes()[0]) / 127.5 - 1.0;
                let took = MB / (speed * (1.0 + noise * drawn));
                at += took;
                shares[sent] += took / 60.0;
                let batch = Sent {
                    bytes: 1_000_000,
                    rung: sent,
                    limit: Some(limit),
                    content: Content::Plain,
                };
                adaptive.sent(batch, begun + Duration::from_secs_f64(at), &rung);
            }
            shares
        }

        fn mostly(&self) -> Option<i32> {
            let shares = self.shares();
            let most = (0..LADDER.len()).max_by(|a, b| shares[*a].total_cmp(&shares[*b]));
            let most = most.expect("a rung");
            assert!(shares[most] > 0.7, "{shares:?}");
            LADDER[most]
        }
    }

    #[test]
    fn a_slow_link_gets_what_shortens_the_stream_and_no_more() {
        assert_eq!(text().mostly(), Some(3));
        let much = Way { ratio: [1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0], link: 5.0 * MB, ..text() };
        assert_eq!(much.mostly(), Some(9));
    }

    #[test]
    fn a_fast_link_is_not_held_up_by_compression() {
        assert_eq!(Way { link: 10_000.0 * MB, sink: 20_000.0 * MB, ..text() }.mostly(), None);
        // Where storing would make the link the limit again, the level before is the best.
        assert_eq!(Way { link: 1_000.0 * MB, ..text() }.mostly(), Some(-5));
    }

    #[test]
    fn a_slow_source_or_target_gets_no_more_than_at_the_beginning() {
        assert_eq!(Way { source: 100.0 * MB, ..text() }.mostly(), Some(1));
        assert_eq!(Way { sink: 100.0 * MB, link: 1_000.0 * MB, ..text() }.mostly(), Some(1));
    }

    #[test]
    fn a_target_whose_speed_changes_by_itself_does_not_drive_the_level_up() {
        let slow = Way { sink: 100.0 * MB, link: 1_000.0 * MB, ..text() };
        let of_seed = |seed| slow.noisy_shares(0.2, seed);
        // What counts is the dear end: a level of 6 or 9 for nothing.
        let dear: f64 = (1..=40).map(|seed| of_seed(seed)[5..].iter().sum::<f64>()).sum();
        assert!(dear / 40.0 < 0.1, "{} of the time at level 6 or 9", dear / 40.0);
    }

    #[test]
    fn light_blocks_are_compressed_only_where_a_sample_says_that_the_link_gains_by_it() {
        let levels = |sample: Option<usize>| {
            let rung = Rung::default();
            let mut adaptive = Adaptive::new(Learned::default(), &rung);
            let (begun, mut at, mut packed) = (Instant::now(), 0.0, 0);
            if let Some(left) = sample {
                rung.sampled(Sample { bytes: 1000, left, took: Duration::from_micros(2) });
            }
            for _ in 0..2000 {
                let sent = rung.get();
                let is_packed = level_of(sent, Content::Light).is_some();
                packed += u32::from(is_packed);
                at += if is_packed { 8e-3 } else { 1e-2 };
                let (content, limit) = (Content::Light, Some(Limit::Lane));
                let batch = Sent { bytes: 1_000_000, rung: sent, content, limit };
                adaptive.sent(batch, begun + Duration::from_secs_f64(at), &rung);
                assert!(sent <= START + 1, "there is one level for these");
            }
            packed
        };
        assert_eq!(levels(None), 0, "nothing is known of them");
        assert_eq!(levels(Some(950)), 0, "not even a trial");
        assert!(levels(Some(800)) > 1500);
    }

    #[test]
    fn the_next_transfer_begins_where_the_last_one_came_to_but_not_at_a_trial() {
        let rung = Rung::default();
        let mut adaptive = Adaptive::new(Learned::default(), &rung);
        assert_eq!(adaptive.learned(), Learned::default());
        let (begun, mut at) = (Instant::now(), 0.0);
        let mut tried = 0;
        for _ in 0..5000 {
            let (speed, limit) = text().speed(rung.get());
            at += MB / speed;
            let (content, limit) = (Content::Plain, Some(limit));
            let batch = Sent { bytes: 1_000_000, rung: rung.get(), content, limit };
            adaptive.sent(batch, begun + Duration::from_secs_f64(at), &rung);
            tried += u32::from(adaptive.learned().level() != rung.level());
        }
        assert!(tried > 0, "it tries levels");
        assert_eq!(adaptive.learned().level(), Some(3));
        let next = Rung::default();
        Adaptive::new(adaptive.learned(), &next);
        assert_eq!(next.level(), Some(3));
    }

    #[test]
    fn what_does_not_shrink_is_tried_ever_more_rarely() {
        let shares = noise().shares();
        assert!(shares[START] > 0.9, "{shares:?}");
    }

    #[test]
    fn a_link_that_becomes_the_limit_or_ceases_to_be_is_followed() {
        let rung = Rung::default();
        let mut adaptive = Adaptive::new(Learned::default(), &rung);
        let begun = Instant::now();
        let mut at = 0.0;
        let mut run = |way: &Way, seconds: f64| {
            let until = at + seconds;
            while at < until {
                let sent = rung.get();
                let (speed, limit) = way.speed(sent);
                at += MB / speed;
                let batch = Sent {
                    bytes: 1_000_000,
                    rung: sent,
                    limit: Some(limit),
                    content: Content::Plain,
                };
                adaptive.sent(batch, begun + Duration::from_secs_f64(at), &rung);
            }
            (rung.level(), rung.limit())
        };
        assert_eq!(run(&text(), 10.0), (Some(3), Some(Limit::Lane)));
        let fast = Way { link: 10_000.0 * MB, ..text() };
        assert_eq!(run(&fast, 10.0).0, None);
        assert_eq!(run(&Way { source: 50.0 * MB, ..text() }, 20.0), (Some(1), Some(Limit::Source)));
    }

    #[test]
    fn what_is_compressed_already_is_compressed_again_only_where_the_link_is_the_limit() {
        let level = |rung, content| Compression::Adaptive.level(rung, content);
        for (rung, plain) in LADDER.into_iter().enumerate() {
            assert_eq!(level(rung, Content::Plain), plain);
            assert_eq!(level(rung, Content::Dense), None);
            assert_eq!(level(rung, Content::Light), (rung > START).then_some(1));
        }
        assert_eq!(Compression::Off.level(6, Content::Plain), None);
        assert_eq!(Compression::Level(19).level(0, Content::Dense), Some(19));
    }
}
