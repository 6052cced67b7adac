//! Sending: `zfs send` as a [`SendStream`].
//!
//! Owns: the words of a send and its verdict. Leaves to others: the child ([`crate::child`]), and what
//! the stream means. Never passes `-R`, `-p` or `-D`: recursion and properties are the planner's.

use std::io::{self, Read};
use std::process::ChildStdout;
use std::time::Duration;

use flocker_store::store::Result;
use flocker_store::{DatasetName, Guid, SendBase, SendSpec, SendStream, StoreError};
use zfs_stream::token::{ResumeToken, TokenError};

use flocker_lzc::{ResumePoint, SendFlags};

use crate::ZfsStore;
use crate::child::{Direction, Pipe, StreamChild};
use crate::errors::{self, About};
use crate::library::stream::{LibrarySend, Sending};
use crate::run::{Finished, KILL_GRACE, Program};

/// How long a send may take to end after its last byte was read.
pub const FINISH_LIMIT: Duration = Duration::from_secs(60);

impl ZfsStore {
    pub(crate) fn start_send(&self, spec: &SendSpec) -> Result<Box<dyn SendStream>> {
        let words = self.send_words(spec, false)?;
        let to = self.refuse_missing(spec)?;
        let token = check_token(spec, to)?;
        if let Some(lzc) = &self.library {
            return Ok(Box::new(LibrarySend::start(lzc, sending(spec, token))?));
        }
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        let path = self.runner.path(Program::Zfs);
        let (child, pipe) = StreamChild::start(path, &args, Direction::Send)?;
        let stdout = match pipe {
            Pipe::Out(stdout) => Some(stdout),
            Pipe::In(_) => None,
        };
        Ok(Box::new(ZfsSend { stdout, child, dataset: spec.to.dataset().clone() }))
    }

    pub(crate) fn estimate_send(&self, spec: &SendSpec) -> Result<Option<u64>> {
        let to = self.refuse_missing(spec)?;
        check_token(spec, to)?;
        if !self.dialect.estimate {
            return Ok(None);
        }
        let words = self.send_words(spec, true)?;
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        let finished = self.zfs(&args, About::dataset(spec.to.dataset()))?;
        Ok(size(&finished))
    }

    fn send_words(&self, spec: &SendSpec, dry: bool) -> Result<Vec<String>> {
        let mut words = vec!["send".to_owned()];
        if dry {
            words.push("-nP".to_owned());
        }
        if let Some(token) = &spec.resume {
            if !self.dialect.resumable {
                return Err(self.not_capable("`zfs send -t`"));
            }
            // It says all there is to say: flags, base, target.
            words.extend(["-t".to_owned(), token.clone()]);
            return Ok(words);
        }
        for (wanted, can, flag) in [
            (spec.large_blocks, self.dialect.large_blocks, "-L"),
            (spec.compressed, self.dialect.compressed, "-c"),
            (spec.raw, self.dialect.raw, "-w"),
        ] {
            if wanted && !can {
                return Err(self.not_capable(format!("`zfs send {flag}`")));
            }
            if wanted {
                words.push(flag.to_owned());
            }
        }
        match &spec.from {
            Some(SendBase::Bookmark(_)) if !self.dialect.bookmarks => {
                return Err(self.not_capable("a send from a bookmark"));
            }
            Some(SendBase::Bookmark(base)) => words.extend(["-i".to_owned(), base.to_string()]),
            Some(SendBase::Snapshot(base)) => words.extend(["-i".to_owned(), base.to_string()]),
            None => {}
        }
        words.push(spec.to.to_string());
        Ok(words)
    }

    /// A missing snapshot is said before the first byte, not by a stream that breaks off. Returns the
    /// guid of the one to send.
    fn refuse_missing(&self, spec: &SendSpec) -> Result<Guid> {
        let mut names = vec![spec.to.clone()];
        if let Some(SendBase::Snapshot(base)) = &spec.from {
            names.push(base.clone());
        }
        let found = self.find_snapshots(&names)?;
        if let Some(name) = names.iter().find(|name| !found.contains_key(*name)) {
            return Err(StoreError::NoSnapshot { name: name.to_string() });
        }
        Ok(found[&spec.to].guid)
    }
}

/// A token comes from the peer: it has to be of the very send that it is to go on with.
fn check_token(spec: &SendSpec, to: Guid) -> Result<Option<ResumeToken>> {
    let Some(token) = &spec.resume else {
        return Ok(None);
    };
    let bad = |detail: String| StoreError::BadToken { snapshot: spec.to.to_string(), detail };
    let token: ResumeToken = token.parse().map_err(|error: TokenError| bad(error.to_string()))?;
    if token.to_guid != to.0 {
        return Err(bad(format!("it is of {} with guid {}", token.to_name, token.to_guid)));
    }
    // A token has `-L` only where the dataset has a large block, whatever was asked for; what it has not is
    // sent without. What it has and nobody asked for, the receiver may not know.
    let (raw, based) = (spec.raw, spec.from.is_some());
    for (flag, has, may, must) in [
        ("-c", token.compress_ok, spec.compressed || raw, false),
        ("-L", token.large_block_ok, spec.large_blocks || raw, false),
        ("-w", token.raw_ok, raw, raw),
        ("-i", token.from_guid.is_some(), based, based),
    ] {
        if (has && !may) || (must && !has) {
            let [its, ours] = if has { ["with", "without"] } else { ["without", "with"] };
            return Err(bad(format!("it is of a send {its} {flag}, asked for is one {ours}")));
        }
    }
    Ok(Some(token))
}

/// The same send for the library, which takes the flags of a token one by one.
fn sending(spec: &SendSpec, token: Option<ResumeToken>) -> Sending {
    let from = spec.from.as_ref().map(|base| match base {
        SendBase::Snapshot(name) => name.to_string(),
        SendBase::Bookmark(name) => name.to_string(),
    });
    let flags = match &token {
        Some(token) => SendFlags {
            embed: token.embed_ok,
            large_block: token.large_block_ok,
            compress: token.compress_ok,
            raw: token.raw_ok,
        },
        // As `zfs send -w`: a raw stream has everything as it is on disk.
        None => SendFlags {
            embed: spec.raw,
            large_block: spec.large_blocks || spec.raw,
            compress: spec.compressed || spec.raw,
            raw: spec.raw,
        },
    };
    Sending {
        dataset: spec.to.dataset().clone(),
        snapshot: spec.to.to_string(),
        from,
        flags,
        resume: token.map(|t| ResumePoint { object: t.object, offset: t.offset, bytes: t.bytes }),
    }
}

/// The `size` line of `zfs send -nP`, which is on stdout since 0.8 and on stderr before.
pub(crate) fn size(finished: &Finished) -> Option<u64> {
    let stdout = String::from_utf8_lossy(&finished.stdout);
    stdout
        .lines()
        .chain(finished.stderr.lines())
        .find_map(|line| line.strip_prefix("size\t")?.trim().parse().ok())
}

/// A running `zfs send`.
#[derive(Debug)]
struct ZfsSend {
    stdout: Option<ChildStdout>,
    child: StreamChild,
    dataset: DatasetName,
}

impl Read for ZfsSend {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.stdout {
            Some(stdout) => stdout.read(buf),
            None => Ok(0),
        }
    }
}

impl SendStream for ZfsSend {
    fn finish(mut self: Box<Self>) -> Result<()> {
        // Whatever was not read makes the send fail now, instead of waiting for ever.
        self.stdout = None;
        let finished = match self.child.wait(FINISH_LIMIT) {
            Some(finished) => finished,
            None => self.child.stop(Duration::ZERO)?,
        };
        if finished.ending.is_success() {
            return Ok(());
        }
        Err(match errors::explain(&finished, About::dataset(&self.dataset)) {
            // Gone while it was being sent.
            StoreError::NoDataset { dataset } => {
                StoreError::NoSnapshot { name: dataset.to_string() }
            }
            error => error,
        })
    }
}

impl Drop for ZfsSend {
    fn drop(&mut self) {
        // The daemon of zfs-fuse writes into the pipe itself: it ends only when nobody reads.
        self.stdout = None;
        // A send that is over is not killed in its last moment.
        let _ = self.child.wait(KILL_GRACE / 20);
    }
}
