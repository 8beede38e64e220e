//! The Debian package and the container image, in a real Debian 12: what they install runs, an upgrade is no event, and a
//! removal leaves nothing. `cargo xtask test` makes what these tests install.

mod chroot;
mod container;
mod made;
mod systemd;
