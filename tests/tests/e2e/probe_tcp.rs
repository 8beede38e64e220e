//! TCP probes: a SYN, its answer, and how the connection is ended, which no program uses.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};
use std::os::fd::AsRawFd as _;
use tracker_lab::daemon::SOON;
use tracker_lab::pace::slow;
use tracker_lab::servers::{self, TcpEcho};
use tracker_lab::{Config, Lab, Namespace, Service, Status, Tracker};

const PORT: u16 = 7_443;

fn toml(service: &Service, name: &str, behind: IpAddr, more: &str) -> String {
    service.toml_to(
        name,
        behind,
        &format!("probe = \"tcp\"\nport = {PORT}\n{more}"),
    )
}

/// Waits until no connection of a host is half open, while the next probe is on its way. Without a reset each stays so
/// for a minute.
fn wait_closed(host: &Namespace) -> Result<()> {
    let deadline = Instant::now() + Duration::from_millis(800);
    while servers::half_open(host)? > 0 {
        anyhow::ensure!(Instant::now() < deadline, "connections stay half open");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// While the service passes, each probe is answered once. (What was sent before a host knew its neighbours is another
/// matter.)
fn loses_nothing(tracker: &Tracker, name: &str) -> Result<()> {
    let counts = |status: &Status| {
        ["lost", "duplicate", "late", "corrupt", "wrong_path"].map(|key| status.count(name, key))
    };
    let before = counts(&tracker.status()?);
    let after = counts(&tracker.wait_alive(SOON, name)?);
    assert_eq!(after, before, "{name}");
    Ok(())
}

#[test]
fn a_server_answers_and_keeps_no_connection() -> Result<()> {
    for (mode, family) in ["xdp-native", "xdp-generic", "tc"]
        .into_iter()
        .flat_map(|mode| [(mode, 0), (mode, 1)])
    {
        let lab = Lab::new()?;
        let service = lab.service();
        let behind = service.behinds()[family];
        let server = TcpEcho::start(&service.host, &service.behinds(), PORT)?;
        let toml = toml(service, "fw-1", behind, "");
        let config = Config::new(toml).mode(mode);
        let tracker = Tracker::start(&lab.hub, config)?;
        let up = tracker.wait_verdict("fw-1", "up", "replied")?;
        let shown = up.tracker("fw-1", behind);
        assert_eq!(
            (&shown["probe"], &shown["port"]),
            (&"tcp".into(), &PORT.into())
        );
        assert!(shown["rtt_us"]["last"].as_u64().is_some(), "{shown}");
        // The verdict may come before the deadline of a first probe that found no neighbour.
        tracker.wait_alive(SOON, "fw-1")?;
        loses_nothing(&tracker, "fw-1")?;
        // A SYN-ACK that was lost before a host knew its neighbour is repeated after a second (RFC 6298 section 2.1). Until
        // then its connection fills the server's short queue, and the server answers with SYN cookies, which leave nothing
        // to reset.
        sleep(slow(Duration::from_millis(1_500)));
        wait_closed(&service.host)?;
        let resets = || servers::tcp_counter(&service.host, "EmbryonicRsts");
        let received = || -> Result<u64> { Ok(tracker.status()?.count("fw-1", "received")) };
        let before = (resets()?, received()?);
        tracker.wait_alive(SOON, "fw-1")?;
        let received = received()? - before.1;
        wait_closed(&service.host)?;
        let reset = resets()? - before.0;
        // Of what answers the last probes of a daemon that ended, the stack hears.
        let of_stack = servers::tcp_counter(&lab.hub, "OutRsts")?;
        assert_eq!(
            of_stack, 0,
            "{mode}, {behind}: the hub's own stack saw an answer"
        );
        service.break_forwarding()?;
        tracker.wait_verdict("fw-1", "down", "no-reply")?;
        assert!(
            reset >= received,
            "{mode}, {behind}: {reset} resets for {received} answers"
        );
        service.mend()?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
        assert_eq!(server.accepted(), 0, "{mode}, {behind}");
    }
    Ok(())
}

#[test]
fn a_refusal_is_a_loss_or_a_reply() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let services: String = service
        .behinds()
        .into_iter()
        .zip([4, 6])
        .flat_map(|(behind, family)| {
            ["down", "up"].map(|refused| {
                let name = format!("{refused}{family}");
                toml(service, &name, behind, &format!("refused = \"{refused}\""))
            })
        })
        .collect();
    let tracker = Tracker::start(&lab.hub, &services)?;
    // No program listens.
    for family in [4, 6] {
        tracker.wait_verdict(&format!("up{family}"), "up", "replied")?;
        tracker.wait_verdict(&format!("down{family}"), "down", "refused")?;
    }
    let status = tracker.status()?;
    assert_eq!(status.count("down4", "received"), 0);
    let _server = TcpEcho::start(&service.host, &service.behinds(), PORT)?;
    for family in [4, 6] {
        tracker.wait_verdict(&format!("down{family}"), "up", "replied")?;
    }
    // The firewall itself refuses, in the server's name.
    service
        .firewall
        .nft("add rule inet firewall outage meta l4proto tcp reject with tcp reset\n")?;
    for family in [4, 6] {
        tracker.wait_verdict(&format!("down{family}"), "down", "refused")?;
    }
    let status = tracker.status()?;
    for name in ["up4", "up6"] {
        assert_eq!(status.verdict(name), "up", "{name}");
    }
    service.mend()?;
    service
        .firewall
        .nft("add rule inet firewall outage reject with icmpx type admin-prohibited\n")?;
    for (family, name) in [(4, "ICMP type 3 code 13"), (6, "ICMPv6 type 1 code 1")] {
        let service = format!("up{family}");
        let down = tracker.wait_verdict(&service, "down", "unreachable")?;
        let detail = down.service(&service)["members"][0]["trackers"][0]["detail"].clone();
        let detail = detail.as_str().unwrap_or_default();
        assert!(detail.starts_with(name), "{detail}");
    }
    Ok(())
}

/// The service hides the hub behind an address and ports of its own; the server accepts no other address.
#[test]
fn a_nat_that_rewrites_addresses_and_ports() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service.firewall.nft(
        "table inet nat { chain out { type nat hook postrouting priority srcnat;
           oifname \"eth1\" meta l4proto tcp masquerade to :20000-29999 random\n}\n}\n",
    )?;
    service.host.nft(
        "table inet only { chain in { type filter hook input priority 0;
           meta l4proto tcp tcp sport != 20000-29999 drop\n}\n}\n",
    )?;
    let server = TcpEcho::start(&service.host, &service.behinds(), PORT)?;
    let services: String = service
        .behinds()
        .into_iter()
        .zip([("v4", "fixed"), ("v6", "rotate")])
        .map(|(behind, (name, flow))| toml(service, name, behind, &format!("flow = \"{flow}\"")))
        .collect();
    let tracker = Tracker::start(&lab.hub, &services)?;
    for name in ["v4", "v6"] {
        tracker.wait_verdict(name, "up", "replied")?;
        loses_nothing(&tracker, name)?;
    }
    wait_closed(&service.host)?;
    assert_eq!(server.accepted(), 0);
    Ok(())
}

/// A SYN is a new connection, whatever its port was before: a service that passes only what it knows passes the old
/// session of an ICMP tracker, and neither of TCP. What `flow` changes is the port.
#[test]
fn each_syn_is_a_new_session() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let behind = service.behind.into();
    let _server = TcpEcho::start(&service.host, &service.behinds(), PORT)?;
    service.firewall.nft(
        "table inet state { chain forward { type filter hook forward priority -10; ct state established accept\n}\n}\n",
    )?;
    service.host.nft(
        "table ip ports { set used { type inet_service; flags dynamic\n}
           chain in { type filter hook input priority 0; tcp flags syn add @used { tcp sport }\n}\n}\n",
    )?;
    let fixed = [
        service.toml("icmp-fixed"),
        toml(service, "tcp-fixed", behind, ""),
    ]
    .concat();
    let rotating = toml(service, "tcp-rotate", behind, "flow = \"rotate\"");
    let tracker = Tracker::start(&lab.hub, fixed.as_str())?;
    for name in ["icmp-fixed", "tcp-fixed"] {
        tracker.wait_verdict(name, "up", "replied")?;
    }
    let ports = || -> Result<usize> {
        let listing = service.host.run("nft -j list set ip ports used")?;
        let listing: serde_json::Value = serde_json::from_str(&listing)?;
        let sets = listing["nftables"].as_array().context("a listing")?;
        let elements = sets.iter().find_map(|item| item["set"]["elem"].as_array());
        Ok(elements.map_or(0, Vec::len))
    };
    // A SYN whose answer was lost before a host knew its neighbour is followed by one from another port.
    let settled = ports()?;
    tracker.wait_alive(SOON, "tcp-fixed")?;
    assert_eq!(ports()?, settled, "the port of a fixed flow changes");
    assert!(tracker.reload(&*format!("{fixed}{rotating}"))?);
    tracker.wait_verdict("tcp-rotate", "up", "replied")?;
    tracker.wait_alive(SOON, "tcp-rotate")?;
    assert!(
        ports()? > settled + 2,
        "{} ports, before {settled}",
        ports()?
    );
    service
        .firewall
        .nft("add rule inet firewall outage ct state new drop\n")?;
    for name in ["tcp-fixed", "tcp-rotate"] {
        tracker.wait_verdict(name, "down", "no-reply")?;
    }
    assert_eq!(tracker.history("icmp-fixed")?.len(), 1);
    service.mend()?;
    for name in ["tcp-fixed", "tcp-rotate"] {
        tracker.wait_verdict(name, "up", "replied")?;
    }
    Ok(())
}

/// Connects from a port of one's own choice.
fn connect_from(from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let family = match from {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket::socket(family, SockType::Stream, SockFlag::empty(), None)?;
    socket::setsockopt(&socket, socket::sockopt::ReuseAddr, &true)?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))
        .with_context(|| format!("connect from {from} to {to}"))?;
    Ok(socket.into())
}

/// The hub's own connections to the port that is probed, from ports next to those of probes, and from such a port
/// itself while others probe.
#[test]
fn the_hubs_own_connections_are_left_alone() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let server = TcpEcho::start(&service.host, &service.behinds(), PORT)?;
    lab.hub.ip(&format!(
        "route add {} via {}\n",
        service.behind, service.endpoint
    ))?;
    let services = [
        toml(service, "fixed", service.behind.into(), ""),
        toml(
            service,
            "rotate",
            service.behind.into(),
            "flow = \"rotate\"",
        ),
    ]
    .concat();
    for mode in ["xdp-native", "tc"] {
        let config = Config::new(services.as_str()).mode(mode);
        let tracker = Tracker::start(&lab.hub, config)?;
        for name in ["fixed", "rotate"] {
            tracker.wait_verdict(name, "up", "replied")?;
        }
        let before = server.accepted();
        for (count, port) in (1..).zip([61_439, 63_000, 63_550, 65_535, 63_490]) {
            lab.hub.enter(|| {
                let from = (service.hub_address, port).into();
                let mut stream = connect_from(from, (service.behind, PORT).into())?;
                stream.write_all(b"untouched")?;
                let mut answer = [0; 9];
                stream.read_exact(&mut answer)?;
                assert_eq!(&answer, b"untouched");
                // No port waits for old segments when the next run takes it.
                socket::setsockopt(
                    &stream,
                    socket::sockopt::Linger,
                    &nix::libc::linger {
                        l_onoff: 1,
                        l_linger: 0,
                    },
                )?;
                Ok(())
            })?;
            assert_eq!(server.accepted() - before, count, "{mode}, {port}");
        }
        for name in ["fixed", "rotate"] {
            let status = tracker.wait_alive(SOON, name)?;
            assert_eq!(status.verdict(name), "up", "{mode}, {name}");
        }
    }
    Ok(())
}

/// A daemon after another goes on with what was there, and services come and go at run time.
#[test]
fn restarts_and_run_time_additions() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let _server = TcpEcho::start(&service.host, &service.behinds(), PORT)?;
    let toml = toml(service, "fw-1", service.behind.into(), "");
    let mut tracker = Tracker::start(&lab.hub, &toml)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let add = format!(
        "add fw-2 --endpoint {} --interface {} --behind {} --probe tcp --port {PORT}",
        service.endpoint, service.interface, service.behind
    );
    tracker.service(&add)?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    let before = tracker.status()?.count("fw-1", "received");
    tracker.kill()?;
    tracker.run()?;
    for name in ["fw-1", "fw-2"] {
        let status = tracker.wait_alive(SOON, name)?;
        assert_eq!(status.verdict(name), "up", "{name}");
        assert_eq!(tracker.history(name)?.len(), 1, "{name}");
    }
    assert!(tracker.status()?.count("fw-1", "received") > before);
    tracker.service("remove fw-2")?;
    tracker.service(&add)?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    loses_nothing(&tracker, "fw-1")?;
    wait_closed(&service.host)?;
    Ok(())
}
