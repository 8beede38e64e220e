//! The harness itself: a lab is what it says, and nothing of it stays, however its owner ends.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use tracker_lab::{Lab, netns};

const VICTIM: &str = "TRACKER_TESTS_VICTIM";

#[test]
fn firewall_forwards_breaks_and_mends() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    assert!(
        !lab.hub.pings(service.behind)?,
        "the hub has no route to the behind address"
    );
    lab.hub.ip(
        "route add 10.20.0.0/24 via 10.9.0.2\nroute add 2001:db8:20::/64 via 2001:db8:9::2\n",
    )?;
    assert!(lab.hub.pings(service.behind)?);
    assert!(lab.hub.pings(service.behind6)?);
    let forwarded = service.forwarded()?;
    assert!(forwarded >= 2, "the firewall counted {forwarded}");

    service.break_forwarding()?;
    assert!(!lab.hub.pings(service.behind)?);
    assert!(
        lab.hub.pings(service.endpoint)?,
        "its own address still answers"
    );
    assert_eq!(service.forwarded()?, forwarded);

    service.mend()?;
    assert!(lab.hub.pings(service.behind)?);
    Ok(())
}

#[test]
fn a_second_service_has_its_own_addresses() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let second = &lab.services()[1];
    assert_eq!(second.interface, "eth2");
    assert!(lab.hub.pings(second.endpoint)?);
    assert!(lab.hub.pings(second.endpoint6)?);
    second.answer_for_all()?;
    lab.hub.ip("route add 10.20.0.0/16 via 10.9.1.2\n")?;
    assert!(lab.hub.pings(second.behind)?);
    for any in ["10.20.0.1", "10.20.1.11", "10.20.255.254"] {
        assert!(lab.hub.pings(any)?, "{any}");
    }
    Ok(())
}

#[test]
fn unplugged_and_plugged_again() -> Result<()> {
    let lab = Lab::new()?;
    lab.hub.ip("link del eth1\n")?;
    assert!(!lab.hub.pings(lab.service().endpoint)?);
    lab.service().plug(&lab.hub)?;
    assert!(lab.hub.pings(lab.service().endpoint)?);
    Ok(())
}

#[test]
fn a_panic_leaves_nothing() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let failed = std::thread::spawn(move || {
        let lab = Lab::new().expect("build a lab");
        sender.send(lab.id().to_owned()).expect("tell its name");
        panic!("on purpose");
    })
    .join();
    assert!(failed.is_err());
    let id = receiver.recv().expect("learn its name");
    assert_eq!(netns::namespaces_of(&id), Vec::<String>::new());
}

#[test]
fn what_a_killed_test_left_is_swept() -> Result<()> {
    // The victim is this same test in a process of its own.
    if std::env::var_os(VICTIM).is_some() {
        let lab = Lab::new()?;
        println!("lab {}", lab.id());
        loop {
            std::thread::park();
        }
    }
    let mine = Lab::new()?;
    let mut victim = Command::new(std::env::current_exe()?)
        .args([
            "harness::what_a_killed_test_left_is_swept",
            "--exact",
            "--nocapture",
        ])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(victim.stdout.take().context("read its output")?);
    // The runner writes its own words on the same line.
    let id = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("lab ")?.1.to_owned()))
        .context("learn its name")?;
    assert_eq!(netns::namespaces_of(&id).len(), 3);

    victim.kill()?;
    victim.wait()?;
    assert_eq!(netns::namespaces_of(&id).len(), 3, "it could not tidy up");
    netns::sweep();
    assert_eq!(netns::namespaces_of(&id), Vec::<String>::new());
    assert_eq!(
        netns::namespaces_of(mine.id()).len(),
        3,
        "the living are spared"
    );
    Ok(())
}
