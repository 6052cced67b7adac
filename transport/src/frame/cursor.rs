//! Reading and writing the fields of a payload, each bounded.
//!
//! Owns: integers, arrays and length-prefixed bytes and text. Leaves to others: which fields there are.
//! Text from a peer ends up on people's terminals, so control characters never get past here.

use super::{FrameError, FrameType};

/// Reads fields from the front of a payload.
#[derive(Debug)]
pub struct Take<'a> {
    kind: FrameType,
    rest: &'a [u8],
}

impl<'a> Take<'a> {
    /// A reader over the payload of a frame of type `kind`, which its errors name.
    pub fn new(kind: FrameType, payload: &'a [u8]) -> Self {
        Self { kind, rest: payload }
    }

    fn wrong(&self, what: &'static str) -> FrameError {
        FrameError::Payload { kind: self.kind, what }
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`FrameError::Payload`] when there are fewer.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(self.wrong("it is too short"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// As [`Take::bytes`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (taken, rest) =
            self.rest.split_first_chunk::<N>().ok_or(self.wrong("it is too short"))?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One byte.
    ///
    /// # Errors
    /// As [`Take::bytes`].
    pub fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// Two bytes.
    ///
    /// # Errors
    /// As [`Take::bytes`].
    pub fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// As [`Take::bytes`].
    pub fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// As [`Take::bytes`].
    pub fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A text with its length (two bytes) before it, of at most `max` bytes and fit to be shown.
    ///
    /// # Errors
    /// [`FrameError::Payload`] when it is longer, no UTF-8, or holds control characters.
    pub fn text(&mut self, max: usize) -> Result<String, FrameError> {
        let len = usize::from(self.u16()?);
        if len > max {
            return Err(self.wrong("a text in it is too long"));
        }
        let text = std::str::from_utf8(self.bytes(len)?)
            .map_err(|_| self.wrong("a text in it is not UTF-8"))?;
        if text.chars().any(|c| !fit_to_show(c)) {
            return Err(self.wrong("a text in it holds control characters"));
        }
        Ok(text.to_owned())
    }

    /// Whatever is left.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Ends the payload here.
    ///
    /// # Errors
    /// [`FrameError::Payload`] when bytes are left.
    pub fn end(self) -> Result<(), FrameError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.wrong("it is too long")) }
    }
}

/// Appends fields to a payload.
#[derive(Debug, Default)]
pub struct Put(Vec<u8>);

impl Put {
    /// Bytes as they are.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// One byte.
    #[must_use]
    pub fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    /// Two bytes.
    #[must_use]
    pub fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Four bytes.
    #[must_use]
    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Eight bytes.
    #[must_use]
    pub fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A text with its length before it, made fit to be shown and cut to `max` bytes.
    #[must_use]
    pub fn text(self, text: &str, max: usize) -> Self {
        let text = presentable(text, max);
        let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.u16(len).bytes(text.as_bytes())
    }

    /// The payload.
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

/// `text` with control characters replaced, cut at a character so that it fits `max` bytes.
pub fn presentable(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let c = if fit_to_show(c) { c } else { ' ' };
        if out.len() + c.len_utf8() > max.min(usize::from(u16::MAX)) {
            break;
        }
        out.push(c);
    }
    out
}

/// Neither a control character nor one that turns the direction of what is shown after it.
fn fit_to_show(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_could_steer_a_terminal_is_refused_from_a_peer_and_cleaned_from_us() {
        let evil = Put::default().u16(4).bytes(b"a\x1b[2").done();
        assert!(Take::new(FrameType::Hello, &evil).text(64).is_err());
        let ours = Put::default().text("a\x1b\u{202e}b", 64).done();
        assert_eq!(Take::new(FrameType::Hello, &ours).text(64).unwrap(), "a  b");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        assert_eq!(presentable("aéé", 4), "aé");
    }
}
