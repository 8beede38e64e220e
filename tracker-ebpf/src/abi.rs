//! The layout of every map and of the ring buffer's records: one definition for kernel and userspace.
//!
//! All structs are `repr(C)` with explicit padding and asserted size and offsets. Addresses are in
//! network byte order; an IPv4 address occupies the first four bytes, zeros the others. Times are nanoseconds of
//! `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`), with the clock in the field's name. [`VERSION`] is computed
//! from the layouts; it is part of [`Hub`], so that a daemon recognises pins of another layout.
//!
//! Other processes of root can write to the maps, so no Rust enum is read from them: a field that means one is a [`Code`],
//! a byte of any value.

use core::{
    fmt,
    hash::{Hash, Hasher},
    mem::{align_of, offset_of, size_of},
    net::IpAddr,
};

use crate::window;

/// Hash of all layouts in this module and of [`MEANING`].
pub const VERSION: u32 = layout::HASH;

/// Changes when a field keeps its name and place and comes to mean something else.
pub const MEANING: u32 = 9;

/// Map names, as the object, the pins and bpftool know them.
pub mod map {
    /// [`super::Hub`], one entry.
    pub const HUB: &str = "HUB";
    /// [`super::Tracker`] by tracker slot.
    pub const TRACKERS: &str = "TRACKERS";
    /// [`super::PathEntry`] by path slot; memory-mapped.
    pub const PATHS: &str = "PATHS";
    /// [`super::State`] by tracker slot; memory-mapped.
    pub const STATE: &str = "STATE";
    /// Bit sets of answered sequence numbers; memory-mapped.
    pub const WINDOWS: &str = "WINDOWS";
    /// [`super::Job`]s of this tick; memory-mapped.
    pub const BATCH: &str = "BATCH";
    /// [`super::Cursor`], one entry; memory-mapped.
    pub const CURSOR: &str = "CURSOR";
    /// Device map for XDP redirect, keyed by ifindex.
    pub const DEVICES: &str = "DEVICES";
    /// Ring buffer of [`super::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// [`super::Counters`], one entry a CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// [`super::Streams`] by [`super::StreamKey`].
    pub const STREAMS: &str = "STREAMS";
    /// All of them.
    pub const ALL: [&str; 11] = [
        HUB, TRACKERS, PATHS, STATE, WINDOWS, BATCH, CURSOR, DEVICES, EVENTS, COUNTERS, STREAMS,
    ];

    /// [`crate::rtt::Rtts`] by path slot; memory-mapped, not pinned.
    pub const RTTS: &str = "RTTS";
    /// Interfaces on which the filter of the packet socket counts no replies; not pinned.
    pub const EXPECTING: &str = "EXPECTING";
    /// Programs that judge datagrams which the kernel merged into one packet; not pinned.
    pub const SEGMENTS: &str = "SEGMENTS";
    /// The program that judges what the filter of the packet socket does not rule out; not pinned.
    pub const WATCHED: &str = "WATCHED";

    /// [`super::Filter`], one entry.
    pub const FILTER: &str = "FILTER";
    /// [`super::Steer`] by [`super::SteerKey`].
    pub const STEERING: &str = "STEERING";
    /// Trie of [`super::Source`]: the addresses that may send.
    pub const SOURCES: &str = "SOURCES";
    /// [`super::OwnMac`]: what is for the hub, on interfaces of steering.
    pub const UPLINKS: &str = "UPLINKS";
    /// [`super::Flow`] by [`super::FlowKey`]; the least recently used makes room.
    pub const FLOWS: &str = "FLOWS";
    /// [`super::Steered`] by path slot, one entry a CPU.
    pub const STEERED: &str = "STEERED";
    /// Those of steering, which exist while it is configured.
    pub const STEERING_ALL: [&str; 6] = [FILTER, STEERING, SOURCES, UPLINKS, FLOWS, STEERED];
    /// Those that one daemon leaves to the next.
    pub const STEERING_KEPT: [&str; 2] = [FLOWS, STEERED];
}

/// Program names.
pub mod program {
    /// XDP, live frames: builds and redirects probes.
    pub const SEND: &str = "trk_xdp_send";
    /// TC ingress of the private veth: sends out what XDP could not redirect.
    pub const TC_SEND: &str = "trk_tc_send";
    /// XDP on the interfaces on which replies may arrive.
    pub const RECEIVE: &str = "trk_xdp_recv";
    /// XDP there in the generic hook.
    pub const RECEIVE_GENERIC: &str = "trk_gen_recv";
    /// TC ingress on the interfaces on which replies may arrive, without XDP.
    pub const TC_RECEIVE: &str = "trk_tc_recv";
    /// TC ingress on interfaces without Ethernet header on which replies may arrive.
    pub const TC_RECEIVE_IP: &str = "trk_l3_recv";
    /// Tail call of [`TC_RECEIVE`] for each datagram but the first of several that the kernel merged.
    pub const TC_SEGMENT: &str = "trk_tc_segment";
    /// Tail call of [`TC_RECEIVE_IP`] for each datagram but the first of several that the kernel merged.
    pub const TC_SEGMENT_IP: &str = "trk_l3_segment";
    /// Filter of the packet socket that watches all other interfaces for replies.
    pub const WATCH: &str = "trk_sock_watch";
    /// Tail call of [`WATCH`] for what may be ours.
    pub const WATCH_JUDGE: &str = "trk_sock_judge";
    /// XDP on an uplink: the fast way of steering.
    pub const STEER: &str = "trk_xdp_steer";
    /// XDP there in the generic hook.
    pub const STEER_GENERIC: &str = "trk_gen_steer";
    /// TC ingress of an uplink: steers whatever arrives there.
    pub const UPLINK: &str = "trk_tc_uplink";
    /// TC ingress of an uplink without Ethernet header.
    pub const UPLINK_IP: &str = "trk_l3_uplink";
    /// TC egress where marked local packets leave.
    pub const MARKED: &str = "trk_tc_marked";
    /// TC egress where marked local packets leave, on an interface without Ethernet header.
    pub const MARKED_IP: &str = "trk_l3_marked";
    /// TC ingress where replies to steered packets arrive.
    pub const RETURN: &str = "trk_tc_return";
    /// TC ingress where replies to steered packets arrive, on an interface without Ethernet header.
    pub const RETURN_IP: &str = "trk_l3_return";
    /// Those of every hub.
    pub const ALL: [&str; 9] = [
        SEND,
        RECEIVE,
        TC_SEND,
        TC_RECEIVE,
        TC_RECEIVE_IP,
        TC_SEGMENT,
        TC_SEGMENT_IP,
        WATCH,
        WATCH_JUDGE,
    ];
    /// Those of SEGMENTS, by their places.
    pub const SEGMENTS: [&str; 2] = [TC_SEGMENT, TC_SEGMENT_IP];
    /// XDP programs on interfaces of the hub, with the names that they had until [`super::earlier::COUNTED`].
    pub const XDP_ON_HUB: [&str; 8] = [
        RECEIVE,
        RECEIVE_GENERIC,
        STEER,
        STEER_GENERIC,
        "tracker_receive",
        "trk_recv_gen",
        "tracker_steer",
        "trk_steer_gen",
    ];
    /// Those that only steering needs.
    pub const STEERING_ALL: [&str; 7] = [
        STEER, UPLINK, UPLINK_IP, MARKED, MARKED_IP, RETURN, RETURN_IP,
    ];
}

/// Most probes of one call of the send program: large enough that the call's own 18 us do not count,
/// small enough that the daemon is back within milliseconds. A power of two.
pub const BATCH_MAX: u32 = 2_048;
/// Most interfaces that EXPECTING holds.
pub const EXPECTING_MAX: u32 = 65_536;
/// Programs in SEGMENTS: of interfaces with Ethernet header, and of those without.
pub const SEGMENTS_MAX: u32 = 2;
/// Most devices probes can leave by.
pub const DEVICES_MAX: u32 = 4_096;
/// Bytes of the ring buffer; a power of two and a multiple of the page size.
pub const EVENTS_BYTES: u32 = 1 << 20;
/// First of the source ports with which fixed flows begin. These are above what Linux gives to sockets
/// (`ip_local_port_range`, 32768 to 60999 by default).
pub const FIXED_PORTS: u16 = 0xf000;
/// Source ports with which fixed flows begin, less one. Also the most TCP trackers, less one, that may ask one port of
/// one address: each has source ports of its own.
pub const PORTS_MASK: u16 = 0x7ff;
/// Source ports that probes never have, first and last: those that Linux gives to sockets by default, and most foreign
/// packets with them.
pub const FOREIGN_PORTS: (u16, u16) = (32_768, 60_999);
/// The lowest source port of a probe: the ports of RFC 6335 section 6 below it are reserved for system services.
pub const LOWEST_PORT: u16 = 1_024;
/// The longest timeout of a TCP tracker in intervals: a SYN tells 256 probes apart
/// ([`crate::probe::tcp::initial_sequence`]).
pub const STREAM_FLIGHTS_MAX: u32 = 250;
/// Interfaces on which a member's replies may arrive, and as many for its probes.
pub const RETURNS_MAX: usize = 4;
/// Most steered flows that are remembered at a time.
pub const FLOWS_MAX: u32 = 65_536;
/// A flow of ICMP echo or UDP without a steered packet for this long is over, and so is a TCP
/// connection after its end.
pub const FLOW_SHORT_NS: u64 = 30_000_000_000;
/// A flow of an open TCP connection without a steered packet for this long is over.
pub const FLOW_LONG_NS: u64 = 3_600_000_000_000;

/// A value that is kept as one byte.
pub trait Coded: Copy {
    /// The value of a byte; of a byte that stands for none, the default.
    fn of_byte(byte: u8) -> Self;
    /// The byte that stands for it.
    fn to_byte(self) -> u8;
}

/// One byte of a map that stands for a `T`. Any byte is a valid one, whatever wrote it: a union has no invalid values, and only its
/// byte is read.
#[derive(Clone, Copy)]
#[repr(C)]
pub union Code<T: Copy> {
    byte: u8,
    /// For BTF alone: bpftool prints the name of the value beside the byte.
    value: T,
}

impl<T: Coded> Code<T> {
    #[inline(always)]
    fn byte(self) -> u8 {
        const { assert!(size_of::<Self>() == 1) };
        // SAFETY: the byte is all that there is, and always initialised.
        unsafe { self.byte }
    }

    /// What the byte stands for.
    #[inline(always)]
    pub fn get(self) -> T {
        T::of_byte(self.byte())
    }
}

impl<T: Coded> PartialEq for Code<T> {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.byte() == other.byte()
    }
}

impl<T: Coded> Eq for Code<T> {}

impl<T: Coded> Hash for Code<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.byte().hash(state);
    }
}

impl<T: Coded> From<T> for Code<T> {
    #[inline(always)]
    fn from(value: T) -> Self {
        Self {
            byte: value.to_byte(),
        }
    }
}

impl<T: Coded + Default> Default for Code<T> {
    fn default() -> Self {
        T::default().into()
    }
}

impl<T: Coded + fmt::Debug> fmt::Debug for Code<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// Implements [`Coded`] for an enum by its discriminants; the first value is the default.
macro_rules! coded {
    ($kind:ident: $first:ident $(, $value:ident)* $(,)?) => {
        impl Coded for $kind {
            #[inline(always)]
            fn of_byte(byte: u8) -> Self {
                $(if byte == Self::$value as u8 {
                    return Self::$value;
                })*
                Self::$first
            }

            #[inline(always)]
            fn to_byte(self) -> u8 {
                self as u8
            }
        }
    };
}

coded!(Family: Ipv4, Ipv6);
coded!(Proof: Reply, Arrival);
coded!(Probe: Icmp, Udp, Tcp, Stamp);
coded!(ProbeError: None, Icmp, Icmpv6, Reset, Elsewhere, Port);
coded!(Egress: None, XdpRedirect, TcRedirect);

/// Protocol family of a tracker's behind address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    #[default]
    Ipv4 = 0,
    /// IPv6.
    Ipv6 = 1,
}

impl From<IpAddr> for Family {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }
}

impl From<IpAddr> for Code<Family> {
    fn from(ip: IpAddr) -> Self {
        Family::from(ip).into()
    }
}

/// What proves that a probe passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema),
    serde(rename_all = "kebab-case")
)]
#[repr(u8)]
pub enum Proof {
    /// The reply of the behind address.
    #[default]
    Reply = 0,
    /// The probe itself, which comes back to the hub because the behind address is the hub's own.
    Arrival = 1,
}

impl Proof {
    /// The word for it in every output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reply => "reply",
            Self::Arrival => "arrival",
        }
    }
}

/// What a tracker's probes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Probe {
    /// ICMP or ICMPv6 echo.
    #[default]
    Icmp = 0,
    /// A UDP datagram, which an echo service sends back.
    Udp = 1,
    /// A TCP SYN.
    Tcp = 2,
    /// A UDP datagram that a STAMP reflector answers (RFC 8762).
    Stamp = 3,
}

impl Probe {
    /// True if a reply does not say when its probe was sent: the times are then kept in WINDOWS, as many as
    /// there are words of bits, and behind them.
    pub const fn keeps_times(self) -> bool {
        matches!(self, Self::Tcp | Self::Stamp)
    }
}

/// What was received that says that a probe did not get through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum ProbeError {
    /// Nothing yet.
    #[default]
    None = 0,
    /// An ICMP error.
    Icmp = 1,
    /// An ICMPv6 error.
    Icmpv6 = 2,
    /// A TCP reset.
    Reset = 3,
    /// The reply itself, which came from another address or port than the one that was asked.
    Elsewhere = 4,
    /// An ICMP or ICMPv6 error by which the behind address itself says that no program has the port.
    Port = 5,
}

/// How probes leave by a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Egress {
    /// They can't: interface down or missing, next hop unresolved.
    #[default]
    None = 0,
    /// XDP redirect: the device has `ndo_xdp_xmit`.
    XdpRedirect = 1,
    /// XDP_PASS on the private veth and TC redirect from there.
    TcRedirect = 2,
}

/// What one instance shares among its programs.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Hub {
    /// Key of the token; made with the map.
    pub key: [u64; 2],
    /// [`VERSION`] of the object that made the maps.
    pub version: u32,
    /// ifindex of the private veth on which the send program is attached.
    pub private_ifindex: u32,
    /// Tells the instance's probes from those of all others, never 0; see [`crate::probe::ProbeHeader::number`].
    pub tag: u32,
    /// Zero.
    pub pad: u32,
}

/// What to send for one tracker and how to recognise its reply. Constant while `active`: a change is
/// a new slot or a new `epoch`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tracker {
    /// Destination of the probe.
    pub behind: [u8; 16],
    /// Source of the probe, and destination of the reply.
    pub source: [u8; 16],
    /// A reply later than this after its probe counts as `late`, never as received.
    pub timeout_ns: u64,
    /// Index into PATHS.
    pub path: u32,
    /// Distinguishes successive users of a slot; part of the token.
    pub epoch: u32,
    /// First word of the tracker's bit set in WINDOWS.
    pub window_first: u32,
    /// Words of the bit set, less one; words are a power of two.
    pub window_mask: u32,
    /// Bytes after the ICMP or UDP header, at least [`crate::probe::LEN`]; of TCP all after its ports and
    /// sequence number.
    pub payload: u16,
    /// ICMP identifier or source port with which the tracker begins; the daemon chooses that of each probe
    /// ([`Job::flow`]). Of TCP it also tells its share of the ports: see [`Streams`].
    pub flow_first: u16,
    /// 1 if each probe has another ICMP identifier or source port, 0 if all keep the one that passes.
    pub rotates: u8,
    /// DSCP of the probes (RFC 2474), 0 to 63.
    pub dscp: u8,
    /// Destination port; 0 for ICMP.
    pub port: u16,
    /// Family of `behind` and `source`.
    pub family: Code<Family>,
    /// 1 while the slot is in use.
    pub active: u8,
    /// What counts as received.
    pub proof: Code<Proof>,
    /// What its probes are.
    pub probe: Code<Probe>,
    /// 1 if the service must stop the probes: a reply counts by whatever way it comes, and each is reported,
    /// not only while the tracker is not up.
    pub expects_silence: u8,
    /// Hops (TTL, hop limit) that a reply must have left to count; 0 for any.
    pub return_ttl: u8,
    /// 1 if a TCP reset, or of UDP the behind address's word that no program has the port, is a reply.
    pub refused_is_reply: u8,
    /// What hides sequence numbers in a SYN's; see [`crate::probe::tcp::initial_sequence`].
    pub salt: u8,
}

impl Tracker {
    /// Words in WINDOWS, bits and times.
    pub fn words(&self) -> u32 {
        (self.window_mask + 1) << self.probe.get().keeps_times() as u32
    }

    /// Where WINDOWS has the send time of a probe, for probes that keep them.
    #[inline(always)]
    pub const fn time_at(&self, sequence: u64) -> u32 {
        self.window_first
            .wrapping_add(self.window_mask)
            .wrapping_add(1)
            .wrapping_add(sequence as u32 & self.window_mask)
    }

    /// The key by which the answers to its probes are told to be its; only of TCP.
    pub fn stream(&self) -> StreamKey {
        StreamKey::new(self.behind, self.port, self.family.get())
    }
}

/// Makes a path, and an entry of PATHS, which has the fields of a path first: bpftool prints them by these names.
macro_rules! path {
    (
        $(#[$path_doc:meta])*
        struct Path { $($(#[$doc:meta])* $field:ident: $type:ty,)+ }
        $(#[$entry_doc:meta])*
        struct PathEntry { $($(#[$more_doc:meta])* $more:ident: $more_type:ty,)+ }
    ) => {
        $(#[$path_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct Path {
            $($(#[$doc])* pub $field: $type,)+
        }

        $(#[$entry_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct PathEntry {
            $($(#[$doc])* pub $field: $type,)+
            $($(#[$more_doc])* pub $more: $more_type,)+
        }

        impl PathEntry {
            /// An entry that was not changed yet.
            pub fn new(path: Path) -> Self {
                Self {
                    $($field: path.$field,)+
                    ..Self::default()
                }
            }

            /// The path that readers take.
            pub const fn path(&self) -> Path {
                match self.generation & 1 {
                    0 => Path {
                        $($field: self.$field,)+
                    },
                    _ => self.next,
                }
            }
        }

        const _: () = {
            $(assert!(offset_of!(Path, $field) == offset_of!(PathEntry, $field));)+
        };
    };
}

path! {
    /// The way from the hub to an endpoint: everything a probe needs below IP.
    struct Path {
        /// MAC address of the endpoint.
        next_hop_mac: [u8; 6],
        /// 802.1Q tag control information, host order; 0 for no tag.
        vlan: u16,
        /// MAC address of the interface.
        source_mac: [u8; 6],
        /// How probes leave.
        egress: Code<Egress>,
        /// Family of `endpoint`.
        endpoint_family: Code<Family>,
        /// The device on which frames leave (the parent, where `vlan` is set).
        ifindex: u32,
        /// Interfaces on which a reply may arrive; unused entries are 0.
        returns: [u32; RETURNS_MAX],
        /// Interfaces on which a probe may arrive that is its own proof; unused entries are 0.
        arrivals: [u32; RETURNS_MAX],
        /// The member's own interface, whose neighbour `endpoint` is; 0 while there is none.
        interface: u32,
        /// The next hop.
        endpoint: [u8; 16],
        /// 1 if a reply on `interface` counts only if `next_hop_mac` is its frame's source.
        checks_hop: u8,
        /// Zero.
        pad: [u8; 3],
    }

    /// A member's path, as PATHS holds it: published whole, while programs on all processors read it at any time. A change is
    /// written to `next`, the generation raised to an odd number, which has readers take `next`, then written to the fields, and the
    /// generation raised again. A reader takes what it read for valid if the generation is the same afterwards: what it
    /// read was then not written to.
    struct PathEntry {
        /// Twice as many as changes were published; odd while one is.
        generation: u32,
        /// The path while `generation` is odd.
        next: Path,
    }
}

/// What happened to one tracker's probes: four cache lines, so that the send program, the receive program and the daemon do
/// not write to the same one as long as the service passes probes.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct State {
    /// Written by the send program.
    pub send: SendState,
    /// Written by the receive program for errors and for what comes by another way than it should.
    pub notice: NoticeState,
    /// Written by the receive program for each counted reply (`verdict` by the daemon, on a change).
    pub receive: ReceiveState,
    /// Written by the receive program for what is not a counted reply.
    pub trouble: TroubleState,
    /// Written by the daemon.
    pub judge: JudgeState,
}

/// The send program's part of [`State`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SendState {
    /// Probes sent; also the sequence number of the last one.
    pub sent: u64,
    /// When the last one was sent.
    pub sent_mono_ns: u64,
}

/// What the receive program saw besides counted replies, the rest of [`TroubleState`]. It is beside the send program's part, and
/// written rarely.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct NoticeState {
    /// ICMP and ICMPv6 errors about one of the tracker's probes.
    pub icmp_errors: u32,
    /// Probes that came back to the hub, as the service or a router behind it sends them there.
    pub returned: u32,
    /// Low bits of the sequence number of the newest one.
    pub returned_sequence: u32,
    /// Where it arrived.
    pub returned_ifindex: u32,
    /// Source MAC address of its frame; zeros if there is no Ethernet header. It is written with the two bytes after it, as
    /// one word.
    pub returned_mac: [u8; 6],
    /// Zero.
    pub pad: u8,
    /// Hops (TTL, hop limit) that it had left.
    pub returned_ttl: u8,
    /// Source MAC address of the frame with the reply of `wrong_path_sequence`, in the same form.
    pub wrong_path_mac: [u8; 6],
    /// Zero, and hops that it had left.
    pub wrong_path_ends: [u8; 2],
    /// Zero.
    pub pad2: [u64; 2],
}

/// The receive program's part of [`State`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ReceiveState {
    /// Probes answered, or arrived, within the timeout.
    pub received: u64,
    /// Round-trip time of the last one; one way if the proof is [`Proof::Arrival`]. So are the others.
    pub rtt_last_ns: u64,
    /// Smallest round-trip time; meaningless while `received` is 0.
    pub rtt_min_ns: u64,
    /// Largest round-trip time.
    pub rtt_max_ns: u64,
    /// Sum of all round-trip times.
    pub rtt_sum_ns: u64,
    /// Source MAC address of the last one's frame; zeros if there is no Ethernet header.
    /// It is written with the two bytes after it, as one word.
    pub hop_mac: [u8; 6],
    /// Zero.
    pub pad: u8,
    /// Hops (TTL, hop limit) that the last one had left.
    pub ttl: u8,
    /// The tracker's verdict, as [`crate::verdict::Verdict`]; the daemon writes it, so that the
    /// receive program reports replies only while they matter.
    pub verdict: u8,
    /// Low bits of the number of the last probe when a challenge ACK was last reported.
    pub held: u8,
    /// Zero.
    pub pad2: [u8; 2],
    /// Genuine replies from another address or port than the one that was asked.
    pub elsewhere: u32,
    /// Which flows' connections were reported again of late; see [`Resets`].
    pub resets: u64,
}

/// How often a connection is reported again that was reported before: once in 134 ms for each flow. A server repeats its
/// SYN-ACK after a second at the earliest; what comes more often is replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resets(u64);

impl Resets {
    /// Nanoseconds of a period, as a power of two.
    const PERIOD_BITS: u32 = 27;

    /// From the word of [`ReceiveState::resets`].
    #[inline(always)]
    pub const fn of_word(word: u64) -> Self {
        Self(word)
    }

    /// The word to keep if the connection of this flow is to be reported now; `None` if it was in this period. The upper half
    /// is the period, the lower one has a bit for each flow, or one for those that differ in their upper bits alone.
    #[inline(always)]
    pub const fn report(self, flow: u16, now_mono_ns: u64) -> Option<u64> {
        let period = (now_mono_ns >> Self::PERIOD_BITS) << 32;
        let bit = 1 << (flow & 31);
        if self.0 & !0xffff_ffff != period {
            return Some(period | bit);
        }
        if self.0 & bit != 0 {
            return None;
        }
        Some(self.0 | bit)
    }
}

/// What the receive program saw besides counted replies.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TroubleState {
    /// Sequence number of the newest probe whose reply went into `wrong_path`.
    pub wrong_path_sequence: u64,
    /// When the last of `corrupt` came that may have been a reply of this tracker's: it has the addresses of one,
    /// or the token.
    pub corrupt_mono_ns: u64,
    /// Genuine replies beyond the first for one probe.
    pub duplicate: u32,
    /// Genuine replies after the timeout.
    pub late: u32,
    /// Genuine replies on an interface outside `returns`, from another hop or with another TTL than they must have.
    pub wrong_path: u32,
    /// Where the one to the newest probe arrived.
    pub wrong_path_ifindex: u32,
    /// Packets that bear a probe header and name this tracker but fail the token.
    pub corrupt: u32,
    /// What was received about the newest probe with an error.
    pub error: Code<ProbeError>,
    /// Its ICMP type.
    pub error_type: u8,
    /// Its ICMP code.
    pub error_code: u8,
    /// Hops (TTL, hop limit) that the reply of `wrong_path_sequence` had left.
    pub wrong_path_ttl: u8,
    /// Sequence number of that probe.
    pub error_sequence: u64,
    /// Source address of the error; only the probe in it is proven, not the sender.
    pub error_from: [u8; 16],
}

/// The daemon's part of [`State`]: kept in the map so that a successor can go on from it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct JudgeState {
    /// Probes whose timeout passed without a reply; never falls. Those of `lost_pending` are not in it yet.
    pub lost: u64,
    /// Sequence number of the last probe that was judged.
    pub judged: u64,
    /// Probes that were due and were not handed to the interface; not part of any run.
    pub skipped: u64,
    /// The part of `SendState::sent` whose outcome proves nothing: unanswered while the hub did not keep up, or
    /// handed to a device that did not transmit it.
    pub void: u64,
    /// Consecutive losses so far, saturating.
    pub lost_run: u8,
    /// Consecutive replies so far, saturating.
    pub replied_run: u8,
    /// Cause, as [`crate::verdict::Cause`].
    pub cause: u8,
    /// Losses of a run that has not decided yet: they become `lost`, or `void` if the device did not transmit them.
    pub lost_pending: u8,
    /// ICMP identifier or source port of the flow in use.
    pub flow: u16,
    /// The one that was last taken for a new flow.
    pub flow_newest: u16,
    /// Zero.
    pub pad2: [u64; 3],
}

/// What tells the answers to TCP trackers' probes from all other segments, which carry nothing of ours but the port
/// to which they are addressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct StreamKey {
    /// The behind address.
    pub behind: [u8; 16],
    /// Its port, host order.
    pub port: u16,
    /// Zero.
    pub zero: u16,
    /// Family of `behind`.
    pub family: Code<Family>,
    /// Zero.
    pub pad: [u8; 3],
}

impl StreamKey {
    /// The key of a segment from or to a port of the behind address.
    #[inline(always)]
    pub fn new(behind: [u8; 16], port: u16, family: Family) -> Self {
        Self {
            behind,
            port,
            zero: 0,
            family: family.into(),
            pad: [0; 3],
        }
    }
}

/// The TCP trackers that ask one port of one address: the value of STREAMS. They share the source ports evenly, by the
/// ports' lowest bits, so that one that is alone has all of them. WINDOWS has a word for each share, with the tracker
/// slot plus one; 0 is a share without tracker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// First of the words in WINDOWS, below 2^28.
    pub first: u32,
    /// Shares, as a power of two.
    pub bits: u32,
}

impl Streams {
    const FIRST_MASK: u32 = (1 << 28) - 1;

    /// As STREAMS holds it.
    pub const fn word(self) -> u32 {
        self.first & Self::FIRST_MASK | self.bits << 28
    }

    /// From what STREAMS holds.
    #[inline(always)]
    pub const fn of_word(word: u32) -> Self {
        Self {
            first: word & Self::FIRST_MASK,
            bits: word >> 28,
        }
    }

    /// Shares, less one: the bits of a port that tell whose it is.
    #[inline(always)]
    pub const fn mask(self) -> u32 {
        (1 << self.bits) - 1
    }

    /// Where WINDOWS has the slot of the tracker that uses a source port.
    #[inline(always)]
    pub const fn place(self, own_port: u16) -> u32 {
        self.first.wrapping_add(own_port as u32 & self.mask())
    }
}

/// Whether a port may be the source port of a probe.
#[inline(always)]
pub const fn is_own_port(port: u16) -> bool {
    let (first, last) = FOREIGN_PORTS;
    port >= LOWEST_PORT && port.wrapping_sub(first) > last - first
}

/// What to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Job {
    /// Tracker slot.
    pub tracker: u32,
    /// From the lowest bit: 16 bits of ICMP identifier or source port, 14 bits of a sequence number, and two bits
    /// that say what to send.
    pub what: u32,
}

impl Job {
    const SEQUENCE_SHIFT: u32 = 16;
    const SEQUENCE_MASK: u64 = (1 << 14) - 1;
    const RESET: u32 = 1 << 30;
    const AGAIN: u32 = 2 << 30;

    /// The next probe of a tracker.
    #[inline]
    pub const fn probe(tracker: u32, flow: u16) -> Self {
        Self {
            tracker,
            what: flow as u32,
        }
    }

    /// The end of the connection that a probe's answer would open.
    pub const fn reset(tracker: u32, sequence: u64, flow: u16) -> Self {
        Self::of(Self::RESET, tracker, sequence, flow)
    }

    /// The SYN of a probe that was sent, from another port.
    pub const fn again(tracker: u32, sequence: u64, flow: u16) -> Self {
        Self::of(Self::AGAIN, tracker, sequence, flow)
    }

    const fn of(what: u32, tracker: u32, sequence: u64, flow: u16) -> Self {
        let sequence = ((sequence & Self::SEQUENCE_MASK) as u32) << Self::SEQUENCE_SHIFT;
        Self {
            tracker,
            what: what | sequence | flow as u32,
        }
    }

    /// True if it is a tracker's next probe.
    #[inline(always)]
    pub const fn is_probe(self) -> bool {
        self.what >> 30 == 0
    }

    /// True if it ends a connection.
    #[inline(always)]
    pub const fn is_reset(self) -> bool {
        self.what & Self::RESET != 0
    }

    /// ICMP identifier or source port.
    #[inline(always)]
    pub const fn flow(self) -> u16 {
        self.what as u16
    }

    /// The sequence number of the SYN that is meant, one of the last 2^14, if `sent` is that of the last one.
    #[inline(always)]
    pub const fn answered(self, sent: u64) -> u64 {
        let low = (self.what >> Self::SEQUENCE_SHIFT) as u64;
        sent.wrapping_sub(sent.wrapping_sub(low) & Self::SEQUENCE_MASK)
    }
}

/// Where the send program is in BATCH. One sender at a time.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Cursor {
    /// Next entry of BATCH to send for; the send program advances it.
    pub next: u32,
    /// First entry not to send for.
    pub end: u32,
}

/// A reply to a tracker that is not up, reported so that `up` need not wait for a timeout.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Event {
    /// Tracker slot.
    pub tracker: u32,
    /// The slot's epoch.
    pub epoch: u32,
    /// Sequence number of the answered probe.
    pub sequence: u64,
    /// When the reply arrived.
    pub received_mono_ns: u64,
}

/// A peer holds a connection open that is to be reset. In the same ring as [`Event`], told apart by its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Answered {
    /// Tracker slot.
    pub tracker: u32,
    /// The slot's epoch.
    pub epoch: u32,
    /// Low bits of the sequence number of the probe that opened it.
    pub sequence: u32,
    /// The probe's source port.
    pub flow: u16,
    /// 1 if the peer said so in an acknowledgement to a later SYN, which it did not take (RFC 5961 section 4.2);
    /// 0 if it took this one.
    pub is_held: u8,
    /// Zero.
    pub pad: u8,
}

impl Answered {
    /// The probe's sequence number, if `sent` is that of the last one.
    pub const fn sequence(&self, sent: u64) -> u64 {
        window::whole_sequence(self.sequence, sent)
    }
}

/// What became of frames, by reason; one set a CPU, so plain additions suffice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    /// Probes built and handed to a device.
    pub send_built: u64,
    /// Frames of the send program beyond the batch's end.
    pub send_idle: u64,
    /// Frames refused: the slot is not active.
    pub send_inactive: u64,
    /// Frames refused: the path leads nowhere.
    pub send_no_path: u64,
    /// Frames refused: the kernel would not size the frame or redirect it.
    pub send_failed: u64,
    /// Replies counted, and arrivals: what is said of replies here is said of them too.
    pub reply_counted: u64,
    /// Genuine replies beyond the first for one probe, and acknowledgements of a SYN before the last one.
    pub reply_duplicate: u64,
    /// Genuine replies after the timeout.
    pub reply_late: u64,
    /// Genuine replies on an interface outside `returns`.
    pub reply_wrong_path: u64,
    /// Genuine replies outside `returns` that a VLAN device's own program judges next; passed on.
    pub reply_tagged: u64,
    /// Genuine replies from another address or port than the one that was asked; consumed.
    pub reply_elsewhere: u64,
    /// Packets that bear a probe header and fail checksum, addresses or token; passed on.
    pub reply_corrupt: u64,
    /// Packets that bear a probe header and name no tracker in use; passed on.
    pub reply_stale: u64,
    /// ICMP errors about one of our probes, which they quote with its token, and resets of our SYNs; consumed.
    pub probe_refused: u64,
    /// Events that found the ring buffer full; the daemon finds the reply in the state.
    pub event_dropped: u64,
    /// Our own probes that came back to the hub and are not their own proof; passed on.
    pub probe_returned: u64,
}

/// What foreign packets fail first: sets of addresses by [`Filter::place`], and the mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Filter {
    /// Bits of the endpoints in STEERING.
    pub endpoints: [u64; 4],
    /// Bits of the behind addresses in STEERING.
    pub behinds: [u64; 4],
    /// `SO_MARK` of local programs' tracker packets; 0 for none.
    pub mark: u32,
    /// The bits of a packet's mark that are compared with it.
    pub mark_mask: u32,
}

impl Filter {
    /// Word and bit of an address, given its last four bytes in any order: few addresses share one.
    #[inline(always)]
    pub const fn place(last: u32) -> (usize, u64) {
        let folded = last ^ (last >> 16);
        let folded = folded ^ (folded >> 8);
        ((folded >> 6) as usize & 3, 1 << (folded & 63))
    }
}

/// What a packet to be steered is addressed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SteerKey {
    /// The endpoint.
    pub endpoint: [u8; 16],
    /// Destination port, host order; 0 for ICMP echo.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Family of `endpoint`.
    pub family: Code<Family>,
}

/// Where such a packet goes instead. Complete in itself: an update of a hash map's entry is whole for the programs, which run on
/// all processors at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Steer {
    /// Its new destination, of the endpoint's family.
    pub behind: [u8; 16],
    /// MAC address of the endpoint.
    pub next_hop_mac: [u8; 6],
    /// MAC address of the interface.
    pub source_mac: [u8; 6],
    /// The member's interface.
    pub interface: u32,
    /// Largest packet that the interface takes, bytes.
    pub mtu: u32,
    /// Interfaces on which a reply may arrive; unused entries are 0.
    pub returns: [u32; RETURNS_MAX],
    /// Index into STEERED: the member's path slot.
    pub member: u32,
    /// `XdpRedirect` if the interface itself takes redirected frames; `None` while the member cannot
    /// be sent to.
    pub egress: Code<Egress>,
    /// 1 if the interface's frames have an Ethernet header.
    pub is_ethernet: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// A permitted source, as SOURCES compares it: the first four bytes whole, then the prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Source {
    /// Family of `address`.
    pub family: Code<Family>,
    /// Zero.
    pub pad: [u8; 3],
    /// The address.
    pub address: [u8; 16],
}

/// A MAC address of the hub on an interface on which steered packets, or replies to them, arrive: its own, and those of
/// macvlan devices on it, as VRRP daemons make them. Frames to other addresses are not the hub's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct OwnMac {
    /// The interface.
    pub ifindex: u32,
    /// The address.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
}

/// What tells the replies to steered packets from all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// Who asked.
    pub prober: [u8; 16],
    /// Who answers.
    pub behind: [u8; 16],
    /// The interface on which the reply arrives.
    pub ifindex: u32,
    /// The prober's port, or the ICMP identifier; host order.
    pub prober_port: u16,
    /// The port behind; 0 for ICMP echo.
    pub behind_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Family of the addresses.
    pub family: Code<Family>,
    /// Zero.
    pub pad: [u8; 2],
}

/// A steered flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// When its last packet was steered.
    pub used_mono_ns: u64,
    /// Whom the prober asked: the source of replies.
    pub endpoint: [u8; 16],
    /// Index into STEERED.
    pub member: u32,
    /// 1 once a TCP connection is closed or reset.
    pub is_closing: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// What became of a member's steered packets; one set a CPU, so plain additions suffice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Steered {
    /// Packets that were steered; several if the kernel handles them as one (GRO, TSO).
    pub steered: u64,
    /// Replies that were given the endpoint as source.
    pub replied: u64,
    /// Packets dropped because the member could not be sent to.
    pub no_way: u64,
    /// Packets that cannot be steered: passed on to the stack, which tells their sender, if they do not fit the interface's MTU
    /// or their hops are used up, else dropped: fragments, IPv4 options.
    pub unfit: u64,
}

/// Layouts of earlier versions, which pins may still have. What is not here is as it was.
pub mod earlier {
    /// The last version whose number was kept by hand. PATHS held a [`super::Path`] then, COUNTERS had no
    /// [`super::Counters::probe_returned`], and a tracker with rotating flows had all bits of [`super::Tracker::rotates`] and
    /// [`super::Tracker::dscp`] set.
    pub const COUNTED: u32 = 8;
    /// The last version without a tag in HUB.
    pub const UNTAGGED: u32 = 7;

    /// [`super::Hub`] until [`UNTAGGED`].
    #[derive(Clone, Copy, Debug, Default)]
    #[repr(C)]
    pub struct Hub {
        /// Key of the token.
        pub key: [u64; 2],
        /// Its version.
        pub version: u32,
        /// ifindex of the private veth.
        pub private_ifindex: u32,
    }

    #[cfg(feature = "user")]
    // SAFETY: repr(C), no padding, no pointers, every byte may have any value.
    unsafe impl aya::Pod for Hub {}
}

/// FNV-1a hash of names and numbers.
#[derive(Clone, Copy)]
struct LayoutHash(u32);

impl LayoutHash {
    const fn new() -> Self {
        Self(0x811c_9dc5)
    }

    const fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut at = 0;
        while at < bytes.len() {
            self.0 = (self.0 ^ bytes[at] as u32).wrapping_mul(0x0100_0193);
            at += 1;
        }
        self
    }

    const fn number(self, number: usize) -> Self {
        self.bytes(&(number as u32).to_le_bytes())
    }

    const fn field(self, name: &str, offset: usize) -> Self {
        self.bytes(name.as_bytes()).number(offset)
    }
}

/// All that is in maps: the hash of the layouts, and what lets userspace read and write them as bytes. The compiler refuses a
/// field that is missing here.
macro_rules! layouts {
    ($($kind:ident { $($field:ident),+ $(,)? })+) => {
        mod layout {
            use super::*;
            pub(super) const HASH: u32 = LayoutHash::new().number(MEANING as usize)
                $(.field(stringify!($kind), size_of::<$kind>())
                    $(.field(stringify!($field), offset_of!($kind, $field)))+)+
                .0;
            $(const _: fn($kind) = |$kind { $($field: _),+ }| {};)+
        }

        #[cfg(feature = "user")]
        mod pod {
            $(
                // SAFETY: repr(C), no padding bytes that are not named fields, no pointers, and every byte may have any value.
                unsafe impl aya::Pod for super::$kind {}
            )+
        }
    };
}

layouts! {
    Hub { key, version, private_ifindex, tag, pad }
    Tracker {
        behind, source, timeout_ns, path, epoch, window_first, window_mask, payload, flow_first, rotates, dscp, port, family,
        active, proof, probe, expects_silence, return_ttl, refused_is_reply, salt,
    }
    PathEntry {
        next_hop_mac, vlan, source_mac, egress, endpoint_family, ifindex, returns, arrivals, interface, endpoint, checks_hop, pad,
        generation, next,
    }
    Path {
        next_hop_mac, vlan, source_mac, egress, endpoint_family, ifindex, returns, arrivals, interface, endpoint, checks_hop, pad,
    }
    State { send, notice, receive, trouble, judge }
    SendState { sent, sent_mono_ns }
    NoticeState {
        icmp_errors, returned, returned_sequence, returned_ifindex, returned_mac, pad, returned_ttl, wrong_path_mac, wrong_path_ends,
        pad2,
    }
    ReceiveState {
        received, rtt_last_ns, rtt_min_ns, rtt_max_ns, rtt_sum_ns, hop_mac, pad, ttl, verdict, held, pad2, elsewhere, resets,
    }
    TroubleState {
        wrong_path_sequence, corrupt_mono_ns, duplicate, late, wrong_path, wrong_path_ifindex, corrupt, error, error_type,
        error_code, wrong_path_ttl, error_sequence, error_from,
    }
    JudgeState {
        lost, judged, skipped, void, lost_run, replied_run, cause, lost_pending, flow, flow_newest, pad2,
    }
    StreamKey { behind, port, zero, family, pad }
    Job { tracker, what }
    Cursor { next, end }
    Event { tracker, epoch, sequence, received_mono_ns }
    Answered { tracker, epoch, sequence, flow, is_held, pad }
    Counters {
        send_built, send_idle, send_inactive, send_no_path, send_failed, reply_counted, reply_duplicate, reply_late,
        reply_wrong_path, reply_tagged, reply_elsewhere, reply_corrupt, reply_stale, probe_refused, event_dropped, probe_returned,
    }
    Filter { endpoints, behinds, mark, mark_mask }
    SteerKey { endpoint, port, protocol, family }
    Steer { behind, next_hop_mac, source_mac, interface, mtu, returns, member, egress, is_ethernet, pad }
    Source { family, pad, address }
    OwnMac { ifindex, mac, pad }
    FlowKey { prober, behind, ifindex, prober_port, behind_port, protocol, family, pad }
    Flow { used_mono_ns, endpoint, member, is_closing, pad }
    Steered { steered, replied, no_way, unfit }
}

// What the programs rely on beyond the types: sizes without padding, fields that are stored as one aligned word, parts of
// STATE in cache lines of their own, and places that earlier versions had.
const _: () = {
    assert!(size_of::<Filter>() == 72);
    assert!(size_of::<SteerKey>() == 20 && align_of::<SteerKey>() == 2);
    assert!(size_of::<Steer>() == 60 && align_of::<Steer>() == 4);
    assert!(size_of::<Source>() == 20 && offset_of!(Source, address) == 4);
    assert!(size_of::<OwnMac>() == 12);
    assert!(size_of::<FlowKey>() == 44 && align_of::<FlowKey>() == 4);
    assert!(size_of::<Flow>() == 32 && size_of::<Steered>() == 32);
    assert!(
        size_of::<Hub>() == 32 && offset_of!(Hub, version) == offset_of!(earlier::Hub, version)
    );
    assert!(size_of::<earlier::Hub>() == 24);
    assert!(size_of::<Tracker>() == 72 && offset_of!(Tracker, rotates) == 60);
    assert!(size_of::<Path>() == 76 && align_of::<Path>() == 4 && size_of::<PathEntry>() == 156);
    assert!(size_of::<SendState>() == 16 && size_of::<NoticeState>() == 48);
    assert!(
        offset_of!(NoticeState, returned_mac) == 16
            && offset_of!(NoticeState, wrong_path_mac) == 24
    );
    assert!(size_of::<ReceiveState>() == 64 && offset_of!(ReceiveState, hop_mac) == 40);
    assert!(offset_of!(ReceiveState, ttl) == 47);
    assert!(size_of::<JudgeState>() == 64);
    assert!(size_of::<TroubleState>() == 64 && offset_of!(TroubleState, error_from) == 48);
    assert!(size_of::<State>() == 256 && align_of::<State>() == 64);
    assert!(offset_of!(State, receive) == 64 && offset_of!(State, trouble) == 128);
    assert!(offset_of!(State, judge) == 192);
    assert!(size_of::<StreamKey>() == 24 && size_of::<Job>() == 8 && size_of::<Cursor>() == 8);
    assert!(size_of::<Event>() == 24 && size_of::<Answered>() == 16);
    assert!(size_of::<Counters>() == 128);
    assert!(BATCH_MAX.is_power_of_two());
};
