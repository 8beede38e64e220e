//! What `tracker status --json` prints: keys, their order and their units are a contract.

use std::net::IpAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracker_ebpf::{
    abi::Proof,
    verdict::{Cause, Verdict},
};

use crate::config::{Owner, Probe, Protocol, Role};
use crate::detector::lateness::{Health as Keeping, Lateness, STALLED_NS};
use crate::plan::mode::{Mode, SendWay};
use crate::state::{
    admin::{Admin, AdminState},
    selection::Selected,
};

/// What is known of a hub's services and chains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Name of the hub.
    pub hub: String,
    /// Instance of the daemon.
    pub instance: String,
    /// Services, in the order of the configuration.
    pub services: Vec<ServiceStatus>,
    /// Chains, in the order of the configuration.
    pub chains: Vec<ChainStatus>,
    /// Steering of packets of others; absent if none is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steering: Option<SteeringStatus>,
    /// How late the hub was, in microseconds.
    #[serde(default)]
    pub lateness_us: LatenessUs,
    /// How often the sending thread was so late, or the machine asleep, that probes proved nothing: cause `stalled`.
    #[serde(default)]
    pub stalls: u64,
    /// Name of the sequence of event numbers; see [events](events.md).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run: String,
    /// Age of the status in milliseconds: the time since the sending thread and the main loop both last ended a turn. Above
    /// 3,000 every verdict is `unknown` with cause `stalled`, and `last_verdict` beside it says what it was.
    #[serde(default)]
    pub as_of_ms: u64,
    /// The last reload; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reload: Option<ReloadStatus>,
}

/// A reload of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReloadStatus {
    /// When.
    pub time: Timestamp,
    /// Whether the configuration counts since; else the one before it does.
    pub ok: bool,
}

/// How often a verdict changed to another one for one cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Transition {
    /// Verdict after the change.
    pub to: Verdict,
    /// Cause of the change.
    pub cause: Cause,
    /// How often.
    pub count: u64,
}

/// Steering.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SteeringStatus {
    /// Uplinks, in the order of the configuration.
    pub uplinks: Vec<UplinkStatus>,
}

/// An interface on which others' tracker packets arrive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UplinkStatus {
    /// Name of the interface.
    pub interface: String,
    /// How the fastest of the programs there is attached; null until one is.
    pub mode: Option<Mode>,
}

/// How late the hub is, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LatenessUs {
    /// Time from when the sending thread should have woken up until it did; one that is overdue now counts already.
    pub tick: Late,
    /// Time that a reply lay in the ring buffer; only trackers that are not up use it.
    pub ring: Late,
    /// Time from when the main loop's timer was due until the loop saw it.
    pub timer: Late,
}

/// One kind of lateness, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Late {
    /// Greatest of the last 10 to 20 seconds.
    pub recent: u64,
    /// Greatest since the start.
    pub max: u64,
}

impl LatenessUs {
    /// As it is at a time of the monotonic clock.
    pub fn new(health: &Keeping, now_mono_ns: u64) -> Self {
        let late = |lateness: &Lateness| {
            let figure = lateness.figure(now_mono_ns);
            Late {
                recent: figure.recent_ns / 1000,
                max: figure.max_ns / 1000,
            }
        };
        Self {
            tick: late(&health.tick),
            ring: late(&health.ring),
            timer: late(&health.timer),
        }
    }
}

impl Status {
    /// Whether it is so old that no verdict counts.
    pub const fn is_stalled(&self) -> bool {
        self.as_of_ms > STALLED_NS / 1_000_000
    }

    /// Takes back every verdict, because the daemon does not keep up: what it last knew may no longer be so.
    pub fn stall(&mut self) {
        self.services.iter_mut().for_each(ServiceStatus::stall);
        for chain in &mut self.chains {
            stall(&mut chain.verdict, &mut chain.last_verdict);
        }
    }

    /// Whether everything in it is up; so it is when there is nothing.
    pub fn all_up(&self) -> bool {
        let services = self.services.iter().map(|service| service.effective);
        let chains = self.chains.iter().map(|chain| chain.verdict);
        services.chain(chains).all(|verdict| verdict == Verdict::Up)
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    /// Name of the service.
    pub name: String,
    /// Verdict: `up` if as many members are as must be, any of them by default.
    pub verdict: Verdict,
    /// Cause of the member that decides.
    pub cause: Cause,
    /// When the verdict last changed.
    pub since: Timestamp,
    /// Name of the member in use. Of a pair the active one while it is up, else the standby while that is up. Of a pool a list: the
    /// members that are up with the lowest priority number, and with the next ones until `members_up` are reached.
    pub selected: Selected,
    /// Members, in the order of the configuration.
    pub members: Vec<MemberStatus>,
    /// Packets of others that were sent through its members; absent if none are steered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steered: Option<u64>,
    /// Replies to them that went back as from the endpoint; absent if none are steered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replied: Option<u64>,
    /// How often it left the verdict `up` or `down` in the last `flap_window` of `[hub]`, 1,024 at most.
    #[serde(default)]
    pub flaps: u64,
    /// How often it left the verdict `up` or `down` since the daemon knows the service.
    #[serde(default)]
    pub flaps_total: u64,
    /// Verdict that counts, by `admin`: for the service or chain above, `selected`, exit code, metrics and actions.
    #[serde(default)]
    pub effective: Verdict,
    /// What an operator imposes on it.
    #[serde(default)]
    pub admin: Admin,
    /// What may change it: the file, or the API.
    #[serde(default)]
    pub owner: Owner,
    /// Changes of the verdict since the daemon's start, by verdict and cause; absent if there was none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transitions: Vec<Transition>,
    /// Last verdict that was known; present only while the daemon stalls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_verdict: Option<Verdict>,
    /// How many members must be up; present of a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members_up: Option<usize>,
}

fn stall(verdict: &mut Verdict, last: &mut Option<Verdict>) {
    *last = Some(std::mem::take(verdict));
}

impl ServiceStatus {
    /// Takes back every verdict, because the daemon does not keep up.
    pub fn stall(&mut self) {
        stall(&mut self.verdict, &mut self.last_verdict);
        self.effective = Verdict::Unknown;
        self.cause = Cause::Stalled;
        for member in &mut self.members {
            stall(&mut member.verdict, &mut member.last_verdict);
            member.effective = Verdict::Unknown;
            member.cause = Cause::Stalled;
            for tracker in &mut member.trackers {
                stall(&mut tracker.verdict, &mut tracker.last_verdict);
                tracker.cause = Cause::Stalled;
                tracker.detail = None;
            }
        }
    }
}

/// A member of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemberStatus {
    /// Part in a high-availability pair; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Next hop of its probes.
    pub endpoint: IpAddr,
    /// Way out; null until known.
    pub interface: Option<String>,
    /// How replies are received, on the first of `returns`; null until known.
    pub mode: Option<Mode>,
    /// Verdict by the policy over the trackers.
    pub verdict: Verdict,
    /// Cause of the tracker that decides.
    pub cause: Cause,
    /// Trackers, in the order of the configuration.
    pub trackers: Vec<TrackerStatus>,
    /// How probes leave; null while they cannot.
    pub send: Option<SendWay>,
    /// Packets of others that were sent through it; absent if none are steered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steered: Option<u64>,
    /// Replies to them that went back as from the endpoint; absent if none are steered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replied: Option<u64>,
    /// Verdict that counts, by `admin`: for the service or chain above, `selected`, exit code, metrics and actions.
    #[serde(default)]
    pub effective: Verdict,
    /// What an operator imposes on it.
    #[serde(default)]
    pub admin: Admin,
    /// Last verdict that was known; present only while the daemon stalls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_verdict: Option<Verdict>,
    /// Name: unique among the members of the service, and its role or else its endpoint if none is configured.
    #[serde(default)]
    pub name: String,
    /// Priority number; present of a member of a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    /// Share among members of equal priority; present of a member of a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// What a map of nftables has for it; absent if it has no mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
    /// Its place in the kernel's maps, for metrics.
    #[serde(skip)]
    pub path: Option<u32>,
}

impl MemberStatus {
    /// The name; the role if the daemon is of a version without names.
    pub fn name(&self) -> &str {
        named(&self.name, self.role)
    }
}

fn named(name: &str, role: Option<Role>) -> &str {
    match (name, role) {
        ("", Some(role)) => role.as_str(),
        (name, _) => name,
    }
}

/// The services of a hub, as `tracker service list --json` prints them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct List {
    /// Services, in the order of the configuration, later additions after it.
    pub services: Vec<ListedService>,
    /// Number of trackers for which there is still room.
    pub free: u32,
}

/// What a change of services did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Changed {
    /// Names of the services that are new.
    pub added: Vec<String>,
    /// Names of the services whose settings changed.
    pub changed: Vec<String>,
    /// Names of the services that went.
    pub removed: Vec<String>,
    /// Number of the services of the API that stay as they are.
    pub unchanged: u64,
    /// Whether nothing was done because only this was asked.
    pub dry_run: bool,
}

/// An admin state that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminWanted {
    /// What to impose.
    pub state: AdminState,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000))]
    pub reason: Option<String>,
    /// When it ends by itself; it lasts until it is changed if this is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// What the daemon logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogFilter {
    /// A level (`off`, `error`, `warn`, `info`, `debug`, `trace`), or directives as `tracker_user::net=debug,info`.
    #[schemars(length(min = 1, max = 1000))]
    pub filter: String,
}

impl LogFilter {
    /// Name of its key.
    pub const KEY: &str = "filter";
}

/// Whether the daemon keeps up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// Whether it does.
    pub ok: bool,
    /// Time in milliseconds since the sending thread and the main loop both last ended a turn; above 3,000 it does not.
    pub as_of_ms: u64,
    /// How often the hub was so late that probes proved nothing.
    pub stalls: u64,
    /// How late the hub was, in microseconds.
    pub lateness_us: LatenessUs,
}

impl Health {
    /// As it is at a time of the monotonic clock.
    pub fn new(health: &Keeping, now_mono_ns: u64) -> Self {
        let age_ns = health.age_ns(now_mono_ns);
        Self {
            ok: age_ns <= STALLED_NS,
            as_of_ms: age_ns / 1_000_000,
            stalls: health.stalls.load(std::sync::atomic::Ordering::Relaxed),
            lateness_us: LatenessUs::new(health, now_mono_ns),
        }
    }
}

/// What a service is, and its verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListedService {
    /// Name of the service.
    pub name: String,
    /// What may change it: the file, or the API.
    pub owner: Owner,
    /// Verdict: `up` if as many members are as must be, any of them by default.
    pub verdict: Verdict,
    /// Cause of the member that decides.
    pub cause: Cause,
    /// Members, in the order of the configuration.
    pub members: Vec<ListedMember>,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListedMember {
    /// Part in a high-availability pair; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Next hop of its probes.
    pub endpoint: IpAddr,
    /// Way out; null until known.
    pub interface: Option<String>,
    /// Behind address of each tracker.
    pub behind: Vec<IpAddr>,
    /// Name: unique among the members of the service.
    #[serde(default)]
    pub name: String,
}

impl ListedMember {
    /// The name; the role if the daemon is of a version without names.
    pub fn name(&self) -> &str {
        named(&self.name, self.role)
    }
}

/// One stream of probes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrackerStatus {
    /// Address behind the service.
    pub behind: IpAddr,
    /// Kind of probe.
    pub probe: Probe,
    /// Verdict as reported, that is after `hold_down`.
    pub verdict: Verdict,
    /// Cause of the verdict.
    pub cause: Cause,
    /// Probes that were handed to the interface: `received`, `lost`, `void`, and those under way.
    pub sent: u64,
    /// Probes answered within the timeout.
    pub received: u64,
    /// Probes whose timeout passed, once the hub itself is ruled out as the reason: a run of losses is counted when it ends
    /// or when it decides.
    pub lost: u64,
    /// Replies beyond the first for one probe.
    pub duplicate: u64,
    /// Round-trip times in microseconds, one-way times if `proof` is `arrival`.
    pub rtt_us: RttUs,
    /// Replies after the timeout.
    pub late: u64,
    /// Packets that bear a probe header and name this tracker but fail checksum, destination or token.
    pub corrupt: u64,
    /// Genuine replies on an interface outside `returns`; a bridge's port or a macvlan's parent sees those of the device
    /// above on their way. Also those by another hop or with another TTL than `return_hop` and `return_ttl` permit.
    pub wrong_path: u64,
    /// Genuine replies from another address or port than the one that was asked: no reply; `detail` names the address.
    #[serde(default)]
    pub elsewhere: u64,
    /// ICMP and ICMPv6 errors about probes: an error may explain a loss, and never is one.
    #[serde(default)]
    pub icmp_errors: u64,
    /// Probes that were due and that the hub did not send, for whatever reason.
    pub skipped: u64,
    /// What counts as received: `arrival` if the behind address is the hub's own.
    pub proof: Proof,
    /// Probes of `sent` whose outcome proves nothing: unanswered while the hub did not keep up, or not transmitted by the
    /// device.
    #[serde(default)]
    pub void: u64,
    /// Destination port; absent for probes without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// TTL (hop limit) with which the last reply arrived; present once there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_ttl: Option<u8>,
    /// MAC address that brought the last reply; present if its frame had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_mac: Option<String>,
    /// `stamp`, of UDP probes that are not for an echo service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// More about the cause; present if there is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Change that `hold_down` holds back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldStatus>,
    /// Last verdict that was known; present only while the daemon stalls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_verdict: Option<Verdict>,
}

/// A change of verdict that is reported if it lasts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeldStatus {
    /// Verdict to come.
    pub verdict: Verdict,
    /// Cause of it.
    pub cause: Cause,
    /// Milliseconds until it is reported, unless it is over by then.
    pub due_ms: u64,
    /// More about the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Round-trip times in microseconds, rounded; `None` until there was one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RttUs {
    /// Last one; null until there was one.
    pub last: Option<u64>,
    /// Shortest; null until there was one.
    pub min: Option<u64>,
    /// Mean; null until there was one.
    pub avg: Option<u64>,
    /// Longest; null until there was one.
    pub max: Option<u64>,
}

impl From<&Counters> for RttUs {
    fn from(counters: &Counters) -> Self {
        let us = |ns: Option<u64>| ns.map(|ns| ns.saturating_add(500) / 1000);
        Self {
            last: us(counters.rtt_last_ns),
            min: us(counters.rtt_min_ns),
            avg: us(counters.rtt_avg_ns),
            max: us(counters.rtt_max_ns),
        }
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChainStatus {
    /// Name of the chain.
    pub name: String,
    /// Verdict: `up` if all its services are.
    pub verdict: Verdict,
    /// Names of its services, in the order in which traffic passes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Last verdict that was known; present only while the daemon stalls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_verdict: Option<Verdict>,
}

/// What the kernel counted for one tracker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Probes that were handed to the interface: `received`, `lost`, `void`, and those under way.
    pub sent: u64,
    /// Probes that were answered in time.
    pub received: u64,
    /// Probes whose timeout passed without a reply.
    pub lost: u64,
    /// Replies to a probe that was already answered.
    pub duplicate: u64,
    /// Replies after the timeout.
    pub late: u64,
    /// Packets that bear a probe header and fail the token.
    pub corrupt: u64,
    /// Genuine replies on an interface outside `returns`.
    pub wrong_path: u64,
    /// Genuine replies from another address or port than the one that was asked.
    pub elsewhere: u64,
    /// ICMP and ICMPv6 errors about probes.
    pub icmp_errors: u64,
    /// Probes that were due and that the hub did not send.
    pub skipped: u64,
    /// Probes of `sent` whose outcome proves nothing.
    pub void: u64,
    /// The last round-trip time, in nanoseconds; as the others, `None` until there was one.
    pub rtt_last_ns: Option<u64>,
    /// The shortest.
    pub rtt_min_ns: Option<u64>,
    /// The mean.
    pub rtt_avg_ns: Option<u64>,
    /// The longest.
    pub rtt_max_ns: Option<u64>,
    /// Hops that the last reply had left.
    pub return_ttl: Option<u8>,
    /// The MAC address that brought it; `None` where its frame had none.
    pub return_mac: Option<[u8; 6]>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The contract's example, with the keys that came after it, as one line.
    pub(crate) const CONTRACT: &str = concat!(
        r#"{"hub":"hub-1","instance":"default","services":["#,
        r#"{"name":"fw-1","verdict":"up","cause":"replied","since":"2026-01-01T00:00:00Z","selected":"active","#,
        r#""members":[{"role":"active","endpoint":"10.9.0.2","interface":"eth1","mode":"xdp-native","#,
        r#""verdict":"up","cause":"replied","#,
        r#""trackers":[{"behind":"10.20.0.9","probe":"icmp","verdict":"up","cause":"replied","#,
        r#""sent":120,"received":120,"lost":0,"duplicate":0,"rtt_us":{"last":41,"min":35,"avg":44,"max":90}"#,
        r#","late":0,"corrupt":0,"wrong_path":0,"elsewhere":0,"icmp_errors":0,"skipped":0,"proof":"reply","void":0"#,
        r#","return_ttl":62,"return_mac":"02:00:00:00:00:01"}]"#,
        r#","send":"xdp-redirect","effective":"up","admin":{"state":"auto","reason":null,"until":null,"by":null},"name":"active""#,
        r#"}],"flaps":0,"flaps_total":2,"#,
        r#""effective":"up","admin":{"state":"auto","reason":null,"until":null,"by":null},"owner":"file"}],"#,
        r#""chains":[{"name":"internet","verdict":"up","services":["fw-1"]}]"#,
        r#","lateness_us":{"tick":{"recent":61,"max":912},"ring":{"recent":0,"max":0},"timer":{"recent":0,"max":0}},"stalls":1,"as_of_ms":12}"#,
    );

    pub(crate) fn example() -> Status {
        Status {
            hub: "hub-1".to_owned(),
            instance: "default".to_owned(),
            services: vec![ServiceStatus {
                name: "fw-1".to_owned(),
                verdict: Verdict::Up,
                cause: Cause::Replied,
                since: "2026-01-01T00:00:00Z".parse().unwrap(),
                selected: Selected::One("active".into()),
                members: vec![MemberStatus {
                    role: Some(Role::Active),
                    endpoint: "10.9.0.2".parse().unwrap(),
                    interface: Some("eth1".to_owned()),
                    mode: Some(Mode::XdpNative),
                    verdict: Verdict::Up,
                    cause: Cause::Replied,
                    trackers: vec![TrackerStatus {
                        behind: "10.20.0.9".parse().unwrap(),
                        probe: Probe::Icmp,
                        verdict: Verdict::Up,
                        cause: Cause::Replied,
                        sent: 120,
                        received: 120,
                        lost: 0,
                        duplicate: 0,
                        rtt_us: RttUs::from(&Counters {
                            rtt_last_ns: Some(41_499),
                            rtt_min_ns: Some(34_500),
                            rtt_avg_ns: Some(44_000),
                            rtt_max_ns: Some(89_999),
                            ..Counters::default()
                        }),
                        late: 0,
                        corrupt: 0,
                        wrong_path: 0,
                        elsewhere: 0,
                        icmp_errors: 0,
                        skipped: 0,
                        void: 0,
                        held: None,
                        proof: Proof::Reply,
                        port: None,
                        return_ttl: Some(62),
                        return_mac: Some("02:00:00:00:00:01".to_owned()),
                        protocol: None,
                        detail: None,
                        last_verdict: None,
                    }],
                    send: Some(SendWay::XdpRedirect),
                    name: "active".to_owned(),
                    priority: None,
                    weight: None,
                    steered: None,
                    replied: None,
                    effective: Verdict::Up,
                    admin: Admin::default(),
                    last_verdict: None,
                    mark: None,
                    path: None,
                }],
                steered: None,
                replied: None,
                flaps: 0,
                flaps_total: 2,
                members_up: None,
                effective: Verdict::Up,
                admin: Admin::default(),
                owner: Owner::File,
                transitions: Vec::new(),
                last_verdict: None,
            }],
            chains: vec![ChainStatus {
                name: "internet".to_owned(),
                verdict: Verdict::Up,
                services: vec!["fw-1".to_owned()],
                last_verdict: None,
            }],
            steering: None,
            lateness_us: LatenessUs {
                tick: Late {
                    recent: 61,
                    max: 912,
                },
                ..LatenessUs::default()
            },
            stalls: 1,
            run: String::new(),
            as_of_ms: 12,
            last_reload: None,
        }
    }

    #[test]
    fn a_stalled_daemon_knows_no_verdict() {
        let mut status = example();
        status.as_of_ms = 3_000;
        assert!(!status.is_stalled());
        status.as_of_ms = 3_001;
        assert!(status.is_stalled() && status.all_up());
        status.stall();
        assert!(!status.all_up());
        let json = serde_json::to_value(&status).unwrap();
        let service = &json["services"][0];
        let member = &service["members"][0];
        for one in [service, member, &member["trackers"][0]] {
            assert_eq!(one["verdict"], "unknown");
            assert_eq!(one["cause"], "stalled");
            assert_eq!(one["last_verdict"], "up");
        }
        assert_eq!(json["chains"][0]["verdict"], "unknown");
        assert_eq!(json["chains"][0]["last_verdict"], "up");
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
    }

    #[test]
    fn json_is_the_contract_s_example() {
        assert_eq!(serde_json::to_string(&example()).unwrap(), CONTRACT);
        assert_eq!(serde_json::from_str::<Status>(CONTRACT).unwrap(), example());
    }

    #[test]
    fn what_is_not_known_is_null() {
        let mut status = example();
        let member = &mut status.services[0].members[0];
        (member.interface, member.mode, member.send) = (None, None, None);
        member.trackers[0].rtt_us = RttUs::from(&Counters::default());
        (member.trackers[0].return_ttl, member.trackers[0].return_mac) = (None, None);
        member.trackers[0].detail = Some("from 10.9.0.2".to_owned());
        let json = serde_json::to_string(&status).unwrap();
        for part in [
            r#""interface":null,"mode":null,"#,
            r#""rtt_us":{"last":null,"min":null,"avg":null,"max":null}"#,
            r#""skipped":0,"proof":"reply","void":0,"detail":"from 10.9.0.2"}],"send":null,"effective":"up""#,
        ] {
            assert!(json.contains(part), "{json}");
        }
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }

    #[test]
    fn all_up_means_services_and_chains() {
        assert!(example().all_up());
        let mut status = example();
        status.chains[0].verdict = Verdict::Unknown;
        assert!(!status.all_up());
        let mut status = example();
        status.services[0].effective = Verdict::Down;
        assert!(!status.all_up());
    }

    /// Verdicts and causes have one word, in JSON as in text.
    #[test]
    fn words_are_the_same_everywhere() {
        for (at, cause) in Cause::ALL.into_iter().enumerate() {
            let json = serde_json::to_value(cause).unwrap();
            assert_eq!(json, cause.as_str());
            assert_eq!(serde_json::from_value::<Cause>(json).unwrap(), cause);
            assert_eq!(cause as usize, at);
            assert_eq!(Cause::from_u8(cause as u8), cause);
        }
        assert_eq!(Cause::from_u8(u8::MAX), Cause::NoReply);
        for verdict in [Verdict::Unknown, Verdict::Up, Verdict::Down] {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.as_str());
        }
        for proof in [Proof::Reply, Proof::Arrival] {
            assert_eq!(serde_json::to_value(proof).unwrap(), proof.as_str());
        }
    }
}
