//! Others' programs and rules on the service's interface: theirs go on working, and so does ours.

use anyhow::{Context, Result};
use tracker_lab::daemon::{LATER, SOON};
use tracker_lab::foreign::{Foreign, Hook, Tcx};
use tracker_lab::{Config, Lab, Tracker, skip};

/// What `tracker doctor` says of eth1.
fn doctor(tracker: &Tracker<'_>) -> Result<serde_json::Value> {
    let config = tracker.config();
    let mut command = tracker.command(&["doctor", "--json", "--config"]);
    let output = command.arg(config).output()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    report["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|interface| interface["name"] == "eth1")
        .cloned()
        .with_context(|| format!("find eth1 in {report}"))
}

/// The lab's service, received in this mode.
fn config(lab: &Lab, mode: &str) -> Config {
    Config::new(lab.service().toml("fw-1"))
        .mode(mode)
        .defaults("interval = \"10ms\"\ntimeout = \"100ms\"")
}

/// Up; down when the firewall stops forwarding; up again.
fn works(lab: &Lab, tracker: &Tracker<'_>, mode: &str) -> Result<()> {
    let status = tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    assert_eq!(status.member("fw-1", "active")["mode"], mode);
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    lab.service().mend()?;
    tracker.wait_alive(LATER, "fw-1").map(drop)
}

#[test]
fn somebody_elses_xdp_program_stays() -> Result<()> {
    for flavour in ["xdpdrv", "xdpgeneric"] {
        let lab = Lab::new()?;
        let foreign = Foreign::new(&lab, Hook::Xdp, flavour)?;
        let attach = format!("link set dev eth1 {flavour} pinned {}\n", foreign.pin());
        lab.hub.ip(&attach)?;
        let attached = || lab.hub.run("ip -details link show dev eth1");
        let id = |shown: &str| {
            let (_, rest) = shown.split_once("prog/xdp id ")?;
            rest.split_whitespace().next().map(str::to_owned)
        };
        let before = id(&attached()?).context("find the program's id")?;

        let mut tracker = Tracker::start(&lab.hub, config(&lab, "auto"))?;
        let seen = foreign.seen()?;
        works(&lab, &tracker, "tc")?;
        assert!(
            foreign.seen()? > seen + 20,
            "it sees what arrives, replies included"
        );
        assert!(lab.hub.pings(lab.service().endpoint)?);
        assert_eq!(id(&attached()?), Some(before.clone()), "it was displaced");
        let told = doctor(&tracker)?;
        assert_eq!(told["mode"], "tc");
        let why = format!("XDP program {before} of somebody else stays where it is");
        assert!(told["detail"].to_string().contains(&why), "{told}");
        let log = tracker.log();
        assert!(
            log.contains("eth1: receiving by tc; ") && log.contains(&why),
            "{log}"
        );
        tracker.terminate()?;
        assert_eq!(id(&attached()?), Some(before), "it went with the daemon");
    }
    Ok(())
}

/// If the config insists on XDP, the daemon names the program that has the hook, and attaches once that is gone.
#[test]
fn a_mode_that_is_taken_is_refused_until_it_is_free() -> Result<()> {
    let lab = Lab::new()?;
    let foreign = Foreign::new(&lab, Hook::Xdp, "taken")?;
    for mode in ["xdp-native", "xdp-generic"] {
        lab.hub.ip(&format!(
            "link set dev eth1 xdpdrv pinned {}\n",
            foreign.pin()
        ))?;
        let tracker = Tracker::start(&lab.hub, config(&lab, mode))?;
        let status = tracker.wait_verdict("fw-1", "unknown", "send-failed")?;
        let tracked = status.tracker("fw-1", lab.service().behind);
        let detail = tracked["detail"].to_string();
        assert!(
            detail.contains("is attached already: remove it, or set hub.mode"),
            "{detail}"
        );
        let told = doctor(&tracker)?;
        assert!(told["mode"].is_null(), "{told}");
        assert_eq!(status.member("fw-1", "active")["mode"], told["mode"]);
        lab.hub.ip("link set dev eth1 xdpdrv off\n")?;
        works(&lab, &tracker, mode)?;
    }
    Ok(())
}

/// A program that an operator attaches later: the kernel refuses a second XDP program, and nothing is disturbed.
#[test]
fn somebody_who_comes_later() -> Result<()> {
    let lab = Lab::new()?;
    let foreign = Foreign::new(&lab, Hook::Xdp, "late")?;
    let tracker = Tracker::start(&lab.hub, config(&lab, "xdp-native"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for flavour in ["xdpdrv", "xdpgeneric"] {
        let attach = format!("ip link set dev eth1 {flavour} pinned {}", foreign.pin());
        assert!(!lab.hub.succeeds(&attach)?, "{flavour}");
    }
    works(&lab, &tracker, "xdp-native")
}

#[test]
fn the_operators_tc_programs_go_on_working() -> Result<()> {
    for mode in ["tc", "xdp-native", "xdp-generic"] {
        let lab = Lab::new()?;
        let (hub, endpoint) = (&lab.hub, lab.service().endpoint);
        let [filter_in, filter_out] =
            ["filter-in", "filter-out"].map(|name| Foreign::new(&lab, Hook::Tc, name));
        let (filter_in, filter_out) = (filter_in?, filter_out?);
        hub.run("tc qdisc add dev eth1 clsact")?;
        for (direction, program) in [("ingress", &filter_in), ("egress", &filter_out)] {
            hub.run(&format!(
                "tc filter add dev eth1 {direction} prio 1 bpf direct-action pinned {}",
                program.pin()
            ))?;
            // Then one that ends the filters, as an operator's accounting would.
            hub.run(&format!(
                "tc filter add dev eth1 {direction} prio 2 u32 match u32 0 0 flowid 1:1"
            ))?;
        }
        // At TCX, if this kernel has it: before the daemon, and while it runs.
        let at_tcx = |name: &str, hook: Tcx| {
            let program = Foreign::new(&lab, Hook::Tc, name)?;
            let link = program.attach_tcx(hub, "eth1", hook)?;
            Ok::<_, anyhow::Error>(link.map(|link| (program, link)))
        };
        let tcx_in = at_tcx("tcx-in", Tcx::Ingress)?;
        let tcx_out = at_tcx("tcx-out", Tcx::Egress)?;

        let mut tracker = Tracker::start(hub, config(&lab, mode))?;
        works(&lab, &tracker, mode)?;
        let late_in = at_tcx("late-in", Tcx::Ingress)?;
        let tcx = [&tcx_in, &tcx_out, &late_in].map(|at| at.as_ref().map(|(program, _)| program));
        let [incoming, outgoing] = [
            [Some(&filter_in), tcx[0], tcx[2]],
            [Some(&filter_out), tcx[1], None],
        ];
        let counts = || -> Result<Vec<u64>> {
            let all = incoming.iter().chain(&outgoing).flatten();
            all.map(|program| program.seen()).collect()
        };
        let before = counts()?;
        hub.run(&format!("ping -n -c 20 -i 0.01 -W 2 {endpoint}"))?;
        for (place, (before, after)) in before.iter().zip(counts()?).enumerate() {
            assert!(
                after >= before + 20,
                "{mode}: program {place} saw {}",
                after - before
            );
        }
        // Our replies are none of theirs, but for a filter that was there before ours.
        if mode != "tc" || tcx_in.is_some() {
            let before = counts()?;
            let received = tracker.status()?.count("fw-1", "received");
            tracker.wait_alive(SOON, "fw-1")?;
            let received = tracker.status()?.count("fw-1", "received") - received;
            for (place, (before, after)) in before.iter().zip(counts()?).enumerate() {
                let seen = after - before;
                let is_incoming = place < incoming.iter().flatten().count();
                assert!(
                    !is_incoming || seen < 10 && received >= 20,
                    "{mode}: program {place} saw {seen} of {received}"
                );
            }
        }
        tracker.terminate()?;
        for direction in ["ingress", "egress"] {
            let filters = hub.run(&format!("tc filter show dev eth1 {direction}"))?;
            assert!(filters.contains("u32"), "{filters}");
            assert!(filters.contains("direct-action"), "{filters}");
            assert!(!filters.contains("tracker"), "{filters}");
        }
    }
    Ok(())
}

/// nftables' own hooks on the interface: on the way in they come after ours, and what TC redirects skips the one on the
/// way out (`skb->nf_skip_egress`, Linux 5.16).
#[test]
fn netdev_chains_that_drop_everything() -> Result<()> {
    let lab = Lab::new()?;
    let closed = |hook: &str| {
        format!(
            "table netdev {hook} {{
               chain closed {{ type filter hook {hook} device eth1 priority -500; policy drop;
                 ether type arp accept
               }}
             }}"
        )
    };
    lab.hub.nft(&closed("ingress"))?;
    assert!(!lab.hub.pings(lab.service().endpoint)?);
    if lab.hub.nft(&closed("egress")).is_err() {
        skip!("this kernel has no netdev egress hook (CONFIG_NETFILTER_EGRESS)");
    }
    for mode in ["xdp-native", "xdp-generic", "tc"] {
        let tracker = Tracker::start(&lab.hub, config(&lab, mode))?;
        works(&lab, &tracker, mode)?;
    }
    lab.hub.nft("delete table netdev ingress\n")?;
    assert!(
        !lab.hub.pings(lab.service().endpoint)?,
        "the other chain drops as well"
    );
    Ok(())
}
