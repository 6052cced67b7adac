//! What the APIs of podman and docker are asked for: each question is a function.
//!
//! Owns: paths, time limits, what a status that says no means. Leaves to others: carrying it
//! ([`super::http`]), and what to make of it. Both speak Docker's API; podman has one of its own beside it
//! (`/libpod/…`) for what Docker's does not have. Docker's paths need no version, podman's own do.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use flocker_core::record::ContainerRuntime;
use flocker_core::{Failure, FailureCode, Remedy};
use hyper::Method;
use serde_json::{Value, json};

use super::super::ASK_LIMIT;
use super::http::{Answer, Client, HttpError, Payload, escaped};

/// A start, a pause, an update: the runtime starts processes for them.
const ACT_LIMIT: Duration = Duration::from_secs(120);

/// Podman's own API, in the oldest form that its newest versions answer in.
const LIBPOD: &str = "/v4.0.0/libpod";

/// What copies data: an image, a checkpoint. A gigabyte a minute is a slow disk.
pub(super) const BULK_LIMIT: Duration = Duration::from_secs(3600);

/// The API of one runtime.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) runtime: ContainerRuntime,
    client: Client,
}

/// What the API says of a container, as Docker has it, and podman's own view beside it.
#[derive(Debug, Clone)]
pub(super) struct Inspected {
    pub(super) id: String,
    pub(super) docker: Value,
    /// Podman only.
    pub(super) libpod: Option<Value>,
}

impl Inspected {
    pub(super) fn runs(&self) -> bool {
        ["Running", "Paused", "Restarting"]
            .iter()
            .any(|state| self.docker["State"][state].as_bool().unwrap_or(false))
    }
}

impl Api {
    pub(super) fn new(runtime: ContainerRuntime, socket: PathBuf) -> Self {
        Self { runtime, client: Client::new(socket) }
    }

    /// In a word.
    pub(super) fn word(&self) -> &'static str {
        match self.runtime {
            ContainerRuntime::Podman => "podman",
            ContainerRuntime::Docker => "docker",
        }
    }

    pub(super) fn is_podman(&self) -> bool {
        self.runtime == ContainerRuntime::Podman
    }

    fn failure(&self, what: &str, error: &HttpError) -> Failure {
        let unit = match self.runtime {
            ContainerRuntime::Podman => "podman.socket",
            ContainerRuntime::Docker => "docker.socket docker.service",
        };
        let (remedy, code) = match error {
            HttpError::Absent { .. } => (Remedy::Operator, FailureCode::Workload),
            HttpError::Broken { .. } => (Remedy::Retry, FailureCode::Workload),
            HttpError::TimedOut { .. } => (Remedy::Retry, FailureCode::TimedOut),
            HttpError::File(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                (Remedy::Operator, FailureCode::NoSpace)
            }
            HttpError::File(_) => (Remedy::Operator, FailureCode::Workload),
        };
        let next = if matches!(error, HttpError::Absent { .. }) {
            format!("; `systemctl enable --now {unit}` starts {}'s API", self.word())
        } else {
            String::new()
        };
        Failure::new(remedy, code, format!("{what}: {error}{next}"))
    }

    /// What a status that says no means.
    fn refused(&self, what: &str, answer: &Answer) -> Failure {
        let said: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        // Podman adds the cause by itself, which its message ends with as well.
        let said = match said["message"].as_str() {
            Some(message) => message.trim().to_owned(),
            None => String::from_utf8_lossy(&answer.body).trim().chars().take(600).collect(),
        };
        let (remedy, code) = match answer.status {
            404 => (Remedy::Operator, FailureCode::NotFound),
            409 => (Remedy::Operator, FailureCode::Exists),
            _ => (Remedy::Operator, FailureCode::Workload),
        };
        let word = self.word();
        Failure::new(remedy, code, format!("{what}: {word} says {}: {said}", answer.status))
    }

    fn ask(
        &self,
        what: &str,
        method: Method,
        path: &str,
        payload: Payload<'_>,
        limit: Option<Duration>,
    ) -> Result<Answer, Failure> {
        self.client.ask(method, path, payload, limit).map_err(|error| self.failure(what, &error))
    }

    /// Asks for JSON; `None`: there is no such thing.
    fn get(&self, what: &str, path: &str) -> Result<Option<Value>, Failure> {
        let answer = self.ask(what, Method::GET, path, Payload::Nothing, Some(ASK_LIMIT))?;
        match answer.status {
            404 => Ok(None),
            200 => serde_json::from_slice(&answer.body).map(Some).map_err(|error| {
                Failure::new(
                    Remedy::Operator,
                    FailureCode::Workload,
                    format!("{what}: {} answers what is no JSON: {error}", self.word()),
                )
            }),
            _ => Err(self.refused(what, &answer)),
        }
    }

    /// Has something done; 304 says that it was so already.
    fn act(
        &self,
        what: &str,
        method: Method,
        path: &str,
        payload: Payload<'_>,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let answer = self.ask(what, method, path, payload, Some(limit))?;
        match answer.status {
            200..=299 | 304 => Ok(answer),
            _ => Err(self.refused(what, &answer)),
        }
    }

    /// A container by name; `None`: it is not here.
    pub(super) fn inspect(&self, name: &str) -> Result<Option<Inspected>, Failure> {
        let what = format!("looking at container {name}");
        let plain = escaped(name);
        let Some(docker) = self.get(&what, &format!("/containers/{plain}/json"))? else {
            return Ok(None);
        };
        let id = docker["Id"].as_str().unwrap_or_default().to_owned();
        Ok(Some(Inspected { id, docker, libpod: None }))
    }

    /// The same with what only podman's own API says.
    pub(super) fn inspect_fully(&self, name: &str) -> Result<Option<Inspected>, Failure> {
        let Some(mut found) = self.inspect(name)? else { return Ok(None) };
        if self.is_podman() {
            found.libpod = self.libpod(name)?;
        }
        Ok(Some(found))
    }

    /// Podman's own view of a container.
    pub(super) fn libpod(&self, name: &str) -> Result<Option<Value>, Failure> {
        let what = format!("looking at container {name}");
        self.get(&what, &format!("{LIBPOD}/containers/{}/json", escaped(name)))
    }

    /// What has changed in a container's writable layer.
    pub(super) fn changes(&self, name: &str) -> Result<Value, Failure> {
        let what = format!("looking for what container {name} wrote outside its volumes");
        let path = format!("/containers/{}/changes", escaped(name));
        let answer = self.act(&what, Method::GET, &path, Payload::Nothing, BULK_LIMIT)?;
        Ok(serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
    }

    /// A network by name; `None`: it is not here.
    pub(super) fn network(&self, name: &str) -> Result<Option<Value>, Failure> {
        self.get(&format!("looking at network {name}"), &format!("/networks/{}", escaped(name)))
    }

    /// An image by reference or id; `None`: it is not here.
    pub(super) fn image(&self, name: &str) -> Result<Option<Value>, Failure> {
        self.get(&format!("looking for image {name}"), &format!("/images/{}/json", escaped(name)))
    }

    pub(super) fn create_network(&self, name: &str, body: &Value) -> Result<(), Failure> {
        let what = format!("making network {name}");
        let body = Payload::Json(body);
        self.act(&what, Method::POST, "/networks/create", body, ACT_LIMIT).map(drop)
    }

    pub(super) fn create(&self, name: &str, body: &Value) -> Result<(), Failure> {
        let what = format!("making container {name}");
        let path = format!("/containers/create?name={}", escaped(name));
        self.act(&what, Method::POST, &path, Payload::Json(body), ACT_LIMIT).map(drop)
    }

    /// Removes a container that does not run; one that is gone is no error. Its volumes stay.
    pub(super) fn remove(&self, name: &str) -> Result<(), Failure> {
        let what = format!("removing container {name}");
        let path = format!("/containers/{}", escaped(name));
        let done = self.act(&what, Method::DELETE, &path, Payload::Nothing, ACT_LIMIT);
        not_found_is_fine(done.map(drop))
    }

    pub(super) fn start(&self, name: &str) -> Result<(), Failure> {
        self.post(name, "start", "", "starting")
    }

    /// Asks it to stop in its own way, and kills it after so many seconds.
    pub(super) fn stop(&self, name: &str, limit: Duration) -> Result<(), Failure> {
        let seconds = limit.as_millis().div_ceil(1000);
        let path = format!("/containers/{}/stop?t={seconds}", escaped(name));
        let what = format!("stopping container {name}");
        self.act(&what, Method::POST, &path, Payload::Nothing, limit + ACT_LIMIT).map(drop)
    }

    pub(super) fn kill(&self, name: &str) -> Result<(), Failure> {
        self.post(name, "kill", "?signal=SIGKILL", "killing")
    }

    pub(super) fn pause(&self, name: &str) -> Result<(), Failure> {
        self.post(name, "pause", "", "freezing")
    }

    pub(super) fn unpause(&self, name: &str) -> Result<(), Failure> {
        self.post(name, "unpause", "", "thawing")
    }

    fn post(&self, name: &str, verb: &str, query: &str, word: &str) -> Result<(), Failure> {
        let path = format!("/containers/{}/{verb}{query}", escaped(name));
        let what = format!("{word} container {name}");
        self.act(&what, Method::POST, &path, Payload::Nothing, ACT_LIMIT).map(drop)
    }

    /// Sets a restart policy; `retries` counts for `on-failure`.
    pub(super) fn set_restart(
        &self,
        name: &str,
        policy: &str,
        retries: u64,
    ) -> Result<(), Failure> {
        let what = format!("setting the restart policy of container {name} to {policy}");
        let plain = escaped(name);
        if self.is_podman() {
            let mut path =
                format!("{LIBPOD}/containers/{plain}/update?restartPolicy={}", escaped(policy));
            if policy == "on-failure" && retries > 0 {
                path.push_str(&format!("&restartRetries={retries}"));
            }
            let body = json!({});
            return self.act(&what, Method::POST, &path, Payload::Json(&body), ACT_LIMIT).map(drop);
        }
        let retries = if policy == "on-failure" { retries } else { 0 };
        let body = json!({"RestartPolicy": {"Name": policy, "MaximumRetryCount": retries}});
        let path = format!("/containers/{plain}/update");
        self.act(&what, Method::POST, &path, Payload::Json(&body), ACT_LIMIT).map(drop)
    }

    /// Waits for a container's end, for as long as that takes; its exit status.
    pub(super) fn wait(&self, name: &str) -> Result<i64, Failure> {
        let what = format!("waiting for container {name}");
        let path = format!("/containers/{}/wait?condition=not-running", escaped(name));
        let answer = self.ask(&what, Method::POST, &path, Payload::Nothing, None)?;
        if answer.status != 200 {
            return Err(self.refused(&what, &answer));
        }
        let said: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        said["StatusCode"].as_i64().ok_or_else(|| {
            let said = format!("{what}: {} says no status: {said}", self.word());
            Failure::new(Remedy::Retry, FailureCode::Workload, said)
        })
    }

    /// Writes images into a file, as `load_images` reads them.
    pub(super) fn save_images(&self, names: &[String], file: &mut File) -> Result<(), Failure> {
        let list: Vec<String> =
            names.iter().map(|name| format!("names={}", escaped(name))).collect();
        let what = format!("writing image {} to a file", names.join(", "));
        let path = format!("/images/get?{}", list.join("&"));
        self.download(&what, Method::GET, &path, file)
    }

    pub(super) fn load_images(&self, file: File) -> Result<(), Failure> {
        let what = "loading an image from a file";
        let body = Payload::File(file, "application/x-tar");
        let answer = self.act(what, Method::POST, "/images/load?quiet=1", body, BULK_LIMIT)?;
        // The status was sent before it was known; docker says so at the end of a stream of objects.
        let said = String::from_utf8_lossy(&answer.body);
        match said
            .lines()
            .find(|line| line.contains("\"errorDetail\"") || line.contains("\"error\":"))
        {
            Some(line) => Err(Failure::new(
                Remedy::Operator,
                FailureCode::Workload,
                format!("{what}: {} says: {line}", self.word()),
            )),
            None => Ok(()),
        }
    }

    /// Asks for something large, into a file.
    pub(super) fn download(
        &self,
        what: &str,
        method: Method,
        path: &str,
        file: &mut File,
    ) -> Result<(), Failure> {
        let done = self.client.ask_into(method, path, file, Some(BULK_LIMIT));
        let answer = done.map_err(|error| self.failure(what, &error))?;
        if answer.status == 200 { Ok(()) } else { Err(self.refused(what, &answer)) }
    }

    /// A question to podman's own API that changes something.
    pub(super) fn act_libpod(
        &self,
        what: &str,
        path: &str,
        payload: Payload<'_>,
        limit: Duration,
    ) -> Result<Value, Failure> {
        let answer = self.act(what, Method::POST, &format!("{LIBPOD}{path}"), payload, limit)?;
        Ok(serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
    }

    /// A question that is open keeps a service awake that would end when nobody asks it for a few seconds.
    pub(super) fn keep_ready(&self, limit: Duration) {
        let what = "keeping the service awake";
        let events = "/events?filters=%7B%22event%22%3A%5B%22none%22%5D%7D";
        let _ = self.ask(what, Method::GET, events, Payload::Nothing, Some(limit));
    }
}

fn not_found_is_fine(done: Result<(), Failure>) -> Result<(), Failure> {
    match done {
        Err(failure) if failure.code == FailureCode::NotFound => Ok(()),
        done => done,
    }
}
