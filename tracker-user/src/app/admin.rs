//! Admin states: imposed by clients, ended by time, kept in the state directory.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    api::{answers::Done, problem::Refused, status},
    config::Service,
    desired::model::Desired,
    host::{
        clock,
        store::{ADMIN, Contents, Edit},
    },
    state::{
        admin::{Admin, Kept},
        tree::AdminOf,
    },
};

use super::App;

/// The key by which the state directory keeps an admin state.
fn key(service: &str, member: Option<&str>) -> String {
    match member {
        Some(member) => format!("{service}/{member}"),
        None => service.to_owned(),
    }
}

/// The keys of all that an admin state can be imposed on in a service.
fn keys(service: &Service) -> impl Iterator<Item = String> {
    let members = service.members.iter();
    let members = members.map(|member| key(&service.name, Some(&member.name)));
    std::iter::once(key(&service.name, None)).chain(members)
}

/// Takes from the state directory what was imposed on what is no longer desired.
pub(super) fn gone(old: &Desired, new: &Desired) -> Vec<Edit> {
    let mut edits = Vec::new();
    let named: HashMap<&str, &Arc<_>> = (new.services().iter())
        .map(|service| (service.settings.name.as_str(), service))
        .collect();
    for service in old.services() {
        let left: HashSet<String> = match named.get(service.settings.name.as_str()) {
            Some(new) if Arc::ptr_eq(new, service) => continue,
            Some(new) => keys(&new.settings).collect(),
            None => HashSet::new(),
        };
        let gone = keys(&service.settings).filter(|key| !left.contains(key));
        edits.extend(gone.map(|key| Edit::remove(ADMIN, key)));
    }
    edits
}

impl App {
    /// Imposes an admin state on a service or member, or, as a trial, says what would be kept of it.
    pub(super) fn change_admin(
        &mut self,
        service: &str,
        member: Option<&str>,
        admin: Admin,
        is_trial: bool,
    ) -> Result<Done, Refused> {
        let (of, effective) = {
            let known = self.known();
            let of = status::admin_of(&known.tree, service, member).map_err(Refused::Unknown)?;
            let effective = known.tree.admin(of).map(|(_, effective)| effective);
            (of, effective.unwrap_or_default())
        };
        let key = self.admin_key(of).unwrap_or_default();
        let edit = match admin.is_auto() {
            true => Edit::remove(ADMIN, key),
            false => {
                let kept = Kept {
                    admin: admin.clone(),
                    effective,
                };
                // Plain structures with string keys cannot fail to be written.
                Edit::put(ADMIN, key, serde_json::to_string(&kept).unwrap_or_default())
            }
        };
        if !is_trial {
            self.publish(|tree| tree.set_admin(of, admin, clock::stamp()));
        }
        Ok(Done {
            kept: vec![edit],
            ..Done::default()
        })
    }

    /// Ends the admin states whose time is over.
    pub(super) fn end_admin(&mut self) {
        let due = self.known().tree.admin_due(clock::stamp());
        for of in due {
            let edit = self.admin_key(of).map(|key| Edit::remove(ADMIN, key));
            self.answers
                .store()
                .commit_later(edit.into_iter().collect());
            self.publish(|tree| tree.set_admin(of, Admin::default(), clock::stamp()));
        }
    }

    /// Imposes what the state directory keeps; what is over by now ends soon.
    pub(super) fn restore_admin(&self, contents: Option<&Contents>) {
        let now = clock::stamp();
        let mut known = self.known();
        for (key, text) in contents.iter().flat_map(|contents| &contents.admin) {
            let (service, member) = match key.split_once('/') {
                Some((service, member)) => (service, Some(member)),
                None => (key.as_str(), None),
            };
            let kept = serde_json::from_str::<Kept>(text);
            let of = status::admin_of(&known.tree, service, member);
            match (kept, of) {
                (Ok(Kept { admin, effective }), Ok(of)) => {
                    known.tree.restore_admin(of, admin, effective, now);
                }
                (Err(error), _) => {
                    tracing::error!(
                        "the admin state of {key:?} cannot be read: {error}; it is auto"
                    );
                }
                // It is gone from the configuration.
                (Ok(_), Err(_)) => {}
            }
        }
    }

    /// The key by which the state directory keeps an admin state.
    fn admin_key(&self, of: AdminOf) -> Option<String> {
        let known = self.known();
        let service = known.tree.service(of.service)?;
        let member = of.member.and_then(|id| {
            let mut members = service.members.iter();
            members.find(|member| member.id == id)
        });
        Some(key(
            &service.name,
            member.map(|member| &*member.settings.name),
        ))
    }
}
