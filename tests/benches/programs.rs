//! What the programs cost: nanoseconds a packet, by the kernel's own clock (`BPF_PROG_TEST_RUN`), and of
//! a live-frames call to a veth whose peer drops everything in XDP. Prints one JSON object.
//!
//! `cargo bench -p tracker-tests --bench programs`, as root; `cargo xtask bench` runs it among the rest.

#[allow(dead_code, reason = "made for tests; the benchmark uses a part of it")]
#[path = "../tests/prog/fixtures/mod.rs"]
mod fixtures;

use std::{
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use fixtures::{Object, World};
use tracker_ebpf::abi::{self, Egress, Family};
use tracker_lab::{
    netns::{Namespace, Owner},
    packets::{self, Echo},
};

/// Runs of one frame in one call: the mean of so many.
const REPEAT: u32 = 5_000_000;
/// Distinct replies, each counted once.
const REPLIES: u64 = 200_000;
/// Probes of one live-frames call.
const BATCH: u32 = abi::BATCH_MAX;
/// Calls.
const CALLS: u32 = 240;
/// Runs of everything, of which the median counts: these machines are shared.
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    // `cargo test --benches` must not measure.
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the bench loads eBPF programs and needs root");
    }
    let median = |measure: &dyn Fn() -> Result<f64>| -> Result<f64> {
        let mut samples = (0..ROUNDS).map(|_| measure()).collect::<Result<Vec<_>>>()?;
        samples.sort_by(f64::total_cmp);
        Ok(samples[ROUNDS / 2])
    };
    let empty = Constant::load(XDP_PASS)?;
    let foreign_frame = foreign();
    let empty_ns = median(&|| empty.mean_ns(&foreign_frame, REPEAT))?;
    let receive = Object::load(abi::program::RECEIVE)?;
    let foreign_ns = median(&|| Ok(f64::from(receive.mean_ns(&foreign_frame, REPEAT)?)))?;
    let reply_over_ns = median(&|| reply_over_empty_ns(&empty))?;
    let send_ns = send_ns()?;
    println!(
        "{}",
        serde_json::json!({
            "empty_ns": round(empty_ns),
            "foreign_ns": round(foreign_ns),
            "reply_ns": round(empty_ns + reply_over_ns),
            "send_ns": round(send_ns),
        })
    );
    Ok(())
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// What hub interfaces carry most: a full-size TCP segment of somebody else.
fn foreign() -> Vec<u8> {
    let world = World::new(Family::Ipv4);
    let packet = packets::tcp(
        fixtures::HUB_V4.into(),
        fixtures::BEHIND_V4.into(),
        &[0; 1_400],
    );
    world.inbound().ip(&packet)
}

/// What counting a reply costs over the empty program, both run once a call: a reply counts only once,
/// so that each call needs another, and a single run is never as warm as the millionth.
fn reply_over_empty_ns(empty: &Constant) -> Result<f64> {
    let world = World::new(Family::Ipv4);
    let mut object = Object::load(abi::program::RECEIVE)?;
    world.install(&mut object)?;
    let (hub, behind) = world.addresses();
    let now_ns = fixtures::now_mono_ns();
    let frames: Vec<Vec<u8>> = (0..64)
        .map(|sequence| {
            let echo = Echo {
                kind: 0,
                code: 0,
                identifier: 7,
                sequence: sequence as u16,
                payload: world.probe_header(sequence, now_ns).payload(32),
            };
            world.inbound().ip(&echo.packet(behind, hub))
        })
        .collect();
    // The median of many small batches: interrupts and a stolen processor hit few of them.
    let batches = REPLIES / 64;
    let mut over_ns = Vec::with_capacity(batches as usize);
    for _ in 0..batches {
        object.windows.set(world.tracker.window_first, 0, 0)?;
        let mut batch_ns = 0.0;
        for frame in &frames {
            batch_ns += f64::from(object.mean_ns(frame, 1)?) - empty.mean_ns(frame, 1)?;
        }
        over_ns.push(batch_ns / frames.len() as f64);
    }
    let counters = object.counters()?;
    if counters.reply_counted != batches * 64 {
        bail!(
            "of {} replies only {} were counted",
            batches * 64,
            counters.reply_counted
        );
    }
    over_ns.sort_by(f64::total_cmp);
    Ok(over_ns[over_ns.len() / 2])
}

/// Wall time a probe of whole live-frames calls, delivered to the peer's XDP program.
fn send_ns() -> Result<f64> {
    let owner = Owner::new()?;
    let hub = Namespace::new(&owner, "bench")?;
    hub.ip("link add out type veth peer name sink\n\
         link add own type veth peer name own2\n\
         link set out up\nlink set sink up\nlink set own up\nlink set own2 up\n")?;
    hub.enter(|| {
        let index = |name: &str| nix::net::if_::if_nametoindex(name).context("find a device");
        let _drops = Constant::load(XDP_DROP)?.attach(index("sink")?)?;
        let mut object = Object::load(abi::program::SEND)?;
        object.attach_xdp(index("own")?)?;
        let out = index("out")?;
        object.devices.insert(out, out, None, 0)?;
        let world = World::new(Family::Ipv4).with(|world| {
            world.path.egress = Egress::XdpRedirect.into();
            world.path.ifindex = out;
        });
        world.install(&mut object)?;
        let slots: Vec<u32> = (0..BATCH).map(|_| fixtures::SLOT).collect();
        let mut samples = Vec::new();
        let own = index("own")?;
        for _ in 0..CALLS {
            object.set_batch(&slots)?;
            let begun = Instant::now();
            object.run_live(&[0; 74], BATCH, own)?;
            samples.push(begun.elapsed().as_nanos() as f64 / f64::from(BATCH));
        }
        let built = object.counters()?.send_built;
        if built != u64::from(BATCH * CALLS) {
            bail!("of {} probes only {built} were built", BATCH * CALLS);
        }
        samples.sort_by(f64::total_cmp);
        Ok(samples[samples.len() / 2])
    })
}

const XDP_DROP: u64 = 1;
const XDP_PASS: u64 = 2;

/// The program that does nothing but return an action: what the harness itself costs.
struct Constant {
    program: OwnedFd,
}

impl Constant {
    fn load(action: u64) -> Result<Self> {
        // BPF_PROG_LOAD of two instructions: r0 = action; exit.
        let instructions: [u64; 2] = [(action << 32) | 0xb7, 0x95];
        let license = c"GPL";
        let mut attributes = [0u8; 128];
        attributes[..4].copy_from_slice(&6u32.to_ne_bytes()); // BPF_PROG_TYPE_XDP
        attributes[4..8].copy_from_slice(&2u32.to_ne_bytes());
        attributes[8..16].copy_from_slice(&(instructions.as_ptr() as u64).to_ne_bytes());
        attributes[16..24].copy_from_slice(&(license.as_ptr() as u64).to_ne_bytes());
        let fd = bpf(5, &mut attributes).context("load the empty program")?;
        // SAFETY: the kernel has just returned this descriptor to us alone.
        let program = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { program })
    }

    /// BPF_PROG_TEST_RUN by hand: aya runs only programs that it loaded.
    fn mean_ns(&self, frame: &[u8], repeat: u32) -> Result<f64> {
        let mut attributes = [0u8; 128];
        attributes[..4].copy_from_slice(&(self.program.as_raw_fd() as u32).to_ne_bytes());
        attributes[8..12].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        attributes[16..24].copy_from_slice(&(frame.as_ptr() as u64).to_ne_bytes());
        attributes[32..36].copy_from_slice(&repeat.to_ne_bytes());
        bpf(10, &mut attributes).context("run the empty program")?;
        let duration = [36, 37, 38, 39].map(|at| attributes[at]);
        Ok(f64::from(u32::from_ne_bytes(duration)))
    }

    /// Attaches it to a device, in its driver, as long as the returned link lives.
    fn attach(&self, ifindex: u32) -> Result<OwnedFd> {
        // BPF_LINK_CREATE: program, target, attach type BPF_XDP, flags XDP_FLAGS_DRV_MODE.
        let mut attributes = [0u8; 128];
        let fields = [self.program.as_raw_fd() as u32, ifindex, 37, 4];
        for (at, field) in fields.into_iter().enumerate() {
            attributes[at * 4..at * 4 + 4].copy_from_slice(&field.to_ne_bytes());
        }
        let fd = bpf(28, &mut attributes).context("attach a constant program")?;
        // SAFETY: the kernel has just returned this descriptor to us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// The bpf system call; the structure is an array of bytes because libc has none for it.
fn bpf(command: i32, attributes: &mut [u8; 128]) -> std::io::Result<i32> {
    // SAFETY: the pointer is valid for the length given, and the pointers within live in the caller.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            attributes.len(),
        )
    };
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}
