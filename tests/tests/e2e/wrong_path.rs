//! A reply that comes back around the service proves nothing, on whatever interface of the hub it arrives.

use anyhow::Result;
use tracker_lab::daemon::SOON;
use tracker_lab::servers::{Reflector, TcpEcho};
use tracker_lab::{Config, Lab, Tracker};

/// Connects the hub's `bypass` and the host directly, past the firewall.
fn lay_bypass(lab: &Lab) -> Result<()> {
    let host = &lab.service().host;
    lab.hub.ip(&format!(
        "link add bypass type veth peer name eth9 netns {}\n\
         address add 10.66.0.1/24 dev bypass\nlink set bypass up\n",
        host.name()
    ))?;
    host.ip("address add 10.66.0.2/24 dev eth9\nlink set eth9 up\n")
}

/// The host's replies to the hub leave it by the bypass, or no longer.
fn answer_by_bypass(lab: &Lab, is_bypassed: bool) -> Result<()> {
    let verb = if is_bypassed { "add" } else { "del" };
    let route = format!("route {verb} 10.9.0.1/32 via 10.66.0.1\n");
    lab.service().host.ip(&route)
}

#[test]
fn a_reply_on_an_interface_that_nobody_named() -> Result<()> {
    for mode in ["xdp-native", "tc"] {
        let lab = Lab::new()?;
        let service = lab.service();
        let behind = [service.behind.into()];
        let _server = TcpEcho::start(&service.host, &behind, 443)?;
        let _reflector = Reflector::start(&service.host, &behind, 862)?;
        let services = [
            service.toml("fw-1"),
            service.toml_with("tcp", "probe = \"tcp\"\nport = 443"),
            service.toml_with("stamp", "probe = \"udp\"\nprotocol = \"stamp\""),
            service.toml_with("closed", "expect = \"silence\""),
            service.toml_with(
                "closed-tcp",
                "probe = \"tcp\"\nport = 443\nexpect = \"silence\"",
            ),
        ];
        let leaks = ["closed", "closed-tcp"];
        let config = tracker_lab::Config::new(services.concat()).mode(mode);
        let tracker = Tracker::start(&lab.hub, config)?;
        for name in ["fw-1", "tcp", "stamp"] {
            tracker.wait_verdict(name, "up", "replied")?;
        }
        // Laid while the daemon runs: an interface that comes later is watched too.
        lay_bypass(&lab)?;
        answer_by_bypass(&lab, true)?;
        for name in ["tcp", "stamp"] {
            tracker.wait_verdict(name, "down", "wrong-path")?;
        }
        for name in leaks {
            tracker.wait_verdict(name, "down", "unexpected-reply")?;
        }
        let down = tracker.wait_verdict("fw-1", "down", "wrong-path")?;
        let wrong = |status: &tracker_lab::Status| status.count("fw-1", "wrong_path");
        assert!(wrong(&down) >= 3, "{}", wrong(&down));
        answer_by_bypass(&lab, false)?;
        for name in ["fw-1", "tcp", "stamp"] {
            tracker.wait_verdict(name, "up", "replied")?;
        }
        // A service that must stop them did not, by whatever way their replies came.
        for name in leaks {
            let history = tracker.history(name)?;
            assert_eq!(history.len(), 1, "{name}: {history:?}");
        }
    }
    Ok(())
}

#[test]
fn only_what_cannot_be_on_the_way_is_watched() -> Result<()> {
    let lab = Lab::with_services(2)?;
    lab.hub
        .ip("link add br1 type bridge\nlink set eth1 master br1\n\
         address add 10.9.7.1/24 dev br1\nlink set br1 up\n")?;
    let service = lab.service();
    service.firewall.ip("address add 10.9.7.2/24 dev eth0\n")?;
    let config = "[[service]]\nname = \"fw-1\"\nendpoint = \"10.9.7.2\"\ninterface = \"br1\"\nbehind = [\"10.20.0.9\"]\n";
    let tracker = Tracker::start(&lab.hub, Config::new(config).mode("auto"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let status = tracker.wait_alive(SOON, "fw-1")?;
    // The bridge's port eth1 sees each reply first.
    assert_eq!(status.count("fw-1", "wrong_path"), 0);
    // Whatever the number of interfaces, one socket watches them: nothing is attached to an interface that no member uses.
    let links = std::fs::read_dir(tracker.pins().join("links"))?;
    let mut links: Vec<_> = links
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with("clsact-"))
        .collect();
    links.sort();
    assert_eq!(links.len(), 3, "{links:?}");
    assert!(links[0].starts_with("receive-tc-"), "{links:?}");
    assert_eq!(links[1..], ["send", "tc-send"]);
    Ok(())
}

/// What is watched becomes one of `returns`, and the other way round, without a restart.
#[test]
fn an_interface_changes_its_purpose() -> Result<()> {
    let lab = Lab::new()?;
    lay_bypass(&lab)?;
    let service = lab.service();
    let only = |interface: &str| {
        service.toml_with(
            "fw-1",
            &format!("returns = [\"{interface}\"]\ninterval = \"100ms\""),
        )
    };
    answer_by_bypass(&lab, true)?;
    let tracker = Tracker::start(&lab.hub, &only("eth1"))?;
    tracker.wait_verdict("fw-1", "down", "wrong-path")?;
    tracker.reload(&only("bypass"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    answer_by_bypass(&lab, false)?;
    tracker.wait_verdict("fw-1", "down", "wrong-path")?;
    tracker.reload(&only("eth1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}
