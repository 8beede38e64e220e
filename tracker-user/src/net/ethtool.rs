//! What `ethtool -k` shows: which offloads of an interface are switched on.

use std::{
    ffi::c_int,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use crate::plan::mode::Offloads;

/// Commands of `SIOCETHTOOL` (linux/ethtool.h).
const GET_STRINGS: u32 = 0x1b;
const GET_SET_SIZES: u32 = 0x37;
const GET_FEATURES: u32 = 0x3a;
const GET_CHANNELS: u32 = 0x3c;
/// The set of the features' names (`ETH_SS_FEATURES`).
const FEATURE_NAMES: u32 = 4;
/// Bytes of each name (`ETH_GSTRING_LEN`).
const NAME_LEN: usize = 32;
/// 32-bit words of `struct ethtool_get_features_block`: available, requested, active, never changed.
const BLOCK_WORDS: usize = 4;
const AVAILABLE: usize = 0;
const REQUESTED: usize = 1;
const ACTIVE: usize = 2;
/// More features than any kernel has.
const FEATURES_MAX: u32 = 1024;

/// Names of the offloads by which hardware hands over several received packets as one. Drivers switch these off while they run
/// an XDP program, or refuse the program.
const MERGING: [&str; 2] = ["rx-lro", "rx-gro-hw"];

/// The device takes VLAN tags out of received frames.
const STRIPPING: &str = "rx-vlan-hw-parse";

/// Segmentation of TCP by the device.
const TSO: &str = "tx-tcp-segmentation";

/// Offloads of an interface of the calling thread's network namespace; none if the kernel does not tell.
pub fn offloads(interface: &str) -> Offloads {
    let Ok(features) = features(interface) else {
        return Offloads::default();
    };
    let feature = |name: &str| features.iter().find(|feature| feature.name == name);
    let is_on = |name: &&str| feature(name).is_some_and(|feature| feature.is_active);
    Offloads {
        merging: MERGING.into_iter().find(is_on),
        is_tso_held_off: feature(TSO).is_some_and(Feature::is_held_off),
        strips_tags: is_on(&STRIPPING),
    }
}

/// An offload or another feature of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Feature {
    name: String,
    /// It can be switched.
    is_available: bool,
    /// It is wanted on.
    is_requested: bool,
    /// It is on.
    is_active: bool,
}

impl Feature {
    const fn is_held_off(&self) -> bool {
        !self.is_active && (!self.is_available || self.is_requested)
    }
}

/// How many combined queues a NIC has now, and can have; `None` if the device has none of that kind.
pub fn queues(interface: &str) -> Option<(u32, u32)> {
    // struct ethtool_channels: command; most of rx, tx, other, combined; now of rx, tx, other, combined.
    let mut channels = [GET_CHANNELS, 0, 0, 0, 0, 0, 0, 0, 0];
    ask(&socket().ok()?, interface, &mut channels).ok()?;
    let [.., most, _, _, _, now] = channels;
    (now > 0).then_some((now, most))
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: `socket` takes no pointers; the descriptor that it returns has no other owner.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(socket))
    }
}

/// The features of an interface.
fn features(interface: &str) -> io::Result<Vec<Feature>> {
    let socket = socket()?;
    // struct ethtool_sset_info: command, reserved, 64 bits of sets, one count for each set that there is.
    let mut sizes = [GET_SET_SIZES, 0, 1 << FEATURE_NAMES, 0, 0];
    ask(&socket, interface, &mut sizes)?;
    let count = sizes[4].min(FEATURES_MAX);
    if sizes[2] == 0 || count == 0 {
        return Ok(Vec::new());
    }
    // struct ethtool_gstrings: command, set, count, names.
    let mut names = vec![0u32; 3 + count as usize * NAME_LEN / 4];
    names[..3].copy_from_slice(&[GET_STRINGS, FEATURE_NAMES, count]);
    ask(&socket, interface, &mut names)?;
    // struct ethtool_gfeatures: command, count of blocks, blocks.
    let blocks = count.div_ceil(32);
    let mut features = vec![0u32; 2 + blocks as usize * BLOCK_WORDS];
    features[..2].copy_from_slice(&[GET_FEATURES, blocks]);
    ask(&socket, interface, &mut features)?;
    Ok(read(&names[3..], &features[2..]))
}

/// Features by their names, and by their bits in blocks of 32.
fn read(names: &[u32], blocks: &[u32]) -> Vec<Feature> {
    let names: Vec<u8> = names.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let has = |at: usize, word: usize| {
        let block = blocks.get(at / 32 * BLOCK_WORDS + word);
        block.is_some_and(|bits| bits >> (at % 32) & 1 != 0)
    };
    let named = names.chunks_exact(NAME_LEN).enumerate();
    named
        .map(|(at, name)| {
            let len = name.iter().position(|byte| *byte == 0);
            Feature {
                name: String::from_utf8_lossy(&name[..len.unwrap_or(NAME_LEN)]).into_owned(),
                is_available: has(at, AVAILABLE),
                is_requested: has(at, REQUESTED),
                is_active: has(at, ACTIVE),
            }
        })
        .collect()
}

/// Has the kernel answer a request in place.
fn ask(socket: &OwnedFd, interface: &str, request: &mut [u32]) -> io::Result<()> {
    // SAFETY: a struct of plain bytes and pointers; zeros are valid values of these.
    let mut argument: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= argument.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in argument.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    argument.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    // SAFETY: `request` begins with its command and has room for all that the kernel writes for it: the callers size it by
    // the count that it names.
    let answer: c_int = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCETHTOOL as _,
            &raw mut argument,
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_by_their_place() {
        let mut names = vec![0u8; 40 * NAME_LEN];
        for (at, name) in [(0, "rx-lro"), (1, "rx-gro-hw"), (33, "tx-tcp-segmentation")] {
            names[at * NAME_LEN..][..name.len()].copy_from_slice(name.as_bytes());
        }
        let names: Vec<u32> = names
            .chunks_exact(4)
            .map(|four| u32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
            .collect();
        // Of each block: available, requested, active, never changed.
        let blocks = [0b1, u32::MAX, 0b10, u32::MAX, 0b10, 0, 0b10, 0];
        let found = read(&names, &blocks);
        let of = |name: &str| {
            let feature = found.iter().find(|feature| feature.name == name);
            let feature = feature.expect("a feature");
            (
                feature.is_available,
                feature.is_requested,
                feature.is_active,
                feature.is_held_off(),
            )
        };
        assert_eq!(of("rx-lro"), (true, true, false, true));
        assert_eq!(of("rx-gro-hw"), (false, true, true, false));
        assert_eq!(of(TSO), (true, false, true, false));
        // The operator's own choice.
        let mut feature = found[33].clone();
        feature.is_active = false;
        assert!(!feature.is_held_off());
        feature.is_available = false;
        assert!(feature.is_held_off());
    }

    /// The loopback interface of any network namespace always has the feature `loopback`.
    #[test]
    fn the_kernel_answers() {
        let found = features("lo").expect("features");
        let is_active = |name: &str| {
            let mut active = found.iter().filter(|feature| feature.is_active);
            active.any(|feature| feature.name == name)
        };
        assert!(is_active("loopback"), "{found:?}");
        assert!(!is_active("rx-vlan-filter"), "{found:?}");
        assert_eq!(offloads("lo"), Offloads::default());
        features("no-such-device").expect_err("no such device");
        features("a-name-that-is-too-long").expect_err("too long a name");
    }
}
