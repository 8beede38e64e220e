//! Loads the object, pins its maps, attaches its programs, and takes them off again.

use std::{
    collections::HashMap,
    fs::File,
    io::Read as _,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, Map, MapData, PerCpuArray, PerCpuValues, RingBuf, xdp::DevMapHash},
    programs::{
        LinkOrder, ProgramId, SchedClassifier, TcAttachType, Xdp,
        links::{FdLink, PinnedLink},
        tc::TcAttachOptions,
        xdp::XdpMode,
    },
};
use aya_obj::programs::XdpAttachType;
use tracker_ebpf::abi;

use super::{
    OBJECT,
    bpffs::Pins,
    clsact::Filter,
    interfaces::{Header, Link, LinkCounters},
    links,
    mapped::Mapped,
    plane::KernelPlane,
};
use crate::{config::ModeChoice, mode::Mode};

/// Before the filters of others, whose last word may be the end of the packet's way. The kernel's own choice would be
/// before no other than those that it chose a place for itself (net/sched/cls_api.c, `tcf_auto_prio`).
const CLSACT_FIRST: u16 = 1;
/// For what comes after one of ours.
const CLSACT_SECOND: u16 = 2;

/// How large the maps must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Tracker slots.
    pub trackers: u32,
    /// Path slots.
    pub paths: u32,
    /// Words of WINDOWS.
    pub words: u32,
}

/// A receive program on an interface.
struct Receive {
    mode: Mode,
    hold: Hold,
}

/// What a receive program on an interface is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Counting replies: the interface is in some member's `returns`.
    Receive,
    /// Noticing replies that come by a way that no member's `returns` names.
    Watch,
}

impl Purpose {
    /// The name of the link's pin.
    fn pin(self, ifindex: u32, mode: Mode) -> String {
        match self {
            Self::Receive => format!("receive-{}-{ifindex}", mode.as_str()),
            Self::Watch => format!("watch-{ifindex}"),
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

    /// Whether somebody detached what is pinned at `pin` from `ifindex`.
    pub(super) fn is_detached(&self, pin: &Path, ifindex: u32) -> bool {
        match self {
            Self::Pinned(_) => links::attached_to(pin).is_ok_and(|attached| attached != ifindex),
            Self::Clsact(filter) => !filter.is_attached(),
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
    private_ifindex: u32,
    pins: Pins,
    receives: HashMap<(u32, Purpose), Receive>,
    devices: DevMapHash<MapData>,
    trackers: Array<MapData, abi::Tracker>,
    states: StateReader,
    windows: Mapped<u64>,
    sizes: Sizes,
    send: Hold,
    tc_send: Hold,
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

/// Sixteen random bytes for the token.
fn random_key() -> Result<[u64; 2]> {
    let mut bytes = [0u8; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom for the token's key")?;
    let [low, high] =
        [0, 8].map(|at| u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte])));
    Ok([low, high])
}

impl Kernel {
    /// Loads the object with fresh, pinned maps and attaches the send side to the private veth.
    ///
    /// # Errors
    /// Where the kernel refuses, with the verifier's last words if it was the verifier.
    pub fn load(pins: &Pins, sizes: Sizes, private_ifindex: u32) -> Result<(Self, KernelPlane)> {
        pins.create()?;
        let entries = |count: u32| count.max(1);
        let batch = sizes.trackers.next_power_of_two().clamp(64, abi::BATCH_MAX);
        // Room for an early reply of every other tracker; the state is re-read where that is too little.
        let events = (sizes.trackers.saturating_mul(16))
            .next_power_of_two()
            .clamp(page_size(), abi::EVENTS_BYTES);
        let devices = sizes.paths.next_power_of_two().clamp(16, abi::DEVICES_MAX);
        let paths: Vec<(&str, PathBuf)> = abi::map::ALL
            .iter()
            .map(|name| (*name, pins.map(name)))
            .collect();
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries(abi::map::TRACKERS, entries(sizes.trackers))
            .map_max_entries(abi::map::STATE, entries(sizes.trackers))
            .map_max_entries(abi::map::PATHS, entries(sizes.paths))
            .map_max_entries(abi::map::WINDOWS, entries(sizes.words))
            .map_max_entries(abi::map::BATCH, batch)
            .map_max_entries(abi::map::DEVICES, devices)
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

        for name in [abi::program::SEND, abi::program::RECEIVE] {
            let program: &mut Xdp = program(&mut ebpf, name)?;
            program
                .load()
                .with_context(|| format!("the kernel refused the program {name}"))?;
        }
        for name in [
            abi::program::TC_SEND,
            abi::program::TC_RECEIVE,
            abi::program::TC_RECEIVE_IP,
        ] {
            let program: &mut SchedClassifier = program(&mut ebpf, name)?;
            program
                .load()
                .with_context(|| format!("the kernel refused the program {name}"))?;
        }

        let mut hub = Array::try_from(take(&mut ebpf, abi::map::HUB)?)?;
        let key = random_key()?;
        let [send, tc_send] = attach_send(&mut ebpf, &mut hub, pins, key, private_ifindex)?;

        let info = program::<Xdp>(&mut ebpf, abi::program::SEND)?.info()?;
        let send_program =
            Xdp::from_program_info(info, abi::program::SEND.into(), XdpAttachType::Interface)?;
        let plane = KernelPlane {
            send: send_program,
            private_ifindex,
            paths: mapped(&ebpf, abi::map::PATHS)?,
            state: mapped(&ebpf, abi::map::STATE)?,
            windows: mapped(&ebpf, abi::map::WINDOWS)?,
            batch: mapped(&ebpf, abi::map::BATCH)?,
            cursor: mapped(&ebpf, abi::map::CURSOR)?,
            events: RingBuf::try_from(take(&mut ebpf, abi::map::EVENTS)?)?,
            counters: LinkCounters::new().context("cannot open a netlink socket")?,
        };
        let kernel = Self {
            devices: DevMapHash::try_from(take(&mut ebpf, abi::map::DEVICES)?)?,
            trackers: Array::try_from(take(&mut ebpf, abi::map::TRACKERS)?)?,
            states: StateReader(Arc::new(mapped(&ebpf, abi::map::STATE)?)),
            windows: mapped(&ebpf, abi::map::WINDOWS)?,
            ebpf,
            hub,
            key,
            private_ifindex,
            pins: pins.clone(),
            receives: HashMap::new(),
            sizes,
            send,
            tc_send,
        };
        Ok((kernel, plane))
    }

    /// The pins of the instance.
    pub const fn pins(&self) -> &Pins {
        &self.pins
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
        let (ebpf, hub) = (&mut self.ebpf, &mut self.hub);
        let [send, tc_send] = attach_send(ebpf, hub, &self.pins, self.key, private_ifindex)?;
        (self.send, self.tc_send, self.private_ifindex) = (send, tc_send, private_ifindex);
        Ok(())
    }

    /// The maps' sizes.
    pub const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The mode in which replies are counted on an interface, if they are.
    pub fn mode(&self, ifindex: u32) -> Option<Mode> {
        Some(self.receives.get(&(ifindex, Purpose::Receive))?.mode)
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

    /// Interfaces with a receive program, and what for.
    pub fn attached(&self) -> Vec<(u32, Purpose)> {
        self.receives.keys().copied().collect()
    }

    /// Attaches the receive program at TC ingress only to notice replies that come a wrong way: that
    /// hook takes nothing from anybody, where XDP would take the driver's one place and may reset it.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn watch(&mut self, link: &Link) -> Result<()> {
        let hold = self
            .attach_in(link, Mode::Tc, Purpose::Watch)
            .with_context(|| format!("cannot watch {} for replies", link.name))?;
        let mode = Mode::Tc;
        self.receives
            .insert((link.index, Purpose::Watch), Receive { mode, hold });
        Ok(())
    }

    /// Attaches the receive program, in the best mode that `choice` allows and the device takes. A
    /// device with somebody else's XDP program keeps it and gets the TC program.
    ///
    /// # Errors
    /// Where no allowed mode works: what each answered.
    pub fn attach(&mut self, link: &Link, choice: ModeChoice) -> Result<Mode> {
        let modes = Mode::allowed(link, choice)
            .map_err(|why| anyhow!("cannot receive on {}: {why}", link.name))?;
        let mut refusals = Vec::new();
        for &mode in modes {
            match self.attach_in(link, mode, Purpose::Receive) {
                Ok(hold) => {
                    self.receives
                        .insert((link.index, Purpose::Receive), Receive { mode, hold });
                    return Ok(mode);
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

    /// Interfaces from which somebody detached the receive program under us.
    pub fn detached(&self) -> Vec<(u32, Purpose)> {
        let detached = self
            .receives
            .iter()
            .filter(|((ifindex, purpose), receive)| {
                let pin = self.pins.link(&purpose.pin(*ifindex, receive.mode));
                receive.hold.is_detached(&pin, *ifindex)
            });
        detached.map(|(key, _)| *key).collect()
    }

    fn attach_in(&mut self, link: &Link, mode: Mode, purpose: Purpose) -> Result<Hold> {
        let ifindex = link.index;
        // A pin may be left where the interface went away and its index came back.
        let path = self.pins.link(&purpose.pin(ifindex, mode));
        let _ = std::fs::remove_file(&path);
        let xdp_mode = match mode {
            Mode::XdpNative => XdpMode::Driver,
            Mode::XdpGeneric => XdpMode::Skb,
            Mode::Tc => {
                let name = match link.header {
                    Header::Ethernet => abi::program::TC_RECEIVE,
                    Header::Ip | Header::Other => abi::program::TC_RECEIVE_IP,
                };
                return attach_tc(
                    &mut self.ebpf,
                    name,
                    ifindex,
                    TcPlace::INGRESS,
                    &self.pins,
                    &path,
                );
            }
        };
        pin(
            attach_xdp(&mut self.ebpf, abi::program::RECEIVE, ifindex, xdp_mode)?,
            &path,
        )
    }

    /// Takes the receive program off an interface.
    pub fn detach(&mut self, ifindex: u32, purpose: Purpose) {
        self.receives.remove(&(ifindex, purpose));
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
        self.trackers
            .set(slot, tracker, 0)
            .with_context(|| format!("cannot write tracker {slot}"))
    }

    /// Zeroes a slot's state and bit set for a new user.
    pub fn reset(&mut self, slot: u32, tracker: &abi::Tracker) {
        if let Some(state) = self.states.0.at(slot) {
            // SAFETY: a valid element; no program touches a slot that is not active.
            unsafe { state.write_volatile(abi::State::default()) };
        }
        for word in tracker.window_first..=tracker.window_first + tracker.window_mask {
            if let Some(word) = self.windows.at(word) {
                // SAFETY: as above.
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

/// Interfaces and endpoints in the pinned PATHS of an instance, whose neighbour entries its daemon had
/// the kernel keep. None where there is no such map or it has another layout.
pub fn pinned_neighbours(pins: &Pins) -> Vec<(u32, IpAddr)> {
    let hub = pinned_array::<abi::Hub>(&pins.map(abi::map::HUB));
    let version = hub.and_then(|hub| Some(hub.get(&0, 0).ok()?.version));
    if version != Some(abi::VERSION) {
        return Vec::new();
    }
    let paths = pinned_array::<abi::Path>(&pins.map(abi::map::PATHS));
    let paths = paths.iter().flat_map(|paths| paths.iter().flatten());
    paths
        .filter(|path| path.interface != 0)
        .map(|path| {
            let [a, b, c, d, ..] = path.endpoint;
            let ip = match path.endpoint_family {
                abi::Family::Ipv4 => IpAddr::from([a, b, c, d]),
                abi::Family::Ipv6 => IpAddr::from(path.endpoint),
            };
            (path.interface, ip)
        })
        .collect()
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

/// Attaches both halves of the send side to the private interface, and tells HUB.
fn attach_send(
    ebpf: &mut Ebpf,
    hub: &mut Array<MapData, abi::Hub>,
    pins: &Pins,
    key: [u64; 2],
    private_ifindex: u32,
) -> Result<[Hold; 2]> {
    let entry = abi::Hub {
        key,
        version: abi::VERSION,
        private_ifindex,
    };
    hub.set(0, entry, 0).context("cannot write the map HUB")?;
    // The send program stays attached to a device of its own: a call of an unattached one makes the
    // kernel swap its XDP dispatcher and wait for RCU, 24 ms instead of 18 us.
    let send = attach_xdp(ebpf, abi::program::SEND, private_ifindex, XdpMode::Driver)
        .and_then(|link| pin(link, &pins.link("send")))
        .context("cannot attach the send program to the private veth")?;
    let (name, pin) = (abi::program::TC_SEND, &pins.link("tc-send"));
    let tc_send = attach_tc(ebpf, name, private_ifindex, TcPlace::INGRESS, pins, pin)
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

pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
    Ok(program.try_into()?)
}

pub(super) fn attach_xdp(
    ebpf: &mut Ebpf,
    name: &str,
    ifindex: u32,
    mode: XdpMode,
) -> Result<FdLink> {
    let program: &mut Xdp = program(ebpf, name)?;
    let id = program.attach_to_if_index(ifindex, mode)?;
    Ok(program.take_link(id)?.try_into()?)
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

/// At its place among the TC programs of an interface, and pinned at `path`.
pub(super) fn attach_tc(
    ebpf: &mut Ebpf,
    name: &str,
    ifindex: u32,
    place: TcPlace,
    pins: &Pins,
    path: &Path,
) -> Result<Hold> {
    let interface = nix::net::if_::if_indextoname(ifindex)
        .map_err(std::io::Error::from)?
        .into_string()
        .map_err(|_| anyhow!("interface {ifindex} has a name that is not UTF-8"))?;
    let program: &mut SchedClassifier = program(ebpf, name)?;
    let order = match place.after {
        // SAFETY: the id is that of a program that this process holds.
        Some(id) => LinkOrder::after_program_id(unsafe { ProgramId::new(id) }),
        None => LinkOrder::first(),
    };
    let order = TcAttachOptions::TcxOrder(order);
    match program.attach_with_options(&interface, place.side, order) {
        Ok(id) => pin(program.take_link(id)?.try_into()?, path),
        // Before Linux 6.6 there is no TCX; whatever else went wrong, the other way tells.
        Err(_) => {
            let priority = place.after.map_or(CLSACT_FIRST, |_| CLSACT_SECOND);
            Filter::attach(
                program, ifindex, &interface, place.side, priority, pins, path,
            )
            .map(Hold::Clsact)
        }
    }
}

pub(super) fn pin(link: FdLink, path: &Path) -> Result<Hold> {
    let pinned = link
        .pin(path)
        .with_context(|| format!("cannot pin a link at {}", path.display()))?;
    Ok(Hold::Pinned(Some(pinned)))
}
