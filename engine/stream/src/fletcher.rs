//! fletcher4, the checksum of the send stream.
//!
//! Owns: the running state, and a computation that keeps four independent lanes so that the processor has
//! something to do in parallel. Leaves to the reader and writer what is summed and when.
//!
//! Definition: over 32-bit words `w`, modulo 2^64: `a += w; b += a; c += b; d += c`.
//!
//! With `N` words, word `i` weighs 1 in `a`, `x` in `b`, `x(x+1)/2` in `c` and `x(x+1)(x+2)/6` in `d`, where
//! `x = N - i`. Lane `j` of 4 sees word `i = 4k + j` with the weights of its own `m = n - k` (`n = N/4`), and
//! `x = 4m - j`. Writing the weights in `x` through those in `m` gives `fold_lanes`; a prefix before the `N`
//! words contributes through the same weights, which gives `advance`. Both are tested against
//! the definition.

use crate::format::Endian;

/// A fletcher4 value: the four sums `a`, `b`, `c`, `d`.
pub type Checksum = [u64; 4];

/// A running fletcher4. Feeding a buffer in pieces gives what feeding it at once gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fletcher4 {
    sums: Checksum,
}

const LANES: usize = 4;
const BLOCK: usize = LANES * 4;

/// Below this many bytes the folding costs more than the lanes save.
const LANES_PAY_FROM: usize = 256;

impl Fletcher4 {
    /// The checksum of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The sums so far.
    pub fn value(&self) -> Checksum {
        self.sums
    }

    /// Adds `bytes`, read as 32-bit words in the byte order `endian`.
    ///
    /// # Panics
    /// When `bytes` is not a whole number of words; streams are made of whole words, and the reader refuses
    /// a payload that is not.
    pub fn update(&mut self, bytes: &[u8], endian: Endian) {
        assert!(
            bytes.len().is_multiple_of(4),
            "fletcher4 takes whole 32-bit words, not {} bytes",
            bytes.len()
        );
        match endian {
            Endian::Little => self.update_with(bytes, u32::from_le_bytes),
            Endian::Big => self.update_with(bytes, u32::from_be_bytes),
        }
    }

    #[inline(always)]
    fn update_with(&mut self, bytes: &[u8], word: impl Fn([u8; 4]) -> u32 + Copy) {
        let (blocks, rest) = match bytes.len() {
            0..LANES_PAY_FROM => (Default::default(), bytes),
            _ => bytes.as_chunks::<BLOCK>(),
        };
        if !blocks.is_empty() {
            let part = fold_lanes(&sum_lanes(blocks, word));
            self.advance((blocks.len() * LANES) as u64, &part);
        }
        let [mut a, mut b, mut c, mut d] = self.sums;
        for w in rest.chunks_exact(4) {
            a = a.wrapping_add(u64::from(word([w[0], w[1], w[2], w[3]])));
            b = b.wrapping_add(a);
            c = c.wrapping_add(b);
            d = d.wrapping_add(c);
        }
        self.sums = [a, b, c, d];
    }

    /// Puts `words` words, whose own sums are `part`, behind what was summed so far.
    fn advance(&mut self, words: u64, part: &Checksum) {
        let n = u128::from(words);
        let n2 = (n * (n + 1) / 2) as u64;
        let n3 = (n * (n + 1) / 2 * (n + 2) / 3) as u64;
        let [a, b, c, d] = self.sums;
        let mul = u64::wrapping_mul;
        self.sums = [
            a.wrapping_add(part[0]),
            b.wrapping_add(mul(words, a)).wrapping_add(part[1]),
            c.wrapping_add(mul(words, b)).wrapping_add(mul(n2, a)).wrapping_add(part[2]),
            d.wrapping_add(mul(words, c))
                .wrapping_add(mul(n2, b))
                .wrapping_add(mul(n3, a))
                .wrapping_add(part[3]),
        ];
    }
}

/// The sums of each lane by itself: `[a, b, c, d][lane]`.
///
/// Not inlined: beside [`fold_lanes`] the compiler no longer sees that the lanes fit into vectors (measured:
/// a third of the speed).
#[inline(never)]
fn sum_lanes<W: Fn([u8; 4]) -> u32>(blocks: &[[u8; BLOCK]], word: W) -> [[u64; LANES]; 4] {
    #[cfg(target_arch = "x86_64")]
    if let Some(sums) = wide::sum_lanes(blocks, &word) {
        return sums;
    }
    sum_lanes_here(blocks, word)
}

/// Compiled for whatever the function is compiled for that it stands in.
#[inline(always)]
fn sum_lanes_here<W: Fn([u8; 4]) -> u32>(blocks: &[[u8; BLOCK]], word: W) -> [[u64; LANES]; 4] {
    let (mut a, mut b, mut c, mut d) = ([0u64; LANES], [0u64; LANES], [0u64; LANES], [0u64; LANES]);
    for block in blocks {
        for lane in 0..LANES {
            let at = lane * 4;
            let w = u64::from(word([block[at], block[at + 1], block[at + 2], block[at + 3]]));
            a[lane] = a[lane].wrapping_add(w);
            b[lane] = b[lane].wrapping_add(a[lane]);
            c[lane] = c[lane].wrapping_add(b[lane]);
            d[lane] = d[lane].wrapping_add(c[lane]);
        }
    }
    [a, b, c, d]
}

/// The same code, compiled for processors with AVX2, where a vector holds all four lanes: half the time.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "whether the processor has AVX2 is known at run time only")]
mod wide {
    use super::{BLOCK, LANES, sum_lanes_here};

    /// `None` where the processor has no AVX2.
    pub(super) fn sum_lanes<W: Fn([u8; 4]) -> u32>(
        blocks: &[[u8; BLOCK]],
        word: &W,
    ) -> Option<[[u64; LANES]; 4]> {
        if !is_x86_feature_detected!("avx2") {
            return None;
        }
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        Some(unsafe { with_avx2(blocks, word) })
    }

    #[target_feature(enable = "avx2")]
    fn with_avx2<W: Fn([u8; 4]) -> u32>(blocks: &[[u8; BLOCK]], word: &W) -> [[u64; LANES]; 4] {
        sum_lanes_here(blocks, word)
    }
}

/// The sums of the whole from the sums of its lanes.
fn fold_lanes([a, b, c, d]: &[[u64; LANES]; 4]) -> Checksum {
    let mut out = [0u64; 4];
    for lane in 0..LANES {
        let j = lane as i64;
        let weigh = |sum: u64, weight: i64| sum.wrapping_mul(weight as u64);
        out[0] = out[0].wrapping_add(a[lane]);
        out[1] = out[1].wrapping_add(weigh(b[lane], 4)).wrapping_add(weigh(a[lane], -j));
        out[2] = out[2]
            .wrapping_add(weigh(c[lane], 16))
            .wrapping_add(weigh(b[lane], -6 - 4 * j))
            .wrapping_add(weigh(a[lane], j * (j - 1) / 2));
        out[3] = out[3]
            .wrapping_add(weigh(d[lane], 64))
            .wrapping_add(weigh(c[lane], -48 - 16 * j))
            .wrapping_add(weigh(b[lane], 4 + 4 * j + 2 * j * j))
            .wrapping_add(weigh(a[lane], -(j * (j - 1) * (j - 2)) / 6));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_definition(bytes: &[u8], endian: Endian) -> Checksum {
        let [mut a, mut b, mut c, mut d] = [0u64; 4];
        for w in bytes.chunks_exact(4) {
            let w = [w[0], w[1], w[2], w[3]];
            let w = match endian {
                Endian::Little => u32::from_le_bytes(w),
                Endian::Big => u32::from_be_bytes(w),
            };
            a = a.wrapping_add(u64::from(w));
            b = b.wrapping_add(a);
            c = c.wrapping_add(b);
            d = d.wrapping_add(c);
        }
        [a, b, c, d]
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut x = 0x9E37_79B9_7F4A_7C15u64;
        std::iter::repeat_with(|| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .take(len)
        .collect()
    }

    proptest! {
        #[test]
        fn any_cut_into_words_gives_what_the_definition_gives(
            words in 0usize..3000,
            cuts in proptest::collection::vec(0usize..3000, 0..6),
            big in any::<bool>(),
        ) {
            let endian = if big { Endian::Big } else { Endian::Little };
            let bytes = noise(words * 4);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(words) * 4).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut sum = Fletcher4::new();
            for pair in cuts.windows(2) {
                sum.update(&bytes[pair[0]..pair[1]], endian);
            }
            prop_assert_eq!(sum.value(), by_definition(&bytes, endian));
        }
    }

    #[test]
    fn both_ways_to_sum_lanes_agree() {
        let bytes = noise(BLOCK * 1000);
        let (blocks, _) = bytes.as_chunks::<BLOCK>();
        let plain = sum_lanes_here(blocks, u32::from_le_bytes);
        assert_eq!(sum_lanes(blocks, u32::from_le_bytes), plain);
    }

    #[test]
    fn sums_that_overflow_wrap_as_the_definition_does() {
        let bytes = vec![0xFF; 8 << 20];
        let mut sum = Fletcher4::new();
        sum.update(&bytes, Endian::Little);
        sum.update(&bytes, Endian::Little);
        let twice = [bytes.clone(), bytes].concat();
        assert_eq!(sum.value(), by_definition(&twice, Endian::Little));
    }
}
