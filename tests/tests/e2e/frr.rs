//! FRR's real `bfdd` and `bgpd`: BFD sessions and what hangs on them follow the verdicts, and see no restart.

use std::{
    cell::RefCell,
    io::IoSliceMut,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{net::UnixDatagram, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::{
    signal::Signal,
    socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use serde_json::Value;
use tracker_lab::{
    Config, Lab, Tracker,
    daemon::{LATER, SOON, binary},
    frr::Frr,
    pace::{pause, slow},
};

use crate::act::Actor;

/// A service manager: keeps files that it is given, and passes them to the next process.
struct Manager {
    socket: UnixDatagram,
    kept: Vec<(String, OwnedFd)>,
}

impl Manager {
    fn new(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            kept: Vec::new(),
        })
    }

    /// Takes what was sent.
    fn take(&mut self) -> Result<()> {
        let mut bytes = [0; 4096];
        loop {
            let mut space = nix::cmsg_space!([i32; 8]);
            let mut into = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg::<()>(
                self.socket.as_raw_fd(),
                &mut into,
                Some(&mut space),
                MsgFlags::MSG_DONTWAIT,
            );
            let received = match received {
                Ok(received) => received,
                Err(nix::errno::Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            let mut files = Vec::new();
            for message in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(descriptors) = message {
                    // SAFETY: the kernel has just made them for this process alone.
                    files.extend(
                        descriptors
                            .into_iter()
                            .map(|it| unsafe { OwnedFd::from_raw_fd(it) }),
                    );
                }
            }
            let len = received.bytes;
            let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
            let name = name.unwrap_or_default().to_owned();
            if text.contains("FDSTOREREMOVE=1") {
                self.kept.retain(|(kept, _)| *kept != name);
            } else if text.contains("FDSTORE=1") {
                let is_known = self.kept.iter().any(|(kept, _)| *kept == name);
                if !is_known {
                    self.kept
                        .extend(files.into_iter().map(|file| (name.clone(), file)));
                }
            }
        }
    }

    /// A command that starts a program as systemd does.
    fn command(&mut self, lab: &Lab, notify: &Path) -> Result<Command> {
        self.take()?;
        let names: Vec<_> = self.kept.iter().map(|(name, _)| name.clone()).collect();
        let files: Vec<_> = self.kept.iter().map(|(_, file)| file.as_raw_fd()).collect();
        let mut command = lab.hub.command("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
            .arg(binary())
            .env("NOTIFY_SOCKET", notify)
            .env("LISTEN_FDS", files.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        let pass = move || {
            // Out of the way first: a descriptor may be one of those that others are to get.
            let mut high = [0; 64];
            for (at, file) in files.iter().enumerate() {
                // SAFETY: numbers alone; descriptors of this process.
                high[at] = unsafe { libc::fcntl(*file, libc::F_DUPFD, 200) };
            }
            for (at, high) in high.iter().take(files.len()).enumerate() {
                // SAFETY: numbers alone; a descriptor made by dup2 stays open at exec.
                if unsafe { libc::dup2(*high, 3 + at as i32) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // SAFETY: a number alone; the descriptor was made by this closure.
                unsafe { libc::close(*high) };
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls on numbers; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(pass) };
        command.stdin(Stdio::null());
        Ok(command)
    }
}

/// Waits until what FRR says is as wanted.
fn wait<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + slow(patience);
    loop {
        let looked = look();
        if let Ok(Some(found)) = looked {
            return Ok(found);
        }
        if Instant::now() > deadline {
            looked?;
            bail!("waited in vain for {what}");
        }
        pause(Duration::from_millis(20));
    }
}

/// The states of all BFD sessions of a router.
fn sessions(frr: &Frr) -> Result<Vec<String>> {
    let peers = frr.json("bfdd", "show bfd peers json")?;
    let peers = peers.as_array().context("peers")?;
    let status = |peer: &Value| peer["status"].as_str().unwrap_or_default().to_owned();
    Ok(peers.iter().map(status).collect())
}

fn wait_sessions(frr: &Frr, count: usize, status: &str) -> Result<()> {
    let what = format!("{count} sessions to be {status}");
    wait(&what, LATER, || {
        let sessions = sessions(frr)?;
        let are = sessions.len() == count && sessions.iter().all(|one| one == status);
        Ok(are.then_some(()))
    })
    .with_context(|| format!("{:?}\n{}", sessions(frr), frr.log("bfdd")))
}

/// What the hub's `bgpd` says of the neighbour behind the firewall.
fn neighbour(frr: &Frr, address: &str) -> Result<Value> {
    Ok(frr.json("bgpd", &format!("show bgp neighbors {address} json"))?[address].clone())
}

fn has_route(frr: &Frr) -> Result<bool> {
    let routes = frr.json("bgpd", "show bgp ipv4 unicast json")?;
    Ok(routes["routes"]["203.0.113.0/24"].is_array())
}

/// A hub whose `bgpd` has a neighbour behind the firewall, watched by `bfdd`.
struct Routers {
    lab: Lab,
    hub: RefCell<Frr>,
    _behind: Frr,
    behind: String,
}

impl Routers {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let service = lab.service();
        let (hub_address, behind) = (service.hub_address, service.behind.to_string());
        for namespace in [&lab.hub, &service.host] {
            namespace.ip("link set lo up\n")?;
        }
        lab.hub
            .ip(&format!("route add {behind}/32 via {}\n", service.endpoint))?;
        service
            .firewall
            .ip(&format!("route replace {hub_address}/32 dev eth0\n"))?;
        let mut other = Frr::new()?;
        other.start(
            &service.host,
            "bgpd",
            &format!(
                "router bgp 65002\n bgp router-id {behind}\n no bgp ebgp-requires-policy\n no bgp network import-check\n \
                 timers bgp 60 180\n neighbor {hub_address} remote-as 65001\n neighbor {hub_address} ebgp-multihop 5\n \
                 neighbor {hub_address} update-source {behind}\n neighbor {hub_address} timers connect 1\n address-family ipv4 unicast\n  \
                 network 203.0.113.0/24\n exit-address-family\n"
            ),
            &["--no_zebra"],
        )?;
        let mut hub = Frr::new()?;
        hub.start(&lab.hub, "zebra", "", &[])?;
        Self::start_bfdd(&lab, &mut hub, "")?;
        hub.start(
            &lab.hub,
            "bgpd",
            &format!(
                "router bgp 65001\n bgp router-id {hub_address}\n no bgp ebgp-requires-policy\n timers bgp 60 180\n \
                 neighbor {behind} remote-as 65002\n neighbor {behind} ebgp-multihop 5\n neighbor {behind} update-source {hub_address}\n \
                 neighbor {behind} timers connect 1\n neighbor {behind} bfd\n"
            ),
            &[],
        )?;
        Ok(Self {
            hub: RefCell::new(hub),
            _behind: other,
            behind,
            lab,
        })
    }

    fn start_bfdd(lab: &Lab, hub: &mut Frr, config: &str) -> Result<()> {
        let plane = format!("unix:{}", hub.path("dp.sock").display());
        hub.start(&lab.hub, "bfdd", config, &["--dplaneaddr", &plane])
    }

    fn config(&self) -> Config {
        Config::new(format!(
            "{}[[action]]\nservice = \"fw-1\"\nkind = \"frr\"\nsocket = \"{}\"\n",
            self.lab.service().toml("fw-1"),
            self.hub.borrow().path("dp.sock").display()
        ))
    }

    fn wait_established(&self) -> Result<()> {
        wait("an established session with the route", LATER, || {
            let neighbour = neighbour(&self.hub.borrow(), &self.behind)?;
            let is_it = neighbour["bgpState"] == "Established" && has_route(&self.hub.borrow())?;
            Ok(is_it.then_some(()))
        })
        .with_context(|| self.hub.borrow().log("bgpd"))
    }
}

#[test]
fn a_bgp_session_and_its_routes_fall_and_return_with_the_verdict() -> Result<()> {
    let routers = Routers::new()?;
    let service = routers.lab.service();
    let tracker = Tracker::start(&routers.lab.hub, routers.config())?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let actor = Actor::start(&tracker, &routers.lab.hub)?;
    routers.wait_established()?;
    wait_sessions(&routers.hub.borrow(), 1, "up")?;

    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    wait_sessions(&routers.hub.borrow(), 1, "down")?;
    // Long before BGP's own hold time of three minutes.
    wait("the route to be gone", SOON, || {
        let is_up = neighbour(&routers.hub.borrow(), &routers.behind)?["bgpState"] == "Established";
        Ok((!is_up && !has_route(&routers.hub.borrow())?).then_some(()))
    })?;

    service.mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    wait_sessions(&routers.hub.borrow(), 1, "up")?;
    routers.wait_established()?;

    // An operator's word counts as a verdict does.
    tracker.service("set fw-1 --state down --reason drill")?;
    wait_sessions(&routers.hub.borrow(), 1, "down")?;
    tracker.service("set fw-1 --state auto")?;
    wait_sessions(&routers.hub.borrow(), 1, "up")?;

    // `bfdd` starts anew: the actor finds it again.
    routers.hub.borrow_mut().kill("bfdd")?;
    Routers::start_bfdd(&routers.lab, &mut routers.hub.borrow_mut(), "")?;
    wait_sessions(&routers.hub.borrow(), 1, "up")?;
    routers.wait_established()?;
    actor.end(Signal::SIGTERM)
}

#[test]
fn a_restart_of_actor_or_daemon_is_seen_by_no_protocol() -> Result<()> {
    let routers = Routers::new()?;
    let mut tracker = Tracker::start(&routers.lab.hub, routers.config())?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let notify = routers.hub.borrow().path("notify");
    let mut manager = Manager::new(&notify)?;
    let start = |manager: &mut Manager, tracker: &Tracker<'_>| -> Result<Actor> {
        Actor::start_by(manager.command(&routers.lab, &notify)?, tracker)
    };
    let mut actor = start(&mut manager, &tracker)?;
    routers.wait_established()?;
    wait_sessions(&routers.hub.borrow(), 1, "up")?;
    let dropped = || -> Result<Value> {
        Ok(neighbour(&routers.hub.borrow(), &routers.behind)?["connectionsDropped"].clone())
    };
    let downs = || -> Result<Value> {
        let counters = routers
            .hub
            .borrow()
            .json("bfdd", "show bfd peers counters json")?;
        Ok(counters[0]["session-down"].clone())
    };
    let before = (dropped()?, downs()?);
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        actor.end(signal)?;
        manager.take()?;
        ensure!(!manager.kept.is_empty(), "no connection is kept");
        // Longer than bfdd's own detection would take.
        pause(Duration::from_secs(4));
        actor = start(&mut manager, &tracker)?;
        actor.wait_log("follows the daemon")?;
        // Answered by the new process, once it knows what the trackers are like.
        wait("counters of the new process", SOON, || {
            let counters = routers
                .hub
                .borrow()
                .json("bfdd", "show bfd peers counters json")?;
            Ok((counters[0]["control-packet-output"].as_u64() > Some(0)).then_some(()))
        })?;
    }
    tracker.kill()?;
    pause(Duration::from_secs(4));
    tracker.run()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!((dropped()?, downs()?), before, "{}", actor.log());
    wait_sessions(&routers.hub.borrow(), 1, "up")?;
    // And it is not deaf.
    routers.lab.service().break_forwarding()?;
    wait_sessions(&routers.hub.borrow(), 1, "down")?;
    Ok(())
}

/// More sessions than `bfdd` tells one connection of, and an operator who looks at the counters all the time.
#[test]
fn two_hundred_peers_and_their_counters() -> Result<()> {
    const PEERS: u8 = 200;
    let lab = Lab::new()?;
    let service = lab.service();
    service.answer_for_all()?;
    let endpoints: Vec<String> = (0..PEERS).map(|at| format!("10.9.7.{}", at + 1)).collect();
    let addresses: String = endpoints
        .iter()
        .map(|endpoint| format!("address add {endpoint}/32 dev eth0\n"))
        .collect();
    service.firewall.ip(&addresses)?;
    let services: String = endpoints
        .iter()
        .zip(1..)
        .map(|(endpoint, number)| {
            format!(
                "[[service]]\nname = \"fw-{number}\"\nendpoint = \"{endpoint}\"\ninterface = \"eth1\"\nbehind = [\"10.20.7.{number}\"]\n"
            )
        })
        .collect();
    let mut hub = Frr::new()?;
    hub.start(&lab.hub, "zebra", "", &[])?;
    let peers: String = endpoints
        .iter()
        .map(|endpoint| format!(" peer {endpoint} interface eth1\n exit\n"))
        .collect();
    let peers = format!("bfd\n{peers}exit\n");
    Routers::start_bfdd(&lab, &mut hub, &peers)?;
    let config = Config::new(format!(
        "{services}[[action]]\nservice = \"fw-*\"\nkind = \"frr\"\nsocket = \"{}\"\n",
        hub.path("dp.sock").display()
    ))
    .defaults("interval = \"100ms\"\ntimeout = \"80ms\"\n");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_for("all up", LATER, |status| {
        (1..=PEERS).all(|number| status.verdict(&format!("fw-{number}")) == "up")
    })?;
    let actor = Actor::start(&tracker, &lab.hub)?;
    let count = usize::from(PEERS);
    wait_sessions(&hub, count, "up")?;
    for _ in 0..20 {
        let counters = hub.json("bfdd", "show bfd peers counters json")?;
        let counters = counters.as_array().context("counters")?;
        ensure!(counters.len() == count, "{} counters", counters.len());
        // About as long as vtysh takes to start.
        pause(Duration::from_millis(50));
    }
    wait_sessions(&hub, count, "up")?;
    service.break_forwarding()?;
    wait_sessions(&hub, count, "down")?;
    service.mend()?;
    wait_sessions(&hub, count, "up")?;
    // `bfdd` has lost no connection.
    let log = hub.log("bfdd");
    ensure!(!log.contains("socket failed"), "{log}");
    // FRR starts anew under load.
    hub.kill("bfdd")?;
    Routers::start_bfdd(&lab, &mut hub, &peers)?;
    wait_sessions(&hub, count, "up")?;
    actor.end(Signal::SIGTERM)
}
