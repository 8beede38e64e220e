//! Values of the configuration: names, addresses, paths, and lists of them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use super::{
    document::{At, Entry, Section},
    keys::{self, Key, NAME_MAX},
};

/// Names that must be unique, and where they were given.
#[derive(Default)]
pub(super) struct Names {
    places: HashMap<String, usize>,
}

impl Names {
    /// Whether there is such a name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Where a name stands.
    pub(super) fn at(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// All names.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Reads `name`, which must be there, well-formed and new.
    pub(super) fn read(&mut self, section: &Section<'_>, key: &'static Key, what: &str) -> String {
        let Some(entry) = section.required(key, "\"NAME\"") else {
            return String::new();
        };
        let Some(name) = entry.parsed("a name", checked_name) else {
            return String::new();
        };
        match self.places.get(&name.value) {
            Some(first) => entry.refuse(format_args!(
                "the {what} of {} has this name; give each its own",
                section.sink.place(*first)
            )),
            None => {
                self.places.insert(name.value.clone(), name.at);
            }
        }
        name.value
    }
}

/// The elements of a list; each must be valid and new.
pub(super) fn distinct<T: PartialEq>(
    entry: &Entry<'_>,
    wanted: &str,
    parse: impl Fn(&Entry<'_>) -> Option<At<T>>,
) -> Vec<T> {
    let mut values: Vec<T> = Vec::new();
    for element in entry.list(wanted) {
        let Some(parsed) = parse(&element) else {
            continue;
        };
        if values.contains(&parsed.value) {
            element.refuse("already in the list; delete one");
        } else {
            values.push(parsed.value);
        }
    }
    values
}

/// An address that a single host can have, and that can be reached over a wire.
pub(super) fn unicast(entry: &Entry<'_>) -> Option<At<IpAddr>> {
    let parsed = entry.parsed("an address in quotes", |text| {
        text.parse::<IpAddr>().map_err(|_| {
            let why = if text.contains('/') {
                "an address alone, without a prefix length"
            } else if text.contains('%') {
                "an address alone; name the interface by `interface`"
            } else {
                "an IPv4 or IPv6 address, such as \"192.0.2.9\" or \"2001:db8::9\""
            };
            format!("not an IP address; give {why}")
        })
    })?;
    match not_a_hosts(parsed.value) {
        None => Some(parsed),
        Some(why) => {
            entry.refuse(format_args!("{why}; give a unicast address of one host"));
            None
        }
    }
}

/// Why an address is none that a single host can have, if it is not.
pub(super) fn not_a_hosts(address: IpAddr) -> Option<&'static str> {
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("the broadcast address")
    } else if address.is_loopback() {
        Some("a loopback address, which never leaves a host")
    } else if mapped {
        Some("an IPv4 address written as IPv6")
    } else {
        None
    }
}

/// A name that can stand in a line of output, a path and a command without quoting.
pub(super) fn checked_name(text: &str) -> Result<String, String> {
    let wrong = |char: char| char.is_whitespace() || char.is_control() || char == '/';
    if text.is_empty() {
        Err("an empty name; give at least one character".to_owned())
    } else if text.len() > NAME_MAX {
        Err(format!(
            "longer than the {NAME_MAX} bytes a name can have; give a shorter one"
        ))
    } else if text.contains(wrong) {
        Err("a name has no spaces, control characters or '/'; leave them out".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Whether `text` can name an instance; the error says why not and what to do.
pub fn checked_instance(text: &str) -> Result<String, String> {
    let most = keys::INSTANCE.most();
    let allowed = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
    // It is a directory of the BPF file system, which refuses dots in names.
    if text.is_empty() || text.len() > most || text.starts_with('-') || !text.chars().all(allowed) {
        Err(format!(
            "not usable as a directory name in the BPF file system; give 1 to {most} letters, digits, '_' or '-', not '-' first"
        ))
    } else {
        Ok(text.to_owned())
    }
}

/// As the kernel judges it (`dev_valid_name`), but as long as an alternative name may be (`ALTIFNAMSIZ`).
pub(super) fn checked_interface(text: &str) -> Result<String, String> {
    let most = keys::INTERFACE.most();
    let wrong =
        |char: char| char.is_whitespace() || char.is_control() || char == '/' || char == ':';
    if text.is_empty() || text == "." || text == ".." {
        Err("not an interface name; give one that `ip link` shows".to_owned())
    } else if text.len() > most {
        Err(format!(
            "longer than the {most} bytes an interface's alternative name can have; give a name that `ip link` shows"
        ))
    } else if text.contains(wrong) {
        Err("an interface name has no spaces, control characters, '/' or ':'; give one that `ip link` shows".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') || text.contains(char::is_control) {
        return Err("not an absolute path; give one that begins with '/'".to_owned());
    }
    Ok(PathBuf::from(text))
}

pub(super) fn socket_path(text: &str) -> Result<PathBuf, String> {
    let most = keys::SOCKET.most();
    if text.len() > most {
        return Err(format!(
            "longer than the {most} bytes a socket's path can have; give a shorter one"
        ));
    }
    absolute(text)
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "not an address and port; give one such as \"127.0.0.1:9469\" or \"[::1]:9469\"".to_owned()
    })
}
