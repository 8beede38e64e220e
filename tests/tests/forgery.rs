//! Forged, altered and replayed replies, and those of other instances: none counts, however many there are.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tracker_tests::daemon::{SOON, lines};
use tracker_tests::flood::flood;
use tracker_tests::pace::slow;
use tracker_tests::packets::{self, ETHERNET, IPV4, Mark};
use tracker_tests::{Config, Lab, Service, Tracker};

/// Where the mark begins in an IPv4 echo.
const MARK_AT: usize = ETHERNET + IPV4 + 8;
/// How long each flood lasts.
const FLOOD: Duration = Duration::from_secs(4);

/// The next genuine reply that the firewall hands to the hub, as the one on the wire sees it.
fn capture(service: &Service) -> Result<Vec<u8>> {
    service.firewall.enter(|| {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol)) };
        ensure!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: a new descriptor that nobody else has.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let deadline = Instant::now() + SOON;
        let mut buffer = [0; 2048];
        while Instant::now() < deadline {
            // SAFETY: the buffer is as long as it says.
            let len = unsafe {
                libc::recv(
                    socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            let frame = &buffer[..usize::try_from(len).unwrap_or(0)];
            if let Some(seen) = packets::read_marked(frame)
                && seen.destination == service.hub_address
                && matches!(seen.carrier, packets::Carrier::Icmp { kind, .. } if kind == packets::echo_reply(seen.destination))
                // As it leaves for the hub, not as it comes from the host.
                && frame[6..12] == mac(service)?
            {
                return Ok(frame.to_vec());
            }
        }
        bail!("no reply was seen")
    })
}

/// The MAC address of the firewall's end of the cable, inside its namespace.
fn mac(service: &Service) -> Result<[u8; 6]> {
    let text = service.firewall.run("ip -br link show eth0")?;
    let text = text.split_whitespace().nth(2).context("a MAC address")?;
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16)?;
    }
    Ok(mac)
}

/// A reply that says something else of itself, with a right checksum.
fn with_mark(reply: &[u8], change: impl FnOnce(&mut Mark)) -> Vec<u8> {
    let mut mark = Mark::read(&reply[MARK_AT..]).expect("a mark");
    change(&mut mark);
    let mut frame = reply.to_vec();
    let payload = mark.payload(packets::MARK);
    frame[MARK_AT..MARK_AT + packets::MARK].copy_from_slice(&payload);
    let icmp = &mut frame[ETHERNET + IPV4..];
    icmp[2..4].fill(0);
    let sum: u32 = icmp
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    icmp[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    frame
}

/// Everything that somebody on the wire can make of a reply that he saw.
fn forgeries(reply: &[u8]) -> BTreeMap<&'static str, Vec<u8>> {
    let genuine = Mark::read(&reply[MARK_AT..]).expect("a mark");
    // As a daemon would make it that has another key, for the same tracker and its next probes.
    let token = |sequence| {
        let key = [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321];
        tracker_ebpf::wire::token::token(key, genuine.tracker, 1, sequence, genuine.sent_mono_ns)
    };
    BTreeMap::from([
        ("replayed", reply.to_vec()),
        (
            "another token",
            with_mark(reply, |mark| mark.token ^= 1 << 17),
        ),
        (
            "the next sequence number",
            with_mark(reply, |mark| mark.sequence += 1),
        ),
        (
            "a sequence number to come",
            with_mark(reply, |mark| mark.sequence += 100),
        ),
        (
            "a later time",
            with_mark(reply, |mark| mark.sent_mono_ns += 1_000_000_000),
        ),
        (
            "of another instance",
            with_mark(reply, |mark| {
                mark.sequence += 50;
                mark.token = token(mark.sequence);
            }),
        ),
        (
            "of no tracker",
            with_mark(reply, |mark| mark.tracker = 1_000_000),
        ),
        (
            "a wrong checksum",
            packets::with(reply.to_vec(), |frame| {
                frame[ETHERNET + IPV4 + 2] ^= 1;
            }),
        ),
    ])
}

/// User and system time that a process has used.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain anything.
    let (_, rest) = stat.rsplit_once(')').context("read /proc/PID/stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // SAFETY: no pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    Ok(Duration::from_millis(ticks * 1000 / per_second))
}

#[test]
fn a_flood_changes_no_verdict() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let [good, bad] = lab.services() else {
        bail!("two services");
    };
    let config = format!("{}{}", good.toml("fw-1"), bad.toml("fw-2"));
    // Probes that are lost to a queue that overflows are the flood's doing, not a forged verdict's.
    let config = Config::new(config).defaults("interval = \"50ms\"\ntimeout = \"1s\"\nfall = 5");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    tracker.wait_verdict("fw-2", "up", "replied")?;
    let replies = [capture(good)?, capture(bad)?];
    bad.break_forwarding()?;
    tracker.wait_verdict("fw-2", "down", "no-reply")?;
    let events = tracker.events()?;
    let before = tracker.status()?;
    let (started, used) = (Instant::now(), cpu_time(tracker.pid()?)?);

    for (service, reply) in [(good, &replies[0]), (bad, &replies[1])] {
        let frames: Vec<_> = forgeries(reply).into_values().collect();
        let began = Instant::now();
        let sent = flood(&service.firewall, "eth0", &frames, slow(FLOOD))?;
        let rate = sent as f64 / began.elapsed().as_secs_f64();
        println!("{sent} forged replies, {rate:.0} a second");
    }
    let (elapsed, used) = (started.elapsed(), cpu_time(tracker.pid()?)? - used);
    println!("the daemon used {used:?} in {elapsed:?}");

    // The one goes on, the other stays down; a cause may now be `corrupt`.
    let after = tracker.wait_alive(SOON, "fw-1")?;
    assert_eq!(after.verdict("fw-2"), "down");
    let now = tracker.events()?;
    assert_eq!(now.len(), events.len(), "{}", lines(&now[events.len()..]));
    for service in ["fw-1", "fw-2"] {
        let grown = |counter| after.count(service, counter) - before.count(service, counter);
        assert!(grown("corrupt") > 10_000, "{service}: {}", grown("corrupt"));
        // A genuine one that comes again is the first of its probe, a duplicate, or too late by now.
        let again = grown("duplicate") + grown("late");
        assert!(again > 10_000, "{service}: {again}");
    }
    let received = after.count("fw-2", "received") - before.count("fw-2", "received");
    assert_eq!(received, 0, "forged replies count");
    let [sent, received] = ["sent", "received"].map(|name| after.count("fw-1", name));
    assert!(received <= sent, "{received} replies to {sent} probes");
    // It is the kernel that counts them: the daemon does not notice how many there are.
    assert!(used < elapsed / 2, "{used:?} of {elapsed:?}");
    let log = tracker.log();
    let told: Vec<_> = log
        .lines()
        .filter(|line| line.contains("corrupt"))
        .collect();
    assert!(
        told.iter().any(|line| line.contains("fw-1/active")),
        "{log}"
    );
    assert!(
        told.iter().any(|line| line.contains("fw-2/active")),
        "{log}"
    );
    // Two trackers, in less than a minute.
    assert!(told.len() <= 2 + elapsed.as_secs() as usize / 60, "{log}");
    let nobody = log.matches("of no tracker").count();
    assert!(
        (1..=1 + elapsed.as_secs() as usize / 60).contains(&nobody),
        "{log}"
    );
    Ok(())
}

/// Each kind by itself: what becomes of a handful.
#[test]
fn each_kind_is_counted_for_what_it_is() -> Result<()> {
    let lab = Lab::new()?;
    let service = lab.service();
    let config =
        Config::new(service.toml("fw-1")).defaults("interval = \"50ms\"\ntimeout = \"10s\"");
    let tracker = Tracker::start(&lab.hub, config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    for (kind, frame) in forgeries(&capture(service)?) {
        let before = tracker.status()?;
        flood(
            &service.firewall,
            "eth0",
            &[frame],
            Duration::from_millis(1),
        )?;
        let counter = match kind {
            "replayed" => Some("duplicate"),
            "of no tracker" => None,
            _ => Some("corrupt"),
        };
        let after = tracker.wait_alive(SOON, "fw-1")?;
        for name in ["corrupt", "duplicate", "late", "wrong_path"] {
            let grown = after.count("fw-1", name) - before.count("fw-1", name);
            assert_eq!(grown > 0, Some(name) == counter, "{kind}: {name} {grown}");
        }
        let [sent, received] = ["sent", "received"].map(|name| after.count("fw-1", name));
        assert!(received <= sent, "{kind}: {received} of {sent}");
    }
    Ok(())
}
