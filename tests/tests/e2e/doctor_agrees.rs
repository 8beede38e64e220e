//! What `tracker doctor` foretells of each kind of interface is what the daemon then does.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;
use tracker_lab::daemon::LATER;
use tracker_lab::foreign::{Foreign, Hook};
use tracker_lab::skip::tells_xdp_features;
use tracker_lab::{Config, Lab, Tracker};

/// Mode and send of each interface.
type Ways = BTreeMap<String, (Value, Value)>;

fn foretold(tracker: &Tracker<'_>) -> Result<Ways> {
    let config = tracker.config();
    let mut command = tracker.command(&["doctor", "--json", "--config"]);
    let output = tracker_lab::netns::check(command.arg(config))?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["ok"], true, "{report}");
    report["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|interface| {
            let name = interface["name"].as_str().context("read a name")?;
            let ways = (interface["mode"].clone(), interface["send"].clone());
            Ok((name.to_owned(), ways))
        })
        .collect()
}

#[test]
fn for_every_kind_of_interface() -> Result<()> {
    let lab = Lab::with_services(5)?;
    let hub = &lab.hub;
    let [plain, grouped, bridged, above, foreign] = [0, 1, 2, 3, 4].map(|at| &lab.services()[at]);
    // eth1 as it is, and vx1 through it; eth2 takes redirected frames; br1 has eth3 as its port; mac1 is above eth4;
    // eth5 has a foreign program.
    hub.ip(
        "link add vx1 type vxlan id 7 local 10.9.0.1 remote 10.9.0.2 dstport 4789 dev eth1\n\
         address add 10.9.71.1/24 dev vx1\nlink set vx1 up\n\
         link add br1 type bridge\nlink set eth3 master br1\n\
         address add 10.9.73.1/24 dev br1\nlink set br1 up\n\
         link add link eth4 name mac1 type macvlan mode bridge\n\
         address add 10.9.74.1/24 dev mac1\nlink set mac1 up\n",
    )?;
    plain.firewall.ip(
        "link add vx1 type vxlan id 7 local 10.9.0.2 remote 10.9.0.1 dstport 4789 dev eth0\n\
         address add 10.9.71.2/24 dev vx1\nlink set vx1 up\n",
    )?;
    for (service, state) in [(plain, "off"), (grouped, "on")] {
        service
            .firewall
            .run(&format!("ethtool -K eth0 gro {state}"))?;
    }
    bridged.firewall.ip("address add 10.9.73.2/24 dev eth0\n")?;
    above.firewall.ip("address add 10.9.74.2/24 dev eth0\n")?;
    let program = Foreign::new(&lab, Hook::Xdp, "foreign")?;
    hub.ip(&format!(
        "link set dev eth5 xdpdrv pinned {}\n",
        program.pin()
    ))?;

    let services: String = [
        ("eth1", "10.9.0.2"),
        ("vx1", "10.9.71.2"),
        ("eth2", "10.9.1.2"),
        ("br1", "10.9.73.2"),
        ("mac1", "10.9.74.2"),
        ("eth5", "10.9.4.2"),
    ]
    .iter()
    .zip([plain, plain, grouped, bridged, above, foreign])
    .map(|((interface, endpoint), service)| {
        format!(
            "[[service]]\nname = \"{interface}\"\nendpoint = \"{endpoint}\"\ninterface = \"{interface}\"\nbehind = [\"{}\"]\n",
            service.behind
        )
    })
    .collect();
    // Replies may take other ways than probes; whatever the firewalls call their ends.
    for service in lab.services() {
        service
            .firewall
            .nft("add rule inet firewall forward accept\n")?;
    }

    let best = match tells_xdp_features() {
        true => "xdp-redirect",
        false => "tc-redirect",
    };
    for (mode, expected) in [
        (
            "auto",
            [
                ("eth1", "tc", "tc-redirect"),
                ("vx1", "tc", "tc-redirect"),
                ("eth2", "tc", best),
                ("br1", "tc", "tc-redirect"),
                ("mac1", "tc", "tc-redirect"),
                ("eth5", "tc", "tc-redirect"),
            ],
        ),
        (
            "xdp-native",
            [
                ("eth1", "xdp-native", "tc-redirect"),
                ("vx1", "", ""),
                ("eth2", "xdp-native", best),
                ("br1", "", ""),
                ("mac1", "", ""),
                ("eth5", "", ""),
            ],
        ),
        (
            "tc",
            ["eth1", "vx1", "eth2", "br1", "mac1", "eth5"].map(|name| (name, "tc", "tc-redirect")),
        ),
        (
            "xdp-generic",
            [
                ("eth1", "xdp-generic", "tc-redirect"),
                ("vx1", "xdp-generic", "tc-redirect"),
                ("eth2", "xdp-generic", best),
                ("br1", "xdp-generic", "tc-redirect"),
                ("mac1", "xdp-generic", "tc-redirect"),
                ("eth5", "", ""),
            ],
        ),
    ] {
        let config = Config::new(&services).mode(mode);
        let mut tracker = Tracker::start(hub, config)?;
        // Before it runs, and while it does.
        tracker.terminate()?;
        let before = foretold(&tracker)?;
        tracker.run()?;
        let (works, refused): (Vec<_>, Vec<_>) =
            expected.iter().partition(|(_, mode, _)| !mode.is_empty());
        let status = tracker.wait_for(&format!("{mode}: up where it can be"), LATER, |status| {
            works
                .iter()
                .all(|(name, _, _)| status.verdict(name) == "up")
        })?;
        for (name, mode, send) in works {
            let member = status.member(name, "active");
            let done = (member["mode"].clone(), member["send"].clone());
            assert_eq!(done, ((*mode).into(), (*send).into()), "{name}");
            assert_eq!(Some(&done), before.get(name), "{name}");
        }
        for (name, _, _) in refused {
            let member = status.member(name, "active");
            assert_eq!(
                (&member["mode"], &member["send"]),
                (&Value::Null, &Value::Null)
            );
            assert_eq!(
                before.get(name),
                Some(&(Value::Null, Value::Null)),
                "{name}"
            );
        }
        assert_eq!(foretold(&tracker)?, before, "{mode}: while it runs");
    }
    Ok(())
}
