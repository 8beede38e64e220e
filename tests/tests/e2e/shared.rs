//! What services share: one address behind them all, one interface before them all.

use anyhow::Result;
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::{Lab, Status, Tracker};

const NAMES: [&str; 3] = ["fw-1", "fw-2", "fw-3"];

fn verdicts(status: &Status) -> [&str; 3] {
    NAMES.map(|name| status.verdict(name))
}

/// Both addresses behind each of the lab's services: the same for all, or each its own.
fn config(lab: &Lab, same: bool) -> Vec<String> {
    let services = lab.services().iter().zip(NAMES);
    services
        .map(|(service, name)| {
            let last = if same { &lab.services()[0] } else { service };
            format!(
                "[[service]]\nname = \"{name}\"\nendpoint = \"{}\"\ninterface = \"{}\"\nbehind = [\"{}\", \"{}\"]\npolicy = \"all\"\n",
                service.endpoint, service.interface, last.behind, last.behind6
            )
        })
        .collect()
}

/// Each service's verdict follows its own firewall, whatever becomes of the others.
fn each_by_its_own(lab: &Lab, tracker: &Tracker<'_>) -> Result<()> {
    tracker.wait_for("all up", LATER, |status| verdicts(status) == ["up"; 3])?;
    for (broken, service) in lab.services().iter().enumerate() {
        let lost = |status: &Status| NAMES.map(|name| status.count(name, "lost"));
        let before = lost(&tracker.status()?);
        let forwarded = service.forwarded()?;
        service.break_forwarding()?;
        let down = tracker.wait_verdict(NAMES[broken], "down", "no-reply")?;
        for other in (0..3).filter(|other| *other != broken) {
            tracker.wait_alive(SOON, NAMES[other])?;
            assert_eq!(down.verdict(NAMES[other]), "up");
            assert_eq!(lost(&tracker.status()?)[other], before[other], "{other}");
        }
        service.mend()?;
        // Long enough for the last losses to be judged.
        tracker.wait_alive(LATER, NAMES[broken])?;
        assert!(service.forwarded()? > forwarded, "its probes passed it");
    }
    Ok(())
}

#[test]
fn one_address_behind_several_services() -> Result<()> {
    let lab = Lab::with_services(3)?;
    let (behind, behind6) = (lab.service().behind, lab.service().behind6);
    for service in &lab.services()[1..] {
        service.host.ip(&format!(
            "address add {behind}/32 dev eth0\naddress add {behind6}/128 dev eth0\n"
        ))?;
    }
    let tracker = Tracker::start(&lab.hub, &config(&lab, true).concat())?;
    each_by_its_own(&lab, &tracker)
}

#[test]
fn several_services_on_one_interface() -> Result<()> {
    let lab = Lab::with_services_on_one_interface(3)?;
    let config = config(&lab, false);
    let tracker = Tracker::start(&lab.hub, &config.concat())?;
    each_by_its_own(&lab, &tracker)?;

    // One goes, and comes again as it was.
    let before = tracker.status()?;
    tracker.reload(&(config[0].clone() + &config[2]))?;
    tracker.wait_for("fw-2 to be gone", SOON, |status| {
        status.service("fw-2").is_null()
    })?;
    for name in ["fw-1", "fw-3"] {
        let after = tracker.wait_alive(SOON, name)?;
        assert!(after.count(name, "sent") > before.count(name, "sent"));
        assert_eq!(after.count(name, "lost"), before.count(name, "lost"));
        assert_eq!(after.service(name)["since"], before.service(name)["since"]);
    }
    let forwarded = lab.services()[1].forwarded()?;
    tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(lab.services()[1].forwarded()?, forwarded, "still probed");
    tracker.reload(&config.concat())?;
    tracker.wait_alive(LATER, "fw-2")?;
    for name in ["fw-1", "fw-3"] {
        let after = tracker.wait_alive(SOON, name)?;
        assert_eq!(after.count(name, "lost"), before.count(name, "lost"));
        assert_eq!(after.service(name)["since"], before.service(name)["since"]);
    }
    Ok(())
}

/// Two addresses of one firewall, and the same address behind it: two paths that differ in nothing but the endpoint.
#[test]
fn two_endpoints_of_one_firewall() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service.firewall.ip("address add 10.9.0.3/24 dev eth0\n")?;
    let second = service
        .toml("second")
        .replace("\"10.9.0.2\"", "\"10.9.0.3\"");
    let tracker = Tracker::start(&lab.hub, &(service.toml("first") + &second))?;
    for name in ["first", "second"] {
        tracker.wait_alive(LATER, name)?;
    }
    let before = tracker.status()?;
    service.break_forwarding()?;
    for name in ["first", "second"] {
        tracker.wait_verdict(name, "down", "no-reply")?;
    }
    service.mend()?;
    for name in ["first", "second"] {
        tracker.wait_alive(LATER, name)?;
    }
    // Without the one, the other goes on with its counters.
    tracker.reload(&second)?;
    tracker.wait_for("the first to be gone", SOON, |status| {
        status.service("first").is_null()
    })?;
    let after = tracker.wait_alive(SOON, "second")?;
    assert!(after.count("second", "received") > before.count("second", "received"));
    Ok(())
}
