//! The maps. Sizes here are the smallest; the loader sets those that depend on the config.

use aya_ebpf::{
    btf_maps::{
        Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf,
    },
    macros::btf_map,
};
use tracker_ebpf::{abi, public, rtt};

/// `BPF_F_MMAPABLE` (Linux 5.5): userspace reads and writes the array's memory itself.
const MMAPABLE: usize = 1 << 10;
/// `BPF_F_NO_PREALLOC`: an entry takes memory when it is made.
const NO_PREALLOC: usize = 1;

#[btf_map]
pub static HUB: Array<abi::Hub, 1> = Array::new();
#[btf_map]
pub static TRACKERS: Array<abi::Tracker, 1> = Array::new();
#[btf_map]
pub static PATHS: Array<abi::PathEntry, 1, MMAPABLE> = Array::new();
#[btf_map]
pub static STATE: Array<abi::State, 1, MMAPABLE> = Array::new();
#[btf_map]
pub static WINDOWS: Array<u64, 1, MMAPABLE> = Array::new();
#[btf_map]
pub static BATCH: Array<abi::Job, { abi::BATCH_MAX as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub static CURSOR: Array<abi::Cursor, 1, MMAPABLE> = Array::new();
#[btf_map]
pub static DEVICES: DevMapHash<{ abi::DEVICES_MAX as usize }> = DevMapHash::new();
#[btf_map]
pub static EVENTS: RingBuf<(), { abi::EVENTS_BYTES as usize }> = RingBuf::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<abi::Counters, 1> = PerCpuArray::new();
#[btf_map]
pub static STREAMS: HashMap<abi::StreamKey, u32, 1, NO_PREALLOC> = HashMap::new();

/// Round-trip times of each member. Not pinned: the next daemon begins to count anew.
#[btf_map]
pub static RTTS: Array<rtt::Rtts, 1, MMAPABLE> = Array::new();

/// Indices of VERDICTS by name, for programs of others. No program here reads it, so that the linker has to be told to keep it.
#[used]
#[btf_map]
pub static NAMES: HashMap<public::Name, u32, { public::CAPACITY as usize }, NO_PREALLOC> =
    HashMap::new();
/// What counts of each service and member, for programs of others.
#[used]
#[btf_map]
pub static VERDICTS: Array<public::PublicVerdict, { public::CAPACITY as usize }, MMAPABLE> =
    Array::new();

/// Interfaces on which replies are expected, or pass on their way to one of these, and private ones.
#[btf_map]
pub static EXPECTING: HashMap<u32, u32, 1, NO_PREALLOC> = HashMap::new();

/// Programs that judge datagrams which the kernel merged into one packet.
#[btf_map]
pub static SEGMENTS: ProgramArray<{ abi::SEGMENTS_MAX as usize }> = ProgramArray::new();

/// The program that judges what the filter of the packet socket does not rule out.
#[btf_map]
pub static WATCHED: ProgramArray<1> = ProgramArray::new();

#[btf_map]
pub static FILTER: Array<abi::Filter, 1> = Array::new();
#[btf_map]
pub static STEERING: HashMap<abi::SteerKey, abi::Steer, 1> = HashMap::new();
#[btf_map]
pub static SOURCES: LpmTrie<abi::Source, u32, 1> = LpmTrie::new();
#[btf_map]
pub static UPLINKS: HashMap<abi::OwnMac, u32, 1> = HashMap::new();
#[btf_map]
pub static FLOWS: LruHashMap<abi::FlowKey, abi::Flow, 1> = LruHashMap::new();
#[btf_map]
pub static STEERED: PerCpuArray<abi::Steered, 1> = PerCpuArray::new();

/// Adds one to this CPU's counter that `field` picks, and says how many there are now.
#[inline(always)]
pub fn count(field: impl FnOnce(&mut abi::Counters) -> &mut u64) -> u64 {
    let Some(counters) = COUNTERS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the slot belongs to this CPU, on which a program of this type is not preempted by itself;
    // programs of another context (TC over XDP) touch other fields, or lose a count.
    let counter = field(unsafe { &mut *counters });
    *counter = counter.wrapping_add(1);
    *counter
}
