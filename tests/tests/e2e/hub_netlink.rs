//! A hub with many interfaces and routes that come and go: the daemon starts, follows what concerns it and nothing else, and
//! never waits for the kernel.

use std::fmt::Write as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tracker_lab::daemon::SOON;
use tracker_lab::pace::pause;
use tracker_lab::{Lab, Namespace, Tracker};

/// A service without `interface`, whose way is found by route.
fn routed(lab: &Lab, more: &str) -> String {
    let service = lab.service();
    format!(
        "[[service]]\nname = \"fw-1\"\nendpoint = \"{}\"\nbehind = [\"{}\"]\n{more}",
        service.endpoint, service.behind
    )
}

fn interface(tracker: &Tracker<'_>) -> Result<String> {
    let status = tracker.status()?;
    let name = status.member("fw-1", "active")["interface"].as_str();
    Ok(name.unwrap_or_default().to_owned())
}

/// The resident memory of the daemon, kB.
fn resident(tracker: &Tracker<'_>) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", tracker.pid()?))?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("VmRSS")?.parse()?)
}

/// Pairs of interfaces that belong to no service.
fn others(count: u32) -> String {
    (0..count).fold(String::new(), |mut lines, at| {
        let _ = write!(
            lines,
            "link add o{at} type veth peer name p{at}\nlink set o{at} up\nlink set p{at} up\n"
        );
        lines
    })
}

/// `ip` with these lines again and again, until it is dropped.
struct Churn {
    child: Child,
    _lines: tempfile::NamedTempFile,
}

impl Churn {
    fn start(hub: &Namespace, lines: &str) -> Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), lines)?;
        let child = hub
            .command("bash")
            .args(["-c", "while :; do ip -force -batch \"$0\"; done"])
            .arg(file.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            child,
            _lines: file,
        })
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        // Its `ip` ends with the lines.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A break is told, and its end.
fn is_told(lab: &Lab, tracker: &Tracker<'_>) -> Result<()> {
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    lab.service().mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

/// The loop follows the interface and does what clients want.
fn obeys(lab: &Lab, tracker: &Tracker<'_>) -> Result<()> {
    lab.hub.ip("link set eth1 down\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-down")?;
    lab.hub.ip("link set eth1 up\n")?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.service("add more --endpoint 10.9.0.77 --interface eth1 --behind 10.20.0.8")?;
    tracker.service("remove more")?;
    Ok(())
}

#[test]
fn six_hundred_interfaces_exist() -> Result<()> {
    let lab = Lab::new()?;
    lab.hub.ip(&others(300))?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    is_told(&lab, &tracker)?;
    obeys(&lab, &tracker)?;
    ensure!(tracker.terminate()?.success(), "{}", tracker.log());
    Ok(())
}

#[test]
fn sixty_interfaces_come_up_while_it_starts() -> Result<()> {
    let lab = Lab::new()?;
    let mut tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.terminate()?;
    let del = (0..30).map(|at| format!("link del o{at}\n"));
    let del: String = del.collect();
    for ms in [0, 50] {
        tracker.launch()?;
        std::thread::sleep(Duration::from_millis(ms));
        lab.hub.ip(&others(30))?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        obeys(&lab, &tracker)?;
        ensure!(tracker.terminate()?.success(), "{}", tracker.log());
        lab.hub.ip(&del)?;
    }
    Ok(())
}

/// A trunk with a member on each of a hundred interfaces goes down and up again.
#[test]
fn a_trunk_flaps() -> Result<()> {
    let lab = Lab::new()?;
    let firewall = &lab.service().firewall;
    lab.service().answer_for_all()?;
    let (mut hub, mut far, mut config) = (String::new(), String::new(), String::new());
    for at in 0..100 {
        let _ = write!(
            hub,
            "link add link eth1 name m{at} type macvlan mode bridge\n\
             address add 10.40.{at}.1/24 dev m{at}\nlink set m{at} up\n"
        );
        let _ = writeln!(far, "address add 10.40.{at}.2/24 dev eth0");
        let _ = write!(
            config,
            "[[service]]\nname = \"m{at}\"\nendpoint = \"10.40.{at}.2\"\ninterface = \"m{at}\"\nbehind = [\"10.20.1.{at}\"]\n"
        );
    }
    lab.hub.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
    lab.hub.ip(&hub)?;
    firewall.ip(&far)?;
    let config = tracker_lab::Config::new(lab.service().toml("fw-1") + &config);
    let config = config.mode("auto").defaults("interval = \"200ms\"");
    let tracker = Tracker::start(&lab.hub, config)?;
    let all_are = |verdict: &str| {
        let what = format!("all to be {verdict}");
        let patience = Duration::from_secs(20);
        tracker.wait_for(&what, patience, |status| {
            let mut names = (0..100)
                .map(|at| format!("m{at}"))
                .chain(["fw-1".to_owned()]);
            names.all(|name| status.verdict(&name) == verdict)
        })
    };
    all_are("up")?;
    for _ in 0..4 {
        firewall.ip("link set eth0 down\n")?;
        pause(Duration::from_millis(300));
        firewall.ip("link set eth0 up\n")?;
        pause(Duration::from_millis(500));
    }
    firewall.ip("link set eth0 down\n")?;
    all_are("down")?;
    firewall.ip("link set eth0 up\n")?;
    all_are("up")?;
    is_told(&lab, &tracker)?;
    obeys(&lab, &tracker)
}

/// Routes come and go without end, some of them on the way to the endpoint: breaks are told, the way is followed, and nothing
/// piles up.
#[test]
fn routes_come_and_go() -> Result<()> {
    let lab = Lab::new()?;
    lab.hub.ip("link add w0 type veth peer name w1\nlink set w0 up\nlink set w1 up\naddress add 192.0.2.1/24 dev w0\n")?;
    let mut tracker = Tracker::start(&lab.hub, &routed(&lab, ""))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let mut lines = String::new();
    for word in ["add", "del"] {
        for at in 0..20_000 {
            let _ = writeln!(
                lines,
                "route {word} 100.{}.{}.0/24 via 192.0.2.2",
                at >> 8,
                at & 255
            );
        }
        // It contains the endpoint, and is worse than the one that leads to it.
        let _ = writeln!(lines, "route {word} 10.8.0.0/13 via 192.0.2.2");
    }
    let churn = Churn::start(&lab.hub, &lines)?;
    pause(Duration::from_secs(1));
    let before = resident(&tracker)?;
    for _ in 0..3 {
        is_told(&lab, &tracker)?;
    }
    lab.hub.ip("route replace 10.9.0.2/32 dev w0\n")?;
    tracker.wait_for("the way by w0", SOON, |status| {
        status.member("fw-1", "active")["interface"] == "w0"
    })?;
    lab.hub.ip("route del 10.9.0.2/32 dev w0\n")?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(interface(&tracker)?, "eth1");
    obeys(&lab, &tracker)?;
    let after = resident(&tracker)?;
    assert!(after < before + 16_384, "{before} kB, then {after} kB");
    drop(churn);
    ensure!(tracker.terminate()?.success(), "{}", tracker.log());
    Ok(())
}

/// The default gateway on a link without a network of its own is the endpoint itself.
#[test]
fn the_endpoint_is_its_own_gateway() -> Result<()> {
    let lab = Lab::new()?;
    lab.hub.ip("address flush dev eth1 scope global\n\
         address add 10.9.0.1/32 dev eth1\n\
         route add default via 10.9.0.2 dev eth1 onlink\n")?;
    ensure!(
        lab.hub.pings("10.9.0.2")?,
        "the hub itself does not reach it"
    );
    let tracker = Tracker::start(&lab.hub, &routed(&lab, ""))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(interface(&tracker)?, "eth1");
    Ok(())
}

#[test]
fn a_rule_chooses_by_the_source_address() -> Result<()> {
    let lab = Lab::new()?;
    lab.hub.ip("route del 10.9.0.0/24 dev eth1\n\
         route add 10.9.0.0/24 dev eth1 table 100\n\
         rule add from 10.9.0.1 lookup 100\n")?;
    let tracker = Tracker::start(&lab.hub, &routed(&lab, "source = \"10.9.0.1\"\n"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    lab.hub.ip("rule del from 10.9.0.1 lookup 100\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-missing")?;
    lab.hub.ip("rule add from 10.9.0.1 lookup 100\n")?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

/// No notification names a route that a next-hop object leads elsewhere, or that goes with it.
#[test]
fn a_next_hop_object_is_replaced_and_deleted() -> Result<()> {
    let lab = Lab::with_services(2)?;
    for service in lab.services() {
        service.answer_for_all()?;
    }
    let other = &lab.services()[1].firewall;
    other.ip("address add 10.9.0.2/32 dev eth0\n")?;
    let tracker = Tracker::start(&lab.hub, &routed(&lab, ""))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let wait_by = |name: &'static str| {
        tracker.wait_for(&format!("fw-1 up by {name}"), SOON, |status| {
            status.verdict("fw-1") == "up" && status.member("fw-1", "active")["interface"] == name
        })
    };
    lab.hub
        .ip("nexthop add id 2 dev eth2\nroute add 10.9.0.2/32 nhid 2\n")?;
    wait_by("eth2")?;
    lab.hub.ip("nexthop replace id 2 dev eth1\n")?;
    wait_by("eth1")?;
    lab.hub.ip("nexthop replace id 2 dev eth2\n")?;
    wait_by("eth2")?;
    lab.hub.ip("nexthop del id 2\n")?;
    wait_by("eth1")?;
    Ok(())
}

#[test]
fn an_alternative_name_is_a_name() -> Result<()> {
    let lab = Lab::new()?;
    let config = lab
        .service()
        .toml("fw-1")
        .replace("\"eth1\"", "\"enp3s0f0np0\"");
    let tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_for("the interface to be missed", SOON, |status| {
        status.cause("fw-1") == "interface-missing"
    })?;
    lab.hub
        .run("ip link property add dev eth1 altname enp3s0f0np0")?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}
