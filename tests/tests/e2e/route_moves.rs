//! The outgoing interface is found from the endpoint's own route, and follows it: for services of the file and for
//! those that were added, over IPv4 and IPv6.

use std::fmt::Display;

use anyhow::Result;
use tracker_lab::daemon::SOON;
use tracker_lab::slow_listener::SlowListener;
use tracker_lab::status::Status;
use tracker_lab::{Lab, Tracker, skip};

/// A hub with two services that could stand in for each other: each has the first one's endpoint, and answers for
/// everything behind.
fn lab() -> Result<Lab> {
    let lab = Lab::with_services(2)?;
    for service in lab.services() {
        service.answer_for_all()?;
    }
    let other = &lab.services()[1].firewall;
    other.ip("address add 10.9.0.2/32 dev eth0\naddress add 2001:db8:9::2/128 dev eth0 nodad\n")?;
    Ok(lab)
}

fn toml(endpoint: impl Display, behind: impl Display) -> String {
    format!("[[service]]\nname = \"fw-1\"\nendpoint = \"{endpoint}\"\nbehind = [\"{behind}\"]\n")
}

/// A daemon with the service `fw-1`, given by endpoint and behind alone: from its file, or added.
fn start(lab: &Lab, at_run_time: bool, is_ipv6: bool) -> Result<Tracker<'_>> {
    let service = lab.service();
    let (endpoint, behind) = if is_ipv6 {
        (service.endpoint6.to_string(), service.behind6.to_string())
    } else {
        (service.endpoint.to_string(), service.behind.to_string())
    };
    if at_run_time {
        let tracker = Tracker::start(&lab.hub, "")?;
        tracker.service(&format!("add fw-1 --endpoint {endpoint} --behind {behind}"))?;
        Ok(tracker)
    } else {
        Tracker::start(&lab.hub, &toml(endpoint, behind))
    }
}

fn interface(status: &Status) -> &str {
    status.member("fw-1", "active")["interface"]
        .as_str()
        .unwrap_or_default()
}

/// Waits until probes go out by an interface and come back.
fn wait_by(tracker: &Tracker<'_>, wanted: &str) -> Result<()> {
    let what = format!("fw-1 to be up by {wanted}");
    tracker.wait_for(&what, SOON, |status| {
        status.verdict("fw-1") == "up" && interface(status) == wanted
    })?;
    let status = tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(interface(&status), wanted);
    Ok(())
}

fn each(check: impl Fn(&Lab, &Tracker<'_>, bool) -> Result<()>) -> Result<()> {
    for at_run_time in [false, true] {
        for is_ipv6 in [false, true] {
            let lab = lab()?;
            let tracker = start(&lab, at_run_time, is_ipv6)?;
            wait_by(&tracker, "eth1")?;
            check(&lab, &tracker, is_ipv6)?;
        }
    }
    Ok(())
}

#[test]
fn the_route_moves_to_another_device_and_back() -> Result<()> {
    each(|lab, tracker, is_ipv6| {
        let host = if is_ipv6 {
            "2001:db8:9::2/128"
        } else {
            "10.9.0.2/32"
        };
        let history = tracker.history("fw-1")?;
        let before = lab.services()[1].forwarded()?;
        lab.hub.ip(&format!("route add {host} dev eth2\n"))?;
        wait_by(tracker, "eth2")?;
        assert!(lab.services()[1].forwarded()? > before);
        lab.hub.ip(&format!("route replace {host} dev eth1\n"))?;
        wait_by(tracker, "eth1")?;
        lab.hub.ip(&format!("route replace {host} dev eth2\n"))?;
        wait_by(tracker, "eth2")?;
        lab.hub.ip(&format!("route del {host} dev eth2\n"))?;
        wait_by(tracker, "eth1")?;
        let what = format!(
            "up all the time:\n{}\n{}",
            tracker_lab::daemon::lines(&tracker.events()?),
            tracker.log()
        );
        assert_eq!(tracker.history("fw-1")?, history, "{what}");
        Ok(())
    })
}

/// The kernel tells of an IPv6 route before look-ups find it: a look-up in between finds the way of before, and is not the
/// last one.
#[test]
fn a_route_that_is_told_before_it_is_found() -> Result<()> {
    /// `RTNLGRP_IPV6_ROUTE`.
    const IPV6_ROUTE: u32 = 11;
    let lab = lab()?;
    let Some(_slow) = SlowListener::new(&lab.hub, IPV6_ROUTE)? else {
        skip!("this kernel has no `may_goto` (Linux 6.9)");
    };
    let tracker = start(&lab, false, true)?;
    wait_by(&tracker, "eth1")?;
    lab.hub.ip("route add 2001:db8:9::2/128 dev eth2\n")?;
    wait_by(&tracker, "eth2")
}

#[test]
fn the_route_moves_to_where_the_endpoint_is_not() -> Result<()> {
    let lab = lab()?;
    let other = &lab.services()[1].firewall;
    other.ip("address del 10.9.0.2/32 dev eth0\n")?;
    let tracker = start(&lab, true, false)?;
    wait_by(&tracker, "eth1")?;
    lab.hub.ip("route add 10.9.0.2/32 dev eth2\n")?;
    let status = tracker.wait_verdict("fw-1", "down", "next-hop-unresolved")?;
    assert_eq!(interface(&status), "eth2");
    lab.hub.ip("route del 10.9.0.2/32 dev eth2\n")?;
    wait_by(&tracker, "eth1")
}

#[test]
fn the_route_goes_and_comes_back() -> Result<()> {
    each(|lab, tracker, is_ipv6| {
        let net = if is_ipv6 {
            "2001:db8:9::/64"
        } else {
            "10.9.0.0/24"
        };
        lab.hub.ip(&format!("route del {net} dev eth1\n"))?;
        tracker.wait_verdict("fw-1", "down", "interface-missing")?;
        // A gateway does not make the endpoint a neighbour.
        let default = if is_ipv6 {
            "::/0 via 2001:db8:9:1::2 dev eth2"
        } else {
            "default via 10.9.1.2"
        };
        lab.hub.ip(&format!("route add {default}\n"))?;
        // By then the daemon has seen it.
        tracker.service("add other --endpoint 10.9.1.2 --behind 10.20.1.9")?;
        tracker.wait_verdict("other", "up", "replied")?;
        let status = tracker.status()?;
        assert_eq!(status.cause("fw-1"), "interface-missing");
        lab.hub.ip(&format!("route add {net} dev eth1\n"))?;
        wait_by(tracker, "eth1")
    })
}

#[test]
fn a_rule_leads_to_another_table_and_back() -> Result<()> {
    each(|lab, tracker, is_ipv6| {
        let host = if is_ipv6 {
            "2001:db8:9::2/128"
        } else {
            "10.9.0.2/32"
        };
        lab.hub
            .ip(&format!("route add {host} dev eth2 table 100\n"))?;
        // Nothing but the rule changes from here on.
        let status = tracker.wait_alive(SOON, "fw-1")?;
        assert_eq!(interface(&status), "eth1");
        let family = if is_ipv6 { "-6" } else { "-4" };
        let rule = format!("to {host} lookup 100 priority 100");
        lab.hub.run(&format!("ip {family} rule add {rule}"))?;
        wait_by(tracker, "eth2")?;
        lab.hub.run(&format!("ip {family} rule del {rule}"))?;
        wait_by(tracker, "eth1")
    })
}

/// IPv4 routes vanish without a word when their interface is set down.
#[test]
fn an_interface_that_is_down_is_not_missing() -> Result<()> {
    each(|lab, tracker, is_ipv6| {
        lab.hub.ip("link set eth1 down\n")?;
        tracker.wait_verdict("fw-1", "down", "interface-down")?;
        // Routes that have nothing to do with it do not change that.
        lab.hub.ip("route add 192.0.2.0/24 dev eth2\n")?;
        lab.hub.ip("route add 2001:db8:ff::/64 dev eth2\n")?;
        tracker.service("add other --endpoint 10.9.1.2 --behind 10.20.1.9")?;
        tracker.wait_verdict("other", "up", "replied")?;
        let status = tracker.status()?;
        assert_eq!(status.cause("fw-1"), "interface-down");
        lab.hub.ip("link set eth1 up\n")?;
        if is_ipv6 {
            // The kernel took the address along.
            lab.hub
                .ip("address add 2001:db8:9::1/64 dev eth1 nodad\n")?;
        }
        wait_by(tracker, "eth1")
    })
}

#[test]
fn the_next_best_route_takes_over_from_an_interface_that_is_down() -> Result<()> {
    each(|lab, tracker, is_ipv6| {
        let host = if is_ipv6 {
            "2001:db8:9::2/128"
        } else {
            "10.9.0.2/32"
        };
        lab.hub.ip(&format!(
            "route add {host} dev eth1 metric 10\nroute add {host} dev eth2 metric 20\n"
        ))?;
        wait_by(tracker, "eth1")?;
        if !is_ipv6 {
            // Of routes of IPv6 the kernel tells, which would draw attention to those of IPv4.
            lab.hub.sysctl("net/ipv6/conf/eth1/disable_ipv6", "1")?;
            tracker.wait_alive(SOON, "fw-1")?;
        }
        lab.hub.ip("link set eth1 down\n")?;
        wait_by(tracker, "eth2")
    })
}

#[test]
fn the_interface_is_deleted_and_made_again() -> Result<()> {
    each(|lab, tracker, _| {
        lab.hub.ip("route add default via 10.9.1.2\n")?;
        lab.hub.ip("link del eth1\n")?;
        tracker.wait_verdict("fw-1", "down", "interface-missing")?;
        lab.service().plug(&lab.hub)?;
        wait_by(tracker, "eth1")
    })
}

#[test]
fn the_interface_is_renamed() -> Result<()> {
    each(|lab, tracker, is_ipv6| {
        lab.hub
            .ip("link set eth1 down\nlink set eth1 name wan\nlink set wan up\n")?;
        if is_ipv6 {
            lab.hub.ip("address add 2001:db8:9::1/64 dev wan nodad\n")?;
        }
        wait_by(tracker, "wan")
    })
}

#[test]
fn no_route_at_first() -> Result<()> {
    let lab = lab()?;
    lab.hub.ip("route del 10.9.0.0/24 dev eth1\n")?;
    let tracker = start(&lab, true, false)?;
    tracker.wait_verdict("fw-1", "unknown", "interface-missing")?;
    lab.hub.ip("route add 10.9.0.2/32 dev eth1\n")?;
    wait_by(&tracker, "eth1")
}
