//! Round trips between two nodes: a small message, a small step, and beside them a bare QUIC echo.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use flocker_benches::nodes::{Keys, Node, runtime};
use flocker_benches::streams::{self, Kind};
use flocker_transport::{
    BulkReceiver, Compression, LaneMode, PeerEvent, Progress, SendOptions, receive_stream,
    send_stream,
};
use tokio::sync::mpsc;

use crate::results::Latency;

pub(crate) const ECHO: &str = "QUIC echo of 64 bytes";
pub(crate) const STEP: &str = "64 KiB delta, all but the stores";
pub(crate) const MESSAGE: &str = "small message, nothing else on the connection";
pub(crate) const UNDER_BULK: &str = "small message, bulk on the same connection";

/// Length of a small message, bytes.
const SMALL: usize = 64;

/// Of each kind in a round.
const SAMPLES: usize = 200;

/// Bytes of the bulk beside which messages go.
const BULK_BYTES: u64 = 256 << 20;

/// Measures all of them, in turn, `rounds` times.
pub(crate) fn measure(rounds: usize) -> anyhow::Result<Vec<Latency>> {
    // Each side has its own threads, as in two processes.
    let (near, far) = (runtime()?, runtime()?);
    let mut echo = near.block_on(Echo::start(far.handle().clone()))?;
    let mut pair = near.block_on(Pair::start(far.handle().clone()))?;
    let step = {
        let mut step = Vec::new();
        streams::write_in_blocks(Kind::Noise, 60 << 10, 64 << 10, &mut step)?;
        Bytes::from(step)
    };
    let bulk = Bytes::from(streams::in_memory(Kind::Noise, BULK_BYTES)?);
    let (mut echoes, mut steps, mut messages, mut loaded) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    near.block_on(async {
        for _ in 0..rounds {
            for _ in 0..SAMPLES {
                echoes.push(us(echo.once().await?));
                messages.push(us(pair.message().await?));
                steps.push(us(pair.step(step.clone()).await?));
            }
            pair.under(bulk.clone(), &mut loaded).await?;
        }
        anyhow::Ok(())
    })?;
    Ok(vec![
        Latency::new(ECHO, echoes),
        Latency::new(MESSAGE, messages),
        Latency::new(UNDER_BULK, loaded),
        Latency::new(STEP, steps),
    ])
}

fn us(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

/// Two nodes; the far one answers messages, and takes whatever is sent.
struct Pair {
    near: Node,
    answers: mpsc::Receiver<Bytes>,
}

impl Pair {
    async fn start(there: tokio::runtime::Handle) -> anyhow::Result<Self> {
        let keys = Keys::ephemeral()?;
        let other = keys.clone();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let starting = async move { Node::receiver(&other, any, LaneMode::Quic) };
        let mut far = there.spawn(starting).await??;
        let mut near = Node::sender(&keys, far.manager.local_addr()?, LaneMode::Quic).await?;
        there.spawn(async move {
            while let Some(event) = far.events.recv().await {
                match event {
                    PeerEvent::Control { payload, .. } => {
                        let _ = far.manager.send_control(far.peer(), payload).await;
                    }
                    PeerEvent::Bulk { receiver, .. } => take(receiver),
                    _ => {}
                }
            }
        });
        let (tell, answers) = mpsc::channel(16);
        let (_, closed) = mpsc::channel(1);
        let mut events = std::mem::replace(&mut near.events, closed);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let PeerEvent::Control { payload, .. } = event {
                    let _ = tell.send(payload).await;
                }
            }
        });
        Ok(Self { near, answers })
    }

    /// A message there, and its answer.
    async fn message(&mut self) -> anyhow::Result<Instant> {
        let started = Instant::now();
        self.near.manager.send_control(self.near.peer(), Bytes::from_static(&[7; SMALL])).await?;
        self.answers.recv().await.context("the connection is down")?;
        Ok(started)
    }

    /// What a step is without its stores: it is offered and accepted, sent, received and acknowledged.
    async fn step(&mut self, stream: Bytes) -> anyhow::Result<Instant> {
        let started = self.message().await?;
        let sink = self.near.open(Some(stream.len() as u64)).await?;
        // On a thread of its own, as the engine does.
        let (done, sent) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("send".into()).spawn(move || {
            let (read, options) = (io::Cursor::new(stream), SendOptions::default());
            let _ = done.send(send_stream(read, |_| Ok(()), sink, options, &Progress::default()));
        })?;
        sent.await.map_err(|_| anyhow!("sending panicked"))??;
        Ok(started)
    }

    /// Messages while bulk goes the same way.
    async fn under(&mut self, stream: Bytes, samples: &mut Vec<f64>) -> anyhow::Result<()> {
        let sink = self.near.open(None).await?;
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let sending = tokio::task::spawn_blocking(move || {
            let (read, options) = (
                io::Cursor::new(stream),
                SendOptions { compression: Compression::Off, ..SendOptions::default() },
            );
            let sent = send_stream(read, |_| Ok(()), sink, options, &Progress::default());
            ended.store(true, Ordering::SeqCst);
            sent
        });
        while !over.load(Ordering::SeqCst) {
            let took = us(self.message().await?);
            if !over.load(Ordering::SeqCst) {
                samples.push(took);
            }
        }
        sending.await??;
        Ok(())
    }
}

fn take(mut receiver: BulkReceiver) {
    // When it fails, the sender says so.
    let _ = std::thread::Builder::new().name("receive".into()).spawn(move || {
        if receive_stream(&mut receiver, &mut io::sink(), &Progress::default()).is_ok() {
            let _ = receiver.finish(Ok(()));
        }
    });
}

/// The least that QUIC costs: one stream, and what is sent comes back.
struct Echo {
    streams: (quinn::SendStream, quinn::RecvStream),
    _near: quinn::Endpoint,
    _connection: quinn::Connection,
}

impl Echo {
    async fn start(far: tokio::runtime::Handle) -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["echo".to_owned()])?;
        let certificate = made.cert.der().clone();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = quinn::ServerConfig::with_single_cert(vec![certificate.clone()], key.into())?;
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let there = far.spawn(async move { quinn::Endpoint::server(config, any) }).await??;
        let address = there.local_addr()?;
        far.spawn(async move {
            let connection = there.accept().await?.await.ok()?;
            let (mut send, mut recv) = connection.accept_bi().await.ok()?;
            let mut message = [0; SMALL];
            while recv.read_exact(&mut message).await.is_ok() {
                send.write_all(&message).await.ok()?;
            }
            Some(())
        });
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate)?;
        let mut near = quinn::Endpoint::client(any)?;
        near.set_default_client_config(quinn::ClientConfig::with_root_certificates(Arc::new(
            roots,
        ))?);
        let connection = near.connect(address, "echo")?.await?;
        let streams = connection.open_bi().await?;
        Ok(Self { streams, _near: near, _connection: connection })
    }

    async fn once(&mut self) -> anyhow::Result<Instant> {
        let (send, recv) = &mut self.streams;
        let (started, mut message) = (Instant::now(), [7; SMALL]);
        send.write_all(&message).await?;
        recv.read_exact(&mut message).await?;
        Ok(started)
    }
}
