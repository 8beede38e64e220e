//! The eBPF object: its programs and maps, before they are used.

use std::io::ErrorKind;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, Pod,
    maps::{Map, ProgramArray},
    programs::{Program, ProgramError, SchedClassifier},
};
use nix::sys::signal::{SigSet, SigmaskHow};

use tracker_ebpf::abi;

use super::mmap::Mapped;

/// Takes a map out of the object.
pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .ok_or_else(|| anyhow!("the eBPF object has no map {name}"))
}

/// A map of the object as memory.
pub(super) fn mapped<T: Pod>(ebpf: &Ebpf, name: &str) -> Result<Mapped<T>> {
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

/// A program of the object.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// Names the programs of the receive programs' tail calls, which are loaded.
///
/// # Errors
/// As the kernel answers.
pub fn fill_segments(ebpf: &mut Ebpf) -> Result<()> {
    for (at, name) in (0..).zip(abi::program::SEGMENTS) {
        let called: &mut SchedClassifier = program(ebpf, name)?;
        let called = called.fd()?.try_clone()?;
        let map = ebpf.map_mut(abi::map::SEGMENTS);
        let map = map.ok_or_else(|| anyhow!("{} is not in the object", abi::map::SEGMENTS))?;
        ProgramArray::try_from(map)?
            .set(at, &called, 0)
            .with_context(|| format!("cannot write the map {}", abi::map::SEGMENTS))?;
    }
    Ok(())
}
