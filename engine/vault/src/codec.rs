//! Taking apart blocks that ZFS has compressed.
//!
//! Owns: ZFS's own framing around lz4, zstd, gzip, zle and lzjb. Leaves out compressing: a vault sends blocks
//! as they came, or plain.
//!
//! Sources of the formats: `module/zfs/lz4_zfs.c` (big-endian length in front), `module/zstd/zfs_zstd.c`
//! (8-byte header, then a frame without magic number), `module/zfs/gzip.c` (zlib), `module/zfs/zle.c`
//! (runs, level 64) and `module/zfs/lzjb.c` of OpenZFS.

use std::io::Read;

use zfs_stream::Compression;

/// Why a block could not be decompressed.
#[derive(Debug, thiserror::Error)]
#[error("a {compression} block of {len} bytes cannot be decompressed: {detail}")]
pub(crate) struct CodecError {
    compression: Compression,
    len: usize,
    detail: String,
}

/// The block of `size` bytes that this payload is.
pub(crate) fn decompress(
    compression: Compression,
    payload: &[u8],
    size: usize,
) -> Result<Vec<u8>, CodecError> {
    let block = match compression {
        Compression::NONE | Compression::OFF => Ok(payload.to_vec()),
        Compression::LZ4 => lz4(payload, size),
        Compression::ZSTD => zstd_block(payload, size),
        Compression::ZLE => zle(payload, size),
        Compression::LZJB => lzjb(payload, size),
        Compression(4) => Ok(vec![0; size]), // ZIO_COMPRESS_EMPTY
        c if (Compression::GZIP_1..=Compression::GZIP_9).contains(&c) => gzip(payload, size),
        _ => Err("this version does not know it".into()),
    };
    let error = |detail: String| CodecError { compression, len: payload.len(), detail };
    let block = block.map_err(error)?;
    if block.len() == size {
        Ok(block)
    } else {
        Err(error(format!("it gives {} bytes, the block has {size}", block.len())))
    }
}

type Raw = Result<Vec<u8>, String>;

fn framed(payload: &[u8], header: usize) -> Result<&[u8], String> {
    let cut = || "it ends inside its header".to_owned();
    let len = payload.first_chunk::<4>().ok_or_else(cut)?;
    let len = u32::from_be_bytes(*len) as usize;
    let body = payload.get(header..).ok_or_else(cut)?;
    body.get(..len).ok_or_else(|| format!("it says it has {len} bytes, there are {}", body.len()))
}

fn lz4(payload: &[u8], size: usize) -> Raw {
    lz4_flex::block::decompress(framed(payload, 4)?, size).map_err(|e| e.to_string())
}

fn zstd_block(payload: &[u8], size: usize) -> Raw {
    // c_len and version_level, both big-endian; a frame may also begin with the magic number.
    const MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
    let body = framed(payload, 8)?;
    let mut frame = Vec::with_capacity(body.len() + MAGIC.len());
    if !body.starts_with(&MAGIC) {
        frame.extend_from_slice(&MAGIC);
    }
    frame.extend_from_slice(body);
    zstd::bulk::decompress(&frame, size).map_err(|e| e.to_string())
}

fn gzip(payload: &[u8], size: usize) -> Raw {
    let mut out = Vec::with_capacity(size);
    // One byte more than may come, so that too long a block is noticed.
    let limit = size as u64 + 1;
    flate2::read::ZlibDecoder::new(payload)
        .take(limit)
        .read_to_end(&mut out)
        .map_err(|e| e.to_string())?;
    Ok(out)
}

fn zle(payload: &[u8], size: usize) -> Raw {
    const LEVEL: usize = 64;
    let mut out = Vec::with_capacity(size);
    let mut rest = payload;
    while out.len() < size {
        let Some((first, tail)) = rest.split_first() else {
            break;
        };
        let run = usize::from(*first) + 1;
        if run <= LEVEL {
            let (literal, tail) = tail
                .split_at_checked(run)
                .ok_or_else(|| "a run ends behind the payload".to_owned())?;
            out.extend_from_slice(literal);
            rest = tail;
        } else {
            out.resize(out.len() + run - LEVEL, 0);
            rest = tail;
        }
    }
    out.truncate(size);
    Ok(out)
}

fn lzjb(payload: &[u8], size: usize) -> Raw {
    const MATCH_BITS: u32 = 6;
    const MATCH_MIN: usize = 3;
    const OFFSET_MASK: usize = (1 << (16 - MATCH_BITS)) - 1;
    let mut bytes = payload.iter().copied();
    let mut next = || bytes.next().ok_or_else(|| "it ends before the block does".to_owned());
    let mut out: Vec<u8> = Vec::with_capacity(size);
    let (mut copymap, mut copymask) = (0u8, 0u8);
    while out.len() < size {
        copymask = copymask.wrapping_shl(1);
        if copymask == 0 {
            copymask = 1;
            copymap = next()?;
        }
        if copymap & copymask == 0 {
            out.push(next()?);
            continue;
        }
        let (a, b) = (usize::from(next()?), usize::from(next()?));
        let len = (a >> (8 - MATCH_BITS)) + MATCH_MIN;
        let offset = (a << 8 | b) & OFFSET_MASK;
        let from = out
            .len()
            .checked_sub(offset)
            .filter(|_| offset > 0)
            .ok_or_else(|| "a match begins before the block".to_owned())?;
        for at in from..(from + len).min(from + size - out.len()) {
            let byte = out[at];
            out.push(byte);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_zeroes_and_literals_come_back() {
        let mut payload = vec![2, 1, 2, 3, 63 + 10];
        payload.extend([0, 9]);
        let block = decompress(Compression::ZLE, &payload, 14).expect("zle");
        assert_eq!(block, [1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    }

    #[test]
    fn lz4_has_its_length_in_front() {
        let block: Vec<u8> = b"abcdabcdabcdabcd".repeat(50);
        let body = lz4_flex::block::compress(&block);
        let mut payload = (body.len() as u32).to_be_bytes().to_vec();
        payload.extend(&body);
        payload.extend([0; 7]); // sector padding
        let back = decompress(Compression::LZ4, &payload, block.len()).expect("lz4");
        assert_eq!(back, block);
    }

    #[test]
    fn lzjb_matches_repeat_what_came_before() {
        // "ab", then a match of 6 bytes at offset 2.
        let payload = [0b100, b'a', b'b', 0b0000_1100, 2];
        let block = decompress(Compression::LZJB, &payload, 8).expect("lzjb");
        assert_eq!(block, b"abababab");
    }

    #[test]
    fn damage_is_an_error_whatever_the_codec() {
        for number in 2..=20u8 {
            for payload in [&[][..], &[0xFF; 3], &[0xFF; 40], &[0; 40]] {
                // No panic, and never a block of the wrong size.
                if let Ok(block) = decompress(Compression(number), payload, 4096) {
                    assert_eq!(block.len(), 4096);
                }
            }
        }
    }
}
