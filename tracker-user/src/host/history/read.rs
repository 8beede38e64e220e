//! Reads one service's part of the history, file by file and row by row.

use std::collections::{HashMap, VecDeque};

use super::{
    HistoryError, Value,
    frame::{self, COLUMNS, EVENT, ROW},
    series::{SeriesFile, each_frame},
};
use crate::state::events::Numbered;

/// Most points of a member: more than any tier keeps, unless the clock was set back again and again.
const MAX_POINTS: usize = 25_000;
/// Most events, the newest.
const MAX_EVENTS: usize = 10_000;

/// What was found of a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Its members, also those of former times, in the order in which they were found.
    pub members: Vec<FoundMember>,
    /// Its events, the oldest first.
    pub events: Vec<Numbered>,
}

/// What was found of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundMember {
    /// Its name.
    pub name: String,
    /// Its endpoint.
    pub endpoint: String,
    /// Its rows, the oldest first.
    pub points: VecDeque<Point>,
}

/// A member's part of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// When the step began, seconds of Unix time.
    pub time: i64,
    /// What its probes had.
    pub value: Value,
}

/// The name of a member's column.
pub fn key(service: &str, member: &str, endpoint: impl std::fmt::Display) -> String {
    // No name has a slash.
    format!("{service}/{member}/{endpoint}")
}

pub(super) fn read(
    rows: &[SeriesFile],
    events: &[SeriesFile],
    service: &str,
    since: i64,
) -> Result<Found, HistoryError> {
    let mut found = Found::default();
    let mut known = HashMap::new();
    for file in rows {
        read_rows(file, service, since, &mut found.members, &mut known)?;
    }
    let mut newest: VecDeque<Numbered> = VecDeque::new();
    for file in events {
        whole(file, |kind, mut content| {
            if kind != EVENT || frame::take_time(&mut content).is_none_or(|time| time < since) {
                return true;
            }
            let event = serde_json::from_slice::<Numbered>(content).ok();
            // Those that a full disk took in part were written again.
            let is_known = |event: &Numbered| {
                newest
                    .back()
                    .is_some_and(|last| last.run == event.run && last.seq >= event.seq)
            };
            let event = event.filter(|event| {
                event.event.service.as_deref() == Some(service) && !is_known(event)
            });
            newest.extend(event);
            if newest.len() > MAX_EVENTS {
                newest.pop_front();
            }
            true
        })?;
    }
    found.events = newest.into();
    Ok(found)
}

fn read_rows(
    file: &SeriesFile,
    service: &str,
    since: i64,
    members: &mut Vec<FoundMember>,
    known: &mut HashMap<String, usize>,
) -> Result<(), HistoryError> {
    // The member of each column of the file that is wanted, in ascending order.
    let mut wanted: Vec<(usize, usize)> = Vec::new();
    let mut columns = 0;
    whole(file, |kind, mut content| {
        match kind {
            COLUMNS => {
                for key in frame::keys(content) {
                    let rest = key
                        .strip_prefix(service)
                        .and_then(|rest| rest.strip_prefix('/'));
                    if let Some((name, endpoint)) = rest.and_then(|rest| rest.split_once('/')) {
                        let member = *known.entry(key.to_owned()).or_insert_with(|| {
                            members.push(FoundMember {
                                name: name.to_owned(),
                                endpoint: endpoint.to_owned(),
                                ..FoundMember::default()
                            });
                            members.len() - 1
                        });
                        wanted.push((columns, member));
                    }
                    columns += 1;
                }
            }
            ROW => {
                let Some(time) = frame::take_time(&mut content).filter(|time| *time >= since)
                else {
                    return true;
                };
                let mut next = wanted.iter().peekable();
                for (column, value) in frame::cells(content) {
                    while next.next_if(|(wanted, _)| *wanted < column).is_some() {}
                    match next.peek() {
                        None => break,
                        Some((wanted, member)) if *wanted == column => {
                            let points = &mut members[*member].points;
                            points.push_back(Point { time, value });
                            if points.len() > MAX_POINTS {
                                points.pop_front();
                            }
                        }
                        Some(_) => {}
                    }
                }
            }
            _ => {}
        }
        true
    })
}

/// Reads a file. One that was deleted meanwhile has nothing; what comes after damage is not read.
fn whole(file: &SeriesFile, each: impl FnMut(u8, &[u8]) -> bool) -> Result<(), HistoryError> {
    match each_frame(file, each) {
        Ok(good) if good < file.bytes => {
            super::warn(format_args!(
                "{} is damaged from byte {good} on; the rest of its {} bytes is not read",
                file.path.display(),
                file.bytes
            ));
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(HistoryError::Read {
            path: file.path.clone(),
            source,
        }),
    }
}
