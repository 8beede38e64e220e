//! A service at the other end of a tunnel of the kernel's own, over the link between hub and firewall.

use std::fs;

use anyhow::{Context, Result};
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::{Config, Lab, Namespace, Tracker, skip};

const V4: &str = r#"
[[service]]
name = "v4"
endpoint = "10.9.7.2"
interface = "tun7"
behind = ["10.20.0.9"]
"#;

const V6: &str = r#"
[[service]]
name = "v6"
endpoint = "2001:db8:97::2"
interface = "tun7"
behind = ["2001:db8:20::9"]
"#;

/// What a tunnel of `ip link` carries.
#[derive(Clone, Copy)]
enum Carries {
    V4,
    V6,
    Both,
}

impl Carries {
    fn services(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::V4 => &[("v4", V4)],
            Self::V6 => &[("v6", V6)],
            Self::Both => &[("v4", V4), ("v6", V6)],
        }
    }
}

/// Hub and firewall, with the last number of their addresses.
fn ends(lab: &Lab) -> [(&Namespace, u8); 2] {
    [(&lab.hub, 1), (&lab.service().firewall, 2)]
}

/// Gives an end its addresses and sets it up; also after it was down, which costs the IPv6 address.
fn set_up((end, host): (&Namespace, u8)) -> Result<()> {
    end.ip(&format!(
        "link set tun7 up\n\
         address replace 10.9.7.{host}/24 dev tun7\n\
         address replace 2001:db8:97::{host}/64 dev tun7 nodad\n"
    ))
}

/// Makes both ends of a tunnel, of a kind of `ip link` with LOCAL and REMOTE in it; false if the kernel has none.
fn make(lab: &Lab, kind: &str) -> Result<bool> {
    let net = if kind.contains("6tnl") || kind.contains("ip6gre") {
        "2001:db8:9::"
    } else {
        "10.9.0."
    };
    for (end, host) in ends(lab) {
        let kind = kind
            .replace("LOCAL", &format!("{net}{host}"))
            .replace("REMOTE", &format!("{net}{}", 3 - host));
        if !end.succeeds(&format!("ip link add tun7 type {kind}"))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Up, by packets that the firewall forwards; down by every break between hub and host; up again each time.
fn holds(lab: &Lab, carries: Carries) -> Result<()> {
    let service = lab.service();
    service
        .firewall
        .nft("add rule inet firewall forward iifname \"tun7\" counter name forwarded accept\n")?;
    let names = carries.services();
    let config: String = names.iter().map(|(_, toml)| *toml).collect();
    let tracker = Tracker::start(&lab.hub, Config::new(config).mode("auto"))?;
    let all_are = |verdict: &str, cause: &str| -> Result<()> {
        for (name, _) in names {
            tracker.wait_verdict_within(LATER, name, verdict, cause)?;
        }
        Ok(())
    };
    all_are("up", "replied")?;
    let before = service.forwarded()?;
    for (name, _) in names {
        let status = tracker.wait_alive(SOON, name)?;
        let member = status.member(name, "active");
        assert_eq!(
            (&member["mode"], &member["send"]),
            (&"tc".into(), &"tc-redirect".into())
        );
        assert_eq!(status.count(name, "lost"), 0);
    }
    let forwarded = service.forwarded()? - before;
    assert!(forwarded >= 15, "the firewall forwarded {forwarded} probes");

    service.break_forwarding()?;
    all_are("down", "no-reply")?;
    service.mend()?;
    all_are("up", "replied")?;

    lab.hub.ip("link set tun7 down\n")?;
    all_are("down", "interface-down")?;
    set_up(ends(lab)[0])?;
    all_are("up", "replied")?;

    // The hub's end does not notice: nothing comes back, that is all.
    service.firewall.ip("link set tun7 down\n")?;
    all_are("down", "no-reply")?;
    set_up(ends(lab)[1])?;
    all_are("up", "replied")
}

/// The tunnel's ends, made by `ip link` alone.
fn holds_through(kind: &str, carries: Carries) -> Result<()> {
    let lab = Lab::new()?;
    if !make(&lab, kind)? {
        let kind = kind.split(' ').next().unwrap_or(kind);
        skip!("this kernel has no {kind} devices (`ip link add type {kind}`)");
    }
    ends(&lab).into_iter().try_for_each(set_up)?;
    holds(&lab, carries)
}

#[test]
fn gre() -> Result<()> {
    holds_through("gre local LOCAL remote REMOTE ttl 64", Carries::Both)
}

#[test]
fn gre_with_a_key() -> Result<()> {
    holds_through("gre local LOCAL remote REMOTE ttl 64 key 7", Carries::V4)
}

#[test]
fn ipip() -> Result<()> {
    holds_through("ipip local LOCAL remote REMOTE ttl 64", Carries::V4)
}

#[test]
fn sit() -> Result<()> {
    holds_through("sit local LOCAL remote REMOTE ttl 64", Carries::V6)
}

#[test]
fn ip6tnl() -> Result<()> {
    let kind = "ip6tnl mode any encaplimit none local LOCAL remote REMOTE";
    holds_through(kind, Carries::Both)
}

/// A key pair: the file of the private one, and the public one.
fn keys(directory: &std::path::Path, end: &Namespace, host: u8) -> Result<(String, String)> {
    let file = directory.join(host.to_string());
    fs::write(&file, end.run("wg genkey")?)?;
    let mut command = end.command("wg");
    command.arg("pubkey").stdin(fs::File::open(&file)?);
    let public = tracker_lab::netns::check(&mut command)?;
    let public = String::from_utf8(public.stdout)?.trim().to_owned();
    Ok((file.display().to_string(), public))
}

#[test]
fn wireguard() -> Result<()> {
    let lab = Lab::new()?;
    if !make(&lab, "wireguard")? {
        skip!("this kernel has no WireGuard (`ip link add type wireguard`)");
    }
    let directory = tempfile::tempdir()?;
    let pairs = ends(&lab)
        .map(|(end, host)| keys(directory.path(), end, host))
        .into_iter()
        .collect::<Result<Vec<_>>>()
        .context("make WireGuard's keys")?;
    let peer = |host: u8| {
        let (_, theirs) = &pairs[usize::from(2 - host)];
        let other = 3 - host;
        format!(
            "wg set tun7 peer {theirs} endpoint 10.9.0.{other}:51820 allowed-ips 0.0.0.0/0,::/0"
        )
    };
    for (end, host) in ends(&lab) {
        let (private, _) = &pairs[usize::from(host - 1)];
        end.run(&format!(
            "wg set tun7 listen-port 51820 private-key {private}"
        ))?;
        end.run(&peer(host))?;
        set_up((end, host))?;
    }
    holds(&lab, Carries::Both)?;

    // The other end no longer knows the hub: encrypted packets arrive and match no session.
    let tracker = Tracker::start(&lab.hub, Config::new(V4).mode("auto"))?;
    tracker.wait_verdict_within(LATER, "v4", "up", "replied")?;
    let firewall = &lab.service().firewall;
    firewall.run(&format!("wg set tun7 peer {} remove", pairs[0].1))?;
    tracker.wait_verdict_within(LATER, "v4", "down", "no-reply")?;
    firewall.run(&peer(2))?;
    tracker.wait_verdict_within(LATER, "v4", "up", "replied")?;
    Ok(())
}
