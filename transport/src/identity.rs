//! Who a node is: its Ed25519 key, the file that keeps it, and the fingerprint others know it by.
//!
//! Owns: making, storing and loading the key; the self-signed certificate that carries it through
//! TLS; the step from a certificate to a [`Fingerprint`]. Leaves to others: which fingerprints are
//! trusted ([`crate::trust`]), the words shown for one ([`mod@crate::words`]), the TLS rules
//! ([`crate::tls`]).

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flocker_core::ids::Fingerprint;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Name of the key's file within the node's state directory.
pub const KEY_FILE: &str = "identity.pem";

/// The one name every certificate carries. Nobody reads it: a peer is its key.
const CERTIFICATE_NAME: &str = "flocker-repl";

/// SubjectPublicKeyInfo of an Ed25519 key up to the 32 bytes of the key itself (RFC 8410).
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Length in bytes of the SubjectPublicKeyInfo of an Ed25519 key.
const ED25519_SPKI_LEN: usize = 44;

/// A key file is some 120 bytes; more than this is not one.
const MAX_KEY_FILE_BYTES: u64 = 16 << 10;

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file could not be read or written.
    #[error("cannot {doing} the identity key {}: {source}", path.display())]
    File {
        /// What was tried: `read`, `create`, `write`.
        doing: &'static str,
        /// The key's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others than the owner can read the key.
    #[error(
        "the identity key {} is readable by others (mode {mode:04o}): run chmod 600 on it, or remove \
         it and pair again if others may have read it",
        path.display()
    )]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("{} does not hold an Ed25519 key in PKCS#8 PEM", path.display())]
    NotAKey {
        /// The key's file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: rcgen::Error,
    },
    /// No key or certificate could be made.
    #[error("cannot make an identity: {source}")]
    Generate {
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
}

/// Why a certificate is not a node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotANode {
    /// It does not parse as an X.509 v3 certificate.
    #[error("its certificate cannot be parsed")]
    Unparsable,
    /// Its key is of another kind.
    #[error("its key is not an Ed25519 key")]
    OtherKey,
}

/// A node's key pair with the certificate that carries its public half.
pub struct Identity {
    key_pkcs8: Vec<u8>,
    certificate: CertificateDer<'static>,
    fingerprint: Fingerprint,
}

impl Identity {
    /// Loads the key in `dir`, or makes one and stores it durably with mode 0600.
    ///
    /// # Errors
    /// [`IdentityError`]; an existing file that cannot be used is never replaced.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(KEY_FILE);
        match fs::symlink_metadata(&path) {
            Ok(_) => Self::load(&path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Self::create(dir, &path),
            Err(source) => Err(IdentityError::File { doing: "read", path, source }),
        }
    }

    /// A new identity that is kept nowhere, for tests and benches.
    ///
    /// # Errors
    /// [`IdentityError::Generate`].
    pub fn ephemeral() -> Result<Self, IdentityError> {
        Self::from_key(generate()?)
    }

    /// What peers know this node by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_pkcs8.clone()))
    }

    fn load(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::File { doing: "read", path: path.into(), source };
        let meta = fs::metadata(path).map_err(failed)?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.into(), mode });
        }
        if meta.len() > MAX_KEY_FILE_BYTES {
            return Err(failed(io::Error::other("the file is too long for a key")));
        }
        let pem = fs::read_to_string(path).map_err(failed)?;
        let key = rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &rcgen::PKCS_ED25519)
            .map_err(|source| IdentityError::NotAKey { path: path.into(), source })?;
        Self::from_key(key)
    }

    /// Write aside, sync, then link into place: a crash leaves no half key, and of two processes
    /// that start at once the second takes the first one's key.
    fn create(dir: &Path, path: &Path) -> Result<Self, IdentityError> {
        let failed = |doing| move |source| IdentityError::File { doing, path: path.into(), source };
        let key = generate()?;
        let aside = dir.join(format!("{KEY_FILE}.new.{}", std::process::id()));
        let _ = fs::remove_file(&aside);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)
            .map_err(failed("create"))?;
        file.write_all(key.serialize_pem().as_bytes()).map_err(failed("write"))?;
        file.sync_all().map_err(failed("write"))?;
        let linked = fs::hard_link(&aside, path);
        let _ = fs::remove_file(&aside);
        match linked {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Self::load(path),
            Err(source) => return Err(failed("create")(source)),
        }
        fs::File::open(dir).and_then(|d| d.sync_all()).map_err(failed("write"))?;
        Self::from_key(key)
    }

    fn from_key(key: rcgen::KeyPair) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::Generate { source };
        let certificate = rcgen::CertificateParams::new(vec![CERTIFICATE_NAME.to_owned()])
            .and_then(|params| params.self_signed(&key))
            .map_err(failed)?;
        let certificate = certificate.der().clone();
        let fingerprint = fingerprint_of(&certificate);
        let Ok(fingerprint) = fingerprint else {
            unreachable!("our own certificate carries an Ed25519 key");
        };
        Ok(Self { key_pkcs8: key.serialize_der(), certificate, fingerprint })
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

fn generate() -> Result<rcgen::KeyPair, IdentityError> {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)
        .map_err(|source| IdentityError::Generate { source })
}

/// The fingerprint of the key in a certificate: BLAKE3-256 of its SubjectPublicKeyInfo (DER).
///
/// # Errors
/// [`NotANode`] for anything but a certificate with an Ed25519 key.
pub(crate) fn fingerprint_of(certificate: &CertificateDer<'_>) -> Result<Fingerprint, NotANode> {
    let parsed = rustls::server::ParsedCertificate::try_from(certificate)
        .map_err(|_| NotANode::Unparsable)?;
    let spki = parsed.subject_public_key_info();
    if spki.len() != ED25519_SPKI_LEN || !spki.starts_with(&ED25519_SPKI_PREFIX) {
        return Err(NotANode::OtherKey);
    }
    Ok(Fingerprint(*blake3::hash(&spki).as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_made_once_is_found_again_with_mode_0600() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(dir.path()).unwrap();
        let second = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Identity::load_or_create(dir.path()).unwrap();
        let path = dir.path().join(KEY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Identity::load_or_create(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Exposed { mode: 0o644, .. }), "{error}");
    }

    #[test]
    fn a_file_that_is_not_a_key_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        fs::write(&path, "precious").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = Identity::load_or_create(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::NotAKey { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_key_of_another_kind_is_refused() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let params = rcgen::CertificateParams::new(vec!["x".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(fingerprint_of(certificate.der()), Err(NotANode::OtherKey));
        assert_eq!(fingerprint_of(&vec![0u8; 40].into()), Err(NotANode::Unparsable));
    }
}
