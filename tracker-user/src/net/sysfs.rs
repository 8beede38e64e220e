//! A sysfs of the network namespace in which the daemon runs. The one at /sys shows the namespace of the process that mounted
//! it, which may have other interfaces of the same names. Reading it takes no RTNL.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint},
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

/// `FSOPEN_CLOEXEC` and `FSMOUNT_CLOEXEC` of linux/mount.h.
const CLOEXEC: c_uint = 1;
/// `FSCONFIG_CMD_CREATE`.
const CREATE: c_uint = 6;
/// `MOUNT_ATTR_RDONLY`, `_NOSUID`, `_NODEV` and `_NOEXEC`.
const ATTRIBUTES: c_uint = 0b1111;
/// More than any file that is read here has.
const FILE_MAX: u64 = 4_096;

/// A sysfs that is mounted nowhere: it has no path, and goes with its descriptor.
#[derive(Debug)]
pub struct Sysfs(OwnedFd);

impl Sysfs {
    /// That of the calling thread's network namespace (`fsopen`, Linux 5.2).
    ///
    /// # Errors
    /// As the kernel answers: EPERM without CAP_SYS_ADMIN, or if a container may not mount it.
    pub fn mount() -> io::Result<Self> {
        // SAFETY: a name that ends with zero; the descriptor that is returned has no other owner.
        let context = unsafe {
            call_fd(
                libc::SYS_fsopen,
                [c"sysfs".as_ptr() as usize, CLOEXEC as usize, 0],
            )
        }?;
        // SAFETY: a descriptor of a file system context; the command takes neither key nor value.
        let created = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                CREATE,
                ptr::null::<c_char>(),
                ptr::null::<c_char>(),
                0 as c_int,
            )
        };
        if created < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a system call whose arguments are numbers and whose result is checked.
        let mount = unsafe {
            let arguments = [
                context.as_raw_fd() as usize,
                CLOEXEC as usize,
                ATTRIBUTES as usize,
            ];
            call_fd(libc::SYS_fsmount, arguments)
        }?;
        Ok(Self(mount))
    }

    /// Opens a file of an interface below /sys/class/net, which shows that interface until it is deleted, whatever its name is
    /// later.
    ///
    /// # Errors
    /// ENODEV if there is no such interface, else as the kernel answers.
    pub fn open(&self, ifindex: u32, file: &str) -> io::Result<std::fs::File> {
        let name = nix::net::if_::if_indextoname(ifindex)?;
        let opened = self.file(&name, file)?;
        // The name may have become another interface's meanwhile.
        let mut index = String::new();
        self.file(&name, "ifindex")?
            .take(FILE_MAX)
            .read_to_string(&mut index)?;
        match index.trim().parse::<u32>() {
            Ok(index) if index == ifindex => Ok(opened),
            _ => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }

    fn file(&self, interface: &CStr, file: &str) -> io::Result<std::fs::File> {
        let mut path = b"class/net/".to_vec();
        path.extend(interface.to_bytes());
        path.push(b'/');
        path.extend(file.bytes());
        let path = CString::new(path)?;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(openat(self.0.as_fd(), path.as_c_str(), flags, Mode::empty())?.into())
    }
}

/// A system call that returns a new descriptor.
///
/// # Safety
/// The arguments must be valid for the call.
unsafe fn call_fd(number: libc::c_long, [a, b, c]: [usize; 3]) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for the arguments; the descriptor has no other owner.
    unsafe {
        let fd = libc::syscall(number, a, b, c);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd as c_int))
    }
}
