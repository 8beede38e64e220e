//! Elements of a map of nftables: one for each bucket, so that flows that fall into buckets by a hash go to members by their weights.
//!
//! The map and the rules around it are the operator's. Elements are changed by `nft -j`, all in one transaction; those of this program
//! have a comment that says so, and others are left alone.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    process::Stdio,
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::{
    io::AsyncWriteExt as _,
    process::Command,
    sync::watch,
    time::{Instant, timeout},
};

use crate::{config::MapName, error::full, host::repeats};

/// The comment of elements that are ours.
const COMMENT: &str = "tracker";
/// How long `nft` may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often what the map has is looked at although nothing changed.
const AUDIT: Duration = Duration::from_secs(5);
/// Shortest time between two runs.
const REST: Duration = Duration::from_millis(100);
/// The first and the longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Why a map is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program cannot be run.
    #[error("cannot run nft; install nftables")]
    Run(#[source] std::io::Error),
    /// The program does not end.
    #[error("nft did not end within {} s", PATIENCE.as_secs())]
    Late,
    /// The program refuses.
    #[error("nft cannot {attempt} {map}: {why}")]
    Refused {
        /// What was attempted.
        attempt: &'static str,
        /// The map.
        map: MapName,
        /// What it says.
        why: String,
    },
    /// What the program prints makes no sense.
    #[error("cannot understand nft's list of {map}")]
    Garbled {
        /// The map.
        map: MapName,
        /// Why.
        source: serde_json::Error,
    },
    /// The map cannot have what it should.
    #[error("{0}")]
    Unfit(String),
}

/// What a bucket may lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// What it is called.
    pub name: String,
    /// Its address.
    pub endpoint: IpAddr,
    /// Its mark, if it has one.
    pub mark: Option<u32>,
    /// Its share.
    pub weight: u16,
}

/// What a map is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What it has.
    Keep,
    /// No element of ours.
    Nothing,
    /// Buckets that lead to these.
    Shares(Vec<Share>),
}

/// A map to be kept.
#[derive(Clone, Debug)]
pub struct Map {
    /// Name of the action.
    pub action: String,
    /// The map.
    pub name: MapName,
    /// How many elements it has.
    pub buckets: u16,
    /// How long they live unless they are renewed.
    pub lease: Option<Duration>,
}

/// The value of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Value {
    Mark(u32),
    Address(IpAddr),
}

impl Value {
    fn json(self) -> Json {
        match self {
            Self::Mark(mark) => json!(mark),
            Self::Address(address) => json!(address.to_string()),
        }
    }

    fn of(json: &Json) -> Option<Self> {
        match json {
            Json::Number(number) => Some(Self::Mark(number.as_u64()?.try_into().ok()?)),
            Json::String(text) => Some(Self::Address(text.parse().ok()?)),
            _ => None,
        }
    }
}

/// An element as the kernel has it.
#[derive(Clone, Debug, PartialEq)]
struct Element {
    value: Option<Value>,
    /// As `nft` prints it.
    json: Json,
    is_ours: bool,
    /// How long it still lives.
    expires: Option<Duration>,
}

/// A map as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Listed {
    /// Type of its keys, and of its values.
    types: (String, String),
    has_timeout: bool,
    elements: BTreeMap<u32, Element>,
}

/// How elements change.
#[derive(Clone, Debug, Default, PartialEq)]
struct Change {
    delete: Vec<(u32, Json)>,
    add: Vec<(u32, Value)>,
    /// How many buckets lead elsewhere than before.
    moved: usize,
}

impl Change {
    fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.add.is_empty()
    }

    /// The transaction, as `nft -j` reads it.
    fn json(&self, map: &Map) -> Json {
        let element = |elements: Vec<Json>| {
            let MapName {
                family,
                table,
                name,
            } = &map.name;
            json!({"element": {"family": family, "table": table, "name": name, "elem": elements}})
        };
        let mut commands = Vec::new();
        if !self.delete.is_empty() {
            let old = self.delete.iter().map(|(key, value)| json!([key, value]));
            commands.push(json!({"delete": element(old.collect())}));
        }
        if !self.add.is_empty() {
            let new = self.add.iter().map(|(key, value)| {
                let mut inner = json!({"val": key, "comment": COMMENT});
                if let Some(lease) = map.lease {
                    inner["timeout"] = json!(lease.as_secs().max(1));
                }
                json!([{"elem": inner}, value.json()])
            });
            commands.push(json!({"add": element(new.collect())}));
        }
        json!({"nftables": commands})
    }
}

/// Which of the buckets lead to which share: as many as its weight says, and as few as possible elsewhere than before.
fn assign(before: &[Option<usize>], weights: &[u16]) -> Vec<usize> {
    let quotas = quotas(before.len(), weights);
    let mut left = quotas;
    let mut buckets: Vec<Option<usize>> = Vec::with_capacity(before.len());
    for share in before {
        let kept = share.filter(|share| left.get(*share).is_some_and(|left| *left > 0));
        if let Some(share) = kept {
            left[share] -= 1;
        }
        buckets.push(kept);
    }
    let mut next = 0;
    let filled = buckets.into_iter().map(|share| {
        share.unwrap_or_else(|| {
            while left.get(next) == Some(&0) {
                next += 1;
            }
            if let Some(left) = left.get_mut(next) {
                *left -= 1;
            }
            next.min(weights.len().saturating_sub(1))
        })
    });
    filled.collect()
}

/// How many of the buckets each share gets: by the largest remainders (Hamilton), the first of equal ones.
fn quotas(buckets: usize, weights: &[u16]) -> Vec<usize> {
    let sum: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
    let sum = sum.max(1);
    let exact = weights.iter().map(|weight| buckets * usize::from(*weight));
    let mut quotas: Vec<usize> = exact.clone().map(|exact| exact / sum).collect();
    let given: usize = quotas.iter().sum();
    let mut rest: Vec<(usize, usize)> = exact.map(|exact| exact % sum).zip(0..).collect();
    rest.sort_by_key(|(remainder, at)| (std::cmp::Reverse(*remainder), *at));
    let more = buckets.saturating_sub(given);
    for (_, at) in rest.into_iter().cycle().take(more) {
        quotas[at] += 1;
    }
    quotas
}

/// What is to change in a map.
///
/// # Errors
/// When the map cannot have what it should.
fn change(map: &Map, listed: &Listed, wanted: &Wanted) -> Result<Change, NftError> {
    let unfit = |text: String| Err(NftError::Unfit(format!("map {}: {text}", map.name)));
    let (key, value) = (&listed.types.0, &listed.types.1);
    let ours = |element: &Element| element.is_ours;
    let shares = match wanted {
        Wanted::Keep => return Ok(Change::default()),
        Wanted::Nothing => {
            let old = listed.elements.iter().filter(|(_, one)| ours(one));
            let delete: Vec<_> = old.map(|(key, one)| (*key, one.json.clone())).collect();
            return Ok(Change {
                moved: delete.len(),
                delete,
                add: Vec::new(),
            });
        }
        Wanted::Shares(shares) => shares,
    };
    if !matches!(key.as_str(), "mark" | "integer") {
        return unfit(format!(
            "its keys are of type {key}, not numbers; make it with `type mark : {value}`"
        ));
    }
    if map.lease.is_some() && !listed.has_timeout {
        return unfit("`lease` needs a map with `flags timeout`; make it with that".to_owned());
    }
    let mut values = Vec::with_capacity(shares.len());
    for share in shares {
        values.push(match (value.as_str(), share.endpoint, share.mark) {
            ("mark", _, Some(mark)) => Value::Mark(mark),
            ("mark", _, None) => {
                return unfit(format!(
                    "its values are marks, and {} has none; give it one by `mark`",
                    share.name
                ));
            }
            ("ipv4_addr", IpAddr::V4(_), _) | ("ipv6_addr", IpAddr::V6(_), _) => {
                Value::Address(share.endpoint)
            }
            ("ipv4_addr" | "ipv6_addr", endpoint, _) => {
                return unfit(format!(
                    "its values are of type {value}, and {} is {endpoint}; make a map for each family",
                    share.name
                ));
            }
            _ => {
                return unfit(format!(
                    "its values are of type {value}; make it with `type {key} : mark` or `type {key} : ipv4_addr`"
                ));
            }
        });
    }
    let places: HashMap<Value, usize> = values.iter().copied().zip(0..).collect();
    let buckets = u32::from(map.buckets);
    if let Some((key, _)) = listed.elements.range(..buckets).find(|(_, one)| !ours(one)) {
        return unfit(format!(
            "element {key} is another program's; delete it, or give the action a map of its own"
        ));
    }
    let before: Vec<Option<usize>> = (0..buckets)
        .map(|key| places.get(&listed.elements.get(&key)?.value?).copied())
        .collect();
    let weights: Vec<u16> = shares.iter().map(|share| share.weight).collect();
    let after = assign(&before, &weights);
    let mut change = Change::default();
    for (key, share) in (0..buckets).zip(&after) {
        let old = listed.elements.get(&key);
        let value = values[*share];
        let is_same = old.is_some_and(|old| old.value == Some(value));
        let is_fresh = match (map.lease, old.and_then(|old| old.expires)) {
            (None, expires) => expires.is_none(),
            (Some(lease), Some(expires)) => expires * 2 > lease,
            (Some(_), None) => false,
        };
        if is_same && is_fresh {
            continue;
        }
        change.moved += usize::from(!is_same);
        change.delete.extend(old.map(|old| (key, old.json.clone())));
        change.add.push((key, value));
    }
    // Those of more buckets than there are now.
    let more = listed.elements.range(buckets..);
    let more = more.filter(|(_, one)| ours(one));
    change
        .delete
        .extend(more.map(|(key, one)| (*key, one.json.clone())));
    Ok(change)
}

/// Reads what `nft -j list map` prints.
fn listed(text: &[u8]) -> Result<Listed, serde_json::Error> {
    #[derive(Deserialize)]
    struct Document {
        nftables: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        map: Option<TheMap>,
    }
    #[derive(Deserialize)]
    struct TheMap {
        #[serde(default, rename = "type")]
        key: Json,
        #[serde(default, rename = "map")]
        value: Json,
        #[serde(default)]
        flags: Json,
        #[serde(default)]
        elem: Vec<(Json, Json)>,
    }
    let document: Document = serde_json::from_slice(text)?;
    let Some(map) = document.nftables.into_iter().find_map(|item| item.map) else {
        return Ok(Listed::default());
    };
    let word = |json: Json| match json {
        Json::String(text) => text,
        other => other.to_string(),
    };
    let elements = map.elem.into_iter().filter_map(|(key, value)| {
        let inner = key.get("elem");
        let number = match inner {
            Some(inner) => inner["val"].as_u64(),
            None => key.as_u64(),
        };
        let of = |name: &str| inner.and_then(|inner| inner.get(name));
        let element = Element {
            value: Value::of(&value),
            json: value,
            is_ours: of("comment").and_then(Json::as_str) == Some(COMMENT),
            expires: of("expires")
                .and_then(Json::as_u64)
                .map(Duration::from_secs),
        };
        Some((u32::try_from(number?).ok()?, element))
    });
    Ok(Listed {
        elements: elements.collect(),
        types: (word(map.key), word(map.value)),
        has_timeout: map.flags.to_string().contains("\"timeout\""),
    })
}

/// Runs `nft` and returns what it prints.
async fn nft(
    arguments: &[&str],
    input: Option<String>,
    attempt: &'static str,
    map: &MapName,
) -> Result<Vec<u8>, NftError> {
    let run = async {
        let mut child = Command::new("nft")
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(NftError::Run)?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // What it does not read, it says nothing about.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await.map_err(NftError::Run)
    };
    let output = timeout(PATIENCE, run).await.map_err(|_| NftError::Late)??;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.lines().next().unwrap_or("it does not say why");
    Err(NftError::Refused {
        attempt,
        map: map.clone(),
        why: why.to_owned(),
    })
}

async fn list(map: &MapName) -> Result<Listed, NftError> {
    let arguments = ["-j", "list", "map", &map.family, &map.table, &map.name];
    let text = nft(&arguments, None, "list", map).await?;
    listed(&text).map_err(|source| NftError::Garbled {
        map: map.clone(),
        source,
    })
}

/// Brings a map in line once; returns how many buckets lead elsewhere than before.
///
/// # Errors
/// When the map is not there, is of other types, or `nft` refuses.
pub async fn apply(map: &Map, wanted: &Wanted) -> Result<usize, NftError> {
    let change = change(map, &list(&map.name).await?, wanted)?;
    if !change.is_empty() {
        let input = change.json(map).to_string();
        nft(&["-j", "-f", "-"], Some(input), "change", &map.name).await?;
    }
    Ok(change.moved)
}

/// How many buckets of a map would lead elsewhere.
///
/// # Errors
/// As [`apply`].
pub async fn would(map: &Map, wanted: &Wanted) -> Result<usize, NftError> {
    Ok(change(map, &list(&map.name).await?, wanted)?.moved)
}

/// Keeps a map as it is wanted, until the sender of what is wanted is gone.
pub async fn keep(map: Map, mut wanted: watch::Receiver<Wanted>) {
    let mut pause = PAUSE.0;
    let audit = map.lease.map_or(AUDIT, |lease| AUDIT.min(lease / 4));
    let mut next = Instant::now();
    let mut earliest = next;
    loop {
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(next) => {}
        }
        tokio::time::sleep_until(earliest).await;
        let now = wanted.borrow_and_update().clone();
        if now == Wanted::Keep {
            next = Instant::now() + audit;
            continue;
        }
        let result = apply(&map, &now).await;
        earliest = Instant::now() + REST;
        match result {
            Ok(0) => {
                pause = PAUSE.0;
                next = Instant::now() + audit;
            }
            Ok(moved) => {
                pause = PAUSE.0;
                next = Instant::now() + audit;
                tracing::info!(
                    "action {}: map {} leads to {}, {moved} of {} buckets moved",
                    map.action,
                    map.name,
                    described(&now),
                    map.buckets
                );
            }
            Err(error) => {
                next = Instant::now() + pause;
                repeats::log(
                    tracing::Level::ERROR,
                    &map.action,
                    format_args!(
                        "action {}: {}; trying again in {} ms",
                        map.action,
                        full(&error),
                        pause.as_millis()
                    ),
                );
                pause = (pause * 2).min(PAUSE.1);
                earliest = next;
            }
        }
    }
}

/// Where a map leads, in words.
pub fn described(wanted: &Wanted) -> String {
    match wanted {
        Wanted::Keep => "what it has".to_owned(),
        Wanted::Nothing => "nothing".to_owned(),
        Wanted::Shares(shares) => {
            let names: Vec<&str> = shares.iter().map(|share| share.name.as_str()).collect();
            names.join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(buckets: u16, lease: Option<u64>) -> Map {
        Map {
            action: "x".to_owned(),
            name: MapName {
                family: "inet".to_owned(),
                table: "steer".to_owned(),
                name: "members".to_owned(),
            },
            buckets,
            lease: lease.map(Duration::from_secs),
        }
    }

    fn share(number: u8, weight: u16) -> Share {
        Share {
            name: format!("fw-{number}/active"),
            endpoint: [10, 9, number, 2].into(),
            mark: Some(number.into()),
            weight,
        }
    }

    fn of(types: (&str, &str), elements: &[(u32, Value, bool)]) -> Listed {
        let elements = elements.iter().map(|(key, value, is_ours)| {
            let element = Element {
                value: Some(*value),
                json: value.json(),
                is_ours: *is_ours,
                expires: None,
            };
            (*key, element)
        });
        Listed {
            types: (types.0.to_owned(), types.1.to_owned()),
            has_timeout: false,
            elements: elements.collect(),
        }
    }

    proptest! {
        /// Each share has as many buckets as its weight says, give or take one, and no bucket moves that need not.
        #[test]
        fn shares_are_exact_and_moves_are_few(
            first in proptest::collection::vec(1_u16..20, 1..6),
            second in proptest::collection::vec(1_u16..20, 1..6),
            buckets in 1_usize..300,
        ) {
            let mut before = vec![None; buckets];
            for weights in [&first, &second] {
                let after = assign(&before, weights);
                prop_assert_eq!(after.len(), buckets);
                let sum: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
                let mut counts = vec![0; weights.len()];
                for share in &after {
                    counts[*share] += 1;
                }
                let mut needed = 0;
                for (at, weight) in weights.iter().enumerate() {
                    let exact = buckets * usize::from(*weight);
                    prop_assert!(counts[at] * sum <= exact + sum && exact <= counts[at] * sum + sum);
                    let had = before.iter().filter(|share| **share == Some(at)).count();
                    needed += counts[at].saturating_sub(had);
                }
                let moved = before.iter().zip(&after).filter(|(old, new)| **old != Some(**new)).count();
                prop_assert_eq!(moved, needed);
                before = after.into_iter().map(Some).collect();
            }
        }
    }

    #[test]
    fn a_list_of_nft_is_read() {
        let text = br#"{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"map": {"family": "inet", "name": "fw",
            "table": "steer", "type": "mark", "handle": 2, "map": "mark", "flags": ["timeout"], "elem": [[0, 7],
            [{"elem": {"val": 1, "timeout": 10, "expires": 9, "comment": "tracker"}}, 8]]}}]}"#;
        let read = listed(text).unwrap();
        assert!(read.has_timeout);
        assert_eq!(read.types, ("mark".to_owned(), "mark".to_owned()));
        let elements = &read.elements;
        assert!(!elements[&0].is_ours && elements[&1].is_ours);
        assert_eq!(elements[&1].value, Some(Value::Mark(8)));
        assert_eq!(elements[&1].expires, Some(Duration::from_secs(9)));
        assert_eq!(listed(b"{\"nftables\":[]}").unwrap(), Listed::default());
        assert!(listed(b"x").is_err());
    }

    #[test]
    fn a_change_is_one_transaction_of_what_differs() {
        let map = map(4, None);
        let both = Wanted::Shares(vec![share(1, 1), share(2, 1)]);
        let empty = of(("mark", "ipv4_addr"), &[]);
        let first = change(&map, &empty, &both).unwrap();
        assert_eq!(
            (first.delete.len(), first.add.len(), first.moved),
            (0, 4, 4)
        );
        let [one, two] = [1, 2].map(|number| Value::Address([10, 9, number, 2].into()));
        let there = of(
            ("mark", "ipv4_addr"),
            &[
                (0, one, true),
                (1, one, true),
                (2, two, true),
                (3, two, true),
                (4, two, true),
            ],
        );
        let rest = change(&map, &there, &both).unwrap();
        assert_eq!((rest.delete.len(), rest.add.len(), rest.moved), (1, 0, 0));
        let second = change(&map, &there, &Wanted::Shares(vec![share(2, 1)])).unwrap();
        assert_eq!(second.moved, 2);
        let json = second.json(&map);
        let expected = json!({"nftables": [
            {"delete": {"element": {"family": "inet", "table": "steer", "name": "members",
                "elem": [[0, "10.9.1.2"], [1, "10.9.1.2"], [4, "10.9.2.2"]]}}},
            {"add": {"element": {"family": "inet", "table": "steer", "name": "members", "elem": [
                [{"elem": {"val": 0, "comment": "tracker"}}, "10.9.2.2"],
                [{"elem": {"val": 1, "comment": "tracker"}}, "10.9.2.2"]]}}}]});
        assert_eq!(json, expected);
        let nothing = change(&map, &there, &Wanted::Nothing).unwrap();
        assert_eq!((nothing.delete.len(), nothing.add.len()), (5, 0));
        assert!(change(&map, &there, &Wanted::Keep).unwrap().is_empty());
    }

    #[test]
    fn a_map_that_does_not_fit_is_refused_with_what_to_do() {
        let wanted = Wanted::Shares(vec![share(1, 1)]);
        let mark = Value::Mark(3);
        let v6 = Wanted::Shares(vec![Share {
            endpoint: "2001:db8::2".parse().unwrap(),
            mark: None,
            ..share(1, 1)
        }]);
        for (listed, lease, wanted, expected) in [
            (of(("ipv4_addr", "mark"), &[]), None, &wanted, "not numbers"),
            (
                of(("mark", "verdict"), &[]),
                None,
                &wanted,
                "of type verdict",
            ),
            (
                of(("mark", "mark"), &[]),
                Some(30),
                &wanted,
                "flags timeout",
            ),
            (
                of(("mark", "mark"), &[(3, mark, false)]),
                None,
                &wanted,
                "element 3 is another program's",
            ),
            (
                of(("mark", "mark"), &[]),
                None,
                &v6,
                "give it one by `mark`",
            ),
            (
                of(("mark", "ipv4_addr"), &[]),
                None,
                &v6,
                "a map for each family",
            ),
        ] {
            let error = change(&map(4, lease), &listed, wanted).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with("map inet steer members: ") && text.contains(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn elements_are_renewed_before_their_lease_ends() {
        let map = map(2, Some(30));
        let wanted = Wanted::Shares(vec![share(1, 1)]);
        let mut there = of(
            ("mark", "mark"),
            &[(0, Value::Mark(1), true), (1, Value::Mark(1), true)],
        );
        there.has_timeout = true;
        for (key, expires) in [(0, 20), (1, 10)] {
            let element = there.elements.get_mut(&key).unwrap();
            element.expires = Some(Duration::from_secs(expires));
        }
        let change = change(&map, &there, &wanted).unwrap();
        assert_eq!((change.moved, change.add.len()), (0, 1));
        assert_eq!(change.add[0].0, 1);
        let element = &change.json(&map)["nftables"][1]["add"]["element"]["elem"][0][0]["elem"];
        assert_eq!(element["timeout"], 30);
    }
}
