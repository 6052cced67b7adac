//! What a store on real ZFS has to do, checked against the trait: run where that ZFS is, by
//! `flocker-store-suite`, in the guests of the lab or on any machine with a pool to spare.
//!
//! Owns: the checks ([`kinds`], [`resume`], [`records`], [`standby`], [`refusals`]), each in datasets of its
//! own below one root, and what they print. Leaves to others: which ZFS there is and who starts this
//! (`crate::lab`), two nodes that talk to each other (`crate::e2e`).

pub mod content;
pub mod kinds;
pub mod records;
pub mod refusals;
pub mod resume;
pub mod site;
pub mod standby;

pub use site::Site;

/// What a check says when it fails.
pub type Trouble = Box<dyn std::error::Error>;

/// Why a check does not apply here.
#[derive(Debug)]
pub struct NotHere(pub String);

/// A check: a sentence about behaviour, and its proof. What it returns is printed beside it.
pub type Check = (&'static str, fn(&Site) -> Result<String, Trouble>);

impl std::fmt::Display for NotHere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotHere {}

/// All of them, in the order in which they are run.
pub fn checks() -> Vec<Check> {
    [kinds::CHECKS, records::CHECKS, standby::CHECKS, refusals::CHECKS, resume::CHECKS].concat()
}

/// Fails the check with a sentence unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($words:tt)*) => {
        if !$condition {
            return Err(format!($($words)*).into());
        }
    };
}
