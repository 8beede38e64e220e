//! The rows. Each has a hub, a firewall and a host of its own; what is broken is the firewall, unless it says otherwise.
//!
//! What the kernel cannot do to packets (netem may be missing) is done by a line between firewall and host: a process that
//! carries packets, see [`super::line`].

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tracker_lab::Lab;
use tracker_lab::clock::SteppedClock;
use tracker_lab::daemon::SOON;
use tracker_lab::flood::flood;
use tracker_lab::foreign::{Foreign, Hook};
use tracker_lab::hog;
use tracker_lab::pace::{pause, slow};
use tracker_lab::tun::Tunnel;

use super::line;
use super::stage::{Expected, Props, Row, Stage, forwards};
use crate::forge;

const NO_REPLY: Expected = Expected::down("no-reply");
const CORRUPT: Expected = Expected::down("corrupt");
const WRONG_PATH: Expected = Expected::down("wrong-path");
const UNREACHABLE: Expected = Expected::down("unreachable");
const REFUSED: Expected = Expected::down("refused");
const INTERFACE_DOWN: Expected = Expected::down("interface-down");
const STAYS: Expected = Expected::Stays;

/// All rows, in the order of the table.
pub fn all() -> Vec<Row> {
    [
        drops(),
        answers_for_others(),
        translates(),
        carries_badly(),
        keeps_state(),
        judges_flows(),
        eats_big_packets(),
        says_so(),
        passes_elsewhere(),
        cannot_send(),
        nothing_is_wrong(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The operator's neighbour entry is still permanent.
fn is_permanent(stage: &mut Stage) -> Result<()> {
    let entry = stage.lab.hub.run("ip neigh show 10.9.0.2 dev eth1")?;
    ensure!(entry.contains("PERMANENT"), "the entry is {entry:?}");
    Ok(())
}

/// It drops.
fn drops() -> Vec<Row> {
    vec![
        Row::new("drops everything")
            .icmp(NO_REPLY)
            .udp(NO_REPLY)
            .tcp(NO_REPLY)
            .stamp(NO_REPLY)
            .setup(|lab, props| props.listen(lab.service()))
            .breaks(|stage| stage.service().break_forwarding())
            .proves(|stage| {
                let endpoint = stage.service().endpoint;
                ensure!(
                    stage.lab.hub.pings(endpoint)?,
                    "its own address is mute too"
                );
                Ok(())
            })
            .mends(|stage| stage.mend()),
        Row::new("drops everything, answers no ARP; its neighbour entry is permanent")
            .icmp(NO_REPLY)
            .v4()
            .setup(|lab, _| {
                let firewall = &lab.service().firewall;
                firewall.ip("link set eth0 address 02:00:00:00:09:02\n")?;
                firewall.sysctl("net/ipv4/conf/eth0/arp_ignore", "8")?;
                lab.hub
                    .ip("neigh replace 10.9.0.2 lladdr 02:00:00:00:09:02 dev eth1 nud permanent\n")
            })
            .breaks(|stage| stage.service().break_forwarding())
            .proves(is_permanent)
            .mends(|stage| {
                is_permanent(stage)?;
                stage.mend()
            }),
        Row::new("drops replies, passes probes")
            .icmp(NO_REPLY)
            .breaks(|stage| stage.forbid("iifname eth1 drop"))
            .proves(|stage| forwards(stage, true))
            .mends(|stage| stage.mend()),
        Row::new("drops probes, passes the other direction")
            .icmp(NO_REPLY)
            .breaks(|stage| stage.forbid("iifname eth0 drop"))
            .proves(|stage| forwards(stage, false))
            .mends(|stage| stage.mend()),
        Row::new("drops every other probe")
            .icmp(STAYS)
            .counts("lost")
            .v4()
            .breaks(|stage| stage.forbid("iifname eth0 numgen inc mod 2 == 0 drop")),
        Row::new("limits the rate to about every other probe")
            .watch("icmp", "fall = 4", STAYS)
            .counts("lost")
            .v4()
            .breaks(|stage| {
                stage.forbid(
                    "iifname eth0 limit rate 10/second burst 1 packets accept
                     iifname eth0 drop",
                )
            }),
        Row::new("limits the rate to one probe of twenty")
            .icmp(NO_REPLY)
            .v4()
            .breaks(|stage| {
                stage.forbid(
                    "iifname eth0 limit rate 1/second burst 1 packets accept
                     iifname eth0 drop",
                )
            })
            .mends(|stage| stage.mend()),
        Row::new("fails open: passes what it must stop")
            .icmp(STAYS)
            .watch(
                "udp, silence",
                "probe = \"udp\"\nport = 7007\nexpect = \"silence\"",
                Expected::down("unexpected-reply"),
            )
            .setup(|lab, props| {
                props.listen(lab.service())?;
                let rule = "add rule inet firewall outage udp dport 7007 drop\n";
                lab.service().firewall.nft(rule)
            })
            .breaks(|stage| stage.mend())
            .mends(|stage| stage.forbid("udp dport 7007 drop")),
    ]
}

/// The host is never asked. A proxy that answers SYNs is one more tracker of these rows.
fn answers_for_others() -> Vec<Row> {
    let proxy = |fault| {
        Row::new(fault)
            .setup(|lab, props| {
                props.listen(lab.service())?;
                lay_line(lab, props)
            })
            .mends(|stage| stage.line(tracker_lab::tun::faithful()))
    };
    vec![
        proxy("answers for the host, in words of its own")
            .icmp(NO_REPLY)
            .udp(NO_REPLY)
            .breaks(|stage| {
                stage.line(line::proxy(|_| {
                    b"Service temporarily unavailable, \
                but this is long enough for a probe"
                        .to_vec()
                }))
            }),
        proxy("answers for the host, with a mark that it made up")
            .icmp(CORRUPT)
            .counts("corrupt")
            .udp(CORRUPT)
            .counts("corrupt")
            .breaks(|stage| {
                stage.line(line::proxy(|mut payload| {
                    // Right but for the token.
                    if let Some(token) = payload.get_mut(24..32) {
                        token.fill(0x55);
                    }
                    payload
                }))
            }),
        proxy("answers for the host, from a cache")
            .icmp(NO_REPLY)
            .udp(NO_REPLY)
            .breaks(|stage| stage.line(line::cache())),
        // A host that sees a probe can answer it. The documentation says so, and this row fails if it changes.
        proxy("answers for the host, word for word (cannot be told)")
            .icmp(STAYS)
            .udp(STAYS)
            .breaks(|stage| stage.line(line::proxy(|payload| payload))),
    ]
}

/// It translates addresses and ports.
fn translates() -> Vec<Row> {
    vec![
        Row::new("hides the hub behind addresses and ports of its own")
            .icmp(STAYS)
            .udp(STAYS)
            .watch("icmp, rotate", "flow = \"rotate\"", STAYS)
            .watch(
                "udp, rotate",
                "probe = \"udp\"\nport = 7007\nflow = \"rotate\"",
                STAYS,
            )
            .setup(|lab, props| props.listen(lab.service()))
            .breaks(|stage| {
                stage.service().firewall.nft(
                    "table inet nat { chain out { type nat hook postrouting priority srcnat;
                       oifname eth1 meta l4proto udp masquerade to :20000-29999 random
                       oifname eth1 masquerade\n}\n}\n",
                )
            })
            .proves(|stage| {
                let servers = stage.props.servers.as_ref();
                let (echo, ..) = servers.context("find the echo service")?;
                let is_its_own = |port| (20_000..30_000).contains(&port);
                let mut seen = echo.seen().into_iter();
                ensure!(seen.any(|from| is_its_own(from.port())), "no translation");
                Ok(())
            }),
        Row::new("replies in the name of another address")
            .icmp(NO_REPLY)
            .counts("elsewhere")
            .detail(
                "replies come from 10.20.0.66",
                "replies come from 2001:db8:20::66",
            )
            .breaks(|stage| {
                stage.forbid(
                    "iifname eth1 ip saddr 10.20.0.9 ip saddr set 10.20.0.66
                     iifname eth1 ip6 saddr 2001:db8:20::9 ip6 saddr set 2001:db8:20::66",
                )
            })
            .mends(|stage| stage.mend()),
        Row::new("forgets where it has to translate a destination")
            .watch("old flow", "", STAYS)
            .watch("new flows", "flow = \"rotate\"", NO_REPLY)
            .behind("10.20.0.77", "2001:db8:20::77")
            .setup(|lab, _| {
                let firewall = &lab.service().firewall;
                // The kernel tracks connections only as long as a rule asks for it (Linux 6.18).
                firewall.nft(&format!(
                    "{DNAT}table inet state {{ chain forward {{ type filter hook forward priority -10;
                       ct state established accept\n}}\n}}\n"
                ))
            })
            .breaks(|stage| stage.service().firewall.nft("flush chain inet nat in\n"))
            .mends(|stage| stage.service().firewall.nft(DNAT)),
    ]
}

const DNAT: &str = "table inet nat { chain in { type nat hook prerouting priority dstnat;
    ip daddr 10.20.0.77 dnat ip to 10.20.0.9
    ip6 daddr 2001:db8:20::77 dnat ip6 to 2001:db8:20::9\n}\n}\n";

/// A tunnel takes the place of the cable between firewall and host.
fn lay_line(lab: &Lab, props: &mut Props) -> Result<()> {
    let service = lab.service();
    props.line = Some(Tunnel::new("line", [&service.firewall, &service.host])?);
    service
        .firewall
        .nft("add rule inet firewall forward iifname line accept\n")?;
    service.firewall.ip(&format!(
        "link set line up\nroute replace {}/32 dev line\nroute replace {}/128 dev line\n",
        service.behind, service.behind6
    ))?;
    service.host.ip(&format!(
        "link set line up\nroute replace {}/32 dev line\nroute replace {}/128 dev line\n",
        service.hub_address, service.hub_address6
    ))
}

/// What a bad line does.
fn carries_badly() -> Vec<Row> {
    let carries = |fault| {
        Row::new(fault)
            .setup(|lab, props| {
                props.listen(lab.service())?;
                lay_line(lab, props)
            })
            .mends(|stage| stage.line(tracker_lab::tun::faithful()))
    };
    vec![
        carries("delays replies by 300 ms")
            .watch("timeout 500 ms", "timeout = \"500ms\"", STAYS)
            .watch("timeout 200 ms", "timeout = \"200ms\"", NO_REPLY)
            .counts("late")
            .breaks(|stage| stage.line(line::delay(slow(Duration::from_millis(300))))),
        carries("doubles each reply")
            .icmp(STAYS)
            .counts("duplicate")
            .udp(STAYS)
            .counts("duplicate")
            .breaks(|stage| stage.line(line::double())),
        carries("lets replies overtake each other")
            .icmp(STAYS)
            .udp(STAYS)
            .breaks(|stage| stage.line(line::reorder(slow(Duration::from_millis(120)))))
            .proves(|stage| {
                let status = stage.tracker.status()?;
                let shown = status.tracker("icmp-4", stage.service().behind);
                let longest_us = shown["rtt_us"]["max"].as_u64();
                ensure!(longest_us >= Some(120_000), "none was overtaken: {shown}");
                Ok(())
            }),
        carries("flips a bit in each reply")
            .icmp(CORRUPT)
            .counts("corrupt")
            .udp(CORRUPT)
            .counts("corrupt")
            .breaks(|stage| stage.line(line::flip_a_bit())),
        carries("exchanges words in each reply, with right checksums")
            .icmp(CORRUPT)
            .counts("corrupt")
            .udp(CORRUPT)
            .counts("corrupt")
            .breaks(|stage| stage.line(line::exchange_words())),
        carries("cuts replies short")
            .icmp(NO_REPLY)
            .udp(NO_REPLY)
            .breaks(|stage| stage.line(line::cut())),
    ]
}

/// It knows the sessions that it has, and takes no new ones.
fn keeps_state() -> Vec<Row> {
    let stateful = |fault| {
        Row::new(fault)
            .watch("icmp, fixed", "", STAYS)
            .watch("icmp, rotate", "flow = \"rotate\"", NO_REPLY)
            .watch("udp, fixed", "probe = \"udp\"\nport = 7007", STAYS)
            .watch(
                "udp, rotate",
                "probe = \"udp\"\nport = 7007\nflow = \"rotate\"",
                NO_REPLY,
            )
            .setup(|lab, props| {
                props.listen(lab.service())?;
                // It is this hook that makes the kernel track connections.
                lab.service().firewall.nft(
                    "table inet state { chain full {}
                     chain forward { type filter hook forward priority -10;
                       ct state established accept\nct state new jump full\n}\n}\n",
                )
            })
            .mends(|stage| {
                let firewall = &stage.service().firewall;
                firewall.nft("flush chain inet state full\n")
            })
    };
    vec![
        stateful("takes no new sessions").breaks(|stage| {
            let firewall = &stage.service().firewall;
            firewall.nft("add rule inet state full drop\n")
        }),
        // The kernel's own nf_conntrack_max is one for all namespaces, and read-only in them (Linux 6.18).
        stateful("runs out of room for sessions").breaks(|stage| {
            let firewall = &stage.service().firewall;
            firewall.nft("add rule inet state full ct count over 2 drop\n")
        }),
    ]
}

/// What it decided for a flow, or a port, it goes on doing to it.
fn judges_flows() -> Vec<Row> {
    vec![
        Row::new("condemns flows, for an hour")
            .icmp(NO_REPLY)
            .udp(NO_REPLY)
            .tcp(NO_REPLY)
            .stamp(NO_REPLY)
            .v4()
            .setup(|lab, props| {
                props.listen(lab.service())?;
                lab.service().firewall.nft(CONDEMNS)
            })
            .breaks(|stage| stage.service().firewall.nft(CONDEMN))
            .mends(|stage| {
                let firewall = &stage.service().firewall;
                firewall.nft("flush chain inet condemned judge\n")
            }),
        Row::new("eats the hub's resets: the server holds each connection")
            .tcp(STAYS)
            .watch(
                "tcp, rotate",
                "probe = \"tcp\"\nport = 443\nflow = \"rotate\"",
                STAYS,
            )
            .setup(|lab, props| props.listen(lab.service()))
            .breaks(|stage| stage.forbid("iifname eth0 tcp flags & rst == rst drop")),
        Row::new("loses one packet in a hundred, each way")
            .icmp(STAYS)
            .tcp(STAYS)
            .setup(|lab, props| props.listen(lab.service()))
            .breaks(|stage| stage.forbid("numgen random mod 100 < 1 drop")),
    ]
}

/// While `judge` has rules, whatever comes from the hub is dropped for an hour.
const CONDEMNS: &str = "table inet condemned {
    set ports { type ipv4_addr . inet_service; size 65536; flags dynamic,timeout; timeout 1h; }
    set ids { typeof icmp id; size 65536; flags dynamic,timeout; timeout 1h; }
    chain judge {}
    chain forward { type filter hook forward priority -5;
      iifname eth0 jump judge
      iifname eth0 meta l4proto { tcp, udp } ip saddr . th sport @ports drop
      iifname eth0 icmp id @ids drop\n}\n}\n";
const CONDEMN: &str = "add rule inet condemned judge meta l4proto { tcp, udp } update @ports { ip saddr . th sport } drop
    add rule inet condemned judge icmp type echo-request update @ids { icmp id } drop\n";

/// The way behind it takes smaller packets only.
fn eats_big_packets() -> Vec<Row> {
    let narrow = |fault| {
        Row::new(fault)
            .watch("32 bytes", "", STAYS)
            .breaks(|stage| {
                let firewall = &stage.service().firewall;
                firewall.ip("link set eth1 mtu 1300\n")
            })
            .mends(|stage| {
                let firewall = &stage.service().firewall;
                firewall.ip("link set eth1 mtu 1500\n")
            })
    };
    let full = "payload = 1400";
    vec![
        narrow("eats big packets, and does not say so")
            .watch("1400 bytes", full, NO_REPLY)
            .setup(|lab, _| {
                lab.service().firewall.nft(
                    "table inet mute { chain out { type filter hook output priority 0;
                       icmp type destination-unreachable drop\nicmpv6 type packet-too-big drop\n}\n}\n",
                )
            }),
        narrow("eats big packets, and says so")
            .watch("1400 bytes", full, UNREACHABLE)
            .detail("ICMP type 3 code 4", "ICMPv6 type 2 code 0"),
    ]
}

/// The service, or a host behind it, says by ICMP what is wrong.
fn says_so() -> Vec<Row> {
    vec![
        Row::new("rejects")
            .icmp(UNREACHABLE)
            .detail("ICMP type 3 code 13", "ICMPv6 type 1 code 1")
            .udp(UNREACHABLE)
            .detail("ICMP type 3 code 13", "ICMPv6 type 1 code 1")
            .tcp(UNREACHABLE)
            .detail("ICMP type 3 code 13", "ICMPv6 type 1 code 1")
            .stamp(UNREACHABLE)
            .detail("ICMP type 3 code 13", "ICMPv6 type 1 code 1")
            .setup(|lab, props| props.listen(lab.service()))
            .breaks(|stage| stage.forbid("reject with icmpx type admin-prohibited"))
            .mends(|stage| stage.mend()),
        Row::new("resets connections, in the host's name")
            .tcp(REFUSED)
            .watch(
                "tcp, refused = up",
                "probe = \"tcp\"\nport = 443\nrefused = \"up\"",
                STAYS,
            )
            .icmp(STAYS)
            .setup(|lab, props| props.listen(lab.service()))
            .breaks(|stage| stage.forbid("meta l4proto tcp reject with tcp reset"))
            .mends(|stage| stage.mend()),
        Row::new("rejects, and says so once a second only")
            .icmp(UNREACHABLE)
            .detail("ICMP type 3 code 13", "ICMPv6 type 1 code 1")
            .setup(|lab, _| {
                // As it is by default; the harness has no limits.
                let firewall = &lab.service().firewall;
                firewall.sysctl("net/ipv4/icmp_ratelimit", "1000")?;
                firewall.sysctl("net/ipv6/icmp/ratelimit", "1000")
            })
            .breaks(|stage| stage.forbid("reject with icmpx type admin-prohibited"))
            .proves(|stage| {
                // Most of the time there is no error about the latest losses.
                for _ in 0..30 {
                    pause(Duration::from_millis(100));
                    let status = stage.tracker.status()?;
                    for name in ["icmp-4", "icmp-6"] {
                        let cause = status.cause(name);
                        // A machine that is busy may have it `stalled` for a moment.
                        ensure!(cause != "no-reply", "{name}: the cause became {cause}");
                    }
                }
                Ok(())
            })
            .mends(|stage| stage.mend()),
        Row::new("loses its route")
            .icmp(UNREACHABLE)
            .detail("ICMP type 3 code 0", "ICMPv6 type 1 code 0")
            .breaks(|stage| {
                let firewall = &stage.service().firewall;
                firewall.ip("route del 10.20.0.0/16\nroute del 2001:db8:20::/48\n")
            })
            .mends(|stage| {
                stage
                    .service()
                    .firewall
                    .ip("route add 10.20.0.0/16 via 10.30.0.2\n\
                     route add 2001:db8:20::/48 via 2001:db8:30::2\n")
            }),
        Row::new("routes in a loop")
            .icmp(UNREACHABLE)
            .detail("ICMP type 11 code 0", "ICMPv6 type 3 code 0")
            .setup(|lab, _| {
                let host = &lab.service().host;
                host.sysctl("net/ipv4/ip_forward", "1")?;
                host.sysctl("net/ipv6/conf/all/forwarding", "1")
            })
            .breaks(|stage| {
                let host = &stage.service().host;
                host.ip(
                    "address del 10.20.0.9/32 dev eth0\naddress del 2001:db8:20::9/128 dev eth0\n",
                )
            })
            .mends(|stage| {
                let host = &stage.service().host;
                host.ip(
                    "address add 10.20.0.9/32 dev eth0\naddress add 2001:db8:20::9/128 dev eth0\n",
                )
            }),
        Row::new("passes, but nobody listens on the host's port")
            .udp(REFUSED)
            .detail("ICMP type 3 code 3", "ICMPv6 type 1 code 4")
            .stamp(REFUSED)
            .detail("ICMP type 3 code 3", "ICMPv6 type 1 code 4")
            .tcp(REFUSED)
            .icmp(STAYS)
            .setup(|lab, props| props.listen(lab.service()))
            .breaks(|stage| {
                stage.props.servers = None;
                Ok(())
            })
            .mends(|stage| {
                let service = stage.lab.service();
                stage.props.listen(service)
            }),
    ]
}

/// Replies come another way.
fn passes_elsewhere() -> Vec<Row> {
    vec![
        Row::new("is passed by: replies come on the hub's interface, in a VLAN")
            .icmp(NO_REPLY)
            .v4()
            .setup(|lab, props| {
                // In the frame: of a tag beside the packet, native XDP is told nothing.
                lab.service().firewall.run("ethtool -K eth0 txvlan off")?;
                props.tag = Some(Foreign::new(lab, Hook::Tag(200), "tag")?);
                Ok(())
            })
            .breaks(|stage| {
                let tag = stage.props.tag.as_ref().context("find the program")?;
                let firewall = &stage.service().firewall;
                firewall.run("tc qdisc add dev eth0 clsact")?;
                firewall.run(&format!(
                    "tc filter add dev eth0 egress bpf direct-action pinned {}",
                    tag.pin()
                ))?;
                Ok(())
            })
            .proves(|stage| {
                let tag = stage.props.tag.as_ref().context("find the program")?;
                ensure!(tag.seen()? >= 3, "no reply was tagged");
                let shown = stage.tracker.status()?;
                let wrong = shown.count("icmp-4", "wrong_path");
                ensure!(wrong == 0, "{wrong} are told to be on the wrong path");
                Ok(())
            })
            .mends(|stage| {
                let firewall = &stage.service().firewall;
                firewall.run("tc qdisc del dev eth0 clsact").map(drop)
            }),
        Row::new("is passed by: replies come around it")
            .icmp(WRONG_PATH)
            .counts("wrong_path")
            .detail("a reply arrived on bypass", "a reply arrived on bypass")
            .setup(|lab, _| lay_bypass(lab))
            .breaks(|stage| answer_by_bypass(stage.lab, true))
            .mends(|stage| answer_by_bypass(stage.lab, false)),
        Row::new("is passed by, and then nothing comes at all")
            .icmp(NO_REPLY)
            .setup(|lab, _| lay_bypass(lab))
            .breaks(|stage| {
                answer_by_bypass(stage.lab, true)?;
                stage.tracker.wait_verdict("icmp-4", "down", "wrong-path")?;
                stage.tracker.wait_verdict("icmp-6", "down", "wrong-path")?;
                stage.service().break_forwarding()
            })
            .mends(|stage| {
                answer_by_bypass(stage.lab, false)?;
                stage.mend()
            }),
        Row::new("is passed by within its segment (return_hop)")
            .watch("icmp", "return_hop = \"endpoint\"", WRONG_PATH)
            .counts("wrong_path")
            .v4()
            .setup(|lab, _| {
                lab.service()
                    .firewall
                    .ip("link add other link eth0 type macvlan mode bridge\n\
                     address add 10.9.0.3/24 dev other noprefixroute\nlink set other up\n")
            })
            .breaks(|stage| {
                stage
                    .service()
                    .firewall
                    .ip("route add 10.9.0.1/32 dev other\n")
            })
            .mends(|stage| {
                stage
                    .service()
                    .firewall
                    .ip("route del 10.9.0.1/32 dev other\n")
            }),
        Row::new("is on a longer way than it was (return_ttl)")
            .watch("icmp", "return_ttl = 63", WRONG_PATH)
            .counts("wrong_path")
            .breaks(|stage| {
                stage.forbid(
                    "iifname eth1 ip ttl set 40
                     iifname eth1 ip6 hoplimit set 40",
                )
            })
            .mends(|stage| stage.mend()),
    ]
}

/// Connects the hub's `bypass` and the host directly, past the firewall.
fn lay_bypass(lab: &Lab) -> Result<()> {
    let host = &lab.service().host;
    lab.hub.ip(&format!(
        "link add bypass type veth peer name eth9 netns {}\n\
         address add 10.66.0.1/24 dev bypass\naddress add 2001:db8:66::1/64 dev bypass\n\
         link set bypass up\n",
        host.name()
    ))?;
    host.ip(
        "address add 10.66.0.2/24 dev eth9\naddress add 2001:db8:66::2/64 dev eth9\n\
         link set eth9 up\n",
    )
}

/// The host's replies to the hub leave it by the bypass, or no longer.
fn answer_by_bypass(lab: &Lab, is_bypassed: bool) -> Result<()> {
    let verb = if is_bypassed { "add" } else { "del" };
    lab.service().host.ip(&format!(
        "route {verb} 10.9.0.1/32 via 10.66.0.1\nroute {verb} 2001:db8:9::1/128 via 2001:db8:66::1\n"
    ))
}

/// The hub can't send, or only into the void.
fn cannot_send() -> Vec<Row> {
    vec![
        Row::new("is no longer there: the hub's interface is deleted")
            .icmp(Expected::down("interface-missing"))
            .breaks(|stage| stage.lab.hub.ip("link del eth1\n"))
            .mends(|stage| stage.service().plug(&stage.lab.hub)),
        Row::new("the hub's interface is down")
            .icmp(INTERFACE_DOWN)
            .v4()
            .breaks(|stage| stage.lab.hub.ip("link set eth1 down\n"))
            .mends(|stage| stage.lab.hub.ip("link set eth1 up\n")),
        Row::new("its cable is pulled")
            .icmp(INTERFACE_DOWN)
            .v4()
            .breaks(|stage| stage.service().firewall.ip("link set eth0 down\n"))
            .mends(|stage| stage.service().firewall.ip("link set eth0 up\n")),
        Row::new("its cable is pulled, a trunk with a hundred interfaces")
            .icmp(INTERFACE_DOWN)
            .v4()
            .setup(|lab, _| {
                let interfaces = (0..100).map(|at| {
                    format!(
                        "link add link eth1 name m{at} type macvlan mode bridge\n\
                         address add 10.40.{at}.1/24 dev m{at}\nlink set m{at} up\n"
                    )
                });
                lab.hub.ip(&interfaces.collect::<String>())
            })
            .breaks(|stage| {
                // By one process: between two, a busy machine would leave the cable in for long enough to be up.
                let flap = "link set eth0 down\nlink set eth0 up\n";
                let lines = format!("{}link set eth0 down\n", flap.repeat(3));
                stage.service().firewall.ip(&lines)
            })
            .mends(|stage| stage.service().firewall.ip("link set eth0 up\n")),
        Row::new("its own address no longer answers ARP")
            .icmp(Expected::down("next-hop-unresolved"))
            .v4()
            .setup(|lab, _| lab.doubt_neighbours_soon())
            .breaks(|stage| {
                let firewall = &stage.service().firewall;
                firewall.ip("address del 10.9.0.2/24 dev eth0\naddress add 10.9.0.3/24 dev eth0\n")
            })
            .mends(|stage| {
                let firewall = &stage.service().firewall;
                firewall.ip("address add 10.9.0.2/24 dev eth0\n")
            }),
        Row::new("the hub's interface no longer takes the packet")
            .watch("32 bytes", "", STAYS)
            .watch(
                "1400 bytes",
                "payload = 1400",
                Expected::Becomes("unknown", "send-failed"),
            )
            .breaks(|stage| stage.lab.hub.ip("link set eth1 mtu 1300\n"))
            .mends(|stage| stage.lab.hub.ip("link set eth1 mtu 1500\n")),
        Row::new("the hub loses its address")
            .icmp(Expected::Becomes("unknown", "send-failed"))
            .v4()
            .breaks(|stage| stage.lab.hub.ip("address del 10.9.0.1/24 dev eth1\n"))
            .mends(|stage| stage.lab.hub.ip("address add 10.9.0.1/24 dev eth1\n")),
    ]
}

/// The service passes traffic, and its verdict must stay.
fn nothing_is_wrong() -> Vec<Row> {
    let healthy = |fault| Row::new(fault).icmp(STAYS);
    vec![
        healthy("none: the daemon is stopped for 1.5 s").breaks(|stage| {
            stage.tracker.signal(Signal::SIGSTOP)?;
            pause(Duration::from_millis(1_500));
            stage.tracker.signal(Signal::SIGCONT)
        }),
        Row::new("none but one lost probe while the daemon is stopped")
            .watch(
                "icmp",
                "interval = \"500ms\"\ntimeout = \"450ms\"",
                Expected::StaysBut("stalled"),
            )
            .v4()
            .alive(3)
            .breaks(|stage| {
                stage.service().break_forwarding()?;
                let before = stage.tracker.status()?.count("icmp-4", "sent");
                stage
                    .tracker
                    .wait_for("a probe to be lost", SOON, |status| {
                        status.count("icmp-4", "sent") > before
                    })?;
                stage.tracker.signal(Signal::SIGSTOP)?;
                pause(Duration::from_millis(1_200));
                stage.mend()?;
                stage.tracker.signal(Signal::SIGCONT)
            }),
        healthy("none: the daemon is killed, restarted, and replaced").breaks(|stage| {
            stage.tracker.kill()?;
            stage.tracker.keep(true);
            stage.tracker.run()?;
            stage.wait_alive(5)?;
            stage.tracker.terminate()?;
            stage.tracker.run()
        }),
        healthy("none: reloads, services that come and go").breaks(|stage| {
            let service = stage.service();
            let more = service.toml("other");
            ensure!(stage.tracker.reload(stage.config(&more))?, "not reloaded");
            let endpoint = service.endpoint;
            for name in ["third", "fourth"] {
                stage.tracker.service(&format!(
                    "add {name} --endpoint {endpoint} --behind 10.20.0.9"
                ))?;
            }
            stage.wait_alive(5)?;
            stage.tracker.service("remove third")?;
            ensure!(stage.tracker.reload(stage.config(""))?, "not reloaded");
            Ok(())
        }),
        healthy("none: the wall clock steps by hours and years")
            .setup(|_, props| {
                props.clock = Some(SteppedClock::new()?);
                Ok(())
            })
            .breaks(|stage| {
                for hours in [5, -7, 0, 200_000, -100_000, 1] {
                    let clock = stage.props.clock.as_ref().context("find the clock")?;
                    clock.step(hours * 3_600)?;
                    stage.wait_alive(4)?;
                }
                Ok(())
            }),
        healthy("none: the neighbour table is flushed").breaks(|stage| {
            for _ in 0..3 {
                stage.lab.hub.ip("neigh flush dev eth1\n")?;
                stage.wait_alive(4)?;
            }
            Ok(())
        }),
        healthy("none: 600 other interfaces are there at the start")
            .setup(|lab, _| {
                let pairs = (0..300).map(|at| {
                    format!(
                        "link add o{at} type veth peer name p{at}\n\
                         link set o{at} up\nlink set p{at} up\n"
                    )
                });
                lab.hub.ip(&pairs.collect::<String>())
            })
            .breaks(|stage| stage.wait_alive(4)),
        healthy("none: 20,000 routes come and go")
            .setup(|lab, _| {
                lab.hub.ip("link add w0 type veth peer name w1\n\
                     link set w0 up\nlink set w1 up\naddress add 192.0.2.1/24 dev w0\n")
            })
            .breaks(|stage| {
                let routes = |word: &str| {
                    let routes = (0..20_000).map(|at| {
                        let (high, low) = (at >> 8, at & 255);
                        format!("route {word} 100.{high}.{low}.0/24 via 192.0.2.2\n")
                    });
                    stage.lab.hub.ip(&routes.collect::<String>())
                };
                routes("add")?;
                routes("del")?;
                stage.wait_alive(4)
            }),
        healthy("none: all processors are busy")
            .alone()
            .breaks(|stage| {
                let processors = std::thread::available_parallelism()?.get();
                std::thread::scope(|scope| {
                    for _ in 0..2 * processors {
                        scope.spawn(|| {
                            let end = Instant::now() + slow(Duration::from_secs(1));
                            while Instant::now() < end {
                                std::hint::spin_loop();
                            }
                        });
                    }
                });
                stage.wait_alive(4)
            }),
        healthy("none: a real-time hog has the daemon's processor")
            .alone()
            .breaks(|stage| {
                // The last one: others' interrupts are mostly on the first.
                let processor = std::thread::available_parallelism()?.get() - 1;
                hog::confine(stage.tracker.pid()?, processor)?;
                for ms in [300, 1_500] {
                    hog::hog(processor, slow(Duration::from_millis(ms)))?;
                    stage.wait_alive(4)?;
                }
                Ok(())
            }),
        Row::new("none: a flood of forged and replayed replies")
            // What is lost to a queue that overflows is not the flood's verdict.
            .watch("icmp", "fall = 6", STAYS)
            .counts("corrupt")
            .v4()
            .alone()
            .breaks(|stage| {
                let service = stage.service();
                let reply = crate::forge::capture(service)?;
                let frames: Vec<_> = forge::forgeries(&reply).into_values().collect();
                let time = slow(Duration::from_millis(1_500));
                flood(&service.firewall, "eth0", &frames, time).map(drop)
            }),
    ]
}
