//! Addresses behind a service that are its own: on its loopback, and on its far side.

use anyhow::Result;
use tracker_lab::daemon::LATER;
use tracker_lab::{Lab, Tracker};

/// The service's loopback, twice; its far side; and the host beyond it.
const BEHIND: [&str; 5] = [
    "10.20.200.1",
    "2001:db8:20:200::1",
    "10.30.0.1",
    "2001:db8:30::1",
    "10.20.0.9",
];

#[test]
fn addresses_of_the_service_itself() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let firewall = &service.firewall;
    firewall
        .ip("address add 10.20.200.1/32 dev lo\naddress add 2001:db8:20:200::1/128 dev lo\n")?;
    // What it does with packets for itself, each address apart; its endpoint is never touched.
    firewall.nft(
        "table inet own { chain outage {}
           chain input { type filter hook input priority filter; jump outage; }
         }",
    )?;
    let behind = format!("behind = {BEHIND:?}\npolicy = \"all\"");
    let config = service
        .toml("fw-1")
        .replace("behind = [\"10.20.0.9\"]", &behind);
    let tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;

    for broken in BEHIND {
        let family = if broken.contains(':') { "ip6" } else { "ip" };
        let table = if broken == "10.20.0.9" {
            "firewall"
        } else {
            "own"
        };
        firewall.nft(&format!(
            "add rule inet {table} outage {family} daddr {broken} drop\n"
        ))?;
        let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
        for behind in BEHIND {
            let found = &down.tracker("fw-1", behind)["verdict"];
            let wanted = if behind == broken { "down" } else { "up" };
            assert_eq!(found, wanted, "{behind} while {broken} is blocked");
        }
        assert!(
            lab.hub.pings(service.endpoint)?,
            "the endpoint still answers"
        );
        firewall.nft(&format!("flush chain inet {table} outage\n"))?;
        tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    }

    // The loopback's address gone, and there again.
    firewall.ip("address del 10.20.200.1/32 dev lo\n")?;
    let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    assert_eq!(down.tracker("fw-1", "10.30.0.1")["verdict"], "up");
    firewall.ip("address add 10.20.200.1/32 dev lo\n")?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    Ok(())
}
