//! `[hub]`.

use std::path::PathBuf;

use super::{
    Hub, ModeChoice,
    document::Section,
    keys::{self, Table},
    values::{absolute, checked_instance, checked_name, socket_address, socket_path},
};

/// Reads the table, or takes its defaults if there is none.
pub(super) fn read(section: Option<Section<'_>>) -> Hub {
    if let Some(section) = &section {
        section.only(Table::Hub);
    }
    let value = |key| section.as_ref().and_then(|section| section.entry(key));
    let name = value(&keys::HUB_NAME).and_then(|entry| entry.parsed("a name", checked_name));
    let instance =
        value(&keys::INSTANCE).and_then(|entry| entry.parsed("a name", checked_instance));
    let socket = value(&keys::SOCKET).and_then(|entry| entry.parsed("a path", socket_path));
    let metrics =
        value(&keys::METRICS).and_then(|entry| entry.parsed("an address and port", socket_address));
    let bpffs = value(&keys::BPFFS).and_then(|entry| entry.parsed("a path", absolute));
    let state = value(&keys::STATE).and_then(|entry| entry.parsed("a path", absolute));
    let socket_group =
        value(&keys::SOCKET_GROUP).and_then(|entry| entry.parsed("a name", checked_name));
    let mode = value(&keys::MODE).and_then(|entry| entry.word(ModeChoice::WORDS));
    let room = value(&keys::ROOM).and_then(|entry| entry.integer());
    let flap_window = value(&keys::FLAP_WINDOW).and_then(|entry| entry.duration());

    let instance = instance.map_or_else(
        || keys::INSTANCE.default_text().to_owned(),
        |instance| instance.value,
    );
    Hub {
        name: name.map_or_else(hostname, |name| name.value),
        socket: socket.map_or_else(
            || PathBuf::from(format!("/run/tracker/{instance}.sock")),
            |socket| socket.value,
        ),
        state: state.map_or_else(
            || PathBuf::from(format!("/var/lib/tracker/{instance}")),
            |state| state.value,
        ),
        socket_group: socket_group.map(|group| group.value),
        instance,
        metrics: metrics.map(|metrics| metrics.value),
        bpffs: bpffs.map_or_else(
            || PathBuf::from(keys::BPFFS.default_text()),
            |bpffs| bpffs.value,
        ),
        mode: mode.map_or_else(
            || keys::MODE.default_word(ModeChoice::WORDS),
            |mode| mode.value,
        ),
        room: room.map_or_else(|| keys::ROOM.default_integer(), |room| room.value),
        flap_window: flap_window.map_or_else(
            || keys::FLAP_WINDOW.default_duration(),
            |window| window.value,
        ),
    }
}

fn hostname() -> String {
    // What gethostname(2) answers in this UTS namespace, without a call into C.
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(name) if checked_name(name.trim()).is_ok() => name.trim().to_owned(),
        _ => "hub".to_owned(),
    }
}
