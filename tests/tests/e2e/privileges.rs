//! What the running daemon may do, and that it is enough for everything that it has to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tracker_lab::daemon::{SOON, binary};
use tracker_lab::{Config, Lab, Tracker, skip};
use tracker_user::host::privileges::{ACT, RUN, START, UNIT_LACKS};

/// What `/proc/PID/task/TID/status` says of each thread, by its name and number.
fn threads(pid: u32) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("status"))?;
        let fields: BTreeMap<_, _> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect();
        threads.insert(format!("{} {}", fields["Name"], fields["Pid"]), fields);
    }
    Ok(threads)
}

/// Whether the daemon may empty its bounding set: not under the unit, which has limited it already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bounding {
    Empty,
    OfUnit,
}

/// What the unit grants.
fn granted() -> impl Iterator<Item = caps::Capability> {
    let all = RUN.into_iter().chain(START);
    all.filter(|capability| !UNIT_LACKS.contains(capability))
}

/// Every thread has exactly what is documented, and no way to get more.
fn keeps_only_what_it_needs(tracker: &Tracker, bounding: Bounding) -> Result<()> {
    let run: u64 = RUN.iter().map(|capability| capability.bitmask()).sum();
    let bounding = match bounding {
        Bounding::Empty => run,
        Bounding::OfUnit => granted().map(|capability| capability.bitmask()).sum(),
    };
    let threads = threads(tracker.pid()?)?;
    ensure!(
        threads.keys().any(|name| name.starts_with("tracker-send ")),
        "{:?}",
        threads.keys()
    );
    for (name, fields) in &threads {
        for (set, wanted) in [
            ("CapPrm", run),
            ("CapEff", run),
            ("CapBnd", bounding),
            ("CapInh", 0),
            ("CapAmb", 0),
        ] {
            let held = u64::from_str_radix(&fields[set], 16)?;
            ensure!(
                held == wanted,
                "{name}: {set} is {held:#x}, not {wanted:#x}"
            );
        }
        ensure!(fields["NoNewPrivs"] == "1", "{name}: NoNewPrivs");
    }
    Ok(())
}

fn words(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn unit_path() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).join("dist/tracker.service")
}

/// Everything that a running daemon does: none of it needs what was given up.
fn does_everything(
    lab: &Lab,
    tracker: &Tracker,
    mode: &str,
    hub: &str,
    bounding: Bounding,
) -> Result<()> {
    let service = lab.service();
    tracker.wait_verdict("fw-1", "up", "replied")?;
    keeps_only_what_it_needs(tracker, bounding)?;

    // An interface that goes and is made again: link, program, redirect target, neighbour.
    lab.hub.ip("link del eth1\n")?;
    tracker.wait_verdict("fw-1", "down", "interface-missing")?;
    service.plug(&lab.hub)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;

    // A service more by a reload, and one by the command line.
    let [_, second, third] = lab.services() else {
        anyhow::bail!("three services");
    };
    let both = format!("{}{}", service.toml("fw-1"), second.toml("fw-2"));
    assert!(
        tracker.reload(Config::new(both).mode(mode).hub(hub))?,
        "{}",
        tracker.log()
    );
    tracker.wait_verdict("fw-2", "up", "replied")?;
    tracker.service(&format!(
        "add fw-3 --endpoint {} --behind {} --interval 20ms",
        third.endpoint, third.behind
    ))?;
    tracker.wait_verdict("fw-3", "up", "replied")?;
    tracker.service("remove fw-3")?;

    // The private interfaces made anew, without IPv6 (/proc/sys).
    let [private, peer] = tracker_user::plan::observed::private_names(tracker.instance());
    lab.hub.ip(&format!("link del {private}\n"))?;
    tracker.wait_for("the private interfaces to be made anew", SOON, |_| {
        lab.hub.run(&format!("ip link show {peer}")).is_ok()
    })?;
    tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(lab.hub.run(&format!("ip -6 address show {private}"))?, "");

    // The kernel is told to ask for the next hop again, and the firewall may be another by now.
    lab.hub.ip("neigh flush dev eth1\n")?;
    tracker.wait_alive(SOON, "fw-1")?;
    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    service.mend()?;
    tracker.wait_alive(SOON, "fw-1")?;
    keeps_only_what_it_needs(tracker, bounding)
}

#[test]
fn what_is_kept_is_enough() -> Result<()> {
    for mode in ["xdp-native", "xdp-generic", "tc"] {
        let lab = Lab::with_services(3)?;
        let before = lab.hub.look()?;
        let hub = "room = 64";
        let config = Config::new(lab.service().toml("fw-1")).mode(mode).hub(hub);
        let mut tracker = Tracker::start(&lab.hub, config)?;
        does_everything(&lab, &tracker, mode, hub, Bounding::Empty)
            .with_context(|| format!("mode {mode}"))?;
        let status = tracker.terminate()?;
        assert!(status.success(), "{status}: {}", tracker.log());
        assert!(!tracker.pins().exists());
        assert!(!tracker.socket().exists());
        let private = &tracker_user::plan::observed::private_names(tracker.instance())[0];
        assert!(!lab.hub.look()?.contains(private), "{before}");
    }
    Ok(())
}

/// A daemon as the unit starts it: with the capabilities that it names, and no other.
#[test]
fn what_the_unit_grants_is_enough_to_start() -> Result<()> {
    let lab = Lab::with_services(3)?;
    let directory = tempfile::tempdir()?;
    // As `LimitRTPRIO` does; systemd goes on without where it may not, as in some containers.
    const LIMIT: [&str; 2] = ["prlimit", "--rtprio=98"];
    let has_priority = Command::new(LIMIT[0])
        .args([LIMIT[1], "true"])
        .output()?
        .status
        .success();
    let limit = if has_priority {
        LIMIT.join(" ")
    } else {
        String::new()
    };
    let names = granted().map(|capability| {
        let name = capability.to_string().to_lowercase();
        format!(",+{}", name.trim_start_matches("cap_"))
    });
    let wrapper = directory.path().join("tracker");
    fs::write(
        &wrapper,
        format!(
            "#!/bin/sh\nexec {limit} setpriv --bounding-set=-all{} {} \"$@\"\n",
            names.collect::<String>(),
            binary().display()
        ),
    )?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let hub = "room = 64\nmetrics = \"127.0.0.1:946\"";
    let config = Config::new(lab.service().toml("fw-1"))
        .hub(hub)
        .binary(wrapper);
    let tracker = Tracker::start(&lab.hub, config)?;
    does_everything(&lab, &tracker, "xdp-native", hub, Bounding::OfUnit)?;
    assert!(!tracker.log().contains("WARN  the"), "{}", tracker.log());
    assert_eq!(
        tracker.log().contains("priority"),
        !has_priority,
        "{}",
        tracker.log()
    );
    Ok(())
}

#[test]
fn a_missing_capability_is_named() -> Result<()> {
    let lab = Lab::new()?;
    let directory = tempfile::tempdir()?;
    let config = directory.path().join("tracker.toml");
    fs::write(&config, lab.service().toml("fw-1"))?;
    for lacking in ["net_admin", "bpf", "sys_admin", "perfmon"] {
        let output = lab
            .hub
            .command("setpriv")
            .arg(format!("--bounding-set=-{lacking}"))
            .arg(binary())
            .args(["run", "--config"])
            .arg(&config)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let name = format!("CAP_{}", lacking.to_uppercase());
        assert!(said.contains(&name), "{said}");
    }
    Ok(())
}

#[test]
fn pins_and_socket_are_the_owner_s_alone() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    let mode = |path: &Path| -> Result<u32> {
        let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
        Ok(metadata.permissions().mode() & 0o777)
    };
    // Only the maps for other programs can be reached by others.
    assert_eq!(mode(&tracker.pins())?, 0o711);
    for private in ["maps", "links"] {
        assert_eq!(mode(&tracker.pins().join(private))?, 0o700);
    }
    assert_eq!(mode(&tracker.pins().join("public"))?, 0o755);
    for map in tracker_ebpf::public::ALL {
        assert_eq!(mode(&tracker.pins().join("public").join(map))?, 0o644);
    }
    assert_eq!(mode(&tracker.socket())?, 0o600);
    for directory in ["maps", "links"] {
        for pin in fs::read_dir(tracker.pins().join(directory))? {
            let path = pin?.path();
            assert_eq!(mode(&path)? & 0o077, 0, "{}", path.display());
        }
    }
    Ok(())
}

#[test]
fn the_unit_grants_what_the_code_names() -> Result<()> {
    let text = fs::read_to_string(unit_path())?;
    let value = |key: &str| -> Result<&str> {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let mut values = lines.filter(|(named, _)| *named == key);
        let value = values.next().map(|(_, value)| value);
        ensure!(values.next().is_none(), "{key} twice");
        value.with_context(|| format!("{key} is missing"))
    };
    let named = granted().map(|capability| capability.to_string());
    assert_eq!(
        words(value("CapabilityBoundingSet")?),
        named.collect::<BTreeSet<_>>()
    );
    assert!(!text.contains("AmbientCapabilities="));
    for (key, wanted) in [
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("RuntimeDirectory", "tracker"),
        ("StateDirectory", "tracker"),
        ("Restart", "on-failure"),
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("RuntimeDirectoryPreserve", "yes"),
        ("LimitRTPRIO", "98"),
    ] {
        assert_eq!(value(key)?, wanted, "{key}");
    }
    let reload: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("ExecReload="))
        .collect();
    let [check, signal] = reload[..] else {
        anyhow::bail!("{reload:?}");
    };
    assert!(
        check.contains("tracker check /etc/tracker/tracker.toml"),
        "{check}"
    );
    assert_eq!(signal, "/bin/sh -c 'kill -HUP $$MAINPID'");
    assert!(words(value("SystemCallFilter")?).contains("bpf"));
    assert!(words(value("RestrictAddressFamilies")?).contains("AF_NETLINK"));
    Ok(())
}

/// The unit of further instances does as the first one, but for the name and the configuration.
#[test]
fn the_units_differ_only_in_the_instance() -> Result<()> {
    let one = fs::read_to_string(unit_path())?;
    let template = unit_path().with_file_name("tracker@.service");
    let many = fs::read_to_string(template)?
        .replace("Tracker, instance %i:", "Tracker:")
        .replace("/etc/tracker/%i.toml", "/etc/tracker/tracker.toml");
    assert_eq!(many, one);
    Ok(())
}

/// All units: of the daemon, and of `tracker act`.
const UNITS: [&str; 4] = [
    "tracker.service",
    "tracker@.service",
    "tracker-act.service",
    "tracker-act@.service",
];

#[test]
fn the_units_of_the_actor_grant_what_it_needs_and_no_more() -> Result<()> {
    let [one, many] = ["tracker-act.service", "tracker-act@.service"]
        .map(|name| fs::read_to_string(unit_path().with_file_name(name)));
    let (one, many) = (one?, many?);
    let many = many
        .replace("Tracker, instance %i:", "Tracker:")
        .replace("tracker@%i.service", "tracker.service")
        .replace("/etc/tracker/%i.toml", "/etc/tracker/tracker.toml");
    assert_eq!(many, one);
    let granted = |line: &str| one.lines().any(|known| known == line);
    for line in [
        "CapabilityBoundingSet=CAP_NET_ADMIN",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "StateDirectory=tracker",
        "Type=notify",
        "ExecStart=/usr/bin/tracker act --config /etc/tracker/tracker.toml",
    ] {
        ensure!(granted(line), "{line} is not in the unit");
    }
    // What hooks with a user need is named where it is looked for.
    let comment = ACT.map(|capability| capability.to_string()).join(" ");
    ensure!(
        one.contains(&format!("CapabilityBoundingSet={comment}")),
        "the comment does not name {comment}"
    );
    Ok(())
}

/// The units in a directory of their own, with the program that is tested.
fn units() -> Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    for name in UNITS {
        let text = fs::read_to_string(unit_path().with_file_name(name))?;
        // It looks whether the program is there.
        let text = text.replace("/usr/bin/tracker", &binary().display().to_string());
        fs::write(directory.path().join(name), text)?;
    }
    Ok(directory)
}

#[test]
fn systemd_takes_the_units() -> Result<()> {
    let units = units()?;
    for unit in UNITS {
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(units.path().join(unit))
            .output();
        let Ok(output) = output else {
            skip!("no systemd-analyze here; this does not depend on the kernel");
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains(unit), "{said}");
    }
    Ok(())
}

#[test]
fn the_sandbox_is_as_tight_as_promised() -> Result<()> {
    let units = units()?;
    for unit in UNITS {
        let output = Command::new("systemd-analyze")
            .args(["security", "--no-pager", "--offline=true", "--threshold=30"])
            .arg(units.path().join(unit))
            .output();
        let Ok(output) = output else {
            skip!("no systemd-analyze here; this does not depend on the kernel");
        };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{unit}: {said}");
        assert!(said.contains("exposure level"), "{unit}: {said}");
    }
    Ok(())
}
