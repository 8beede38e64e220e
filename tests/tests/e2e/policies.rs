//! What makes a member, a service and a chain of several: one after another fails and comes back.

use anyhow::Result;
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::{Config, Event, Lab, Tracker};

/// A service, its policy, how many addresses it has, and how many of them must be up.
const SERVICES: [(&str, &str, usize, usize); 7] = [
    ("any-of-2", "\"any\"", 2, 1),
    ("all-of-2", "\"all\"", 2, 2),
    ("one-of-2", "1", 2, 1),
    ("any-of-3", "\"any\"", 3, 1),
    ("two-of-3", "2", 3, 2),
    ("three-of-3", "3", 3, 3),
    ("default-of-3", "", 3, 1),
];

/// IPv4 and IPv6 in turn.
const BEHIND: [&str; 3] = ["10.20.0.9", "2001:db8:20::8", "10.20.0.7"];

fn config() -> String {
    SERVICES
        .iter()
        .map(|(name, policy, count, _)| {
            let policy = match *policy {
                "" => String::new(),
                policy => format!("policy = {policy}\n"),
            };
            format!(
                "[[service]]\nname = \"{name}\"\nendpoint = \"10.9.0.2\"\ninterface = \"eth1\"\nbehind = {:?}\n{policy}",
                &BEHIND[..*count]
            )
        })
        .collect()
}

/// Drops what goes to these addresses, and nothing else.
fn block(lab: &Lab, addresses: &[&str]) -> Result<()> {
    let rules: String = addresses
        .iter()
        .map(|address| {
            let family = if address.contains(':') { "ip6" } else { "ip" };
            format!("add rule inet firewall outage {family} daddr {address} drop\n")
        })
        .collect();
    let firewall = &lab.service().firewall;
    firewall.nft(&format!("flush chain inet firewall outage\n{rules}"))
}

#[test]
fn one_address_after_another() -> Result<()> {
    let lab = Lab::new()?;
    lab.service().answer_for_all()?;
    let tracker = Tracker::start(&lab.hub, &config())?;
    // Which are dead, in an order in which each policy is crossed down and up.
    for dead in [
        &[][..],
        &[0],
        &[1],
        &[1, 2],
        &[0, 1, 2],
        &[0, 1],
        &[2],
        &[0, 2],
        &[],
    ] {
        block(&lab, &dead.iter().map(|at| BEHIND[*at]).collect::<Vec<_>>())?;
        let status = tracker.wait_for(&format!("{dead:?} to be dead"), LATER, |status| {
            SERVICES.iter().all(|(name, _, count, _)| {
                (0..*count).all(|at| {
                    let verdict = if dead.contains(&at) { "down" } else { "up" };
                    status.tracker(name, BEHIND[at])["verdict"] == verdict
                })
            })
        })?;
        for (name, _, count, wanted) in SERVICES {
            let alive = (0..count).filter(|at| !dead.contains(at)).count();
            let (verdict, cause) = if alive >= wanted {
                ("up", "replied")
            } else {
                ("down", "no-reply")
            };
            let found = (status.verdict(name), status.cause(name));
            assert_eq!(found, (verdict, cause), "{name}, {dead:?} dead");
            let member = status.member(name, "active");
            assert_eq!(
                (&member["verdict"], &member["cause"]),
                (&verdict.into(), &cause.into())
            );
        }
    }
    // As often up and down as the numbers of the living crossed what each wants, and not more.
    for (name, _, _, _) in SERVICES {
        let history = tracker.history(name)?;
        let turns = history.windows(2).all(|pair| pair[0].0 != pair[1].0);
        assert!(turns, "{name}: {history:?}");
    }
    Ok(())
}

#[test]
fn a_chain_is_up_when_all_of_it_are() -> Result<()> {
    let lab = Lab::with_services(3)?;
    let services: String = lab
        .services()
        .iter()
        .zip(["fw", "ids", "lb"])
        .map(|(service, name)| service.toml(name))
        .collect();
    let chains = "
        [[chain]]
        name = \"all\"
        services = [\"fw\", \"ids\", \"lb\"]
        [[chain]]
        name = \"without-lb\"
        services = [\"ids\", \"fw\"]
    ";
    // Nothing behind the third, at first.
    let third = &lab.services()[2];
    third.break_forwarding()?;
    let tracker = Tracker::start(&lab.hub, Config::new(services + chains))?;
    let wait = |what: &str, all: &str, without_lb: &str| {
        tracker.wait_for(what, SOON, |status| {
            let found = [0, 1].map(|at| status.0["chains"][at]["verdict"].clone());
            found == [all, without_lb]
        })
    };
    wait("the third alone to be down", "down", "up")?;
    third.mend()?;
    wait("all up", "up", "up")?;
    let [first, second] = [&lab.services()[0], &lab.services()[1]];
    first.break_forwarding()?;
    wait("the first down", "down", "down")?;
    // No change of the chains: they are down already.
    second.break_forwarding()?;
    tracker.wait_verdict("ids", "down", "no-reply")?;
    first.mend()?;
    tracker.wait_verdict("fw", "up", "replied")?;
    wait("the second still down", "down", "down")?;
    second.mend()?;
    wait("all up again", "up", "up")?;

    // The chains' own events, which follow that of the service which decided.
    let output = tracker_lab::netns::check(&mut tracker.client(&["events", "--json"]))?;
    let text = String::from_utf8(output.stdout)?;
    let mut changes = [const { Vec::new() }; 2];
    let mut before = None;
    for line in text.lines() {
        let event = Event::parse(line)?;
        let value: serde_json::Value = serde_json::from_str(line)?;
        let chain = ["all", "without-lb"]
            .iter()
            .position(|name| value["chain"] == *name);
        match chain {
            Some(at) => {
                let by = before.clone().unwrap_or_default();
                changes[at].push(format!(
                    "{} -> {} {} {by}",
                    event.from, event.to, event.cause
                ));
            }
            None => before = event.service,
        }
    }
    let [all, without_lb] = changes;
    assert_eq!(
        all[all.len() - 4..],
        [
            "unknown -> down no-reply lb",
            "down -> up replied lb",
            "up -> down no-reply fw",
            "down -> up replied ids"
        ],
        "{text}"
    );
    assert_eq!(
        without_lb[without_lb.len() - 2..],
        ["up -> down no-reply fw", "down -> up replied ids"],
        "{text}"
    );
    let status = tracker
        .client(&["status", "--json", "without-lb"])
        .output()?;
    let status = tracker_lab::Status(serde_json::from_slice(&status.stdout)?);
    assert_eq!(status.0["services"].as_array().map(Vec::len), Some(2));
    Ok(())
}
