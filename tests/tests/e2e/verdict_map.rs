//! The maps that other eBPF programs read: what they say, how long it holds, and the example program that acts on it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use tracker_ebpf::public::{self, Name, PublicVerdict};
use tracker_ebpf::verdict::{Cause, Verdict};
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::netns::check;
use tracker_lab::pace::{pause, slow};
use tracker_lab::{Lab, Tracker};
use tracker_user::host::clock::monotonic_ns;

/// Both maps, as another process opens them.
struct Maps {
    names: HashMap<MapData, Name, u32>,
    verdicts: Array<MapData, PublicVerdict>,
}

impl Maps {
    fn open(tracker: &Tracker<'_>) -> Result<Self> {
        let open = |name| MapData::from_pin(tracker.pins().join("public").join(name));
        Ok(Self {
            names: Map::HashMap(open(public::NAMES)?).try_into()?,
            verdicts: Map::Array(open(public::VERDICTS)?).try_into()?,
        })
    }

    fn index(&self, service: &str, member: Option<&str>) -> Result<Option<u32>> {
        let name = public::name(service, member).context("a name that fits")?;
        match self.names.get(&name, 0) {
            Ok(index) => Ok(Some(index)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn at(&self, index: u32) -> Result<PublicVerdict> {
        Ok(self.verdicts.get(&index, 0)?)
    }

    fn entry(&self, service: &str, member: Option<&str>) -> Result<PublicVerdict> {
        let index = self.index(service, member)?;
        self.at(index.with_context(|| format!("{service} {member:?} is not published"))?)
    }

    /// Waits until an entry is as wanted, and fresh.
    fn wait(
        &self,
        what: &str,
        service: &str,
        member: Option<&str>,
        mut is_it: impl FnMut(&PublicVerdict) -> bool,
    ) -> Result<PublicVerdict> {
        let mut last = None;
        let found = wait_until(SOON, || {
            let entry = self.entry(service, member).ok();
            last = entry.or(last);
            entry.is_some_and(|entry| {
                entry.generation % 2 == 0 && entry.is_fresh(monotonic_ns()) && is_it(&entry)
            })
        });
        ensure!(found, "waited for {what} of {service} {member:?}: {last:?}");
        last.context("an entry")
    }
}

/// Whether something becomes true in time.
fn wait_until(patience: Duration, mut is_it: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + slow(patience);
    loop {
        if is_it() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        pause(Duration::from_millis(20));
    }
}

const fn is(verdict: Verdict, cause: Cause) -> impl Fn(&PublicVerdict) -> bool {
    move |entry| (entry.verdict, entry.cause) == (verdict as u8, cause as u8)
}

#[test]
fn it_follows_verdicts_admin_states_and_services() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let maps = Maps::open(&tracker)?;
    let up = maps.wait("up", "fw-1", None, is(Verdict::Up, Cause::Replied))?;
    assert_eq!((up.admin, up.weight, up.selected), (0, 1, 1));
    let member = maps.wait(
        "up",
        "fw-1",
        Some("active"),
        is(Verdict::Up, Cause::Replied),
    )?;
    assert_eq!((member.weight, member.selected), (1, 1));
    // Refreshed while nothing changes.
    let later = maps.wait("a refresh", "fw-1", None, |entry| {
        entry.refreshed_mono_ns > up.refreshed_mono_ns
    })?;
    assert_eq!(
        (later.generation, later.changed_mono_ns),
        (up.generation, up.changed_mono_ns)
    );

    service.break_forwarding()?;
    let down = maps.wait("down", "fw-1", None, is(Verdict::Down, Cause::NoReply))?;
    assert!(down.changed_mono_ns > up.changed_mono_ns && down.generation > up.generation);
    assert_eq!(down.weight, 0, "no member is up");

    tracker.service("set fw-1 --state up --reason drill")?;
    maps.wait("forced up", "fw-1", None, |entry| {
        (entry.verdict, entry.cause, entry.admin) == (Verdict::Up as u8, Cause::NoReply as u8, 2)
    })?;
    tracker.service("set fw-1 --state auto")?;
    service.mend()?;
    maps.wait("up", "fw-1", None, |entry| {
        is(Verdict::Up, Cause::Replied)(entry) && entry.admin == 0
    })?;

    // What is added is published beside the others, and what is removed is not left behind.
    let own = maps.index("fw-1", None)?;
    tracker.service(&format!(
        "add late --endpoint {} --behind {}",
        service.endpoint, service.behind
    ))?;
    maps.wait(
        "up",
        "late",
        Some("active"),
        is(Verdict::Up, Cause::Replied),
    )?;
    let late = maps.index("late", None)?.context("published")?;
    tracker.service("remove late")?;
    let is_gone = || maps.index("late", None).is_ok_and(|index| index.is_none());
    ensure!(wait_until(SOON, is_gone), "late is still published");
    assert_eq!(maps.at(late)?.verdict, Verdict::Unknown as u8);
    assert_eq!(maps.index("fw-1", None)?, own);
    Ok(())
}

#[test]
fn it_outlives_a_daemon_and_its_entries_end_by_time() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let mut tracker = Tracker::start(&lab.hub, &service.toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let maps = Maps::open(&tracker)?;
    let before = maps.wait("up", "fw-1", None, is(Verdict::Up, Cause::Replied))?;
    tracker.kill()?;
    let is_stale = || {
        let entry = maps.entry("fw-1", None);
        entry.is_ok_and(|entry| !entry.is_fresh(monotonic_ns()))
    };
    assert!(!is_stale(), "the lease is longer than that");
    ensure!(wait_until(LATER, is_stale), "fresh without a daemon");

    // The same maps, the same places; a verdict that is found again has not changed.
    let index = maps.index("fw-1", None)?;
    tracker.run()?;
    let after = maps.wait("up again", "fw-1", None, is(Verdict::Up, Cause::Replied))?;
    assert_eq!(maps.index("fw-1", None)?, index);
    assert_eq!(after.changed_mono_ns, before.changed_mono_ns);

    // The end of the daemon takes its pins along.
    tracker.terminate()?;
    assert!(!tracker.pins().exists());
    Ok(())
}

/// A main loop that hangs is no reason to send traffic anywhere.
#[test]
fn a_daemon_that_stands_still_says_nothing_that_counts() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let maps = Maps::open(&tracker)?;
    maps.wait("up", "fw-1", None, is(Verdict::Up, Cause::Replied))?;
    tracker.signal(nix::sys::signal::Signal::SIGSTOP)?;
    let ended = wait_until(LATER, || {
        let entry = maps.entry("fw-1", None);
        entry.is_ok_and(|entry| !entry.is_fresh(monotonic_ns()))
    });
    tracker.signal(nix::sys::signal::Signal::SIGCONT)?;
    ensure!(ended, "fresh while the daemon is stopped");
    maps.wait("up again", "fw-1", None, is(Verdict::Up, Cause::Replied))?;
    Ok(())
}

/// A user without rights reads the maps as text, if the mount lets it.
#[test]
fn other_users_read_it() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let maps = Maps::open(&tracker)?;
    maps.wait("up", "fw-1", None, is(Verdict::Up, Cause::Replied))?;
    let index = maps.index("fw-1", None)?.context("published")?;
    // Relative to a directory that was opened before: the mount of this machine may be closed.
    let read = |map: &str| -> Result<String> {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "cat",
                map,
            ])
            .current_dir(tracker.pins().join("public"));
        Ok(String::from_utf8_lossy(&check(&mut command)?.stdout).into_owned())
    };
    let verdicts = read(public::VERDICTS)?;
    let line = verdicts
        .lines()
        .find(|line| line.starts_with(&format!("{index}:")))
        .with_context(|| format!("no entry {index}"))?;
    assert!(line.contains("1"), "{line}");
    assert!(!read(public::NAMES)?.is_empty());
    let private = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "cat",
            "STATE",
        ])
        .current_dir(tracker.pins().join("maps"))
        .output()?;
    assert!(!private.status.success(), "maps are private");
    Ok(())
}

/// The example of the package, compiled as its comment says.
fn example(directory: &Path) -> Result<PathBuf> {
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist");
    let object = directory.join("bypass.bpf.o");
    let mut clang = Command::new("clang");
    clang.args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-I"]);
    // Debian has the headers of the architecture beside those of the kernel.
    clang.arg(dist.join("include")).arg("-I");
    clang.arg(format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH));
    clang.arg("-c").arg(dist.join("examples/bypass.bpf.c"));
    check(clang.arg("-o").arg(&object))?;
    Ok(object)
}

/// ```text
///   client ------------- hub ------------- firewall 1 ------ host 1 (10.20.0.9)
///   192.0.2.9      up0       eth1
///                            eth2 -------- firewall 2 ------ host 2 (10.20.0.9 too)
/// ```
/// The example at `up0` sends flows by the second way while the service of the first is down.
#[test]
fn the_example_sends_flows_past_a_service_that_is_down() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let [first, second] = [&lab.services()[0], &lab.services()[1]];
    let client = lab.add_namespace("client")?;
    lab.hub.ip(&format!(
        "link add up0 type veth peer name eth0 netns {}\n\
         address add 192.0.2.1/24 dev up0\nlink set up0 up\n\
         route add 10.20.0.0/24 via {}\n\
         rule add fwmark 0xb1 table 177\nroute add default via {} table 177\n",
        client.name(),
        first.endpoint,
        second.endpoint
    ))?;
    lab.hub.sysctl("net/ipv4/ip_forward", "1")?;
    for interface in ["all", "up0", "eth1", "eth2"] {
        // Replies may come by the way that the table without mark does not name.
        lab.hub
            .sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
    }
    client.ip(
        "address add 192.0.2.9/24 dev eth0\nlink set eth0 up\nroute add default via 192.0.2.1\n",
    )?;
    for service in [first, second] {
        let hub = service.hub_address;
        service
            .firewall
            .ip(&format!("route add 192.0.2.0/24 via {hub}\n"))?;
    }
    second
        .host
        .ip(&format!("address add {}/32 dev eth0\n", first.behind))?;

    let tracker = Tracker::start(&lab.hub, &first.toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let directory = tempfile::tempdir()?;
    let object = example(directory.path())?;
    let public = tracker.pins().join("public");
    let pin = public.join("bypass");
    let mut load = Command::new("bpftool");
    load.args(["prog", "load"]).arg(&object).arg(&pin);
    load.args(["type", "classifier"]);
    for map in public::ALL {
        load.args(["map", "name", map, "pinned"])
            .arg(public.join(map));
    }
    check(&mut load)?;
    let pinned = pin.display();
    lab.hub.run("tc qdisc add dev up0 clsact")?;
    lab.hub.run(&format!(
        "tc filter add dev up0 ingress bpf direct-action object-pinned {pinned}"
    ))?;

    let taken = || -> Result<[u64; 2]> { Ok([first.forwarded()?, second.forwarded()?]) };
    let ping = || client.pings(first.behind);
    ensure!(ping()?, "the first way");
    assert_eq!(taken()?[1], 0, "the second way is not used");
    first.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    ensure!(
        wait_until(SOON, || ping().unwrap_or(false)),
        "the second way"
    );
    assert!(taken()?[1] > 0);
    first.mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let before = taken()?;
    let is_back = || {
        ping().is_ok_and(|is_answered| is_answered)
            && taken().is_ok_and(|now| now[1] == before[1] && now[0] > before[0])
    };
    // A ping may leave in the moment of the change.
    let back = wait_until(SOON, is_back) || {
        let before = taken()?[1];
        ping()? && taken()?[1] == before
    };
    ensure!(back, "the first way again");
    // What the daemon removes at its end is its own; the program keeps its maps.
    drop(tracker);
    ensure!(ping()?, "unknown changes nothing");
    Ok(())
}
