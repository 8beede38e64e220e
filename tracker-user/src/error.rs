//! How an error is printed: in one line, with its sources.

use std::{
    error::Error,
    fmt::{self, Display, Formatter},
};

/// An error that prints its sources too.
pub struct Full<'e>(&'e (dyn Error + 'static));

/// Prints an error with its sources in one line, outermost first: what was attempted, then why that failed. A typed error
/// prints its own text alone, also by `{:#}`.
pub fn full<'e>(error: &'e (dyn Error + 'static)) -> Full<'e> {
    Full(error)
}

impl Display for Full<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot open the door")]
        Door(#[source] Inner),
        #[error(transparent)]
        Window(Inner),
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot find the key")]
    struct Inner(#[source] std::io::Error);

    #[test]
    fn sources_are_printed_as_anyhow_prints_them() {
        let inner = || Inner(std::io::Error::from_raw_os_error(libc::ENOENT));
        for (error, text) in [
            (
                Outer::Door(inner()),
                "cannot open the door: cannot find the key: No such file or directory (os error 2)",
            ),
            (
                Outer::Window(inner()),
                "cannot find the key: No such file or directory (os error 2)",
            ),
        ] {
            assert_eq!(full(&error).to_string(), text);
            assert_eq!(format!("{:#}", anyhow::Error::new(error)), text);
        }
    }
}
