//! A link over one TLS connection over TCP.
//!
//! ```text
//!   TlsSending ──pipe──▶ speak ── chunks ──▶ TLS, TCP ── chunks ──▶ hear ──pipe──▶ TlsReceiving
//! ```
//!
//! Owns: [`Chunk`]s around the control stream, signs of life and the round trip time, the last word with its code,
//! and finding out that the other side is gone. Leaves to others: the handshake ([`crate::tcp`]), frames.
//!
//! Two tasks serve a link: `speak` writes, `hear` reads. A pipe holds [`PIPE_BYTES`] each way, and then whoever
//! writes waits; an engine that does not read stops `hear`, and with it the peer. Meanwhile this side goes on
//! giving signs of life, as QUIC does.
//!
//! What ends a link:
//! * `close`: what has not gone yet is dropped, the peer is told the code;
//! * dropping it with both halves: what was written still goes, then the peer is told that it was let go;
//! * the peer's close, the end of TCP, silence for [`IDLE_TIMEOUT`], or what is no chunk.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf,
};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, timeout};
use tokio_rustls::TlsStream;

use super::{Gone, MAX_CLOSE_REASON, Receiving, Sending};
use crate::endpoint::CloseCode;
use crate::frame::cursor::presentable;
use crate::lane::tls::chunk::{CHUNK_HEADER_LEN, Chunk};
use crate::pairing::EXPORTER_LABEL;
use crate::tuning::{IDLE_TIMEOUT, KEEP_ALIVE};

/// Most data in a chunk of a link, in bytes: one TLS record, so that a sign of life never waits for more.
pub(crate) const LINK_CHUNK_BYTES: usize = (16 << 10) - CHUNK_HEADER_LEN;

/// What is between a half and its task, in bytes: several small messages, and few enough not to count.
const PIPE_BYTES: usize = 64 << 10;

/// How long last words may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Answers to the peer's chunks that may wait to be written. A peer that asks faster than it reads gets fewer.
const ANSWERS: usize = 8;

/// Longest payload of a Close: a code, a length, the words.
const MAX_CLOSE: usize = 4 + MAX_CLOSE_REASON;

/// A link over TLS. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct TlsLink(Arc<Handle>);

/// What others hold of a link: with the last of them it is let go.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    /// The control stream, until it is taken.
    stream: Mutex<Option<(DuplexStream, DuplexStream)>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.ask(Closing::LetGo);
    }
}

/// Whether this side wants it closed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Closing {
    No,
    LetGo,
    Asked(CloseCode, String),
}

#[derive(Debug)]
struct Shared {
    remote: SocketAddr,
    exporter: [u8; 32],
    /// Microseconds; 0 before it was measured.
    rtt_us: AtomicU64,
    /// The Ping that is not answered yet.
    asked: Mutex<Option<(u32, Instant)>>,
    closing: watch::Sender<Closing>,
    /// Set before the pipes end, so that whoever finds them ended finds why.
    gone: watch::Sender<Option<Gone>>,
    /// The peer's stream came to its end.
    ended: AtomicBool,
    /// The peer has read our stream to its end.
    taken: watch::Sender<bool>,
}

impl Shared {
    fn ask(&self, closing: Closing) {
        self.closing.send_if_modified(|now| {
            let first = matches!(now, Closing::No | Closing::LetGo) && *now != closing;
            if first {
                *now = closing;
            }
            first
        });
    }

    fn asks(&self, number: u32) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer that is late still counts: then the next one is not timed.
        if asked.is_none() {
            *asked = Some((number, Instant::now()));
        }
    }

    /// The first reason is the one that counts.
    fn lose(&self, why: Gone) {
        self.gone.send_if_modified(|gone| {
            let first = gone.is_none();
            if first {
                *gone = Some(why);
            }
            first
        });
    }

    fn gone(&self) -> Gone {
        self.gone.borrow().clone().unwrap_or(Gone::Here)
    }

    async fn is_gone(&self) -> Gone {
        let mut gone = self.gone.subscribe();
        // The sender is this very thing.
        let _ = gone.wait_for(Option::is_some).await;
        self.gone()
    }
}

impl TlsLink {
    /// A link over a connection whose handshake is done; `alive` is held while it lasts. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// The socket or TLS does not say what is needed.
    pub(crate) fn start(stream: TlsStream<TcpStream>, alive: mpsc::Sender<()>) -> io::Result<Self> {
        let (socket, tls) = stream.get_ref();
        let remote = socket.peer_addr()?;
        let mut exporter = [0; 32];
        let exported = match &stream {
            TlsStream::Client(s) => {
                s.get_ref().1.export_keying_material(&mut exporter, EXPORTER_LABEL, Some(b""))
            }
            TlsStream::Server(s) => {
                s.get_ref().1.export_keying_material(&mut exporter, EXPORTER_LABEL, Some(b""))
            }
        };
        exported.map_err(io::Error::other)?;
        debug_assert!(!tls.is_handshaking());
        let shared = Arc::new(Shared {
            remote,
            exporter,
            rtt_us: AtomicU64::new(0),
            asked: Mutex::default(),
            closing: watch::Sender::new(Closing::No),
            gone: watch::Sender::new(None),
            ended: AtomicBool::new(false),
            taken: watch::Sender::new(false),
        });
        let (send, to_speak) = tokio::io::duplex(PIPE_BYTES);
        let (recv, to_hear) = tokio::io::duplex(PIPE_BYTES);
        let (answers, to_answer) = mpsc::channel(ANSWERS);
        let (read, write) = tokio::io::split(stream);
        let speaker = Speaker { shared: Arc::clone(&shared), tls: write, from: to_speak };
        let hearer = Hearer { shared: Arc::clone(&shared), tls: read, answers };
        tokio::spawn(async move {
            // Both end soon after one does: hearing by what is shut, speaking because it is gone.
            tokio::join!(speaker.run(to_answer), hearer.run(to_hear));
            drop(alive);
        });
        Ok(Self(Arc::new(Handle { shared, stream: Mutex::new(Some((send, recv))) })))
    }

    pub(super) fn close(&self, code: CloseCode, reason: String) {
        let shared = &self.0.shared;
        shared.ask(Closing::Asked(code, reason));
        shared.lose(Gone::Here);
    }

    pub(super) async fn closed(&self) -> Gone {
        self.0.shared.is_gone().await
    }

    pub(super) fn rtt(&self) -> Duration {
        Duration::from_micros(self.0.shared.rtt_us.load(Ordering::Relaxed))
    }

    pub(super) fn remote_address(&self) -> SocketAddr {
        self.0.shared.remote
    }

    pub(super) fn pairing_exporter(&self) -> [u8; 32] {
        self.0.shared.exporter
    }

    /// The one stream there is.
    pub(super) fn stream(&self) -> Result<(Sending, Receiving), Gone> {
        let stream = self.0.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((send, recv)) = stream else {
            return Err(Gone::Broken { reason: "it has one stream, which was taken".into() });
        };
        let (a, b) = (self.clone(), self.clone());
        let send = TlsSending { pipe: Some(send), link: a };
        Ok((Sending::Tls(send), Receiving::Tls(TlsReceiving { pipe: recv, link: b })))
    }
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct TlsSending {
    /// `None`: finished.
    pipe: Option<DuplexStream>,
    link: TlsLink,
}

impl TlsSending {
    pub(super) fn finish(&mut self) -> bool {
        self.pipe.take().is_some()
    }

    pub(super) async fn taken(&mut self) -> bool {
        let shared = &self.link.0.shared;
        let mut taken = shared.taken.subscribe();
        tokio::select! {
            biased;
            was = taken.wait_for(|taken| *taken) => was.is_ok(),
            _ = shared.is_gone() => false,
        }
    }
}

impl AsyncWrite for TlsSending {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { pipe, link } = self.get_mut();
        let Some(pipe) = pipe else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let written = Pin::new(pipe).poll_write(cx, buf);
        written.map_err(|_| io::Error::other(link.0.shared.gone()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().finish();
        Poll::Ready(Ok(()))
    }
}

/// The receiving half.
#[derive(Debug)]
pub(crate) struct TlsReceiving {
    pipe: DuplexStream,
    link: TlsLink,
}

impl AsyncRead for TlsReceiving {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { pipe, link } = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(pipe).poll_read(cx, buf);
        let shared = &link.0.shared;
        let is_end = matches!(read, Poll::Ready(Ok(()))) && buf.filled().len() == before;
        if is_end && buf.remaining() > 0 && !shared.ended.load(Ordering::SeqCst) {
            return Poll::Ready(Err(io::Error::other(shared.gone())));
        }
        read
    }
}

/// Completes when it is so.
async fn until<T>(watched: &mut watch::Receiver<T>, is_so: impl FnMut(&T) -> bool) {
    // Without its sender nothing is waited for any more.
    let _ = watched.wait_for(is_so).await;
}

struct Speaker {
    shared: Arc<Shared>,
    tls: WriteHalf<TlsStream<TcpStream>>,
    from: DuplexStream,
}

impl Speaker {
    async fn run(self, answers: mpsc::Receiver<Chunk>) {
        let shared = Arc::clone(&self.shared);
        let last_words = async {
            shared.is_gone().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        // Dropping it lets its half of the connection go.
        tokio::select! {
            () = self.speak(answers) => {}
            () = last_words => {}
        }
        shared.lose(Gone::Here);
    }

    async fn speak(mut self, mut answers: mpsc::Receiver<Chunk>) {
        let mut closing = self.shared.closing.subscribe();
        let mut let_go = self.shared.closing.subscribe();
        let mut gone = self.shared.gone.subscribe();
        let mut ticks = tokio::time::interval(KEEP_ALIVE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut ended, mut pings) = (false, 0_u32);
        let mut data = vec![0; CHUNK_HEADER_LEN + LINK_CHUNK_BYTES];
        let word = loop {
            let written = tokio::select! {
                biased;
                () = until(&mut closing, |c| matches!(c, Closing::Asked(..))) => {
                    let asked = self.shared.closing.borrow().clone();
                    break match asked {
                        Closing::Asked(code, reason) => Some((code, reason)),
                        Closing::No | Closing::LetGo => None,
                    };
                }
                () = until(&mut gone, Option::is_some) => break None,
                Some(chunk) = answers.recv() => self.put(&chunk.encode()).await,
                _ = ticks.tick() => {
                    pings = pings.wrapping_add(1);
                    self.shared.asks(pings);
                    self.put(&Chunk::Ping(pings).encode()).await
                }
                read = self.from.read(&mut data[CHUNK_HEADER_LEN..]), if !ended => match read {
                    Ok(len) if len > 0 => {
                        let chunk = Chunk::Data(u32::try_from(len).unwrap_or(u32::MAX));
                        data[..CHUNK_HEADER_LEN].copy_from_slice(&chunk.encode());
                        self.put(&data[..CHUNK_HEADER_LEN + len]).await
                    }
                    Ok(_) | Err(_) => {
                        ended = true;
                        self.put(&Chunk::End.encode()).await
                    }
                },
                () = until(&mut let_go, |c| *c == Closing::LetGo), if ended => {
                    break Some((CloseCode::Shutdown, "it was let go".to_owned()));
                }
            };
            if let Err(error) = written {
                return self.shared.lose(Gone::Lost { reason: error.to_string() });
            }
        };
        if let Some((code, reason)) = word {
            // Whom it does not reach any more finds the connection closed.
            let _ = self.put(&close_bytes(code, &reason)).await;
        }
        let _ = self.tls.shutdown().await;
    }

    async fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tls.write_all(bytes).await?;
        self.tls.flush().await
    }
}

fn close_bytes(code: CloseCode, reason: &str) -> Vec<u8> {
    let put = crate::frame::cursor::Put::default().u16(code.code() as u16);
    let payload = put.text(reason, MAX_CLOSE_REASON).done();
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    [&Chunk::Close(len).encode()[..], &payload].concat()
}

fn close_reason(payload: &[u8]) -> Gone {
    // The words are for people, so what is wrong with them is no reason to say less than was understood.
    let (code, words) = payload.split_at(payload.len().min(2));
    let code = code.try_into().ok().map(u16::from_le_bytes);
    let words = String::from_utf8_lossy(words.get(2..).unwrap_or_default());
    let code = code.and_then(|code| CloseCode::from_code(code.into()));
    Gone::Closed { code, reason: presentable(&words, MAX_CLOSE_REASON) }
}

struct Hearer {
    shared: Arc<Shared>,
    tls: ReadHalf<TlsStream<TcpStream>>,
    answers: mpsc::Sender<Chunk>,
}

impl Hearer {
    async fn run(mut self, into: DuplexStream) {
        let mut pipe = Some(into);
        let shared = Arc::clone(&self.shared);
        let why = tokio::select! {
            why = self.hear(&mut pipe) => why,
            // Closed on this side, or nothing can be said any more: then nothing is to be heard either.
            gone = shared.is_gone() => gone,
        };
        self.shared.lose(why);
        drop(pipe);
        if shared.gone() == Gone::Here {
            // A socket that is closed with something unread is reset, and the last words with it.
            let _ =
                timeout(LAST_WORDS, tokio::io::copy(&mut self.tls, &mut tokio::io::sink())).await;
        }
    }

    async fn hear(&mut self, pipe: &mut Option<DuplexStream>) -> Gone {
        let mut data = vec![0; LINK_CHUNK_BYTES];
        loop {
            let mut header = [0; CHUNK_HEADER_LEN];
            if let Err(gone) = self.fill(&mut header).await {
                return gone;
            }
            let ended = self.shared.ended.load(Ordering::SeqCst);
            match Chunk::decode(header) {
                Some(Chunk::Data(len)) if !ended && len as usize <= LINK_CHUNK_BYTES => {
                    let data = &mut data[..len as usize];
                    if let Err(gone) = self.fill(data).await {
                        return gone;
                    }
                    if let Some(open) = pipe
                        && open.write_all(data).await.is_err()
                    {
                        // Nobody reads it any more.
                        *pipe = None;
                    }
                }
                Some(Chunk::End) if !ended => {
                    self.shared.ended.store(true, Ordering::SeqCst);
                    *pipe = None;
                    let _ = self.answers.try_send(Chunk::Taken);
                }
                Some(Chunk::Taken) => drop(self.shared.taken.send_replace(true)),
                Some(Chunk::Ping(number)) => drop(self.answers.try_send(Chunk::Pong(number))),
                Some(Chunk::Pong(number)) => self.answered(number),
                Some(Chunk::Close(len)) if len as usize <= MAX_CLOSE => {
                    let payload = &mut data[..len as usize];
                    return self.fill(payload).await.err().unwrap_or_else(|| close_reason(payload));
                }
                other => {
                    return Gone::Broken {
                        reason: format!("{other:?} is no chunk that may come here"),
                    };
                }
            }
        }
    }

    fn answered(&self, number: u32) {
        let mut asked = self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((asked, at)) = asked.take_if(|(asked, _)| *asked <= number)
            && asked == number
        {
            let us = u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
            self.shared.rtt_us.store(us, Ordering::Relaxed);
        }
    }

    /// Fills `buf`. Who is silent for [`IDLE_TIMEOUT`], or takes as long as that for a chunk's few bytes, is gone.
    async fn fill(&mut self, buf: &mut [u8]) -> Result<(), Gone> {
        let limit = if buf.len() > CHUNK_HEADER_LEN { SLOW_CHUNK } else { IDLE_TIMEOUT };
        match timeout(limit, self.tls.read_exact(buf)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Gone::Lost { reason: ended_words(&error) }),
            Err(_) => Err(Gone::Silent),
        }
    }
}

/// How long the data of one chunk may take: 16 KiB in this time is 550 bytes a second, slower than any line over
/// which a pair could work.
const SLOW_CHUNK: Duration = Duration::from_secs(30);

fn ended_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ended without a last word".into(),
        _ => error.to_string(),
    }
}
