//! How programs are attached and how probes leave: what `status` and `doctor` call mode and send.

use tracker_ebpf::abi::Egress;

use crate::{
    config::{ModeChoice, words},
    plan::observed::{Link, LinkType, XDP_ACT_BASIC, XDP_ACT_RX_SG},
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

/// Offloads of an interface, as far as the choice of a mode depends on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// The first that merges received packets in hardware and is switched on.
    pub merging: Option<&'static str>,
    /// Whether something other than the operator keeps TSO off. On a veth, that is native XDP on its peer (`veth_xdp_set` and
    /// `veth_fix_features`, Linux 4.19 to 6.18).
    pub is_tso_held_off: bool,
    /// Whether the device takes VLAN tags out of received frames: an XDP program does not see them.
    pub strips_tags: bool,
}

/// The modes in which the receive program may be attached to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modes {
    /// The modes to try, best first.
    pub order: &'static [Mode],
    /// Why `auto` does not try native XDP; `None` if it does, or if the mode was configured.
    pub not_native: Option<String>,
}

impl Mode {
    /// The modes of an interface that `choice` allows, or why there is none. `offloads` tells of the interface of that name
    /// which are switched on now.
    pub fn allowed(
        link: &Link,
        choice: ModeChoice,
        offloads: impl FnOnce(&str) -> Offloads,
    ) -> Result<Modes, String> {
        let only = |order| Modes {
            order,
            not_native: None,
        };
        match (choice, link.link_type) {
            (ModeChoice::Auto, _) => Ok(match Self::why_not_native(link, offloads) {
                None => only(&[Self::XdpNative, Self::Tc]),
                not_native => Modes {
                    order: &[Self::Tc],
                    not_native,
                },
            }),
            (ModeChoice::Tc, _) => Ok(only(&[Self::Tc])),
            // A bond hands a native program to its legs (Linux 5.15), where it sees the leg's index: all replies would
            // seem to come a wrong way.
            (ModeChoice::XdpNative, LinkType::Ethernet) if link.is_bond => {
                Err("a bond runs XDP programs on its legs; set hub.mode to auto or tc".to_owned())
            }
            (ModeChoice::XdpNative, LinkType::Ethernet)
                if link
                    .xdp_features
                    .is_some_and(|features| features & XDP_ACT_BASIC == 0) =>
            {
                Err("the driver does not run XDP; set hub.mode to auto or tc".to_owned())
            }
            (ModeChoice::XdpNative, LinkType::Ethernet) => Ok(only(&[Self::XdpNative])),
            (ModeChoice::XdpGeneric, LinkType::Ethernet) => Ok(only(&[Self::XdpGeneric])),
            // The generic hook would run on such a device, at bytes that mean something else.
            (ModeChoice::XdpNative | ModeChoice::XdpGeneric, LinkType::Ip | LinkType::Other) => {
                Err(
                    "it has no Ethernet header, which XDP needs; set hub.mode to auto or tc"
                        .to_owned(),
                )
            }
        }
    }

    /// Why native XDP is missing on an interface, or which offload of the device or of its peer it would switch off; `None` if
    /// it costs the interface's other traffic nothing. Parameters as in [`Self::allowed`].
    pub fn why_not_native(link: &Link, offloads: impl FnOnce(&str) -> Offloads) -> Option<String> {
        let fixed = |why: &str| Some(why.to_owned());
        let has = |features: u64, bit: u64| features & bit != 0;
        match link.xdp_features {
            _ if link.link_type != LinkType::Ethernet => {
                fixed("it has no Ethernet header, which XDP needs")
            }
            _ if link.is_bond => fixed("a bond runs XDP programs on its legs, not on itself"),
            // `veth_xdp_set` clears NETIF_F_GSO_SOFTWARE of the peer, whatever the program can do. If the peer runs native XDP,
            // what its program sends back (XDP_TX) is delivered only while this end has a native program as well:
            // `veth_xdp_flush` wakes no other receiver, NAPI by GRO included (Linux 6.18).
            _ if link.is_veth => match offloads(&link.name).is_tso_held_off {
                true => None,
                false => fixed("on a veth, native XDP switches off the peer's TSO"),
            },
            None => fixed("the kernel does not tell what the driver's XDP can do"),
            Some(features) if !has(features, XDP_ACT_BASIC) => fixed("the driver does not run XDP"),
            // Such drivers limit the MTU to one buffer, and merge no packets, while they run XDP.
            Some(features) if !has(features, XDP_ACT_RX_SG) => fixed(
                "the driver's XDP takes no packets of several buffers, so it would limit MTU and merging",
            ),
            Some(_) => match offloads(&link.name) {
                Offloads {
                    merging: Some(offload),
                    ..
                } => Some(format!(
                    "native XDP would switch off {offload} (ethtool -k)"
                )),
                // A reply through a VLAN that bypasses the service would count as an untagged one.
                Offloads {
                    strips_tags: true, ..
                } => fixed(
                    "native XDP does not see the VLAN tags that the device takes out of frames (ethtool -k: rx-vlan-offload)",
                ),
                Offloads { .. } => None,
            },
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
    /// The way of a path; `None` if it leads nowhere.
    pub const fn of(egress: Egress) -> Option<Self> {
        match egress {
            Egress::XdpRedirect => Some(Self::XdpRedirect),
            Egress::TcRedirect => Some(Self::TcRedirect),
            Egress::None => None,
        }
    }
}

words! {
    Mode { XdpNative = "xdp-native", XdpGeneric = "xdp-generic", Tc = "tc" }
    SendWay { XdpRedirect = "xdp-redirect", TcRedirect = "tc-redirect" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auto(link: &Link, merging: Option<&'static str>) -> Modes {
        let offloads = Offloads {
            merging,
            ..Offloads::default()
        };
        Mode::allowed(link, ModeChoice::Auto, |_| offloads).expect("modes")
    }

    fn capable() -> Link {
        Link {
            name: "eth1".to_owned(),
            xdp_features: Some(XDP_ACT_BASIC | XDP_ACT_RX_SG),
            ..Link::default()
        }
    }

    /// `auto` takes native XDP only if no offload pays for it, never generic XDP, and gives its reason.
    #[test]
    fn auto_costs_no_offload() {
        assert_eq!(
            auto(&capable(), None),
            Modes {
                order: &[Mode::XdpNative, Mode::Tc],
                not_native: None
            }
        );
        let with = |change: &dyn Fn(&mut Link)| {
            let mut link = capable();
            change(&mut link);
            link
        };
        for (link, merging, why) in [
            (capable(), Some("rx-lro"), "rx-lro"),
            (with(&|link| link.is_veth = true), None, "peer's TSO"),
            (with(&|link| link.is_bond = true), None, "on its legs"),
            (
                with(&|link| link.link_type = LinkType::Ip),
                None,
                "no Ethernet header",
            ),
            (
                with(&|link| link.xdp_features = Some(0)),
                None,
                "does not run XDP",
            ),
            (
                with(&|link| link.xdp_features = Some(XDP_ACT_BASIC)),
                None,
                "several buffers",
            ),
            (
                with(&|link| link.xdp_features = None),
                None,
                "does not tell",
            ),
        ] {
            let modes = auto(&link, merging);
            assert_eq!(modes.order, [Mode::Tc]);
            let said = modes.not_native.expect("a reason");
            assert!(said.contains(why), "{said}");
        }
    }

    /// A service that answers by XDP_TX on its end of a veth is heard by native XDP alone.
    #[test]
    fn auto_is_native_on_a_veth_whose_peer_is() {
        let veth = Link {
            is_veth: true,
            ..capable()
        };
        let offloads = Offloads {
            is_tso_held_off: true,
            ..Offloads::default()
        };
        let modes = Mode::allowed(&veth, ModeChoice::Auto, |_| offloads).expect("modes");
        assert_eq!(modes.order, [Mode::XdpNative, Mode::Tc]);
    }

    /// A tag that a device has taken out of the frame is seen at TC alone.
    #[test]
    fn auto_sees_vlan_tags() {
        let offloads = Offloads {
            strips_tags: true,
            ..Offloads::default()
        };
        let modes = Mode::allowed(&capable(), ModeChoice::Auto, |_| offloads).expect("modes");
        assert_eq!(modes.order, [Mode::Tc]);
        let why = modes.not_native.expect("a reason");
        assert!(why.contains("VLAN tags"), "{why}");
    }

    /// What the operator asks for is done, whatever it costs, unless it cannot work.
    #[test]
    fn a_configured_mode_is_the_only_one() {
        let veth = Link {
            is_veth: true,
            ..capable()
        };
        for (choice, mode) in [
            (ModeChoice::XdpNative, Mode::XdpNative),
            (ModeChoice::XdpGeneric, Mode::XdpGeneric),
            (ModeChoice::Tc, Mode::Tc),
        ] {
            let modes = Mode::allowed(&veth, choice, |_| Offloads::default()).expect("modes");
            assert_eq!((modes.order, modes.not_native), (&[mode][..], None));
        }
        for link in [
            Link {
                is_bond: true,
                ..capable()
            },
            Link {
                link_type: LinkType::Ip,
                ..capable()
            },
        ] {
            Mode::allowed(&link, ModeChoice::XdpNative, |_| Offloads::default())
                .expect_err("no such mode");
        }
    }
}
