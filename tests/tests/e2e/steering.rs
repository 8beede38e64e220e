//! Tracker packets that others send to the endpoint go through the service, and their replies come back as from the
//! endpoint; everything else passes untouched.
//!
//! ```text
//!   prober ------------------ hub ------------------ firewall ----------------- host
//!         eth0          up0       eth1          eth0
//!   192.0.2.9        192.0.2.1    10.9.0.1      10.9.0.2                10.20.0.9
//!   198.51.100.9 (no route to it)               (endpoint)              (behind)
//! ```

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tracker_lab::daemon::{KernelObject, SOON};
use tracker_lab::netns::Owner;
use tracker_lab::pace::{pause, slow};
use tracker_lab::tun::Tunnel;
use tracker_lab::{Config, Lab, Namespace, Status, Tracker, skip};

const PROBER: &str = "192.0.2.9";
const STRANGER: &str = "198.51.100.9";
const PROBER6: &str = "2001:db8:f::9";
const MARK: u32 = 0x7472;
const UDP_PORT: u16 = 5_301;
const TCP_PORT: u16 = 4_431;
/// A port that no tracker names.
const OTHER_PORT: u16 = 4_432;
const TRANSFER: usize = 10_000_000;

/// What is done to the lab before the daemon starts.
#[derive(Clone, Copy, Default)]
struct Setting {
    /// `hub.mode`.
    mode: Option<&'static str>,
    /// Receive offload off on the firewall's side: its end then takes no frames by XDP redirect.
    is_without_gro: bool,
    /// All offloads off, everywhere.
    is_without_offloads: bool,
    /// The uplink is a tunnel without Ethernet header.
    has_tun_uplink: bool,
    /// The service is at the other end of one.
    has_tun_member: bool,
}

struct Fixture {
    lab: Lab,
    prober: Namespace,
    /// The member's interface.
    interface: &'static str,
    /// The endpoint of each family.
    endpoints: [IpAddr; 2],
    /// The hub's address beside it.
    hub_addresses: [IpAddr; 2],
    _tunnels: Vec<Tunnel>,
    _owner: Owner,
}

impl Fixture {
    fn new(setting: Setting) -> Result<Self> {
        let lab = Lab::new()?;
        let owner = Owner::new()?;
        let prober = Namespace::new(&owner, "prober")?;
        let (hub, service) = (&lab.hub, lab.service());
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            hub.sysctl(key, "1")?;
        }
        let mut tunnels = Vec::new();
        if setting.has_tun_uplink {
            tunnels.push(Tunnel::new("up0", [hub, &prober])?);
            prober.ip("link set up0 name eth0\n")?;
        } else {
            let prober = prober.name();
            hub.ip(&format!(
                "link add up0 type veth peer name eth0 netns {prober}\n"
            ))?;
        }
        hub.ip(&format!(
            "address add 192.0.2.1/24 dev up0\n\
             address add 2001:db8:f::1/64 dev up0\n\
             link set up0 up\n\
             route add 198.51.100.0/24 via {PROBER}\n"
        ))?;
        // The strictest: a reply's source must be reached by the interface on which it came.
        for name in ["all", "default", "up0", "eth1"] {
            hub.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "1")?;
        }
        prober.ip(&format!(
            "address add {PROBER}/24 dev eth0\n\
             address add {STRANGER}/32 dev eth0\n\
             address add {PROBER6}/64 dev eth0\n\
             link set eth0 up\n\
             route add default via 192.0.2.1\n\
             route add ::/0 via 2001:db8:f::1\n"
        ))?;
        let mut fixture_of = ("eth1", [service.endpoint.into(), service.endpoint6.into()]);
        let mut hub_addresses = [service.hub_address.into(), service.hub_address6.into()];
        if setting.has_tun_member {
            tunnels.push(Tunnel::new("tun0", [hub, &service.firewall])?);
            for (namespace, host) in [(hub, 1), (&service.firewall, 2)] {
                namespace.ip(&format!(
                    "address add 10.9.7.{host}/24 dev tun0\n\
                     address add 2001:db8:97::{host}/64 dev tun0\n\
                     link set tun0 up\n"
                ))?;
            }
            service.firewall.nft(
                "add rule inet firewall forward iifname tun0 counter name forwarded accept\n",
            )?;
            fixture_of = ("tun0", ["10.9.7.2".parse()?, "2001:db8:97::2".parse()?]);
            hub_addresses = ["10.9.7.1".parse()?, "2001:db8:97::1".parse()?];
        }
        let (interface, endpoints) = fixture_of;
        service.firewall.ip(&format!(
            "route add 192.0.2.0/24 via {0}\nroute add 198.51.100.0/24 via {0}\nroute add 2001:db8:f::/64 via {1}\n",
            hub_addresses[0], hub_addresses[1]
        ))?;
        let gro = if setting.is_without_gro { "off" } else { "on" };
        service
            .firewall
            .run(&format!("ethtool -K eth0 gro {gro}"))?;
        if setting.is_without_offloads {
            for (namespace, device) in [
                (hub, "up0"),
                (hub, "eth1"),
                (&prober, "eth0"),
                (&service.firewall, "eth0"),
                (&service.firewall, "eth1"),
                (&service.host, "eth0"),
            ] {
                namespace.run(&format!(
                    "ethtool -K {device} rx off tx off tso off gso off gro off"
                ))?;
            }
        }
        Ok(Self {
            lab,
            prober,
            interface,
            endpoints,
            hub_addresses,
            _tunnels: tunnels,
            _owner: owner,
        })
    }

    /// A service of each family on the one interface, with trackers that name the ports.
    fn services(&self) -> String {
        let interface = self.interface;
        let of = |name: &str, endpoint: IpAddr, behind: IpAddr| {
            format!(
                "[[service]]\nname = \"{name}\"\n[[service.member]]\nendpoint = \"{endpoint}\"\n\
                 interface = \"{interface}\"\nbehind = [\"{behind}\"]\n\
                 [[service.member.tracker]]\nbehind = \"{behind}\"\nprobe = \"udp\"\nport = {UDP_PORT}\n\
                 [[service.member.tracker]]\nbehind = \"{behind}\"\nprobe = \"tcp\"\nport = {TCP_PORT}\n"
            )
        };
        let [v4, v6] = self.pairs();
        of("fw-4", v4.0, v4.1) + &of("fw-6", v6.0, v6.1)
    }

    fn steering() -> String {
        format!(
            "[steering]\nuplinks = [\"up0\"]\nsources = [\"192.0.2.0/24\", \"2001:db8:f::/64\"]\nmark = {MARK}\nmark_mask = 0xffff\n"
        )
    }

    fn start(&self, setting: Setting) -> Result<Tracker<'_>> {
        // A member on a tunnel can only be received at TC.
        let mode = match setting.has_tun_member {
            true => "auto",
            false => setting.mode.unwrap_or("xdp-native"),
        };
        let config = Config::new(self.services() + &Self::steering()).mode(mode);
        let tracker = Tracker::start(&self.lab.hub, config)?;
        for service in ["fw-4", "fw-6"] {
            tracker.wait_verdict(service, "up", "replied")?;
        }
        Ok(tracker)
    }

    /// Endpoint and behind address of both families.
    fn pairs(&self) -> [(IpAddr, IpAddr); 2] {
        let service = self.lab.service();
        let [v4, v6] = self.endpoints;
        [(v4, service.behind.into()), (v6, service.behind6.into())]
    }
}

/// A service's counters.
fn counts(tracker: &Tracker, service: &str) -> Result<(u64, u64)> {
    let status = tracker.status()?;
    let of = status.service(service);
    let count = |key: &str| of[key].as_u64().with_context(|| format!("{key} in {of}"));
    Ok((count("steered")?, count("replied")?))
}

fn uplink_mode(status: &Status) -> &str {
    status.0["steering"]["uplinks"][0]["mode"]
        .as_str()
        .unwrap_or_default()
}

/// Pings with `options`. Returns how many were answered, five at least, if each was answered once and by the address that
/// was pinged.
fn pinged(from: &Namespace, to: IpAddr, options: &str) -> Result<Option<u64>> {
    // Until five are answered, so more if answers take longer than the pause between them. Without a deadline, ping
    // waits for the last no longer than it waited for the others.
    let patience = slow(Duration::from_secs(2)).as_secs();
    let line = format!("ping -n -c 5 -i 0.02 -w {patience} {options} {to}");
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = from.command(words[0]).args(&words[1..]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answered = text
        .lines()
        .filter(|line| line.contains("bytes from") && line.contains(&format!("from {to}")))
        .count();
    let sums_up = format!("{answered} packets transmitted, {answered} received");
    let all = answered >= 5 && text.contains(&sums_up) && !text.contains("DUP");
    if !all {
        println!("`{line}`: {text}");
    }
    Ok(all.then_some(answered as u64))
}

/// Whether all pings were answered.
fn pings(from: &Namespace, to: IpAddr, options: &str) -> Result<bool> {
    Ok(pinged(from, to, options)?.is_some())
}

/// A server's answers to UDP datagrams: the same bytes, after the address it saw.
fn udp_echo(
    host: &Namespace,
    address: SocketAddr,
) -> Result<thread::JoinHandle<Result<Vec<SocketAddr>>>> {
    let socket = host.enter(|| Ok(UdpSocket::bind(address)?))?;
    socket.set_read_timeout(Some(slow(SOON)))?;
    Ok(thread::spawn(move || {
        let mut seen = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = socket.recv_from(&mut buffer)?;
            if &buffer[..length] == b"end" {
                return Ok(seen);
            }
            seen.push(from);
            socket.send_to(&buffer[..length], from)?;
        }
    }))
}

fn set_mark(socket: &impl AsRawFd, mark: u32) -> Result<()> {
    // SAFETY: a valid descriptor, and an option of four readable bytes.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MARK,
            (&raw const mark).cast(),
            size_of::<u32>() as u32,
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("set SO_MARK");
    }
    Ok(())
}

/// A TCP connection from `namespace`, marked on request: std cannot mark a socket before it connects.
fn connect(
    namespace: &Namespace,
    to: SocketAddr,
    from: Option<IpAddr>,
    mark: u32,
) -> Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
        sockopt,
    };
    namespace.enter(|| {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        if mark != 0 {
            set_mark(&fd, mark)?;
        }
        let patience = nix::sys::time::TimeVal::new(slow(SOON).as_secs().cast_signed(), 0);
        setsockopt(&fd, sockopt::SendTimeout, &patience)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
        if let Some(from) = from {
            bind(
                fd.as_raw_fd(),
                &SockaddrStorage::from(SocketAddr::new(from, 0)),
            )?;
        }
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
            .with_context(|| format!("connect to {to}"))?;
        Ok(TcpStream::from(fd))
    })
}

/// Bytes, each a function of its place.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// A transfer both ways over one connection to `to`, served on `host` at `behind`; returns the client address that the server saw.
fn transfer(
    fixture: &Fixture,
    client: &Namespace,
    to: SocketAddr,
    behind: IpAddr,
    mark: u32,
) -> Result<SocketAddr> {
    let host = &fixture.lab.service().host;
    let listener = host.enter(|| Ok(TcpListener::bind((behind, to.port()))?))?;
    let server = thread::spawn(move || -> Result<SocketAddr> {
        let (mut stream, peer) = listener.accept()?;
        stream.set_read_timeout(Some(slow(SOON)))?;
        stream.set_write_timeout(Some(slow(SOON)))?;
        let mut received = vec![0; TRANSFER];
        stream
            .read_exact(&mut received)
            .context("receive from the client")?;
        if received != pattern(TRANSFER) {
            bail!("the server received other bytes than were sent");
        }
        stream.write_all(&received).context("send back")?;
        Ok(peer)
    });
    let mut stream = connect(client, to, None, mark)?;
    assert_eq!(stream.peer_addr()?, to);
    let sent = pattern(TRANSFER);
    stream.write_all(&sent).context("send")?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back).context("receive")?;
    assert!(
        back == sent,
        "{} of {} bytes came back",
        back.len(),
        sent.len()
    );
    server
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Everything that is to be steered from the prober and from the hub itself, of both families.
fn check_all(fixture: &Fixture, tracker: &Tracker) -> Result<()> {
    let service = fixture.lab.service();
    for ((endpoint, behind), name) in fixture.pairs().into_iter().zip(["fw-4", "fw-6"]) {
        let (prober, hub) = match endpoint {
            IpAddr::V4(_) => (PROBER.parse()?, fixture.hub_addresses[0]),
            IpAddr::V6(_) => (PROBER6.parse()?, fixture.hub_addresses[1]),
        };
        for (from, address, mark) in [(&fixture.prober, prober, 0), (&fixture.lab.hub, hub, MARK)] {
            let what = format!("{endpoint} from {address}");
            let option = if mark == 0 {
                String::new()
            } else {
                format!("-m {mark}")
            };
            let (steered, replied) = counts(tracker, name)?;
            let forwarded = service.forwarded()?;
            assert!(
                pings(from, endpoint, &option)?,
                "ping {what}: {}",
                tracker.log()
            );
            // More if the end of an earlier connection is still under way.
            let after = counts(tracker, name)?;
            assert!(
                after.0 >= steered + 5 && after.1 >= replied + 5,
                "{what}: {after:?}"
            );
            assert!(
                service.forwarded()? >= forwarded + 5,
                "{what}: not through the firewall"
            );
            // Odd and even lengths.
            for size in [0, 1, 7, 500, 1_400] {
                assert!(
                    pings(from, endpoint, &format!("{option} -s {size}"))?,
                    "ping of {size} bytes {what}"
                );
            }

            let server = udp_echo(&service.host, (behind, UDP_PORT).into())?;
            let seen = from.enter(|| {
                let any: IpAddr = match endpoint {
                    IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
                };
                let socket = UdpSocket::bind((any, 0))?;
                if mark != 0 {
                    set_mark(&socket, mark)?;
                }
                socket.set_read_timeout(Some(slow(Duration::from_secs(2))))?;
                // Connected: the kernel refuses a datagram from any other address.
                socket.connect((endpoint, UDP_PORT))?;
                let mut buffer = [0; 2048];
                for length in [0, 1, 2, 99, 1_400] {
                    socket.send(&pattern(length))?;
                    let back = socket
                        .recv(&mut buffer)
                        .with_context(|| format!("{length} bytes by UDP to {what}"))?;
                    assert_eq!(buffer[..back], pattern(length));
                }
                socket.send(b"end")?;
                Ok(socket.local_addr()?.port())
            })?;
            let mut peers = server
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            // The daemon probes the same port.
            peers.retain(|peer| peer.port() < tracker_ebpf::abi::FIXED_PORTS);
            assert_eq!(
                peers,
                [SocketAddr::new(address, seen); 5],
                "whom the host saw"
            );

            let peer = transfer(fixture, from, (endpoint, TCP_PORT).into(), behind, mark)
                .with_context(|| format!("TCP to {what}"))?;
            assert_eq!(peer.ip(), address);
        }
    }
    Ok(())
}

fn works_with(setting: Setting, uplink: &str) -> Result<()> {
    let fixture = Fixture::new(setting)?;
    let tracker = fixture.start(setting)?;
    let status = tracker.wait_for("the uplink's program", SOON, |status| {
        !uplink_mode(status).is_empty()
    })?;
    assert_eq!(uplink_mode(&status), uplink);
    check_all(&fixture, &tracker)?;
    let redirected = redirected(&fixture)?;
    let is_fast = uplink != "tc" && !setting.is_without_gro && !setting.is_without_offloads;
    assert_eq!(redirected > 0, is_fast, "{redirected} frames by XDP");
    Ok(())
}

/// How many frames XDP has redirected from the uplink, by the driver's own count.
fn redirected(fixture: &Fixture) -> Result<u64> {
    let statistics = fixture.lab.hub.run("ethtool -S up0")?;
    Ok(statistics
        .lines()
        .filter_map(|line| line.trim().split_once(": "))
        .filter(|(name, _)| name.starts_with("rx_queue") && name.ends_with("xdp_redirect"))
        .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
        .sum())
}

#[test]
fn by_xdp() -> Result<()> {
    works_with(Setting::default(), "xdp-native")
}

#[test]
fn by_xdp_without_offloads() -> Result<()> {
    let setting = Setting {
        is_without_offloads: true,
        ..Setting::default()
    };
    works_with(setting, "xdp-native")
}

#[test]
fn by_xdp_to_a_device_that_takes_no_redirected_frames() -> Result<()> {
    let setting = Setting {
        is_without_gro: true,
        ..Setting::default()
    };
    works_with(setting, "xdp-native")
}

#[test]
fn by_tc() -> Result<()> {
    let setting = Setting {
        mode: Some("tc"),
        ..Setting::default()
    };
    works_with(setting, "tc")
}

#[test]
fn by_tc_without_offloads() -> Result<()> {
    let setting = Setting {
        mode: Some("tc"),
        is_without_offloads: true,
        ..Setting::default()
    };
    works_with(setting, "tc")
}

#[test]
fn by_xdp_in_the_generic_hook() -> Result<()> {
    let setting = Setting {
        mode: Some("xdp-generic"),
        ..Setting::default()
    };
    let fixture = Fixture::new(setting)?;
    let tracker = fixture.start(setting)?;
    assert_eq!(uplink_mode(&tracker.status()?), "xdp-generic");
    check_all(&fixture, &tracker)
}

/// Uplink, member or both without Ethernet header: a header is put before the packet, or taken off.
#[test]
fn by_tunnels() -> Result<()> {
    for (has_tun_uplink, has_tun_member) in [(false, true), (true, false), (true, true)] {
        let setting = Setting {
            has_tun_uplink,
            has_tun_member,
            ..Setting::default()
        };
        if !Path::new("/dev/net/tun").exists() {
            skip!("this kernel has no tun devices (/dev/net/tun)");
        }
        let fixture = Fixture::new(setting)?;
        let tracker = fixture.start(setting)?;
        let status = tracker.status()?;
        // `auto` leaves a veth without XDP.
        assert_eq!(uplink_mode(&status), "tc");
        check_all(&fixture, &tracker).with_context(|| {
            format!("uplink tun: {has_tun_uplink}, member tun: {has_tun_member}")
        })?;
    }
    Ok(())
}

/// A connection outlives the daemon: packets are steered while no daemon runs, and while the next one does.
#[test]
fn a_connection_goes_on_over_a_restart() -> Result<()> {
    let fixture = Fixture::new(Setting::default())?;
    let mut tracker = fixture.start(Setting::default())?;
    let (endpoint, behind) = fixture.pairs()[0];
    let host = &fixture.lab.service().host;
    let to = SocketAddr::new(endpoint, TCP_PORT);
    let listener = host.enter(|| Ok(TcpListener::bind((behind, TCP_PORT))?))?;
    let mut client = connect(&fixture.prober, to, None, 0)?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(SOON))?;
    let mut exchange = |word: &[u8; 4]| -> Result<()> {
        let mut heard = [0; 4];
        // The server sends first: the remembered flow alone tells which connection its packets belong to.
        server.write_all(word)?;
        client.read_exact(&mut heard).context("hear the server")?;
        assert_eq!(&heard, word);
        client.write_all(word)?;
        server.read_exact(&mut heard).context("hear the client")?;
        assert_eq!(&heard, word);
        Ok(())
    };
    exchange(b"when")?;
    let before = counts(&tracker, "fw-4")?;
    let attached = links(&tracker);
    for _ in 0..2 {
        tracker.kill()?;
        exchange(b"none")?;
        tracker.run()?;
        exchange(b"next")?;
    }
    let after = counts(&tracker, "fw-4")?;
    assert!(
        after.0 > before.0 && after.1 > before.1,
        "{before:?}, then {after:?}"
    );
    assert_eq!(links(&tracker), attached);
    assert_eq!(tracker.history("fw-4")?.len(), 1);
    assert!(pings(&fixture.prober, endpoint, "")?);

    // The next daemon does not steer, and leaves nothing of it.
    tracker.kill()?;
    tracker.write(Config::new(fixture.services()))?;
    tracker.run()?;
    let left: Vec<_> = attached
        .iter()
        .filter(|link| links(&tracker).contains(link))
        .collect();
    assert!(left.len() < attached.len(), "{left:?}");
    assert!(!tracker.pins().join("maps/FLOWS").exists());
    let status = tracker.status()?;
    assert!(status.0["steering"].is_null());
    assert_eq!(tracker.history("fw-4")?.len(), 1);
    Ok(())
}

#[test]
fn a_service_that_passes_nothing_shows() -> Result<()> {
    let fixture = Fixture::new(Setting::default())?;
    let tracker = fixture.start(Setting::default())?;
    let service = fixture.lab.service();
    // Another agent has bits of its own in the mark.
    let local = format!("-m {}", MARK | 0x4_0000);
    let steered = [(&fixture.prober, ""), (&fixture.lab.hub, local.as_str())];
    for (endpoint, _) in fixture.pairs() {
        for (from, options) in steered {
            assert!(pings(from, endpoint, options)?, "{endpoint} {options}");
        }
    }
    service.break_forwarding()?;
    for (endpoint, _) in fixture.pairs() {
        for (from, options) in steered {
            assert!(!pings(from, endpoint, options)?, "{endpoint} {options}");
        }
        // Yet packets that are not steered reach the endpoint's own address, which answers.
        assert!(pings(&fixture.lab.hub, endpoint, "")?, "{endpoint}");
    }
    wait_down(&fixture, &tracker)?;
    service.mend()?;
    for (endpoint, _) in fixture.pairs() {
        for (from, options) in steered {
            assert!(pings(from, endpoint, options)?, "{endpoint} {options}");
        }
    }
    Ok(())
}

#[test]
fn what_is_not_to_be_steered_reaches_the_endpoint_itself() -> Result<()> {
    for mode in ["xdp-native", "tc"] {
        let setting = Setting {
            mode: Some(mode),
            ..Setting::default()
        };
        let fixture = Fixture::new(setting)?;
        let tracker = fixture.start(setting)?;
        let service = fixture.lab.service();
        let endpoint = IpAddr::from(service.endpoint);
        service.break_forwarding()?;
        wait_down(&fixture, &tracker)?;
        let before = (counts(&tracker, "fw-4")?, counts(&tracker, "fw-6")?);
        // Another source, no mark, another mark: the firewall itself answers all of them.
        assert!(pings(&fixture.prober, endpoint, &format!("-I {STRANGER}"))?);
        for endpoint in [endpoint, service.endpoint6.into()] {
            assert!(pings(&fixture.lab.hub, endpoint, "")?);
            assert!(pings(&fixture.lab.hub, endpoint, "-m 7")?);
            // Its answer to what cannot be steered would say that the service passes traffic.
            let marked = format!("-m {MARK} -s 4000");
            assert!(!pings(&fixture.lab.hub, endpoint, &marked)?);
            assert!(!pings(&fixture.prober, endpoint, "-s 4000")?);
            assert!(pings(&fixture.lab.hub, endpoint, "-s 4000")?);
        }
        assert!(!pings(&fixture.prober, endpoint, "-R")?);
        // A port that no tracker names, and one of the other protocol.
        for port in [OTHER_PORT, UDP_PORT] {
            let listener = service
                .firewall
                .enter(|| Ok(TcpListener::bind((endpoint, port))?))?;
            let stream = connect(&fixture.prober, (endpoint, port).into(), None, 0)?;
            let (accepted, peer) = listener.accept()?;
            assert_eq!(peer.ip(), PROBER.parse::<IpAddr>()?);
            drop((stream, accepted));
        }
        let after = (counts(&tracker, "fw-4")?, counts(&tracker, "fw-6")?);
        assert_eq!(after, before, "{mode}");
    }
    Ok(())
}

/// A prober that may be steered may also send to the behind address directly: the replies keep their address, also while its
/// other packets are steered.
#[test]
fn a_direct_connection_keeps_its_addresses() -> Result<()> {
    let fixture = Fixture::new(Setting::default())?;
    let tracker = fixture.start(Setting::default())?;
    let service = fixture.lab.service();
    fixture.lab.hub.ip(
        "route add 10.20.0.0/24 via 10.9.0.2\nroute add 2001:db8:20::/64 via 2001:db8:9::2\n",
    )?;
    for ((endpoint, behind), name) in fixture.pairs().into_iter().zip(["fw-4", "fw-6"]) {
        assert!(pings(&fixture.prober, endpoint, "")?);
        let before = counts(&tracker, name)?;
        assert!(pings(&fixture.prober, behind, "")?, "{behind}");
        assert!(
            pings(&fixture.lab.hub, behind, &format!("-m {MARK}"))?,
            "{behind}"
        );
        transfer(
            &fixture,
            &fixture.prober,
            (behind, TCP_PORT).into(),
            behind,
            0,
        )?;
        assert_eq!(counts(&tracker, name)?, before);
        transfer(
            &fixture,
            &fixture.prober,
            (endpoint, TCP_PORT).into(),
            behind,
            0,
        )?;
    }
    // The same with the hub in between: the host speaks to the prober first.
    let listener = fixture
        .prober
        .enter(|| Ok(TcpListener::bind((PROBER, 7_000))?))?;
    let _stream = connect(
        &service.host,
        SocketAddr::new(PROBER.parse()?, 7_000),
        Some(service.behind.into()),
        0,
    )?;
    assert_eq!(listener.accept()?.1.ip(), IpAddr::from(service.behind));
    Ok(())
}

#[test]
fn somebody_elses_xdp_program_stays() -> Result<()> {
    use aya::programs::{Xdp, xdp::XdpMode};
    let fixture = Fixture::new(Setting::default())?;
    let mut ebpf = aya::EbpfLoader::new().load(tracker_user::datapath::OBJECT)?;
    // With empty maps it passes everything.
    let name = tracker_ebpf::abi::program::RECEIVE;
    tracker_user::datapath::object::load(&mut ebpf, name)?;
    let program: &mut Xdp = ebpf
        .program_mut(name)
        .context("find a program")?
        .try_into()?;
    let link = fixture
        .lab
        .hub
        .enter(|| Ok(program.attach("up0", XdpMode::Driver)?))?;
    let tracker = fixture.start(Setting::default())?;
    let status = tracker.wait_for("the uplink's program", SOON, |status| {
        !uplink_mode(status).is_empty()
    })?;
    assert_eq!(uplink_mode(&status), "tc");
    check_all(&fixture, &tracker)?;
    program.detach(link)?;
    tracker.wait_for("XDP", SOON, |status| uplink_mode(status) == "xdp-native")?;
    check_all(&fixture, &tracker)
}

/// The daemon's own trackers are down; those of ports, which it only steers, stay unknown, and so does the service.
fn wait_down(fixture: &Fixture, tracker: &Tracker) -> Result<()> {
    let behind = fixture.lab.service().behind;
    tracker.wait_for("the tracker to be down", SOON, |status| {
        status.tracker("fw-4", behind)["verdict"] == "down"
    })?;
    Ok(())
}

/// The pinned links of steering.
fn links(tracker: &Tracker) -> Vec<String> {
    let hooks = ["steer-", "uplink-", "marked-", "return-"];
    let entries = std::fs::read_dir(tracker.pins().join("links"));
    let names = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| hooks.iter().any(|hook| name.starts_with(hook)))
        .collect();
    names.sort();
    names
}

/// Whether the uplink has an XDP program.
fn has_xdp(fixture: &Fixture) -> Result<bool> {
    let link = fixture.lab.hub.run("ip -d link show dev up0")?;
    Ok(link.contains("prog/xdp"))
}

#[test]
fn a_reload_turns_it_on_and_off_and_disturbs_nothing() -> Result<()> {
    let fixture = Fixture::new(Setting::default())?;
    let (lab, endpoint) = (&fixture.lab, IpAddr::from(fixture.lab.service().endpoint));
    let tracker = Tracker::start(&lab.hub, Config::new(fixture.services()))?;
    for service in ["fw-4", "fw-6"] {
        tracker.wait_verdict(service, "up", "replied")?;
    }
    // A new namespace's hosts know no IPv6 neighbours for up to a second: the first verdict may be a true "down".
    let history = tracker.history("fw-6")?;
    let plain = std::fs::read_to_string(tracker.config())?;
    let on = format!("{plain}{}", Fixture::steering());
    let maps = tracker.pins().join("maps");
    let reload = |text: &str| -> Result<()> {
        std::fs::write(tracker.config(), text)?;
        tracker.signal(nix::sys::signal::Signal::SIGHUP)
    };
    for _ in 0..2 {
        assert!(tracker.status()?.0.get("steering").is_none());
        assert!(tracker.status()?.service("fw-4").get("steered").is_none());
        assert!(!maps.join("FLOWS").exists());
        assert!(links(&tracker).is_empty() && !has_xdp(&fixture)?);
        reload(&on)?;
        tracker.wait_for("steering", SOON, |status| {
            uplink_mode(status) == "xdp-native"
        })?;
        check_all(&fixture, &tracker)?;
        assert!(maps.join("FLOWS").exists());

        // Another member, and another source: what was counted stays, and an open connection goes on.
        let listener = lab
            .service()
            .host
            .enter(|| Ok(TcpListener::bind(("10.20.0.9", TCP_PORT))?))?;
        let mut open = connect(&fixture.prober, (endpoint, TCP_PORT).into(), None, 0)?;
        let (mut served, _) = listener.accept()?;
        let before = counts(&tracker, "fw-4")?;
        let more = "[[service]]\nname = \"more\"\nendpoint = \"10.9.0.77\"\ninterface = \"eth1\"\nbehind = [\"10.20.0.9\"]\n";
        let wider = on.replace("192.0.2.0/24", "198.51.100.0/24\", \"192.0.2.0/24");
        reload(&format!("{wider}{more}"))?;
        tracker.wait_for("the other member", SOON, |status| {
            !status.service("more").is_null()
        })?;
        let answered = pinged(&fixture.prober, endpoint, &format!("-I {STRANGER}"))?;
        let answered = answered.context("not all were answered")?;
        let after = counts(&tracker, "fw-4")?;
        assert_eq!(after, (before.0 + answered, before.1 + answered));
        open.write_all(b"still there?")?;
        served.set_read_timeout(Some(slow(SOON)))?;
        served.read_exact(&mut [0; 12])?;
        served.write_all(b"yes")?;
        open.read_exact(&mut [0; 3])?;

        // One endpoint less.
        let fewer = on.replace("10.9.0.2", "10.9.0.78");
        reload(&fewer)?;
        tracker.wait_for("the endpoint's change", SOON, |status| {
            status.member("fw-4", "active")["endpoint"] == "10.9.0.78"
        })?;
        lab.service().block("10.20.0.9")?;
        assert!(
            pings(&fixture.prober, endpoint, "")?,
            "the firewall itself does not answer"
        );
        lab.service().mend()?;
        reload(&plain)?;
        tracker.wait_for("no steering", SOON, |status| {
            status.0.get("steering").is_none()
                && status.member("fw-4", "active")["endpoint"] == "10.9.0.2"
        })?;
        tracker.wait_verdict("fw-4", "up", "replied")?;
    }
    // The trackers of the other service never noticed.
    assert_eq!(tracker.history("fw-6")?, history);
    Ok(())
}

#[test]
fn uplinks_are_followed() -> Result<()> {
    let fixture = Fixture::new(Setting::default())?;
    let tracker = fixture.start(Setting::default())?;
    let (hub, endpoint) = (
        &fixture.lab.hub,
        IpAddr::from(fixture.lab.service().endpoint),
    );
    let steered = |what: &str| -> Result<()> {
        tracker.wait_for(what, SOON, |status| uplink_mode(status) == "xdp-native")?;
        let before = counts(&tracker, "fw-4")?;
        let answered = pinged(&fixture.prober, endpoint, "")?;
        let answered = answered.with_context(|| format!("{what}: not all were answered"))?;
        let after = counts(&tracker, "fw-4")?;
        assert_eq!(after, (before.0 + answered, before.1 + answered), "{what}");
        Ok(())
    };
    steered("the start")?;
    // Renamed, it is another one.
    hub.ip("link set up0 down\nlink set up0 name up1\nlink set up1 up\n")?;
    tracker.wait_for("up0 to be gone", SOON, |status| {
        uplink_mode(status).is_empty()
    })?;
    hub.ip("link set up1 down\nlink set up1 name up0\nlink set up0 up\nroute add 198.51.100.0/24 via 192.0.2.9\n")?;
    steered("the name's return")?;
    // Deleted and made again.
    hub.ip("link del up0\n")?;
    tracker.wait_for("up0 to be deleted", SOON, |status| {
        uplink_mode(status).is_empty()
    })?;
    hub.ip(&format!(
        "link add up0 type veth peer name eth0 netns {}\naddress add 192.0.2.1/24 dev up0\nlink set up0 up\n",
        fixture.prober.name()
    ))?;
    fixture.prober.ip(&format!(
        "address add {PROBER}/24 dev eth0\nlink set eth0 up\nroute add default via 192.0.2.1\n"
    ))?;
    steered("a new up0")?;
    // Another MAC address.
    hub.ip("link set up0 address 02:00:00:00:00:77\n")?;
    fixture.prober.ip("neigh flush dev eth0\n")?;
    steered("another MAC address")?;
    // Another program detaches one of the daemon's.
    let local = format!("-m {MARK}");
    for hook in ["uplink-", "return-", "marked-", "steer-"] {
        let names = links(&tracker);
        let pins = names.iter().filter(|name| name.starts_with(hook));
        for pin in pins.map(|name| tracker.pins().join("links").join(name)) {
            let mut detach = std::process::Command::new("bpftool");
            tracker_lab::netns::check(detach.args(["link", "detach", "pinned"]).arg(&pin))?;
        }
        // A ping now and then may go untouched, or unanswered, until the daemon looks again.
        let deadline = Instant::now() + slow(SOON);
        loop {
            let before = counts(&tracker, "fw-4")?;
            let answered = pings(&fixture.prober, endpoint, "")? && pings(hub, endpoint, &local)?;
            let after = counts(&tracker, "fw-4")?;
            if answered && after == (before.0 + 10, before.1 + 10) && has_xdp(&fixture)? {
                break;
            }
            if Instant::now() > deadline {
                bail!("{hook} stays detached; its log:\n{}", tracker.log());
            }
        }
        assert_eq!(links(&tracker), names);
    }
    Ok(())
}

#[test]
fn nothing_is_left() -> Result<()> {
    let fixture = Fixture::new(Setting::default())?;
    let look = || fixture.lab.hub.run("tc qdisc show");
    let before = look()?;
    let mut tracker = fixture.start(Setting::default())?;
    check_all(&fixture, &tracker)?;
    let running = links(&tracker);
    for (hook, count) in [
        ("steer-", 1),
        ("uplink-", 1),
        ("marked-", 2),
        ("return-", 1),
    ] {
        let found = running.iter().filter(|name| name.starts_with(hook)).count();
        assert_eq!(found, count, "{hook} in {running:?}");
    }
    let objects = |tracker: &Tracker| -> Result<BTreeSet<KernelObject>> {
        let held = KernelObject::held_by(tracker.pid()?)?;
        Ok(held
            .union(&KernelObject::pinned_below(&tracker.pins()))
            .cloned()
            .collect())
    };
    let is_clean = |tracker: &Tracker, objects: &BTreeSet<KernelObject>| -> Result<()> {
        assert_eq!(look()?, before);
        assert!(!has_xdp(&fixture)? && !tracker.pins().exists());
        let deadline = Instant::now() + slow(SOON);
        while let Some(left) = objects.iter().find(|object| object.exists()) {
            if Instant::now() > deadline {
                bail!("{left:?} is still in the kernel");
            }
            pause(Duration::from_millis(50));
        }
        Ok(())
    };
    let first = objects(&tracker)?;
    tracker.terminate()?;
    is_clean(&tracker, &first)?;

    tracker.run()?;
    tracker.wait_for("steering", SOON, |status| {
        uplink_mode(status) == "xdp-native"
    })?;
    let second = objects(&tracker)?;
    tracker.kill()?;
    assert_eq!(
        links(&tracker),
        running,
        "a killed daemon leaves its programs"
    );
    tracker.cleanup()?;
    is_clean(&tracker, &second)
}

/// What cannot be steered comes to no endpoint, which would answer it whether the service passes traffic or not.
#[test]
fn large_pings_are_not_answered_by_the_endpoint() -> Result<()> {
    let fixture = Fixture::new(Setting::default())?;
    let tracker = fixture.start(Setting::default())?;
    for endpoint in fixture.endpoints {
        let (prober, hub) = (&fixture.prober, &fixture.lab.hub);
        let marked = format!("-m {MARK}");
        assert!(pings(prober, endpoint, "")? && pings(hub, endpoint, &marked)?);
        // Without the mark nothing of the hub's own is ours.
        assert!(pings(hub, endpoint, "-s 2000")?);
        assert!(!pings(prober, endpoint, "-s 2000")?, "{endpoint}");
        assert!(
            !pings(hub, endpoint, &format!("{marked} -s 2000"))?,
            "{endpoint}"
        );
    }
    for service in ["fw-4", "fw-6"] {
        assert_eq!(tracker.status()?.verdict(service), "up");
    }
    Ok(())
}

/// A VRRP daemon's device on the uplink, and one where replies arrive, which come while the daemon runs.
#[test]
fn virtual_mac_addresses_are_the_hubs() -> Result<()> {
    let fixture = Fixture::new(Setting::default())?;
    let tracker = fixture.start(Setting::default())?;
    let (prober, hub) = (&fixture.prober, &fixture.lab.hub);
    let endpoint = fixture.endpoints[0];
    assert!(pings(prober, endpoint, "")?);
    let hop = |namespace: &Namespace, device: &str, address: &str, mac: &str| {
        namespace.ip(&format!(
            "neighbour replace {address} lladdr {mac} dev {device} nud permanent\n"
        ))
    };
    for (last, device) in [(1, "up0"), (2, "eth1")] {
        hub.ip(&format!(
            "link add vrrp.{last} link {device} address 00:00:5e:00:01:0{last} type macvlan mode private\n\
             link set vrrp.{last} up\n"
        ))?;
        for key in ["all", "up0", "eth1", &format!("vrrp.{last}")] {
            hub.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
        }
    }
    hop(prober, "eth0", "192.0.2.1", "00:00:5e:00:01:01")?;
    let firewall = &fixture.lab.service().firewall;
    let hub_address = fixture.hub_addresses[0].to_string();
    hop(firewall, "eth0", &hub_address, "00:00:5e:00:01:02")?;
    let deadline = Instant::now() + slow(SOON);
    let steered = || -> Result<bool> {
        let (before, _) = counts(&tracker, "fw-4")?;
        let is_answered = pings(prober, endpoint, "")?;
        let (after, _) = counts(&tracker, "fw-4")?;
        Ok(is_answered && after >= before + 5)
    };
    while !steered()? {
        if Instant::now() > deadline {
            bail!("not steered by way of virtual MAC addresses");
        }
    }
    fixture.lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-4", "down", "no-reply")?;
    assert!(!pings(prober, endpoint, "")?);
    Ok(())
}
