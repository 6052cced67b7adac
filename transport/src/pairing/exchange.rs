//! The exchange without its connection: messages in, proofs out.
//!
//! Owns: SPAKE2 and what each proof covers. Leaves to others: sending, timeouts, counting.

use flocker_core::ids::Fingerprint;
use spake2::{Ed25519Group, Identity as SpakeIdentity, Password, Spake2};

use super::code::PairingCode;
use crate::frame::cursor::Put;
use crate::frame::pair::{MAX_ADDRESS, PROOF_LEN, SPAKE_LEN};

/// Context of the key under which proofs are made (BLAKE3 `derive_key`).
const PROOF_CONTEXT: &str = "flocker-repl 2025 pairing proof v1";

/// Label of the TLS exporter (RFC 8446, 7.5).
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-flocker-repl-pairing";

/// Which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that was given the code.
    Joiner,
    /// The one that made the code.
    Inviter,
}

/// What one side says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its key, as its TLS handshake proved it.
    pub fingerprint: Fingerprint,
    /// Its name, as its Hello said it.
    pub name: String,
    /// Its addresses, as its opening said them.
    pub addresses: Vec<String>,
}

/// What both must have seen alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scene {
    /// Protocol version, the same on both sides.
    pub protocol: u16,
    /// Keying material of this very connection.
    pub exporter: [u8; 32],
    /// The joiner's claim.
    pub joiner: Claim,
    /// The inviter's claim.
    pub inviter: Claim,
}

/// One side between its first message and the other's.
pub struct Exchange {
    role: Role,
    state: Spake2<Ed25519Group>,
    ours: [u8; SPAKE_LEN],
}

/// The other side's PAKE message is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the PAKE message is malformed")]
pub struct BadMessage;

/// The three proofs. They agree on both sides exactly if the code and the [`Scene`] do.
pub struct Proofs {
    joiner: blake3::Hash,
    inviter: blake3::Hash,
    confirm: blake3::Hash,
}

/// Which proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The joiner knows the code.
    Joiner,
    /// The inviter knows the code, and has verified the joiner.
    Inviter,
    /// The joiner has verified the inviter.
    Confirm,
}

impl Exchange {
    /// Starts as `role`; the message goes to the other side.
    pub fn start(
        role: Role,
        code: &PairingCode,
        joiner: &Fingerprint,
        inviter: &Fingerprint,
    ) -> (Self, [u8; SPAKE_LEN]) {
        let password = Password::new(code.secret());
        let (a, b) = (SpakeIdentity::new(&joiner.0), SpakeIdentity::new(&inviter.0));
        let (state, message) = match role {
            Role::Joiner => Spake2::start_a(&password, &a, &b),
            Role::Inviter => Spake2::start_b(&password, &a, &b),
        };
        let ours: Result<[u8; SPAKE_LEN], _> = message.try_into();
        let Ok(ours) = ours else {
            unreachable!("a message over this group has a fixed length");
        };
        (Self { role, state, ours }, ours)
    }

    /// Ends with the other side's message.
    ///
    /// # Errors
    /// [`BadMessage`]. A wrong code is not found here but by the proofs.
    pub fn finish(self, theirs: &[u8; SPAKE_LEN], scene: &Scene) -> Result<Proofs, BadMessage> {
        let Self { role, state, ours } = self;
        let key = state.finish(theirs).map_err(|_| BadMessage)?;
        let key = blake3::derive_key(PROOF_CONTEXT, &key);
        let (from_joiner, from_inviter) = match role {
            Role::Joiner => (&ours, theirs),
            Role::Inviter => (theirs, &ours),
        };
        let seen = transcript(scene, from_joiner, from_inviter);
        let proof = |label: &[u8; 8]| {
            let mut hasher = blake3::Hasher::new_keyed(&key);
            hasher.update(label).update(&seen).finalize()
        };
        Ok(Proofs {
            joiner: proof(b"joiner.."),
            inviter: proof(b"inviter."),
            confirm: proof(b"confirm."),
        })
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("role", &self.role).finish_non_exhaustive()
    }
}

impl Proofs {
    fn get(&self, which: Proof) -> &blake3::Hash {
        match which {
            Proof::Joiner => &self.joiner,
            Proof::Inviter => &self.inviter,
            Proof::Confirm => &self.confirm,
        }
    }

    /// The bytes to send.
    pub fn show(&self, which: Proof) -> [u8; PROOF_LEN] {
        *self.get(which).as_bytes()
    }

    /// Compares what came, in constant time.
    pub fn verify(&self, which: Proof, found: &[u8]) -> bool {
        let Ok(found) = <[u8; PROOF_LEN]>::try_from(found) else {
            return false;
        };
        *self.get(which) == blake3::Hash::from_bytes(found)
    }
}

impl std::fmt::Debug for Proofs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proofs(…)")
    }
}

fn transcript(
    scene: &Scene,
    from_joiner: &[u8; SPAKE_LEN],
    from_inviter: &[u8; SPAKE_LEN],
) -> Vec<u8> {
    let put = Put::default().u16(scene.protocol).bytes(&scene.exporter);
    let put = claim(put.bytes(from_joiner), &scene.joiner);
    claim(put.bytes(from_inviter), &scene.inviter).done()
}

/// Every part with its length, so that no two claims give the same bytes.
fn claim(put: Put, claim: &Claim) -> Put {
    let count = u8::try_from(claim.addresses.len()).unwrap_or(u8::MAX);
    let put = put.bytes(&claim.fingerprint.0).text(&claim.name, usize::MAX).u8(count);
    claim.addresses.iter().fold(put, |put, address| put.text(address, MAX_ADDRESS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene() -> Scene {
        let claim = |n: u8, name: &str| Claim {
            fingerprint: Fingerprint([n; 32]),
            name: name.into(),
            addresses: vec![format!("10.0.0.{n}:7001")],
        };
        Scene { protocol: 1, exporter: [9; 32], joiner: claim(1, "b"), inviter: claim(2, "a") }
    }

    fn run(codes: [&str; 2], scenes: [&Scene; 2]) -> [Proofs; 2] {
        let start = |role, code: &str, scene: &Scene| {
            let code = code.parse().unwrap();
            Exchange::start(role, &code, &scene.joiner.fingerprint, &scene.inviter.fingerprint)
        };
        let (joiner, a) = start(Role::Joiner, codes[0], scenes[0]);
        let (inviter, b) = start(Role::Inviter, codes[1], scenes[1]);
        [joiner.finish(&b, scenes[0]).unwrap(), inviter.finish(&a, scenes[1]).unwrap()]
    }

    fn agree([a, b]: &[Proofs; 2]) -> bool {
        [Proof::Joiner, Proof::Inviter, Proof::Confirm]
            .map(|which| a.verify(which, &b.show(which)))
            .iter()
            .all(|same| *same)
    }

    const CODE: &str = "7K3F-M2QX-9";

    #[test]
    fn the_same_code_and_scene_agree_and_the_three_proofs_differ() {
        let proofs = run([CODE, CODE], [&scene(), &scene()]);
        assert!(agree(&proofs));
        assert!(!proofs[0].verify(Proof::Inviter, &proofs[1].show(Proof::Joiner)));
        assert!(!proofs[0].verify(Proof::Joiner, &proofs[1].show(Proof::Confirm)));
    }

    #[test]
    fn another_code_never_agrees() {
        assert!(!agree(&run([CODE, "7K3F-M2QX-8"], [&scene(), &scene()])));
    }

    #[test]
    fn whatever_the_two_saw_differently_shows() {
        let changes: [fn(&mut Scene); 7] = [
            |s| s.protocol = 2,
            |s| s.exporter[31] ^= 1,
            |s| s.joiner.fingerprint.0[0] ^= 1,
            |s| s.inviter.fingerprint.0[0] ^= 1,
            |s| s.joiner.name.push('x'),
            |s| s.inviter.addresses.push("10.9.9.9:1".into()),
            |s| s.joiner.addresses.clear(),
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut other = scene();
            change(&mut other);
            assert!(!agree(&run([CODE, CODE], [&scene(), &other])), "change {i}");
        }
    }

    #[test]
    fn what_is_no_pake_message_is_refused() {
        let s = scene();
        let code = CODE.parse().unwrap();
        let start =
            |role| Exchange::start(role, &code, &s.joiner.fingerprint, &s.inviter.fingerprint);
        let (exchange, ours) = start(Role::Joiner);
        assert!(exchange.finish(&ours, &s).is_err(), "our own message, reflected");
        // Half of all strings are no point of the curve; these are enough to meet one.
        let refused = (0..16).filter(|n| {
            let mut message = [0; SPAKE_LEN];
            (message[0], message[1]) = (b'B', *n);
            start(Role::Joiner).0.finish(&message, &s).is_err()
        });
        assert!(refused.count() > 0, "not a point");
    }
}
