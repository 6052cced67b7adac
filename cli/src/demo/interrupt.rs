//! Ctrl-C and SIGTERM during the demo: noted, and looked at wherever the demo waits, so that everything it
//! started is ended on the way out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Longest time between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Begins to note signals.
///
/// # Errors
/// The system did not let us.
pub(crate) fn watch() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot watch for signals")?;
    let (mut int, mut term) = {
        let _guard = runtime.enter();
        (
            signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?,
            signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?,
        )
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                }
            });
            INTERRUPTED.store(true, Ordering::Relaxed);
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// # Errors
/// A signal came.
pub(crate) fn check() -> anyhow::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        anyhow::bail!("interrupted: both nodes and the workload are ended");
    }
    Ok(())
}

/// Sleeps, but not through a signal.
///
/// # Errors
/// A signal came.
pub(crate) fn sleep(duration: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + duration;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(LOOK));
    }
}

/// Looks every so often until `done` says so.
///
/// # Errors
/// A signal came, `done` failed, or it took longer than `limit`: then `what` names what was waited for.
pub(crate) fn until(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    while !done()? {
        if begin.elapsed() > limit {
            anyhow::bail!("waited {} s for {what}", limit.as_secs());
        }
        sleep(LOOK)?;
    }
    Ok(())
}
