//! Going on with a send: whether a resume token is one of the very send that is asked for.
//!
//! A token comes from the peer. Owns: reading and checking it. Leaves sending only the rest to [`crate::emit`].

use flocker_store::{SendSpec, StoreError};
use zfs_stream::Features;
use zfs_stream::token::{ResumeToken, TokenError};

use crate::blocks::ReadBlocks;
use crate::emit::Job;
use crate::hash::Hash;
use crate::keydata::Point;
use crate::tree::Tree;

/// The job that sends only what the token says is missing, with the flags that it pins.
pub(crate) fn follow(
    blocks: &impl ReadBlocks,
    spec: &SendSpec,
    job: Job,
    token: &str,
) -> Result<Job, StoreError> {
    let bad = |detail: String| StoreError::BadToken { snapshot: spec.to.to_string(), detail };
    let token: ResumeToken = token.parse().map_err(|error: TokenError| bad(error.to_string()))?;
    if token.to_guid != job.to.guid.0 {
        return Err(bad(format!("it is of {} with guid {}", token.to_name, token.to_guid)));
    }
    let from = job.from.as_ref().map(|from| from.guid.0);
    if token.from_guid != from {
        let say = |guid: Option<u64>| guid.map_or("nothing".to_owned(), |guid| guid.to_string());
        return Err(bad(format!(
            "it is of a send from {}, asked for is one from {}",
            say(token.from_guid),
            say(from)
        )));
    }
    let unknown = !token.unknown.is_empty()
        || token.saved_ok
        || token.redact_snaps.is_some()
        || token.book_redact_snaps.is_some();
    if unknown || token.embed_ok {
        return Err(bad("it is of a send that this store does not make (-e, -S, --redact)".into()));
    }
    let sends = job.features();
    for (flag, has, asked, feature) in [
        ("-c", token.compress_ok, spec.compressed, Features::COMPRESSED),
        ("-L", token.large_block_ok, spec.large_blocks, Features::LARGE_BLOCKS),
        ("-w", token.raw_ok, spec.raw, Features::RAW),
    ] {
        // What the dataset has none of is not announced, whatever was asked for.
        if has != asked && has != sends.contains(feature) {
            let with = |yes| if yes { "with" } else { "without" };
            return Err(bad(format!(
                "it is of a send {} {flag}, asked for is one {}",
                with(has),
                with(asked)
            )));
        }
    }
    if token.raw_ok != sends.contains(Features::RAW) {
        return Err(bad("one part of it is raw and the other would not be".into()));
    }
    let point = Point { object: token.object, offset: token.offset };
    if Tree::<Hash>::open(job.to.root.objects).get(blocks, point.object)?.is_none() {
        return Err(bad(format!("the snapshot has no object {}", point.object)));
    }
    Ok(Job {
        compressed: token.compress_ok || token.raw_ok,
        large_blocks: token.large_block_ok || token.raw_ok,
        resume: Some(point),
        ..job
    })
}
