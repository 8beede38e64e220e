//! UDP probes, to a real echo service.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tracker_lab::daemon::SOON;
use tracker_lab::servers::UdpEcho;
use tracker_lab::{Config, Lab, Service, Tracker, netns};

const PORT: u16 = 7_007;

fn config(service: &Service, behind: IpAddr, more: &str) -> Config {
    let keys = format!("probe = \"udp\"\nport = {PORT}\n{more}");
    Config::new(service.toml_to("fw-1", behind, &keys))
}

#[test]
fn an_echo_service_answers_until_the_firewall_does_not_pass() -> Result<()> {
    for mode in ["xdp-native", "xdp-generic", "tc"] {
        let lab = Lab::new()?;
        let service = lab.service();
        let behinds = service.behinds();
        let _echo = UdpEcho::start(&service.host, &behinds, PORT)?;
        for behind in behinds {
            let config = config(service, behind, "").mode(mode);
            let tracker = Tracker::start(&lab.hub, config)?;
            let up = tracker.wait_verdict("fw-1", "up", "replied")?;
            let shown = up.tracker("fw-1", behind);
            assert_eq!(
                (&shown["probe"], &shown["port"]),
                (&"udp".into(), &PORT.into())
            );
            assert!(shown["rtt_us"]["last"].as_u64().is_some(), "{shown}");
            service.break_forwarding()?;
            tracker.wait_verdict("fw-1", "down", "no-reply")?;
            service.mend()?;
            tracker.wait_verdict("fw-1", "up", "replied")?;
        }
    }
    Ok(())
}

/// The largest packet from the echo service's port that arrives on the hub's `eth1` within this time.
fn largest(lab: &Lab, time: Duration) -> Result<usize> {
    lab.hub.enter(|| {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, i32::from(protocol)) };
        ensure!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the kernel just returned this descriptor, and nothing else owns it.
        let socket = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let (end, mut largest, mut packet) = (Instant::now() + time, 0, [0; 65_536]);
        while Instant::now() < end {
            if let Ok(len) = socket.recv(&mut packet)
                && len > 28
                && packet[9] == 17
                && packet[20..22] == PORT.to_be_bytes()
            {
                largest = largest.max(len);
            }
        }
        Ok(largest)
    })
}

/// GRO makes one packet of replies that come back to back, as after a pause of the echo service.
#[test]
fn replies_that_the_kernel_merged_count_each() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let behind: IpAddr = service.behind.into();
    let echo = UdpEcho::start(&service.host, &[behind], PORT)?;
    // A veth runs GRO if its peer has no TSO (`veth_set_features`), and merges what comes within this time.
    let tso = [
        "tso",
        "tx-tcp-mangleid-segmentation",
        "tx-tcp-ecn-segmentation",
        "tx-tcp6-segmentation",
    ];
    for feature in tso {
        service
            .firewall
            .run(&format!("ethtool -K eth0 {feature} off"))?;
    }
    lab.hub
        .run("ethtool -K eth1 gro on rx-udp-gro-forwarding on")?;
    let sysfs = "mount -t sysfs none /sys && cd /sys/class/net/eth1 && echo 5000000 > gro_flush_timeout && echo 5 > napi_defer_hard_irqs";
    netns::check(lab.hub.command("unshare").args(["-m", "sh", "-c", sysfs]))?;
    let config = config(service, behind, "interval = \"10ms\"\ntimeout = \"2s\"\n").mode("tc");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let largest = thread::scope(|scope| {
        let watch = scope.spawn(|| largest(&lab, Duration::from_secs(2)));
        for _ in 0..5 {
            echo.pause(Duration::from_millis(200));
            thread::sleep(Duration::from_millis(150));
        }
        watch.join().expect("no panic")
    })?;
    assert!(
        largest > 28 + 10 * 32,
        "nothing was merged: {largest} bytes"
    );
    // What was not counted is lost after its timeout.
    thread::sleep(Duration::from_secs(2));
    let status = tracker.wait_alive(SOON, "fw-1")?;
    for counter in ["lost", "duplicate", "corrupt"] {
        assert_eq!(status.count("fw-1", counter), 0, "{counter}");
    }
    assert_eq!(tracker.history("fw-1")?.len(), 1);
    Ok(())
}

/// A service bound to all addresses answers from the one that its route names: no reply, no damage either.
#[test]
fn a_reply_from_another_address_is_told_with_the_address() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let behind: IpAddr = service.behind.into();
    let any = [IpAddr::from([0, 0, 0, 0])];
    let _echo = UdpEcho::start(&service.host, &any, PORT)?;
    let keys = format!("probe = \"udp\"\nport = {PORT}\n");
    let services = [
        service.toml_to("fw-1", behind, &keys),
        service.toml_to("leak", behind, &format!("{keys}expect = \"silence\"")),
    ];
    let tracker = Tracker::start(&lab.hub, &services.concat())?;
    let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    let shown = down.tracker("fw-1", behind);
    assert_eq!(
        shown["detail"], "replies come from 10.30.0.2, not from 10.20.0.9",
        "{shown}"
    );
    assert!(down.count("fw-1", "elsewhere") >= 3, "{shown}");
    assert_eq!(down.count("fw-1", "corrupt"), 0, "{shown}");
    assert!(
        !tracker.log().contains("fail the token"),
        "{}",
        tracker.log()
    );
    // What must be stopped was not, whatever address answers.
    tracker.wait_verdict("leak", "down", "unexpected-reply")?;
    Ok(())
}

/// A port-unreachable comes from the behind address itself, so the probe passed.
#[test]
fn a_closed_port_is_refused_or_a_pass() -> Result<()> {
    for mode in ["auto", "tc"] {
        let lab = Lab::new()?;
        let service = lab.service();
        for behind in service.behinds() {
            for (refused, verdict, cause) in [("down", "down", "refused"), ("up", "up", "replied")]
            {
                let keys = format!("refused = \"{refused}\"");
                let config = config(service, behind, &keys).hub(format!("mode = \"{mode}\""));
                let tracker = Tracker::start(&lab.hub, config)?;
                let status = tracker.wait_verdict("fw-1", verdict, cause)?;
                let shown = status.tracker("fw-1", behind);
                if verdict == "down" {
                    let detail = shown["detail"].as_str().unwrap_or_default();
                    assert!(detail.ends_with(&format!("from {behind}")), "{shown}");
                    continue;
                }
                service.break_forwarding()?;
                tracker.wait_verdict("fw-1", "down", "no-reply")?;
                service.mend()?;
                tracker.wait_verdict("fw-1", "up", "replied")?;
            }
        }
    }
    Ok(())
}

/// Nothing but the port that is asked is a probe's proof.
#[test]
fn without_an_echo_service_it_is_down() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let config = config(service, service.behind.into(), "");
    // It must not answer by itself either: the host says that there is no such port.
    service
        .host
        .nft("table ip filter { chain out { type filter hook output priority 0; ip protocol icmp drop\n}\n}\n")?;
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    let _echo = UdpEcho::start(&service.host, &[service.behind.into()], PORT)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    Ok(())
}

/// The service hides the hub behind an address and ports of its own.
#[test]
fn a_nat_that_rewrites_addresses_and_ports() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service.firewall.nft(
        "table inet nat { chain out { type nat hook postrouting priority srcnat;
           oifname \"eth1\" meta l4proto udp masquerade to :20000-29999 random\n}\n}\n",
    )?;
    for (behind, flow) in [
        (IpAddr::from(service.behind), "fixed"),
        (service.behind6.into(), "rotate"),
    ] {
        let echo = UdpEcho::start(&service.host, &[behind], PORT)?;
        let config = config(service, behind, &format!("flow = \"{flow}\""));
        let tracker = Tracker::start(&lab.hub, config)?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        let status = tracker.wait_alive(SOON, "fw-1")?;
        assert_eq!(status.count("fw-1", "corrupt"), 0);
        let seen = echo.seen();
        assert!(!seen.is_empty());
        for from in &seen {
            assert!((20_000..30_000).contains(&from.port()), "{from}: no NAT");
        }
        assert_eq!(seen.len() > 1, flow == "rotate", "{seen:?}");
    }
    Ok(())
}

/// Two trackers with equal probes but for the flow: a service that passes only sessions that it knows is seen.
#[test]
fn old_sessions_pass_and_new_ones_fail() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let _echo = UdpEcho::start(&service.host, &[service.behind.into()], PORT)?;
    // A firewall that keeps state: the hook is what makes the kernel track connections.
    service.firewall.nft(
        "table inet state { chain forward { type filter hook forward priority -10; ct state established accept\n}\n}\n",
    )?;
    let toml = |name: &str, probe: &str, flow: &str| {
        service.toml_with(name, &format!("{probe}\nflow = \"{flow}\""))
    };
    let udp = format!("probe = \"udp\"\nport = {PORT}");
    let services = [("icmp", "probe = \"icmp\""), ("udp", udp.as_str())]
        .into_iter()
        .flat_map(|(name, probe)| {
            ["fixed", "rotate"].map(|flow| toml(&format!("{name}-{flow}"), probe, flow))
        })
        .collect::<String>();
    let tracker = Tracker::start(&lab.hub, &services)?;
    let names = ["icmp-fixed", "icmp-rotate", "udp-fixed", "udp-rotate"];
    for name in names {
        tracker.wait_verdict(name, "up", "replied")?;
    }
    service
        .firewall
        .nft("add rule inet firewall outage ct state new drop\n")?;
    for name in ["icmp-rotate", "udp-rotate"] {
        tracker.wait_verdict(name, "down", "no-reply")?;
    }
    for name in ["icmp-fixed", "udp-fixed"] {
        let status = tracker.wait_alive(SOON, name)?;
        assert_eq!(status.verdict(name), "up", "{name}");
        assert_eq!(tracker.history(name)?.len(), 1, "{name}");
    }
    service.mend()?;
    for name in names {
        tracker.wait_verdict(name, "up", "replied")?;
    }
    Ok(())
}

/// A small and a full-size tracker together show a path that eats big packets.
#[test]
fn big_packets_are_lost() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let behinds = service.behinds();
    let _echo = UdpEcho::start(&service.host, &behinds, PORT)?;
    let toml = |name: &str, behind: IpAddr, payload: u16, more: &str| {
        service.toml_to(name, behind, &format!("payload = {payload}\n{more}"))
    };
    let udp = format!("probe = \"udp\"\nport = {PORT}");
    let mut services = String::new();
    // What an MTU of 1,500 leaves: the IP header is of 20 or 40 bytes, that of ICMP or UDP of 8.
    for (behind, full) in behinds.into_iter().zip([1_472, 1_452]) {
        for (probe, more) in [("icmp", ""), ("udp", udp.as_str())] {
            let family = if behind.is_ipv4() { 4 } else { 6 };
            services += &toml(&format!("{probe}{family}-small"), behind, 32, more);
            services += &toml(&format!("{probe}{family}-full"), behind, full, more);
        }
    }
    let tracker = Tracker::start(&lab.hub, &services)?;
    let names = ["icmp4", "udp4", "icmp6", "udp6"];
    for name in names {
        tracker.wait_verdict(&format!("{name}-small"), "up", "replied")?;
        tracker.wait_verdict(&format!("{name}-full"), "up", "replied")?;
    }
    service
        .firewall
        .nft("add rule inet firewall outage meta length > 1400 drop\n")?;
    for name in names {
        tracker.wait_verdict(&format!("{name}-full"), "down", "no-reply")?;
        let small = format!("{name}-small");
        let status = tracker.wait_alive(SOON, &small)?;
        assert_eq!(status.verdict(&small), "up", "{small}");
    }
    service.mend()?;
    for name in names {
        tracker.wait_verdict(&format!("{name}-full"), "up", "replied")?;
    }
    // One byte more does not fit the interface, which is no fault of the service.
    let over = toml("over", behinds[0], 1_473, "");
    drop(tracker);
    let tracker = Tracker::start(&lab.hub, &over)?;
    tracker.wait_verdict("over", "unknown", "send-failed")?;
    Ok(())
}
