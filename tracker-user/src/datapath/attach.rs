//! Programs on hooks: attached, adopted from an earlier daemon, and detached.

use std::path::{Path, PathBuf};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramId, SchedClassifier, TcAttachType, Xdp,
        links::{FdLink, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
        xdp::{XdpLink, XdpMode},
    },
};

use super::{
    clsact::{self, Filter},
    error::DatapathError,
    links,
    object::program,
    pins::Pins,
};

/// Before the filters of others, whose last word may be the end of the packet's way. The kernel's own choice would be
/// before no other than those that it chose a place for itself (net/sched/cls_api.c, `tcf_auto_prio`).
const CLSACT_FIRST: u16 = 1;
/// For what comes after one of ours.
const CLSACT_SECOND: u16 = 2;
/// Asks the kernel whether a program is still attached.
#[derive(Debug)]
pub enum Check {
    /// By its link, pinned there, on this interface.
    Link(PathBuf, u32),
    /// By its filter.
    Filter(clsact::Place),
}

impl Check {
    /// Whether the program was detached by others. Waits as long as another process holds the kernel's lock of network
    /// configuration: `bpf_xdp_link_fill_link_info` and a list of filters take RTNL (Linux 6.18).
    pub fn is_detached(&self) -> bool {
        match self {
            Self::Link(pin, ifindex) => {
                links::attached_to(pin).is_ok_and(|attached| attached != *ifindex)
            }
            Self::Filter(place) => !place.is_attached(),
        }
    }
}

/// What keeps a program attached; dropping it detaches.
pub(super) enum Attachment {
    Pinned(Option<PinnedLink>),
    /// Before TCX (Linux 6.6).
    Clsact(Filter),
}

impl Attachment {
    /// Leaves a pinned link pinned.
    pub(super) fn keep(&mut self) {
        match self {
            // Dropping the link's descriptor leaves the pin, which holds the link.
            Self::Pinned(pinned) => drop(pinned.take()),
            Self::Clsact(filter) => filter.keep(),
        }
    }

    /// What tells whether the program is still attached to `ifindex`, with its link pinned at `pin`.
    pub(super) fn check(&self, pin: PathBuf, ifindex: u32) -> Check {
        match self {
            Self::Pinned(_) => Check::Link(pin, ifindex),
            Self::Clsact(filter) => Check::Filter(filter.place()),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Self::Pinned(pinned) = self
            && let Some(link) = pinned.take()
        {
            // Unpinning fails only if the pin was removed already; the link goes either way.
            let _ = link.unpin();
        }
    }
}

/// Where among the TC programs of an interface one is attached.
#[derive(Clone, Copy)]
pub(super) struct TcPlace {
    /// Ingress or egress.
    pub(super) side: TcAttachType,
    /// The program after which it comes; else it comes first.
    pub(super) after: Option<u32>,
}

impl TcPlace {
    /// The first of ingress.
    pub(super) const INGRESS: Self = Self {
        side: TcAttachType::Ingress,
        after: None,
    };
    /// The first of egress.
    pub(super) const EGRESS: Self = Self {
        side: TcAttachType::Egress,
        after: None,
    };
}

/// The link that an earlier daemon pinned, if it is still attached to the interface; else the pin makes room: its
/// interface went away, and maybe the index came back.
fn left_link(pin: &Path, ifindex: u32) -> Option<FdLink> {
    if links::attached_to(pin).is_ok_and(|attached| attached == ifindex)
        && let Ok(link) = PinnedLink::from_pin(pin)
    {
        return Some(link.into());
    }
    // It may not exist, which is as good.
    let _ = links::remove(pin);
    None
}

/// Attachments a link by its pin. It is the pin that keeps it: descriptors come and go.
fn hold(pin: &Path) -> Result<Attachment, DatapathError> {
    Ok(Attachment::Pinned(Some(PinnedLink::from_pin(pin)?)))
}

/// Puts an XDP program in the place of an earlier daemon's, without a moment between; else attaches it.
pub(super) fn attach_xdp(
    ebpf: &mut Ebpf,
    name: &str,
    ifindex: u32,
    mode: XdpMode,
    pin: &Path,
) -> Result<Attachment, DatapathError> {
    let program: &mut Xdp = program(ebpf, name)?;
    if let Some(link) = left_link(pin, ifindex) {
        let replaced = program.attach_to_link(XdpLink::try_from(link)?);
        if let Ok(id) = replaced {
            drop(program.take_link(id)?);
            return hold(pin);
        }
        // What can't be replaced makes room.
        let _ = links::remove(pin);
    }
    let id = program.attach_to_if_index(ifindex, mode)?;
    pin_link(program.take_link(id)?.try_into()?, pin)
}

/// Puts a TC program in the place of an earlier daemon's, without a moment between, if it keeps its order; else attaches it
/// at its place among the programs of the interface.
pub(super) fn attach_tc(
    ebpf: &mut Ebpf,
    name: &str,
    ifindex: u32,
    place: TcPlace,
    pins: &Pins,
    pin: &Path,
) -> Result<Attachment, DatapathError> {
    let program: &mut SchedClassifier = program(ebpf, name)?;
    if let Some(link) = left_link(pin, ifindex) {
        let replaced = program.attach_to_link(SchedClassifierLink::try_from(link)?);
        if let Ok(id) = replaced {
            drop(program.take_link(id)?);
            return hold(pin);
        }
        let _ = links::remove(pin);
    }
    let interface = nix::net::if_::if_indextoname(ifindex)
        .map_err(std::io::Error::from)?
        .into_string()
        .map_err(|_| DatapathError::Name(ifindex))?;
    let order = match place.after {
        // SAFETY: the id is that of a program that this process holds.
        Some(id) => LinkOrder::after_program_id(unsafe { ProgramId::new(id) }),
        None => LinkOrder::first(),
    };
    let order = TcAttachOptions::TcxOrder(order);
    match program.attach_with_options(&interface, place.side, order) {
        Ok(id) => pin_link(program.take_link(id)?.try_into()?, pin),
        // Before Linux 6.6 there is no TCX; whatever else went wrong, the other way tells.
        Err(_) => {
            let priority = place.after.map_or(CLSACT_FIRST, |_| CLSACT_SECOND);
            Filter::attach(
                program, ifindex, &interface, place.side, priority, pins, pin,
            )
            .map(Attachment::Clsact)
        }
    }
}

fn pin_link(link: FdLink, path: &Path) -> Result<Attachment, DatapathError> {
    let pinned = link.pin(path).map_err(|source| DatapathError::Pin {
        kind: "link",
        path: path.to_owned(),
        source,
    })?;
    Ok(Attachment::Pinned(Some(pinned)))
}
