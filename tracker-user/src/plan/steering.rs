//! What steering needs of the kernel: from the config, what is planned for each member, and what is observed
//! (pure).

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
};

use tracker_ebpf::{
    abi::{self, Egress, Family, SteerKey},
    wire::{flow, ipv4, ipv6},
};

use crate::{
    config::{self, Member, ModeChoice, Probe},
    plan::mode::Offloads,
    plan::{
        address::address_bytes,
        member::MemberPlan,
        mode::Mode,
        observed::{Link, LinkType, Observed, Owners, XDP_ACT_BASIC},
    },
};

/// Where a steering program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// XDP on an uplink.
    Fast,
    /// TC ingress of an uplink.
    Uplink,
    /// TC egress, where marked local packets may leave.
    Marked,
    /// TC ingress, where replies arrive.
    Return,
}

/// One attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttachPoint {
    /// The interface.
    pub ifindex: u32,
    /// The place on it.
    pub hook: Hook,
    /// Whether its frames have an Ethernet header.
    pub is_ethernet: bool,
}

/// Everything that steering needs now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// For the map FILTER.
    pub filter: abi::Filter,
    /// For the map STEERING.
    pub table: HashMap<SteerKey, abi::Steer>,
    /// For the map SOURCES: address and bits of its prefix.
    pub sources: HashSet<(abi::Source, u32)>,
    /// For the map UPLINKS: the hub's MAC addresses on uplinks, and where replies arrive.
    pub uplinks: HashMap<abi::OwnMac, u32>,
    /// Programs. Those of [`Hook::Fast`] only make it faster, and some devices refuse them.
    pub points: BTreeSet<AttachPoint>,
}

/// How much room the maps of a config need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Entries of STEERING.
    pub table: u32,
    /// Entries of SOURCES.
    pub sources: u32,
    /// Entries of UPLINKS.
    pub uplinks: u32,
}

impl Room {
    /// What steering to these members needs.
    pub fn needed<'m>(
        members: impl IntoIterator<Item = &'m Member>,
        steering: &config::Steering,
    ) -> Self {
        let (mut table, mut returns) = (0, 0);
        for member in members {
            table += 1 + member.trackers.len();
            returns += member.returns.len().max(1);
        }
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            table: count(table),
            sources: count(steering.sources.len()),
            // On each a few addresses beside its own.
            uplinks: count((steering.uplinks.len() + returns).saturating_mul(4)),
        }
    }

    /// Sizes with room for entries that come later.
    pub fn with_more(self) -> Self {
        let more = |count: u32| count.saturating_add((count / 16).max(64));
        Self {
            table: more(self.table),
            sources: more(self.sources),
            uplinks: more(self.uplinks),
        }
    }

    /// Whether there is room for so much.
    pub const fn holds(self, needed: Self) -> bool {
        needed.table <= self.table
            && needed.sources <= self.sources
            && needed.uplinks <= self.uplinks
    }
}

/// A member, what is planned for it, and its path slot.
pub type Planned<'a> = (&'a Member, &'a MemberPlan, u32);

/// Plans everything.
pub fn plan(
    steering: &config::Steering,
    members: &[Planned<'_>],
    observed: &Observed,
    mode: ModeChoice,
) -> Plan {
    let mut plan = Plan::default();
    plan.filter.mark = steering.mark.unwrap_or(0);
    plan.filter.mark_mask = steering.mark_mask;
    let own = observed.owners();
    for &(member, of_member, slot) in members {
        let entry = entry(of_member, observed, slot);
        for (key, behind) in keys(member, &own) {
            let entry = abi::Steer {
                behind: bytes(behind),
                ..entry
            };
            match plan.table.entry(key) {
                Entry::Vacant(place) => {
                    place.insert(entry);
                }
                // Two members of one endpoint: the first that can be sent to.
                Entry::Occupied(mut place) if place.get().egress == Egress::None.into() => {
                    place.insert(entry);
                }
                Entry::Occupied(_) => {}
            }
        }
    }
    for (key, entry) in &plan.table {
        for (set, address) in [
            (&mut plan.filter.endpoints, &key.endpoint),
            (&mut plan.filter.behinds, &entry.behind),
        ] {
            let (word, bit) = abi::Filter::place(flow::last_word(key.family.get(), address));
            set[word] |= bit;
        }
    }
    plan.sources = steering.sources.iter().map(source).collect();

    let uplinks: Vec<&Link> = steering
        .uplinks
        .iter()
        .filter_map(|name| observed.by_name(name))
        .collect();
    let receiving: HashSet<u32> = members
        .iter()
        .flat_map(|(_, plan, _)| &plan.receive)
        .copied()
        .collect();
    let mut add = |ifindex: u32, hook| {
        let header = observed.links.get(&ifindex).map(|link| link.link_type);
        if let Some(header @ (LinkType::Ethernet | LinkType::Ip)) = header {
            plan.points.insert(AttachPoint {
                ifindex,
                hook,
                is_ethernet: header == LinkType::Ethernet,
            });
        }
    };
    for link in &uplinks {
        add(link.index, Hook::Uplink);
        if fast(link, receiving.contains(&link.index), mode).is_some() {
            add(link.index, Hook::Fast);
        }
    }
    for ifindex in &receiving {
        add(*ifindex, Hook::Return);
    }
    let arrivals: HashSet<u32> = uplinks
        .iter()
        .map(|link| link.index)
        .chain(receiving.iter().copied())
        .collect();
    // The interface's own, and those of the macvlan devices on it, which VRRP daemons make.
    for link in observed.links.values() {
        let of_parent = link.parent.filter(|_| link.is_macvlan);
        for ifindex in [Some(link.index), of_parent].into_iter().flatten() {
            if arrivals.contains(&ifindex) {
                let own = abi::OwnMac {
                    ifindex,
                    mac: link.mac,
                    pad: [0; 2],
                };
                plan.uplinks.insert(own, 1);
            }
        }
    }
    if steering.mark.is_some() {
        let own = members
            .iter()
            .filter_map(|(_, plan, _)| Some(plan.interface.as_ref()?.0));
        for ifindex in own.chain(uplinks.iter().map(|link| link.index)) {
            add(ifindex, Hook::Marked);
        }
    }
    plan
}

/// The mode in which XDP is attached to an uplink; `None` if only TC is. The receive program has precedence for an
/// interface's one place for XDP.
pub fn fast(link: &Link, is_receiving: bool, mode: ModeChoice) -> Option<Mode> {
    let runs_xdp = link
        .xdp_features
        .is_none_or(|features| features & XDP_ACT_BASIC != 0);
    if link.link_type != LinkType::Ethernet || is_receiving {
        return None;
    }
    match mode {
        // Which offloads are switched on is asked when the program is attached.
        ModeChoice::Auto => {
            let refusal = Mode::why_not_native(link, |_| Offloads::default());
            refusal.is_none().then_some(Mode::XdpNative)
        }
        ModeChoice::XdpNative => runs_xdp.then_some(Mode::XdpNative),
        ModeChoice::XdpGeneric => Some(Mode::XdpGeneric),
        ModeChoice::Tc => None,
    }
}

/// What a member's packets are addressed to, and where each goes. A reply of the hub's own address would not
/// come back by the service, and no host routes to a link-local endpoint.
fn keys(member: &Member, own: &Owners) -> Vec<(SteerKey, IpAddr)> {
    let endpoint = member.endpoint;
    if matches!(endpoint, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        return Vec::new();
    }
    let family = Family::from(endpoint);
    let behinds = member.trackers.iter().filter(|tracker| {
        Family::from(tracker.behind) == family && !own.contains_key(&tracker.behind)
    });
    let key = |protocol, port| SteerKey {
        endpoint: bytes(endpoint),
        port,
        protocol,
        family: family.into(),
    };
    let icmp = match family {
        Family::Ipv4 => ipv4::ICMP,
        Family::Ipv6 => ipv6::ICMP,
    };
    let echo = behinds
        .clone()
        .next()
        .map(|tracker| (key(icmp, 0), tracker.behind));
    let ports = behinds.filter_map(|tracker| {
        let protocol = match tracker.probe {
            Probe::Icmp => return None,
            Probe::Udp => flow::UDP,
            Probe::Tcp => flow::TCP,
        };
        Some((key(protocol, tracker.port?), tracker.behind))
    });
    // The first of several behind addresses of one port.
    let mut seen = HashSet::new();
    echo.into_iter()
        .chain(ports)
        .filter(|(key, _)| seen.insert(*key))
        .collect()
}

/// The part of a member's entries that they have in common.
fn entry(plan: &MemberPlan, observed: &Observed, slot: u32) -> abi::Steer {
    let nowhere = abi::Steer {
        member: slot,
        ..Default::default()
    };
    let link = plan
        .interface
        .as_ref()
        .and_then(|(ifindex, _)| observed.links.get(ifindex));
    let (Some(link), Ok(path)) = (link, &plan.path) else {
        return nowhere;
    };
    abi::Steer {
        next_hop_mac: path.next_hop_mac,
        source_mac: path.source_mac,
        interface: link.index,
        mtu: link.mtu,
        returns: path.returns,
        // XDP writes no tag: TC hands the frame to the VLAN device.
        egress: match path.egress.get() {
            Egress::XdpRedirect if path.vlan == 0 => Egress::XdpRedirect.into(),
            _ => Egress::TcRedirect.into(),
        },
        is_ethernet: (link.link_type == LinkType::Ethernet).into(),
        ..nowhere
    }
}

fn source(prefix: &ipnet::IpNet) -> (abi::Source, u32) {
    let source = abi::Source {
        family: prefix.network().into(),
        address: bytes(prefix.network()),
        ..Default::default()
    };
    // The family takes the first four bytes.
    (source, 32 + u32::from(prefix.prefix_len()))
}

/// The address in the maps' form.
fn bytes(ip: IpAddr) -> [u8; 16] {
    address_bytes(ip)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        plan::observed::Neighbour,
        plan::{
            member::{self, Ways},
            observed::{Address, Vlan, XDP_ACT_NDO_XMIT, XDP_ACT_RX_SG},
        },
    };

    const ENDPOINTS: [(&str, u32); 2] = [("10.9.0.2", 3), ("2001:db8:9::2", 3)];
    const SERVICES: &str = r#"
[[service]]
name = "four"
[[service.member]]
endpoint = "10.9.0.2"
interface = "eth1"
behind = ["2001:db8:20::9", "10.20.0.9", "10.20.0.10"]
[[service.member.tracker]]
behind = "10.20.0.11"
probe = "tcp"
port = 443
[[service.member.tracker]]
behind = "10.20.0.12"
probe = "tcp"
port = 443
[[service.member.tracker]]
behind = "10.20.0.12"
probe = "udp"
port = 53

[[service]]
name = "six"
endpoint = "2001:db8:9::2"
interface = "eth1"
behind = ["2001:db8:20::9"]
"#;
    const STEERING: &str = r#"
[steering]
uplinks = ["eth0", "eth9"]
sources = ["192.0.2.77/24", "2001:db8::/32"]
mark = 7
"#;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: [2, 0, 0, 0, 0, index as u8],
            is_running: true,
            mtu: 1400,
            xdp_features: Some(XDP_ACT_BASIC | XDP_ACT_RX_SG | XDP_ACT_NDO_XMIT),
            addresses: vec![Address::new(
                format!("10.9.{index}.1").parse().expect("an address"),
                24,
            )],
            ..Default::default()
        }
    }

    fn observed() -> Observed {
        let links = [(2, "eth0"), (3, "eth1"), (4, "eth2")];
        let mut observed = Observed {
            links: links.map(|(index, name)| (index, link(index, name))).into(),
            ..Default::default()
        };
        for (endpoint, ifindex) in ENDPOINTS {
            let key = (ifindex, endpoint.parse().expect("an address"));
            observed
                .neighbours
                .insert(key, Neighbour::Resolved([2, 0, 0, 0, 9, 9]));
        }
        observed
    }

    fn planned(text: &str, observed: &Observed, mode: ModeChoice) -> Plan {
        let config = config::parse(text, Path::new("test")).expect("a good config");
        let (ways, owners) = (Ways::at_start(mode), observed.owners());
        let members: Vec<&Member> = config
            .services
            .iter()
            .flat_map(|service| &service.members)
            .map(|member| &**member)
            .collect();
        let plans: Vec<MemberPlan> = members
            .iter()
            .map(|member| member::plan(member, observed, &owners, ways))
            .collect();
        let members: Vec<Planned<'_>> = members
            .into_iter()
            .zip(&plans)
            .zip(10..)
            .map(|((member, plan), slot)| (member, plan, slot))
            .collect();
        let steering = config.steering.expect("steering");
        plan(&steering, &members, observed, mode)
    }

    fn usual(observed: &Observed) -> Plan {
        planned(&format!("{SERVICES}{STEERING}"), observed, ModeChoice::Auto)
    }

    fn ip(text: &str) -> [u8; 16] {
        bytes(text.parse().expect("an address"))
    }

    fn key(endpoint: &str, protocol: u8, port: u16) -> SteerKey {
        SteerKey {
            endpoint: ip(endpoint),
            port,
            protocol,
            family: endpoint.parse::<IpAddr>().expect("an address").into(),
        }
    }

    fn behind(plan: &Plan, key: SteerKey) -> Option<[u8; 16]> {
        Some(plan.table.get(&key)?.behind)
    }

    #[test]
    fn echo_goes_to_the_first_behind_and_a_port_to_its_own() {
        let plan = usual(&observed());
        let v4 = "10.9.0.2";
        for (key, to) in [
            (key(v4, ipv4::ICMP, 0), "10.20.0.9"),
            (key(v4, flow::TCP, 443), "10.20.0.11"),
            (key(v4, flow::UDP, 53), "10.20.0.12"),
            (key("2001:db8:9::2", ipv6::ICMP, 0), "2001:db8:20::9"),
        ] {
            assert_eq!(behind(&plan, key), Some(ip(to)), "{key:?}");
        }
        assert_eq!(plan.table.len(), 4);
        let entry = plan.table[&key(v4, flow::TCP, 443)];
        assert_eq!(
            (entry.member, entry.interface, entry.mtu, entry.returns),
            (10, 3, 1400, [3, 0, 0, 0])
        );
        assert_eq!(
            (entry.next_hop_mac, entry.source_mac),
            ([2, 0, 0, 0, 9, 9], [2, 0, 0, 0, 0, 3])
        );
        assert_eq!(
            (entry.egress.get(), entry.is_ethernet),
            (Egress::XdpRedirect, 1)
        );
        // All of them pass the filter.
        for (key, entry) in &plan.table {
            for (set, address) in [
                (plan.filter.endpoints, key.endpoint),
                (plan.filter.behinds, entry.behind),
            ] {
                let (word, bit) = abi::Filter::place(flow::last_word(key.family.get(), &address));
                assert_ne!(set[word] & bit, 0);
            }
        }
        assert_eq!(plan.filter.mark, 7);
    }

    #[test]
    fn sources_keep_to_their_family() {
        let sources = usual(&observed()).sources;
        let source = |family, address| abi::Source {
            family,
            address: ip(address),
            ..Default::default()
        };
        let wanted = [
            (source(Family::Ipv4.into(), "192.0.2.0"), 56),
            (source(Family::Ipv6.into(), "2001:db8::"), 64),
        ];
        assert_eq!(sources, wanted.into());
    }

    #[test]
    fn what_cannot_be_sent_to_is_not_passed_off_as_reached() {
        let mut down = observed();
        down.links.get_mut(&3).expect("eth1").is_running = false;
        let plan = usual(&down);
        assert_eq!(plan.table.len(), 4);
        for entry in plan.table.values() {
            assert_eq!((entry.egress.get(), entry.interface), (Egress::None, 0));
        }
        // Two members of one endpoint: that which can be sent to.
        let text = SERVICES.replace("eth1", "eth8")
            + &SERVICES.replace("name = \"", "name = \"b-")
            + STEERING;
        let plan = planned(&text, &observed(), ModeChoice::Auto);
        assert_eq!(plan.table[&key("10.9.0.2", flow::UDP, 53)].member, 12);
    }

    #[test]
    fn a_reply_that_would_not_come_back_by_the_service_is_not_asked_for() {
        let mut own = observed();
        let address = Address::new("10.20.0.9".parse().expect("an address"), 32);
        own.links.get_mut(&4).expect("eth2").addresses.push(address);
        let plan = usual(&own);
        assert_eq!(
            behind(&plan, key("10.9.0.2", ipv4::ICMP, 0)),
            Some(ip("10.20.0.10"))
        );
        // Nor is a link-local endpoint's.
        let text = "[[service]]\nname = \"s\"\nendpoint = \"fe80::2\"\ninterface = \"eth1\"\nbehind = [\"2001:db8:20::9\"]\n";
        let plan = planned(&format!("{text}{STEERING}"), &observed(), ModeChoice::Auto);
        assert!(plan.table.is_empty());
    }

    fn points(plan: &Plan) -> Vec<(u32, Hook)> {
        plan.points
            .iter()
            .map(|point| (point.ifindex, point.hook))
            .collect()
    }

    #[test]
    fn programs_go_where_packets_may_be() {
        let all = [
            (2, Hook::Fast),
            (2, Hook::Uplink),
            (2, Hook::Marked),
            (3, Hook::Marked),
            (3, Hook::Return),
        ];
        let plan = usual(&observed());
        assert_eq!(points(&plan), all);
        let own = |ifindex, mac| abi::OwnMac {
            ifindex,
            mac,
            pad: [0; 2],
        };
        let plain = [2, 3].map(|ifindex| own(ifindex, [2, 0, 0, 0, 0, ifindex as u8]));
        let keys = |plan: &Plan| plan.uplinks.keys().copied().collect::<HashSet<_>>();
        assert_eq!(keys(&plan), plain.into());
        // A VRRP daemon's devices; a VLAN's frames bear a tag, and eth2 is not concerned.
        let mut virtual_macs = observed();
        for (index, parent, is_macvlan) in
            [(10, 2, true), (11, 3, true), (12, 4, true), (13, 2, false)]
        {
            let device = Link {
                mac: [0, 0, 0x5e, 0, 1, index as u8],
                parent: Some(parent),
                is_macvlan,
                ..link(index, &format!("vrrp.{index}"))
            };
            virtual_macs.links.insert(index, device);
        }
        let more = [(2, 10), (3, 11)].map(|(ifindex, last)| own(ifindex, [0, 0, 0x5e, 0, 1, last]));
        assert_eq!(
            keys(&usual(&virtual_macs)),
            plain.into_iter().chain(more).collect()
        );
        // Without a mark nothing of the hub's own is looked at, without uplinks nothing else.
        let unmarked = format!("{SERVICES}{}", STEERING.replace("mark = 7", ""));
        let plan = planned(&unmarked, &observed(), ModeChoice::Auto);
        assert_eq!(points(&plan), [all[0], all[1], all[4]]);
        let marked = format!("{SERVICES}[steering]\nmark = 7");
        let plan = planned(&marked, &observed(), ModeChoice::Auto);
        assert_eq!(points(&plan), [all[3], all[4]]);
        // Replies are looked for where they may arrive.
        let elsewhere = format!("{SERVICES}returns = [\"eth2\"]\n{STEERING}");
        let plan = planned(&elsewhere, &observed(), ModeChoice::Auto);
        assert!(points(&plan).contains(&(4, Hook::Return)));
    }

    #[test]
    fn xdp_serves_uplinks_that_have_it_to_spare() {
        let is_fast = |plan: &Plan| points(plan).contains(&(2, Hook::Fast));
        let text = format!("{SERVICES}{STEERING}");
        let mut uplink = observed();
        let both = Some(XDP_ACT_BASIC | XDP_ACT_RX_SG);
        for (features, is_veth, by_auto, by_native) in [
            (both, false, true, true),
            (both, true, false, true),
            (Some(XDP_ACT_BASIC), false, false, true),
            (Some(0), false, false, false),
            (None, false, false, true),
        ] {
            let eth0 = uplink.links.get_mut(&2).expect("eth0");
            (eth0.xdp_features, eth0.is_veth) = (features, is_veth);
            for (mode, wanted) in [
                (ModeChoice::Auto, by_auto),
                (ModeChoice::XdpNative, by_native),
            ] {
                let plan = planned(&text, &uplink, mode);
                assert_eq!(is_fast(&plan), wanted, "{mode}: {features:?}, {is_veth}");
            }
        }
        for (mode, wanted) in [
            (ModeChoice::XdpNative, true),
            (ModeChoice::XdpGeneric, true),
            (ModeChoice::Tc, false),
        ] {
            assert_eq!(
                is_fast(&planned(&text, &observed(), mode)),
                wanted,
                "{mode}"
            );
        }
        // The receive program has it.
        let shared = format!("{SERVICES}returns = [\"eth0\", \"eth1\"]\n{STEERING}");
        let plan = planned(&shared, &observed(), ModeChoice::XdpNative);
        assert!(!is_fast(&plan));
        assert!(points(&plan).contains(&(2, Hook::Return)));
        // A tag is the VLAN device's to write.
        let mut tagged = observed();
        let eth1 = tagged.links.get_mut(&3).expect("eth1");
        (eth1.vlan, eth1.xdp_features) = (Some(Vlan { parent: 4, id: 5 }), None);
        let plan = usual(&tagged);
        let entry = plan.table[&key("10.9.0.2", flow::TCP, 443)];
        assert_eq!(
            (entry.egress.get(), entry.interface),
            (Egress::TcRedirect, 3)
        );
    }

    #[test]
    fn room_is_counted() {
        let config = config::parse(&format!("{SERVICES}{STEERING}"), Path::new("test"));
        let config = config.expect("a good config");
        let steering = config.steering.as_ref().expect("steering");
        let members = config.services.iter().flat_map(|service| &service.members);
        let needed = Room::needed(members.map(|member| &**member), steering);
        assert_eq!((needed.table, needed.sources, needed.uplinks), (9, 2, 16));
        assert!(needed.holds(needed) && needed.with_more().holds(needed));
        assert!(!needed.holds(needed.with_more()));
    }
}
