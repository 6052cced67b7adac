//! The sending side of one transfer.

use flocker_core::Failure;
use flocker_store::{SendSpec, SendStream, Snapshot};
use flocker_transport::bulk::reseed::PATIENCE;
use flocker_transport::{SendOptions, send_stream};

use super::meter::Outgoing;
use super::{Inner, Live, Opening, ending};

/// Sends, and returns when the receiving side has committed.
pub(super) fn run(
    inner: &Inner,
    live: &Live,
    spec: &SendSpec,
    last: bool,
) -> Result<Option<Snapshot>, Failure> {
    let store = inner.parts.store.as_ref();
    let stream = store.send(spec).map_err(|error| Failure::from(&error))?;
    // Only where somebody may want to know how long it takes: increments are short.
    if live.full && store.capabilities().estimate {
        let estimate = store.estimate(spec).ok().flatten();
        *live.total_bytes.lock().unwrap_or_else(|p| p.into_inner()) = estimate;
    }
    let SendSpec { compressed, large_blocks, raw, .. } = *spec;
    let opening = Opening { transfer: live.transfer, compressed, large_blocks, raw };
    let header = match postcard::to_stdvec(&opening) {
        Ok(header) => header,
        Err(error) => panic!("integers cannot be encoded: {error}"),
    };
    let dataset = (live.peer, spec.to.dataset().clone());
    // A full send is large where nobody knows better; of an increment the last one tells.
    let expected = match live.full {
        true => {
            Some(live.total_bytes.lock().unwrap_or_else(|p| p.into_inner()).unwrap_or(u64::MAX))
        }
        false => inner.lock().last_wire_bytes.get(&dataset).copied(),
    };
    let sink = inner.parts.lanes.open(&live.peer, &header, expected, &live.cancel)?;
    let sink = sink.at_pace((inner.parts.pace)(live.peer, live.unit, last));
    let lane = sink.kind();
    live.link(sink.cancel_handle());
    let options = SendOptions {
        compression: inner.parts.compression,
        reseed: live.full.then_some(PATIENCE),
        learned: inner.lock().learned.get(&dataset).copied().unwrap_or_default(),
    };
    let finish = |reader: Outgoing<Box<dyn SendStream>>| {
        reader.inner.finish().map_err(|error| Box::new(error).into())
    };
    let reader = Outgoing::new(stream, live.kind());
    match send_stream(reader, finish, sink, options, &live.progress) {
        Ok(report) => {
            let mut state = inner.lock();
            state.learned.insert(dataset.clone(), report.learned);
            if !live.full {
                state.last_wire_bytes.insert(dataset, report.wire_bytes);
            }
            drop(state);
            tracing::debug!(
                %lane,
                stream_bytes = report.raw_bytes,
                wire_bytes = report.wire_bytes,
                saved_bytes = report.saved_bytes,
                "sent"
            );
            Ok(None)
        }
        Err(error) => {
            tracing::debug!(%error, "sending ended");
            Err(ending::of_send(&error))
        }
    }
}
