//! Packed nvlists, as far as streams and resume tokens need them.
//!
//! Owns: the native little-endian encoding, which the kernel uses in BEGIN and in tokens. Leaves the XDR
//! encoding of a package's nvlist unread for now: it is refused by name ([`NvError::Encoding`]).
//!
//! Layout: 4 bytes (encoding, endianness, 2 spare), version and flags of 4 bytes each, then pairs, then 4 zero
//! bytes. A pair: size (4), name length with its NUL (2), spare (2), number of values (4), type (4), the name,
//! the value; name and value each padded to a multiple of 8. An nvlist as value is 24 bytes of no meaning, and
//! its pairs follow the pair. Source: `module/nvpair/nvpair.c` of OpenZFS, and the golden streams.

/// Longest packed nvlist that is looked at, bytes. A substream's is a few hundred.
pub const MAX_PACKED: usize = 1 << 20;
/// Most pairs that are read, over all levels.
pub const MAX_PAIRS: usize = 4096;
/// Deepest nesting that is read.
pub const MAX_DEPTH: usize = 8;

const PREFIX_LEN: usize = 12;
const PAIR_HEADER_LEN: usize = 16;
const TYPE_BOOLEAN: u32 = 1;
const TYPE_UINT64: u32 = 8;
const TYPE_STRING: u32 = 9;
const TYPE_UINT64_ARRAY: u32 = 16;
const TYPE_NVLIST: u32 = 19;
const TYPE_NVLIST_ARRAY: u32 = 20;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// There, and nothing more.
    Boolean,
    /// One number.
    U64(u64),
    /// A string, fit for printing.
    String(String),
    /// Numbers.
    U64Array(Vec<u64>),
    /// A list of pairs.
    List(NvList),
    /// Any other type: its number and its bytes.
    Other {
        /// `data_type_t`.
        data_type: u32,
        /// How many values it says it holds.
        count: u32,
        /// The value's bytes, padding included.
        bytes: Vec<u8>,
    },
}

/// Names with values, in the order they came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NvList {
    pairs: Vec<(String, Value)>,
}

/// Why an nvlist cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NvError {
    /// Not the native little-endian encoding.
    #[error(
        "nvlist in encoding {encoding} with endianness {endian}; only native little-endian (0, 1) is read"
    )]
    Encoding {
        /// 0 native, 1 XDR.
        encoding: u8,
        /// 1 little.
        endian: u8,
    },
    /// It ends too early, or a length inside points out of it.
    #[error("nvlist is malformed at byte {at}")]
    Malformed {
        /// Bytes from its beginning.
        at: usize,
    },
    /// Larger than [`MAX_PACKED`], [`MAX_PAIRS`] or [`MAX_DEPTH`] allow.
    #[error("nvlist is larger or deeper than any that ZFS makes")]
    TooLarge,
}

impl NvList {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a pair at the end.
    pub fn push(&mut self, name: impl Into<String>, value: Value) {
        self.pairs.push((name.into(), value));
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.pairs.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// The value of `name`, if it is a number.
    pub fn u64(&self, name: &str) -> Option<u64> {
        match self.get(name) {
            Some(Value::U64(n)) => Some(*n),
            _ => None,
        }
    }

    /// The pairs, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Reads a packed nvlist. Bytes behind its end are ignored, as ZFS does.
    ///
    /// # Errors
    /// [`NvError`].
    pub fn unpack(packed: &[u8]) -> Result<Self, NvError> {
        if packed.len() > MAX_PACKED {
            return Err(NvError::TooLarge);
        }
        match packed.first_chunk::<4>() {
            Some([0, 1, _, _]) => {}
            Some([encoding, endian, _, _]) => {
                return Err(NvError::Encoding { encoding: *encoding, endian: *endian });
            }
            None => return Err(NvError::Malformed { at: 0 }),
        }
        let mut cursor = Cursor { bytes: packed, at: PREFIX_LEN, pairs_left: MAX_PAIRS };
        cursor.list(0)
    }

    /// Packs the list in the native little-endian encoding, with unique names.
    pub fn pack(&self) -> Vec<u8> {
        let mut out = vec![0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        self.pack_pairs(&mut out);
        out
    }

    fn pack_pairs(&self, out: &mut Vec<u8>) {
        for (name, value) in &self.pairs {
            let start = out.len();
            let (data_type, count) = value.type_and_count();
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&((name.len() + 1) as u16).to_le_bytes());
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&count.to_le_bytes());
            out.extend_from_slice(&data_type.to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            out.push(0);
            pad(out, start);
            match value {
                Value::Boolean => {}
                Value::U64(n) => out.extend_from_slice(&n.to_le_bytes()),
                Value::String(s) => {
                    out.extend_from_slice(s.as_bytes());
                    out.push(0);
                }
                Value::U64Array(numbers) => {
                    numbers.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()))
                }
                Value::List(_) => out.extend_from_slice(&[
                    0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                ]),
                Value::Other { bytes, .. } => out.extend_from_slice(bytes),
            }
            pad(out, start);
            let size = (out.len() - start) as u32;
            out[start..start + 4].copy_from_slice(&size.to_le_bytes());
            if let Value::List(list) = value {
                list.pack_pairs(out);
            }
        }
        out.extend_from_slice(&[0; 4]);
    }
}

impl Value {
    fn type_and_count(&self) -> (u32, u32) {
        match self {
            Self::Boolean => (TYPE_BOOLEAN, 0),
            Self::U64(_) => (TYPE_UINT64, 1),
            Self::String(_) => (TYPE_STRING, 1),
            Self::U64Array(numbers) => (TYPE_UINT64_ARRAY, numbers.len() as u32),
            Self::List(_) => (TYPE_NVLIST, 1),
            Self::Other { data_type, count, .. } => (*data_type, *count),
        }
    }
}

fn pad(out: &mut Vec<u8>, start: usize) {
    let len = (out.len() - start).next_multiple_of(8);
    out.resize(start + len, 0);
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    pairs_left: usize,
}

impl<'a> Cursor<'a> {
    fn malformed(&self) -> NvError {
        NvError::Malformed { at: self.at }
    }

    fn u32_at(&self, at: usize) -> Result<u32, NvError> {
        let bytes = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map(|b| u32::from_le_bytes(*b)).ok_or(self.malformed())
    }

    fn list(&mut self, depth: usize) -> Result<NvList, NvError> {
        if depth >= MAX_DEPTH {
            return Err(NvError::TooLarge);
        }
        let mut list = NvList::new();
        loop {
            let size = self.u32_at(self.at)? as usize;
            if size == 0 {
                self.at += 4;
                return Ok(list);
            }
            self.pairs_left = self.pairs_left.checked_sub(1).ok_or(NvError::TooLarge)?;
            let pair = self
                .bytes
                .get(self.at..)
                .and_then(|rest| rest.get(..size))
                .ok_or(self.malformed())?;
            let (name, data_type, count, value) = self.split(pair)?;
            self.at += size;
            list.push(name, self.value(data_type, count, value, depth)?);
        }
    }

    fn split(&self, pair: &'a [u8]) -> Result<(String, u32, u32, &'a [u8]), NvError> {
        let name_len = usize::from(u16::from_le_bytes([
            *pair.get(4).ok_or(self.malformed())?,
            *pair.get(5).ok_or(self.malformed())?,
        ]));
        let count = self.u32_at(self.at + 8)?;
        let data_type = self.u32_at(self.at + 12)?;
        let name = pair.get(PAIR_HEADER_LEN..PAIR_HEADER_LEN + name_len).ok_or(self.malformed())?;
        let (0, name) =
            name.split_last().map(|(last, name)| (*last, name)).ok_or(self.malformed())?
        else {
            return Err(self.malformed());
        };
        let value_at = (PAIR_HEADER_LEN + name_len).next_multiple_of(8);
        let value = pair.get(value_at..).ok_or(self.malformed())?;
        Ok((String::from_utf8_lossy(name).into_owned(), data_type, count, value))
    }

    fn value(
        &mut self,
        data_type: u32,
        count: u32,
        value: &[u8],
        depth: usize,
    ) -> Result<Value, NvError> {
        let number = |bytes: &[u8]| bytes.first_chunk().map(|b| u64::from_le_bytes(*b));
        Ok(match data_type {
            TYPE_BOOLEAN => Value::Boolean,
            TYPE_UINT64 => Value::U64(number(value).ok_or(self.malformed())?),
            TYPE_STRING => {
                let len = value.iter().position(|b| *b == 0).ok_or(self.malformed())?;
                Value::String(String::from_utf8_lossy(&value[..len]).into_owned())
            }
            TYPE_UINT64_ARRAY => {
                let bytes = (count as usize)
                    .checked_mul(8)
                    .and_then(|len| value.get(..len))
                    .ok_or(self.malformed())?;
                Value::U64Array(bytes.chunks_exact(8).filter_map(number).collect())
            }
            TYPE_NVLIST => Value::List(self.list(depth + 1)?),
            // No stream has one; its lists would follow and be taken for pairs.
            TYPE_NVLIST_ARRAY => return Err(self.malformed()),
            _ => Value::Other { data_type, count, bytes: value.to_vec() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> NvList {
        let mut inner = NvList::new();
        inner.push("deep", Value::U64Array(vec![1, u64::MAX]));
        let mut list = NvList::new();
        list.push("object", Value::U64(7));
        list.push("compressok", Value::Boolean);
        list.push("inner", Value::List(inner));
        list.push("toname", Value::String("tank/a@s".into()));
        list
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        assert_eq!(NvList::unpack(&sample().pack()), Ok(sample()));
        assert_eq!(NvList::unpack(&NvList::new().pack()), Ok(NvList::new()));
    }

    #[test]
    fn every_cut_and_every_flip_is_an_error_or_a_list_and_never_a_panic() {
        let packed = sample().pack();
        for len in 0..packed.len() {
            assert!(NvList::unpack(&packed[..len]).is_err(), "cut at {len}");
        }
        for bit in 0..packed.len() * 8 {
            let mut flipped = packed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = NvList::unpack(&flipped);
        }
    }

    #[test]
    fn lists_nested_beyond_the_limit_are_refused() {
        let mut list = NvList::new();
        for _ in 0..MAX_DEPTH {
            let mut outer = NvList::new();
            outer.push("in", Value::List(list));
            list = outer;
        }
        assert_eq!(NvList::unpack(&list.pack()), Err(NvError::TooLarge));
    }

    #[test]
    fn xdr_is_refused_by_name() {
        assert_eq!(
            NvList::unpack(&[1, 1, 0, 0, 0]),
            Err(NvError::Encoding { encoding: 1, endian: 1 })
        );
    }
}
