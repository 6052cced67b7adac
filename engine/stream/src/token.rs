//! Resume tokens: what `zfs get receive_resume_token` says and `zfs send -t` takes.
//!
//! Owns: the text form and its fields. Leaves it to the caller to compare them with the step that was
//! planned; a token pins its flags, and one that names another snapshot must not be followed.
//!
//! Form: `1-<checksum>-<length>-<payload>`, all hex but the first. The payload is a zlib-compressed packed
//! nvlist of `length` bytes; the checksum is the first word of its fletcher4, bytes beyond the last whole
//! word left out. Source: `get_receive_resume_token_impl` in `module/zfs/dsl_dataset.c` and
//! `zfs_send_resume_token_to_nvlist` in `lib/libzfs/libzfs_sendrecv.c` of OpenZFS.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use crate::fletcher::Fletcher4;
use crate::format::Endian;
use crate::nvlist::{NvError, NvList, Value};

/// The only version there is.
const VERSION: u32 = 1;
/// Longest token that is looked at, characters. Real ones have a few hundred.
pub const MAX_TOKEN_LEN: usize = 256 << 10;
/// Longest nvlist in a token, bytes.
pub const MAX_NVLIST_LEN: usize = 128 << 10;

/// Where an interrupted receive stands, and with which flags its stream was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ResumeToken {
    /// Object to go on with.
    pub object: u64,
    /// Offset in it, bytes.
    pub offset: u64,
    /// Bytes received so far.
    pub bytes: u64,
    /// Guid of the snapshot being received.
    pub to_guid: u64,
    /// Its name on the sender.
    pub to_name: String,
    /// Guid of the base of an increment.
    pub from_guid: Option<u64>,
    /// Made with `-L`.
    pub large_block_ok: bool,
    /// Made with `-e`.
    pub embed_ok: bool,
    /// Made with `-c`.
    pub compress_ok: bool,
    /// Made with `-w`.
    pub raw_ok: bool,
    /// Made with `--saved`.
    pub saved_ok: bool,
    /// Guids of the snapshots that a redacted stream was redacted with.
    pub redact_snaps: Option<Vec<u64>>,
    /// As [`Self::redact_snaps`], of the redaction bookmark that is the base.
    pub book_redact_snaps: Option<Vec<u64>>,
    /// Names in the token that this version does not know.
    pub unknown: Vec<String>,
}

/// Why a token cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Longer than [`MAX_TOKEN_LEN`] characters or [`MAX_NVLIST_LEN`] bytes.
    #[error("resume token is too long: {len}, the limit is {limit}")]
    TooLong {
        /// What it has.
        len: u64,
        /// What it may have.
        limit: usize,
    },
    /// Not four parts of the right kind.
    #[error("resume token is malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// A version other than 1.
    #[error("resume token has version {found}, only {VERSION} is known")]
    Version {
        /// Its version.
        found: u32,
    },
    /// The checksum does not match.
    #[error("resume token is damaged: checksum {stored:x}, computed {computed:x}")]
    Checksum {
        /// In the token.
        stored: u64,
        /// Of its payload.
        computed: u64,
    },
    /// The payload does not decompress to the length it states.
    #[error("resume token's payload does not decompress")]
    Decompress(#[source] std::io::Error),
    /// The nvlist is malformed.
    #[error("resume token's payload is not a list of fields")]
    NvList(#[from] NvError),
    /// A field is missing or has another type.
    #[error("resume token lacks the field {0}")]
    MissingField(&'static str),
}

fn malformed(what: &'static str) -> TokenError {
    TokenError::Malformed { what }
}

impl FromStr for ResumeToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_LEN {
            return Err(TokenError::TooLong { len: text.len() as u64, limit: MAX_TOKEN_LEN });
        }
        let mut parts = text.splitn(4, '-');
        let mut part = || parts.next().ok_or(malformed("it does not have four parts"));
        let (version, checksum, len, hex) = (part()?, part()?, part()?, part()?);
        let found = version.parse().map_err(|_| malformed("its version is not a number"))?;
        if found != VERSION {
            return Err(TokenError::Version { found });
        }
        let hex_u64 = |text| u64::from_str_radix(text, 16);
        let stored = hex_u64(checksum).map_err(|_| malformed("its checksum is not hexadecimal"))?;
        let len = hex_u64(len).map_err(|_| malformed("its length is not hexadecimal"))?;
        if len > MAX_NVLIST_LEN as u64 {
            return Err(TokenError::TooLong { len, limit: MAX_NVLIST_LEN });
        }
        let payload = unhex(hex)?;
        let computed = checksum_of(&payload);
        if computed != stored {
            return Err(TokenError::Checksum { stored, computed });
        }
        Self::from_nvlist(&NvList::unpack(&inflate(&payload, len)?)?)
    }
}

impl fmt::Display for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let packed = self.to_nvlist().pack();
        let payload = deflate(&packed).map_err(|_| fmt::Error)?;
        write!(f, "{VERSION}-{:x}-{:x}-", checksum_of(&payload), packed.len())?;
        payload.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl ResumeToken {
    fn from_nvlist(list: &NvList) -> Result<Self, TokenError> {
        let need = |name| list.u64(name).ok_or(TokenError::MissingField(name));
        let Some(Value::String(to_name)) = list.get("toname") else {
            return Err(TokenError::MissingField("toname"));
        };
        let guids = |name| match list.get(name) {
            Some(Value::U64Array(guids)) => Some(guids.clone()),
            _ => None,
        };
        let has = |name| list.get(name).is_some();
        Ok(Self {
            object: need("object")?,
            offset: need("offset")?,
            bytes: need("bytes")?,
            to_guid: need("toguid")?,
            to_name: to_name.clone(),
            from_guid: list.u64("fromguid"),
            large_block_ok: has("largeblockok"),
            embed_ok: has("embedok"),
            compress_ok: has("compressok"),
            raw_ok: has("rawok"),
            saved_ok: has("savedok"),
            redact_snaps: guids("redact_snaps"),
            book_redact_snaps: guids("book_redact_snaps"),
            unknown: list
                .iter()
                .map(|(name, _)| name)
                .filter(|n| !KNOWN.contains(n))
                .map(String::from)
                .collect(),
        })
    }

    /// In the order in which OpenZFS writes them.
    fn to_nvlist(&self) -> NvList {
        let mut list = NvList::new();
        if let Some(guid) = self.from_guid {
            list.push("fromguid", Value::U64(guid));
        }
        let numbers = [
            ("object", self.object),
            ("offset", self.offset),
            ("bytes", self.bytes),
            ("toguid", self.to_guid),
        ];
        for (name, number) in numbers {
            list.push(name, Value::U64(number));
        }
        list.push("toname", Value::String(self.to_name.clone()));
        let flags = [
            ("largeblockok", self.large_block_ok),
            ("embedok", self.embed_ok),
            ("compressok", self.compress_ok),
            ("rawok", self.raw_ok),
            ("savedok", self.saved_ok),
        ];
        for (name, _) in flags.into_iter().filter(|(_, set)| *set) {
            list.push(name, Value::Boolean);
        }
        let guids =
            [("redact_snaps", &self.redact_snaps), ("book_redact_snaps", &self.book_redact_snaps)];
        for (name, guids) in guids {
            if let Some(guids) = guids {
                list.push(name, Value::U64Array(guids.clone()));
            }
        }
        list
    }
}

const KNOWN: [&str; 13] = [
    "object",
    "offset",
    "bytes",
    "toguid",
    "toname",
    "fromguid",
    "largeblockok",
    "embedok",
    "compressok",
    "rawok",
    "savedok",
    "redact_snaps",
    "book_redact_snaps",
];

fn checksum_of(payload: &[u8]) -> u64 {
    let whole_words = payload.len() / 4 * 4;
    let mut sum = Fletcher4::new();
    sum.update(&payload[..whole_words], Endian::Little);
    sum.value()[0]
}

fn unhex(hex: &str) -> Result<Vec<u8>, TokenError> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return Err(malformed("its payload has half a byte"));
    }
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    bytes.collect::<Option<_>>().ok_or(malformed("its payload is not hexadecimal"))
}

/// `len` is bounded by the caller.
fn inflate(payload: &[u8], len: u64) -> Result<Vec<u8>, TokenError> {
    let mut packed = Vec::new();
    let mut decoder = flate2::read::ZlibDecoder::new(payload).take(len + 1);
    decoder.read_to_end(&mut packed).map_err(TokenError::Decompress)?;
    if packed.len() as u64 != len {
        return Err(malformed("its payload does not have the length it states"));
    }
    Ok(packed)
}

fn deflate(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(packed)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: &str = include_str!("../testdata/resume-token.txt");

    fn full() -> ResumeToken {
        ResumeToken {
            object: 2,
            offset: 0x40000,
            bytes: 0x60de8,
            to_guid: 0x7e99_29ba_cfc5_c02c,
            to_name: "tank/g/plain@s1".into(),
            ..ResumeToken::default()
        }
    }

    #[test]
    fn a_token_of_openzfs_is_read_as_zfs_send_reads_it() {
        let token: ResumeToken = REAL.parse().expect("a real token");
        assert_eq!(token, full());
    }

    #[test]
    fn the_list_in_a_token_is_packed_to_the_bytes_openzfs_packs() {
        let payload = unhex(REAL.trim().rsplit('-').next().expect("payload")).expect("hex");
        assert_eq!(full().to_nvlist().pack(), inflate(&payload, 0xb8).expect("zlib"));
    }

    #[test]
    fn a_token_written_is_read_again() {
        let token = ResumeToken {
            from_guid: Some(9),
            large_block_ok: true,
            embed_ok: true,
            compress_ok: true,
            raw_ok: true,
            saved_ok: true,
            redact_snaps: Some(vec![]),
            book_redact_snaps: Some(vec![1, u64::MAX]),
            ..full()
        };
        assert_eq!(token.to_string().parse::<ResumeToken>().expect("own token"), token);
    }

    #[test]
    fn a_changed_character_anywhere_is_noticed() {
        let real = REAL.trim();
        for at in 0..real.len() {
            let other = if &real[at..=at] == "0" { "1" } else { "0" };
            let changed = format!("{}{other}{}", &real[..at], &real[at + 1..]);
            // The fletcher4 of a token covers whole words only, and the first word of the sum is a plain sum;
            // zlib's own checksum covers the rest.
            assert!(changed.parse::<ResumeToken>().is_err(), "changed at {at}");
        }
    }

    #[test]
    fn a_token_that_states_a_huge_length_is_refused_before_it_is_decompressed() {
        let text = "1-0-ffffffffffff-00";
        assert!(matches!(text.parse::<ResumeToken>(), Err(TokenError::TooLong { .. })));
    }

    #[test]
    fn what_is_no_token_says_why() {
        let why = |text: &str| text.parse::<ResumeToken>().expect_err(text).to_string();
        assert_eq!(why(""), "resume token is malformed: it does not have four parts");
        assert_eq!(why("2-0-0-00"), "resume token has version 2, only 1 is known");
        assert_eq!(why("1-x-0-00"), "resume token is malformed: its checksum is not hexadecimal");
        assert_eq!(why("1-0-0-0"), "resume token is malformed: its payload has half a byte");
        assert_eq!(why("1-1-0-00"), "resume token is damaged: checksum 1, computed 0");
    }
}
