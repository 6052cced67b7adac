//! The TLS rules: version 1.3 only, both sides prove an Ed25519 key, no certificate authority.
//!
//! Owns: the rustls configurations and their verifiers. Leaves to others: whether a proven key is
//! trusted. A server lets every *proven* key finish its handshake, so that an unpaired peer can be
//! told so in words instead of by a TLS alert; nothing but Hello and Reject is served to it
//! ([`crate::endpoint`]). A client pins the key it expects, or learns it, for pairing.
//!
//! No tickets, no resumption, no early data: each connection proves both keys afresh, and its
//! exporter belongs to it alone.

use std::sync::{Arc, OnceLock};

use flocker_core::ids::Fingerprint;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, PeerMisbehaved,
    ServerConfig, SignatureScheme,
};

use crate::identity::{Identity, fingerprint_of};

/// ALPN of a connection between paired nodes.
pub const ALPN_PEER: &[u8] = b"flocker-repl";

/// ALPN of a connection for pairing.
pub const ALPN_PAIR: &[u8] = b"flocker-repl-pair";

/// ALPN of a TLS connection over TCP that carries one bulk transfer between paired nodes.
pub const ALPN_BULK: &[u8] = b"flocker-repl-bulk";

/// The server name of every dial: never sent, and certificates are not looked at for names.
pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// AES-128-GCM first: the cheapest per byte where the processor has AES; the peers are equals, so the
/// client's order decides.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// TLS for the accepting side, which speaks the protocols `alpn`.
///
/// # Errors
/// What rustls finds wrong with our own key or certificate.
pub(crate) fn server_config(
    identity: &Identity,
    alpn: &[&[u8]],
) -> Result<ServerConfig, rustls::Error> {
    let provider = provider();
    let verifier = AnyNode { provider: Arc::clone(&provider) };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(vec![identity.certificate()], identity.private_key())?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// TLS for the dialling side. The key the other side proved is put into `seen`, also when it is not
/// the one `expected`.
///
/// # Errors
/// As `server_config`.
pub fn client_config(
    identity: &Identity,
    alpn: &[u8],
    expected: Option<Fingerprint>,
    seen: Arc<OnceLock<Fingerprint>>,
) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    let verifier = PinnedNode { provider: Arc::clone(&provider), expected, seen };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(vec![identity.certificate()], identity.private_key())?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(config)
}

fn check_signature(
    provider: &CryptoProvider,
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    if signature.scheme != SignatureScheme::ED25519 {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    let algorithms = &provider.signature_verification_algorithms;
    verify_tls13_signature(message, certificate, signature, algorithms)
}

/// The fingerprint of a lone, well-formed node certificate.
fn single(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<Fingerprint, rustls::Error> {
    if !intermediates.is_empty() {
        return Err(CertificateError::UnknownIssuer.into());
    }
    fingerprint_of(end_entity).map_err(|_| CertificateError::BadEncoding.into())
}

/// Accepts any node that proves its key.
#[derive(Debug)]
struct AnyNode {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyNode {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        single(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerMisbehaved::SelectedTls12UsingTls13VersionExtension.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_signature(&self.provider, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Accepts the one node that is expected, or any when none is (pairing), and says who it was.
#[derive(Debug)]
struct PinnedNode {
    provider: Arc<CryptoProvider>,
    expected: Option<Fingerprint>,
    seen: Arc<OnceLock<Fingerprint>>,
}

impl ServerCertVerifier for PinnedNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = single(end_entity, intermediates)?;
        let _ = self.seen.set(found);
        match self.expected {
            Some(expected) if expected != found => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            Some(_) | None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerMisbehaved::SelectedTls12UsingTls13VersionExtension.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        check_signature(&self.provider, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
