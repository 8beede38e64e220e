//! What `tracker doctor` foretells is what the daemon then does: of each kind of interface, and of a start that fails.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;
use tracker_lab::daemon::LATER;
use tracker_lab::foreign::{Foreign, Hook};
use tracker_lab::skip::tells_xdp_features;
use tracker_lab::{Config, Lab, Tracker};

/// Mode and send of each interface.
type Ways = BTreeMap<String, (Value, Value)>;

fn foretold(tracker: &Tracker<'_>) -> Result<Ways> {
    let config = tracker.config();
    let mut command = tracker.command(&["doctor", "--json", "--config"]);
    let output = tracker_lab::netns::check(command.arg(config))?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["ok"], true, "{report}");
    report["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|interface| {
            let name = interface["name"].as_str().context("read a name")?;
            let ways = (interface["mode"].clone(), interface["send"].clone());
            Ok((name.to_owned(), ways))
        })
        .collect()
}

#[test]
fn for_every_kind_of_interface() -> Result<()> {
    let lab = Lab::with_services(5)?;
    let hub = &lab.hub;
    let [plain, grouped, bridged, above, foreign] = [0, 1, 2, 3, 4].map(|at| &lab.services()[at]);
    // eth1 as it is, and vx1 through it; eth2 takes redirected frames; br1 has eth3 as its port; mac1 is above eth4;
    // eth5 has a foreign program.
    hub.ip(
        "link add vx1 type vxlan id 7 local 10.9.0.1 remote 10.9.0.2 dstport 4789 dev eth1\n\
         address add 10.9.71.1/24 dev vx1\nlink set vx1 up\n\
         link add br1 type bridge\nlink set eth3 master br1\n\
         address add 10.9.73.1/24 dev br1\nlink set br1 up\n\
         link add link eth4 name mac1 type macvlan mode bridge\n\
         address add 10.9.74.1/24 dev mac1\nlink set mac1 up\n",
    )?;
    plain.firewall.ip(
        "link add vx1 type vxlan id 7 local 10.9.0.2 remote 10.9.0.1 dstport 4789 dev eth0\n\
         address add 10.9.71.2/24 dev vx1\nlink set vx1 up\n",
    )?;
    for (service, state) in [(plain, "off"), (grouped, "on")] {
        service
            .firewall
            .run(&format!("ethtool -K eth0 gro {state}"))?;
    }
    bridged.firewall.ip("address add 10.9.73.2/24 dev eth0\n")?;
    above.firewall.ip("address add 10.9.74.2/24 dev eth0\n")?;
    let program = Foreign::new(&lab, Hook::Xdp, "foreign")?;
    hub.ip(&format!(
        "link set dev eth5 xdpdrv pinned {}\n",
        program.pin()
    ))?;

    let services: String = [
        ("eth1", "10.9.0.2"),
        ("vx1", "10.9.71.2"),
        ("eth2", "10.9.1.2"),
        ("br1", "10.9.73.2"),
        ("mac1", "10.9.74.2"),
        ("eth5", "10.9.4.2"),
    ]
    .iter()
    .zip([plain, plain, grouped, bridged, above, foreign])
    .map(|((interface, endpoint), service)| {
        format!(
            "[[service]]\nname = \"{interface}\"\nendpoint = \"{endpoint}\"\ninterface = \"{interface}\"\nbehind = [\"{}\"]\n",
            service.behind
        )
    })
    .collect();
    // Replies may take other ways than probes; whatever the firewalls call their ends.
    for service in lab.services() {
        service
            .firewall
            .nft("add rule inet firewall forward accept\n")?;
    }

    let best = match tells_xdp_features() {
        true => "xdp-redirect",
        false => "tc-redirect",
    };
    for (mode, expected) in [
        (
            "auto",
            [
                ("eth1", "tc", "tc-redirect"),
                ("vx1", "tc", "tc-redirect"),
                ("eth2", "tc", best),
                ("br1", "tc", "tc-redirect"),
                ("mac1", "tc", "tc-redirect"),
                ("eth5", "tc", "tc-redirect"),
            ],
        ),
        (
            "xdp-native",
            [
                ("eth1", "xdp-native", "tc-redirect"),
                ("vx1", "", ""),
                ("eth2", "xdp-native", best),
                ("br1", "", ""),
                ("mac1", "", ""),
                ("eth5", "", ""),
            ],
        ),
        (
            "tc",
            ["eth1", "vx1", "eth2", "br1", "mac1", "eth5"].map(|name| (name, "tc", "tc-redirect")),
        ),
        (
            "xdp-generic",
            [
                ("eth1", "xdp-generic", "tc-redirect"),
                ("vx1", "xdp-generic", "tc-redirect"),
                ("eth2", "xdp-generic", best),
                ("br1", "xdp-generic", "tc-redirect"),
                ("mac1", "xdp-generic", "tc-redirect"),
                ("eth5", "", ""),
            ],
        ),
    ] {
        let config = Config::new(&services).mode(mode);
        let mut tracker = Tracker::start(hub, config)?;
        // Before it runs, and while it does.
        tracker.terminate()?;
        let before = foretold(&tracker)?;
        tracker.run()?;
        let (works, refused): (Vec<_>, Vec<_>) =
            expected.iter().partition(|(_, mode, _)| !mode.is_empty());
        let status = tracker.wait_for(&format!("{mode}: up where it can be"), LATER, |status| {
            works
                .iter()
                .all(|(name, _, _)| status.verdict(name) == "up")
        })?;
        for (name, mode, send) in works {
            let member = status.member(name, "active");
            let done = (member["mode"].clone(), member["send"].clone());
            assert_eq!(done, ((*mode).into(), (*send).into()), "{name}");
            assert_eq!(Some(&done), before.get(name), "{name}");
        }
        for (name, _, _) in refused {
            let member = status.member(name, "active");
            assert_eq!(
                (&member["mode"], &member["send"]),
                (&Value::Null, &Value::Null)
            );
            assert_eq!(
                before.get(name),
                Some(&(Value::Null, Value::Null)),
                "{name}"
            );
        }
        assert_eq!(foretold(&tracker)?, before, "{mode}: while it runs");
    }
    Ok(())
}

/// What `doctor` and `run` come to on a host where `prefix` takes something away.
struct Ends {
    report: Value,
    doctor: Option<i32>,
    run: Option<i32>,
    said: String,
}

impl Ends {
    /// The checks that came to this state.
    fn checks(&self, state: &str) -> Vec<&Value> {
        let checks = self.report["checks"].as_array().into_iter().flatten();
        checks.filter(|check| check["state"] == state).collect()
    }
}

/// Runs both behind a shell command; the daemon ends after a moment if it starts.
fn both(lab: &Lab, config: &str, prefix: &str) -> Result<Ends> {
    let shell = |arguments: &str| {
        let mut command = lab.hub.command("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg(format!("{prefix} {arguments}"))
            .arg(tracker_lab::daemon::binary())
            .arg(config)
            .output()
            .context("start a shell")
    };
    let doctor = shell("\"$0\" doctor --json --config \"$1\"")?;
    let report = serde_json::from_slice(&doctor.stdout)
        .with_context(|| format!("{prefix}: {}", String::from_utf8_lossy(&doctor.stderr)))?;
    // SIGTERM ends a daemon in good order, and timeout then says 124.
    let run = shell("timeout 3 \"$0\" run --config \"$1\"")?;
    Ok(Ends {
        report,
        doctor: doctor.status.code(),
        run: run.status.code(),
        said: String::from_utf8_lossy(&run.stderr).into_owned(),
    })
}

#[test]
fn for_a_start_that_fails() -> Result<()> {
    tracker_lab::netns::ensure_bpffs()?;
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().display();
    let config = directory.path().join("tracker.toml");
    let text = format!(
        "[hub]\ninstance = \"{}-d\"\nsocket = \"{path}/run/tracker.sock\"\nstate = \"{path}/state\"\n{}",
        lab.id(),
        lab.service().toml("fw-1")
    );
    std::fs::write(&config, text)?;
    let config = config.display().to_string();

    let whole = both(&lab, &config, "")?;
    assert_eq!(whole.doctor, Some(0), "{}", whole.report);
    assert_eq!(whole.run, Some(124), "{}", whole.said);

    // What is taken away, the check that fails, and whether the daemon says the same.
    let read_only = |at: &str| format!("mkdir -p {at} && mount -t tmpfs -o ro tmpfs {at} &&");
    for (prefix, name, is_same) in [
        ("exec setpriv --bounding-set=-bpf".to_owned(), "capabilities", true),
        ("exec setpriv --bounding-set=-perfmon,-net_admin".to_owned(), "capabilities", true),
        ("exec setpriv --reuid=65534 --clear-groups --inh-caps=-all".to_owned(), "root", true),
        (
            "mount -o remount,bind,ro /sys/fs/bpf && exec".to_owned(),
            "BPF file system",
            false,
        ),
        (
            "umount -l /sys/fs/bpf; mount -t tmpfs tmpfs /sys/fs && mount -o remount,ro /sys/fs && exec".to_owned(),
            "BPF file system",
            false,
        ),
        (read_only(&format!("{path}/run")), "socket directory", false),
    ] {
        // Root's own directory, which others may pass through to the config.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), mode)?;
        let ends = both(&lab, &config, &prefix)?;
        let failed = ends.checks("fail");
        // Without root all capabilities are missing too, of which the daemon then says nothing.
        let count = if name == "root" { 2 } else { 1 };
        assert_eq!(failed.len(), count, "{prefix}: {}", ends.report);
        assert_eq!(failed[0]["name"], name, "{prefix}");
        assert!(failed[0]["remedy"].is_string(), "{prefix}: {}", failed[0]);
        assert_eq!(ends.doctor, Some(1), "{prefix}");
        assert_eq!(ends.run, Some(1), "{prefix}: {}", ends.said);
        let found = failed[0]["found"].as_str().unwrap_or_default();
        assert!(
            !is_same || ends.said.contains(found),
            "{prefix}: {found}, but {}",
            ends.said
        );
    }

    // What only warns keeps nothing from running, and the daemon says the same.
    for (prefix, name, said) in [
        (
            "exec setpriv --bounding-set=-sys_nice prlimit --rtprio=0".to_owned(),
            "real-time priority",
            "priority",
        ),
        (
            read_only(&format!("{path}/state")),
            "state directory",
            "does not outlive its pins",
        ),
    ] {
        let ends = both(&lab, &config, &prefix)?;
        let warned = ends.checks("warn");
        assert!(
            warned.iter().any(|check| check["name"] == name),
            "{prefix}: {}",
            ends.report
        );
        assert_eq!(
            (ends.doctor, ends.run),
            (Some(0), Some(124)),
            "{}",
            ends.said
        );
        assert!(ends.said.contains(said), "{prefix}: {}", ends.said);
    }
    Ok(())
}
