//! `tracker act`: traffic follows the verdicts by next-hop groups and routes of the kernel, and nothing else changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
            sockopt,
        },
        time::TimeVal,
    },
    unistd::Pid,
};
use tracker_lab::{
    Config, Lab, Namespace, Tracker,
    daemon::{LATER, SOON, binary},
    netns,
    pace::slow,
};

/// What the traffic goes to: behind each of the firewalls alike.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 1);
/// Where the traffic comes from, on the hub's loopback.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PORT: u16 = 7_000;
/// How soon what was lost must be back.
const SECOND: Duration = Duration::from_secs(1);

/// A hub with firewalls `fw-1`, `fw-2` and so on, and a server that each of them leads to. The server answers by a wire of its own,
/// so that the way of a flow is the hub's decision alone.
struct Net {
    lab: Lab,
    server: Namespace,
}

impl Net {
    fn new(services: u8) -> Result<Self> {
        let lab = Lab::with_services(services)?;
        let server = lab.add_namespace("server")?;
        lab.hub.ip(&format!(
            "link set lo up\n\
             address add {CLIENT}/32 dev lo\n\
             link add back type veth peer name back netns {}\n\
             address add 10.70.0.1/24 dev back\n\
             link set back up\n",
            server.name()
        ))?;
        server.ip(&format!(
            "link set lo up\n\
             address add {SERVER}/32 dev lo\n\
             address add 10.70.0.2/24 dev back\n\
             link set back up\n\
             route add {CLIENT}/32 via 10.70.0.1\n"
        ))?;
        for (number, service) in (1..).zip(lab.services()) {
            service.firewall.ip(&format!(
                "link add eth2 type veth peer name in{number} netns {}\n\
                 address add 10.60.{number}.1/24 dev eth2\n\
                 link set eth2 up\n",
                server.name()
            ))?;
            server.ip(&format!(
                "address add 10.60.{number}.2/24 dev in{number}\nlink set in{number} up\n"
            ))?;
            service
                .firewall
                .ip(&format!("route add 10.50.0.0/16 via 10.60.{number}.2\n"))?;
            // Which flows it sees, by their source ports.
            service.firewall.nft(&format!(
                "table inet flows {{\n\
                   set seen {{ type inet_service; size 65535; flags dynamic; }}\n\
                   chain forward {{\n\
                     type filter hook forward priority -10; policy accept;\n\
                     iifname \"eth0\" tcp dport {PORT} add @seen {{ tcp sport }}\n\
                   }}\n\
                 }}\n"
            ))?;
        }
        for namespace in [&lab.hub, &server] {
            for interface in ["all", "default"] {
                namespace.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
            }
        }
        for number in 1..=services {
            server.sysctl(&format!("net/ipv4/conf/in{number}/rp_filter"), "0")?;
        }
        lab.hub.sysctl("net/ipv4/conf/back/rp_filter", "0")?;
        // Flows are told apart by their ports.
        lab.hub.sysctl("net/ipv4/fib_multipath_hash_policy", "1")?;
        Ok(Self { lab, server })
    }

    fn config(&self, more: &str) -> Config {
        let services = (1..).zip(self.lab.services());
        let services = services.map(|(number, one): (u8, _)| one.toml(&format!("fw-{number}")));
        Config::new(format!("{}{more}", services.collect::<String>()))
    }

    /// A daemon with all services up.
    fn tracker(&self, more: &str) -> Result<Tracker<'_>> {
        let tracker = Tracker::start(&self.lab.hub, self.config(more))?;
        for number in 1..=self.lab.services().len() {
            tracker.wait_verdict(&format!("fw-{number}"), "up", "replied")?;
        }
        Ok(tracker)
    }

    /// The source ports that a firewall has seen since it was asked last.
    fn seen(&self, number: usize) -> Result<BTreeSet<u16>> {
        let firewall = &self.lab.services()[number - 1].firewall;
        let text = firewall.run("nft -j list set inet flows seen")?;
        firewall.run("nft flush set inet flows seen")?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        let sets = json["nftables"].as_array().context("a list")?;
        let elements = sets
            .iter()
            .filter_map(|item| item["set"]["elem"].as_array());
        let ports = elements.flatten().filter_map(|port| {
            let port = port["elem"]["val"].as_u64().or(port.as_u64())?;
            u16::try_from(port).ok()
        });
        Ok(ports.collect())
    }

    /// The next hops of a group, as `ip` shows them; `None` if there is no such group.
    fn group(&self, id: u32) -> Result<Option<BTreeSet<String>>> {
        group(&self.lab.hub, id)
    }

    fn wait_group(&self, id: u32, wanted: &[&str], patience: Duration) -> Result<Duration> {
        let begun = Instant::now();
        let wanted: BTreeSet<String> = wanted.iter().map(|one| (*one).to_owned()).collect();
        loop {
            let found = self.group(id)?;
            if found.clone().unwrap_or_default() == wanted {
                return Ok(begun.elapsed());
            }
            ensure!(
                begun.elapsed() < slow(patience),
                "group {id} is {found:?}, not {wanted:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Where the members of a group lead: gateways, or `blackhole`.
fn group(hub: &Namespace, id: u32) -> Result<Option<BTreeSet<String>>> {
    let objects = hub.run("ip -j nexthop")?;
    let objects: serde_json::Value = serde_json::from_str(objects.trim())?;
    let objects = objects.as_array().context("a list")?;
    let of = |id: u64| objects.iter().find(|object| object["id"] == id);
    let Some(group) = of(id.into()) else {
        return Ok(None);
    };
    let members = group["group"].as_array().context("a group")?;
    let members = members.iter().map(|member| {
        let hop = of(member["id"].as_u64()?)?;
        match hop["gateway"].as_str() {
            Some(gateway) => Some(gateway.to_owned()),
            None => Some("blackhole".to_owned()),
        }
    });
    Ok(Some(members.collect::<Option<_>>().context("members")?))
}

/// The id of the next hop to a gateway.
fn id_of(hub: &Namespace, gateway: &str) -> Result<u64> {
    let objects: serde_json::Value = serde_json::from_str(hub.run("ip -j nexthop")?.trim())?;
    let mut objects = objects.as_array().context("a list")?.iter();
    let found = objects.find(|object| object["gateway"] == gateway);
    found
        .and_then(|object| object["id"].as_u64())
        .context("a next hop")
}

/// A running `tracker act`.
pub struct Actor {
    child: Child,
    log: PathBuf,
}

impl Actor {
    pub fn start(tracker: &Tracker<'_>, hub: &Namespace) -> Result<Self> {
        Self::start_by(hub.command(binary()), tracker)
    }

    /// Starts it by another program, as `setpriv`.
    fn start_as(tracker: &Tracker<'_>, hub: &Namespace, by: &[&str]) -> Result<Self> {
        match by {
            [] => Self::start(tracker, hub),
            [program, arguments @ ..] => {
                let mut command = hub.command(program);
                command.args(arguments).arg(binary());
                Self::start_by(command, tracker)
            }
        }
    }

    /// Starts it by a command to which its arguments are given.
    pub fn start_by(mut command: Command, tracker: &Tracker<'_>) -> Result<Self> {
        let log = tracker.config().with_extension("act.log");
        let file = File::options().create(true).append(true).open(&log)?;
        let child = command
            .args(["act", "--config"])
            .arg(tracker.config())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self { child, log })
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn wait_log(&self, text: &str) -> Result<()> {
        let begun = Instant::now();
        while !self.log().contains(text) {
            ensure!(
                begun.elapsed() < slow(SOON),
                "{text:?} is not in the log:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }

    pub fn end(mut self, signal: Signal) -> Result<()> {
        self.signal(signal)?;
        let status = self.child.wait()?;
        ensure!(
            signal == Signal::SIGKILL || status.success(),
            "{status}:\n{}",
            self.log()
        );
        Ok(())
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `tracker act` with one more option to its end; returns what it printed.
fn act(tracker: &Tracker<'_>, hub: &Namespace, option: &str) -> Result<String> {
    let mut command = hub.command(binary());
    command.args(["act", "--config"]).arg(tracker.config());
    let output = netns::check(command.arg(option))?;
    Ok(String::from_utf8(output.stdout)?)
}

/// What `tracker act` says when it cannot begin: one line.
fn refused(tracker: &Tracker<'_>, hub: &Namespace, option: Option<&str>) -> Result<String> {
    let mut command = hub.command(binary());
    command.args(["act", "--config"]).arg(tracker.config());
    let output = command.args(option).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(said.lines().count() == 1, "not one line: {said:?}");
    Ok(said)
}

/// A TCP server that sends back what it gets, for ever.
fn serve(server: &Namespace) -> Result<()> {
    let listener = server.enter(|| Ok(TcpListener::bind((SERVER, PORT))?))?;
    thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else {
                return;
            };
            thread::spawn(move || {
                let mut byte = [0; 1];
                while let Ok(1) = connection.read(&mut byte) {
                    if connection.write_all(&byte).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(())
}

/// A TCP connection from the client's address to the server, within a time limit.
fn flow(hub: &Namespace, patience: Duration) -> Result<TcpStream> {
    hub.enter(|| {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        let limit = TimeVal::new(
            patience.as_secs().try_into()?,
            patience.subsec_micros().into(),
        );
        setsockopt(&fd, sockopt::SendTimeout, &limit)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
        let own = SockaddrIn::from(std::net::SocketAddrV4::new(CLIENT, 0));
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &own)?;
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(SERVER, PORT));
        connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &to)?;
        Ok(TcpStream::from(fd))
    })
}

/// Whether a byte comes back within the connection's time limit; TCP sends it again meanwhile.
fn lives(flow: &mut TcpStream) -> bool {
    let mut byte = [0; 1];
    flow.write_all(b"x").is_ok() && matches!(flow.read(&mut byte), Ok(1))
}

fn flows(hub: &Namespace, count: usize) -> Result<BTreeMap<u16, TcpStream>> {
    let flows = (0..count).map(|_| {
        let mut flow = flow(hub, slow(SOON))?;
        ensure!(lives(&mut flow), "a new flow carries nothing");
        Ok((flow.local_addr()?.port(), flow))
    });
    flows.collect()
}

/// What `ip monitor` says of a group, from outside: each content that it had.
struct Watch {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Watch {
    fn start(hub: &Namespace) -> Result<Self> {
        let mut child = hub
            .command("stdbuf")
            .args(["-oL", "ip", "monitor", "nexthop"])
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("output")?;
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let into = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Ok(mut lines) = into.lock() {
                    lines.push(line);
                }
            }
        });
        // It has subscribed once it tells of something.
        let begun = Instant::now();
        let watch = Self { child, lines };
        while watch.lines().is_empty() {
            ensure!(begun.elapsed() < slow(SOON), "`ip monitor` tells nothing");
            hub.ip("nexthop replace id 999 blackhole\nnexthop del id 999\n")?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(watch)
    }

    fn lines(&self) -> Vec<String> {
        self.lines
            .lock()
            .map(|lines| lines.clone())
            .unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const GROUP: &str = "[[action]]\nservice = \"fw-*\"\nkind = \"nexthop-group\"\nid = 4000\n\
     [[action]]\nkind = \"route\"\nprefix = \"10.50.0.0/16\"\ngroup = 4000\n";

/// What of others must never change: a next hop, a group, routes.
const OTHERS: &str = "nexthop add id 70 via 10.9.0.9 dev eth1 protocol static\n\
     nexthop add id 71 group 70 protocol static\n\
     route add 10.66.0.0/16 nhid 71 protocol static\n\
     route add 10.67.0.0/16 via 10.9.0.9 protocol static\n";

fn others(hub: &Namespace) -> Result<String> {
    let mut text = String::new();
    for what in [
        "ip nexthop show id 70",
        "ip nexthop show id 71",
        "ip route show protocol static",
        "ip route show protocol kernel",
    ] {
        text += &hub.run(what)?;
    }
    Ok(text)
}

/// All next hops and routes.
fn everything(hub: &Namespace) -> Result<String> {
    Ok(hub.run("ip -d nexthop")? + &hub.run("ip -4 -d route show table all")?)
}

#[test]
fn traffic_leaves_a_firewall_that_stops_forwarding_and_comes_back() -> Result<()> {
    let net = Net::new(3)?;
    let hub = &net.lab.hub;
    hub.ip(OTHERS)?;
    serve(&net.server)?;
    let tracker = net.tracker(GROUP)?;
    let (before, theirs) = (everything(hub)?, others(hub)?);
    let said = act(&tracker, hub, "--dry-run")?;
    for line in [
        "would: next hop 10.9.0.2 on eth1\n",
        "would: action nexthop-group:fw-*: group 4000 made, leads to 10.9.0.2 on eth1, 10.9.1.2 on eth2, 10.9.2.2 on eth3\n",
        "would: action route:fw-*: route 10.50.0.0/16 metric 0 made, leads by group 4000\n",
    ] {
        ensure!(said.contains(line), "{line:?} is not in {said}");
    }
    assert_eq!(everything(hub)?, before, "a dry run changes nothing");

    let actor = Actor::start(&tracker, hub)?;
    net.wait_group(4_000, &["10.9.0.2", "10.9.1.2", "10.9.2.2"], SOON)?;
    assert_eq!(act(&tracker, hub, "--dry-run")?, "nothing to do\n");
    let said = refused(&tracker, hub, None)?;
    ensure!(
        said.contains("another `tracker act` of the instance"),
        "{said}"
    );
    let mut all = flows(hub, 30)?;
    let ways = [1, 2, 3].map(|number| net.seen(number));
    let [one, two, three] = ways.map(|way| way.expect("a set"));
    for way in [&one, &two, &three] {
        ensure!(!way.is_empty(), "30 flows go by {one:?} {two:?} {three:?}");
    }

    // It forwards nothing any more, and its own address answers.
    let broken = &net.lab.services()[1];
    broken.break_forwarding()?;
    let broke = Instant::now();
    net.wait_group(4_000, &["10.9.0.2", "10.9.2.2"], SOON)?;
    println!("break -> group changed: {:?}", broke.elapsed());
    ensure!(hub.pings(broken.endpoint)?, "the endpoint answers");
    for number in 1..=3 {
        net.seen(number)?;
    }
    // New flows and old ones go by the others.
    let new = flows(hub, 10)?;
    for (port, flow) in &mut all {
        ensure!(lives(flow), "flow {port} is dead");
    }
    assert_eq!(net.seen(2)?, BTreeSet::new());
    drop(new);

    broken.mend()?;
    net.wait_group(4_000, &["10.9.0.2", "10.9.1.2", "10.9.2.2"], SOON)?;
    let _new = flows(hub, 30)?;
    ensure!(!net.seen(2)?.is_empty(), "no new flow goes by fw-2 again");
    actor.wait_log("ms after the event")?;
    let log = actor.log();
    println!("{log}");
    ensure!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");

    // What is done stays when it ends, and is undone on request.
    let during = everything(hub)?;
    actor.end(Signal::SIGTERM)?;
    assert_eq!(everything(hub)?, during);
    let said = act(&tracker, hub, "--withdraw")?;
    ensure!(said.contains("group 4000 removed\n"), "{said}");
    assert_eq!(everything(hub)?, before);
    assert_eq!(others(hub)?, theirs);
    assert_eq!(act(&tracker, hub, "--withdraw")?, "nothing to undo\n");
    Ok(())
}

#[test]
fn a_resilient_group_moves_only_the_flows_of_the_dead_member() -> Result<()> {
    let net = Net::new(3)?;
    let hub = &net.lab.hub;
    serve(&net.server)?;
    let group = GROUP.replace(
        "id = 4000\n",
        "id = 4000\nresilient = true\nbuckets = 96\nidle_timer = \"1s\"\n",
    );
    let tracker = net.tracker(&group)?;
    let actor = Actor::start(&tracker, hub)?;
    net.wait_group(4_000, &["10.9.0.2", "10.9.1.2", "10.9.2.2"], SOON)?;
    let mut all = flows(hub, 60)?;
    let before: Vec<BTreeSet<u16>> = (1..=3)
        .map(|number| net.seen(number))
        .collect::<Result<_>>()?;
    ensure!(before.iter().all(|way| !way.is_empty()), "{before:?}");
    net.lab.services()[1].break_forwarding()?;
    net.wait_group(4_000, &["10.9.0.2", "10.9.2.2"], SOON)?;
    for (port, flow) in &mut all {
        ensure!(lives(flow), "flow {port} is dead");
    }
    let after: Vec<BTreeSet<u16>> = (1..=3)
        .map(|number| net.seen(number))
        .collect::<Result<_>>()?;
    for way in [0, 2] {
        let moved: Vec<_> = before[way].difference(&after[way]).collect();
        ensure!(
            moved.is_empty(),
            "flows {moved:?} moved from a live firewall"
        );
        let came: BTreeSet<u16> = after[way].difference(&before[way]).copied().collect();
        ensure!(
            came.is_subset(&before[1]),
            "{came:?} were not the dead one's"
        );
    }
    assert_eq!(after[1], BTreeSet::new());

    // It comes back, and gets buckets as they fall idle.
    net.lab.services()[1].mend()?;
    net.wait_group(4_000, &["10.9.0.2", "10.9.1.2", "10.9.2.2"], SOON)?;
    let begun = Instant::now();
    loop {
        thread::sleep(slow(Duration::from_millis(300)));
        drop(flows(hub, 20)?);
        if !net.seen(2)?.is_empty() {
            break;
        }
        ensure!(begun.elapsed() < slow(LATER), "no flow goes by fw-2 again");
    }
    actor.end(Signal::SIGTERM)
}

#[test]
fn what_carrier_loss_takes_away_returns_with_the_interface() -> Result<()> {
    let net = Net::new(2)?;
    let hub = &net.lab.hub;
    serve(&net.server)?;
    let tracker = net.tracker(GROUP)?;
    let actor = Actor::start(&tracker, hub)?;
    let both = ["10.9.0.2", "10.9.1.2"];
    net.wait_group(4_000, &both, SOON)?;
    let carrier = |number: usize, state: &str| {
        let firewall = &net.lab.services()[number - 1].firewall;
        firewall.ip(&format!("link set eth0 {state}\n"))
    };
    for round in 0..3 {
        // One goes: the kernel takes it out by itself.
        carrier(1, "down")?;
        net.wait_group(4_000, &["10.9.1.2"], SOON)?;
        carrier(2, "down")?;
        net.wait_group(4_000, &[], SOON)?;
        ensure!(hub.run("ip route show 10.50.0.0/16")?.is_empty());
        if round == 1 {
            tracker.wait_verdict("fw-2", "down", "interface-down")?;
        }
        // One comes back, whatever its verdict is: it is the last way that there was.
        carrier(2, "up")?;
        let took = net.wait_group(4_000, &["10.9.1.2"], SECOND)?;
        println!("carrier -> group again: {took:?}");
        let begun = Instant::now();
        while hub.run("ip route show 10.50.0.0/16")?.is_empty() {
            ensure!(begun.elapsed() < slow(SECOND), "{}", actor.log());
        }
        carrier(1, "up")?;
        // The addresses of the firewall's interface, which IPv6 loses with it, are not needed.
        net.wait_group(4_000, &both, SOON)?;
        for name in ["fw-1", "fw-2"] {
            tracker.wait_verdict(name, "up", "replied")?;
        }
    }
    ensure!(lives(&mut flow(hub, slow(SOON))?), "no traffic");

    // What others remove returns too, at first at once.
    hub.ip("nexthop del id 4000\n")?;
    net.wait_group(4_000, &both, SECOND)?;
    hub.ip("route del 10.50.0.0/16\n")?;
    let begun = Instant::now();
    while hub.run("ip route show 10.50.0.0/16")?.is_empty() {
        ensure!(begun.elapsed() < slow(SECOND), "{}", actor.log());
    }
    // Against a program that does not stop, it backs off.
    let mut deleted = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        deleted += usize::from(hub.succeeds("ip nexthop del id 4000")?);
    }
    ensure!((3..20).contains(&deleted), "deleted {deleted} times");
    actor.wait_log("another program changed what is this action's")?;
    net.wait_group(4_000, &both, LATER)?;
    actor.end(Signal::SIGTERM)
}

#[test]
fn killed_at_any_moment_it_is_right_within_a_second() -> Result<()> {
    let net = Net::new(3)?;
    let hub = &net.lab.hub;
    hub.ip(OTHERS)?;
    let theirs = others(hub)?;
    let tracker = net.tracker(GROUP)?;
    let all = ["10.9.0.2", "10.9.1.2", "10.9.2.2"];
    let mut actor = Actor::start(&tracker, hub)?;
    net.wait_group(4_000, &all, SOON)?;
    let ids = ["10.9.0.2", "10.9.1.2"].map(|gateway| id_of(hub, gateway));
    let ids: Vec<u64> = ids.into_iter().collect::<Result<_>>()?;
    let watch = Watch::start(hub)?;
    let mut random = 7_u64;
    let mut next = move |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (random >> 33) % below
    };
    let mut is_broken = false;
    let mut slowest = Duration::ZERO;
    for round in 0..40 {
        is_broken = !is_broken;
        let service = &net.lab.services()[2];
        match is_broken {
            true => service.break_forwarding()?,
            false => service.mend()?,
        }
        // Around the moment of the verdict, or just after it was started.
        thread::sleep(Duration::from_millis(next(400)));
        actor.end(Signal::SIGKILL)?;
        if next(2) == 0 {
            thread::sleep(Duration::from_millis(next(200)));
        }
        let verdict = if is_broken { "down" } else { "up" };
        let cause = if is_broken { "no-reply" } else { "replied" };
        tracker.wait_verdict("fw-3", verdict, cause)?;
        actor = Actor::start(&tracker, hub)?;
        if next(4) == 0 {
            thread::sleep(Duration::from_millis(next(60)));
            actor.end(Signal::SIGKILL)?;
            actor = Actor::start(&tracker, hub)?;
        }
        let wanted = if is_broken { &all[..2] } else { &all[..] };
        let took = net
            .wait_group(4_000, wanted, SECOND)
            .with_context(|| format!("round {round}\n{}", actor.log()))?;
        slowest = slowest.max(took);
    }
    println!("start -> right: {slowest:?} at most");
    // What an outsider saw: the group was never gone, empty or of anything else.
    let lines = watch.lines();
    let gone = lines.iter().find(|line| line.contains("Deleted id 4000"));
    ensure!(gone.is_none(), "{gone:?}");
    let contents: Vec<&String> = lines
        .iter()
        .filter(|line| line.starts_with("id 4000 "))
        .collect();
    ensure!(contents.len() >= 30, "{} changes", contents.len());
    for line in contents {
        let members = line.split_whitespace().nth(3).context("members")?;
        let members: Vec<u64> = members
            .split('/')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        ensure!((2..=3).contains(&members.len()), "{line}");
        // The two that are up all the time, by the next hops that they had from the beginning.
        ensure!(
            ids.iter().all(|id| members.contains(id)),
            "{line}: not {ids:?}"
        );
    }
    // Nothing is left of the dead ones: three next hops and the group, beside the others'.
    assert_eq!(others(hub)?, theirs);
    actor.end(Signal::SIGTERM)?;
    let objects = hub.run("ip nexthop")?;
    assert_eq!(objects.lines().count(), 6, "{objects}");
    act(&tracker, hub, "--withdraw")?;
    assert_eq!(hub.run("ip nexthop")?.lines().count(), 2);
    Ok(())
}

#[test]
fn what_happens_when_all_are_down_is_the_actions_choice() -> Result<()> {
    let net = Net::new(2)?;
    let hub = &net.lab.hub;
    let actions = "[[action]]\nname = \"keep\"\nservice = \"fw-*\"\nkind = \"nexthop-group\"\nid = 4000\n\
         [[action]]\nname = \"withdraw\"\nservice = \"fw-*\"\nkind = \"nexthop-group\"\nid = 4001\nwhen_all_down = \"withdraw\"\n\
         [[action]]\nname = \"bypass\"\nservice = \"fw-*\"\nkind = \"nexthop-group\"\nid = 4002\nwhen_all_down = \"bypass\"\nbypass_via = \"10.70.0.2\"\n\
         [[action]]\nname = \"r\"\nservice = \"fw-1\"\nkind = \"route\"\nprefix = \"10.51.0.0/16\"\nmetric = 9\nwhen_all_down = \"withdraw\"\n\
         [[action]]\nname = \"t\"\nservice = \"fw-*\"\nkind = \"track-file\"\npath = \"/TRACK\"\n";
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("track");
    let actions = actions.replace("/TRACK", file.to_str().context("a path")?);
    let tracker = net.tracker(&actions)?;
    let actor = Actor::start(&tracker, hub)?;
    let both = ["10.9.0.2", "10.9.1.2"];
    let has = |number: &str| -> Result<()> {
        let begun = Instant::now();
        while fs::read_to_string(&file).unwrap_or_default() != format!("{number}\n") {
            ensure!(begun.elapsed() < slow(SOON), "{}", actor.log());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    };
    let route = |is_there: bool| -> Result<()> {
        let begun = Instant::now();
        loop {
            let shown = hub.run("ip route show 10.51.0.0/16")?;
            if shown.is_empty() != is_there {
                return Ok(());
            }
            ensure!(begun.elapsed() < slow(SOON), "{shown}\n{}", actor.log());
        }
    };
    for id in [4_000, 4_001, 4_002] {
        net.wait_group(id, &both, SOON)?;
    }
    has("0")?;
    route(true)?;
    for service in net.lab.services() {
        service.break_forwarding()?;
    }
    net.wait_group(4_001, &["blackhole"], SOON)?;
    net.wait_group(4_002, &["10.70.0.2"], SOON)?;
    has("-254")?;
    route(false)?;
    let kept = net.group(4_000)?.context("the group")?;
    ensure!(!kept.is_empty() && kept.iter().all(|one| both.contains(&one.as_str())));

    // A hub that stalls, or a daemon that is gone, changes nothing.
    let during = everything(hub)?;
    let mut tracker = tracker;
    tracker.keep(true);
    tracker.kill()?;
    thread::sleep(slow(SECOND));
    assert_eq!(everything(hub)?, during);
    tracker.run()?;
    net.lab.services()[0].mend()?;
    for id in [4_000, 4_001, 4_002] {
        net.wait_group(id, &["10.9.0.2"], SOON)?;
    }
    has("0")?;
    route(true)?;
    // An operator drains it.
    tracker.service("set fw-1 --state down --reason drain")?;
    net.wait_group(4_001, &["blackhole"], SOON)?;
    tracker.service("set fw-1 --state auto")?;
    net.wait_group(4_001, &["10.9.0.2"], SOON)?;
    tracker.service("set fw-2 --state up")?;
    net.wait_group(4_001, &both, SOON)?;
    actor.end(Signal::SIGTERM)?;
    tracker.terminate()?;
    tracker.cleanup()
}

#[test]
fn an_id_of_another_program_is_left_alone() -> Result<()> {
    let net = Net::new(1)?;
    let hub = &net.lab.hub;
    let tracker = net.tracker(GROUP)?;
    hub.ip("nexthop add id 5 via 10.9.0.2 dev eth1\nnexthop add id 4000 group 5\nroute add 10.99.0.0/16 nhid 4000\n")?;
    let before = everything(hub)?;
    let actor = Actor::start(&tracker, hub)?;
    actor.wait_log(
        "action nexthop-group:fw-*: id 4000 is a group of another program (protocol 0): give the action another id, or delete that by `ip nexthop del id 4000`",
    )?;
    assert_eq!(everything(hub)?, before);
    // Once it is gone, the action has it.
    hub.ip("nexthop del id 4000\nnexthop del id 5\n")?;
    net.wait_group(4_000, &["10.9.0.2"], SOON)?;
    // What others lead by our group keeps it from going.
    hub.ip("route add 10.99.0.0/16 nhid 4000 protocol static\n")?;
    actor.end(Signal::SIGTERM)?;
    let said = refused(&tracker, hub, Some("--withdraw"))?;
    ensure!(
        said.contains("group 4000 stays, since routes of other programs lead by it (10.99.0.0/16 metric 0); remove these first"),
        "{said}"
    );
    net.wait_group(4_000, &["10.9.0.2"], SOON)?;
    hub.ip("route del 10.99.0.0/16\n")?;
    act(&tracker, hub, "--withdraw")?;
    assert_eq!(hub.run("ip nexthop")?, "");
    // A route of another program of the same destination and metric stays as it is.
    hub.ip("route add 10.50.0.0/16 via 10.9.0.2 protocol static\n")?;
    let actor = Actor::start(&tracker, hub)?;
    actor.wait_log("cannot lead the route 10.50.0.0/16 metric 0 by group 4000")?;
    let shown = hub.run("ip route show 10.50.0.0/16")?;
    ensure!(
        shown.contains("via 10.9.0.2 dev eth1 proto static"),
        "{shown}"
    );
    actor.end(Signal::SIGTERM)
}

#[test]
fn a_reload_takes_actions_up_and_away() -> Result<()> {
    let net = Net::new(2)?;
    let hub = &net.lab.hub;
    let tracker = net.tracker(GROUP)?;
    let actor = Actor::start(&tracker, hub)?;
    net.wait_group(4_000, &["10.9.0.2", "10.9.1.2"], SOON)?;
    // One that is not valid changes nothing.
    let before = everything(hub)?;
    tracker.write(net.config(&GROUP.replace("4000", "4000x")))?;
    actor.signal(Signal::SIGHUP)?;
    actor.wait_log("the actions stay as they are")?;
    assert_eq!(everything(hub)?, before);
    let other = "[[action]]\nservice = \"fw-2\"\nkind = \"nexthop-group\"\nid = 4001\n";
    tracker.write(net.config(other))?;
    actor.signal(Signal::SIGHUP)?;
    net.wait_group(4_001, &["10.9.1.2"], SOON)?;
    net.wait_group(4_000, &[], SOON)?;
    ensure!(hub.run("ip route show 10.50.0.0/16")?.is_empty());
    // The next hop that nothing needs goes too.
    let begun = Instant::now();
    while hub.run("ip nexthop")?.lines().count() != 2 {
        ensure!(begun.elapsed() < slow(SOON), "{}", hub.run("ip nexthop")?);
    }
    actor.end(Signal::SIGTERM)
}

#[test]
fn hooks_run_once_for_each_event_and_go_on_after_a_restart() -> Result<()> {
    let net = Net::new(1)?;
    let hub = &net.lab.hub;
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("log");
    let script = format!(
        "read line; echo \\\"$TRACKER_SEQ $TRACKER_SERVICE $TRACKER_FROM $TRACKER_TO $TRACKER_CAUSE ${{#line}}\\\" >> {}",
        log.display()
    );
    let hook = format!(
        "[[action]]\nservice = \"fw-1\"\nkind = \"hook\"\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\n"
    );
    let tracker = net.tracker(&hook)?;
    let actor = Actor::start(&tracker, hub)?;
    actor.wait_log("follows the daemon")?;
    let ran = || fs::read_to_string(&log).unwrap_or_default();
    let wait = |count: usize| -> Result<Vec<String>> {
        let begun = Instant::now();
        loop {
            let text = ran();
            if text.lines().count() >= count {
                let lines = text.lines().map(|line| {
                    let words: Vec<&str> = line.split(' ').collect();
                    words[1..5].join(" ")
                });
                return Ok(lines.collect());
            }
            if begun.elapsed() > slow(SOON) {
                bail!("{text}\n{}", actor.log());
            }
            thread::sleep(Duration::from_millis(10));
        }
    };
    let service = net.lab.service();
    service.break_forwarding()?;
    assert_eq!(wait(1)?, ["fw-1 up down no-reply"]);
    // It is not there while something happens.
    thread::sleep(Duration::from_millis(500));
    actor.signal(Signal::SIGTERM)?;
    thread::sleep(Duration::from_millis(200));
    service.mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let again = Actor::start(&tracker, hub)?;
    let lines = wait(2)?;
    assert_eq!(lines, ["fw-1 up down no-reply", "fw-1 down up replied"]);
    service.break_forwarding()?;
    assert_eq!(wait(3)?[2], "fw-1 up down no-reply");
    for line in ran().lines() {
        let length = line.split(' ').next_back().context("a length")?;
        ensure!(
            length.parse::<usize>()? > 100,
            "the event is on standard input: {line}"
        );
    }
    again.end(Signal::SIGTERM)
}

/// A thousand services fall at once, and come back: each group follows, and each soon.
#[test]
fn a_thousand_services_fall_at_once() -> Result<()> {
    const COUNT: usize = 1_000;
    let lab = Lab::new()?;
    let hub = &lab.hub;
    lab.service().answer_for_all()?;
    let mut text = String::new();
    for at in 0..COUNT {
        let behind = Ipv4Addr::new(10, 20, (at / 200) as u8 + 1, (at % 200) as u8 + 1);
        text += &lab.service().toml_to(&format!("s{at}"), behind, "");
        text += &format!(
            "[[action]]\nservice = \"s{at}\"\nkind = \"nexthop-group\"\nid = {}\nwhen_all_down = \"withdraw\"\n",
            10_000 + at
        );
    }
    let config = Config::new(text).defaults("interval = \"100ms\"\ntimeout = \"200ms\"");
    let tracker = Tracker::start(hub, config)?;
    tracker.wait_for("all services to be up", LATER, |status| {
        let services = status.0["services"].as_array();
        services.is_some_and(|all| all.iter().all(|one| one["verdict"] == "up"))
    })?;
    let actor = Actor::start(&tracker, hub)?;
    let blackholes = || -> Result<Option<usize>> {
        let objects: serde_json::Value = serde_json::from_str(hub.run("ip -j nexthop")?.trim())?;
        let objects = objects.as_array().context("a list")?;
        let dropping: BTreeSet<u64> = objects
            .iter()
            .filter(|object| object.get("blackhole").is_some())
            .filter_map(|object| object["id"].as_u64())
            .collect();
        let groups: Vec<_> = objects
            .iter()
            .filter_map(|object| object["group"].as_array())
            .collect();
        let count = groups.iter().filter(|group| {
            group.iter().any(|member| {
                member["id"]
                    .as_u64()
                    .is_some_and(|id| dropping.contains(&id))
            })
        });
        Ok((groups.len() == COUNT).then(|| count.count()))
    };
    let wait = |wanted: usize| -> Result<()> {
        let begun = Instant::now();
        while blackholes()? != Some(wanted) {
            ensure!(
                begun.elapsed() < slow(LATER),
                "{:?}\n{}",
                blackholes()?,
                actor.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    wait(0)?;
    for _ in 0..2 {
        lab.service().break_forwarding()?;
        wait(COUNT)?;
        lab.service().mend()?;
        wait(0)?;
    }
    let ages = ages(&actor.log());
    ensure!(ages.len() >= COUNT, "{} changes are in the log", ages.len());
    ensure!(ages[ages.len() - 1] < 1_000.0 * slow(SOON).as_secs_f64());
    actor.end(Signal::SIGTERM)
}

/// How long after their events groups were changed, by the log, in milliseconds, sorted; printed in short.
fn ages(log: &str) -> Vec<f64> {
    let ages = log.lines().filter_map(|line| {
        let (_, age) = line.rsplit_once(", ")?;
        age.strip_suffix(" ms after the event")?.parse().ok()
    });
    let mut ages: Vec<f64> = ages.collect();
    ages.sort_by(f64::total_cmp);
    if let Some(most) = ages.last() {
        println!(
            "{} changes; event -> group changed: median {} ms, p99 {} ms, most {most} ms",
            ages.len(),
            ages[ages.len() / 2],
            ages[ages.len() * 99 / 100]
        );
    }
    ages
}

#[test]
fn a_group_follows_soon_after_the_event() -> Result<()> {
    const ROUNDS: usize = 20;
    let net = Net::new(2)?;
    let hub = &net.lab.hub;
    let tracker = net.tracker(GROUP)?;
    let actor = Actor::start(&tracker, hub)?;
    net.wait_group(4_000, &["10.9.0.2", "10.9.1.2"], SOON)?;
    for _ in 0..ROUNDS {
        net.lab.service().break_forwarding()?;
        net.wait_group(4_000, &["10.9.1.2"], SOON)?;
        net.lab.service().mend()?;
        net.wait_group(4_000, &["10.9.0.2", "10.9.1.2"], SOON)?;
    }
    let ages = ages(&actor.log());
    ensure!(
        ages.len() == 2 * ROUNDS,
        "{} changes are in the log",
        ages.len()
    );
    // Far above what it takes, since the machine may be busy.
    ensure!(
        ages[ages.len() / 2] < 1_000.0 * slow(SECOND).as_secs_f64(),
        "{ages:?}"
    );
    actor.end(Signal::SIGTERM)
}

/// A map of nftables chooses the routing table of each flow by a hash: flows share the firewalls by the weight of their buckets, and leave
/// one that stops forwarding.
#[test]
fn flows_follow_a_map_of_nftables() -> Result<()> {
    let net = Net::new(3)?;
    let hub = &net.lab.hub;
    serve(&net.server)?;
    let ruleset = "table inet steer {\n\
           map members { type mark : mark; flags timeout; }\n\
           chain out {\n\
             type route hook output priority mangle; policy accept;\n\
             ip daddr != 10.50.0.0/16 return\n\
             meta mark set jhash tcp sport . ip saddr mod 64\n\
             meta mark set meta mark map @members\n\
           }\n\
         }\n";
    hub.nft(ruleset)?;
    // The way without a mark, which a socket needs before its packets have one, ends at an address that no host has.
    hub.ip("route add 10.50.0.0/16 via 10.70.0.99\n")?;
    for number in 1..=3_u8 {
        let gateway = net.lab.services()[usize::from(number) - 1].endpoint;
        hub.ip(&format!(
            "rule add fwmark {number} table 10{number}\nroute add 10.50.0.0/16 via {gateway} table 10{number}\n"
        ))?;
    }
    let action = "[[action]]\nname = \"m\"\nservice = \"fw-*\"\nkind = \"nftables\"\nmap = \"inet steer members\"\nbuckets = 64\nlease = \"8s\"\n\
         when_all_down = \"withdraw\"\n";
    let services = (1..).zip(net.lab.services());
    let services = services.map(|(number, service): (u8, _)| {
        service.toml_with(&format!("fw-{number}"), &format!("mark = {number}"))
    });
    let config = Config::new(format!("{}{action}", services.collect::<String>()));
    let tracker = Tracker::start(hub, config)?;
    for number in 1..=3 {
        tracker.wait_verdict(&format!("fw-{number}"), "up", "replied")?;
    }
    let counts = || -> Result<BTreeMap<u64, usize>> {
        let text = hub.run("nft -j list map inet steer members")?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        let maps = json["nftables"].as_array().context("a list")?;
        let elements = maps
            .iter()
            .filter_map(|item| item["map"]["elem"].as_array());
        let mut counts = BTreeMap::new();
        for element in elements.flatten() {
            *counts
                .entry(element[1].as_u64().context("a mark")?)
                .or_default() += 1;
        }
        Ok(counts)
    };
    let wait = |wanted: &[(u64, usize)]| -> Result<()> {
        let begun = Instant::now();
        let wanted: BTreeMap<u64, usize> = wanted.iter().copied().collect();
        while counts()? != wanted {
            ensure!(
                begun.elapsed() < slow(SOON),
                "{:?}, not {wanted:?}",
                counts()?
            );
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    };
    let said = act(&tracker, hub, "--dry-run")?;
    ensure!(
        said.contains("would: action m: map inet steer members leads to fw-1/active, fw-2/active, fw-3/active, 64 of 64 buckets moved"),
        "{said}"
    );
    assert_eq!(counts()?, BTreeMap::new());
    let actor = Actor::start(&tracker, hub)?;
    wait(&[(1, 22), (2, 21), (3, 21)])?;
    let mut all = flows(hub, 40)?;
    for number in 1..=3 {
        ensure!(!net.seen(number)?.is_empty(), "no flow goes by fw-{number}");
    }
    net.lab.services()[1].break_forwarding()?;
    wait(&[(1, 32), (3, 32)])?;
    net.seen(2)?;
    for (port, flow) in &mut all {
        ensure!(lives(flow), "flow {port} is dead");
    }
    assert_eq!(net.seen(2)?, BTreeSet::new());
    net.lab.services()[1].mend()?;
    wait(&[(1, 22), (2, 21), (3, 21)])?;
    // What others take out comes back; while it runs, no lease ends; after it, each does.
    hub.nft("flush map inet steer members\n")?;
    wait(&[(1, 22), (2, 21), (3, 21)])?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        assert_eq!(counts()?.values().sum::<usize>(), 64);
        thread::sleep(Duration::from_millis(100));
    }
    for service in net.lab.services() {
        service.break_forwarding()?;
    }
    wait(&[])?;
    net.lab.services()[0].mend()?;
    wait(&[(1, 64)])?;
    let log = actor.log();
    ensure!(!log.contains("ERROR"), "{log}");
    actor.end(Signal::SIGKILL)?;
    let begun = Instant::now();
    while !counts()?.is_empty() {
        ensure!(begun.elapsed() < slow(LATER), "{:?}", counts()?);
        thread::sleep(Duration::from_millis(100));
    }
    let actor = Actor::start(&tracker, hub)?;
    wait(&[(1, 64)])?;
    actor.end(Signal::SIGTERM)?;
    let said = act(&tracker, hub, "--withdraw")?;
    ensure!(
        said.contains("map inet steer members: 64 elements removed"),
        "{said}"
    );
    // One that is another program's is left alone.
    hub.nft("add element inet steer members { 5 : 9 }\n")?;
    let actor = Actor::start(&tracker, hub)?;
    actor.wait_log("element 5 is another program's")?;
    wait(&[(9, 1)])?;
    actor.end(Signal::SIGTERM)
}

/// With the rights of its unit it does all that needs rights, and it keeps no more of what it is given.
#[test]
fn the_rights_of_its_unit_are_enough() -> Result<()> {
    let net = Net::new(2)?;
    let hub = &net.lab.hub;
    hub.nft("table inet steer {\n  map members { type mark : ipv4_addr; }\n}\n")?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("track");
    let more = format!(
        "{GROUP}[[action]]\nservice = \"fw-*\"\nkind = \"nftables\"\nmap = \"inet steer members\"\n\
         [[action]]\nservice = \"fw-*\"\nkind = \"track-file\"\npath = \"{}\"\n",
        file.display()
    );
    let tracker = net.tracker(&more)?;
    for by in [&["setpriv", "--bounding-set=-all,+net_admin"][..], &[]] {
        let actor = Actor::start_as(&tracker, hub, by)?;
        net.wait_group(4_000, &["10.9.0.2", "10.9.1.2"], SOON)?;
        let begun = Instant::now();
        while !file.exists()
            || hub
                .run("nft list map inet steer members")?
                .matches("10.9.1.2")
                .count()
                != 128
        {
            ensure!(begun.elapsed() < slow(SOON), "{}", actor.log());
            thread::sleep(Duration::from_millis(20));
        }
        let status = fs::read_to_string(format!("/proc/{}/status", actor.child.id()))?;
        let field = |name: &str| {
            let lines = status.lines().filter_map(|line| line.split_once(':'));
            let mut lines = lines.filter(|(known, _)| *known == name);
            lines.next().map(|(_, value)| value.trim().to_owned())
        };
        // CAP_NET_ADMIN is bit 12; CAP_DAC_OVERRIDE is 1; CAP_KILL, CAP_SETGID and CAP_SETUID are 5, 6 and 7.
        let held = u64::from_str_radix(&field("CapEff").context("CapEff")?, 16)?;
        let wanted = if by.is_empty() { 0x10e2 } else { 0x1000 };
        ensure!(held == wanted, "{held:#x}, not {wanted:#x}");
        assert_eq!(field("NoNewPrivs").as_deref(), Some("1"));
        let log = actor.log();
        ensure!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
        actor.end(Signal::SIGTERM)?;
        act(&tracker, hub, "--withdraw")?;
        fs::remove_file(&file)?;
    }
    Ok(())
}

/// The members of one pool: those in use share by their weights, a spare takes part while too few are up, and an admin state of one
/// member moves its traffic.
#[test]
fn a_pool_shares_by_weight_and_has_a_spare() -> Result<()> {
    let net = Net::new(3)?;
    let hub = &net.lab.hub;
    serve(&net.server)?;
    let members = [
        "name = \"a\"\nweight = 3\n",
        "name = \"b\"\n",
        "name = \"spare\"\npriority = 7\n",
    ];
    let members = members.iter().zip(net.lab.services()).map(|(lines, service)| {
        format!(
            "[[service.member]]\n{lines}endpoint = \"{}\"\ninterface = \"{}\"\nbehind = [\"{}\"]\n",
            service.endpoint, service.interface, service.behind
        )
    });
    let text = format!(
        "[[service]]\nname = \"pool\"\nmembers_up = 2\n{}{}",
        members.collect::<String>(),
        GROUP.replace("fw-*", "pool")
    );
    let tracker = Tracker::start(hub, Config::new(text))?;
    tracker.wait_for("all members to be up", SOON, |status| {
        let members = status.0["services"][0]["members"].as_array();
        members.is_some_and(|all| all.iter().all(|one| one["verdict"] == "up"))
    })?;
    let actor = Actor::start(&tracker, hub)?;
    net.wait_group(4_000, &["10.9.0.2", "10.9.1.2"], SOON)?;
    let shown = hub.run("ip nexthop show id 4000")?;
    ensure!(shown.contains(",3/") || shown.contains(",3 "), "{shown}");
    let mut all = flows(hub, 40)?;
    let (a, b) = (net.seen(1)?.len(), net.seen(2)?.len());
    ensure!(
        a > b && b > 0 && net.seen(3)?.is_empty(),
        "{a} and {b} flows"
    );

    net.lab.services()[0].break_forwarding()?;
    net.wait_group(4_000, &["10.9.1.2", "10.9.2.2"], SOON)?;
    for (port, flow) in &mut all {
        ensure!(lives(flow), "flow {port} is dead");
    }
    // With one member the service is down, for it needs two; the one takes the traffic all the same.
    net.lab.services()[2].break_forwarding()?;
    net.wait_group(4_000, &["10.9.1.2"], SOON)?;
    tracker.wait_for("the pool to be down", SOON, |status| {
        status.verdict("pool") == "down"
    })?;
    for (port, flow) in &mut all {
        ensure!(lives(flow), "flow {port} is dead");
    }
    for service in net.lab.services() {
        service.mend()?;
    }
    net.wait_group(4_000, &["10.9.0.2", "10.9.1.2"], SOON)?;
    tracker.service("set pool --member b --state down --reason drain")?;
    net.wait_group(4_000, &["10.9.0.2", "10.9.2.2"], SOON)?;
    tracker.service("set pool --member b --state auto")?;
    net.wait_group(4_000, &["10.9.0.2", "10.9.1.2"], SOON)?;
    let log = actor.log();
    ensure!(!log.contains("ERROR"), "{log}");
    actor.end(Signal::SIGTERM)
}

/// By IPv6 next hops: IPv6 traffic, IPv4 traffic too, and a group that drops both while nothing is up.
#[test]
fn ipv6_members_take_both_families() -> Result<()> {
    let net = Net::new(2)?;
    let hub = &net.lab.hub;
    serve(&net.server)?;
    let services = (1..).zip(net.lab.services()).map(|(number, service): (u8, _)| {
        format!(
            "[[service]]\nname = \"fw-{number}\"\nendpoint = \"{}\"\ninterface = \"{}\"\nbehind = [\"{}\"]\n",
            service.endpoint6, service.interface, service.behind6
        )
    });
    let text = format!(
        "{}{}[[action]]\nname = \"six\"\nkind = \"route\"\nprefix = \"2001:db8:50::/48\"\ngroup = 4000\n",
        services.collect::<String>(),
        GROUP.replace("id = 4000\n", "id = 4000\nwhen_all_down = \"withdraw\"\n")
    );
    let tracker = Tracker::start(hub, Config::new(text))?;
    for number in 1..=2 {
        tracker.wait_verdict(&format!("fw-{number}"), "up", "replied")?;
    }
    let actor = Actor::start(&tracker, hub)?;
    let [one, two] = [0, 1].map(|at: usize| net.lab.services()[at].endpoint6.to_string());
    net.wait_group(4_000, &[&one, &two], SOON)?;
    let route = || hub.run("ip -6 route show 2001:db8:50::/48");
    ensure!(route()?.contains("nhid 4000"), "{}", route()?);
    let mut all = flows(hub, 20)?;
    net.lab.services()[0].break_forwarding()?;
    net.wait_group(4_000, &[&two], SOON)?;
    for (port, flow) in &mut all {
        ensure!(lives(flow), "flow {port} is dead");
    }
    net.lab.services()[1].break_forwarding()?;
    net.wait_group(4_000, &["blackhole"], SOON)?;
    ensure!(route()?.contains("nhid 4000"), "{}", route()?);
    net.lab.services()[1].mend()?;
    net.wait_group(4_000, &[&two], SOON)?;
    let log = actor.log();
    ensure!(!log.contains("ERROR"), "{log}");
    actor.end(Signal::SIGTERM)
}
