//! Loads the object, pins its maps, attaches its programs, and takes them off again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, HashMap as BpfHashMap, MapData, PerCpuArray, PerCpuValues, RingBuf, xdp::DevMapHash,
    },
    programs::{SchedClassifier, Xdp, xdp::XdpMode},
};
use aya_obj::programs::XdpAttachType;
use tracker_ebpf::{abi, rtt, wire::token};

use super::{
    OBJECT,
    adopt::{Maps, Sizes, copy, events_bytes, pinned_key},
    attach::{Attachment, Check, TcPlace, attach_tc, attach_xdp},
    clsact,
    error::DatapathError,
    links,
    live_frames::KernelDatapath,
    mmap::Mapped,
    object::{fill_segments, fill_watched, load, mapped, program, take},
    pins::{Pins, fast_pin, is_fast_pin},
    public::{self, VerdictMaps},
    watch::Watch,
};
use crate::{
    config::ModeChoice,
    detector::streams::Group,
    error::full,
    host::repeats,
    net::{ethtool, link_counters::LinkCounters},
    plan::{
        mode::Mode,
        observed::{Link, LinkType},
    },
};

/// Names of the send side's pins.
const SEND_PIN: &str = "send";
const TC_SEND_PIN: &str = "tc-send";

/// A receive program on an interface.
struct Receive {
    mode: Mode,
    attachment: Attachment,
}

/// The name of the pin of a receive program's link.
fn receive_pin(ifindex: u32, mode: Mode) -> String {
    format!("receive-{}-{ifindex}", mode.as_str())
}

/// The loaded object.
pub struct Kernel {
    ebpf: Ebpf,
    hub: Array<MapData, abi::Hub>,
    key: [u64; 2],
    tag: u32,
    private_ifindex: u32,
    pins: Pins,
    receives: HashMap<u32, Receive>,
    /// Pins of links that an earlier daemon left and that were not taken over yet.
    left: HashSet<PathBuf>,
    /// The maps hold what an earlier daemon left.
    is_followed: bool,
    /// The programs of the generic hook are loaded: no other mode needs them.
    has_generic: bool,
    devices: DevMapHash<MapData>,
    trackers: Array<MapData, abi::Tracker>,
    streams: BpfHashMap<MapData, abi::StreamKey, u32>,
    states: StateReader,
    rtts: RttReader,
    windows: Arc<Mapped<u64>>,
    sizes: Sizes,
    send: Attachment,
    tc_send: Attachment,
    /// `None` if the kernel refused it.
    watch: Option<Watch>,
}

/// Reads trackers' states out of the kernel's own memory.
#[derive(Clone, Debug)]
pub struct StateReader(Arc<Mapped<abi::State>>);

impl StateReader {
    /// A slot's state as it is now; its fields may be of slightly different moments.
    pub fn state(&self, slot: u32) -> abi::State {
        // SAFETY: a valid element, which the kernel writes word by word.
        self.0
            .at(slot)
            .map_or_else(Default::default, |state| unsafe { state.read_volatile() })
    }
}

/// Reads members' round-trip times out of the kernel's own memory.
#[derive(Clone, Debug)]
pub struct RttReader(Arc<Mapped<rtt::Rtts>>);

impl RttReader {
    /// What was counted of a member by its path slot; its words may be of slightly different moments.
    pub fn rtts(&self, path: u32) -> rtt::Rtts {
        // SAFETY: a valid element, which the kernel writes word by word.
        self.0
            .at(path)
            .map_or([0; rtt::WORDS], |rtts| unsafe { rtts.read_volatile() })
    }

    /// Begins anew for another member.
    pub fn reset(&self, path: u32) {
        if let Some(rtts) = self.0.at(path) {
            // SAFETY: a valid element; no probe of the new member has left yet, so the kernel does not write it.
            unsafe { rtts.write_volatile([0; rtt::WORDS]) };
        }
    }
}

/// Sixteen random bytes.
///
/// # Errors
/// If the kernel gives none (getrandom(2)).
pub fn random() -> Result<[u64; 2], DatapathError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(DatapathError::Random)?;
    let [low, high] =
        [0, 8].map(|at| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte])));
    Ok([low, high])
}

impl Kernel {
    /// Loads the object with pinned maps, an earlier daemon's or new ones, and attaches the send side to the
    /// private veth. Nothing that is attached is detached, and all programs are loaded before any is replaced.
    ///
    /// # Errors
    /// Where the kernel refuses, with the verifier's last words if it was the verifier.
    pub fn load(
        pins: &Pins,
        maps: Maps,
        sizes: Sizes,
        mode: ModeChoice,
        private_ifindex: u32,
        tag: u32,
    ) -> Result<(Self, KernelDatapath, VerdictMaps), DatapathError> {
        let has_generic = mode == ModeChoice::XdpGeneric;
        pins.create()?;
        let entries = |count: u32| count.max(1);
        let batch = sizes.trackers.next_power_of_two().clamp(64, abi::BATCH_MAX);
        let events = events_bytes(sizes);
        let devices = sizes.paths.next_power_of_two().clamp(16, abi::DEVICES_MAX);
        let directory = match maps {
            Maps::Adopt => pins.maps(),
            Maps::Grow | Maps::Anew => pins.create_next_maps()?,
        };
        let paths: Vec<(&str, PathBuf)> = abi::map::ALL
            .iter()
            .map(|name| (*name, directory.join(name)))
            .collect();
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries(abi::map::TRACKERS, entries(sizes.trackers))
            .map_max_entries(abi::map::STATE, entries(sizes.trackers))
            .map_max_entries(abi::map::STREAMS, entries(sizes.trackers))
            .map_max_entries(abi::map::PATHS, entries(sizes.paths))
            .map_max_entries(abi::map::RTTS, entries(sizes.paths))
            .map_max_entries(abi::map::WINDOWS, entries(sizes.words))
            .map_max_entries(abi::map::BATCH, batch)
            .map_max_entries(abi::map::DEVICES, devices)
            .map_max_entries(abi::map::EXPECTING, abi::EXPECTING_MAX)
            .map_max_entries(abi::map::EVENTS, events);
        let paths = paths.into_iter().chain(public::paths(pins)?);
        for (name, path) in paths {
            loader.map_pin_path(name, path);
        }
        let mut ebpf = loader.load(OBJECT).map_err(DatapathError::Maps)?;

        #[cfg(feature = "bpf-log")]
        follow_log(&mut ebpf)?;
        // Steering has maps of its own, of the right size, when there is steering.
        for name in abi::map::STEERING_ALL {
            drop(take(&mut ebpf, name)?);
        }
        let verdicts = VerdictMaps::take(&mut ebpf, pins)?;

        for name in abi::program::ALL {
            load(&mut ebpf, name)?;
        }
        fill_segments(&mut ebpf)?;
        fill_watched(&mut ebpf)?;
        if has_generic {
            load(&mut ebpf, abi::program::RECEIVE_GENERIC)?;
        }

        let key = match (maps, pinned_key(pins)) {
            (Maps::Adopt | Maps::Grow, Some(key)) => key,
            _ => random()?,
        };
        if maps == Maps::Grow {
            copy(&mut ebpf, pins)?;
        }
        let mut hub = Array::try_from(take(&mut ebpf, abi::map::HUB)?)?;
        set_hub(&mut hub, key, private_ifindex, tag)?;
        if maps == Maps::Grow {
            // Steered flows go on too.
            for name in abi::map::STEERING_KEPT {
                if let Ok(map) = MapData::from_pin(pins.map(name)) {
                    map.pin(directory.join(name))?;
                }
            }
        }
        if maps != Maps::Adopt {
            pins.take_next_maps()?;
        }
        let [send, tc_send] = attach_send(&mut ebpf, pins, private_ifindex)?;
        let links = pins.links().into_iter();
        let mut left: HashSet<PathBuf> = links.filter(|pin| !clsact::is_qdisc_pin(pin)).collect();
        left.retain(|pin| {
            ![SEND_PIN, TC_SEND_PIN]
                .map(|name| pins.link(name))
                .contains(pin)
        });

        let info = program::<Xdp>(&mut ebpf, abi::program::SEND)?.info()?;
        let send_program =
            Xdp::from_program_info(info, abi::program::SEND.into(), XdpAttachType::Interface)?;
        // Mapped once: what a second mapping reads counts as memory of its own.
        let state = Arc::new(mapped(&ebpf, abi::map::STATE)?);
        let windows = Arc::new(mapped(&ebpf, abi::map::WINDOWS)?);
        let datapath = KernelDatapath {
            send: send_program,
            private_ifindex,
            paths: mapped(&ebpf, abi::map::PATHS)?,
            state: state.clone(),
            windows: windows.clone(),
            batch: mapped(&ebpf, abi::map::BATCH)?,
            cursor: mapped(&ebpf, abi::map::CURSOR)?,
            events: RingBuf::try_from(take(&mut ebpf, abi::map::EVENTS)?)?,
            answered: VecDeque::new(),
            counters: LinkCounters::new().map_err(|source| DatapathError::System {
                attempt: "open a netlink socket",
                source,
            })?,
        };
        let watch = match Watch::new(&mut ebpf) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(
                    "replies that come a wrong way are not noticed: {}",
                    full(&error)
                );
                None
            }
        };
        let kernel = Self {
            devices: DevMapHash::try_from(take(&mut ebpf, abi::map::DEVICES)?)?,
            trackers: Array::try_from(take(&mut ebpf, abi::map::TRACKERS)?)?,
            streams: BpfHashMap::try_from(take(&mut ebpf, abi::map::STREAMS)?)?,
            states: StateReader(state),
            rtts: RttReader(Arc::new(mapped(&ebpf, abi::map::RTTS)?)),
            windows,
            ebpf,
            hub,
            key,
            tag,
            private_ifindex,
            pins: pins.clone(),
            receives: HashMap::new(),
            left,
            is_followed: maps != Maps::Anew,
            has_generic,
            sizes,
            send,
            tc_send,
            watch,
        };
        Ok((kernel, datapath, verdicts))
    }

    /// The pins of the instance.
    pub const fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Whether the programs of the generic hook are loaded.
    pub const fn has_generic(&self) -> bool {
        self.has_generic
    }

    /// The private interface on which the send side is attached.
    pub const fn private_ifindex(&self) -> u32 {
        self.private_ifindex
    }

    /// Attaches the send side to a private interface made anew.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn move_send(&mut self, private_ifindex: u32) -> Result<(), DatapathError> {
        // The old links' pins make room for the new ones' first.
        (self.send, self.tc_send) = (Attachment::Pinned(None), Attachment::Pinned(None));
        set_hub(&mut self.hub, self.key, private_ifindex, self.tag)?;
        let [send, tc_send] = attach_send(&mut self.ebpf, &self.pins, private_ifindex)?;
        (self.send, self.tc_send, self.private_ifindex) = (send, tc_send, private_ifindex);
        Ok(())
    }

    /// The maps' sizes.
    pub const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The mode in which replies are counted on an interface, if they are.
    pub fn mode(&self, ifindex: u32) -> Option<Mode> {
        Some(self.receives.get(&ifindex)?.mode)
    }

    /// The id of the receive program at TC, if that is what an interface has.
    pub fn tc_receive_id(&mut self, ifindex: u32) -> Option<u32> {
        if self.mode(ifindex)? != Mode::Tc {
            return None;
        }
        let name = abi::program::TC_RECEIVE;
        let program: &mut SchedClassifier = program(&mut self.ebpf, name).ok()?;
        Some(program.info().ok()?.id())
    }

    /// Interfaces with a receive program.
    pub fn attached(&self) -> Vec<u32> {
        self.receives.keys().copied().collect()
    }

    /// Has replies noticed that arrive on other interfaces than these; before receive programs are attached to new ones of these.
    pub fn watch_more(&mut self, expecting: &HashSet<u32>) {
        let Some(watch) = &mut self.watch else {
            return;
        };
        if let Err(error) = watch.leave_out(expecting) {
            repeats::warn(
                "watch",
                format_args!(
                    "replies that come a wrong way are not noticed: {}",
                    full(&error)
                ),
            );
        }
    }

    /// Has replies noticed on all interfaces but these; after receive programs were detached from the others.
    pub fn watch_less(&mut self, expecting: &HashSet<u32>) {
        if let Some(watch) = &mut self.watch {
            watch.watch_all_but(expecting);
        }
    }

    /// Attaches the receive program, in the best mode that `choice` allows and the device takes. A
    /// device with an XDP program that is not ours keeps it and gets the TC program. Returns the mode, and why no better one
    /// was taken.
    ///
    /// # Errors
    /// Where no allowed mode works: what each answered.
    pub fn attach(
        &mut self,
        link: &Link,
        choice: ModeChoice,
    ) -> Result<(Mode, Vec<String>), DatapathError> {
        let interface = || link.name.clone();
        let modes = Mode::allowed(link, choice, ethtool::offloads).map_err(|why| {
            DatapathError::Receive {
                interface: interface(),
                why: why.to_string(),
            }
        })?;
        // What an earlier daemon attached stays as it is, if it may.
        let is_left = |mode: &&Mode| {
            let pin = receive_pin(link.index, **mode);
            self.left.contains(&self.pins.link(&pin))
        };
        let (left, others): (Vec<_>, Vec<_>) = modes.order.iter().partition(is_left);
        let mut refusals: Vec<String> = modes.not_native.into_iter().collect();
        for &mode in left.into_iter().chain(others) {
            match self.attach_in(link, mode) {
                Ok(attachment) => {
                    self.receives
                        .insert(link.index, Receive { mode, attachment });
                    return Ok((mode, refusals));
                }
                Err(error) => refusals.push(format!("{}: {}", mode.as_str(), full(&error))),
            }
        }
        let remedy = match link.xdp_program {
            Some(id) => format!(
                "; XDP program {id} is attached already: remove it, or set hub.mode to auto or tc"
            ),
            None => "; `tracker doctor` tells what this interface can do".to_owned(),
        };
        Err(DatapathError::Attach {
            interface: interface(),
            refusals: refusals.join("; "),
            remedy,
        })
    }

    /// What tells of each receive program whether it is still attached.
    pub fn checks(&self) -> impl Iterator<Item = (u32, Check)> {
        self.receives.iter().map(|(ifindex, receive)| {
            let pin = self.pins.link(&receive_pin(*ifindex, receive.mode));
            (*ifindex, receive.attachment.check(pin, *ifindex))
        })
    }

    /// What tells whether one receive program is still attached; `None` if there is none by now.
    pub fn check(&self, ifindex: u32) -> Option<Check> {
        let receive = self.receives.get(&ifindex)?;
        let pin = self.pins.link(&receive_pin(ifindex, receive.mode));
        Some(receive.attachment.check(pin, ifindex))
    }

    fn attach_in(&mut self, link: &Link, mode: Mode) -> Result<Attachment, DatapathError> {
        let ifindex = link.index;
        let pin = self.pins.link(&receive_pin(ifindex, mode));
        let xdp_mode = match mode {
            Mode::XdpNative => XdpMode::Driver,
            Mode::XdpGeneric => XdpMode::Skb,
            Mode::Tc => {
                let name = match link.link_type {
                    LinkType::Ethernet => abi::program::TC_RECEIVE,
                    LinkType::Ip | LinkType::Other => abi::program::TC_RECEIVE_IP,
                };
                self.take_left(&pin, ifindex, false);
                return attach_tc(
                    &mut self.ebpf,
                    name,
                    ifindex,
                    TcPlace::INGRESS,
                    &self.pins,
                    &pin,
                );
            }
        };
        self.take_left(&pin, ifindex, true);
        let name = match xdp_mode {
            XdpMode::Skb => abi::program::RECEIVE_GENERIC,
            _ => abi::program::RECEIVE,
        };
        attach_xdp(&mut self.ebpf, name, ifindex, xdp_mode, &pin)
    }

    /// Notes that a pin is in use again. What an earlier daemon left of other XDP programs on the interface makes
    /// room: of them there can be only one.
    pub(super) fn take_left(&mut self, pin: &Path, ifindex: u32, is_xdp: bool) {
        self.left.remove(pin);
        if !is_xdp {
            return;
        }
        let own = [Mode::XdpNative, Mode::XdpGeneric].map(|mode| receive_pin(ifindex, mode));
        for other in own.into_iter().chain([fast_pin(ifindex)]) {
            let other = self.pins.link(&other);
            if self.left.remove(&other) {
                // It may be gone, which is as good.
                let _ = links::remove(&other);
            }
        }
    }

    /// Detaches what an earlier daemon left at uplinks by XDP: this one does it in another mode.
    pub fn forget_fast(&mut self) {
        for pin in self.left.extract_if(|pin| is_fast_pin(pin)) {
            // It may be gone, which is as good.
            let _ = links::remove(&pin);
        }
    }

    /// Whether the maps hold what an earlier daemon left.
    pub const fn is_followed(&self) -> bool {
        self.is_followed
    }

    /// Detaches what an earlier daemon left attached and this one does not need.
    pub fn forget_left(&mut self) {
        for pin in std::mem::take(&mut self.left) {
            if let Err(error) = links::remove(&pin) {
                tracing::warn!("cannot remove the old pin {}: {error}", pin.display());
            }
        }
    }

    /// Takes the receive program off an interface.
    pub fn detach(&mut self, ifindex: u32) {
        self.receives.remove(&ifindex);
    }

    /// Lets probes be redirected to a device, or no longer.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn set_device(&mut self, ifindex: u32, is_target: bool) -> Result<(), DatapathError> {
        if is_target {
            self.devices
                .insert(ifindex, ifindex, None, 0)
                .map_err(|source| DatapathError::Device { ifindex, source })
        } else {
            // The kernel removes a deleted device's entry by itself.
            let _ = self.devices.remove(ifindex);
            Ok(())
        }
    }

    /// Writes a tracker's configuration.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn set_tracker(&mut self, slot: u32, tracker: &abi::Tracker) -> Result<(), DatapathError> {
        let written = self.trackers.set(slot, tracker, 0);
        written.map_err(|source| DatapathError::Tracker { slot, source })
    }

    /// Says which TCP trackers ask a port, and which source ports each uses: first the words, then where they are.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn set_streams(
        &mut self,
        key: &abi::StreamKey,
        group: &Group,
    ) -> Result<(), DatapathError> {
        for (at, word) in group.words() {
            self.set_stream(at, word);
        }
        self.streams
            .insert(key, group.streams.word(), 0)
            .map_err(|source| DatapathError::Write {
                map: abi::map::STREAMS,
                source,
            })
    }

    /// Writes the word that says whose share of the ports it is.
    pub fn set_stream(&self, at: u32, word: u64) {
        if let Some(entry) = self.windows.at(at) {
            // SAFETY: a valid element; a word is written whole, and no tracker's bit set is there.
            unsafe { entry.write_volatile(word) };
        }
    }

    /// Says that no tracker asks a port any more.
    pub fn remove_streams(&mut self, key: &abi::StreamKey) {
        // It is not there if the kernel refused it.
        let _ = self.streams.remove(key);
    }

    /// What STREAMS holds.
    pub fn streams(&self) -> Vec<(abi::StreamKey, abi::Streams)> {
        let entries = self.streams.iter().flatten();
        entries
            .map(|(key, word)| (key, abi::Streams::of_word(word)))
            .collect()
    }

    /// What hides the sequence numbers of a TCP tracker's probes in those of its SYNs: no other host can know it.
    pub const fn salt(&self, slot: u32, epoch: u32) -> u8 {
        token::token(self.key, slot, epoch, 0, 0) as u8
    }

    /// What TRACKERS holds, in the order of slots.
    pub fn trackers(&self) -> Vec<abi::Tracker> {
        self.trackers
            .iter()
            .map(Result::unwrap_or_default)
            .collect()
    }

    /// Devices to which probes may be redirected.
    pub fn devices(&self) -> impl Iterator<Item = u32> {
        self.devices.keys().flatten()
    }

    /// Zeroes a slot's state and bit set for a new user, or has it go on from the state that an earlier daemon left
    /// elsewhere.
    pub fn reset(&mut self, slot: u32, tracker: &abi::Tracker, left: Option<abi::State>) {
        if let Some(state) = self.states.0.at(slot) {
            // SAFETY: a valid element; no program touches a slot that is not active.
            unsafe { state.write_volatile(left.unwrap_or_default()) };
        }
        self.clear_window(tracker);
    }

    /// Zeroes the bit set of a tracker that is not active.
    pub fn clear_window(&mut self, tracker: &abi::Tracker) {
        for word in tracker.window_first..tracker.window_first + tracker.words() {
            if let Some(word) = self.windows.at(word) {
                // SAFETY: a valid element; no program touches the bit set of a slot that is not active.
                unsafe { word.write_volatile(0) };
            }
        }
    }

    /// What became of frames so far, on each processor.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn counters(&self) -> Result<PerCpuValues<abi::Counters>, DatapathError> {
        let map = self.ebpf.map(abi::map::COUNTERS);
        let map = map.ok_or(DatapathError::NotInObject(abi::map::COUNTERS))?;
        Ok(PerCpuArray::try_from(map)?.get(&0, 0)?)
    }

    /// A reader of trackers' states.
    pub fn states(&self) -> StateReader {
        self.states.clone()
    }

    /// A reader of members' round-trip times.
    pub fn rtts(&self) -> RttReader {
        self.rtts.clone()
    }

    /// Leaves maps and links pinned, so that programs stay attached.
    pub fn keep(mut self) {
        let receives = self
            .receives
            .values_mut()
            .map(|receive| &mut receive.attachment);
        for attachment in receives.chain([&mut self.send, &mut self.tc_send]) {
            attachment.keep();
        }
    }
}

/// Carries the programs' diagnostics into the daemon's own log.
#[cfg(feature = "bpf-log")]
fn follow_log(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let logger = aya_log::EbpfLogger::init(ebpf);
    let logger = logger.map_err(|error| DatapathError::Log(error.into()))?;
    // SAFETY: the logger owns its ring buffer's descriptor, the same one as long as it lives.
    let registered = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(logger, tokio::io::Interest::READABLE)
    };
    let mut logger = registered.map_err(|_| DatapathError::LogWait)?;
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}

fn set_hub(
    hub: &mut Array<MapData, abi::Hub>,
    key: [u64; 2],
    private_ifindex: u32,
    tag: u32,
) -> Result<(), DatapathError> {
    let entry = abi::Hub {
        key,
        version: abi::VERSION,
        private_ifindex,
        tag,
        pad: 0,
    };
    hub.set(0, entry, 0).map_err(|source| DatapathError::Write {
        map: abi::map::HUB,
        source,
    })
}

/// Attaches both halves of the send side to the private interface.
fn attach_send(
    ebpf: &mut Ebpf,
    pins: &Pins,
    private_ifindex: u32,
) -> Result<[Attachment; 2], DatapathError> {
    let not_sent = |half| {
        move |error| DatapathError::Send {
            half,
            source: Box::new(error),
        }
    };
    // The send program stays attached to a device of its own: a call of an unattached one makes the
    // kernel swap its XDP dispatcher and wait for RCU, 24 ms instead of 18 us.
    let (name, pin) = (abi::program::SEND, pins.link(SEND_PIN));
    let send =
        attach_xdp(ebpf, name, private_ifindex, XdpMode::Driver, &pin).map_err(not_sent(""))?;
    let (name, pin) = (abi::program::TC_SEND, pins.link(TC_SEND_PIN));
    let tc_send = attach_tc(ebpf, name, private_ifindex, TcPlace::INGRESS, pins, &pin)
        .map_err(not_sent("'s TC half"))?;
    Ok([send, tc_send])
}
