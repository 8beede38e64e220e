//! The real object in the real kernel, without anything attached: `BPF_PROG_TEST_RUN` runs one program on one frame, and
//! the maps tell what it did. A file of tests for each program; what they share is in [`fixtures`].

mod fixtures;
mod receive;
mod segments;
mod send;
mod steer;
mod tc_ip;
mod tc_receive;
mod tc_send;
mod watch;
