//! The content of a file: read into blocks, written from blocks.
//!
//! Owns: holes (a block of zeroes is one, whatever the file system says), reading only where there is data,
//! and writing only the blocks that differ. Leaves names and attributes to [`super::scan`] and
//! [`super::checkout`].

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use flocker_store::StoreError;
use rustix::fs::{FallocateFlags, SeekFrom};

use crate::blocks::{ReadBlocks, WriteBlocks};
use crate::codec;
use crate::hash::Kind;
use crate::object::{Data, Object, diff_data};
use crate::objset::Open;

type Result<T> = std::result::Result<T, StoreError>;

/// Reads a file into the blocks of an object that may have some already; only what differs is stored.
pub(crate) fn read(
    blocks: &impl WriteBlocks,
    open: &mut Open,
    file: &File,
    path: &Path,
    size: u64,
) -> Result<()> {
    let wide = u64::from(open.object.block_size);
    let count = size.div_ceil(wide);
    let mut buffer = vec![0; open.object.block_size as usize];
    let mut at = 0;
    while at < count {
        let data = next_data(file, at * wide, size) / wide;
        if data > at {
            open.punch(blocks, at, data.min(count) - 1)?;
            at = data;
            continue;
        }
        let len = usize::try_from((size - at * wide).min(wide)).unwrap_or(buffer.len());
        let got = read_some(file, &mut buffer[..len], at * wide)
            .map_err(|e| StoreError::io(format!("reading {}", path.display()), e))?;
        // Whatever a file that shrinks meanwhile does not give is zero.
        buffer[got..].fill(0);
        if is_zero(&buffer) {
            open.punch(blocks, at, at)?;
        } else {
            let hash = Kind::Data.hash(&buffer);
            let before = open.block(blocks, at)?;
            if before.is_none_or(|b| b.hash != hash || b.compression != 0) {
                open.write(blocks, at, &buffer, 0, None)?;
            }
        }
        at += 1;
    }
    open.punch(blocks, count, u64::MAX)
}

/// Where the next data begins at or behind an offset; the offset itself where the system cannot say.
fn next_data(file: &File, offset: u64, size: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data,
        Err(rustix::io::Errno::NXIO) => {
            size.next_multiple_of(super::inode::BLOCK_BYTES).max(offset)
        }
        Err(_) => offset,
    }
}

pub(super) fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Writes the content of an object into a file that holds the content of `from`, or nothing.
pub(crate) fn write(
    blocks: &impl ReadBlocks,
    file: &File,
    path: &Path,
    from: Option<&Object>,
    to: &Object,
    size: u64,
) -> Result<()> {
    let context = |e: std::io::Error| StoreError::io(format!("writing {}", path.display()), e);
    let wide = u64::from(to.block_size);
    let from = from.filter(|from| from.block_size == to.block_size);
    let before = match from {
        Some(from) => from.data,
        None => {
            file.set_len(0).map_err(context)?;
            Data::default()
        }
    };
    diff_data(blocks, before, to.data, &mut |at, _, block| {
        let offset = at.saturating_mul(wide);
        if offset >= size {
            return Ok(());
        }
        let len = usize::try_from((size - offset).min(wide)).unwrap_or(usize::MAX);
        match block {
            Some(block) => {
                let payload = blocks.get(Kind::Data, &block.hash)?;
                let plain =
                    codec::decompress(block.compression(), &payload, to.block_size as usize)
                        .map_err(|e| StoreError::io("reading a block", std::io::Error::other(e)))?;
                let bytes = plain.get(..len).unwrap_or(&plain);
                file.write_all_at(bytes, offset).map_err(context)
            }
            None => punch(file, offset, len as u64).map_err(context),
        }
    })?;
    file.set_len(size).map_err(context)
}

fn punch(file: &File, offset: u64, len: u64) -> std::io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, flags, offset, len) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => {
            let zeroes = vec![0; usize::try_from(len).unwrap_or(0)];
            file.write_all_at(&zeroes, offset)
        }
        Err(e) => Err(e.into()),
    }
}
