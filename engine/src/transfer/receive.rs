//! The receiving side of one transfer. The store has committed before the sender is told.

use flocker_core::Failure;
use flocker_store::{ReceiveSpec, ReceiveStream, Snapshot};
use flocker_transport::bulk::OldCopy;
use flocker_transport::{BulkReceiver, ReceiveError, Refusal, receive_stream};

use super::meter::Incoming;
use super::{Expected, Inner, Live, ending};
use crate::failpoint;
use crate::old_copy::{self, StreamFlags};

/// Receives, commits, and tells the sender.
pub(super) fn run(
    inner: &Inner,
    live: &Live,
    expected: &Expected,
    flags: StreamFlags,
    mut receiver: BulkReceiver,
) -> Result<Option<Snapshot>, Failure> {
    live.link(receiver.cancel_handle());
    let Expected { spec, limit_bytes } = expected;
    if live.full {
        receiver.reseed_from(old_copy(inner, live, spec, flags));
    }
    let outcome = into_store(inner, live, spec, *limit_bytes, &mut receiver);
    let (whole, outcome) = match outcome {
        Ok(Taken::Whole(snapshot)) => (true, Ok(Some(snapshot))),
        Ok(Taken::Early(snapshot)) => (false, Ok(Some(snapshot))),
        Err(failure) => (false, Err(failure)),
    };
    let word = match &outcome {
        Ok(_) if whole => Ok(()),
        Ok(_) => Err(Refusal {
            code: 0,
            reason: "the store had the snapshot before the stream had ended".into(),
        }),
        Err(failure) => {
            Err(Refusal { code: ending::number(failure.code), reason: failure.message.clone() })
        }
    };
    if let Err(error) = receiver.finish(word) {
        tracing::debug!(%error, "the sender was not told how its transfer ended");
    }
    outcome
}

/// What an old copy of the volume can spare the wire. That there is none, or that it cannot be read, is no failure: the
/// step is an ordinary full one then.
fn old_copy(inner: &Inner, live: &Live, spec: &ReceiveSpec, flags: StreamFlags) -> OldCopy {
    if !inner.parts.reseed {
        return OldCopy::gone();
    }
    let store = inner.parts.store.as_ref();
    let opened = old_copy::find(store, live.peer, &spec.dataset, flags).and_then(|found| {
        let Some(found) = found else { return Ok(None) };
        Ok(Some((store.send(&found)?, found.to)))
    });
    match opened {
        Ok(Some((stream, from))) => {
            tracing::info!(old_copy = %from, dataset = %spec.dataset, "it is reseeded from an old copy");
            *live.old_copy.lock().unwrap_or_else(|p| p.into_inner()) = Some(from.to_string());
            OldCopy::new(stream)
        }
        Ok(None) => OldCopy::gone(),
        Err(error) => {
            tracing::warn!(%error, dataset = %spec.dataset, "an old copy cannot be read: everything comes anew");
            OldCopy::gone()
        }
    }
}

enum Taken {
    /// All of it.
    Whole(Snapshot),
    /// The store stopped reading, and has the snapshot all the same.
    Early(Snapshot),
}

fn into_store(
    inner: &Inner,
    live: &Live,
    spec: &ReceiveSpec,
    limit_bytes: Option<u64>,
    receiver: &mut BulkReceiver,
) -> Result<Taken, Failure> {
    let store = inner.parts.store.as_ref();
    let stream = store.receive(spec).map_err(|error| Failure::from(&error))?;
    let mut writer = Incoming::new(stream, live.kind(), limit_bytes);
    let received = receive_stream(receiver, &mut writer, &live.progress);
    let over_limit = writer.over_limit;
    let stream = writer.inner;
    match received {
        Ok(_) if live.cancel.is_cancelled() => {
            suspend(stream);
            Err(ending::cancelled())
        }
        Ok(_) => {
            failpoint::pass(|| "before-commit");
            let snapshot = commit(stream)?;
            failpoint::pass(|| "after-commit");
            if let Some(from) = live.old_copy.lock().unwrap_or_else(|p| p.into_inner()).as_ref() {
                let (stream_bytes, saved_bytes) =
                    (live.progress.raw_bytes(), live.progress.saved_bytes());
                let wire_bytes = live.progress.wire_bytes();
                tracing::info!(old_copy = %from, stream_bytes, saved_bytes, wire_bytes, "reseeded");
            }
            Ok(Taken::Whole(snapshot))
        }
        Err(_) if over_limit => {
            abort(stream);
            Err(ending::over_limit(limit_bytes.unwrap_or(0)))
        }
        // The store refused a write; what it says at the end is why.
        Err(ReceiveError::Write { .. }) => commit(stream).map(Taken::Early),
        // The link broke, the sender did, or somebody made room for a newer offer: what has arrived is
        // good, and the next send may go on from it.
        Err(error) => {
            suspend(stream);
            Err(ending::of_receive(&error))
        }
    }
}

fn commit(stream: Box<dyn ReceiveStream>) -> Result<Snapshot, Failure> {
    stream.commit().map_err(|error| Failure::from(&error))
}

fn suspend(stream: Box<dyn ReceiveStream>) {
    if let Err(error) = stream.suspend() {
        tracing::warn!(%error, "what arrived of a broken transfer could neither be kept nor taken back");
    }
}

fn abort(stream: Box<dyn ReceiveStream>) {
    if let Err(error) = stream.abort() {
        tracing::warn!(%error, "what arrived of a broken transfer could not be taken back");
    }
}
