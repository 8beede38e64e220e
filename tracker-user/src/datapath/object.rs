//! The eBPF object: its programs and maps, before they are used.

use std::io::ErrorKind;

use aya::{
    Ebpf, Pod,
    maps::{Map, ProgramArray},
    programs::{Program, ProgramError, ProgramFd, SchedClassifier, SocketFilter},
};
use nix::sys::signal::{SigSet, SigmaskHow};

use tracker_ebpf::abi;

use super::{error::DatapathError, mmap::Mapped};

/// Takes a map out of the object.
pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, DatapathError> {
    ebpf.take_map(name)
        .ok_or_else(|| DatapathError::no_map(name))
}

/// A map of the object as memory.
pub(super) fn mapped<T: Pod>(ebpf: &Ebpf, name: &str) -> Result<Mapped<T>, DatapathError> {
    match ebpf.map(name) {
        Some(Map::Array(data)) => Mapped::new(data).map_err(|source| DatapathError::Memory {
            map: name.to_owned(),
            source,
        }),
        Some(_) => Err(DatapathError::NoArray(name.to_owned())),
        None => Err(DatapathError::no_map(name)),
    }
}

/// How often the verifier is asked again that was interrupted.
const LOAD_ATTEMPTS: u32 = 20;

/// Has the kernel take a program of the object. The verifier gives up with EAGAIN if a signal waits for the thread
/// (kernel/bpf/verifier.c, `do_check`), as SIGHUP would while a reload is under way: so none is let through meanwhile.
///
/// # Errors
/// When there is no such program, or the kernel refuses it.
pub fn load(ebpf: &mut Ebpf, name: &str) -> Result<(), DatapathError> {
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
    loaded.map_err(|source| DatapathError::Refused {
        program: name.to_owned(),
        source,
    })
}

/// A program of the object.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, DatapathError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| DatapathError::Missing {
            kind: "program",
            name: name.to_owned(),
        })?;
    Ok(program.try_into()?)
}

/// Names the programs of the receive programs' tail calls, which are loaded.
///
/// # Errors
/// As the kernel answers.
pub fn fill_segments(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    for (at, name) in (0..).zip(abi::program::SEGMENTS) {
        let called: &mut SchedClassifier = program(ebpf, name)?;
        let called = called.fd()?.try_clone()?;
        set_tail_call(ebpf, abi::map::SEGMENTS, at, &called)?;
    }
    Ok(())
}

/// Names the program of the tail call of the packet socket's filter, which is loaded.
///
/// # Errors
/// As the kernel answers.
pub fn fill_watched(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let called: &mut SocketFilter = program(ebpf, abi::program::WATCH_JUDGE)?;
    let called = called.fd()?.try_clone()?;
    set_tail_call(ebpf, abi::map::WATCHED, 0, &called)
}

fn set_tail_call(
    ebpf: &mut Ebpf,
    map: &'static str,
    at: u32,
    called: &ProgramFd,
) -> Result<(), DatapathError> {
    let programs = ebpf.map_mut(map).ok_or(DatapathError::NotInObject(map))?;
    ProgramArray::try_from(programs)?
        .set(at, called, 0)
        .map_err(|source| DatapathError::Write { map, source })
}
