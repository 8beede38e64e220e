//! Loads the object, pins its maps, attaches its programs, and takes them off again.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io::ErrorKind,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap as BpfHashMap, Map, MapData, PerCpuArray, PerCpuValues, RingBuf,
        xdp::DevMapHash,
    },
    programs::{
        LinkOrder, Program, ProgramError, ProgramId, SchedClassifier, TcAttachType, Xdp,
        links::{FdLink, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
        xdp::{XdpLink, XdpMode},
    },
};
use aya_obj::programs::XdpAttachType;
use nix::sys::signal::{SigSet, SigmaskHow};
use tracker_ebpf::{abi, wire::token};

use super::{
    OBJECT,
    clsact::{self, Filter},
    links,
    live_frames::KernelDatapath,
    mmap::Mapped,
    pins::Pins,
    steering,
    watch::Watch,
};
use crate::{
    config::ModeChoice,
    detector::streams::Group,
    host::repeats,
    net::{ethtool, link_counters::LinkCounters},
    plan::{
        mode::Mode,
        observed::{Link, LinkType},
    },
};

/// Before the filters of others, whose last word may be the end of the packet's way. The kernel's own choice would be
/// before no other than those that it chose a place for itself (net/sched/cls_api.c, `tcf_auto_prio`).
const CLSACT_FIRST: u16 = 1;
/// For what comes after one of ours.
const CLSACT_SECOND: u16 = 2;
/// Names of the send side's pins.
const SEND_PIN: &str = "send";
const TC_SEND_PIN: &str = "tc-send";

/// How large the maps must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Tracker slots.
    pub trackers: u32,
    /// Path slots.
    pub paths: u32,
    /// BuddyAllocator of WINDOWS.
    pub words: u32,
}

impl Sizes {
    /// Large enough for both.
    const fn max(self, other: Self) -> Self {
        const fn larger(a: u32, b: u32) -> u32 {
            if a > b { a } else { b }
        }
        Self {
            trackers: larger(self.trackers, other.trackers),
            paths: larger(self.paths, other.paths),
            words: larger(self.words, other.words),
        }
    }
}

/// The last version without a tag in HUB. All its other maps are of the present layout, so what they hold is copied.
const UNTAGGED: u32 = 7;

/// What becomes of the maps that an earlier daemon left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maps {
    /// They are used as they are.
    Adopt,
    /// They are too small, or HUB is of an earlier version: what they hold is copied into new ones.
    Grow,
    /// New ones: there are none, or none that this version can read.
    Anew,
}

/// What can become of the pinned maps of an instance, if so much must find place, and how large they will be. Says
/// so where they are of no use.
pub fn survey(pins: &Pins, wanted: Sizes) -> Result<(Maps, Sizes)> {
    let hub = pins.map(abi::map::HUB);
    if !hub.exists() {
        return Ok((Maps::Anew, wanted));
    }
    let old = match readable(pins) {
        Ok(old) => old,
        Err(why) => {
            tracing::warn!(
                "the maps that an earlier daemon left are not taken over: {why}; verdicts, event numbers and counters \
                 that can be read go on"
            );
            return Ok((Maps::Anew, wanted));
        }
    };
    let sizes = old.max(wanted);
    let adopts = sizes == old
        && pinned_version(pins) == Some(abi::VERSION)
        && entries(pins, abi::map::EVENTS)? >= events_bytes(sizes);
    let how = if adopts { Maps::Adopt } else { Maps::Grow };
    Ok((how, sizes))
}

/// The sizes of the pinned maps, or why this version can't read them.
fn readable(pins: &Pins) -> Result<Sizes> {
    let version = pinned_version(pins);
    match version {
        Some(abi::VERSION | UNTAGGED) => {}
        Some(other) => bail!(
            "they are of version {other}, this daemon's of {}",
            abi::VERSION
        ),
        None => bail!("HUB is of another version than this daemon's"),
    }
    let object = aya_obj::Object::parse(OBJECT).context("cannot read the eBPF object")?;
    for name in abi::map::ALL {
        let pinned = MapData::from_pin(pins.map(name)).map_err(|_| anyhow!("{name} is missing"))?;
        let info = pinned.info()?;
        let expected = object.maps.get(name).context("no such map")?;
        let is_of_kind = matches!(info.map_type(), Ok(kind) if kind as u32 == expected.map_type());
        // aya fits the size of a device map's value to the kernel, which adds flags of its own.
        let is_fitted = name == abi::map::DEVICES;
        let is_like = (info.key_size(), info.value_size(), info.map_flags())
            == (
                expected.key_size(),
                expected.value_size(),
                expected.map_flags(),
            );
        let is_replaced = name == abi::map::HUB && version == Some(UNTAGGED);
        if !is_of_kind || !(is_like || is_fitted || is_replaced) {
            bail!("{name} or its entries are of another kind or size");
        }
    }
    let sizes = Sizes {
        trackers: entries(pins, abi::map::TRACKERS)?,
        paths: entries(pins, abi::map::PATHS)?,
        words: entries(pins, abi::map::WINDOWS)?,
    };
    if entries(pins, abi::map::STATE)? != sizes.trackers {
        bail!("TRACKERS and STATE do not fit together");
    }
    Ok(sizes)
}

fn entries(pins: &Pins, name: &str) -> Result<u32> {
    Ok(MapData::from_pin(pins.map(name))?.info()?.max_entries())
}

/// Bytes of EVENTS: room for an early reply of every other tracker; the state is re-read where that is too little.
fn events_bytes(sizes: Sizes) -> u32 {
    (sizes.trackers.saturating_mul(16))
        .next_power_of_two()
        .clamp(page_size(), abi::EVENTS_BYTES)
}

/// A receive program on an interface.
struct Receive {
    mode: Mode,
    hold: Hold,
}

/// The name of the pin of a receive program's link.
fn receive_pin(ifindex: u32, mode: Mode) -> String {
    format!("receive-{}-{ifindex}", mode.as_str())
}

/// Asks the kernel whether a program is still attached.
#[derive(Debug)]
pub enum Check {
    /// By its link, pinned there, on this interface.
    Link(PathBuf, u32),
    /// By its filter.
    Filter(clsact::Place),
}

impl Check {
    /// Whether the program was detached by others. Waits as long as another process holds the kernel's lock of network
    /// configuration: `bpf_xdp_link_fill_link_info` and a list of filters take RTNL (Linux 6.18).
    pub fn is_detached(&self) -> bool {
        match self {
            Self::Link(pin, ifindex) => {
                links::attached_to(pin).is_ok_and(|attached| attached != *ifindex)
            }
            Self::Filter(place) => !place.is_attached(),
        }
    }
}

/// What keeps a program attached; dropping it detaches.
pub(super) enum Hold {
    Pinned(Option<PinnedLink>),
    /// Before TCX (Linux 6.6).
    Clsact(Filter),
}

impl Hold {
    /// Leaves a pinned link pinned.
    pub(super) fn keep(&mut self) {
        match self {
            // Dropping the link's descriptor leaves the pin, which holds the link.
            Self::Pinned(pinned) => drop(pinned.take()),
            Self::Clsact(filter) => filter.keep(),
        }
    }

    /// What tells whether the program is still attached to `ifindex`, with its link pinned at `pin`.
    pub(super) fn check(&self, pin: PathBuf, ifindex: u32) -> Check {
        match self {
            Self::Pinned(_) => Check::Link(pin, ifindex),
            Self::Clsact(filter) => Check::Filter(filter.place()),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Self::Pinned(pinned) = self
            && let Some(link) = pinned.take()
        {
            // Unpinning fails only where somebody removed the pin already; the link goes either way.
            let _ = link.unpin();
        }
    }
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
    /// Pins of links that an earlier daemon left and nobody has taken over yet.
    left: HashSet<PathBuf>,
    /// The maps hold what an earlier daemon left.
    is_followed: bool,
    /// The programs of the generic hook are loaded: no other mode needs them.
    has_generic: bool,
    devices: DevMapHash<MapData>,
    trackers: Array<MapData, abi::Tracker>,
    streams: BpfHashMap<MapData, abi::StreamKey, u32>,
    states: StateReader,
    windows: Mapped<u64>,
    sizes: Sizes,
    send: Hold,
    tc_send: Hold,
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

/// Sixteen random bytes.
///
/// # Errors
/// If the kernel gives none (getrandom(2)).
pub fn random() -> Result<[u64; 2]> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).context("cannot get random bytes of the kernel by getrandom(2)")?;
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
    ) -> Result<(Self, KernelDatapath)> {
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
            .map_max_entries(abi::map::WINDOWS, entries(sizes.words))
            .map_max_entries(abi::map::BATCH, batch)
            .map_max_entries(abi::map::DEVICES, devices)
            .map_max_entries(abi::map::EXPECTING, abi::EXPECTING_MAX)
            .map_max_entries(abi::map::EVENTS, events);
        for (name, path) in &paths {
            loader.map_pin_path(name, path.clone());
        }
        let mut ebpf = loader
            .load(OBJECT)
            .context("the kernel refused the eBPF maps; `tracker doctor` tells what it lacks")?;

        #[cfg(feature = "bpf-log")]
        follow_log(&mut ebpf)?;
        // Steering has maps of its own, of the right size, when there is steering.
        for name in abi::map::STEERING_ALL {
            drop(take(&mut ebpf, name)?);
        }

        for name in [
            abi::program::SEND,
            abi::program::RECEIVE,
            abi::program::TC_SEND,
            abi::program::TC_RECEIVE,
            abi::program::TC_RECEIVE_IP,
            abi::program::WATCH,
        ] {
            load(&mut ebpf, name)?;
        }
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
        let datapath = KernelDatapath {
            send: send_program,
            private_ifindex,
            paths: mapped(&ebpf, abi::map::PATHS)?,
            state: mapped(&ebpf, abi::map::STATE)?,
            windows: mapped(&ebpf, abi::map::WINDOWS)?,
            batch: mapped(&ebpf, abi::map::BATCH)?,
            cursor: mapped(&ebpf, abi::map::CURSOR)?,
            events: RingBuf::try_from(take(&mut ebpf, abi::map::EVENTS)?)?,
            answered: VecDeque::new(),
            counters: LinkCounters::new().context("cannot open a netlink socket")?,
        };
        let watch = match Watch::new(&mut ebpf) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!("replies that come a wrong way are not noticed: {error:#}");
                None
            }
        };
        let kernel = Self {
            devices: DevMapHash::try_from(take(&mut ebpf, abi::map::DEVICES)?)?,
            trackers: Array::try_from(take(&mut ebpf, abi::map::TRACKERS)?)?,
            streams: BpfHashMap::try_from(take(&mut ebpf, abi::map::STREAMS)?)?,
            states: StateReader(Arc::new(mapped(&ebpf, abi::map::STATE)?)),
            windows: mapped(&ebpf, abi::map::WINDOWS)?,
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
        Ok((kernel, datapath))
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
    pub fn move_send(&mut self, private_ifindex: u32) -> Result<()> {
        // The old links' pins make room for the new ones' first.
        (self.send, self.tc_send) = (Hold::Pinned(None), Hold::Pinned(None));
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

    /// The id of the receive program at TC, where that is what an interface has.
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
                format_args!("replies that come a wrong way are not noticed: {error:#}"),
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
    /// device with somebody else's XDP program keeps it and gets the TC program. Returns the mode, and why no better one
    /// was taken.
    ///
    /// # Errors
    /// Where no allowed mode works: what each answered.
    pub fn attach(&mut self, link: &Link, choice: ModeChoice) -> Result<(Mode, Vec<String>)> {
        let modes = Mode::allowed(link, choice, ethtool::offloads)
            .map_err(|why| anyhow!("cannot receive on {}: {why}", link.name))?;
        // What an earlier daemon attached stays as it is, if it may.
        let is_left = |mode: &&Mode| {
            let pin = receive_pin(link.index, **mode);
            self.left.contains(&self.pins.link(&pin))
        };
        let (left, others): (Vec<_>, Vec<_>) = modes.order.iter().partition(is_left);
        let mut refusals: Vec<String> = modes.not_native.into_iter().collect();
        for &mode in left.into_iter().chain(others) {
            match self.attach_in(link, mode) {
                Ok(hold) => {
                    self.receives.insert(link.index, Receive { mode, hold });
                    return Ok((mode, refusals));
                }
                Err(error) => refusals.push(format!("{}: {error:#}", mode.as_str())),
            }
        }
        let remedy = match link.xdp_program {
            Some(id) => format!(
                "; XDP program {id} is attached already: remove it, or set hub.mode to auto or tc"
            ),
            None => "; `tracker doctor` tells what this interface can do".to_owned(),
        };
        bail!(
            "cannot attach the receive program to {}: {}{remedy}",
            link.name,
            refusals.join("; ")
        )
    }

    /// What tells of each receive program whether it is still attached.
    pub fn checks(&self) -> impl Iterator<Item = (u32, Check)> {
        self.receives.iter().map(|(ifindex, receive)| {
            let pin = self.pins.link(&receive_pin(*ifindex, receive.mode));
            (*ifindex, receive.hold.check(pin, *ifindex))
        })
    }

    /// What tells whether one receive program is still attached; `None` if there is none by now.
    pub fn check(&self, ifindex: u32) -> Option<Check> {
        let receive = self.receives.get(&ifindex)?;
        let pin = self.pins.link(&receive_pin(ifindex, receive.mode));
        Some(receive.hold.check(pin, ifindex))
    }

    fn attach_in(&mut self, link: &Link, mode: Mode) -> Result<Hold> {
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
                return hold_tc(
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
        hold_xdp(&mut self.ebpf, name, ifindex, xdp_mode, &pin)
    }

    /// Says that a pin is somebody's again. What an earlier daemon left of other XDP programs on the interface makes
    /// room: of them there can be only one.
    pub(super) fn take_left(&mut self, pin: &Path, ifindex: u32, is_xdp: bool) {
        self.left.remove(pin);
        if !is_xdp {
            return;
        }
        let own = [Mode::XdpNative, Mode::XdpGeneric].map(|mode| receive_pin(ifindex, mode));
        for other in own.into_iter().chain([steering::fast_pin(ifindex)]) {
            let other = self.pins.link(&other);
            if self.left.remove(&other) {
                // It may be gone, which is as good.
                let _ = links::remove(&other);
            }
        }
    }

    /// Detaches what an earlier daemon left at uplinks by XDP: this one does it in another mode.
    pub fn forget_fast(&mut self) {
        for pin in self.left.extract_if(|pin| steering::is_fast_pin(pin)) {
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
    pub fn set_device(&mut self, ifindex: u32, is_target: bool) -> Result<()> {
        if is_target {
            self.devices
                .insert(ifindex, ifindex, None, 0)
                .with_context(|| format!("cannot make interface {ifindex} a redirect target"))
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
    pub fn set_tracker(&mut self, slot: u32, tracker: &abi::Tracker) -> Result<()> {
        let written = || format!("cannot write tracker {slot}");
        self.trackers.set(slot, tracker, 0).with_context(written)
    }

    /// Says which TCP trackers ask a port, and which source ports each uses: first the words, then where they are.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn set_streams(&mut self, key: &abi::StreamKey, group: &Group) -> Result<()> {
        for (at, word) in group.words() {
            self.set_stream(at, word);
        }
        self.streams
            .insert(key, group.streams.word(), 0)
            .context("cannot write the map STREAMS")
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
        // It is not there where the kernel refused it.
        let _ = self.streams.remove(key);
    }

    /// What STREAMS holds.
    pub fn streams(&self) -> Vec<(abi::StreamKey, abi::Streams)> {
        let entries = self.streams.iter().flatten();
        entries
            .map(|(key, word)| (key, abi::Streams::of_word(word)))
            .collect()
    }

    /// What hides the sequence numbers of a TCP tracker's probes in those of its SYNs: nobody else can know it.
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
    pub fn counters(&self) -> Result<PerCpuValues<abi::Counters>> {
        let map = self.ebpf.map(abi::map::COUNTERS);
        let map = map.ok_or_else(|| anyhow!("{} is not in the object", abi::map::COUNTERS))?;
        Ok(PerCpuArray::try_from(map)?.get(&0, 0)?)
    }

    /// A reader of trackers' states.
    pub fn states(&self) -> StateReader {
        self.states.clone()
    }

    /// Leaves maps and links pinned, so that programs stay attached.
    pub fn keep(mut self) {
        let receives = self.receives.values_mut().map(|receive| &mut receive.hold);
        for hold in receives.chain([&mut self.send, &mut self.tc_send]) {
            hold.keep();
        }
    }
}

/// Carries the programs' diagnostics into the daemon's own log.
#[cfg(feature = "bpf-log")]
fn follow_log(ebpf: &mut Ebpf) -> Result<()> {
    let logger = aya_log::EbpfLogger::init(ebpf).context("cannot read the programs' log")?;
    // SAFETY: the logger owns its ring buffer's descriptor, the same one as long as it lives.
    let registered = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(logger, tokio::io::Interest::READABLE)
    };
    let mut logger = registered.map_err(|_| anyhow!("cannot wait for the programs' log"))?;
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}

/// What the pinned PATHS of an instance hold. Nothing where there is no such map or it has another layout.
pub fn pinned_paths(pins: &Pins) -> Vec<abi::Path> {
    if !matches!(pinned_version(pins), Some(abi::VERSION | UNTAGGED)) {
        return Vec::new();
    }
    let paths = pinned_array::<abi::Path>(&pins.map(abi::map::PATHS));
    paths.map_or_else(Vec::new, |paths| {
        paths.iter().map(Result::unwrap_or_default).collect()
    })
}

/// The first version of the ABI with the present layout of STATE.
const STATE_SINCE: u32 = 5;

/// What the pinned STATE of an instance holds, for maps that are not taken over. Nothing where its version is known to
/// have another layout, or its entries have another size.
pub fn pinned_states(pins: &Pins) -> Vec<abi::State> {
    let version = pinned_version(pins);
    if version.is_some_and(|version| !(STATE_SINCE..=abi::VERSION).contains(&version)) {
        return Vec::new();
    }
    let states = pinned_array::<abi::State>(&pins.map(abi::map::STATE));
    states.map_or_else(Vec::new, |states| {
        states.iter().map(Result::unwrap_or_default).collect()
    })
}

/// The neighbour entry of a path, which its daemon had the kernel keep.
pub fn neighbour(path: &abi::Path) -> Option<(u32, IpAddr)> {
    let ip = address(path.endpoint_family, path.endpoint);
    (path.interface != 0).then_some((path.interface, ip))
}

/// An address as the maps have it.
pub fn address(family: abi::Family, bytes: [u8; 16]) -> IpAddr {
    let [a, b, c, d, ..] = bytes;
    match family {
        abi::Family::Ipv4 => IpAddr::from([a, b, c, d]),
        abi::Family::Ipv6 => IpAddr::from(bytes),
    }
}

/// The entry of a pinned HUB of this version's layout.
fn pinned_hub(pins: &Pins) -> Option<abi::Hub> {
    let hub = pinned_array::<abi::Hub>(&pins.map(abi::map::HUB))?;
    hub.get(&0, 0).ok()
}

/// The entry of a pinned HUB of an earlier version's layout.
fn untagged_hub(pins: &Pins) -> Option<abi::UntaggedHub> {
    let hub = pinned_array::<abi::UntaggedHub>(&pins.map(abi::map::HUB))?;
    hub.get(&0, 0).ok()
}

/// The version of the pinned maps.
fn pinned_version(pins: &Pins) -> Option<u32> {
    let version = pinned_hub(pins).map(|hub| hub.version);
    version.or_else(|| Some(untagged_hub(pins)?.version))
}

/// The key of the pinned maps' tokens.
fn pinned_key(pins: &Pins) -> Option<[u64; 2]> {
    let key = pinned_hub(pins).map(|hub| hub.key);
    key.or_else(|| Some(untagged_hub(pins)?.key))
}

/// The tag of the probes of an instance whose maps are pinned, if they are of a version that has it.
pub fn pinned_tag(pins: &Pins) -> Option<u32> {
    let hub = pinned_hub(pins)?;
    (hub.version == abi::VERSION && hub.tag != 0).then_some(hub.tag)
}

/// A pinned array whose values have the size of `T`.
fn pinned_array<T: Pod>(path: &Path) -> Option<Array<MapData, T>> {
    let map = MapData::from_pin(path).ok()?;
    if map.info().ok()?.value_size() as usize != size_of::<T>() {
        return None;
    }
    Array::try_from(Map::Array(map)).ok()
}

fn page_size() -> u32 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u32::try_from(size).ok())
        .unwrap_or(4096)
}

fn set_hub(
    hub: &mut Array<MapData, abi::Hub>,
    key: [u64; 2],
    private_ifindex: u32,
    tag: u32,
) -> Result<()> {
    let entry = abi::Hub {
        key,
        version: abi::VERSION,
        private_ifindex,
        tag,
        pad: 0,
    };
    hub.set(0, entry, 0).context("cannot write the map HUB")
}

/// Copies what an earlier daemon's maps hold of trackers into larger ones, at the same places.
fn copy(ebpf: &mut Ebpf, pins: &Pins) -> Result<()> {
    fn words<T: Pod>(ebpf: &Ebpf, pins: &Pins, name: &str) -> Result<()> {
        let old = Mapped::<T>::new(&MapData::from_pin(pins.map(name))?)?;
        let new = mapped::<T>(ebpf, name)?;
        for at in 0..old.len() {
            if let (Some(from), Some(to)) = (old.at(at), new.at(at)) {
                // SAFETY: valid elements of plain words; a reply that is counted meanwhile may be missing.
                unsafe { to.write_volatile(from.read_volatile()) };
            }
        }
        Ok(())
    }
    words::<abi::State>(ebpf, pins, abi::map::STATE)?;
    words::<u64>(ebpf, pins, abi::map::WINDOWS)?;
    words::<abi::Path>(ebpf, pins, abi::map::PATHS)?;
    let missing = |name: &str| anyhow!("the eBPF object has no map {name}");
    let name = abi::map::TRACKERS;
    let old = pinned_array::<abi::Tracker>(&pins.map(name)).ok_or_else(|| missing(name))?;
    let new = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    let mut new: Array<_, abi::Tracker> = Array::try_from(new)?;
    for (at, entry) in (0u32..).zip(old.iter()) {
        new.set(at, entry?, 0)?;
    }
    let name = abi::map::STREAMS;
    let old = Map::HashMap(MapData::from_pin(pins.map(name))?);
    let old: BpfHashMap<_, abi::StreamKey, u32> = BpfHashMap::try_from(old)?;
    let new = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    let mut new: BpfHashMap<_, abi::StreamKey, u32> = BpfHashMap::try_from(new)?;
    for entry in old.iter() {
        let (key, word) = entry?;
        new.insert(key, word, 0)?;
    }
    let name = abi::map::COUNTERS;
    let old = Map::PerCpuArray(MapData::from_pin(pins.map(name))?);
    let old: PerCpuArray<_, abi::Counters> = PerCpuArray::try_from(old)?;
    let new = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    let mut new: PerCpuArray<_, abi::Counters> = PerCpuArray::try_from(new)?;
    new.set(0, old.get(&0, 0)?, 0)?;
    Ok(())
}

/// Attaches both halves of the send side to the private interface.
fn attach_send(ebpf: &mut Ebpf, pins: &Pins, private_ifindex: u32) -> Result<[Hold; 2]> {
    // The send program stays attached to a device of its own: a call of an unattached one makes the
    // kernel swap its XDP dispatcher and wait for RCU, 24 ms instead of 18 us.
    let (name, pin) = (abi::program::SEND, pins.link(SEND_PIN));
    let send = hold_xdp(ebpf, name, private_ifindex, XdpMode::Driver, &pin)
        .context("cannot attach the send program to the private veth")?;
    let (name, pin) = (abi::program::TC_SEND, pins.link(TC_SEND_PIN));
    let tc_send = hold_tc(ebpf, name, private_ifindex, TcPlace::INGRESS, pins, &pin)
        .context("cannot attach the send program's TC half to the private veth")?;
    Ok([send, tc_send])
}

pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .ok_or_else(|| anyhow!("the eBPF object has no map {name}"))
}

fn mapped<T: Pod>(ebpf: &Ebpf, name: &str) -> Result<Mapped<T>> {
    match ebpf.map(name) {
        Some(Map::Array(data)) => {
            Mapped::new(data).with_context(|| format!("cannot map {name} into memory"))
        }
        Some(_) => bail!("the map {name} of the eBPF object is no array"),
        None => bail!("the eBPF object has no map {name}"),
    }
}

/// How often the verifier is asked again that was interrupted.
const LOAD_ATTEMPTS: u32 = 20;

/// Has the kernel take a program of the object. The verifier gives up with EAGAIN where a signal waits for the thread
/// (kernel/bpf/verifier.c, `do_check`), as SIGHUP would while a reload is under way: so none is let through meanwhile.
///
/// # Errors
/// When there is no such program, or the kernel refuses it.
pub fn load(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let others = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let mut attempts = 1..LOAD_ATTEMPTS;
    let loaded = loop {
        let loaded = match ebpf.program_mut(name) {
            Some(Program::Xdp(program)) => program.load(),
            Some(Program::SchedClassifier(program)) => program.load(),
            Some(Program::SocketFilter(program)) => program.load(),
            _ => Err(ProgramError::InvalidName {
                name: name.to_owned(),
            }),
        };
        match loaded {
            // SIGSTOP and a freezer cannot be kept off.
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == ErrorKind::WouldBlock && attempts.next().is_some() => {}
            loaded => break loaded,
        }
    };
    others.thread_set_mask()?;
    loaded.with_context(|| format!("the kernel refused the program {name}"))
}

pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// Where among the TC programs of an interface one is attached.
#[derive(Clone, Copy)]
pub(super) struct TcPlace {
    /// Ingress or egress.
    pub(super) side: TcAttachType,
    /// The program after which it comes; else it comes first.
    pub(super) after: Option<u32>,
}

impl TcPlace {
    /// The first of ingress.
    pub(super) const INGRESS: Self = Self {
        side: TcAttachType::Ingress,
        after: None,
    };
    /// The first of egress.
    pub(super) const EGRESS: Self = Self {
        side: TcAttachType::Egress,
        after: None,
    };
}

/// The link that an earlier daemon pinned, if it is still attached to the interface; else the pin makes room: its
/// interface went away, and maybe the index came back.
fn left_link(pin: &Path, ifindex: u32) -> Option<FdLink> {
    if links::attached_to(pin).is_ok_and(|attached| attached == ifindex)
        && let Ok(link) = PinnedLink::from_pin(pin)
    {
        return Some(link.into());
    }
    // It may not exist, which is as good.
    let _ = links::remove(pin);
    None
}

/// Holds a link by its pin. It is the pin that keeps it: descriptors come and go.
fn hold(pin: &Path) -> Result<Hold> {
    Ok(Hold::Pinned(Some(PinnedLink::from_pin(pin)?)))
}

/// Puts an XDP program in the place of an earlier daemon's, without a moment between; else attaches it.
pub(super) fn hold_xdp(
    ebpf: &mut Ebpf,
    name: &str,
    ifindex: u32,
    mode: XdpMode,
    pin: &Path,
) -> Result<Hold> {
    let program: &mut Xdp = program(ebpf, name)?;
    if let Some(link) = left_link(pin, ifindex) {
        let replaced = program.attach_to_link(XdpLink::try_from(link)?);
        if let Ok(id) = replaced {
            drop(program.take_link(id)?);
            return hold(pin);
        }
        // What can't be replaced makes room.
        let _ = links::remove(pin);
    }
    let id = program.attach_to_if_index(ifindex, mode)?;
    pin_link(program.take_link(id)?.try_into()?, pin)
}

/// The same at TC, at its place among the programs of the interface; one that is replaced keeps its place.
pub(super) fn hold_tc(
    ebpf: &mut Ebpf,
    name: &str,
    ifindex: u32,
    place: TcPlace,
    pins: &Pins,
    pin: &Path,
) -> Result<Hold> {
    let program: &mut SchedClassifier = program(ebpf, name)?;
    if let Some(link) = left_link(pin, ifindex) {
        let replaced = program.attach_to_link(SchedClassifierLink::try_from(link)?);
        if let Ok(id) = replaced {
            drop(program.take_link(id)?);
            return hold(pin);
        }
        let _ = links::remove(pin);
    }
    let interface = nix::net::if_::if_indextoname(ifindex)
        .map_err(std::io::Error::from)?
        .into_string()
        .map_err(|_| anyhow!("interface {ifindex} has a name that is not UTF-8"))?;
    let order = match place.after {
        // SAFETY: the id is that of a program that this process holds.
        Some(id) => LinkOrder::after_program_id(unsafe { ProgramId::new(id) }),
        None => LinkOrder::first(),
    };
    let order = TcAttachOptions::TcxOrder(order);
    match program.attach_with_options(&interface, place.side, order) {
        Ok(id) => pin_link(program.take_link(id)?.try_into()?, pin),
        // Before Linux 6.6 there is no TCX; whatever else went wrong, the other way tells.
        Err(_) => {
            let priority = place.after.map_or(CLSACT_FIRST, |_| CLSACT_SECOND);
            Filter::attach(
                program, ifindex, &interface, place.side, priority, pins, pin,
            )
            .map(Hold::Clsact)
        }
    }
}

fn pin_link(link: FdLink, path: &Path) -> Result<Hold> {
    let pinned = link
        .pin(path)
        .with_context(|| format!("cannot pin a link at {}", path.display()))?;
    Ok(Hold::Pinned(Some(pinned)))
}
