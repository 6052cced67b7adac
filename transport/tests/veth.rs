//! Two nodes in network namespaces of their own, with a wire between them whose MTU changes. Needs root.
#![allow(missing_docs)]

mod common;

use std::io;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{Node, Synthetic};
use flocker_transport::{
    Compression, Identity, LaneKind, LaneMode, LocalNode, Progress, SendOptions, receive_stream,
    send_stream,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::task::spawn_blocking;

/// Two namespaces and a wire; taken away when dropped.
struct Wire {
    names: [String; 2],
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output().map_err(|e| format!("ip: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

impl Wire {
    fn lay(label: &str, mtu: &str) -> Result<Self, String> {
        let names = ["a", "b"].map(|end| format!("ft{}{label}{end}", std::process::id()));
        let wire = Self { names };
        let [a, b] = &wire.names;
        ip(&["netns", "add", a])?;
        ip(&["netns", "add", b])?;
        let peer = ["peer", "name", "eth0", "netns", b];
        let link = ["-n", a, "link", "add", "name", "eth0", "type", "veth"];
        ip(&[&link[..], &peer[..]].concat())?;
        for (name, address) in wire.names.iter().zip(["10.214.0.1/24", "10.214.0.2/24"]) {
            ip(&["-n", name, "addr", "add", address, "dev", "eth0"])?;
            ip(&["-n", name, "link", "set", "eth0", "up", "mtu", mtu])?;
        }
        Ok(wire)
    }

    fn set_mtu(&self, mtu: &str) {
        for name in &self.names {
            ip(&["-n", name, "link", "set", "eth0", "mtu", mtu]).unwrap();
        }
    }

    /// A node whose socket is in a namespace.
    fn node(&self, end: usize) -> Node {
        let path = format!("/run/netns/{}", self.names[end]);
        let listen = format!("10.214.0.{}:0", end + 1);
        let runtime = tokio::runtime::Handle::current();
        // A socket stays in the namespace of the thread that made it; this thread is thrown away.
        let made = std::thread::spawn(move || {
            let file = std::fs::File::open(path).unwrap();
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let _within = runtime.enter();
            let local = LocalNode::new("node").with_lane(LaneMode::Quic);
            Node::local(local, Arc::new(Identity::ephemeral().unwrap()), &listen)
        });
        made.join().unwrap()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// Sends 192 MiB over a wire of this MTU, which changes to another in the middle.
async fn transfer(label: &str, before: &str, after: &str) {
    const BLOCK: usize = 128 << 10;
    const BLOCKS: u64 = 1536;
    let wire = match Wire::lay(label, before) {
        Ok(wire) => wire,
        Err(why) => {
            println!("skipped: no network namespaces here: {why}");
            return;
        }
    };
    let (mut a, mut b) = (wire.node(0), wire.node(1));
    b.trust.insert(a.key());
    a.knows(&b);
    a.up().await;
    b.up().await;
    let sender = a.manager.open_bulk(&b.key(), b"", Some(1 << 30)).await.unwrap();
    assert_eq!(sender.kind(), LaneKind::Quic);
    let progress = Arc::new(Progress::default());
    let told = progress.clone();
    let sending = spawn_blocking(move || {
        let options = SendOptions { compression: Compression::Off, ..SendOptions::default() };
        send_stream(Synthetic::new(BLOCKS, BLOCK, true), |_| Ok(()), sender, options, &told)
    });
    let (_, mut receiver) = b.bulk().await;
    let receiving = spawn_blocking(move || {
        let report = receive_stream(&mut receiver, &mut io::sink(), &Progress::default())?;
        receiver.finish(Ok(())).expect("it is heard");
        Ok::<_, flocker_transport::ReceiveError>(report.raw_bytes)
    });
    while progress.raw_bytes() < 64 << 20 {
        assert!(!sending.is_finished(), "it ended early");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    wire.set_mtu(after);
    let both = async { (sending.await.unwrap(), receiving.await.unwrap()) };
    let (sent, received) = tokio::time::timeout(common::PATIENCE * 2, both).await.unwrap();
    // Every batch's hash was compared, and the stream's at its end.
    assert_eq!(received.unwrap(), Synthetic::len(BLOCKS, BLOCK));
    assert_eq!(sent.unwrap().raw_bytes, Synthetic::len(BLOCKS, BLOCK));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_when_the_mtu_of_a_real_wire_drops_in_the_middle() {
    transfer("d", "9000", "1500").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_when_the_mtu_of_a_real_wire_grows_in_the_middle() {
    transfer("g", "1500", "9000").await;
}
