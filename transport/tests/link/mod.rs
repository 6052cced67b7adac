//! A narrow link on this machine: UDP at a rate, with a queue before it, as at a router. TCP does not pass:
//! ended and begun anew here, it would not queue as it does in the kernel.
#![allow(dead_code, missing_docs, reason = "each test binary uses a part of it")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;

/// What a link carries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) bytes_per_second: f64,
    /// What waits before more is dropped.
    pub(crate) queue_bytes: f64,
    /// Longest UDP payload that passes.
    pub(crate) mtu: usize,
}

/// The queue: when what comes now will have left.
struct Queue {
    rate: Rate,
    free_at: Mutex<Instant>,
    dropped: AtomicU64,
}

impl Queue {
    /// When these bytes are through; `None` when there is no room for them.
    fn enter(&self, bytes: usize) -> Option<Instant> {
        let mut free_at = self.free_at.lock().unwrap();
        let now = Instant::now();
        let from = (*free_at).max(now);
        let waiting = (from - now).as_secs_f64() * self.rate.bytes_per_second;
        if waiting + bytes as f64 > self.rate.queue_bytes {
            return None;
        }
        let took = bytes as f64 / self.rate.bytes_per_second;
        *free_at = from + Duration::from_secs_f64(took);
        Some(*free_at)
    }
}

/// A link to a node. What goes there is slow, what comes back is not.
pub(crate) struct Link {
    pub(crate) address: String,
    queue: Arc<Queue>,
}

impl Link {
    pub(crate) async fn to(target: &str, rate: Rate) -> Self {
        let (free_at, dropped) = (Mutex::new(Instant::now()), AtomicU64::new(0));
        let queue = Arc::new(Queue { rate, free_at, dropped });
        let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = near.local_addr().unwrap().to_string();
        udp(near, target, queue.clone()).await;
        Self { address, queue }
    }

    /// Datagrams dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.queue.dropped.load(Ordering::SeqCst)
    }
}

async fn udp(near: UdpSocket, target: &str, queue: Arc<Queue>) {
    let (near, far) = (Arc::new(near), Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap()));
    far.connect(target).await.unwrap();
    let caller = Arc::new(Mutex::new(None));
    let (through, mut leaving) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let (onward, back, who) = (far.clone(), near.clone(), caller.clone());
    tokio::spawn(async move {
        let mut buf = vec![0; 65536];
        while let Ok((len, from)) = near.recv_from(&mut buf).await {
            *who.lock().unwrap() = Some(from);
            let fits = len <= queue.rate.mtu;
            match queue.enter(len).filter(|_| fits) {
                Some(at) => drop(through.send((at, buf[..len].to_vec()))),
                None => drop(queue.dropped.fetch_add(1, Ordering::SeqCst)),
            }
        }
    });
    tokio::spawn(async move {
        while let Some((at, datagram)) = leaving.recv().await {
            tokio::time::sleep_until(at.into()).await;
            let _ = onward.send(&datagram).await;
        }
    });
    tokio::spawn(async move {
        let mut buf = vec![0; 65536];
        loop {
            // An error is the other end's closed port, told late.
            let Ok(len) = far.recv(&mut buf).await else { continue };
            let to = *caller.lock().unwrap();
            if let Some(to) = to {
                let _ = back.send_to(&buf[..len], to).await;
            }
        }
    });
}
