//! Asks a neighbour for its MAC address, whatever the kernel knows: an ARP request (RFC 826) or a neighbour solicitation
//! (RFC 4861 section 4.3) to all. The kernel takes the answer itself, by its own rules.
//!
//! No request of netlink does that: with NTF_EXT_MANAGED or NTF_USE the kernel asks only if the entry is stale, NUD_PROBE asks the
//! old MAC address alone and would take permanent entries along.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use tracker_ebpf::wire::checksum::Sum;

use crate::plan::observed::Link;

const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// A packet socket that only sends.
pub struct Solicitor {
    socket: OwnedFd,
}

impl Solicitor {
    /// Opens it in the calling thread's network namespace.
    ///
    /// # Errors
    /// As the kernel answers: EPERM without CAP_NET_RAW.
    pub fn new() -> io::Result<Self> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers. Protocol 0 receives nothing (packet(7)).
        let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was opened just now and that has no other owner.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        Ok(Self { socket })
    }

    /// Asks everybody on an interface for the MAC address of `target`.
    ///
    /// # Errors
    /// As the kernel answers: ENETDOWN, ENOBUFS.
    pub fn solicit(&self, link: &Link, target: IpAddr) -> io::Result<()> {
        match target {
            IpAddr::V4(target) => {
                let request = arp_request(link.mac, arp_sender(link, target), target);
                self.send(link.index, ARP, [0xff; 6], &request)
            }
            IpAddr::V6(target) => {
                let Some(source) = link_local(link) else {
                    // The kernel would not ask either (`ndisc_send_ns`).
                    return Ok(());
                };
                let [.., a, b, c, d] = solicited_node(target).octets();
                let solicitation = solicitation(link.mac, source, target);
                self.send(link.index, IPV6, [0x33, 0x33, a, b, c, d], &solicitation)
            }
        }
    }

    fn send(&self, ifindex: u32, protocol: u16, to: [u8; 6], packet: &[u8]) -> io::Result<()> {
        // SAFETY: plain numbers and bytes, and zero is a value of each.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = ifindex.try_into().unwrap_or_default();
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&to);
        // SAFETY: both pointers are to memory of the lengths that are given, borrowed for the call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        match sent {
            ..0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// The sender of an ARP request: an address of the interface, first one whose prefix has the target; none makes it a probe
/// (RFC 5227 section 1.1), which is answered too.
fn arp_sender(link: &Link, target: Ipv4Addr) -> Ipv4Addr {
    let usable = link
        .addresses
        .iter()
        .filter(|address| address.is_usable && address.ip.is_ipv4());
    let shares_prefix = |ip: IpAddr, prefix| {
        ipnet::IpNet::new(ip, prefix).is_ok_and(|network| network.contains(&IpAddr::V4(target)))
    };
    let best = usable
        .clone()
        .find(|address| shares_prefix(address.ip, address.prefix))
        .or_else(|| usable.clone().next());
    match best.map(|address| address.ip) {
        Some(IpAddr::V4(ip)) => ip,
        _ => Ipv4Addr::UNSPECIFIED,
    }
}

fn link_local(link: &Link) -> Option<Ipv6Addr> {
    link.addresses.iter().find_map(|address| match address.ip {
        IpAddr::V6(ip) if ip.is_unicast_link_local() && address.is_usable => Some(ip),
        _ => None,
    })
}

fn arp_request(mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    // Ethernet and IPv4, lengths of their addresses, request.
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    packet[8..14].copy_from_slice(&mac);
    packet[14..18].copy_from_slice(&sender.octets());
    packet[24..].copy_from_slice(&target.octets());
    packet
}

/// ff02::1:ff00:0/104 and the address's last 24 bits (RFC 4291 section 2.7.1).
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    let low = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low)
}

/// A neighbour solicitation with its IPv6 header.
fn solicitation(mac: [u8; 6], source: Ipv6Addr, target: Ipv6Addr) -> [u8; 72] {
    const PAYLOAD: u16 = 32;
    const ICMPV6: u8 = 58;
    let mut packet = [0; 72];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&PAYLOAD.to_be_bytes());
    packet[6] = ICMPV6;
    // What has another hop limit is not from this link (RFC 4861 section 7.1.1).
    packet[7] = 255;
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&solicited_node(target).octets());
    packet[40] = 135;
    packet[48..64].copy_from_slice(&target.octets());
    // Option: source link-layer address, of eight bytes.
    packet[64..66].copy_from_slice(&[1, 1]);
    packet[66..].copy_from_slice(&mac);
    let words = packet[8..].chunks_exact(2);
    let sum = words.fold(Sum::new(), |sum, word| {
        sum.u16(u16::from_be_bytes([word[0], word[1]]))
    });
    let checksum = sum.u16(PAYLOAD).u16(u16::from(ICMPV6)).checksum();
    packet[42..44].copy_from_slice(&checksum.to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arp_request_asks_for_the_target() {
        let packet = arp_request(
            [2, 0, 0, 0, 0, 1],
            [10, 9, 0, 1].into(),
            [10, 9, 0, 2].into(),
        );
        assert_eq!(packet[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(packet[8..18], [2, 0, 0, 0, 0, 1, 10, 9, 0, 1]);
        assert_eq!(packet[18..], [0, 0, 0, 0, 0, 0, 10, 9, 0, 2]);
    }

    /// The checksum was computed by hand from RFC 4443 section 2.3: the whole sums up to ones.
    #[test]
    fn a_solicitation_is_whole() {
        let packet = solicitation(
            [2, 0, 0, 0, 0, 1],
            "fe80::1".parse().unwrap(),
            "2001:db8:9::2:3456".parse().unwrap(),
        );
        let to: [u8; 16] = packet[24..40].try_into().unwrap();
        assert_eq!(Ipv6Addr::from(to).to_string(), "ff02::1:ff02:3456");
        assert_eq!((packet[7], packet[40]), (255, 135));
        let mut sum: u32 = packet[8..]
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
            .sum();
        sum += 32 + 58;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff);
    }
}
