//! serde for what [`tracker_ebpf`] defines, which as kernel code knows nothing of it: one word each.

use std::borrow::Cow;

use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serializer};
use tracker_ebpf::{
    abi::Proof,
    verdict::{Cause, Verdict},
};

const PROOFS: [Proof; 2] = [Proof::Reply, Proof::Arrival];
const VERDICTS: [Verdict; 3] = [Verdict::Unknown, Verdict::Up, Verdict::Down];
const CAUSES: [Cause; 12] = Cause::ALL;

/// The cause that [`tracker_ebpf::abi::JudgeState::cause`] holds; what is no cause is as if nothing
/// had been said.
pub(crate) fn cause_from(value: u8) -> Cause {
    CAUSES.get(usize::from(value)).copied().unwrap_or_default()
}

macro_rules! word {
    ($module:ident, $type:ident, $all:ident) => {
        pub(crate) mod $module {
            use super::*;

            pub(crate) fn serialize<S: Serializer>(
                value: &$type,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(value.as_str())
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
                deserializer: D,
            ) -> Result<$type, D::Error> {
                let word = Cow::<'de, str>::deserialize(deserializer)?;
                let known = $all.iter().find(|value| value.as_str() == word);
                known.copied().ok_or_else(|| {
                    D::Error::invalid_value(Unexpected::Str(&word), &stringify!($type))
                })
            }
        }
    };
}
/// A verdict that may not be known.
pub(crate) mod known_verdict {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        value: &Option<Verdict>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => verdict::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Verdict>, D::Error> {
        // What is absent is the default, so what is there is a verdict.
        verdict::deserialize(deserializer).map(Some)
    }
}
word!(verdict, Verdict, VERDICTS);
word!(proof, Proof, PROOFS);
word!(cause, Cause, CAUSES);

#[cfg(test)]
mod tests {
    use super::*;

    /// Does not compile once there is a variant that the list may lack.
    fn position(cause: Cause) -> usize {
        match cause {
            Cause::NoReply => 0,
            Cause::Replied => 1,
            Cause::NextHopUnresolved => 2,
            Cause::InterfaceDown => 3,
            Cause::InterfaceMissing => 4,
            Cause::Unreachable => 5,
            Cause::Refused => 6,
            Cause::WrongPath => 7,
            Cause::Corrupt => 8,
            Cause::UnexpectedReply => 9,
            Cause::SendFailed => 10,
            Cause::Stalled => 11,
        }
    }

    #[test]
    fn every_cause_has_its_word() {
        for (index, known) in CAUSES.iter().enumerate() {
            assert_eq!(position(*known), index);
            assert_eq!(cause_from(*known as u8), *known);
            let mut json = serde_json::Deserializer::from_str("\"\"");
            assert!(cause::deserialize(&mut json).is_err());
            let text = format!("\"{}\"", known.as_str());
            let mut json = serde_json::Deserializer::from_str(&text);
            assert_eq!(cause::deserialize(&mut json).unwrap(), *known);
        }
    }
}
