//! Settings of trackers, and how inner tables inherit them from outer ones.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use tracker_ebpf::{abi, probe::stamp};

use super::{
    Expect, Flow, Probe, Protocol, Refused, Tracker,
    document::{At, Section, Setting},
    keys::{self, Key, STAMP_PADDED, STAMP_PAYLOAD, Table},
};

/// A setting, and the table in which it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Given {
    table: Table,
    setting: At<Setting>,
}

/// The settings that are given, by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Settings {
    given: BTreeMap<&'static str, Given>,
}

impl Settings {
    /// Reads those of one table.
    pub(super) fn read(section: &Section<'_>, table: Table) -> Self {
        let given = keys::settings().filter_map(|key| {
            let setting = section.entry(key)?.setting()?;
            Some((key.name, Given { table, setting }))
        });
        Self {
            given: given.collect(),
        }
    }

    /// These settings, and the outer ones if these say nothing.
    pub(super) fn within(mut self, outer: &Self) -> Self {
        for (key, given) in &outer.given {
            self.given.entry(key).or_insert(*given);
        }
        self
    }

    fn given(&self, key: &Key) -> Option<&Given> {
        self.given.get(key.name)
    }

    fn at(&self, key: &Key) -> Option<usize> {
        self.given(key).map(|given| given.setting.at)
    }

    fn given_integer(&self, key: &Key) -> Option<u32> {
        match self.given(key)?.setting.value {
            Setting::Integer(value) => Some(value),
            Setting::Duration(_) | Setting::Word(_) => None,
        }
    }

    fn integer(&self, key: &Key) -> u32 {
        let given = self.given_integer(key);
        given.unwrap_or_else(|| key.default_integer())
    }

    fn duration(&self, key: &Key) -> Duration {
        match self.given(key).map(|given| given.setting.value) {
            Some(Setting::Duration(value)) => value,
            _ => key.default_duration(),
        }
    }

    fn word<T: Copy>(&self, key: &Key, words: &[(&'static str, T)]) -> T {
        let given = self.given(key).and_then(|given| match given.setting.value {
            Setting::Word(text) => words.iter().find(|(word, _)| *word == text),
            Setting::Integer(_) | Setting::Duration(_) => None,
        });
        given.map_or_else(|| key.default_word(words), |(_, value)| *value)
    }

    /// Whether a setting was written for trackers of this kind of probe. One for others among the trackers that inherit it is
    /// no mistake.
    fn is_meant(&self, table: Table) -> bool {
        match self.given(&keys::PROBE).map(|given| given.table) {
            Some(probe) => table >= probe,
            None => table != Table::Defaults,
        }
    }

    /// The tracker of a behind address.
    pub(super) fn tracker(&self, section: &Section<'_>, behind: At<IpAddr>) -> Tracker {
        let probe = self.word(&keys::PROBE, Probe::WORDS);
        let protocol = self.protocol(section, probe);
        let port = self.port(section, probe, protocol, behind.at);
        let interval = self.duration(&keys::INTERVAL);
        let timeout = self.duration(&keys::TIMEOUT);
        let most = abi::STREAM_FLIGHTS_MAX;
        if probe == Probe::Tcp && timeout > interval * most {
            let at = self.at(&keys::TIMEOUT).or(self.at(&keys::INTERVAL));
            section.problem(
                at.unwrap_or(behind.at),
                format_args!(
                    "the timeout is longer than {most} intervals, and a SYN tells no more probes apart; give a shorter \
                     {} or a longer {}",
                    keys::TIMEOUT.quoted(),
                    keys::INTERVAL.quoted(),
                ),
            );
        }
        Tracker {
            behind: behind.value,
            probe,
            port,
            protocol,
            interval,
            timeout,
            fall: self.integer(&keys::FALL) as u8,
            rise: self.integer(&keys::RISE) as u8,
            payload: self.payload(section, probe, protocol),
            expect: self.word(&keys::EXPECT, Expect::WORDS),
            flow: self.word(&keys::FLOW, Flow::WORDS),
            dscp: self.integer(&keys::DSCP) as u8,
            refused: self.word(&keys::REFUSED, Refused::WORDS),
            hold_down: self.duration(&keys::HOLD_DOWN),
            return_ttl: self.given_integer(&keys::RETURN_TTL).map(|ttl| ttl as u8),
        }
    }

    fn protocol(&self, section: &Section<'_>, probe: Probe) -> Protocol {
        let protocol = self.word(&keys::PROTOCOL, Protocol::WORDS);
        if probe == Probe::Udp {
            return protocol;
        }
        if let Some(Given { table, setting }) = self.given(&keys::PROTOCOL)
            && self.is_meant(*table)
        {
            let sink = section.sink;
            section.problem(
                setting.at,
                format_args!(
                    "{} but {} has only one; delete {} or set {}",
                    sink.setting(&keys::PROTOCOL, &format!("\"{protocol}\"")),
                    sink.setting(&keys::PROBE, &format!("\"{probe}\"")),
                    keys::PROTOCOL.quoted(),
                    sink.setting(&keys::PROBE, "\"udp\""),
                ),
            );
        }
        keys::PROTOCOL.default_word(Protocol::WORDS)
    }

    fn port(
        &self,
        section: &Section<'_>,
        probe: Probe,
        protocol: Protocol,
        behind_at: usize,
    ) -> Option<u16> {
        let sink = section.sink;
        let probe_setting = || sink.setting(&keys::PROBE, &format!("\"{probe}\""));
        match (probe, self.given_integer(&keys::PORT)) {
            (Probe::Udp | Probe::Tcp, Some(port)) => Some(port as u16),
            (Probe::Udp, None) if protocol == Protocol::Stamp => Some(stamp::PORT),
            (Probe::Udp | Probe::Tcp, None) => {
                section.problem(
                    self.at(&keys::PROBE).unwrap_or(behind_at),
                    format_args!(
                        "{} needs {}, which is missing; add {}",
                        probe_setting(),
                        keys::PORT.quoted(),
                        sink.setting(&keys::PORT, "N"),
                    ),
                );
                None
            }
            (Probe::Icmp, Some(port)) => {
                if let Some(Given { table, setting }) = self.given(&keys::PORT)
                    && self.is_meant(*table)
                {
                    section.problem(
                        setting.at,
                        format_args!(
                            "{} but {} has no ports; delete {} or set {} or \"tcp\"",
                            sink.setting(&keys::PORT, &port.to_string()),
                            probe_setting(),
                            keys::PORT.quoted(),
                            sink.setting(&keys::PROBE, "\"udp\""),
                        ),
                    );
                }
                None
            }
            (Probe::Icmp, None) => None,
        }
    }

    /// Bytes after the header of a probe.
    fn payload(&self, section: &Section<'_>, probe: Probe, protocol: Protocol) -> u16 {
        let least = match (probe, protocol) {
            (Probe::Tcp, _) => 0,
            (Probe::Udp, Protocol::Stamp) => STAMP_PAYLOAD,
            (Probe::Icmp | Probe::Udp, _) => *keys::PAYLOAD.integers().start(),
        };
        let (Some(value), Some(given)) = (
            self.given_integer(&keys::PAYLOAD),
            self.given(&keys::PAYLOAD),
        ) else {
            return least as u16;
        };
        let setting = || section.sink.setting(&keys::PAYLOAD, &value.to_string());
        let key = keys::PAYLOAD.quoted();
        let why = match (probe, protocol) {
            (Probe::Tcp, _) => format!(
                "{} but a SYN carries no data, and firewalls drop those that do; delete {key}",
                setting()
            ),
            (Probe::Udp, Protocol::Stamp) if value != STAMP_PAYLOAD && value < STAMP_PADDED => {
                format!(
                    "{} but a STAMP packet has {STAMP_PAYLOAD} bytes, or {STAMP_PADDED} to {} with padding; give \
                     one of these or delete {key}",
                    setting(),
                    keys::PAYLOAD.integers().end()
                )
            }
            _ => return value as u16,
        };
        if self.is_meant(given.table) {
            section.problem(given.setting.at, why);
        }
        least as u16
    }
}
