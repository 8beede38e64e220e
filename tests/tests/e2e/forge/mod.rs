//! What a host on the wire can make of a reply that it saw.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use tracker_lab::Service;
use tracker_lab::daemon::SOON;
use tracker_lab::packets::{self, ETHERNET, IPV4, ProbeHeader};

/// Where the probe header begins in an IPv4 echo.
const PROBE_HEADER_AT: usize = ETHERNET + IPV4 + 8;
/// The next genuine reply that the firewall hands to the hub, as a host on the wire sees it.
pub fn capture(service: &Service) -> Result<Vec<u8>> {
    service.firewall.enter(|| {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol)) };
        ensure!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the kernel just returned this descriptor, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let deadline = Instant::now() + SOON;
        let mut buffer = [0; 2048];
        while Instant::now() < deadline {
            // SAFETY: the buffer is as long as it says.
            let len = unsafe {
                libc::recv(
                    socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            let frame = &buffer[..usize::try_from(len).unwrap_or(0)];
            if let Some(seen) = packets::read_marked(frame)
                && seen.destination == service.hub_address
                && matches!(seen.carrier, packets::Carrier::Icmp { kind, .. } if kind == packets::echo_reply(seen.destination))
                // As it leaves for the hub, not as it comes from the host.
                && frame[6..12] == mac(service)?
            {
                return Ok(frame.to_vec());
            }
        }
        bail!("no reply was seen")
    })
}

/// The MAC address of the firewall's end of the cable, inside its namespace.
fn mac(service: &Service) -> Result<[u8; 6]> {
    let text = service.firewall.run("ip -br link show eth0")?;
    let text = text.split_whitespace().nth(2).context("a MAC address")?;
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16)?;
    }
    Ok(mac)
}

/// A reply that says something else of itself, with a right checksum.
fn with_probe_header(reply: &[u8], change: impl FnOnce(&mut ProbeHeader)) -> Vec<u8> {
    let mut probe_header = ProbeHeader::read(&reply[PROBE_HEADER_AT..]).expect("a probe header");
    change(&mut probe_header);
    let mut frame = reply.to_vec();
    let payload = probe_header.payload(packets::PROBE_HEADER);
    frame[PROBE_HEADER_AT..PROBE_HEADER_AT + packets::PROBE_HEADER].copy_from_slice(&payload);
    let icmp = &mut frame[ETHERNET + IPV4..];
    icmp[2..4].fill(0);
    let sum: u32 = icmp
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    icmp[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    frame
}

/// Everything that a host on the wire can make of a reply that it saw.
pub fn forgeries(reply: &[u8]) -> BTreeMap<&'static str, Vec<u8>> {
    let genuine = ProbeHeader::read(&reply[PROBE_HEADER_AT..]).expect("a probe header");
    // As a daemon would make it that has another key, for the same tracker and its next probes.
    let token = |number| {
        let key = [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321];
        tracker_ebpf::wire::token::token(key, genuine.tracker, 1, number, genuine.sent_mono_ns)
    };
    BTreeMap::from([
        ("replayed", reply.to_vec()),
        (
            "another token",
            with_probe_header(reply, |probe_header| probe_header.token ^= 1 << 17),
        ),
        (
            "the next sequence number",
            with_probe_header(reply, |probe_header| probe_header.sequence += 1),
        ),
        (
            "a sequence number to come",
            with_probe_header(reply, |probe_header| probe_header.sequence += 100),
        ),
        (
            "a later time",
            with_probe_header(reply, |probe_header| {
                probe_header.sent_mono_ns += 1_000_000_000
            }),
        ),
        (
            "of another key",
            with_probe_header(reply, |probe_header| {
                probe_header.sequence += 50;
                probe_header.token = token(probe_header.number());
            }),
        ),
        (
            "of another instance",
            with_probe_header(reply, |probe_header| {
                probe_header.tag ^= 1;
                probe_header.token = token(probe_header.number());
            }),
        ),
        (
            "of no tracker",
            with_probe_header(reply, |probe_header| probe_header.tracker = 1_000_000),
        ),
        (
            "a wrong checksum",
            packets::with(reply.to_vec(), |frame| {
                frame[ETHERNET + IPV4 + 2] ^= 1;
            }),
        ),
    ])
}
