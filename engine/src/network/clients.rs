//! What clients feel, measured where their bytes pass.
//!
//! Owns: who waits for an answer since when, and a window around a move in which the worst of it is
//! kept. Pure: `now` is an argument. Leaves to others: the bytes (`pass`), and when a move begins and
//! ends (`forward`).
//!
//! A client *waits* from its first byte after its last answer until bytes come back; a new connection
//! waits from the moment it is held. A *gap* is the time without bytes to anybody while somebody waited:
//! from the last answer, or from the begin of the wait if that is later, to the next answer.

use std::time::{Duration, Instant};

use flocker_core::io::ClientsView;

/// One connection's part.
#[derive(Debug, Default)]
pub(super) struct Connection {
    waiting: bool,
    held_since: Option<Instant>,
    /// It was held, and the client had said nothing when it was passed on: either its server speaks
    /// first, and it waits for that, or it has nothing to ask.
    greeting_since: Option<Instant>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The client left first.
    Client,
    /// The workload's side did, or it was cut.
    Backend,
    /// It was never passed on.
    Error,
}

#[derive(Debug, Default)]
struct Window {
    ended: bool,
    answered_since: bool,
    longest_gap: Duration,
    held: u64,
    longest_hold: Duration,
    lost: u64,
    errors: u64,
}

/// All clients of a unit.
#[derive(Debug, Default)]
pub(super) struct Clients {
    waiting: u64,
    /// Since when somebody waits without anybody having been answered.
    since: Option<Instant>,
    /// A connection was cut under a client that waited: it waits on, wherever it is.
    cut: bool,
    last_answer: Option<Instant>,
    held_now: u64,
    held_since: Option<Instant>,
    window: Option<Window>,
    /// Counts the windows.
    serial: u64,
}

impl Clients {
    /// A new connection cannot be passed on yet.
    pub(super) fn held(&mut self, of: &mut Connection, now: Instant) {
        if of.held_since.is_some() {
            return;
        }
        of.held_since = Some(now);
        self.held_since.get_or_insert(now);
        self.held_now += 1;
        if let Some(window) = &mut self.window {
            window.held += 1;
        }
        self.waits(of, now);
    }

    /// It is passed on; `asked`: the client has sent something already.
    pub(super) fn passed_on(&mut self, of: &mut Connection, asked: bool, now: Instant) {
        let Some(since) = self.released(of, now) else { return };
        if !asked {
            of.greeting_since = Some(since);
            self.waits_no_more(of);
        }
    }

    /// Bytes came from the client.
    pub(super) fn request(&mut self, of: &mut Connection, now: Instant) {
        of.greeting_since = None;
        self.waits(of, now);
    }

    /// Bytes went to the client.
    pub(super) fn answer(&mut self, of: &mut Connection, now: Instant) {
        let greeting = of.greeting_since.take();
        let since = match (self.since, greeting) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let begun = since.map(|since| self.last_answer.map_or(since, |last| last.max(since)));
        if let Some(window) = &mut self.window {
            let gap = begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
            window.longest_gap = window.longest_gap.max(gap);
            window.answered_since |= window.ended;
        }
        self.last_answer = Some(now);
        self.cut = false;
        if std::mem::take(&mut of.waiting) {
            self.waiting -= 1;
        }
        self.since = (self.waiting > 0).then_some(now);
    }

    /// The connection is gone.
    pub(super) fn ended(&mut self, of: &mut Connection, how: End, now: Instant) {
        self.released(of, now);
        if let Some(window) = &mut self.window {
            window.lost += u64::from(how == End::Backend);
            window.errors += u64::from(how == End::Error);
        }
        self.cut |= of.waiting && how != End::Client;
        self.waits_no_more(of);
    }

    /// A move begins to stop the workload.
    pub(super) fn begin(&mut self) {
        self.serial += 1;
        self.window = Some(Window { held: self.held_now, ..Window::default() });
    }

    /// It has ended.
    pub(super) fn end(&mut self) {
        if let Some(window) = &mut self.window {
            window.ended = true;
        }
    }

    /// Nothing more can be learnt: somebody was answered after the move, or nobody is left to be.
    pub(super) fn settled(&self) -> bool {
        let Some(window) = &self.window else { return true };
        window.answered_since || (self.since.is_none() && window.lost == 0)
    }

    /// The window so far.
    pub(super) fn view(&self, now: Instant) -> Option<ClientsView> {
        let window = self.window.as_ref()?;
        let still = self.held_since.filter(|_| self.held_now > 0);
        let still = still.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let known = window.answered_since || self.since.is_none();
        Some(ClientsView {
            longest_gap_ms: known.then(|| millis(window.longest_gap)),
            held: window.held,
            longest_hold_ms: millis(window.longest_hold.max(still)),
            lost: window.lost,
            errors: window.errors,
        })
    }

    /// Which window it is.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// The window, which is closed by that; `None`: another one has begun.
    pub(super) fn close(&mut self, serial: u64, now: Instant) -> Option<ClientsView> {
        if serial != self.serial {
            return None;
        }
        let view = self.view(now);
        self.window = None;
        view
    }

    fn waits(&mut self, of: &mut Connection, now: Instant) {
        if !std::mem::replace(&mut of.waiting, true) {
            self.waiting += 1;
            self.since.get_or_insert(now);
        }
    }

    fn waits_no_more(&mut self, of: &mut Connection) {
        if std::mem::take(&mut of.waiting) {
            self.waiting -= 1;
        }
        if self.waiting == 0 && !self.cut {
            self.since = None;
        }
    }

    fn released(&mut self, of: &mut Connection, now: Instant) -> Option<Instant> {
        let since = of.held_since.take()?;
        self.held_now -= 1;
        if self.held_now == 0 {
            self.held_since = None;
        }
        if let Some(window) = &mut self.window {
            let hold = now.saturating_duration_since(since);
            window.longest_hold = window.longest_hold.max(hold);
        }
        Some(since)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct At(Instant, Clients);

    impl At {
        fn new() -> Self {
            At(Instant::now(), Clients::default())
        }

        fn ms(&self, ms: u64) -> Instant {
            self.0 + Duration::from_millis(ms)
        }

        fn gap(&self) -> Option<u64> {
            self.1.view(self.ms(1_000_000)).unwrap().longest_gap_ms
        }
    }

    #[test]
    fn a_gap_is_from_the_last_answer_to_the_next_while_somebody_waits() {
        let mut t = At::new();
        let (mut a, mut b) = (Connection::default(), Connection::default());
        t.1.begin();
        t.1.request(&mut a, t.0);
        t.1.request(&mut b, t.0);
        t.1.answer(&mut a, t.0 + Duration::from_millis(10));
        t.1.answer(&mut b, t.0 + Duration::from_millis(200));
        assert_eq!(t.gap(), Some(190));
    }

    #[test]
    fn time_in_which_nobody_asked_is_no_gap() {
        let mut t = At::new();
        let mut a = Connection::default();
        t.1.begin();
        for begin in [0, 5000, 60_000] {
            let (asked, answered) = (t.ms(begin), t.ms(begin + 7));
            t.1.request(&mut a, asked);
            t.1.answer(&mut a, answered);
        }
        assert_eq!(t.gap(), Some(7));
    }

    #[test]
    fn a_client_whose_connection_was_cut_waits_until_somebody_is_answered() {
        let mut t = At::new();
        let (mut a, mut again) = (Connection::default(), Connection::default());
        t.1.begin();
        let (asked, cut, held, on, answered) = (t.ms(0), t.ms(50), t.ms(60), t.ms(300), t.ms(310));
        t.1.request(&mut a, asked);
        t.1.ended(&mut a, End::Backend, cut);
        t.1.held(&mut again, held);
        t.1.end();
        assert!(!t.1.settled());
        assert_eq!(t.gap(), None, "not over yet");
        t.1.passed_on(&mut again, true, on);
        t.1.answer(&mut again, answered);
        assert!(t.1.settled());
        let view = t.1.close(1, answered).unwrap();
        let want = ClientsView {
            longest_gap_ms: Some(310),
            held: 1,
            longest_hold_ms: 240,
            lost: 1,
            errors: 0,
        };
        assert_eq!(view, want);
        assert_eq!(t.1.close(1, answered), None);
    }

    #[test]
    fn a_held_client_that_has_nothing_to_ask_does_not_wait_and_one_that_is_greeted_did() {
        let mut t = At::new();
        let (mut idle, mut greeted) = (Connection::default(), Connection::default());
        t.1.begin();
        let (held, on, later) = (t.ms(0), t.ms(100), t.ms(5000));
        t.1.held(&mut idle, held);
        t.1.passed_on(&mut idle, false, on);
        t.1.request(&mut idle, later);
        t.1.answer(&mut idle, later);
        assert_eq!(t.gap(), Some(0));
        let (held, on, hello) = (t.ms(6000), t.ms(6100), t.ms(6110));
        t.1.held(&mut greeted, held);
        t.1.passed_on(&mut greeted, false, on);
        t.1.answer(&mut greeted, hello);
        assert_eq!(t.gap(), Some(110));
    }

    #[test]
    fn a_client_that_leaves_waits_no_more() {
        let mut t = At::new();
        let (mut a, mut b) = (Connection::default(), Connection::default());
        t.1.begin();
        let (asked, left, later, answered) = (t.ms(0), t.ms(40), t.ms(9000), t.ms(9003));
        t.1.request(&mut a, asked);
        t.1.ended(&mut a, End::Client, left);
        t.1.request(&mut b, later);
        t.1.answer(&mut b, answered);
        assert_eq!(t.gap(), Some(3));
    }

    #[test]
    fn without_clients_a_move_is_settled_at_once() {
        let mut t = At::new();
        t.1.begin();
        t.1.end();
        assert!(t.1.settled());
        assert_eq!(t.gap(), Some(0));
    }
}
