//! Which services lie behind others (`after`).

use std::collections::HashMap;

use super::{Service, document::likeliest, keys::AFTER};

/// What is wrong with what services say of each other in `after`, each with the name of the service that says it: names of no
/// service, and circles. Linear in the number of services and names.
pub fn misplaced<'s>(
    services: impl Iterator<Item = &'s Service> + Clone,
) -> Vec<(&'s str, String)> {
    let known: HashMap<&str, &Service> = services
        .clone()
        .map(|service| (service.name.as_str(), service))
        .collect();
    let key = AFTER.quoted();
    let mut problems = Vec::new();
    for service in services.clone() {
        for name in &service.after {
            if known.contains_key(name.as_str()) {
                continue;
            }
            let hint = match likeliest(name, known.keys().copied()) {
                Some(likely) => format!("did you mean {likely:?}?"),
                None => "there are none".to_owned(),
            };
            let text = format!(
                "{key} of service {:?} names {name:?}, and no service has this name; {hint}",
                service.name
            );
            problems.push((service.name.as_str(), text));
        }
    }
    // Of a service that is on the way that is being followed, false; of one that leads into no circle, true.
    let mut is_done: HashMap<&str, bool> = HashMap::new();
    for service in services {
        if is_done.contains_key(service.name.as_str()) {
            continue;
        }
        is_done.insert(&service.name, false);
        let mut way = vec![(service, service.after.iter())];
        while let Some((last, after)) = way.last_mut() {
            let Some(name) = after.next() else {
                is_done.insert(&last.name, true);
                way.pop();
                continue;
            };
            let Some(inner) = known.get(name.as_str()) else {
                continue;
            };
            match is_done.get(inner.name.as_str()) {
                Some(true) => {}
                None => {
                    is_done.insert(&inner.name, false);
                    way.push((inner, inner.after.iter()));
                }
                Some(false) => {
                    let names = way.iter().map(|(one, _)| one.name.as_str());
                    let names = names.skip_while(|one| *one != inner.name);
                    let names: Vec<_> = names.chain([inner.name.as_str()]).collect();
                    let text = format!(
                        "{key} leads in a circle: {}; take one of the names out",
                        names.join(" after ")
                    );
                    problems.push((inner.name.as_str(), text));
                    return problems;
                }
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(of: &[(&str, &[&str])]) -> Vec<Service> {
        let service = |(name, after): &(&str, &[&str])| Service {
            name: (*name).to_owned(),
            owner: super::super::Owner::File,
            members: Vec::new(),
            members_up: crate::config::Policy::Any,
            preempt: true,
            after: after.iter().map(|name| (*name).to_owned()).collect(),
        };
        of.iter().map(service).collect()
    }

    fn texts(of: &[(&str, &[&str])]) -> Vec<String> {
        let services = services(of);
        misplaced(services.iter())
            .into_iter()
            .map(|(_, text)| text)
            .collect()
    }

    #[test]
    fn names_and_circles_are_found() {
        assert_eq!(
            texts(&[("a", &[]), ("b", &["a"]), ("c", &["b", "a"]), ("d", &["c"])]),
            [""; 0]
        );
        assert_eq!(
            texts(&[("fw-1", &["fw-2x"]), ("fw-2", &[])]),
            [
                "`after` of service \"fw-1\" names \"fw-2x\", and no service has this name; did you mean \"fw-2\"?"
            ]
        );
        assert_eq!(
            texts(&[("a", &["a"])]),
            ["`after` leads in a circle: a after a; take one of the names out"]
        );
        assert_eq!(
            texts(&[("x", &["a"]), ("a", &["b"]), ("b", &["c"]), ("c", &["a"])]),
            ["`after` leads in a circle: a after b after c after a; take one of the names out"]
        );
    }

    #[test]
    fn a_long_chain_takes_linear_time() {
        crate::growth::assert_linear("a chain of services", 2_000, |count| {
            let names: Vec<String> = (0..count).map(|at| format!("s{at}")).collect();
            let services: Vec<Service> = (0..count)
                .map(|at| Service {
                    name: names[at].clone(),
                    owner: super::super::Owner::File,
                    members: Vec::new(),
                    members_up: crate::config::Policy::Any,
                    preempt: true,
                    after: names.get(at + 1).cloned().into_iter().collect(),
                })
                .collect();
            crate::growth::processor_time(|| assert!(misplaced(services.iter()).is_empty()))
        });
    }
}
