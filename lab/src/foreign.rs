//! Foreign eBPF programs, which are not Tracker's: they count the packets that they see, and let them pass.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bpf::{MapElement, bpf, create_map, instruction, load, owned};
use crate::netns::{BPFFS, Namespace, ensure_bpffs};
use crate::topology::Lab;

/// Commands and constants of bpf(2), as in linux/bpf.h.
const MAP_LOOKUP: libc::c_int = 1;
const OBJ_PIN: libc::c_int = 6;
const LINK_CREATE: libc::c_int = 28;
const MAP_TYPE_ARRAY: u32 = 2;

/// Where a program can be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// XDP, which passes everything on.
    Xdp,
    /// TC, classic filter or TCX, which leaves the decision to the next.
    Tc,
    /// TC at egress: as [`Hook::Tc`], but the program sees IPv4 echo replies only, and puts them into a VLAN by this tag
    /// control information.
    Tag(u16),
}

/// Instructions that leave the program, by the exit code at its end, if a packet is no IPv4 echo reply. `rest` is how
/// many instructions of the program follow these.
fn only_echo_replies(rest: i16) -> Vec<u64> {
    vec![
        instruction(0xb7, 0x02, 0, 12),       // r2 = 12: the EtherType
        instruction(0xbf, 0xa3, 0, 0),        // r3 = r10
        instruction(0x07, 0x03, 0, -32),      // r3 += -32
        instruction(0xb7, 0x04, 0, 23),       // r4 = 23: up to the ICMP type
        instruction(0x85, 0, 0, 26),          // r0 = bpf_skb_load_bytes(r1, r2, r3, r4)
        instruction(0x55, 0x00, rest + 6, 0), // if r0 != 0 leave
        instruction(0x69, 0xa0, -32, 0),      // r0 = *(u16 *)(r10 - 32)
        instruction(0x55, 0x00, rest + 4, i32::from(0x0800u16.to_be())), // if r0 != IPv4 leave
        instruction(0x71, 0xa0, -21, 0),      // r0 = *(u8 *)(r10 - 21)
        instruction(0x55, 0x00, rest + 2, 1), // if r0 != ICMP leave
        instruction(0x71, 0xa0, -10, 0),      // r0 = *(u8 *)(r10 - 10)
        instruction(0x55, 0x00, rest, 0),     // if r0 != echo reply leave
    ]
}

/// Instructions that put the packet into a VLAN.
fn push_tag(control: u16) -> Vec<u64> {
    vec![
        instruction(0xbf, 0x61, 0, 0),                            // r1 = r6
        instruction(0xb7, 0x02, 0, i32::from(0x8100u16.to_be())), // r2 = 802.1Q
        instruction(0xb7, 0x03, 0, i32::from(control)),           // r3 = control
        instruction(0x85, 0, 0, 18),                              // bpf_skb_vlan_push(r1, r2, r3)
    ]
}

/// A TCX hook (Linux 6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tcx {
    /// `BPF_TCX_INGRESS`.
    Ingress = 46,
    /// `BPF_TCX_EGRESS`.
    Egress = 47,
}

/// A loaded and pinned program with its counter; dropped, its pin goes, and what holds it attached decides.
#[derive(Debug)]
pub struct Foreign {
    program: OwnedFd,
    counter: OwnedFd,
    pin: PathBuf,
}

#[repr(C)]
#[derive(Default)]
struct ObjPin {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

impl Foreign {
    /// Loads a program and pins it, among what the lab's owner leaves when it is killed.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn new(lab: &Lab, hook: Hook, name: &str) -> Result<Self> {
        ensure_bpffs()?;
        let counter = create_map(MAP_TYPE_ARRAY, 8).context("make a map")?;
        let (prog_type, result) = match hook {
            Hook::Xdp => (6, 2),                // BPF_PROG_TYPE_XDP, XDP_PASS
            Hook::Tc | Hook::Tag(_) => (3, -1), // BPF_PROG_TYPE_SCHED_CLS, TC_ACT_UNSPEC
        };
        let count = [
            instruction(0x62, 0x0a, -4, 0), // *(u32 *)(r10 - 4) = 0
            instruction(0xbf, 0xa2, 0, 0),  // r2 = r10
            instruction(0x07, 0x02, 0, -4), // r2 += -4
            instruction(0x18, 0x11, 0, counter.as_raw_fd()), // r1 = counter
            instruction(0, 0, 0, 0),        //   (second half)
            instruction(0x85, 0, 0, 1),     // r0 = bpf_map_lookup_elem(r1, r2)
            instruction(0x15, 0x00, 2, 0),  // if r0 == 0 skip 2
            instruction(0xb7, 0x01, 0, 1),  // r1 = 1
            instruction(0xdb, 0x10, 0, 0),  // lock *(u64 *)r0 += r1
        ];
        let leave = [
            instruction(0xb7, 0x00, 0, result), // r0 = result
            instruction(0x95, 0, 0, 0),         // exit
        ];
        let mut instructions = vec![instruction(0xbf, 0x16, 0, 0)]; // r6 = r1
        match hook {
            Hook::Xdp | Hook::Tc => instructions.extend(count),
            Hook::Tag(control) => {
                let tag = push_tag(control);
                instructions.extend(only_echo_replies((count.len() + tag.len()) as i16));
                instructions.extend(count);
                instructions.extend(tag);
            }
        }
        instructions.extend(leave);
        let program = load(prog_type, &instructions).context("load a program")?;
        let directory = Path::new(BPFFS)
            .join("tracker")
            .join(format!("{}-foreign", lab.id()));
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let pin = directory.join(name);
        let path = std::ffi::CString::new(pin.as_os_str().as_encoded_bytes())?;
        let mut request = ObjPin {
            path: path.as_ptr() as u64,
            fd: program.as_raw_fd() as u32,
            flags: 0,
        };
        bpf(OBJ_PIN, &mut request).with_context(|| format!("pin {}", pin.display()))?;
        Ok(Self {
            program,
            counter,
            pin,
        })
    }

    /// Its pin, for `ip link set ... xdp pinned PATH` and `tc filter add ... bpf direct-action pinned PATH`.
    #[must_use]
    pub fn pin(&self) -> std::path::Display<'_> {
        self.pin.display()
    }

    /// How many packets it has seen.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn seen(&self) -> Result<u64> {
        let (key, mut value) = (0u32, 0u64);
        let mut lookup = MapElement {
            map: self.counter.as_raw_fd() as u32,
            key: std::ptr::from_ref(&key) as u64,
            value: std::ptr::from_mut(&mut value) as u64,
            ..Default::default()
        };
        bpf(MAP_LOOKUP, &mut lookup).context("read the counter")?;
        Ok(value)
    }

    /// Attaches it after whatever is at a TCX hook, until the result is dropped; none before Linux 6.6, which has no
    /// such hook.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn attach_tcx(
        &self,
        hub: &Namespace,
        interface: &str,
        hook: Tcx,
    ) -> Result<Option<OwnedFd>> {
        hub.enter(|| {
            let ifindex = nix::net::if_::if_nametoindex(interface)?;
            let mut create = LinkCreate {
                program: self.program.as_raw_fd() as u32,
                ifindex,
                attach_type: hook as u32,
                flags: 0,
            };
            match bpf(LINK_CREATE, &mut create) {
                Ok(link) => Ok(Some(owned(link))),
                // Of a kernel that does not know the attach type.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
                Err(error) => {
                    Err(error).with_context(|| format!("attach to {interface} at {hook:?}"))
                }
            }
        })
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It may be swept already.
        let _ = fs::remove_file(&self.pin);
    }
}
