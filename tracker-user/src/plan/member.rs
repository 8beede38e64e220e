//! From what is configured and what is observed to what must be installed: pure, so that every
//! situation of links, addresses and neighbours is a table row in a test.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    net::IpAddr,
    sync::LazyLock,
};

use tracker_ebpf::{
    abi::{self, Egress, Family, Proof},
    probe,
    verdict::Cause,
    wire::ethernet,
};

use crate::{
    config::{Member, ModeChoice, ReturnHop, Tracker},
    error::full,
    plan::{
        address,
        mode::SendWay,
        observed::{DeviceCaps, Link, LinkType, Neighbour, Observed, Owners, RouteKey},
    },
};

/// Longest frame that a live frame's page holds: 4,096 bytes less headroom, the kernel's own head and
/// `struct skb_shared_info` (net/bpf/test_run.c; measured on Linux 6.18, x86-64).
const FRAME_MAX: u32 = 3_408;

/// Why an interface is of no use.
pub const OTHER_HEADER: &str = "its packets begin neither with an Ethernet nor with an IP header";

/// Why a probe can't be sent, for machine and reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The cause that `status` shows.
    pub cause: Cause,
    /// The rest of the story in a few words.
    pub detail: String,
}

impl Fault {
    fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self {
            cause,
            detail: detail.into(),
        }
    }

    /// Nothing was looked at yet.
    pub fn pending() -> Self {
        Self::new(Cause::NoReply, "not sent yet")
    }

    /// Probes could be sent, but nothing could hear their replies.
    pub fn cannot_receive(why: &str) -> Self {
        Self::new(Cause::SendFailed, why)
    }

    /// The kernel's maps can't be written.
    pub fn cannot_write(error: &(dyn Error + 'static)) -> Self {
        Self::new(Cause::SendFailed, full(error).to_string())
    }
}

/// What a member needs of the kernel now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberPlan {
    /// The member's interface, if it exists.
    pub interface: Option<(u32, String)>,
    /// The entry for PATHS, or why there is none.
    pub path: Result<abi::Path, Fault>,
    /// Interfaces on which its replies may arrive.
    pub receive: Vec<u32>,
    /// The endpoint's neighbour entry, which the kernel is to keep.
    pub neighbour: Option<(u32, IpAddr)>,
    /// How each tracker probes, or why it can't.
    pub probings: Vec<Result<Probing, Fault>>,
}

/// What a tracker's probes need beside the member's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probing {
    /// Their source address.
    pub source: IpAddr,
    /// What proves that they passed.
    pub proof: Proof,
    /// True if the behind address is the hub's own, but not known is where its probes come back.
    pub is_stranded: bool,
}

impl Probing {
    /// What to say of a tracker without replies whose probing [`Self::is_stranded`].
    pub const STRANDED: &str = "the hub has this address itself; set returns to the interface on which its probes come back";
}

impl MemberPlan {
    /// What proves the probes of each tracker to have passed.
    pub fn proofs(&self) -> Vec<Proof> {
        let proof = |probing: &Result<Probing, Fault>| {
            probing
                .as_ref()
                .map_or(Proof::Reply, |probing| probing.proof)
        };
        self.probings.iter().map(proof).collect()
    }

    /// The index of the member's interface, if it exists.
    pub fn ifindex(&self) -> Option<u32> {
        self.interface.as_ref().map(|(ifindex, _)| *ifindex)
    }

    /// How the member's probes leave, if they do.
    pub fn send_way(&self) -> Option<SendWay> {
        SendWay::of(self.path.as_ref().ok()?.egress.get())
    }
}

/// Devices by which redirected frames were seen not to leave, and what they were then: what a device could not do says
/// nothing of the time after it changed.
pub type NotLeaving = HashMap<u32, DeviceCaps>;

/// What else decides how probes leave.
#[derive(Clone, Copy, Debug)]
pub struct Ways<'a> {
    /// The configured mode.
    pub mode: ModeChoice,
    /// Devices by which redirected frames were seen not to leave.
    pub not_leaving: &'a NotLeaving,
    /// The last MAC address known of each endpoint: good while the kernel asks anew, until it fails.
    pub last_macs: &'a HashMap<(u32, IpAddr), [u8; 6]>,
}

impl Ways<'static> {
    /// Those of a start: nothing was learnt of any device or endpoint yet.
    pub fn at_start(mode: ModeChoice) -> Self {
        static NOT_LEAVING: LazyLock<NotLeaving> = LazyLock::new(HashMap::new);
        static LAST_MACS: LazyLock<HashMap<(u32, IpAddr), [u8; 6]>> = LazyLock::new(HashMap::new);
        Self {
            mode,
            not_leaving: &NOT_LEAVING,
            last_macs: &LAST_MACS,
        }
    }
}

/// What the way to a member without a configured interface is looked up by.
pub fn route_key(member: &Member) -> Option<RouteKey> {
    let endpoint = member.endpoint;
    let of_family = |source: &IpAddr| source.is_ipv4() == endpoint.is_ipv4();
    match member.interface {
        Some(_) => None,
        None => Some((endpoint, member.source.filter(of_family))),
    }
}

/// Plans one member.
pub fn plan(member: &Member, observed: &Observed, owners: &Owners, ways: Ways<'_>) -> MemberPlan {
    let link = match find_link(member, observed) {
        Ok(link) => link,
        Err(fault) => {
            return MemberPlan {
                interface: None,
                path: Err(fault.clone()),
                receive: Vec::new(),
                neighbour: None,
                probings: vec![Err(fault); member.trackers.len()],
            };
        }
    };
    let returns: Vec<u32> = if member.returns.is_empty() {
        vec![link.index]
    } else {
        let by_name = |name: &String| observed.by_name(name).map(|link| link.index);
        member.returns.iter().filter_map(by_name).collect()
    };
    let mut arrivals = Vec::new();
    if !member.returns.is_empty() {
        arrivals.clone_from(&returns);
    }
    let probings: Vec<Result<Probing, Fault>> = member
        .trackers
        .iter()
        .map(|tracker| {
            let source = source(member, link, tracker, owners)?;
            let at = owners.get(&tracker.behind).map_or(&[][..], Vec::as_slice);
            let proof = proof(member, tracker.behind, at, observed, &mut arrivals)?;
            Ok(Probing {
                source,
                proof,
                is_stranded: proof == Proof::Reply && !at.is_empty(),
            })
        })
        .collect();
    let is_arrival = |probing: &Result<Probing, Fault>| matches!(probing, Ok(probing) if probing.proof == Proof::Arrival);
    let mut receive = match probings.iter().all(is_arrival) {
        true => Vec::new(),
        false => returns.clone(),
    };
    if probings.iter().any(is_arrival) {
        for ifindex in &arrivals {
            if !receive.contains(ifindex) {
                receive.push(*ifindex);
            }
        }
    }
    MemberPlan {
        interface: Some((link.index, link.name.clone())),
        path: path(member, link, observed, [&returns, &arrivals], ways)
            .and_then(|path| way_back(member, &receive, observed).map(|()| path)),
        receive,
        neighbour: (link.is_running && link.has_neighbours())
            .then_some((link.index, member.endpoint)),
        probings,
    }
}

/// What proves that a probe to `behind` passed. One to an address of the hub itself, on the interfaces
/// `at`, comes back to the hub: by an interface of `returns`, else by one that has the address, which
/// `arrivals` then gets. Of a link-local address there may be one on each link.
fn proof(
    member: &Member,
    behind: IpAddr,
    at: &[u32],
    observed: &Observed,
    arrivals: &mut Vec<u32>,
) -> Result<Proof, Fault> {
    if at.is_empty() || matches!(behind, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        return Ok(Proof::Reply);
    }
    if !member.returns.is_empty() {
        return Ok(Proof::Arrival);
    }
    let mut hears = at
        .iter()
        .filter(|ifindex| {
            observed
                .links
                .get(ifindex)
                .is_some_and(|link| !link.is_dead_end)
        })
        .peekable();
    if hears.peek().is_none() {
        return Ok(Proof::Reply);
    }
    for ifindex in hears {
        if !arrivals.contains(ifindex) {
            arrivals.push(*ifindex);
        }
    }
    if arrivals.len() > abi::RETURNS_MAX {
        return Err(Fault::new(
            Cause::SendFailed,
            format!(
                "probes would come back on more than {} interfaces; give {behind} to a service of its own",
                abi::RETURNS_MAX
            ),
        ));
    }
    Ok(Proof::Arrival)
}

fn find_link<'a>(member: &Member, observed: &'a Observed) -> Result<&'a Link, Fault> {
    if let Some(name) = &member.interface {
        return observed.by_name(name).ok_or_else(|| {
            Fault::new(
                Cause::InterfaceMissing,
                format!("there is no interface {name}"),
            )
        });
    }
    let endpoint = member.endpoint;
    let link = route_key(member)
        .and_then(|key| observed.routes.get(&key))
        .and_then(|ifindex| observed.links.get(ifindex));
    link.ok_or_else(|| {
        Fault::new(
            Cause::InterfaceMissing,
            format!("no route leads to the endpoint {endpoint}"),
        )
    })
}

fn path(
    member: &Member,
    link: &Link,
    observed: &Observed,
    [returns, arrivals]: [&[u32]; 2],
    ways: Ways<'_>,
) -> Result<abi::Path, Fault> {
    if !link.is_running {
        return Err(Fault::new(
            Cause::InterfaceDown,
            format!("{} is down or has no carrier", link.name),
        ));
    }
    let (device, vlan, egress) = way_out(link, observed, ways);
    let mut entry = abi::Path {
        next_hop_mac: next_hop_mac(member, link, observed, ways)?,
        vlan,
        source_mac: link.mac,
        egress: egress.into(),
        ifindex: device,
        checks_hop: u8::from(member.return_hop == ReturnHop::Endpoint && link.has_neighbours()),
        ..Default::default()
    };
    for (slots, interfaces) in [
        (&mut entry.returns, returns),
        (&mut entry.arrivals, arrivals),
    ] {
        for (slot, ifindex) in slots.iter_mut().zip(interfaces) {
            *slot = *ifindex;
        }
    }
    Ok(entry)
}

/// The fault of an endpoint whose MAC address is not known. Neighbours are solicited from a link-local address, which every
/// IPv6 interface has (RFC 4291 section 2.1); without one, Linux solicits no neighbour (`ndisc_send_ns`).
/// A bridge or bond takes over the answers that arrive on its ports (`br_handle_frame`, `bond_handle_frame`), so the
/// kernel never finds a neighbour on one.
fn unresolved(link: &Link, endpoint: IpAddr, observed: &Observed, why: String) -> Fault {
    let master = link.master.and_then(|master| observed.links.get(&master));
    if let Some(master) = master.filter(|master| master.is_bridge || master.is_bond) {
        let kind = if master.is_bridge { "bridge" } else { "bond" };
        let (port, name) = (&link.name, &master.name);
        let detail = format!(
            "{why}; {port} is a port of the {kind} {name}, which takes the answer: set interface = \"{name}\""
        );
        return Fault::new(Cause::NextHopUnresolved, detail);
    }
    let mut addresses = link.addresses.iter().map(|address| address.ip);
    let can_ask = endpoint.is_ipv4()
        || addresses.any(|ip| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
    let detail = match can_ask {
        true => why,
        false => format!(
            "{} has no IPv6 link-local address, without which the kernel asks for no neighbour",
            link.name
        ),
    };
    Fault::new(Cause::NextHopUnresolved, detail)
}

/// Interfaces on which a genuine reply proves no wrong way: those of `receive`, what lies below them, where each of their replies
/// passes first, and private ones, where probes arrive that leave by TC.
pub fn expecting(observed: &Observed, receive: &HashSet<u32>) -> HashSet<u32> {
    let links = observed.links.values();
    let private = links
        .filter(|link| link.is_private())
        .map(|link| link.index);
    let passes = receive.iter();
    let passes = passes.flat_map(|ifindex| observed.below(*ifindex));
    passes.chain(private).collect()
}

/// The MAC address of the endpoint; zeros if the interface's packets have no Ethernet header: that of
/// the frame on the private veth is taken off on its way out.
fn next_hop_mac(
    member: &Member,
    link: &Link,
    observed: &Observed,
    ways: Ways<'_>,
) -> Result<[u8; 6], Fault> {
    match link.link_type {
        LinkType::Ethernet => {}
        LinkType::Ip => return Ok([0; 6]),
        LinkType::Other => {
            let why = format!("{}: {OTHER_HEADER}", link.name);
            return Err(Fault::new(Cause::SendFailed, why));
        }
    }
    let endpoint = member.endpoint;
    match observed.neighbours.get(&(link.index, endpoint)) {
        Some(Neighbour::Resolved(mac) | Neighbour::Permanent(mac)) => Ok(*mac),
        // Without neighbour resolution the kernel sends to the interface's own address (`arp_constructor`).
        _ if !link.has_neighbours() => Ok(link.mac),
        Some(Neighbour::Asking) | None => match ways.last_macs.get(&(link.index, endpoint)) {
            Some(mac) => Ok(*mac),
            None => {
                let asking = format!("asking for {endpoint} on {}", link.name);
                Err(unresolved(link, endpoint, observed, asking))
            }
        },
        Some(Neighbour::Failed) => {
            let silent = format!("{endpoint} does not answer on {}", link.name);
            Err(unresolved(link, endpoint, observed, silent))
        }
    }
}

/// An order in which XDP programs can be attached to all of these: the kernel refuses one to a device below another
/// that has one (`dev_xdp_attach`, Linux 5.15). What stands on a device and is neither its port nor its
/// child, such as a VXLAN, was mostly made after it and has the higher index.
pub fn lowest_first(observed: &Observed, interfaces: &HashSet<u32>) -> Vec<u32> {
    let mut order: Vec<u32> = interfaces.iter().copied().collect();
    order.sort_by_cached_key(|ifindex| (observed.below(*ifindex).len(), *ifindex));
    order
}

/// Without an interface on which a reply could arrive, the hub is to blame and not the service.
fn way_back(member: &Member, receive: &[u32], observed: &Observed) -> Result<(), Fault> {
    let links = || {
        receive
            .iter()
            .filter_map(|ifindex| observed.links.get(ifindex))
    };
    if links().any(|link| link.is_running) {
        return Ok(());
    }
    if receive.is_empty() {
        let names = member.returns.join(" or ");
        return Err(Fault::new(
            Cause::InterfaceMissing,
            format!("there is no interface {names} for the replies"),
        ));
    }
    let names: Vec<&str> = links().map(|link| link.name.as_str()).collect();
    Err(Fault::new(
        Cause::InterfaceDown,
        format!(
            "{}, for the replies, is down or has no carrier",
            names.join(" or ")
        ),
    ))
}

/// The device by which frames leave, their tag, and how they get there. A device without
/// `ndo_xdp_xmit`, or on a kernel that doesn't tell, takes the way that every device has: TC.
pub fn way_out(link: &Link, observed: &Observed, ways: Ways<'_>) -> (u32, u16, Egress) {
    let takes_frames = |link: &Link| {
        ways.mode != ModeChoice::Tc
            // XDP would hand such a device the Ethernet header with the packet; TC takes it off.
            && link.link_type == LinkType::Ethernet
            && !ways.not_leaving.contains_key(&link.index)
            && link.takes_frames()
    };
    if takes_frames(link) {
        return (link.index, 0, Egress::XdpRedirect);
    }
    // An 802.1Q device has no XDP of its own, but its parent may: the tag is then ours to write.
    if let Some(vlan) = link.vlan
        && let Some(parent) = observed.links.get(&vlan.parent)
        && parent.is_running
        && takes_frames(parent)
    {
        return (parent.index, vlan.id, Egress::XdpRedirect);
    }
    (link.index, 0, Egress::TcRedirect)
}

/// The source of a tracker's probes: the configured address, if it is the hub's, else the one of the interface that the kernel
/// would take ([`address::choose`]). Replies to an address that went elsewhere would be missed, and the service blamed.
fn source(
    member: &Member,
    link: &Link,
    tracker: &Tracker,
    owners: &Owners,
) -> Result<IpAddr, Fault> {
    let behind = tracker.behind;
    let family = Family::from(behind);
    let frame_len = probe::wire_len(link.vlan.is_some(), family, tracker.wire_payload());
    let packet_len = probe::wire_len(false, family, tracker.wire_payload()) - ethernet::LEN as u32;
    if packet_len > link.mtu {
        return Err(Fault::new(
            Cause::SendFailed,
            format!(
                "a packet of {packet_len} bytes does not fit the MTU {} of {}",
                link.mtu, link.name
            ),
        ));
    }
    if frame_len > FRAME_MAX {
        return Err(Fault::new(
            Cause::SendFailed,
            format!(
                "a frame of {frame_len} bytes exceeds the {FRAME_MAX} that fit a live frame's page"
            ),
        ));
    }
    if let Some(source) = member.source
        && source.is_ipv4() == behind.is_ipv4()
    {
        if !owners.contains_key(&source) {
            let why = format!("the hub does not have the source address {source}");
            return Err(Fault::new(Cause::SendFailed, why));
        }
        return Ok(source);
    }
    address::choose(link, member.endpoint, behind).ok_or_else(|| {
        let family = match family {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        };
        Fault::new(
            Cause::SendFailed,
            format!("{} has no usable {family} address to send from", link.name),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config,
        plan::observed::{Address, Vlan, XDP_ACT_NDO_XMIT},
    };

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn configured(extra: &str) -> Member {
        let text = format!(
            "[[service]]\nname = \"fw\"\nendpoint = \"10.9.0.2\"\n\
             behind = [\"10.20.0.9\", \"2001:db8:20::9\"]\n{extra}"
        );
        let config = config::parse(&text, std::path::Path::new("test")).expect("a good config");
        (*config.services[0].members[0]).clone()
    }

    fn link(index: u32, name: &str) -> Link {
        let address = |ip: &str, prefix| Address::new(ip.parse().expect("an address"), prefix);
        Link {
            index,
            name: name.to_owned(),
            mac: [2, 0, 0, 0, 0, index as u8],
            is_running: true,
            mtu: 1500,
            addresses: vec![
                address("192.0.2.1", 24),
                address("10.9.0.1", 24),
                address("fe80::1", 64),
            ],
            ..Default::default()
        }
    }

    fn observed() -> Observed {
        let mut observed = Observed::default();
        observed.links.insert(3, link(3, "eth1"));
        observed.neighbours.insert(
            (3, "10.9.0.2".parse().expect("an address")),
            Neighbour::Resolved(MAC),
        );
        observed
            .routes
            .insert(("10.9.0.2".parse().expect("an address"), None), 3);
        observed
    }

    fn plan(extra: &str, observed: &Observed) -> MemberPlan {
        let ways = Ways::at_start(ModeChoice::Auto);
        super::plan(&configured(extra), observed, &observed.owners(), ways)
    }

    #[test]
    fn a_port_is_told_of_the_bridge_that_takes_its_answers() {
        let mut observed = observed();
        observed.neighbours.clear();
        let bridge = Link {
            is_bridge: true,
            ..link(9, "br0")
        };
        observed.links.insert(9, bridge);
        let detail =
            |observed: &Observed| plan("", observed).path.expect_err("no neighbour").detail;
        assert_eq!(detail(&observed), "asking for 10.9.0.2 on eth1");
        observed.links.get_mut(&3).expect("a link").master = Some(9);
        let expected = "asking for 10.9.0.2 on eth1; eth1 is a port of the bridge br0, which takes the answer: set \
                        interface = \"br0\"";
        assert_eq!(detail(&observed), expected);
    }

    #[test]
    fn an_interface_has_all_its_names() {
        let mut observed = observed();
        let named = "interface = \"firewall-uplink-0\"\nreturns = [\"eth1\"]\n";
        assert_eq!(cause(&plan(named, &observed)), Cause::InterfaceMissing);
        let link = observed.links.get_mut(&3).expect("a link");
        link.alternatives = vec!["enp9s0".to_owned(), "firewall-uplink-0".to_owned()];
        let plan = plan(named, &observed);
        assert_eq!(plan.interface, Some((3, "eth1".to_owned())));
        assert!(plan.path.is_ok(), "{:?}", plan.path);
    }

    fn cause(plan: &MemberPlan) -> Cause {
        plan.path.as_ref().expect_err("a fault").cause
    }

    #[test]
    fn a_complete_member() {
        let plan = plan("interface = \"eth1\"", &observed());
        let path = plan.path.expect("a path");
        assert_eq!((path.next_hop_mac, path.source_mac[5]), (MAC, 3));
        assert_eq!(
            (path.egress.get(), path.ifindex, path.returns),
            (Egress::TcRedirect, 3, [3, 0, 0, 0])
        );
        let probing = Probing {
            source: "10.9.0.1".parse().expect("an address"),
            proof: Proof::Reply,
            is_stranded: false,
        };
        assert_eq!(plan.probings[0], Ok(probing));
        // Only a link-local IPv6 address: no reply would find its way back.
        assert_eq!(
            plan.probings[1].as_ref().expect_err("a fault").cause,
            Cause::SendFailed
        );
    }

    #[test]
    fn faults_name_their_cause() {
        let missing = plan("interface = \"eth7\"", &observed());
        assert_eq!(cause(&missing), Cause::InterfaceMissing);
        assert_eq!(missing.probings.len(), 2);

        let mut down = observed();
        down.links.get_mut(&3).expect("eth1").is_running = false;
        assert_eq!(
            cause(&plan("interface = \"eth1\"", &down)),
            Cause::InterfaceDown
        );

        let elsewhere = "interface = \"eth1\"\nreturns = [\"eth2\", \"eth3\"]";
        assert_eq!(
            cause(&plan(elsewhere, &observed())),
            Cause::InterfaceMissing
        );
        let mut back = observed();
        back.links.insert(4, link(4, "eth2"));
        assert_eq!(
            plan(elsewhere, &back).path.map(|path| path.returns[0]),
            Ok(4)
        );
        back.links.get_mut(&4).expect("eth2").is_running = false;
        assert_eq!(cause(&plan(elsewhere, &back)), Cause::InterfaceDown);

        for state in [None, Some(Neighbour::Asking), Some(Neighbour::Failed)] {
            let mut unresolved = observed();
            let key = (3, "10.9.0.2".parse().expect("an address"));
            match state {
                Some(state) => unresolved.neighbours.insert(key, state),
                None => unresolved.neighbours.remove(&key),
            };
            let plan = plan("interface = \"eth1\"", &unresolved);
            assert_eq!(cause(&plan), Cause::NextHopUnresolved);
            assert_eq!(plan.neighbour, Some(key));
        }
    }

    #[test]
    fn the_interface_is_found_from_the_endpoints_route() {
        assert_eq!(
            plan("", &observed()).interface,
            Some((3, "eth1".to_owned()))
        );
        let mut unrouted = observed();
        unrouted.routes.clear();
        assert_eq!(cause(&plan("", &unrouted)), Cause::InterfaceMissing);
    }

    #[test]
    fn the_way_out_follows_the_device() {
        let mut capable = observed();
        capable.links.get_mut(&3).expect("eth1").xdp_features = Some(XDP_ACT_NDO_XMIT);
        let path = plan("interface = \"eth1\"", &capable).path.expect("a path");
        assert_eq!((path.egress.get(), path.vlan), (Egress::XdpRedirect, 0));

        // A tagged device goes by its parent, with the tag.
        let mut tagged = observed();
        tagged.links.get_mut(&3).expect("eth1").vlan = Some(Vlan { parent: 2, id: 100 });
        let mut parent = link(2, "eth0");
        parent.xdp_features = Some(XDP_ACT_NDO_XMIT);
        tagged.links.insert(2, parent);
        let path = plan("interface = \"eth1\"", &tagged).path.expect("a path");
        assert_eq!(
            (path.egress.get(), path.vlan, path.ifindex),
            (Egress::XdpRedirect, 100, 2)
        );
        assert_eq!(path.returns, [3, 0, 0, 0]);

        // What was seen not to leave, or what the operator chose, goes by TC.
        let stuck = HashMap::from([(3, capable.links[&3].caps())]);
        let ways = Ways {
            not_leaving: &stuck,
            ..Ways::at_start(ModeChoice::Auto)
        };
        let configured = configured("interface = \"eth1\"");
        let path = super::plan(&configured, &capable, &capable.owners(), ways)
            .path
            .expect("a path");
        assert_eq!(path.egress.get(), Egress::TcRedirect);
        let ways = Ways::at_start(ModeChoice::Tc);
        let path = super::plan(&configured, &capable, &capable.owners(), ways)
            .path
            .expect("a path");
        assert_eq!(path.egress.get(), Egress::TcRedirect);
    }

    /// No address to ask for, no Ethernet header, and no XDP whatever the device says it can do.
    #[test]
    fn a_tunnel_needs_no_next_hop() {
        let mut observed = observed();
        observed.neighbours.clear();
        let eth1 = observed.links.get_mut(&3).expect("eth1");
        eth1.link_type = LinkType::Ip;
        eth1.mac = [0; 6];
        eth1.xdp_features = Some(XDP_ACT_NDO_XMIT);
        let through = plan("interface = \"eth1\"", &observed);
        let path = through.path.expect("a path");
        assert_eq!((path.next_hop_mac, path.source_mac), ([0; 6], [0; 6]));
        assert_eq!((path.egress.get(), path.ifindex), (Egress::TcRedirect, 3));
        assert_eq!(through.neighbour, None);

        observed.links.get_mut(&3).expect("eth1").link_type = LinkType::Other;
        assert_eq!(
            cause(&plan("interface = \"eth1\"", &observed)),
            Cause::SendFailed
        );
    }

    /// Without neighbour resolution the kernel sends to the interface's own address, or to what the operator set.
    #[test]
    fn an_interface_without_arp() {
        let mut observed = observed();
        observed.links.get_mut(&3).expect("eth1").is_noarp = true;
        let set = plan("interface = \"eth1\"", &observed);
        assert_eq!(set.path.expect("a path").next_hop_mac, MAC);
        assert_eq!(set.neighbour, None);
        observed.neighbours.clear();
        let unset = plan("interface = \"eth1\"", &observed)
            .path
            .expect("a path");
        assert_eq!(unset.next_hop_mac, unset.source_mac);
    }

    /// One of the hub's own addresses is behind: on eth2, on the loopback too, on both.
    #[test]
    fn a_probe_that_comes_back_to_the_hub() {
        let own = Address::new("10.20.0.9".parse().expect("an address"), 24);
        let with_owners = |owners: &[u32]| {
            let mut observed = observed();
            let mut lo = link(1, "lo");
            lo.is_dead_end = true;
            observed.links.insert(1, lo);
            observed.links.insert(4, link(4, "eth2"));
            for owner in owners {
                let link = observed.links.get_mut(owner).expect("a link");
                link.addresses = vec![own];
            }
            observed
        };
        let seen = |extra: &str, owners: &[u32]| {
            let plan = plan(
                &format!("interface = \"eth1\"{extra}"),
                &with_owners(owners),
            );
            let probing = *plan.probings[0].as_ref().expect("a source");
            let path = plan.path.expect("a path");
            let stranded = probing.is_stranded;
            (probing.proof, stranded, path.arrivals, plan.receive)
        };
        // The second tracker, of IPv6, has no source: what it would need counts as a reply.
        let (reply, arrival) = (Proof::Reply, Proof::Arrival);
        assert_eq!(seen("", &[]), (reply, false, [0; 4], vec![3]));
        assert_eq!(seen("", &[4]), (arrival, false, [4, 0, 0, 0], vec![3, 4]));
        assert_eq!(
            seen("", &[1, 4]),
            (arrival, false, [4, 0, 0, 0], vec![3, 4])
        );
        assert_eq!(seen("", &[1]), (reply, true, [0; 4], vec![3]));
        let returns = "\nreturns = [\"eth2\"]";
        assert_eq!(seen(returns, &[1]), (arrival, false, [4, 0, 0, 0], vec![4]));
    }

    #[test]
    fn what_lies_below_comes_first() {
        let mut observed = Observed::default();
        for index in 2..=6 {
            observed.links.insert(index, link(index, "any"));
        }
        // A bridge made before its port, a macvlan on that bridge, and a VXLAN, whose device is not told.
        observed.links.get_mut(&5).expect("a port").master = Some(2);
        observed.links.get_mut(&3).expect("a macvlan").parent = Some(2);
        let all = observed.links.keys().copied().collect();
        assert_eq!(lowest_first(&observed, &all), [4, 5, 6, 2, 3]);
    }

    #[test]
    fn a_configured_source_and_returns_win() {
        let plan = plan(
            "interface = \"eth1\"\nsource = \"192.0.2.1\"\nreturns = [\"eth1\", \"eth9\"]",
            &observed(),
        );
        assert_eq!(
            plan.probings[0].as_ref().expect("a source").source,
            "192.0.2.1".parse::<IpAddr>().expect("an address")
        );
        assert_eq!(plan.receive, [3]);
    }
}
