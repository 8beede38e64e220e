//! What devices can do with XDP: the `netdev` generic-netlink family (Linux 6.3).
//!
//! A device takes redirected frames only if its features name NDO_XMIT, and that changes at run
//! time: a veth has it exactly while its *peer* has an XDP program or GRO.

use netlink_packet_core::NlasIterator;

use super::exchange::{Exchange, Expect, HEADER_LEN, RequestError, Transport};

/// Bytes of `struct genlmsghdr`, which follows `struct nlmsghdr`.
const GENERIC_LEN: usize = 4;

/// The family that knows the others (`GENL_ID_CTRL`).
const CONTROL: u16 = 16;
const CONTROL_GET_FAMILY: u8 = 3;
const A_FAMILY_ID: u16 = 1;
const A_FAMILY_NAME: u16 = 2;
const A_GROUPS: u16 = 7;
const A_GROUP_NAME: u16 = 1;
const A_GROUP_ID: u16 = 2;

const DEV_GET: u8 = 1;
const DEV_DEL_NTF: u8 = 3;
const A_DEV_IFINDEX: u16 = 1;
const A_DEV_XDP_FEATURES: u16 = 3;

/// The numbers under which the kernel has the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Family {
    /// The type of its messages.
    pub(super) id: u16,
    /// The multicast group of device changes.
    pub(super) changes: u32,
}

/// A request of generic netlink with at most one attribute.
fn request(family: u16, command: u8, attribute: Option<(u16, &[u8])>) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes[4..6].copy_from_slice(&family.to_ne_bytes());
    bytes.extend([command, 1, 0, 0]);
    if let Some((kind, value)) = attribute {
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let len = bytes.len() as u32;
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes
}

/// The value of an attribute among others.
fn value(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    let mut found = NlasIterator::new(attributes).filter_map(Result::ok);
    let attribute = found.find(|attribute| attribute.kind() == kind)?;
    Some(attribute.value().to_vec())
}

fn number(bytes: Vec<u8>) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Finds the family; `None` on a kernel without it.
///
/// # Errors
/// If the kernel does not say.
pub(super) fn family(
    exchange: &mut Exchange<impl Transport>,
) -> Result<Option<Family>, RequestError> {
    let name = Some((A_FAMILY_NAME, &b"netdev\0"[..]));
    let mut request = request(CONTROL, CONTROL_GET_FAMILY, name);
    let read = |message: &[u8]| {
        let attributes = message.get(HEADER_LEN + GENERIC_LEN..)?;
        let id = u16::from_ne_bytes(value(attributes, A_FAMILY_ID)?.try_into().ok()?);
        let groups = value(attributes, A_GROUPS).unwrap_or_default();
        let changes = NlasIterator::new(groups.as_slice()).find_map(|group| {
            let group = group.ok()?;
            let is_wanted = value(group.value(), A_GROUP_NAME)? == b"mgmt\0";
            number(value(group.value(), A_GROUP_ID)?).filter(|_| is_wanted)
        });
        Some(Family {
            id,
            changes: changes?,
        })
    };
    match exchange.run(&mut request, Expect::One, read) {
        Ok(found) => Ok(found.items.first().copied()),
        Err(error) if error.is(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The features of one device; `None` if it is gone, or the kernel does not tell.
pub(super) fn features(
    exchange: &mut Exchange<impl Transport>,
    family: Family,
    ifindex: u32,
) -> Option<u64> {
    let device = ifindex.to_ne_bytes();
    let mut request = request(family.id, DEV_GET, Some((A_DEV_IFINDEX, &device)));
    let found = exchange.run(&mut request, Expect::One, device_of).ok()?;
    found.items.first()?.1
}

/// The features of every device.
///
/// # Errors
/// If the kernel does not list them.
pub(super) fn all_features(
    exchange: &mut Exchange<impl Transport>,
    family: Family,
) -> Result<Vec<(u32, Option<u64>)>, RequestError> {
    let mut request = request(family.id, DEV_GET, None);
    let found = exchange.run(&mut request, Expect::List, device_of)?;
    Ok(found.items)
}

/// The device that a message of the family is about, and its features; those are `None` if it is gone.
pub(super) fn device_of(message: &[u8]) -> Option<(u32, Option<u64>)> {
    let command = *message.get(HEADER_LEN)?;
    let attributes = message.get(HEADER_LEN + GENERIC_LEN..)?;
    let ifindex = number(value(attributes, A_DEV_IFINDEX)?)?;
    if command == DEV_DEL_NTF {
        return Some((ifindex, None));
    }
    let features = value(attributes, A_DEV_XDP_FEATURES)
        .and_then(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)));
    Some((ifindex, features))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DefaultNla, Emitable as _};
    use proptest::prelude::*;

    use super::*;

    fn read(command: u8, bytes: &[u8]) -> Option<(u32, Option<u64>)> {
        let header = [&[0; HEADER_LEN][..], &[command, 1, 0, 0]].concat();
        device_of(&[&header, bytes].concat())
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
            prop_assert_eq!(read(DEV_GET, &bytes), Some((ifindex, Some(features))));
            prop_assert_eq!(read(DEV_DEL_NTF, &bytes), Some((ifindex, None)));
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
