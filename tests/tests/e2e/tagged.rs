//! A reply in a VLAN is of no concern to the untagged interface, whatever the mode and wherever its tag is.

use anyhow::{Result, ensure};
use tracker_lab::foreign::{Foreign, Hook};
use tracker_lab::{Config, Lab, Tracker};

/// A VLAN that the hub has no device for.
const BYPASS: u16 = 200;

#[test]
fn a_reply_in_a_vlan_does_not_count() -> Result<()> {
    // A veth hands a tag over in the skb, which XDP can't read, unless its sender had to write the tag into the frame.
    for (mode, offload) in [
        ("tc", "on"),
        ("tc", "off"),
        ("xdp-generic", "off"),
        ("xdp-native", "off"),
    ] {
        let lab = Lab::new()?;
        let firewall = &lab.service().firewall;
        firewall.run(&format!("ethtool -K eth0 txvlan {offload}"))?;
        let tag = Foreign::new(&lab, Hook::Tag(BYPASS), "tag")?;
        let config = Config::new(lab.service().toml("fw-1")).mode(mode);
        let tracker = Tracker::start(&lab.hub, config)?;
        tracker.wait_verdict("fw-1", "up", "replied")?;

        firewall.run("tc qdisc add dev eth0 clsact")?;
        firewall.run(&format!(
            "tc filter add dev eth0 egress bpf direct-action pinned {}",
            tag.pin()
        ))?;
        let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
        ensure!(
            tag.seen()? >= 3,
            "{mode}, txvlan {offload}: nothing was tagged"
        );
        assert_eq!(
            down.count("fw-1", "wrong_path"),
            0,
            "{mode}, txvlan {offload}"
        );

        firewall.run("tc qdisc del dev eth0 clsact")?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
    }
    Ok(())
}
