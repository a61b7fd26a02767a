//! A webhook: each alert as one JSON document by POST. Whatever answers with 2xx has taken it.

use ureq::Agent;

use super::Receiver;
use crate::model::alert::{Alert, AlertSink};

#[derive(Debug)]
pub(super) struct Webhook {
    agent: Agent,
    url: String,
}

/// A client that gives up after this receiver's time.
pub(super) fn client(sink: &AlertSink) -> Agent {
    let config = Agent::config_builder()
        .timeout_global(Some(sink.timeout))
        .user_agent(concat!("sniffer/", env!("CARGO_PKG_VERSION")))
        .max_redirects(0);
    config.build().into()
}

/// Sends a JSON document. Errors: why it was not taken; the address, which may hold a secret, is not named.
pub(super) fn post(agent: &Agent, url: &str, document: &[u8]) -> Result<(), String> {
    let sent = agent.post(url).header("content-type", "application/json").send(document);
    match sent {
        Ok(response) if response.status().is_success() => Ok(()),
        Ok(response) => Err(format!("it answered {}", response.status().as_u16())),
        Err(ureq::Error::StatusCode(status)) => Err(format!("it answered {status}")),
        Err(ureq::Error::Timeout(_)) => Err("it did not answer in time".to_owned()),
        Err(ureq::Error::Io(error)) => Err(error.kind().to_string()),
        Err(ureq::Error::HostNotFound) => Err("its host was not found".to_owned()),
        Err(_) => Err("it could not be reached".to_owned()),
    }
}

impl Webhook {
    pub(super) fn new(sink: &AlertSink) -> Self {
        Webhook { agent: client(sink), url: sink.target.join(" ") }
    }
}

impl Receiver for Webhook {
    fn deliver(&mut self, alert: &Alert) -> Result<(), String> {
        let document = serde_json::to_vec(alert).map_err(|error| error.to_string())?;
        post(&self.agent, &self.url, &document)
    }
}
