//! Open invitations, with a try counter that is durable before a try is answered.

use redb::ReadableTable;
use serde::{Deserialize, Serialize};

use super::{INVITATIONS, Journal, JournalError, encode};

/// Wrong codes that end an invitation.
pub const MAX_TRIES: u32 = 5;

/// One invitation is open at a time; a new one replaces it.
const KEY: &str = "open";

/// An invitation as it is kept. The code itself is not: an invitation does not outlive the daemon,
/// but its spent tries do, so that restarting the daemon is no way to guess on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitationRecord {
    /// Random; tells this invitation from the one before.
    pub id: u64,
    /// When it ends, seconds since 1970.
    pub expires_unix_s: i64,
    /// Tries that were begun.
    pub tries: u32,
}

/// What a counted try may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Try {
    /// It may be answered; so many are left after it.
    Go {
        /// Tries left after this one.
        left: u32,
    },
    /// The invitation's time is over.
    Expired,
    /// Its tries are used up.
    Exhausted,
    /// It is not open (any more).
    Closed,
}

impl Journal {
    /// Opens an invitation in the place of any other.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn open_invitation(&self, invitation: &InvitationRecord) -> Result<(), JournalError> {
        self.write("opening an invitation", |txn| {
            let mut table = txn.open_table(INVITATIONS)?;
            table.insert(KEY, encode(invitation).as_slice())?;
            Ok(())
        })
    }

    /// Counts a try durably; only then may it be answered.
    ///
    /// # Errors
    /// [`JournalError::Io`]: the try was not counted and may not be answered.
    pub fn count_try(&self, id: u64, now_unix_s: i64) -> Result<Try, JournalError> {
        let mut outcome = Try::Closed;
        self.write("counting a try", |txn| {
            let mut table = txn.open_table(INVITATIONS)?;
            let kept = table.get(KEY)?.map(|value| value.value().to_vec());
            let Some(mut invitation) =
                kept.and_then(|bytes| postcard::from_bytes::<InvitationRecord>(&bytes).ok())
            else {
                return Ok(());
            };
            outcome = if invitation.id != id {
                Try::Closed
            } else if now_unix_s >= invitation.expires_unix_s {
                Try::Expired
            } else if invitation.tries >= MAX_TRIES {
                Try::Exhausted
            } else {
                invitation.tries += 1;
                table.insert(KEY, encode(&invitation).as_slice())?;
                Try::Go { left: MAX_TRIES - invitation.tries }
            };
            Ok(())
        })?;
        Ok(outcome)
    }

    /// Ends an invitation; one that is not open any more is not an error.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn close_invitation(&self, id: u64) -> Result<(), JournalError> {
        self.write("closing an invitation", |txn| {
            let mut table = txn.open_table(INVITATIONS)?;
            let kept = table.get(KEY)?.map(|value| value.value().to_vec());
            let same = kept
                .and_then(|bytes| postcard::from_bytes::<InvitationRecord>(&bytes).ok())
                .is_some_and(|kept| kept.id == id);
            if same {
                table.remove(KEY)?;
            }
            Ok(())
        })
    }
}
