//! The one-time code: what one person reads out and another types.
//!
//! Owns: drawing, showing and reading it. Nine Crockford base32 symbols, 45 bits, as `7K3F-M2QX-9`.
//! Reading is tolerant: case, dashes and blanks do not matter, `O` is 0, `I` and `L` are 1.

use std::fmt;
use std::str::FromStr;

use crate::endpoint::random_u64;

/// Symbols of a code: 45 bits.
pub const SYMBOLS: usize = 9;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A one-time code. It shows itself only where it is meant to be shown, never in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct PairingCode([u8; SYMBOLS]);

impl PairingCode {
    /// A new one.
    ///
    /// # Panics
    /// When the system has no entropy.
    pub fn draw() -> Self {
        let bits = random_u64();
        Self(std::array::from_fn(|i| ALPHABET[(bits >> (5 * i) & 31) as usize]))
    }

    /// What the PAKE takes as password.
    pub(crate) fn secret(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, symbol) in self.0.iter().enumerate() {
            if i > 0 && i % 4 == 0 {
                f.write_str("-")?;
            }
            write!(f, "{}", char::from(*symbol))?;
        }
        Ok(())
    }
}

impl fmt::Debug for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairingCode(…)")
    }
}

/// A text that is no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// Too few or too many symbols.
    #[error("a code has {SYMBOLS} letters and digits, like 7K3F-M2QX-9; this one has {found}")]
    Length {
        /// How many there are.
        found: usize,
    },
    /// A symbol that no code has.
    #[error("`{symbol}` does not occur in codes")]
    Symbol {
        /// The symbol.
        symbol: char,
    },
}

impl FromStr for PairingCode {
    type Err = CodeError;

    fn from_str(text: &str) -> Result<Self, CodeError> {
        let mut symbols = Vec::with_capacity(SYMBOLS);
        for symbol in text.chars().filter(|c| !c.is_whitespace() && !matches!(c, '-' | '–' | '_'))
        {
            let upper = match symbol.to_ascii_uppercase() {
                'O' => '0',
                'I' | 'L' => '1',
                other => other,
            };
            let known = u8::try_from(upper).ok().filter(|byte| ALPHABET.contains(byte));
            symbols.push(known.ok_or(CodeError::Symbol { symbol })?);
        }
        let found = symbols.len();
        Ok(Self(symbols.try_into().map_err(|_| CodeError::Length { found })?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_as_it_is_shown_and_as_people_type_it() {
        let code: PairingCode = "7K3F-M2QX-1".parse().unwrap();
        assert_eq!(code.to_string(), "7K3F-M2QX-1");
        for typed in ["7k3fm2qx1", " 7K3F M2QX l ", "7k3f-m2qx-I"] {
            assert_eq!(typed.parse(), Ok(code.clone()), "{typed}");
        }
        let zeros: PairingCode = "oO0o-O0oO-0".parse().unwrap();
        assert_eq!(zeros.to_string(), "0000-0000-0");
    }

    #[test]
    fn what_is_no_code_is_named() {
        assert_eq!("7K3F".parse::<PairingCode>(), Err(CodeError::Length { found: 4 }));
        assert_eq!("7K3F-M2QX-U".parse::<PairingCode>(), Err(CodeError::Symbol { symbol: 'U' }));
    }

    #[test]
    fn drawn_codes_differ_and_come_back() {
        let (a, b) = (PairingCode::draw(), PairingCode::draw());
        assert_ne!(a, b);
        assert_eq!(a.to_string().parse(), Ok(a.clone()));
        assert!(!format!("{a:?}").contains(&a.to_string()));
    }
}
