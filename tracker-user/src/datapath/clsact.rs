//! Filters of the clsact qdisc, by which programs are attached at TC before TCX (Linux 6.6).
//!
//! clsact filters have no owner: they outlive the process that made them, cannot be pinned, and are removed without
//! notification. So the program is pinned in the filter's place, by which `cleanup` recognises a filter as Tracker's, and the
//! filter is looked for whenever it may have been removed. A qdisc that was made for a filter goes with the last one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{NlOptions, TcAttachOptions, qdisc_add_clsact},
};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{error::DatapathError, links, pins::Pins};
use crate::net::exchange::{
    Answer, Exchange, Expect, HEADER_LEN, RequestError, RequestSocket, request, u16_at,
};

/// `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` (linux/pkt_sched.h).
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// The qdisc's own handle, and its place on the device.
const QDISC: u32 = 0xffff_0000;
const CLSACT: u32 = 0xffff_fff1;
/// What the name of a qdisc's pin begins with.
const QDISC_PIN: &str = "clsact-";
/// A program attached by a filter; dropped, it is detached.
pub struct Filter {
    ifindex: u32,
    parent: u32,
    at: At,
    pins: Pins,
    pin: Option<PathBuf>,
}

/// A filter's place among those of its parent, and the program that it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    /// Priority and protocol, as the kernel packs them.
    info: u32,
    handle: u32,
    /// The program's id, if it is a bpf filter.
    program: Option<u32>,
}

/// Where a filter was attached.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    ifindex: u32,
    parent: u32,
    at: At,
}

impl Place {
    /// Whether the filter is still there; false also if its interface is gone.
    pub fn is_attached(&self) -> bool {
        filters(self.ifindex, self.parent)
            .is_ok_and(|filters| filters.iter().any(|filter| filter.is(&self.at)))
    }
}

impl Filter {
    /// Attaches with that priority, and pins the program at `pin`. Filters of another kind may have the priority
    /// already; then the kernel chooses one.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn attach(
        program: &mut SchedClassifier,
        ifindex: u32,
        interface: &str,
        side: TcAttachType,
        priority: u16,
        pins: &Pins,
        pin: &Path,
    ) -> Result<Self, DatapathError> {
        let parent = match side {
            TcAttachType::Ingress => INGRESS,
            TcAttachType::Egress => EGRESS,
            TcAttachType::Custom(parent) => parent,
        };
        let id = program.info()?.id();
        let qdisc = qdisc_pin(pins, ifindex);
        // It may be there already, which is as good; whatever else went wrong, attaching tells.
        if qdisc_add_clsact(interface).is_ok() {
            // The pin says which instance made it. One that is there is of an interface that is gone.
            let _ = fs::remove_file(&qdisc);
            pin_program(program, &qdisc)?;
        }
        let attached = pin_program(program, pin).and_then(|()| {
            let mut attach = |priority| {
                let options = TcAttachOptions::Netlink(NlOptions {
                    priority,
                    ..NlOptions::default()
                });
                program.attach_with_options(interface, side, options)
            };
            let link = attach(priority).or_else(|_| attach(0))?;
            let link = program.take_link(link)?;
            let at = At {
                info: u32::from(link.priority()?) << 16,
                handle: link.handle()?.into(),
                program: Some(id),
            };
            // It holds nothing but these numbers, and would detach whatever has them.
            std::mem::forget(link);
            Ok(at)
        });
        match attached {
            Ok(at) => Ok(Self {
                ifindex,
                parent,
                at,
                pins: pins.clone(),
                pin: Some(pin.to_owned()),
            }),
            Err(error) => {
                let _ = fs::remove_file(pin);
                remove_unused_qdisc(pins, ifindex);
                Err(error)
            }
        }
    }

    /// Where the filter is.
    pub const fn place(&self) -> Place {
        Place {
            ifindex: self.ifindex,
            parent: self.parent,
            at: self.at,
        }
    }

    /// Leaves the program attached and pinned.
    pub fn keep(&mut self) {
        self.pin = None;
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take() {
            // Not by its numbers alone: what has them now may be another tool's.
            remove(self.ifindex, self.parent, |filter| filter.is(&self.at));
            let _ = fs::remove_file(pin);
            remove_unused_qdisc(&self.pins, self.ifindex);
        }
    }
}

impl At {
    /// Whether it is the filter `other`, whatever the protocol.
    const fn is(&self, other: &Self) -> bool {
        let (Some(mine), Some(theirs)) = (self.program, other.program) else {
            return false;
        };
        self.info >> 16 == other.info >> 16 && self.handle == other.handle && mine == theirs
    }
}

/// Removes the filters that a killed daemon of this instance left, and the qdiscs that it made for them.
pub fn remove_left(pins: &Pins) {
    let links = fs::read_dir(pins.root().join("links"));
    let left: Vec<(u32, u32)> = links
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let ifindex = name.rsplit_once('-')?.1.parse().ok()?;
            Some((ifindex, links::pinned_program(&entry.path())?))
        })
        .collect();
    for &(ifindex, program) in &left {
        for parent in [INGRESS, EGRESS] {
            remove(ifindex, parent, |filter| filter.program == Some(program));
        }
    }
    for (ifindex, _) in left {
        remove_unused_qdisc(pins, ifindex);
    }
    for pin in pins.links() {
        // What is left of a qdisc's is that of one which another tool uses too: still ours to remove.
        if links::pinned_program(&pin).is_some() && !is_qdisc_pin(&pin) {
            let _ = fs::remove_file(pin);
        }
    }
}

/// The pin that says that the qdisc of an interface was made by us.
fn qdisc_pin(pins: &Pins, ifindex: u32) -> PathBuf {
    pins.link(&format!("{QDISC_PIN}{ifindex}"))
}

/// Whether a pin is of that kind.
pub fn is_qdisc_pin(pin: &Path) -> bool {
    let name = pin.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(QDISC_PIN))
}

fn pin_program(program: &mut SchedClassifier, path: &Path) -> Result<(), DatapathError> {
    program.pin(path).map_err(|source| DatapathError::Pin {
        kind: "program",
        path: path.to_owned(),
        source,
    })
}

/// Best effort: an interface that is gone has taken its filters with it.
fn remove(ifindex: u32, parent: u32, wanted: impl Fn(&At) -> bool) {
    for filter in filters(ifindex, parent).unwrap_or_default() {
        if wanted(&filter) {
            let message = RouteNetlinkMessage::DelTrafficFilter(message(ifindex, parent, &filter));
            let _ = run(message, Expect::Done(Some(libc::ENOENT)));
        }
    }
}

/// Removes a qdisc that we made, unless another tool has a filter there.
fn remove_unused_qdisc(pins: &Pins, ifindex: u32) {
    let pin = qdisc_pin(pins, ifindex);
    let is_empty = |parent| filters(ifindex, parent).is_ok_and(|filters| filters.is_empty());
    if pin.exists() && is_empty(INGRESS) && is_empty(EGRESS) {
        let qdisc = At {
            info: 0,
            handle: QDISC,
            program: None,
        };
        let message = RouteNetlinkMessage::DelQueueDiscipline(message(ifindex, CLSACT, &qdisc));
        let _ = run(message, Expect::Done(Some(libc::ENOENT)));
        let _ = fs::remove_file(pin);
    }
}

/// The filters of an interface at ingress or egress; none if there is no clsact qdisc.
///
/// # Errors
/// If the kernel refuses, does not answer in time, or changed the list while it told it.
fn filters(ifindex: u32, parent: u32) -> Result<Vec<At>, RequestError> {
    let any = At {
        info: 0,
        handle: 0,
        program: None,
    };
    let message = RouteNetlinkMessage::GetTrafficFilter(message(ifindex, parent, &any));
    let answer = run(message, Expect::List)?;
    if !answer.is_complete {
        return Err(RequestError::Lost);
    }
    // A priority is announced before its filters, with handle 0.
    let filters = answer.items.into_iter();
    Ok(filters.filter(|filter| filter.handle != 0).collect())
}

/// Reads one RTM_NEWTFILTER. A filter of a kind that cannot be read in full is there all the same, without a program.
fn parse(message: &[u8]) -> Option<At> {
    if u16_at(message, 4)? != libc::RTM_NEWTFILTER {
        return None;
    }
    let header = TcHeader::parse(message.get(HEADER_LEN..)?).ok()?;
    Some(At {
        info: header.info,
        handle: header.handle.into(),
        program: program(message),
    })
}

/// The id of the program that a bpf filter runs.
fn program(message: &[u8]) -> Option<u32> {
    let read = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) = read.payload
    else {
        return None;
    };
    let options = filter
        .attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })?;
    options.into_iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(id),
        _ => None,
    })
}

/// A message about a filter or a qdisc.
fn message(ifindex: u32, parent: u32, at: &At) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message.header.handle = TcHandle::from(at.handle);
    message.header.parent = TcHandle::from(parent);
    message.header.info = at.info;
    message
}

/// Sends one request over a socket of its own and awaits the answers, for a limited time.
fn run(message: RouteNetlinkMessage, expect: Expect) -> Result<Answer<At>, RequestError> {
    let socket = RequestSocket::open(NETLINK_ROUTE).map_err(RequestError::Refused)?;
    Exchange::new(socket).run(&mut request(message, 0), expect, parse)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `TCA_KIND`, `TCA_OPTIONS` (linux/rtnetlink.h), and of a bpf filter's options `TCA_BPF_ID` (linux/pkt_cls.h).
    const TCA_KIND: u16 = 1;
    const TCA_OPTIONS: u16 = 2;
    const TCA_BPF_ID: u16 = 11;
    /// `struct nlmsghdr` and `struct tcmsg`.
    const TC_HEADER: usize = HEADER_LEN + 20;

    /// An attribute as the kernel writes it (RFC 3549 section 2.2): length, kind, value, padding.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = (4 + value.len()) as u16;
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// One of our filters, as the kernel tells of it.
    fn filter(info: u32, handle: u32, program: u32) -> Vec<u8> {
        let mut message = vec![0; TC_HEADER];
        message[4..6].copy_from_slice(&libc::RTM_NEWTFILTER.to_ne_bytes());
        message[HEADER_LEN + 8..HEADER_LEN + 12].copy_from_slice(&handle.to_ne_bytes());
        message[HEADER_LEN + 16..].copy_from_slice(&info.to_ne_bytes());
        message.extend(attribute(TCA_KIND, b"bpf\0"));
        let id = attribute(TCA_BPF_ID, &program.to_ne_bytes());
        message.extend(attribute(TCA_OPTIONS, &id));
        let len = (message.len() as u32).to_ne_bytes();
        message[..4].copy_from_slice(&len);
        message
    }

    proptest! {
        #[test]
        fn a_filter_is_read(info: u32, handle: u32, program: u32) {
            let read = parse(&filter(info, handle, program));
            prop_assert_eq!(read, Some(At { info, handle, program: Some(program) }));
        }

        /// However little of it there is.
        #[test]
        fn whatever_the_kernel_says_is_read_or_left_out(
            bytes in prop::collection::vec(any::<u8>(), 0..120),
            len in 0usize..80,
            changes in prop::collection::vec((0usize..80, any::<u8>()), 0..6),
        ) {
            let _ = parse(&bytes);
            let mut message = filter(1, 2, 3);
            for (at, byte) in changes {
                if let Some(changed) = message.get_mut(at) {
                    *changed = byte;
                }
            }
            message.truncate(len);
            if let Some(read) = parse(&message) {
                prop_assert!(message.len() >= TC_HEADER, "{:?}", read);
            }
        }
    }
}
