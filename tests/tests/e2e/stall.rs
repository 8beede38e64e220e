//! A hub that does not keep up takes no service down.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use tracker_lab::clock::SteppedClock;
use tracker_lab::daemon::{LATER, SOON, lines};
use tracker_lab::hog;
use tracker_lab::pace::{pause, slow};
use tracker_lab::{Config, Lab, Tracker, netns};

fn never_down(tracker: &Tracker) -> Result<()> {
    let events = tracker.events()?;
    assert!(
        events.iter().all(|event| event.to != "down"),
        "a healthy service went down:\n{}",
        lines(&events)
    );
    Ok(())
}

#[test]
fn stopped_for_ten_seconds() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.signal(Signal::SIGSTOP)?;
    pause(Duration::from_secs(10));
    tracker.signal(Signal::SIGCONT)?;
    tracker.wait_alive(SOON, "fw-1")?;
    let status = tracker.wait_verdict("fw-1", "up", "replied")?;
    // It says so itself, in microseconds.
    for kind in ["tick", "timer"] {
        for figure in ["recent", "max"] {
            let late_us = status.0["lateness_us"][kind][figure].as_u64();
            assert!(late_us >= Some(9_000_000), "{kind} {figure}: {late_us:?}");
        }
    }
    assert!(status.0["stalls"].as_u64() >= Some(1));
    never_down(&tracker)
}

/// Something of a higher priority takes the processor on which the daemon is.
#[test]
fn starved_by_a_real_time_hog() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    // The last one: others' interrupts are mostly on the first.
    let processor = std::thread::available_parallelism()?.get() - 1;
    hog::confine(tracker.pid()?, processor)?;
    // Shorter and longer than `fall` probes and their timeout. A hog may be held up itself, by those of other tests or outside
    // this machine: the longest is sent until the daemon was starved.
    let mut late_us = None;
    for time_ms in [100, 300, 2_500, 2_500, 2_500] {
        hog::hog(processor, slow(Duration::from_millis(time_ms)))?;
        tracker.wait_alive(SOON, "fw-1")?;
        late_us = tracker.status()?.0["lateness_us"]["tick"]["max"].as_u64();
        if late_us >= Some(400_000) {
            break;
        }
    }
    let status = tracker.wait_verdict("fw-1", "up", "replied")?;
    // It was starved indeed, and knows.
    assert!(
        late_us >= Some(400_000),
        "{late_us:?}: {}\n{}",
        status.0,
        tracker.log()
    );
    assert!(status.0["stalls"].as_u64() >= Some(1));
    never_down(&tracker)
}

/// Something of a higher priority takes all processors, and with them whatever receives packets.
#[test]
fn starved_by_real_time_hogs_on_all_processors() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let processors = std::thread::available_parallelism()?.get();
    for time_ms in [100, 300, 1_500] {
        std::thread::scope(|scope| -> Result<()> {
            let time = slow(Duration::from_millis(time_ms));
            let hogs: Vec<_> = (0..processors)
                .map(|processor| scope.spawn(move || hog::hog(processor, time)))
                .collect();
            for hog in hogs {
                hog.join().expect("the hog does not panic")?;
            }
            Ok(())
        })?;
        tracker.wait_alive(SOON, "fw-1")?;
    }
    let status = tracker.wait_verdict("fw-1", "up", "replied")?;
    assert!(status.0["stalls"].as_u64() >= Some(1));
    never_down(&tracker)
}

/// What a ring buffer that is too small does not take is found in the state: 256 trackers of 1 ms send all at once, and
/// the ring has room for half of their replies.
#[test]
fn no_transition_is_lost_where_the_ring_buffer_overruns() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    service.answer_for_all()?;
    let behind: Vec<_> = (0..256).map(|last| format!("10.20.7.{last}")).collect();
    let config = format!(
        "[[service]]\nname = \"fw-1\"\nendpoint = \"{}\"\ninterface = \"eth1\"\npolicy = \"all\"\nbehind = {behind:?}\n",
        service.endpoint
    );
    let config = Config::new(config)
        .hub("room = 0")
        .defaults("interval = \"1ms\"\ntimeout = \"200ms\"");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;
    service.break_forwarding()?;
    tracker.wait_for("all to be down", LATER, |status| {
        let trackers = status.member("fw-1", "active")["trackers"].as_array();
        let mut trackers = trackers.into_iter().flatten();
        trackers.all(|tracker| tracker["verdict"] == "down")
    })?;
    service.mend()?;
    tracker.wait_verdict_within(LATER, "fw-1", "up", "replied")?;

    let counters = tracker.pins().join("maps/COUNTERS");
    let counters = lab.hub.run(&format!(
        "bpftool -j map dump pinned {}",
        counters.display()
    ))?;
    let counters: serde_json::Value = serde_json::from_str(&counters)?;
    let processors = counters[0]["formatted"]["values"].as_array();
    let dropped: u64 = processors
        .into_iter()
        .flatten()
        .filter_map(|values| values["value"]["event_dropped"].as_u64())
        .sum();
    assert!(dropped > 0, "the ring buffer was never full: {counters}");

    let events = tracker.events()?;
    for address in &behind {
        let told: Vec<_> = events
            .iter()
            .filter(|event| event.behind.as_deref() == Some(address))
            .map(|event| event.to.as_str())
            .collect();
        assert_eq!(told, ["up", "down", "up"], "{address}");
    }
    Ok(())
}

/// A machine that is suspended hears no replies: what was under way when it fell asleep tells nothing of a service.
#[test]
fn the_machine_sleeps_for_an_hour() -> Result<()> {
    let clock = SteppedClock::new()?;
    let lab = Lab::new()?;
    let service = lab.service();
    let config = Config::new(service.toml("fw-1"))
        .defaults("interval = \"20ms\"\ntimeout = \"2s\"\nfall = 3");
    let tracker = Tracker::start(&lab.hub, clock.rules(config))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    // Some twenty probes without reply, seven times as many as make it down two seconds later.
    service.break_forwarding()?;
    pause(Duration::from_millis(400));
    // Before the hub notices: what is lost after that counts.
    service.mend()?;
    clock.sleep(3_600)?;
    tracker.wait_for("the hub to notice", SOON, |status| status.0["stalls"] == 1)?;
    tracker.wait_alive(SOON, "fw-1")?;
    // Until the last of them would have been judged.
    pause(Duration::from_secs(3));
    never_down(&tracker)?;
    assert!(tracker.log().contains("the machine slept for "));
    // And a real outage is still found.
    service.break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    Ok(())
}

/// The wall clock is for people: only the monotonic one decides anything.
#[test]
fn the_wall_clock_steps_by_hours_and_years() -> Result<()> {
    const HOUR: i64 = 3_600;
    const YEARS: i64 = 20 * 366 * 24 * HOUR;
    let clock = SteppedClock::new()?;
    let lab = Lab::new()?;
    let service = lab.service();
    let config = Config::new(service.toml("fw-1"))
        .defaults("interval = \"20ms\"\ntimeout = \"200ms\"\nhold_down = \"300ms\"");
    let tracker = Tracker::start(&lab.hub, clock.rules(config))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for hours in [5, -7, 1, 0, -1, 23] {
        clock.step(hours * HOUR)?;
        tracker.wait_alive(SOON, "fw-1")?;
    }
    let told = tracker.history("fw-1")?;
    assert_eq!(told.len(), 1, "the clock changed a verdict: {told:?}");
    never_down(&tracker)?;

    // Steps while a change is under way, and while it is held down.
    service.break_forwarding()?;
    clock.step(-9 * HOUR)?;
    pause(Duration::from_millis(300));
    clock.step(YEARS)?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    service.mend()?;
    clock.step(YEARS + 3 * HOUR)?;
    pause(Duration::from_millis(200));
    clock.step(-YEARS)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;

    let output = netns::check(&mut tracker.client(&["events", "--json"]))?;
    let events: Vec<serde_json::Value> = String::from_utf8(output.stdout)?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let own: Vec<_> = events
        .iter()
        .filter(|event| event["behind"].is_null())
        .collect();
    let [up, down, again] = own[..] else {
        anyhow::bail!("not up, down, up: {own:?}");
    };
    // What it took is true, whatever the clock said meanwhile; the stamps are the clock's.
    for event in [up, down, again] {
        let took_us = event["detection_us"].as_u64();
        assert!(
            (Some(300_000)..Some(60_000_000)).contains(&took_us),
            "{event}"
        );
    }
    let year = |event: &serde_json::Value| event["time"].as_str().map(|time| time[..4].to_owned());
    assert!(year(down) > year(up), "{down}: the clock is not the file's");
    assert!(
        year(again) < year(up),
        "{again}: the clock is not the file's"
    );
    Ok(())
}

#[test]
fn stopped_again_and_again() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    // Shorter and longer than the timeout, and longer than timeout x fall.
    for stop_ms in [50, 150, 250, 450, 700, 1100] {
        tracker.signal(Signal::SIGSTOP)?;
        pause(Duration::from_millis(stop_ms));
        tracker.signal(Signal::SIGCONT)?;
        tracker.wait_alive(SOON, "fw-1")?;
    }
    never_down(&tracker)
}

#[test]
fn what_broke_while_it_was_stopped_is_found_afterwards() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.signal(Signal::SIGSTOP)?;
    lab.service().break_forwarding()?;
    pause(Duration::from_secs(1));
    tracker.signal(Signal::SIGCONT)?;
    let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
    assert!(down.count("fw-1", "lost") >= 3);
    Ok(())
}
