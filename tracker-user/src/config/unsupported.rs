//! What a configuration may ask for and this version does not do yet.
//!
//! Such a file is valid, so it is refused only after everything else about it was found right, and
//! plainly: doing something else instead would be worse. Doing one of these means deleting its line.

/// Key, value, and what there is instead.
const VALUES: &[(&str, &str, &str)] = &[("refused", "up", "only \"down\" is")];

/// Why `key = "value"` is refused, if it is.
pub(super) fn value(key: &str, value: &str) -> Option<String> {
    let (.., instead) = VALUES
        .iter()
        .find(|(known, unsupported, _)| (*known, *unsupported) == (key, value))?;
    Some(format!(
        "{key} = \"{value}\" is not supported by this version; {instead}"
    ))
}
