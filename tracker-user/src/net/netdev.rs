//! What devices can do with XDP: the `netdev` generic-netlink family (Linux 6.3).
//!
//! A device takes redirected frames only where its features name NDO_XMIT, and that changes at run
//! time: a veth has it exactly while its *peer* has an XDP program or GRO.

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use genetlink::{GenetlinkHandle, message::RawGenlMessage};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla as _,
    NlasIterator, Parseable as _, ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::{AsyncSocket as _, SocketAddr};

const CMD_DEV_GET: u8 = 1;
const CMD_DEV_DEL_NTF: u8 = 3;
const A_DEV_IFINDEX: u16 = 1;
const A_DEV_XDP_FEATURES: u16 = 3;

/// One message of the family: a device and its features.
#[derive(Clone, Debug, Default)]
struct Netdev {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl GenlFamily for Netdev {
    fn family_name() -> &'static str {
        "netdev"
    }
    fn command(&self) -> u8 {
        self.command
    }
    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Netdev {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }
    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Netdev {
    fn parse_with_param(buffer: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(buffer)
            .map(|attribute| DefaultNla::parse(&attribute?))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            command: header.cmd,
            attributes,
        })
    }
}

impl Netdev {
    /// The device and its features; features are `None` where the device is gone.
    fn device(&self) -> Option<(u32, Option<u64>)> {
        let value = |kind: u16| {
            let attribute = self
                .attributes
                .iter()
                .find(|attribute| attribute.kind() == kind)?;
            let mut bytes = vec![0; attribute.value_len()];
            attribute.emit_value(&mut bytes);
            Some(bytes)
        };
        let ifindex = u32::from_ne_bytes(value(A_DEV_IFINDEX)?.try_into().ok()?);
        if self.command == CMD_DEV_DEL_NTF {
            return Some((ifindex, None));
        }
        let features = value(A_DEV_XDP_FEATURES)
            .and_then(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)));
        Some((ifindex, features))
    }
}

/// A connection to the family.
pub struct XdpFeatures {
    handle: GenetlinkHandle,
    messages: UnboundedReceiver<(NetlinkMessage<RawGenlMessage>, SocketAddr)>,
}

impl XdpFeatures {
    /// Connects and subscribes to changes; `None` on kernels without the family.
    ///
    /// # Errors
    /// Where the kernel has the family and refuses it.
    pub async fn connect() -> Result<Option<Self>> {
        let (mut connection, handle, messages) =
            genetlink::new_connection().context("cannot open a generic netlink socket")?;
        // The group is joined on the connection's own socket, which is out of reach once it runs:
        // the family is looked up over another.
        let (lookup, lookup_handle, _) =
            genetlink::new_connection().context("cannot open a generic netlink socket")?;
        let lookup = tokio::spawn(lookup);
        let family = lookup_handle.resolve_family::<Netdev>().await;
        lookup.abort();
        let Ok(family) = family else {
            return Ok(None);
        };
        if let Some(&group) = family.multicast_groups.get("mgmt") {
            let socket = connection.socket_mut().socket_mut();
            socket
                .bind_auto()
                .and_then(|_| socket.add_membership(group))
                .or_else(|_| {
                    // Already bound: joining alone is enough.
                    socket.add_membership(group)
                })?;
        }
        tokio::spawn(connection);
        Ok(Some(Self { handle, messages }))
    }

    /// One device's features; `None` where it is gone. Devices are asked one by one because the family
    /// answers a dump without NLM_F_MULTI, so that netlink-proto takes the first part for the whole.
    ///
    /// # Errors
    /// As the kernel answers.
    pub async fn of(&mut self, ifindex: u32) -> Result<Option<u64>> {
        let device = DefaultNla::new(A_DEV_IFINDEX, ifindex.to_ne_bytes().to_vec());
        let payload = Netdev {
            command: CMD_DEV_GET,
            attributes: vec![device],
        };
        let mut message = NetlinkMessage::from(GenlMessage::from_payload(payload));
        message.header.flags = NLM_F_REQUEST;
        let answers = self
            .handle
            .request(message)
            .await
            .context("cannot ask for XDP features")?;
        let mut answers = std::pin::pin!(answers);
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::InnerMessage(message) =
                answer.context("cannot read XDP features")?.payload
                && let Some((_, features)) = message.payload.device()
            {
                return Ok(features);
            }
        }
        Ok(None)
    }

    /// The next change: a device and its features, `None` where it is gone. Ends with the connection.
    pub async fn changed(&mut self) -> Option<(u32, Option<u64>)> {
        loop {
            let (message, _) = self.messages.next().await?;
            if let NetlinkPayload::InnerMessage(raw) = message.payload
                && let Ok(netdev) = Netdev::parse_with_param(&raw.payload, raw.header)
                && let Some(device) = netdev.device()
            {
                return Some(device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(command: u8, bytes: &[u8]) -> Option<(u32, Option<u64>)> {
        let header = GenlHeader {
            cmd: command,
            version: 1,
        };
        Netdev::parse_with_param(bytes, header).ok()?.device()
    }

    fn message(ifindex: u32, features: u64) -> Vec<u8> {
        let attributes = [
            DefaultNla::new(A_DEV_IFINDEX, ifindex.to_ne_bytes().to_vec()),
            DefaultNla::new(A_DEV_XDP_FEATURES, features.to_ne_bytes().to_vec()),
        ];
        let mut bytes = vec![0; attributes.as_slice().buffer_len()];
        attributes.as_slice().emit(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn a_device_is_read(ifindex: u32, features: u64) {
            let bytes = message(ifindex, features);
            prop_assert_eq!(read(CMD_DEV_GET, &bytes), Some((ifindex, Some(features))));
            prop_assert_eq!(read(CMD_DEV_DEL_NTF, &bytes), Some((ifindex, None)));
        }

        /// However little of it there is.
        #[test]
        fn whatever_the_kernel_says_is_read_or_left_out(
            command: u8,
            bytes in prop::collection::vec(any::<u8>(), 0..60),
            len in 0usize..24,
            changes in prop::collection::vec((0usize..24, any::<u8>()), 0..4),
        ) {
            let _ = read(command, &bytes);
            let mut message = message(7, 1);
            for (at, byte) in changes {
                message[at % 20] = byte;
            }
            message.truncate(len);
            let _ = read(command, &message);
        }
    }
}
