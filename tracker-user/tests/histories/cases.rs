//! Every history there is up to a length, where each probe is one of a few things: a proof by cases.

use tracker_ebpf::{
    abi::Tracker,
    verdict::{Rules, Verdict},
    window::Worth,
};
use tracker_user::detector::{schedule::Turn, tracker::TrackerAccount};

use super::spec::Record;

const MS: u64 = 1_000_000;
const INTERVAL_NS: u64 = 10 * MS;
const TIMEOUT_NS: u64 = 5 * MS;

/// What becomes of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    Reply,
    Loss,
    Duplicate,
    Late,
    Skip,
}

struct Walk<'a> {
    alphabet: &'a [Case],
    length: usize,
    record: Record,
    tracker: Tracker,
    path: Vec<Case>,
    count: u64,
}

/// Walks all histories; says how many there were.
pub fn walk(rules: Rules, alphabet: &[Case], length: usize) -> u64 {
    let mut walk = Walk {
        alphabet,
        length,
        record: Record::new(rules, false),
        tracker: Tracker {
            timeout_ns: TIMEOUT_NS,
            ..Tracker::default()
        },
        path: Vec::new(),
        count: 0,
    };
    walk.go(TrackerAccount::new(rules, false, INTERVAL_NS, 0, None), 0);
    walk.count
}

impl Walk<'_> {
    fn go(&mut self, account: TrackerAccount, word: u64) {
        if self.path.len() == self.length {
            return;
        }
        for case in self.alphabet {
            self.path.push(*case);
            let (sent, answered) = (self.record.sent, self.record.answered);
            let (account, word) = self.step(*case, account, word);
            self.count += 1;
            let wanted = self.record.verdict(self.record.decided());
            let got = account.machine().verdict();
            let rules = self.record.rules;
            assert_eq!(got, wanted, "{rules:?}: {:?}", self.path);
            self.go(account, word);
            self.path.pop();
            (self.record.sent, self.record.over, self.record.answered) = (sent, sent, answered);
        }
    }

    fn step(
        &mut self,
        case: Case,
        mut account: TrackerAccount,
        mut word: u64,
    ) -> (TrackerAccount, u64) {
        let now_ns = 1_000 * MS + self.path.len() as u64 * INTERVAL_NS;
        if case == Case::Skip {
            assert!(!account.turn(Turn::Skip(1), true, now_ns, 0));
            assert_eq!(account.take_change(), None);
            return (account, word);
        }
        assert!(account.turn(Turn::Take, true, now_ns, 0));
        self.record.sent += 1;
        let sequence = self.record.sent as u64;
        assert!(account.was_sent(sequence));
        let verdict = account.machine().verdict() as u8;
        let rtt_ns = match case {
            Case::Late => TIMEOUT_NS + 1,
            _ => TIMEOUT_NS,
        };
        let mut arrive = || {
            self.tracker
                .admit(sequence, now_ns, now_ns + rtt_ns, |_, bit| {
                    let was_set = word & bit != 0;
                    word |= bit;
                    Some(was_set)
                })
        };
        let worth = match case {
            Case::Loss | Case::Skip => None,
            Case::Reply | Case::Late => Some(arrive()),
            Case::Duplicate => {
                let first = arrive();
                assert_eq!(arrive(), Worth::Duplicate);
                Some(first)
            }
        };
        let is_replied = |sequence: u64| word >> (sequence & 63) & 1 == 1;
        if matches!(worth, Some(Worth::Counts { .. })) {
            self.record.answered |= 1 << (sequence - 1);
            if self.tracker.reports(verdict) {
                account.early(sequence, now_ns + rtt_ns, is_replied);
                account.take_change();
            }
        }
        self.record.over = self.record.sent;
        let judged = account.judge(is_replied(sequence), false, now_ns);
        if let Some(claim) = judged.claim {
            account.conclude(claim, true, &Default::default());
        }
        if account
            .take_change()
            .is_some_and(|change| change.misses_replies)
        {
            assert!(
                !account.catch_up(now_ns, is_replied),
                "nothing is under way"
            );
        }
        let is_down = account.machine().verdict() == Verdict::Down;
        assert!(!is_down || case != Case::Reply || account.judge_state().lost > 0);
        (account, word)
    }
}
