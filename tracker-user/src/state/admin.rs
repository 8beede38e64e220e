//! What operators impose on services and members (pure).
//!
//! A verdict is always measured; beside it stands what counts: `up` and `down` replace the verdict, `maintenance` keeps the last one
//! that counted and holds events back. What counts goes into the verdict of the service and of the chain above.

use std::sync::Arc;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracker_ebpf::verdict::Verdict;

use crate::config::words;

/// What is imposed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AdminState {
    /// Nothing: the verdict counts.
    #[default]
    Auto,
    /// Probing goes on; the last verdict that counted stays, and events are held back until the end.
    Maintenance,
    /// `up` counts.
    Up,
    /// `down` counts.
    Down,
}

words! {
    AdminState { Auto = "auto", Maintenance = "maintenance", Up = "up", Down = "down" }
}

/// An admin state, with what is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Admin {
    /// What is imposed.
    pub state: AdminState,
    /// Why, in the operator's words; null if nothing was said.
    pub reason: Option<Arc<str>>,
    /// When it ends by itself; null if it does not.
    pub until: Option<Timestamp>,
    /// Who asked for it: `uid N`, the user at the other end of the daemon's socket; null if nothing is imposed.
    pub by: Option<Arc<str>>,
}

impl Admin {
    /// What counts of a measured verdict; `last` is what counted before.
    pub const fn effective(&self, measured: Verdict, last: Verdict) -> Verdict {
        match self.state {
            AdminState::Auto => measured,
            AdminState::Maintenance => last,
            AdminState::Up => Verdict::Up,
            AdminState::Down => Verdict::Down,
        }
    }

    /// Whether events are held back.
    pub fn is_maintenance(&self) -> bool {
        self.state == AdminState::Maintenance
    }

    /// Whether anything is imposed.
    pub fn is_auto(&self) -> bool {
        self.state == AdminState::Auto
    }

    /// What it is, in a sentence without end.
    pub fn text(&self) -> String {
        let mut text = self.state.to_string();
        if let Some(by) = &self.by {
            text.push_str(&format!(" by {by}"));
        }
        if let Some(until) = self.until {
            text.push_str(&format!(" until {until:.0}"));
        }
        if let Some(reason) = &self.reason {
            text.push_str(&format!(": {reason}"));
        }
        text
    }
}

/// An admin state as the state directory keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What is imposed.
    #[serde(flatten)]
    pub admin: Admin,
    /// What counts meanwhile, if it is maintenance.
    #[serde(default)]
    pub effective: Verdict,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_follows_the_state() {
        let of = |state| Admin {
            state,
            ..Admin::default()
        };
        let all = [Verdict::Unknown, Verdict::Up, Verdict::Down];
        for measured in all {
            for last in all {
                let counts = |state| of(state).effective(measured, last);
                assert_eq!(counts(AdminState::Auto), measured);
                assert_eq!(counts(AdminState::Maintenance), last);
                assert_eq!(counts(AdminState::Up), Verdict::Up);
                assert_eq!(counts(AdminState::Down), Verdict::Down);
            }
        }
    }

    #[test]
    fn it_is_said_and_kept_whole() {
        let admin = Admin {
            state: AdminState::Maintenance,
            reason: Some("new rules".into()),
            until: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            by: Some("uid 0".into()),
        };
        assert_eq!(
            admin.text(),
            "maintenance by uid 0 until 2026-01-01T00:00:00Z: new rules"
        );
        let kept = Kept {
            admin,
            effective: Verdict::Up,
        };
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Kept>(&text).unwrap(), kept);
    }
}
