//! Somebody in the middle, built from quinn and rustls alone: it has a key of its own, takes any, and
//! passes bytes on.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use flocker_transport::frame::{FrameType, HEADER_LEN, Header};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// The address of a relay that leads to `target`, one connection after another.
pub(crate) async fn start(target: SocketAddr) -> SocketAddr {
    record(target).await.address
}

/// A relay that takes down what the dialling side says.
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    target: SocketAddr,
    said: Arc<Mutex<Vec<u8>>>,
    endpoint: Endpoint,
}

pub(crate) async fn record(target: SocketAddr) -> Recorder {
    let endpoint = endpoint();
    let address = endpoint.local_addr().unwrap();
    let said = Arc::new(Mutex::new(Vec::new()));
    let (serving, taken) = (endpoint.clone(), said.clone());
    tokio::spawn(async move {
        while let Some(incoming) = serving.accept().await {
            let (onward, taken) = (serving.clone(), taken.clone());
            tokio::spawn(async move {
                let near = incoming.await.unwrap();
                let far = dial(&onward, target).await;
                let (near_send, near_recv) = near.accept_bi().await.unwrap();
                let (far_send, far_recv) = far.open_bi().await.unwrap();
                tokio::join!(
                    pass(near_recv, far_send, Some(taken)),
                    pass(far_recv, near_send, None),
                );
            });
        }
    });
    Recorder { address, target, said, endpoint }
}

impl Recorder {
    /// Says everything again on a connection of its own, with the recorder's key, and returns the type
    /// of the last frame that comes back.
    pub(crate) async fn replay(&self) -> FrameType {
        let connection = dial(&self.endpoint, self.target).await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let said = self.said.lock().unwrap().clone();
        assert!(said.len() > 100, "something was recorded");
        send.write_all(&said).await.unwrap();
        let mut last = None;
        let mut header = [0; HEADER_LEN];
        while recv.read_exact(&mut header).await.is_ok() {
            let header = Header::decode(&header).unwrap();
            let mut payload = vec![0; header.len];
            recv.read_exact(&mut payload).await.unwrap();
            last = Some(header.kind);
        }
        last.expect("an answer")
    }
}

async fn pass(mut from: RecvStream, mut to: SendStream, taken: Option<Arc<Mutex<Vec<u8>>>>) {
    let mut buf = [0; 4096];
    while let Ok(Some(len)) = from.read(&mut buf).await {
        if let Some(taken) = &taken {
            taken.lock().unwrap().extend_from_slice(&buf[..len]);
        }
        if to.write_all(&buf[..len]).await.is_err() {
            break;
        }
    }
    let _ = to.finish();
    let _ = to.stopped().await;
}

async fn dial(endpoint: &Endpoint, target: SocketAddr) -> Connection {
    endpoint.connect(target, "anyone").unwrap().await.unwrap()
}

fn endpoint() -> Endpoint {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let params = rcgen::CertificateParams::new(vec!["middle".to_owned()]).unwrap();
    let chain = vec![params.self_signed(&key).unwrap().der().clone()];
    let private = || PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let alpn = vec![b"flocker-repl-pair".to_vec()];

    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anyone))
        .with_single_cert(chain.clone(), private())
        .unwrap();
    server.alpn_protocols = alpn.clone();
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_client_auth_cert(chain, private())
        .unwrap();
    client.alpn_protocols = alpn;

    let server = Arc::new(QuicServerConfig::try_from(server).unwrap());
    let client = Arc::new(QuicClientConfig::try_from(client).unwrap());
    let listen = "127.0.0.1:0".parse().unwrap();
    let mut endpoint = Endpoint::server(quinn::ServerConfig::with_crypto(server), listen).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(client));
    endpoint
}

/// Takes any certificate, as somebody in the middle would.
#[derive(Debug)]
struct Anyone;

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
