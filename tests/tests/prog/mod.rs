//! The real object in the real kernel, without anything attached: `BPF_PROG_TEST_RUN` runs one program on one
//! frame, and the maps tell what it did.
#![allow(
    dead_code,
    reason = "each of the test files that include this uses a part of it"
)]

pub mod answer;
pub mod frames;
pub mod fuzz;
pub mod fuzz_answer;
pub mod fuzz_send;
pub mod fuzz_steer;
pub mod receive;
pub mod steer;

use std::net::IpAddr;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf, xdp::DevMapHash};
use aya::programs::{Program, xdp::XdpMode};
use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunAttrs, TestRunOptions};
use tracker_ebpf::abi;
use tracker_ebpf::wire::token;
use tracker_tests::packets::{self, ETHERNET, Echo, IPV4, IPV6, Link, Mark, Tag};
use tracker_tests::random::Random;
use tracker_tests::tagger::Tagger;
use tracker_user::kernel::loader;
use tracker_user::kernel::mapped::Mapped;

/// Tracker slots of the object under test.
pub const SLOTS: u32 = 8;
/// Path slots of the object under test.
pub const PATHS: u32 = 4;
/// Words of WINDOWS of the object under test.
pub const WORDS: u32 = 40 + 2 * SLOTS;
/// First of the words that say which TCP tracker uses which source ports, two for each slot.
const STREAM_WORDS: u32 = 40;
/// Bytes of the ring buffer, the least that there is: to see it full.
pub const EVENTS_BYTES: u32 = 4_096;
/// The slot of the tracker under test.
pub const SLOT: u32 = 5;
/// The slot of its path.
pub const PATH: u32 = 3;
/// A slot in use by somebody else.
pub const OTHER: u32 = 6;
/// Where a run without a context arrives: the loopback device, first in every network namespace.
pub const ARRIVAL: u32 = 1;
/// The instance's key.
pub const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

pub const HUB_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const ENDPOINT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const HUB_V4: [u8; 4] = [10, 9, 0, 1];
pub const BEHIND_V4: [u8; 4] = [10, 20, 0, 9];
pub const HUB_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub const BEHIND_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

/// `XDP_DROP` and its siblings (linux/bpf.h).
pub const XDP_DROP: i32 = 1;
pub const XDP_PASS: i32 = 2;
pub const XDP_REDIRECT: i32 = 4;
/// `TC_ACT_OK` and its siblings (linux/pkt_cls.h).
pub const TC_ACT_UNSPEC: i32 = -1;
pub const TC_ACT_OK: i32 = 0;
pub const TC_ACT_SHOT: i32 = 2;
pub const TC_ACT_REDIRECT: i32 = 7;

/// Ends the test, saying so, where the kernel would refuse everything.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            tracker_tests::skip!("needs root");
        }
    };
}

/// Now, on the programs' clock.
pub fn now_mono_ns() -> u64 {
    tracker_user::host::clock::monotonic_ns()
}

/// What a program answered to one frame.
#[derive(Debug)]
pub struct Ran {
    /// The action.
    pub action: i32,
    /// The frame after the run.
    pub frame: Vec<u8>,
    /// When the run began and ended, at the earliest and the latest.
    pub mono_ns: std::ops::RangeInclusive<u64>,
}

/// What the maps hold that programs write.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub states: Vec<abi::State>,
    pub words: Vec<u64>,
    pub counters: abi::Counters,
    pub cursor: abi::Cursor,
}

impl Snapshot {
    /// Whether nothing at all differs.
    pub fn is_same(&self, other: &Self) -> bool {
        let bytes = |state: &abi::State| {
            // SAFETY: plain integers and bytes without padding (asserted with the layout).
            unsafe {
                std::ptr::from_ref(state)
                    .cast::<[u8; size_of::<abi::State>()]>()
                    .read()
            }
        };
        let states = self.states.iter().zip(&other.states);
        states
            .into_iter()
            .all(|(one, other)| bytes(one) == bytes(other))
            && self.words == other.words
            && self.counters == other.counters
            && (self.cursor.next, self.cursor.end) == (other.cursor.next, other.cursor.end)
    }
}

/// One program of the object, with maps of its own that are pinned nowhere.
pub struct Object {
    ebpf: Ebpf,
    program: &'static str,
    tagger: Option<Tagger>,
    hub: Array<MapData, abi::Hub>,
    pub trackers: Array<MapData, abi::Tracker>,
    pub paths: Array<MapData, abi::Path>,
    pub states: Array<MapData, abi::State>,
    pub windows: Array<MapData, u64>,
    mapped_states: Mapped<abi::State>,
    mapped_windows: Mapped<u64>,
    streams: HashMap<MapData, abi::StreamKey, u32>,
    batch: Array<MapData, abi::Job>,
    cursor: Array<MapData, abi::Cursor>,
    counters: PerCpuArray<MapData, abi::Counters>,
    pub devices: DevMapHash<MapData>,
    events: RingBuf<MapData>,
}

/// An array as memory: a fuzzer has no time for a system call an element.
fn mapped<T: aya::Pod>(map: &Map) -> Result<Mapped<T>> {
    match map {
        Map::Array(data) => Ok(Mapped::new(data)?),
        other => bail!("{other:?} is no array"),
    }
}

fn elements<T: aya::Pod>(mapped: &Mapped<T>) -> Vec<T> {
    let elements = (0..mapped.len()).filter_map(|index| mapped.at(index));
    // SAFETY: valid elements, which no program writes now.
    elements
        .map(|element| unsafe { element.read_volatile() })
        .collect()
}

/// What puts a VLAN tag beside a classifier's packets; nothing for XDP, which sees no such tag.
pub fn tagger(ebpf: &Ebpf, name: &str) -> Result<Option<Tagger>> {
    match ebpf.program(name) {
        Some(Program::SchedClassifier(classifier)) => {
            let tagger = Tagger::new(classifier.fd()?.as_fd());
            Ok(Some(tagger.context("put a tag beside packets")?))
        }
        _ => Ok(None),
    }
}

/// What a run may come with besides the frame: by the product's rules, nothing of it changes what becomes of a frame, but
/// for the identifier of a tag.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    /// Words of metadata before the frame, at most eight; XDP only.
    pub meta: usize,
    /// Mark, priority and first word of the control buffer; TC only.
    pub words: [u32; 3],
    /// The tag beside the packet; TC only, and without the words.
    pub tag: Option<u16>,
}

impl Beside {
    /// Anything that `object` can have.
    pub fn any(random: &mut Random, object: &Object) -> Self {
        let mut beside = Self::default();
        match (object.is_xdp(), random.below(8)) {
            (true, 0) => beside.meta = random.below(9),
            (false, 0) => beside.words = std::array::from_fn(|_| random.word() as u32),
            (false, 1) => beside.tag = Some(*random.pick(&[0, 1, 100, 0xe000, 0xe064, 0xffff])),
            _ => {}
        }
        beside
    }
}

/// A map of the object, for the test alone.
pub fn take_map(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .with_context(|| format!("the object has no map {name}"))
}

impl Object {
    /// Loads `program` with empty maps and the key.
    pub fn load(program: &'static str) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(abi::map::TRACKERS, SLOTS)
            .map_max_entries(abi::map::STATE, SLOTS)
            .map_max_entries(abi::map::PATHS, PATHS)
            .map_max_entries(abi::map::STREAMS, SLOTS)
            .map_max_entries(abi::map::WINDOWS, WORDS)
            .map_max_entries(abi::map::EVENTS, EVENTS_BYTES)
            .load(tracker_user::kernel::OBJECT)
            .context("load the object")?;
        loader::load(&mut ebpf, program)?;
        let tagger = tagger(&ebpf, program)?;
        let mut take = |name: &str| take_map(&mut ebpf, name);
        let (states, windows) = (take(abi::map::STATE)?, take(abi::map::WINDOWS)?);
        let mut object = Self {
            program,
            tagger,
            mapped_states: mapped(&states)?,
            mapped_windows: mapped(&windows)?,
            hub: take(abi::map::HUB)?.try_into()?,
            trackers: take(abi::map::TRACKERS)?.try_into()?,
            paths: take(abi::map::PATHS)?.try_into()?,
            states: states.try_into()?,
            windows: windows.try_into()?,
            streams: take(abi::map::STREAMS)?.try_into()?,
            batch: take(abi::map::BATCH)?.try_into()?,
            cursor: take(abi::map::CURSOR)?.try_into()?,
            counters: take(abi::map::COUNTERS)?.try_into()?,
            devices: take(abi::map::DEVICES)?.try_into()?,
            events: take(abi::map::EVENTS)?.try_into()?,
            ebpf,
        };
        let hub = abi::Hub {
            key: KEY,
            version: abi::VERSION,
            private_ifindex: ARRIVAL,
        };
        object.hub.set(0, hub, 0)?;
        Ok(object)
    }

    /// Puts slots to send for before the program, each with the flow of its world, and the cursor on the first of them.
    pub fn set_batch(&mut self, slots: &[u32]) -> Result<()> {
        let mut jobs = Vec::new();
        let mut next = std::collections::HashMap::new();
        for slot in slots {
            let sent = self.states.get(slot, 0).map_or(0, |state| state.send.sent);
            let tracker = self.trackers.get(slot, 0).unwrap_or_default();
            let sequence = next.entry(*slot).or_insert(sent);
            *sequence = sequence.wrapping_add(1);
            jobs.push(abi::Job::probe(*slot, flow(&tracker, *sequence)));
        }
        self.set_jobs(&jobs)
    }

    /// Puts jobs before the program, and the cursor on the first of them.
    pub fn set_jobs(&mut self, jobs: &[abi::Job]) -> Result<()> {
        for (at, job) in jobs.iter().enumerate() {
            self.batch.set(at as u32, job, 0)?;
        }
        let end = jobs.len() as u32;
        self.set_cursor(abi::Cursor { next: 0, end })
    }

    /// Puts the cursor anywhere.
    pub fn set_cursor(&mut self, cursor: abi::Cursor) -> Result<()> {
        Ok(self.cursor.set(0, cursor, 0)?)
    }

    /// Whether the kernel makes a packet of a frame for this program: for a classifier, newer ones do only
    /// where the frame has all of the header that its EtherType announces.
    pub fn takes(&self, frame: &[u8]) -> bool {
        let header = match frame.get(12..ETHERNET) {
            Some([0x08, 0x00]) => IPV4,
            Some([0x86, 0xdd]) => IPV6,
            _ => 1,
        };
        let is_classifier = !matches!(self.ebpf.program(self.program), Some(Program::Xdp(_)));
        frame.len() >= ETHERNET + if is_classifier { header } else { 0 }
    }

    fn is_xdp(&self) -> bool {
        matches!(self.ebpf.program(self.program), Some(Program::Xdp(_)))
    }

    /// Runs the program on a frame.
    pub fn run(&self, frame: &[u8]) -> Result<Ran> {
        self.run_with(frame, Beside::default())
    }

    /// Runs the program on a frame that comes with something.
    pub fn run_with(&self, frame: &[u8], beside: Beside) -> Result<Ran> {
        let begun = now_mono_ns();
        if let (Some(control), Some(tagger)) = (beside.tag, &self.tagger) {
            let (action, frame) = tagger.run(frame, control, 0).context("run with a tag")?;
            let mono_ns = begun..=now_mono_ns();
            return Ok(Ran {
                action,
                frame,
                mono_ns,
            });
        }
        let mut out = vec![0; 4_096.max(2 * frame.len())];
        let mut data = vec![0xee; 4 * beside.meta];
        data.extend_from_slice(frame);
        let [mark, priority, cb] = beside.words;
        let context: Vec<u32> = match self.is_xdp() {
            // struct xdp_md: where the frame begins and ends.
            true => vec![4 * beside.meta as u32, data.len() as u32, 0, 0, 0, 0],
            // struct __sk_buff.
            false => {
                let mut context = vec![0; 48];
                (context[2], context[8], context[12]) = (mark, priority, cb);
                context
            }
        };
        let context: Vec<u8> = context.into_iter().flat_map(u32::to_ne_bytes).collect();
        let is_alone = beside.meta == 0 && beside.words == [0; 3];
        let options = TestRunOptions {
            data_in: Some(&data),
            data_out: Some(&mut out),
            ctx_in: (!is_alone).then_some(&context[..]),
            ..Default::default()
        };
        let result = match self.ebpf.program(self.program) {
            Some(Program::Xdp(xdp)) => xdp.test_run(options),
            Some(Program::SchedClassifier(classifier)) => classifier.test_run(options),
            _ => bail!("the object has no program {}", self.program),
        }
        .with_context(|| format!("run {} on {} bytes", self.program, frame.len()))?;
        out.truncate(result.data_size_out as usize);
        assert_eq!(out[..4 * beside.meta], data[..4 * beside.meta], "metadata");
        Ok(Ran {
            action: result.return_value as i32,
            frame: out.split_off(4 * beside.meta),
            mono_ns: begun..=now_mono_ns(),
        })
    }

    /// Mean nanoseconds of one of `repeat` runs on a frame, by the kernel's clock.
    pub fn mean_ns(&self, frame: &[u8], repeat: u32) -> Result<u32> {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat,
            ..Default::default()
        };
        let result = match self.ebpf.program(self.program) {
            Some(Program::Xdp(xdp)) => xdp.test_run(options),
            Some(Program::SchedClassifier(classifier)) => classifier.test_run(options),
            _ => bail!("the object has no program {}", self.program),
        }
        .with_context(|| format!("time {}", self.program))?;
        Ok(result.duration.as_nanos() as u32)
    }

    /// Attaches an XDP program to a device, in its driver, as long as the object lives.
    pub fn attach_xdp(&mut self, ifindex: u32) -> Result<()> {
        match self.ebpf.program_mut(self.program) {
            Some(Program::Xdp(xdp)) => xdp.attach_to_if_index(ifindex, XdpMode::Driver)?,
            _ => bail!("{} is no XDP program", self.program),
        };
        Ok(())
    }

    /// Runs an XDP program on as many live frames, which arrive on `ifindex` where it passes them.
    pub fn run_live(&self, data: &[u8], frames: u32, ifindex: u32) -> Result<()> {
        let Some(Program::Xdp(xdp)) = self.ebpf.program(self.program) else {
            bail!("{} is no XDP program", self.program);
        };
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> = [0, data.len() as u32, 0, ifindex, 0, 0]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        let options = TestRunOptions {
            data_in: Some(data),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(64),
            ..Default::default()
        };
        xdp.test_run(options).context("run on live frames")?;
        Ok(())
    }

    /// The sum of all CPUs' counters.
    pub fn counters(&self) -> Result<abi::Counters> {
        let mut sum = abi::Counters::default();
        for cpu in self.counters.get(&0, 0)?.iter() {
            let mut cpu = *cpu;
            for (total, one) in fields(&mut sum).into_iter().zip(fields(&mut cpu)) {
                *total += *one;
            }
        }
        Ok(sum)
    }

    /// What the maps hold now.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Ok(Snapshot {
            states: elements(&self.mapped_states),
            words: elements(&self.mapped_windows),
            counters: self.counters()?,
            cursor: self.cursor.get(&0, 0)?,
        })
    }

    /// Takes all records out of the ring buffer, which are early replies.
    pub fn events(&mut self) -> Result<Vec<abi::Event>> {
        let (events, answered) = self.records()?;
        if !answered.is_empty() {
            bail!("{answered:?} in the ring buffer");
        }
        Ok(events)
    }

    /// Takes all records out of the ring buffer: early replies, and SYNs that were answered.
    pub fn records(&mut self) -> Result<(Vec<abi::Event>, Vec<abi::Answered>)> {
        const EVENT: usize = size_of::<abi::Event>();
        const ANSWERED: usize = size_of::<abi::Answered>();
        let (mut events, mut answered) = (Vec::new(), Vec::new());
        while let Some(record) = self.events.next() {
            // SAFETY: the length is right, and any bytes are a valid `Event` and a valid `Answered`.
            unsafe {
                match record.len() {
                    EVENT => events.push(record.as_ptr().cast::<abi::Event>().read_unaligned()),
                    ANSWERED => {
                        answered.push(record.as_ptr().cast::<abi::Answered>().read_unaligned());
                    }
                    len => bail!("a record of {len} bytes in the ring buffer"),
                }
            }
        }
        Ok((events, answered))
    }
}

/// All fields; a new one must be added here before the tests compile.
pub fn fields(counters: &mut abi::Counters) -> [&mut u64; 15] {
    let abi::Counters {
        send_built,
        send_idle,
        send_inactive,
        send_no_path,
        send_failed,
        reply_counted,
        reply_duplicate,
        reply_late,
        reply_wrong_path,
        reply_tagged,
        reply_elsewhere,
        reply_corrupt,
        reply_stale,
        probe_refused,
        event_dropped,
    } = counters;
    [
        send_built,
        send_idle,
        send_inactive,
        send_no_path,
        send_failed,
        reply_counted,
        reply_duplicate,
        reply_late,
        reply_wrong_path,
        reply_tagged,
        reply_elsewhere,
        reply_corrupt,
        reply_stale,
        probe_refused,
        event_dropped,
    ]
}

/// Fails with a readable difference where what the maps hold is not what they should.
#[track_caller]
pub fn assert_same(
    row: &str,
    what: &str,
    is: &impl std::fmt::Debug,
    should: &impl std::fmt::Debug,
) {
    let (is, should) = (format!("{is:#?}"), format!("{should:#?}"));
    if is == should {
        return;
    }
    let lines: Vec<String> = is
        .lines()
        .zip(should.lines())
        .filter(|(is, should)| is != should)
        .map(|(is, should)| format!("  is {}, should be {}", is.trim(), should.trim()))
        .collect();
    panic!("{row}: {what}:\n{}", lines.join("\n"));
}

/// A tracker, its path, and all that is known of it.
#[derive(Clone, Debug)]
pub struct World {
    /// Its slot.
    pub slot: u32,
    pub tracker: abi::Tracker,
    pub path: abi::Path,
    pub state: abi::State,
    /// Its bit set: four words.
    pub words: [u64; 4],
}

impl World {
    /// A tracker that is up, in the middle of its life, whose replies arrive where runs do.
    pub fn new(family: abi::Family) -> Self {
        let (behind, source) = match family {
            abi::Family::Ipv4 => (widen(BEHIND_V4), widen(HUB_V4)),
            abi::Family::Ipv6 => (BEHIND_V6, HUB_V6),
        };
        let mut state = abi::State::default();
        state.send.sent = 1_000;
        state.send.sent_mono_ns = 77;
        state.receive.received = 900;
        // Any round trip is a new extreme.
        state.receive.rtt_min_ns = 1 << 50;
        state.receive.rtt_max_ns = 1;
        state.receive.rtt_sum_ns = 1 << 40;
        state.receive.verdict = 1;
        state.judge.lost = 100;
        state.judge.judged = 990;
        state.trouble.late = 3;
        state.trouble.duplicate = 4;
        state.trouble.corrupt = 5;
        Self {
            slot: SLOT,
            tracker: abi::Tracker {
                behind,
                source,
                // An hour: no pause of the machine makes a reply late.
                timeout_ns: 3_600_000_000_000,
                path: PATH,
                epoch: 0x0a0b_0c0d,
                window_first: 8,
                window_mask: 3,
                payload: 32,
                flow_first: 0xbeef,
                flow_mask: 0,
                port: 7_007,
                family,
                active: 1,
                proof: abi::Proof::Reply,
                probe: abi::Probe::Icmp,
                expects_silence: 0,
                return_ttl: 0,
                refused_is_reply: 0,
                salt: 0x5a,
            },
            path: abi::Path {
                next_hop_mac: ENDPOINT_MAC,
                source_mac: HUB_MAC,
                via: abi::Via::XdpRedirect,
                ifindex: ARRIVAL,
                returns: [ARRIVAL, 0, 0, 0],
                ..Default::default()
            },
            state,
            words: [0; 4],
        }
    }

    /// The same with changes.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Puts it into the maps, with an active neighbour in [`OTHER`] and nothing in all other slots.
    pub fn install(&self, object: &mut Object) -> Result<()> {
        for slot in 0..SLOTS {
            let tracker = match slot {
                SLOT => self.tracker,
                OTHER => abi::Tracker {
                    window_first: 4,
                    ..self.tracker
                },
                _ => abi::Tracker::default(),
            };
            object.trackers.set(slot, tracker, 0)?;
            object.states.set(slot, self.state, 0)?;
        }
        let old: Vec<_> = object.streams.keys().collect::<Result<_, _>>()?;
        for key in old {
            object.streams.remove(&key)?;
        }
        for word in 0..WORDS {
            object.windows.set(word, 0, 0)?;
        }
        self.install_beside(object)
    }

    /// Puts it into the maps beside what is there.
    pub fn install_beside(&self, object: &mut Object) -> Result<()> {
        object.trackers.set(self.slot, self.tracker, 0)?;
        object.states.set(self.slot, self.state, 0)?;
        let path = match self.slot {
            SLOT => PATH,
            _ => self.tracker.path,
        };
        object.paths.set(path, self.path, 0)?;
        if self.tracker.probe == abi::Probe::Tcp {
            let key = abi::StreamKey {
                behind: self.tracker.behind,
                port: self.tracker.port,
                zero: 0,
                family: self.tracker.family,
                pad: [0; 3],
            };
            // Two shares: of even ports and of odd ones.
            let first = match object.streams.get(&key, 0) {
                Ok(word) => word & 0x0fff_ffff,
                Err(_) => STREAM_WORDS + 2 * (self.slot % SLOTS),
            };
            object.streams.insert(key, first | 1 << 28, 0)?;
            let share = first + u32::from(self.tracker.flow_first) % 2;
            object.windows.set(share, u64::from(self.slot) + 1, 0)?;
        }
        for (at, word) in (self.tracker.window_first..WORDS).zip(self.words) {
            object.windows.set(at, word, 0)?;
        }
        Ok(())
    }

    /// The word and the bit of a sequence number, independent of the programs' arithmetic.
    pub fn bit(&self, sequence: u64) -> (usize, u64) {
        let words = u64::from(self.tracker.window_mask) + 1;
        let word = self.tracker.window_first as usize + (sequence / 64 % words) as usize;
        (word, 2u64.pow((sequence % 64) as u32))
    }

    /// Identifier or source port of a probe.
    pub fn flow(&self, sequence: u64) -> u16 {
        flow(&self.tracker, sequence)
    }

    /// Addresses of the hub and of what is behind.
    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        let address = |bytes: [u8; 16]| match self.tracker.family {
            abi::Family::Ipv4 => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
            abi::Family::Ipv6 => IpAddr::from(bytes),
        };
        (address(self.tracker.source), address(self.tracker.behind))
    }

    /// A mark with the right token.
    pub fn mark(&self, sequence: u64, sent_mono_ns: u64) -> Mark {
        let epoch = self.tracker.epoch;
        Mark {
            tracker: self.slot,
            sequence,
            sent_mono_ns,
            token: token::token(KEY, self.slot, epoch, sequence, sent_mono_ns),
        }
    }

    /// The probe of a mark, as it has to leave.
    pub fn probe(&self, mark: Mark) -> Vec<u8> {
        let (hub, behind) = self.addresses();
        let tag = (self.path.vlan != 0).then_some(Tag::dot1q(self.path.vlan));
        let link = Link {
            destination: self.path.next_hop_mac,
            source: self.path.source_mac,
            tags: tag.into_iter().collect(),
        };
        let ports = [self.flow(mark.sequence), self.tracker.port];
        match self.tracker.probe {
            abi::Probe::Tcp => {
                let numbers = [self.initial_sequence(mark.sequence), 0];
                // Segments of 1,440 bytes, two no-operations, selective acknowledgements.
                let options = [2, 4, 0x05, 0xa0, 1, 1, 4, 2];
                let segment =
                    packets::segment([hub, behind], ports, numbers, 0x02, 64_240, &options);
                return link.ip(&segment);
            }
            abi::Probe::Stamp => {
                let mut packet = self.claim(mark.sequence);
                packet.resize(self.tracker.payload.into(), 0);
                if let Some(padding) = self.tracker.payload.checked_sub(48) {
                    // An extra padding TLV, not recognised yet.
                    packet[44..46].copy_from_slice(&[0x80, 1]);
                    packet[46..48].copy_from_slice(&padding.to_be_bytes());
                }
                return link.ip(&packets::datagram([hub, behind], ports, &packet));
            }
            abi::Probe::Icmp | abi::Probe::Udp => {}
        }
        let payload = mark.payload(self.tracker.payload.into());
        if self.tracker.probe == abi::Probe::Udp {
            return link.ip(&packets::datagram([hub, behind], ports, &payload));
        }
        let echo = Echo {
            kind: packets::echo_request(hub),
            code: 0,
            identifier: self.flow(mark.sequence),
            sequence: mark.sequence as u16,
            payload,
        };
        link.ip(&echo.packet(hub, behind))
    }

    /// The sequence number of a SYN.
    pub fn initial_sequence(&self, sequence: u64) -> u32 {
        let token = self.mark(sequence, 0).token;
        ((token as u32) << 8) + u32::from(sequence as u8 ^ self.tracker.salt)
    }

    /// What comes back of a STAMP packet.
    pub fn claim(&self, sequence: u64) -> Vec<u8> {
        let token = self.mark(sequence, 0).token.to_be_bytes();
        let number = (sequence.wrapping_sub(1) as u32).to_be_bytes();
        let slot = self.slot.to_be_bytes();
        [&number[..], &slot[1..], &token[..5], &[0x1f, 0x54]].concat()
    }

    /// The link that a reply comes by.
    pub fn inbound(&self) -> Link {
        Link {
            destination: HUB_MAC,
            source: ENDPOINT_MAC,
            tags: Vec::new(),
        }
    }
}

/// An IPv4 address as the maps hold it.
pub fn widen([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// The identifier or source port that a test gives a probe.
fn flow(tracker: &abi::Tracker, sequence: u64) -> u16 {
    let flows = u64::from(tracker.flow_mask) + 1;
    (tracker.flow_first).wrapping_add((sequence % flows) as u16)
}
