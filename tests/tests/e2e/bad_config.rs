//! A config that is wrong changes nothing, and says in one line what is wrong and where.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result};
use tracker_lab::netns::BPFFS;
use tracker_lab::{Lab, daemon};

/// A config that is right; each case changes it a little.
const GOOD: &str = r#"[hub]
instance = "INSTANCE"
socket = "SOCKET"

[defaults]
interval = "100ms"

[[service]]
name = "fw-1"
endpoint = "10.9.0.2"
interface = "eth1"
behind = ["10.20.0.9"]

[[chain]]
name = "internet"
services = ["fw-1"]
"#;

/// What to replace by what, the line that is then wrong (if it is one line), and words of the message.
const CASES: &[(&str, &str, Option<u32>, &[&str])] = &[
    (
        "endpoint = \"10.9.0.2\"",
        "endpont = \"10.9.0.2\"",
        Some(10),
        &["endpont", "endpoint"],
    ),
    (
        "interval = \"100ms\"",
        "intervall = \"1s\"",
        Some(6),
        &["intervall", "interval"],
    ),
    ("[[chain]]", "[[chains]]", Some(14), &["chains", "chain"]),
    (
        "socket = \"SOCKET\"",
        "sockt = \"/tmp/x\"",
        Some(3),
        &["sockt", "socket"],
    ),
    (
        "endpoint = \"10.9.0.2\"",
        "endpoint = \"10.9.0\"",
        Some(10),
        &["10.9.0"],
    ),
    (
        "endpoint = \"10.9.0.2\"",
        "endpoint = \"224.0.0.1\"",
        Some(10),
        &["224.0.0.1"],
    ),
    (
        "endpoint = \"10.9.0.2\"",
        "endpoint = \"0.0.0.0\"",
        Some(10),
        &["0.0.0.0"],
    ),
    (
        "endpoint = \"10.9.0.2\"",
        "endpoint = 10",
        Some(10),
        &["endpoint"],
    ),
    ("endpoint = \"10.9.0.2\"\n", "", Some(8), &["endpoint"]),
    ("[\"10.20.0.9\"]", "[]", Some(12), &["behind"]),
    (
        "[\"10.20.0.9\"]",
        "[\"10.20.0.9\", \"10.20.0.9\"]",
        Some(12),
        &["10.20.0.9"],
    ),
    (
        "[\"10.20.0.9\"]",
        "[\"host.example\"]",
        Some(12),
        &["host.example"],
    ),
    (
        "\"eth1\"",
        "\"a-name-of-more-than-127-bytes-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x-x\"",
        Some(11),
        &["a-name-of-more-than-127-bytes"],
    ),
    (
        "endpoint = \"10.9.0.2\"",
        "members_up = 2\nendpoint = \"10.9.0.2\"",
        Some(10),
        &["members_up", "more than the 1 members"],
    ),
    (
        "endpoint = \"10.9.0.2\"\ninterface = \"eth1\"\nbehind = [\"10.20.0.9\"]\n",
        "[[service.member]]\nname = \"a\"\nendpoint = \"10.9.0.2\"\nbehind = [\"10.20.0.9\"]\n\
         [[service.member]]\nname = \"a\"\nendpoint = \"10.9.1.2\"\nbehind = [\"10.20.1.9\"]\n",
        Some(15),
        &["name", "line 11 has this name"],
    ),
    (
        "endpoint = \"10.9.0.2\"\ninterface = \"eth1\"\nbehind = [\"10.20.0.9\"]\n",
        "[[service.member]]\nrole = \"active\"\npriority = 3\nendpoint = \"10.9.0.2\"\nbehind = [\"10.20.0.9\"]\n",
        Some(12),
        &["priority", "a role is a priority already"],
    ),
    (
        "endpoint = \"10.9.0.2\"\ninterface = \"eth1\"\nbehind = [\"10.20.0.9\"]\n",
        "[[service.member]]\nweight = 300\nendpoint = \"10.9.0.2\"\nbehind = [\"10.20.0.9\"]\n",
        Some(11),
        &["weight", "1 to 256"],
    ),
    ("name = \"fw-1\"\n", "", Some(8), &["name"]),
    ("name = \"fw-1\"", "name = \"\"", Some(9), &["name"]),
    ("\"100ms\"", "\"0ms\"", Some(6), &["interval", "1ms"]),
    ("\"100ms\"", "\"2h\"", Some(6), &["interval", "1h"]),
    ("\"100ms\"", "\"soon\"", Some(6), &["soon"]),
    ("\"100ms\"", "100", Some(6), &["interval"]),
    (
        "interval = \"100ms\"",
        "timeout = \"2m\"",
        Some(6),
        &["timeout", "1m"],
    ),
    ("interval = \"100ms\"", "fall = 0", Some(6), &["fall", "1"]),
    (
        "interval = \"100ms\"",
        "rise = 61",
        Some(6),
        &["rise", "60"],
    ),
    (
        "interval = \"100ms\"",
        "probe = \"carrier-pigeon\"",
        Some(6),
        &["carrier-pigeon", "icmp"],
    ),
    (
        "[defaults]",
        "[defaults]\nfall = 3\nfall = 4",
        Some(7),
        &["duplicate"],
    ),
    (
        "services = [\"fw-1\"]",
        "services = [\"fw-2\"]",
        Some(16),
        &["fw-2"],
    ),
    (
        "instance = \"INSTANCE\"",
        "instance = \"../evil\"",
        Some(2),
        &["../evil"],
    ),
    (
        "instance = \"INSTANCE\"",
        "instance = \"x\"\nmode = \"fast\"",
        Some(3),
        &["fast", "auto"],
    ),
    (
        "[[chain]]",
        "[[service]]\nname = \"fw-1\"\nendpoint = \"10.9.0.3\"\nbehind = [\"10.20.0.8\"]\n[[chain]]",
        Some(15),
        &["fw-1"],
    ),
    (
        "[[chain]]",
        "[[service]]\nname = \"fw-2\"\n[[chain]]",
        Some(14),
        &["fw-2"],
    ),
    ("[[chain]]", "[[service]\n[[chain]]", Some(14), &[]),
    (
        "behind =",
        "policy = \"most\"\nbehind =",
        Some(12),
        &["most"],
    ),
    (
        "behind =",
        "policy = 2\nbehind =",
        Some(12),
        &["policy", "2"],
    ),
    (
        "behind =",
        "source = \"2001:db8::1\"\nbehind =",
        Some(12),
        &["source"],
    ),
    (
        "[hub]",
        "[steering]\nuplinks = 3\n[hub]",
        Some(2),
        &["uplinks"],
    ),
];

fn one_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.trim_end().lines().count(), 1, "not one line: {text:?}");
    assert!(output.stdout.is_empty(), "errors go to stderr");
    text
}

struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Result<Self> {
        Ok(Self {
            directory: tempfile::tempdir()?,
        })
    }

    fn write(&self, name: &str, text: &str, instance: &str) -> Result<String> {
        let path = self.directory.path().join(name);
        let socket = self.directory.path().join("tracker.sock");
        let text = text
            .replace("INSTANCE", instance)
            .replace("SOCKET", &socket.display().to_string());
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }
}

#[test]
fn check_names_file_and_line() -> Result<()> {
    let fixture = Fixture::new()?;
    let mut wrong = Vec::new();
    for (number, (old, new, line, words)) in CASES.iter().enumerate() {
        assert!(GOOD.contains(old), "case {number} changes nothing");
        let path = fixture.write("bad.toml", &GOOD.replacen(old, new, 1), "bad")?;
        let output = Command::new(daemon::binary())
            .args(["check", &path])
            .output()
            .context("run tracker check")?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let place = line.map_or(path.clone(), |line| format!("{path}:{line}"));
        // One line a problem, and the place below it; what is wrong in one place may be wrong in its consequences too.
        let is_excerpt = |line: &str| {
            line.trim_start_matches(|at: char| at == ' ' || at.is_ascii_digit())
                .starts_with(['|', '.'])
        };
        let good = output.status.code() == Some(1)
            && text
                .lines()
                .all(|line| line.contains(&path) || is_excerpt(line))
            && text
                .lines()
                .any(|line| line.contains(&place) && words.iter().all(|word| line.contains(word)));
        if !good {
            wrong.push(format!(
                "{new:?}: wanted exit 1 and a line with {place} and {words:?}, got {:?}: {text}",
                output.status.code()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn check_accepts_what_is_right() -> Result<()> {
    let fixture = Fixture::new()?;
    let path = fixture.write("good.toml", GOOD, "good")?;
    let output = Command::new(daemon::binary())
        .args(["check", &path])
        .output()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn run_refuses_and_changes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let fixture = Fixture::new()?;
    let before = lab.hub.look()?;
    let pins = Path::new(BPFFS).join("tracker").join(lab.id());
    for (old, new, _, _) in CASES.iter().step_by(5) {
        let path = fixture.write("bad.toml", &GOOD.replacen(old, new, 1), lab.id())?;
        let output = lab
            .hub
            .command(daemon::binary())
            .args(["run", "--config", &path])
            .output()?;
        assert_eq!(output.status.code(), Some(1), "{new:?}");
        let text = String::from_utf8(output.stderr)?;
        assert!(!text.is_empty(), "{new:?}");
        assert!(text.lines().all(|line| line.contains(&path)), "{text}");
        assert!(!pins.exists(), "{new:?} left {}", pins.display());
        let after = lab.hub.look()?;
        assert_eq!(after, before, "{new:?}");
    }
    Ok(())
}

#[test]
fn a_file_that_is_not_there() -> Result<()> {
    for command in [
        &["check", "/nonexistent/tracker.toml"][..],
        &["run", "--config", "/nonexistent/tracker.toml"],
    ] {
        let output = Command::new(daemon::binary()).args(command).output()?;
        assert_eq!(output.status.code(), Some(1));
        assert!(one_line(&output).contains("/nonexistent/tracker.toml"));
    }
    Ok(())
}

#[test]
fn without_root_it_says_so() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let fixture = Fixture::new()?;
    fs::set_permissions(fixture.directory.path(), fs::Permissions::from_mode(0o755))?;
    let path = fixture.write("good.toml", GOOD, "nobody-test")?;
    // The build tree may be closed to others; this directory is not.
    let binary = fixture.directory.path().join("tracker");
    fs::copy(daemon::binary(), &binary)?;
    let nobody = 65534;
    let run = |arguments: &[&str]| {
        Command::new(&binary)
            .args(arguments)
            .uid(nobody)
            .gid(nobody)
            .current_dir("/")
            .output()
    };
    assert!(
        run(&["check", &path])?.status.success(),
        "checking needs no privilege"
    );
    let output = run(&["run", "--config", &path])?;
    assert_eq!(output.status.code(), Some(1));
    let text = one_line(&output);
    assert!(text.contains("root") || text.contains("CAP_"), "{text}");
    Ok(())
}
