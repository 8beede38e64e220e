//! Steering in the kernel: the object once more, with maps of its own beside the shared ones, and programs
//! that exist only while steering is configured.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    error::Error,
    hash::Hash,
    iter::successors,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap as BpfHashMap, MapData, MapType, PerCpuArray, PerCpuValues,
        lpm_trie::{Key, LpmTrie},
    },
    programs::xdp::XdpMode,
};
use tracker_ebpf::{abi, public};

use super::{
    OBJECT,
    attach::{self, Attachment, Check, TcPlace},
    error::DatapathError,
    loader::Kernel,
    object,
    pins::{Pins, fast_pin},
};
use crate::{
    config::ModeChoice,
    error::full,
    net::ethtool,
    plan::{
        mode::{Mode, Offloads},
        observed::Link,
        steering::{AttachPoint, Hook, Plan, Room},
    },
};

/// The loaded programs and maps of steering.
pub struct Steering {
    ebpf: Ebpf,
    pins: Pins,
    room: Room,
    filter: Array<MapData, abi::Filter>,
    table: BpfHashMap<MapData, abi::SteerKey, abi::Steer>,
    sources: LpmTrie<MapData, abi::Source, u32>,
    uplinks: BpfHashMap<MapData, abi::OwnMac, u32>,
    flows: BpfHashMap<MapData, abi::FlowKey, abi::Flow>,
    counters: SteeredReader,
    holds: HashMap<AttachPoint, Attachment>,
    /// What the maps hold.
    installed: Plan,
    /// Attachments that were refused, and what was said of it: told once.
    refused: HashMap<AttachPoint, Refusal>,
    is_kept: bool,
    /// FLOWS may hold what this plan does not ask for.
    is_followed: bool,
}

/// Why something is not attached.
struct Refusal {
    text: String,
    /// Another XDP program is there.
    is_taken: bool,
}

/// Reads members' counters.
#[derive(Clone)]
pub struct SteeredReader(Arc<Mutex<PerCpuArray<MapData, abi::Steered>>>);

impl SteeredReader {
    /// A member's counters by its path slot, of all processors together.
    pub fn get(&self, member: u32) -> abi::Steered {
        let mut sum = abi::Steered::default();
        // A slot beyond the end was never counted in.
        for one in self
            .map()
            .get(&member, 0)
            .iter()
            .flat_map(|cpus| cpus.iter())
        {
            sum.steered += one.steered;
            sum.replied += one.replied;
            sum.no_way += one.no_way;
            sum.unfit += one.unfit;
        }
        sum
    }

    /// Zeroes a member's counters.
    fn reset(&self, member: u32) -> Result<(), DatapathError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let zeros = PerCpuValues::try_from(vec![abi::Steered::default(); cpus])?;
        Ok(self.map().set(member, zeros, 0)?)
    }

    fn map(&self) -> MutexGuard<'_, PerCpuArray<MapData, abi::Steered>> {
        // The map is the kernel's: no panic leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Steering {
    /// Loads maps and programs of steering, beside those that `kernel` holds.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn load(kernel: &Kernel, room: Room) -> Result<Self, DatapathError> {
        let pins = kernel.pins();
        let mut loader = EbpfLoader::new();
        let paths = abi::map::ALL
            .iter()
            .chain(&abi::map::STEERING_ALL)
            .map(|name| (*name, pins.map(name)));
        // What a reload leaves of maps that were too small; the programs of an earlier daemon go on with theirs
        // until these take their place.
        let paths_count = kernel.sizes().paths.max(1);
        let kept = [
            is_as::<abi::FlowKey, abi::Flow>(
                pins,
                abi::map::FLOWS,
                MapType::LruHash,
                abi::FLOWS_MAX,
            ),
            is_as::<u32, abi::Steered>(pins, abi::map::STEERED, MapType::PerCpuArray, paths_count),
        ];
        let is_followed = kernel.is_followed() && kept[0];
        for name in abi::map::STEERING_ALL {
            let at = abi::map::STEERING_KEPT
                .iter()
                .position(|kept| *kept == name);
            if !(kernel.is_followed() && at.is_some_and(|at| kept[at])) {
                unpin(pins, name);
            }
        }
        for (name, path) in paths {
            // Those of ALL exist: pinned, they are shared.
            loader.map_pin_path(name, path);
        }
        loader
            .map_max_entries(abi::map::STEERING, room.table)
            .map_max_entries(abi::map::SOURCES, room.sources)
            .map_max_entries(abi::map::UPLINKS, room.uplinks)
            .map_max_entries(abi::map::FLOWS, abi::FLOWS_MAX)
            .map_max_entries(abi::map::STEERED, paths_count)
            .map_max_entries(public::VERDICTS, 1);
        let mut ebpf = loader.load(OBJECT).map_err(DatapathError::SteeringMaps)?;
        for name in abi::program::STEERING_ALL {
            object::load(&mut ebpf, name)?;
        }
        if kernel.has_generic() {
            object::load(&mut ebpf, abi::program::STEER_GENERIC)?;
        }
        let mut take = |name| object::take(&mut ebpf, name);
        Ok(Self {
            filter: take(abi::map::FILTER)?.try_into()?,
            table: take(abi::map::STEERING)?.try_into()?,
            sources: take(abi::map::SOURCES)?.try_into()?,
            uplinks: take(abi::map::UPLINKS)?.try_into()?,
            flows: take(abi::map::FLOWS)?.try_into()?,
            counters: SteeredReader(Arc::new(Mutex::new(take(abi::map::STEERED)?.try_into()?))),
            pins: pins.clone(),
            room,
            holds: HashMap::new(),
            installed: Plan::default(),
            refused: HashMap::new(),
            is_kept: false,
            is_followed,
            ebpf,
        })
    }

    /// Whether the maps have room for so much.
    pub const fn holds(&self, needed: Room) -> bool {
        self.room.holds(needed)
    }

    /// A reader of members' counters.
    pub fn counters(&self) -> SteeredReader {
        self.counters.clone()
    }

    /// Zeroes a member's counters for a new user of the path slot.
    pub fn reset(&self, member: u32) {
        if let Err(error) = self.counters.reset(member) {
            tracing::debug!(
                "cannot zero the steering counters of path {member}: {}",
                full(&error)
            );
        }
    }

    /// How XDP is attached to an uplink, or TC if only that is; `None` while neither is.
    pub fn mode(&self, ifindex: u32, choice: ModeChoice) -> Option<Mode> {
        let has = |hook| {
            let points = self.holds.keys();
            points
                .into_iter()
                .any(|point| (point.ifindex, point.hook) == (ifindex, hook))
        };
        match (has(Hook::Fast), has(Hook::Uplink), choice) {
            (true, true, ModeChoice::XdpGeneric) => Some(Mode::XdpGeneric),
            (true, true, _) => Some(Mode::XdpNative),
            (false, true, _) => Some(Mode::Tc),
            (_, false, _) => None,
        }
    }

    /// Detaches what a plan does not want: before the receive program is attached, which may want an
    /// uplink's place for XDP.
    pub fn detach(&mut self, plan: &Plan) {
        self.holds.retain(|point, _| plan.points.contains(point));
        self.refused.retain(|point, _| plan.points.contains(point));
    }

    /// Brings maps and programs in line with a plan. Says what was refused that is to be tried again.
    pub fn apply(
        &mut self,
        plan: Plan,
        kernel: &mut Kernel,
        links: &std::collections::BTreeMap<u32, Link>,
        choice: ModeChoice,
    ) -> Option<String> {
        let mut fault = None;
        if let Err(error) = self.write(&plan) {
            let text = format!("cannot write the maps of steering: {}", full(&error));
            tracing::error!("{text}; trying again");
            fault = Some(text);
        } else {
            self.installed = Plan {
                points: BTreeSet::new(),
                ..plan.clone()
            };
        }
        self.detach(&plan);
        for point in plan.points {
            if self.holds.contains_key(&point) {
                continue;
            }
            if let Some(link) = links.get(&point.ifindex) {
                fault = self.try_attach(point, link, kernel, choice).or(fault);
            }
        }
        fault
    }

    /// Tries again if an XDP program of another tool kept an uplink's place; the kernel does not tell of its end.
    pub fn retry(
        &mut self,
        kernel: &mut Kernel,
        links: &std::collections::BTreeMap<u32, Link>,
        choice: ModeChoice,
    ) {
        let taken = self.refused.iter().filter(|(_, refusal)| refusal.is_taken);
        let taken: Vec<AttachPoint> = taken.map(|(point, _)| *point).collect();
        for point in taken {
            if let Some(link) = links.get(&point.ifindex) {
                let _ = self.try_attach(point, link, kernel, choice);
            }
        }
    }

    /// Attaches a program, or says once why not; what is returned is to be tried again.
    fn try_attach(
        &mut self,
        point: AttachPoint,
        link: &Link,
        kernel: &mut Kernel,
        choice: ModeChoice,
    ) -> Option<String> {
        let what = what(point, choice);
        let is_auto = choice == ModeChoice::Auto;
        let refusal = matches!(point.hook, Hook::Fast if is_auto)
            .then(|| Mode::why_not_native(link, ethtool::offloads));
        let attached = match refusal.flatten() {
            Some(why) => Err(DatapathError::Unfit(why)),
            None => self.attach(point, kernel, choice),
        };
        let error = match attached {
            Ok(hold) => {
                self.refused.remove(&point);
                self.holds.insert(point, hold);
                let refusal = matches!(point.hook, Hook::Uplink if is_auto)
                    .then(|| Mode::why_not_native(link, |_| Offloads::default()));
                let why = refusal.flatten().map(|why| format!("; {why}"));
                let why = why.unwrap_or_default();
                tracing::info!("{}: steering by {what}{why}", link.name);
                return None;
            }
            Err(error) => error,
        };
        let text = format!("{}: no steering by {what}: {}", link.name, full(&error));
        let refusal = Refusal {
            text: text.clone(),
            is_taken: is_taken(&error),
        };
        let before = self.refused.insert(point, refusal);
        let is_new = before.is_none_or(|before| before.text != text);
        match point.hook {
            Hook::Fast => {
                if is_new {
                    tracing::info!("{text}; all goes by TC");
                }
                None
            }
            Hook::Uplink | Hook::Marked | Hook::Return => {
                if is_new {
                    tracing::error!("{text}; trying again");
                }
                Some(text)
            }
        }
    }

    /// What tells of each program whether it is still attached.
    pub fn checks(&self) -> impl Iterator<Item = (AttachPoint, Check)> {
        let points = self.holds.keys();
        points.filter_map(|point| Some((*point, self.check(*point)?)))
    }

    fn check(&self, point: AttachPoint) -> Option<Check> {
        let hold = self.holds.get(&point)?;
        Some(hold.check(self.pins.link(&name(point)), point.ifindex))
    }

    /// Forgets those of these programs that are detached, so that they are attached again; says which.
    pub fn forget_detached(&mut self, suspects: &[AttachPoint]) -> Vec<AttachPoint> {
        let mut detached = suspects.to_vec();
        detached.retain(|point| self.check(*point).is_some_and(|check| check.is_detached()));
        for point in &detached {
            self.holds.remove(point);
        }
        detached
    }

    /// Leaves maps and links pinned, so that programs stay attached.
    pub fn keep(mut self) {
        self.is_kept = true;
        self.holds.values_mut().for_each(Attachment::keep);
    }

    fn attach(
        &mut self,
        point: AttachPoint,
        kernel: &mut Kernel,
        choice: ModeChoice,
    ) -> Result<Attachment, DatapathError> {
        let pin = self.pins.link(&name(point));
        let is_xdp = matches!(point.hook, Hook::Fast);
        kernel.take_left(&pin, point.ifindex, is_xdp);
        let (program, place) = match (point.hook, point.is_ethernet) {
            (Hook::Fast, _) => {
                let (mode, name) = match choice {
                    ModeChoice::XdpGeneric => (XdpMode::Skb, abi::program::STEER_GENERIC),
                    _ => (XdpMode::Driver, abi::program::STEER),
                };
                return attach::attach_xdp(&mut self.ebpf, name, point.ifindex, mode, &pin);
            }
            (Hook::Uplink, true) => (abi::program::UPLINK, TcPlace::INGRESS),
            (Hook::Uplink, false) => (abi::program::UPLINK_IP, TcPlace::INGRESS),
            (Hook::Marked, true) => (abi::program::MARKED, TcPlace::EGRESS),
            (Hook::Marked, false) => (abi::program::MARKED_IP, TcPlace::EGRESS),
            (Hook::Return, is_ethernet) => {
                // Replies to the daemon's own probes are counted before anybody looks at their addresses.
                let place = TcPlace {
                    after: kernel.tc_receive_id(point.ifindex),
                    ..TcPlace::INGRESS
                };
                let name = match is_ethernet {
                    true => abi::program::RETURN,
                    false => abi::program::RETURN_IP,
                };
                (name, place)
            }
        };
        let (ebpf, ifindex) = (&mut self.ebpf, point.ifindex);
        attach::attach_tc(ebpf, program, ifindex, place, &self.pins, &pin)
    }

    fn write(&mut self, plan: &Plan) -> Result<(), DatapathError> {
        let (old, new) = (&self.installed, plan);
        if old.filter != new.filter {
            // Wider first, so that nothing that is steered before and after goes untouched in between.
            let both = abi::Filter {
                endpoints: std::array::from_fn(|at| {
                    old.filter.endpoints[at] | new.filter.endpoints[at]
                }),
                behinds: std::array::from_fn(|at| old.filter.behinds[at] | new.filter.behinds[at]),
                ..new.filter
            };
            self.filter.set(0, both, 0)?;
        }
        write_map(&mut self.table, &old.table, &new.table)?;
        write_map(&mut self.uplinks, &old.uplinks, &new.uplinks)?;
        for (source, bits) in new.sources.difference(&old.sources) {
            self.sources.insert(&Key::new(*bits, *source), 1, 0)?;
        }
        for (source, bits) in old.sources.difference(&new.sources) {
            // It is missing if an earlier attempt failed half way.
            let _ = self.sources.remove(&Key::new(*bits, *source));
        }
        if old.filter != new.filter {
            self.filter.set(0, new.filter, 0)?;
        }
        let asked = |plan: &Plan| -> HashSet<([u8; 16], u32)> {
            let entries = plan.table.iter();
            entries
                .map(|(key, entry)| (key.endpoint, entry.member))
                .collect()
        };
        let now = asked(new);
        if !std::mem::take(&mut self.is_followed) && asked(old).is_subset(&now) {
            return Ok(());
        }
        // Replies are no longer given the address of an endpoint that is none any more.
        let over: Vec<abi::FlowKey> = self
            .flows
            .iter()
            .flatten()
            .filter(|(_, flow)| !now.contains(&(flow.endpoint, flow.member)))
            .map(|(key, _)| key)
            .collect();
        for key in over {
            // It may have made room for another meanwhile.
            let _ = self.flows.remove(&key);
        }
        Ok(())
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        if !self.is_kept {
            self.holds.clear();
            forget_left(&self.pins);
        }
    }
}

/// Whether the kernel refused because another XDP program is attached (`dev_xdp_attach`).
fn is_taken(error: &DatapathError) -> bool {
    let taken = [libc::EBUSY, libc::EEXIST].map(Some);
    let mut errors = successors(Some(error as &(dyn Error + 'static)), |error| {
        (*error).source()
    });
    errors.any(|error| {
        let error = error.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| taken.contains(&error.raw_os_error()))
    })
}

/// Removes the pin of a map of steering.
fn unpin(pins: &Pins, name: &str) {
    // It may not exist, which is as good.
    let _ = std::fs::remove_file(pins.map(name));
}

/// Whether a map of this kind is pinned that has these keys and values, and as many.
fn is_as<K, V>(pins: &Pins, name: &str, kind: MapType, entries: u32) -> bool {
    let info = MapData::from_pin(pins.map(name)).and_then(|map| map.info());
    info.is_ok_and(|info| {
        let is_of_kind = matches!(info.map_type(), Ok(found) if found as u32 == kind as u32);
        is_of_kind
            && (
                info.key_size() as usize,
                info.value_size() as usize,
                info.max_entries(),
            ) == (size_of::<K>(), size_of::<V>(), entries)
    })
}

/// Removes what an earlier daemon left of steering that is no longer configured.
pub fn forget_left(pins: &Pins) {
    for name in abi::map::STEERING_ALL {
        unpin(pins, name);
    }
}

/// What a point's link is pinned as.
fn name(point: AttachPoint) -> String {
    let hook = match point.hook {
        Hook::Fast => return fast_pin(point.ifindex),
        Hook::Uplink => "uplink",
        Hook::Marked => "marked",
        Hook::Return => "return",
    };
    format!("{hook}-{}", point.ifindex)
}

/// What the log calls an attachment.
fn what(point: AttachPoint, choice: ModeChoice) -> &'static str {
    match (point.hook, choice) {
        (Hook::Fast, ModeChoice::XdpGeneric) => "xdp-generic",
        (Hook::Fast, _) => "xdp-native",
        (Hook::Uplink, _) => "tc",
        (Hook::Marked, _) => "tc, marked local packets",
        (Hook::Return, _) => "tc, replies",
    }
}

fn write_map<K: Pod + Eq + Hash, V: Pod + PartialEq>(
    map: &mut BpfHashMap<MapData, K, V>,
    old: &HashMap<K, V>,
    new: &HashMap<K, V>,
) -> Result<(), DatapathError> {
    // Room first.
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        // It is missing if an earlier attempt failed half way.
        let _ = map.remove(key);
    }
    for (key, value) in new
        .iter()
        .filter(|(key, value)| old.get(key) != Some(value))
    {
        map.insert(key, value, 0)?;
    }
    Ok(())
}
