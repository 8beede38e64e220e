//! How programs are attached and how probes leave: what `status` and `doctor` call mode and send.

use tracker_ebpf::abi::Via;

use crate::{
    config::{ModeChoice, words},
    net::observed::{Header, Link},
};

/// How the receive program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// XDP in the driver.
    XdpNative,
    /// XDP in the kernel's generic hook.
    XdpGeneric,
    /// TC ingress.
    Tc,
}

impl Mode {
    /// The modes of an interface that `choice` allows, best first; or why there is none.
    pub fn allowed(link: &Link, choice: ModeChoice) -> Result<&'static [Self], String> {
        match (choice, link.header) {
            // A bond hands a native program to its legs (Linux 5.15), where it sees the leg's index: all replies would
            // seem to come a wrong way.
            (ModeChoice::Auto, Header::Ethernet) if link.is_bond => Ok(&[Self::Tc]),
            (ModeChoice::XdpNative, Header::Ethernet) if link.is_bond => {
                Err("a bond runs XDP programs on its legs; set hub.mode to auto or tc".to_owned())
            }
            (ModeChoice::Auto, Header::Ethernet) => {
                Ok(&[Self::XdpNative, Self::XdpGeneric, Self::Tc])
            }
            (ModeChoice::Auto | ModeChoice::Tc, _) => Ok(&[Self::Tc]),
            (ModeChoice::XdpNative, Header::Ethernet) => Ok(&[Self::XdpNative]),
            (ModeChoice::XdpGeneric, Header::Ethernet) => Ok(&[Self::XdpGeneric]),
            // The generic hook would run on such a device, at bytes that mean something else.
            (ModeChoice::XdpNative | ModeChoice::XdpGeneric, Header::Ip | Header::Other) => Err(
                "it has no Ethernet header, which XDP needs; set hub.mode to auto or tc".to_owned(),
            ),
        }
    }
}

/// How probes leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SendWay {
    /// Redirected by XDP into the device.
    XdpRedirect,
    /// Passed to a private device's TC ingress and redirected there.
    TcRedirect,
}

impl SendWay {
    /// The way of a path; `None` where it leads nowhere.
    pub const fn of(via: Via) -> Option<Self> {
        match via {
            Via::XdpRedirect => Some(Self::XdpRedirect),
            Via::TcRedirect => Some(Self::TcRedirect),
            Via::Nowhere => None,
        }
    }
}

words! {
    Mode { XdpNative = "xdp-native", XdpGeneric = "xdp-generic", Tc = "tc" }
    SendWay { XdpRedirect = "xdp-redirect", TcRedirect = "tc-redirect" }
}
