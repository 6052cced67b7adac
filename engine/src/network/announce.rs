//! Announcements: the packets that tell neighbours where an address is now.
//!
//! Owns: gratuitous ARP (RFC 5227, in both forms, since some hosts heed only one of them) and
//! unsolicited neighbour advertisements (RFC 4861, 7.2.6), and the raw socket they leave by. Leaves
//! to others: when (`addresses`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

/// How many times each packet is sent at once: one may be lost.
const TIMES: usize = 3;

/// The hardware type of Ethernet (`ARPHRD_ETHER`), also what bridges, veth and bonds have.
const ETHERNET: u16 = 1;

/// An interface: by its link address, which names it to the kernel, packets leave.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) hardware: LinkAddr,
}

impl Link {
    /// Its hardware address, if it is a kind that has one.
    pub(super) fn ethernet(&self) -> Option<[u8; 6]> {
        let ethernet = self.hardware.hatype() == ETHERNET && self.hardware.halen() == 6;
        self.hardware.addr().filter(|_| ethernet)
    }
}

/// Tells all neighbours on the link that the address is here.
pub(super) fn tell(link: &Link, address: IpAddr) -> nix::Result<()> {
    let Some(own) = link.ethernet() else { return Ok(()) };
    let frames = match address {
        IpAddr::V4(ip) => vec![arp(own, ip, ArpForm::Request), arp(own, ip, ArpForm::Reply)],
        IpAddr::V6(ip) => vec![advertisement(own, ip, is_router(&link.name))],
    };
    // Protocol 0: it only sends, and the kernel queues nothing that comes in.
    let kind = (AddressFamily::Packet, SockType::Raw);
    let out = socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, None)?;
    for _ in 0..TIMES {
        for frame in &frames {
            sendto(out.as_raw_fd(), frame, &link.hardware, MsgFlags::empty())?;
        }
    }
    Ok(())
}

/// Neighbours drop their routes through whoever says that it is no router.
fn is_router(device: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{device}/forwarding");
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
}

#[derive(Clone, Copy)]
enum ArpForm {
    Request,
    Reply,
}

fn arp(own: [u8; 6], ip: Ipv4Addr, form: ArpForm) -> Vec<u8> {
    // Linux takes a reply for gratuitous only if its target's hardware address is the sender's.
    let (operation, target) = match form {
        ArpForm::Request => (1u16, [0; 6]),
        ArpForm::Reply => (2, own),
    };
    let mut frame = ethernet([0xff; 6], own, 0x0806);
    frame.extend(1u16.to_be_bytes());
    frame.extend(0x0800u16.to_be_bytes());
    frame.extend([6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(own);
    frame.extend(ip.octets());
    frame.extend(target);
    frame.extend(ip.octets());
    frame
}

fn advertisement(own: [u8; 6], ip: Ipv6Addr, router: bool) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ICMPV6: u8 = 58;
    /// What an entry says so far is replaced.
    const OVERRIDE: u8 = 0x20;
    const ROUTER: u8 = 0x80;
    let flags = OVERRIDE | if router { ROUTER } else { 0 };
    let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
    message.extend(ip.octets());
    // Target link-layer address, one unit of 8 bytes.
    message.extend([2, 1]);
    message.extend(own);
    let length = message.len() as u16;
    let mut summed: Vec<u8> = Vec::new();
    summed.extend(ip.octets());
    summed.extend(ALL_NODES.octets());
    summed.extend(u32::from(length).to_be_bytes());
    summed.extend([0, 0, 0, ICMPV6]);
    summed.extend(&message);
    message[2..4].copy_from_slice(&checksum(&summed).to_be_bytes());
    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], own, 0x86dd);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    // The hop limit proves to its readers that it comes from their own link.
    frame.extend([ICMPV6, 255]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(86);
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn a_gratuitous_arp_names_the_address_as_sender_and_as_target() {
        let ip = Ipv4Addr::new(10, 0, 0, 5);
        let request = arp(OWN, ip, ArpForm::Request);
        assert_eq!(request.len(), 42);
        assert_eq!(&request[..14], &[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 7, 8, 6]);
        assert_eq!(&request[14..22], &[0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(request[28..32], ip.octets());
        assert_eq!(request[38..42], ip.octets());
        let reply = arp(OWN, ip, ArpForm::Reply);
        assert_eq!(reply[20..22], [0, 2]);
        assert_eq!(reply[32..38], OWN);
    }

    #[test]
    fn an_advertisement_overrides_and_its_checksum_holds() {
        let frame = advertisement(OWN, "fd00::5".parse().unwrap(), false);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(frame[14 + 7], 255);
        assert_eq!(frame[14 + 40], 136);
        assert_eq!(frame[14 + 40 + 4], 0x20);
        // Over what was sent with its checksum in place the sum is all ones.
        let mut summed = frame[22..54].to_vec();
        summed.extend([0, 0, 0, 32, 0, 0, 0, 58]);
        summed.extend(&frame[54..]);
        assert_eq!(checksum(&summed), 0);
    }
}
