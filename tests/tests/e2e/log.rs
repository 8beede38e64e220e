//! What the daemon logs, and that it can be changed while it runs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tracker_lab::daemon::SOON;
use tracker_lab::pace::{pause, slow};
use tracker_lab::{Lab, Tracker};

#[test]
fn levels_change_while_the_daemon_runs() -> Result<()> {
    let lab = Lab::new()?;
    let tracker = Tracker::start(&lab.hub, &lab.service().toml("fw-1"))?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let log = |filter: Option<&str>| -> Result<_> {
        let mut words = vec!["log"];
        words.extend(filter);
        let output = tracker.client(&words).output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code();
        Ok((code, text(&output.stdout), text(&output.stderr)))
    };
    // A line is written after the verdict is there to be read.
    let wait_line = |line: &str| -> Result<()> {
        let deadline = Instant::now() + slow(SOON);
        while !tracker.log().contains(line) {
            ensure!(Instant::now() < deadline, "{line}: {}", tracker.log());
            pause(Duration::from_millis(20));
        }
        Ok(())
    };
    assert_eq!(log(None)?, (Some(0), "info\n".to_owned(), String::new()));

    // Nothing below a warning: a service that comes up again is not told.
    assert_eq!(log(Some("warn"))?.1, "warn\n");
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    lab.service().mend()?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    assert_eq!(log(None)?.1, "warn\n");
    wait_line("fw-1: up -> down, no-reply")?;
    let so_far = tracker.log();
    assert!(!so_far.contains("fw-1: down -> up"), "{so_far}");

    // What is no filter changes nothing, and says what is one.
    for bad in ["loud", "tracker_user=loud", ""] {
        let (code, said, why) = log(Some(bad))?;
        assert_eq!((code, said.as_str()), (Some(1), ""), "{bad}: {why}");
        assert!(
            why.contains("is no filter of the log") && why.contains("give a level"),
            "{why}"
        );
        assert_eq!(why.trim_end().lines().count(), 1, "{why}");
    }
    assert_eq!(log(None)?.1, "warn\n");

    // A part of the daemon more closely, and the rest as before.
    assert_eq!(log(Some("tracker_user::verdict=info,error"))?.0, Some(0));
    lab.service().break_forwarding()?;
    tracker.wait_verdict("fw-1", "down", "no-reply")?;
    lab.service().mend()?;
    wait_line("fw-1: down -> up")
}
