//! Interfaces' own counters, read by the sending thread.

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Reads interfaces' own counters over a blocking netlink socket: a few microseconds a question.
pub struct LinkCounters {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl LinkCounters {
    /// A socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn new() -> std::io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(16_384),
        })
    }

    /// Frames the interface says it has transmitted; `None` where it is gone.
    pub fn transmitted(&mut self, ifindex: u32) -> Option<u64> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(message));
        self.sequence = self.sequence.wrapping_add(1);
        request.header.flags = NLM_F_REQUEST;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).ok()?;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0).ok()?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.buffer).ok()?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = answer.payload
            else {
                return None;
            };
            return link
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::Stats64(stats) => Some(stats.tx_packets),
                    _ => None,
                });
        }
    }
}
