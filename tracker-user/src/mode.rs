//! How programs are attached and how probes leave: what `status` and `doctor` call mode and send.

use tracker_ebpf::abi::Via;

use crate::config::words;

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
