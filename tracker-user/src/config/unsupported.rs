//! What a configuration may ask for and this version does not do yet.
//!
//! Such a file is valid, so it is refused only after everything else about it was found right, and
//! plainly: doing something else instead would be worse. Doing one of these means deleting its line.

/// Key, value, and what there is instead.
const VALUES: &[(&str, &str, &str)] = &[
    ("probe", "udp", "only \"icmp\" is"),
    ("probe", "tcp", "only \"icmp\" is"),
    ("expect", "silence", "only \"reply\" is"),
    ("flow", "rotate", "only \"fixed\" is"),
    ("refused", "up", "only \"down\" is"),
];

/// Tables of the top level, and what to do.
const TABLES: &[(&str, &str)] = &[("steering", "delete it")];

/// Why `key = "value"` is refused, if it is.
pub(super) fn value(key: &str, value: &str) -> Option<String> {
    let (.., instead) = VALUES
        .iter()
        .find(|(known, unsupported, _)| (*known, *unsupported) == (key, value))?;
    Some(format!(
        "{key} = \"{value}\" is not supported by this version; {instead}"
    ))
}

/// Why the table `[name]` is refused, if it is.
pub(super) fn table(name: &str) -> Option<String> {
    let (_, instead) = TABLES.iter().find(|(known, _)| *known == name)?;
    Some(format!(
        "a [{name}] section is not supported by this version; {instead}"
    ))
}
