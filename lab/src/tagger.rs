//! VLAN tags beside a packet's bytes, as network cards and the kernel put them: no context of a test run has room for
//! one (`convert___skb_to_skb` of Linux 6.18 wants zeros there), so a program of our own puts the tag there and then goes
//! on with the program under test.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use crate::bpf::{MapElement, PROG_TEST_RUN, TestRun, bpf, create_map, instruction, load};

/// Commands and constants of bpf(2), as in linux/bpf.h.
const MAP_UPDATE: libc::c_int = 2;
const MAP_TYPE_PROG_ARRAY: u32 = 3;
const PROG_TYPE_SCHED_CLS: u32 = 3;
/// Where `struct __sk_buff` has the mark and the first word of `cb`.
const MARK_AT: usize = 8;
const CB_AT: usize = 48;
const SKB_LEN: usize = 192;
/// What the run returns if the program under test was not reached: no action of TC.
const NOT_REACHED: i32 = 99;

/// A program that puts a tag beside a packet and has another one look at it.
#[derive(Debug)]
pub struct Tagger {
    program: OwnedFd,
    _table: OwnedFd,
}

impl Tagger {
    /// In front of a loaded classifier.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn new(classifier: BorrowedFd<'_>) -> io::Result<Self> {
        let table = create_map(MAP_TYPE_PROG_ARRAY, 4)?;
        let instructions = [
            instruction(0xbf, 0x16, 0, 0),                            // r6 = r1
            instruction(0x61, 0x63, CB_AT as i16, 0),                 // r3 = cb[0]
            instruction(0xb7, 0x02, 0, i32::from(0x8100u16.to_be())), // r2 = 802.1Q
            instruction(0x85, 0, 0, 18), // bpf_skb_vlan_push(r1, r2, r3)
            instruction(0xbf, 0x61, 0, 0), // r1 = r6
            instruction(0x18, 0x12, 0, table.as_raw_fd()), // r2 = table
            instruction(0, 0, 0, 0),     //   (second half)
            instruction(0xb7, 0x03, 0, 0), // r3 = 0
            instruction(0x85, 0, 0, 12), // bpf_tail_call(r1, r2, r3)
            instruction(0xb7, 0x00, 0, NOT_REACHED), // r0 = NOT_REACHED
            instruction(0x95, 0, 0, 0),  // return r0
        ];
        let program = load(PROG_TYPE_SCHED_CLS, &instructions)?;
        let (key, value) = (0u32, classifier.as_raw_fd());
        bpf(
            MAP_UPDATE,
            &mut MapElement {
                map: table.as_raw_fd() as u32,
                key: &raw const key as u64,
                value: &raw const value as u64,
                ..Default::default()
            },
        )?;
        Ok(Self {
            program,
            _table: table,
        })
    }

    /// Runs the classifier on a frame with a tag beside it: the action, and the frame.
    ///
    /// # Errors
    /// As the kernel answers, and if the classifier was not reached.
    pub fn run(&self, frame: &[u8], control: u16, mark: u32) -> io::Result<(i32, Vec<u8>)> {
        let mut context = [0u8; SKB_LEN];
        context[MARK_AT..MARK_AT + 4].copy_from_slice(&mark.to_ne_bytes());
        context[CB_AT..CB_AT + 4].copy_from_slice(&u32::from(control).to_ne_bytes());
        let mut out = vec![0; frame.len() + 256];
        let mut run = TestRun {
            program: self.program.as_raw_fd() as u32,
            data_size_in: frame.len() as u32,
            data_size_out: out.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            context_size_in: SKB_LEN as u32,
            context_in: context.as_ptr() as u64,
            ..Default::default()
        };
        bpf(PROG_TEST_RUN, &mut run)?;
        if run.returned as i32 == NOT_REACHED {
            return Err(io::Error::other("the program under test was not reached"));
        }
        out.truncate(run.data_size_out as usize);
        Ok((run.returned as i32, out))
    }
}
