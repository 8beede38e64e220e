//! Services do not touch one another.

use anyhow::Result;
use tracker_lab::{Lab, Tracker};

#[test]
fn one_fails_and_the_other_stays_up() -> Result<()> {
    let lab = Lab::with_services(2)?;
    let [first, second] = [&lab.services()[0], &lab.services()[1]];
    let config = first.toml("fw-1")
        + &second.toml("fw-2")
        + "[[chain]]\nname = \"internet\"\nservices = [\"fw-1\", \"fw-2\"]\n";
    let tracker = Tracker::start(&lab.hub, &config)?;
    tracker.wait_verdict("fw-1", "up", "replied")?;
    let up = tracker.wait_verdict("fw-2", "up", "replied")?;
    assert_eq!(up.0["chains"][0]["verdict"], "up");

    for _ in 0..2 {
        first.break_forwarding()?;
        let down = tracker.wait_verdict("fw-1", "down", "no-reply")?;
        assert_eq!(
            down.0["chains"][0]["verdict"], "down",
            "a chain is up when all are"
        );
        tracker.wait_alive(tracker_lab::daemon::SOON, "fw-2")?;
        first.mend()?;
        tracker.wait_verdict("fw-1", "up", "replied")?;
    }
    let changes = tracker.history("fw-2")?;
    assert_eq!(changes, [("up".to_owned(), "replied".to_owned())]);
    assert_eq!(tracker.status()?.count("fw-2", "lost"), 0);
    Ok(())
}
