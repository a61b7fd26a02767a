//! Requests at the control socket: an address with its query, a newline, a document. HTTP itself is hyper's.

use axum::extract::Query;
use axum::http::Uri;
use sniffer::engine::Topic;
use sniffer::model::declared::{End, Start};
use sniffer::serve::control::{self, Parameters, PastParameters};

/// A request.
pub fn control(bytes: &[u8]) {
    let newline = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (address, rest) = bytes.split_at(newline);
    if let Ok(uri) = Uri::try_from(address) {
        asks(&uri);
    }
    let document = rest.strip_prefix(b"\n").unwrap_or(rest);
    if let Ok(start) = serde_json::from_slice::<Start>(document) {
        let again = serde_json::to_vec(&start).unwrap();
        assert_eq!(serde_json::from_slice::<Start>(&again).unwrap(), start);
        if start.mistake().is_none() {
            assert!(!start.id.is_empty() && !start.id.chars().any(char::is_control));
        }
    }
    let _ = serde_json::from_slice::<End>(document);
}

fn asks(uri: &Uri) {
    if let Ok(Query(parameters)) = Query::<Parameters>::try_from_uri(uri) {
        let question = control::question(&parameters, |text| control::target(text).map(Topic::Target));
        assert!(question.is_ok() || question.is_err_and(|why| !why.is_empty()));
        if let Ok((target, _, _, wait)) = control::bind(parameters) {
            assert!(*target.ports.start() > 0 && wait.as_millis() <= u128::from(u32::MAX));
        }
    }
    if let Ok(Query(parameters)) = Query::<PastParameters>::try_from_uri(uri)
        && let Ok(asked) = control::asked_of_past(&parameters)
    {
        assert!(asked.target.is_some());
    }
}
