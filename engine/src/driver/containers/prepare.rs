//! Making a unit's containers ready where it will arrive.
//!
//! Owns: what is made anew, what stays, what is refused. Leaves to others: bodies ([`super::create`]), what a
//! peer may ask for ([`super::description`]).

use std::path::PathBuf;

use flocker_core::{Failure, FailureCode, Remedy};
use serde_json::Value;

use super::api::Inspected;
use super::create::{self, DESCRIPTION_LABEL, container_body, network_body};
use super::describe::image_id;
use super::description::{self, Container, Description, Image, Network, Source};
use super::{Containers, UNIT_LABEL, checkpoint};
use crate::driver::taken::Before;

impl Containers {
    /// Makes what is missing, and takes all of it.
    ///
    /// # Errors
    /// Something cannot be made here, or may not.
    pub(super) fn make_ready(
        &self,
        description: &Description,
        volumes: &[PathBuf],
    ) -> Result<(), Failure> {
        self.check_same_containers(description)?;
        for network in &description.networks {
            self.make_network(network)?;
        }
        let not_there = Self::not_there(description, volumes);
        for container in &description.containers {
            self.make_container(container, volumes)?;
        }
        let mut before: Before<super::Restart> = self.taken.load()?;
        for container in &description.containers {
            if container.restart.policy != "no" && !before.0.contains_key(&container.name) {
                before.0.insert(container.name.clone(), container.restart.clone());
            }
        }
        self.taken.store(&before)?;
        for name in &self.names {
            self.take_one(name, &mut before)?;
            self.make_restorable_if_it_can(name)?;
        }
        for (base, path) in not_there {
            // As far as they are empty: not what has arrived meanwhile.
            for folder in path.ancestors().take_while(|folder| *folder != base) {
                let _ = std::fs::remove_dir(folder);
            }
        }
        Ok(())
    }

    /// So that it does not have to be done while the unit is down. Where it cannot be done yet (a folder of a
    /// volume that has not arrived is missing) it is done then.
    fn make_restorable_if_it_can(&self, name: &str) -> Result<(), Failure> {
        let Some(inspected) = self.api.inspect_fully(name)? else { return Ok(()) };
        if inspected.libpod.is_none()
            || checkpoint::hindrance(&inspected).is_some()
            || self.one_runs(name, &inspected)?
        {
            return Ok(());
        }
        if let Err(failure) = self.make_restorable(name) {
            tracing::debug!(container = name, %failure, "it is made ready to be restored later");
        }
        Ok(())
    }

    /// The local configuration says which containers these are, not the peer.
    fn check_same_containers(&self, description: &Description) -> Result<(), Failure> {
        let theirs: Vec<&str> = description.containers.iter().map(|c| c.name.as_str()).collect();
        if description.runtime == self.api.runtime && theirs == self.names {
            return Ok(());
        }
        Err(Failure::refused(
            FailureCode::BadRequest,
            format!(
                "this node was told of {} {}, and is to make {:?} {} ready",
                self.api.word(),
                self.names.join(", "),
                description.runtime,
                theirs.join(", ")
            ),
        ))
    }

    fn make_network(&self, network: &Network) -> Result<(), Failure> {
        if self.api.network(&network.name)?.is_some() {
            return Ok(());
        }
        let strange = network.subnets.iter().find(|range| !description::is_private(&range.subnet));
        let word = self.api.word();
        if network.driver != "bridge" || strange.is_some() {
            let why = match strange {
                Some(range) => format!("its range {} is not a private one", range.subnet),
                None => format!("it is of the kind {}", network.driver),
            };
            return Err(Failure::refused(
                FailureCode::NotGranted,
                format!(
                    "network {} is not made here at a peer's word, since {why}; make it yourself \
                     (`{word} network create {}`)",
                    network.name, network.name
                ),
            ));
        }
        self.api.create_network(&network.name, &network_body(network))
    }

    fn make_container(&self, container: &Container, volumes: &[PathBuf]) -> Result<(), Failure> {
        let found = self.api.inspect(&container.name)?;
        let ours = found.as_ref().is_some_and(|found| self.is_ours(found));
        if found.is_some() && !ours {
            return Ok(());
        }
        let guarded = description::guard(container, &self.names);
        if !guarded.is_empty() {
            return Err(Failure::refused(
                FailureCode::NotGranted,
                format!(
                    "container {} is not made here at a peer's word, since it could become root on this \
                     node by: {}. Make it here yourself under the same name; then it stays as you made it",
                    container.name,
                    guarded.join(", ")
                ),
            ));
        }
        let image = self.image_here(&container.image)?;
        let body = container_body(container, self.api.runtime, self.unit, &image, volumes)?;
        if let Some(found) = found {
            if found.docker["Config"]["Labels"][DESCRIPTION_LABEL]
                == body["Labels"][DESCRIPTION_LABEL]
            {
                return Ok(());
            }
            if self.one_runs(&container.name, &found)? {
                return Err(Failure::refused(
                    FailureCode::Busy,
                    format!("container {} runs here, and is to be made anew", container.name),
                ));
            }
            self.api.remove(&container.name)?;
        }
        make_folders(container, volumes)?;
        self.api.create(&container.name, &body)
    }

    /// What of the volumes has not arrived, and is made below their folders by making the containers: taken away
    /// again, since it would lie below where they are mounted.
    fn not_there(description: &Description, volumes: &[PathBuf]) -> Vec<(PathBuf, PathBuf)> {
        let mounts = description.containers.iter().flat_map(|container| &container.mounts);
        let mut found = Vec::new();
        for mount in mounts {
            let Source::Unit { volume, path } = &mount.source else { continue };
            if let Some(base) = volumes.get(*volume)
                && !path.as_os_str().is_empty()
                && !base.join(path).exists()
            {
                found.push((base.clone(), base.join(path)));
            }
        }
        found
    }

    /// We made it, for this unit.
    pub(super) fn is_ours(&self, found: &Inspected) -> bool {
        let label = found.docker["Config"]["Labels"][UNIT_LABEL].as_str();
        label == Some(self.unit.to_string().as_str())
    }

    /// The name by which this node has exactly that image.
    fn image_here(&self, image: &Image) -> Result<String, Failure> {
        let id_of = |found: &Value| image_id(found["Id"].as_str().unwrap_or_default());
        let named = self.api.image(&image.reference)?;
        if named.as_ref().is_some_and(|found| id_of(found) == image.id) {
            return Ok(image.reference.clone());
        }
        if self.api.image(&image.id)?.is_some() {
            return Ok(image.id.clone());
        }
        let archive = self.state.join("images").join(format!("{}.tar", self.unit));
        if archive.exists() {
            self.load_image(&archive)?;
            if self.api.image(&image.id)?.is_some() {
                return Ok(image.id.clone());
            }
        }
        // The same image by a registry's word, though stored in another form.
        let digests = |found: &Value| super::describe::strings(&found["RepoDigests"]);
        if let Some(found) = &named
            && digests(found).iter().any(|digest| image.digests.contains(digest))
        {
            return Ok(image.reference.clone());
        }
        let word = self.api.word();
        let other = match &named {
            Some(found) => {
                format!("another one under that name, {}, and not", short(&id_of(found)))
            }
            None => "no".to_owned(),
        };
        Err(Failure::new(
            Remedy::Operator,
            FailureCode::NotFound,
            format!(
                "{word} has {other} image {} ({}) here; `{word} pull {}`, or `{word} save {}` there and \
                 `{word} load` here",
                image.reference,
                short(&image.id),
                image.reference,
                image.reference
            ),
        ))
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// A volume that has not arrived has no folder to be mounted at; what is below it comes with it.
fn make_folders(container: &Container, volumes: &[PathBuf]) -> Result<(), Failure> {
    for mount in &container.mounts {
        if let Source::Unit { volume, .. } = &mount.source {
            let root = Source::Unit { volume: *volume, path: PathBuf::new() };
            let Some(path) = create::source_here(&container.name, &root, volumes)? else {
                continue;
            };
            std::fs::create_dir_all(&path).map_err(|error| {
                Failure::new(
                    Remedy::Operator,
                    FailureCode::Workload,
                    format!("the folder {} for a volume cannot be made: {error}", path.display()),
                )
            })?;
        }
    }
    Ok(())
}
