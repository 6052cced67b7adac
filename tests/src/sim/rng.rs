//! The simulator's own randomness: one seed in, the same draws out, on every machine.
//!
//! xoshiro256** seeded through SplitMix64 (Blackman and Vigna, "Scrambled linear pseudorandom
//! number generators", 2021). Not for secrets.

/// A generator; its whole state comes from one seed.
#[derive(Debug, Clone)]
pub struct Rng {
    state: [u64; 4],
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// All draws follow from `seed`.
    pub fn new(seed: u64) -> Self {
        let mut s = seed;
        Self { state: std::array::from_fn(|_| split_mix(&mut s)) }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number in `low..=high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "an empty range");
        let span = u128::from(high - low) + 1;
        low + ((u128::from(self.bits()) * span) >> 64) as u64
    }

    /// A place in something of this length, which is not 0.
    pub fn below(&mut self, length: usize) -> usize {
        self.range(0, length as u64 - 1) as usize
    }

    /// True with this probability, in parts of a million.
    pub fn chance_ppm(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.range(0, 999_999) < u64::from(ppm)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.range(1, n) == 1
    }

    /// A number in `low..=high` whose logarithm is spread evenly: small ones are as likely as large.
    pub fn log_range(&mut self, low: u64, high: u64) -> u64 {
        assert!(0 < low && low <= high, "a range without logarithms");
        let bits = self.range(u64::from(low.ilog2()) * 16, u64::from(high.ilog2()) * 16 + 15);
        let base = 1u64 << (bits / 16);
        (base + base / 16 * (bits % 16)).clamp(low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_and_stays_in_its_ranges() {
        let (mut a, mut b) = (Rng::new(7), Rng::new(7));
        for _ in 0..10_000 {
            assert_eq!(a.bits(), b.bits());
            assert!((3..=9).contains(&a.range(3, 9)));
            assert!((1..=5000).contains(&a.log_range(1, 5000)));
            let _ = (b.range(3, 9), b.log_range(1, 5000));
        }
        assert!(!a.chance_ppm(0));
        assert_eq!(a.range(4, 4), 4);
    }
}
