//! Replies that come back by the same interface, by another one, or by either.

use anyhow::Result;
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::{Config, Lab, Status, Tracker};

/// A service for each way of returning, over IPv4 and IPv6, through the same firewall.
fn every_way(lab: &Lab) -> String {
    let service = lab.service();
    let (v4, v6) = (service.endpoint, service.endpoint6);
    [
        ("same", ""),
        ("other", "returns = [\"eth2\"]"),
        ("either", "returns = [\"eth1\", \"eth2\"]"),
    ]
    .into_iter()
    .zip(1..)
    .flat_map(|((name, returns), last)| {
        [
            (name.to_owned(), v4.to_string(), format!("10.20.0.{last}")),
            (format!("{name}6"), v6.to_string(), format!("2001:db8:20::{last}")),
        ]
        .map(|(name, endpoint, behind)| {
            format!(
                "[[service]]\nname = \"{name}\"\nendpoint = \"{endpoint}\"\ninterface = \"eth1\"\nbehind = [\"{behind}\"]\n{returns}\n"
            )
        })
    })
    .collect()
}

const ALL: [&str; 6] = ["same", "same6", "other", "other6", "either", "either6"];

fn are(status: &Status, names: &[&str], verdict: &str, cause: &str) -> bool {
    names
        .iter()
        .all(|name| (status.verdict(name), status.cause(name)) == (verdict, cause))
}

#[test]
fn the_same_interface_another_and_either() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service.second_cable(&lab.hub, 2)?;
    service.answer_for_all()?;
    let tracker = Tracker::start(&lab.hub, Config::new(every_way(&lab)))?;
    // By each interface in turn, which is the wrong one for the services that expect the replies on the other.
    for round in 0..2 {
        let direct = tracker.wait_for("replies by eth1 alone", LATER, |status| {
            are(
                status,
                &["same", "same6", "either", "either6"],
                "up",
                "replied",
            ) && are(status, &["other", "other6"], "down", "wrong-path")
        })?;
        assert!(direct.tracker("other", "10.20.0.2")["wrong_path"].as_u64() >= Some(3));
        service.reply_by_cable(2)?;
        let asymmetric = tracker.wait_for("replies by eth2 alone", LATER, |status| {
            are(
                status,
                &["other", "other6", "either", "either6"],
                "up",
                "replied",
            ) && are(status, &["same", "same6"], "down", "wrong-path")
        })?;
        assert!(asymmetric.tracker("same", "10.20.0.1")["wrong_path"].as_u64() >= Some(3));
        for name in ["either", "either6"] {
            let history = tracker.history(name)?;
            // Undecided or down only before the lab was ready.
            let since = history.iter().skip_while(|(to, _)| to != "up");
            assert_eq!(since.count(), 1, "round {round}: {name} {history:?}");
            assert_eq!(asymmetric.count(name, "wrong_path"), 0, "{name}");
        }
        service.reply_directly()?;
    }
    service.reply_by_cable(2)?;
    tracker.wait_for("replies by eth2 alone", LATER, |status| {
        are(
            status,
            &["other", "other6", "either", "either6"],
            "up",
            "replied",
        )
    })?;

    service.break_forwarding()?;
    tracker.wait_for("nothing to pass", SOON, |status| {
        are(
            status,
            &["other", "other6", "either", "either6"],
            "down",
            "no-reply",
        ) && ALL.iter().all(|name| status.verdict(name) == "down")
    })?;
    service.mend()?;
    tracker.wait_for("what is expected on eth2 to pass again", LATER, |status| {
        are(
            status,
            &["other", "other6", "either", "either6"],
            "up",
            "replied",
        ) && ["same", "same6"]
            .iter()
            .all(|name| status.verdict(name) == "down")
    })?;
    Ok(())
}

/// The interface of `returns` gone: replies have nowhere to arrive, and the service is not to blame.
#[test]
fn the_interface_of_returns_is_down_or_deleted() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service.second_cable(&lab.hub, 2)?;
    service.reply_by_cable(2)?;
    let config = service.toml_with("fw-1", "returns = [\"eth2\"]");
    let tracker = Tracker::start(&lab.hub, &config)?;
    let up = tracker.wait_verdict("fw-1", "up", "replied")?;
    // Replies are received there, not on eth1.
    assert_eq!(up.member("fw-1", "active")["mode"], "xdp-native");
    lab.hub.ip("link set eth2 down\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-down")?;
    lab.hub.ip("link set eth2 up\n")?;
    tracker.wait_alive(LATER, "fw-1")?;
    lab.hub.ip("link del eth2\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-missing")?;
    service.second_cable(&lab.hub, 2)?;
    service.reply_by_cable(2)?;
    tracker.wait_alive(LATER, "fw-1")?;
    Ok(())
}

/// Strict reverse path filters, logged martians, a packet filter that drops everything, and conntrack.
#[test]
fn the_hubs_own_filters_do_not_disturb() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service.second_cable(&lab.hub, 2)?;
    service.answer_for_all()?;
    for key in ["rp_filter", "log_martians"] {
        for interface in ["all", "default", "eth1", "eth2"] {
            let key = format!("net/ipv4/conf/{interface}/{key}");
            lab.hub.sysctl(&key, "1")?;
        }
    }
    // Neighbour discovery alone passes: without it no host could be addressed. The counter makes conntrack active.
    let closed: String = [
        ("prerouting", "raw"),
        ("input", "filter"),
        ("forward", "filter"),
        ("output", "raw"),
        ("postrouting", "srcnat"),
    ]
    .iter()
    .map(|(hook, priority)| {
        format!(
            "chain {hook} {{ type filter hook {hook} priority {priority}; policy drop;\n\
             icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept\n\
             ct state new,established,related,invalid counter drop\n}}\n"
        )
    })
    .collect();
    lab.hub.nft(&format!("table inet closed {{ {closed} }}"))?;
    assert!(!lab.hub.pings(service.endpoint)?);

    for mode in ["xdp-native", "xdp-generic", "tc"] {
        service.reply_directly()?;
        let config = Config::new(every_way(&lab)).mode(mode);
        let tracker = Tracker::start(&lab.hub, config)?;
        let direct = ["same", "same6", "either", "either6"];
        tracker.wait_for("up by eth1", LATER, |status| {
            are(status, &direct, "up", "replied")
        })?;
        service.reply_by_cable(2)?;
        let asymmetric = ["other", "other6", "either", "either6"];
        tracker.wait_for("up by eth2", LATER, |status| {
            are(status, &asymmetric, "up", "replied")
        })?;
        service.break_forwarding()?;
        tracker.wait_for("down", SOON, |status| {
            are(status, &asymmetric, "down", "no-reply")
        })?;
        service.mend()?;
        let status = tracker.wait_for("up again", LATER, |status| {
            are(status, &asymmetric, "up", "replied")
        })?;
        assert_eq!(status.member("other", "active")["mode"], mode);
    }
    Ok(())
}
