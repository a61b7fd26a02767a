//! The document's tables and keys, one after the other, as the contract lists them.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use super::value::{Mistakes, Table, duration, size};
use super::{Events, Mistake, Settings};
use crate::judge::ci::{self, Custom};
use crate::model::alert::{AlertKind, AlertSink};
use crate::model::mask;

/// One attempt to tell somebody of an alert may take so long,
const ALERT_TIMEOUT: Duration = Duration::from_secs(10);
/// and after so long it is given up.
const ALERT_GIVE_UP: Duration = Duration::from_secs(600);
/// Looks at shorter intervals would be the agent's own load.
const SHORTEST_INTERVAL_MS: u128 = 100;

/// Settings of a document, or every mistake in it.
pub(super) fn settings(text: &str) -> Result<Settings, Vec<Mistake>> {
    let mut mistakes = Mistakes::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        mistakes.add(error.span().unwrap_or(0..0), "", error.message());
    }
    let mut settings = Settings::default();
    let mut root = Table::root(&document);
    control(&mut root.table("control", &mut mistakes), &mut settings, &mut mistakes);
    metrics(&mut root.table("metrics", &mut mistakes), &mut settings, &mut mistakes);
    watch(&mut root.table("watch", &mut mistakes), &mut settings, &mut mistakes);
    containers(&mut root.table("containers", &mut mistakes), &mut settings, &mut mistakes);
    leak(&mut root.table("leak", &mut mistakes), &mut settings, &mut mistakes);
    history(&mut root.table("history", &mut mistakes), &mut settings, &mut mistakes);
    jobs(&mut root.table("jobs", &mut mistakes), &mut settings, &mut mistakes);
    alerts(&mut root.table("alerts", &mut mistakes), &mut settings, &mut mistakes);
    agent(&mut root.table("agent", &mut mistakes), &mut settings, &mut mistakes);
    privacy(&mut root.table("privacy", &mut mistakes), &mut settings, &mut mistakes);
    root.finish_here(&mut mistakes);
    let mistakes = mistakes.finish();
    if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
}

fn control(table: &mut Table<'_, '_>, settings: &mut Settings, mistakes: &mut Mistakes<'_>) {
    if let Some(path) = table.string("socket", mistakes, absolute_path) {
        settings.socket = path;
    }
    if let Some(mode) = table.string("mode", mistakes, mode) {
        settings.socket_mode = mode;
    }
    table.finish_here(mistakes);
}

fn metrics(table: &mut Table<'_, '_>, settings: &mut Settings, mistakes: &mut Mistakes<'_>) {
    let listen = |text: &str| {
        match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            format!("'{text}' is no address with a port; write an IP address, as in \"127.0.0.1:9817\", or \"\" for none (names are not looked up)")
        }),
    }
    };
    if let Some(listen) = table.string("listen", mistakes, listen) {
        settings.listen = listen;
    }
    if let Some(max) = table.integer("max_series", mistakes, 1..=100_000) {
        settings.max_series = usize::try_from(max).unwrap_or(usize::MAX);
    }
    settings.page = table.boolean("page", mistakes).or(settings.page);
    table.finish_here(mistakes);
}

fn watch(table: &mut Table<'_, '_>, settings: &mut Settings, mistakes: &mut Mistakes<'_>) {
    let events = |text: &str| match text {
        "auto" => Ok(Events::Auto),
        "ebpf" => Ok(Events::Ebpf),
        "proc" => Ok(Events::Proc),
        "poll" => Ok(Events::Poll),
        other => Err(format!("'{other}' is none of auto, ebpf, proc, poll")),
    };
    if let Some(events) = table.string("events", mistakes, events) {
        settings.events = events;
    }
    let interval = |text: &str| match duration(text)? {
        interval if interval.as_millis() < SHORTEST_INTERVAL_MS => {
            Err(format!("'{text}' is too short: 100ms at the least"))
        }
        interval => Ok(interval),
    };
    if let Some(interval) = table.string("interval", mistakes, interval) {
        settings.interval = interval;
    }
    if let Some(nat) = table.boolean("nat", mistakes) {
        settings.nat = nat;
    }
    table.finish_here(mistakes);
}

fn containers(table: &mut Table<'_, '_>, settings: &mut Settings, mistakes: &mut Mistakes<'_>) {
    if let Some(engines) = table.strings("engines", mistakes, |text| absolute_path(text).map(drop)) {
        settings.engines = engines.into_iter().map(PathBuf::from).collect();
    }
    table.finish_here(mistakes);
}

fn leak(table: &mut Table<'_, '_>, settings: &mut Settings, mistakes: &mut Mistakes<'_>) {
    if let Some(grace) = table.string("grace", mistakes, duration) {
        settings.grace = grace;
    }
    if let Some(exempt) = table.strings("exempt", mistakes, not_empty) {
        settings.exempt = exempt;
    }
    if let Some(reap) = table.boolean("reap", mistakes) {
        settings.reap = reap;
    }
    if let Some(after) = table.string("reap_after", mistakes, duration) {
        settings.reap_after = after;
    }
    table.finish_here(mistakes);
}

fn history(table: &mut Table<'_, '_>, settings: &mut Settings, mistakes: &mut Mistakes<'_>) {
    let path = |text: &str| if text.is_empty() { Ok(None) } else { absolute_path(text).map(Some) };
    if let Some(path) = table.string("path", mistakes, path) {
        settings.history = path;
    }
    if let Some(retention) = table.string("retention", mistakes, duration) {
        settings.retention = retention;
    }
    if let Some(bytes) = table.string("max_size", mistakes, size) {
        settings.max_size_bytes = bytes;
    }
    table.finish_here(mistakes);
}

fn jobs(table: &mut Table<'_, '_>, settings: &mut Settings, mistakes: &mut Mistakes<'_>) {
    let mut names: Vec<String> = ci::built_in().iter().map(|system| system.name().to_owned()).collect();
    let built_in = names.len();
    for mut system in table.tables("custom", mistakes) {
        let name =
            system.required("name", mistakes, |text| match names.iter().position(|name| name == text) {
                Some(index) if index < built_in => Err(format!("'{text}' is a built-in CI system")),
                Some(_) => Err(format!("'{text}' is defined twice")),
                None => system_name(text),
            });
        let id_env = system.some_strings("id_env", mistakes, variable_name);
        let ends = system.string("ends", mistakes, comm);
        system.finish_here(mistakes);
        if let (Some(name), Some(id_env)) = (name, id_env) {
            names.push(name.clone());
            settings.custom.push(Custom { name, id_env, ends });
        }
    }
    table.finish_here(mistakes);
}

fn alerts(table: &mut Table<'_, '_>, settings: &mut Settings, mistakes: &mut Mistakes<'_>) {
    for kind in AlertKind::ALL {
        for mut sink in table.tables(kind.as_str(), mistakes) {
            let target = match kind {
                AlertKind::Command => sink.some_strings("run", mistakes, |_| Ok(())),
                _ => sink.required("url", mistakes, url).map(|url| vec![url]),
            };
            let timeout = sink.string("timeout", mistakes, positive).unwrap_or(ALERT_TIMEOUT);
            let give_up = sink.string("give_up", mistakes, positive).unwrap_or(ALERT_GIVE_UP);
            sink.finish_here(mistakes);
            settings.alerts.extend(target.map(|target| AlertSink { kind, target, timeout, give_up }));
        }
    }
    table.finish_here(mistakes);
}

fn agent(table: &mut Table<'_, '_>, settings: &mut Settings, mistakes: &mut Mistakes<'_>) {
    let path = |text: &str| if text.is_empty() { Ok(None) } else { absolute_path(text).map(Some) };
    if let Some(path) = table.string("state", mistakes, path) {
        settings.state = path;
    }
    table.finish_here(mistakes);
}

fn privacy(table: &mut Table<'_, '_>, settings: &mut Settings, mistakes: &mut Mistakes<'_>) {
    settings.mask_built_in = table.boolean("mask_built_in", mistakes).unwrap_or(settings.mask_built_in);
    let pattern = |text: &str| match mask::compile(text) {
        Ok(_) => Ok(()),
        Err(why) => Err(format!("'{text}' is no pattern (regular expression): {why}")),
    };
    if let Some(patterns) = table.strings("mask", mistakes, pattern) {
        settings.mask = patterns;
    }
    table.finish_here(mistakes);
}

fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("'{text}' is no time at all")),
        time => Ok(time),
    }
}

fn absolute_path(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') && !text.contains('\0') {
        Ok(PathBuf::from(text))
    } else {
        Err(format!("'{text}' is no absolute path; write one that begins with /"))
    }
}

fn mode(text: &str) -> Result<u32, String> {
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = if octal { u32::from_str_radix(text, 8).ok() } else { None };
    mode.filter(|mode| *mode <= 0o777).ok_or_else(|| {
        format!("'{text}' is no permission mode; write three or four octal digits, as in \"0666\"")
    })
}

fn not_empty(text: &str) -> Result<(), String> {
    if text.is_empty() { Err("wants a name, got an empty string".to_owned()) } else { Ok(()) }
}

/// The kernel cuts a process's name (TASK_COMM_LEN of linux/sched.h): a longer one would match nothing, and its job would seem
/// to be over.
const COMM_BYTES: usize = 15;

fn comm(text: &str) -> Result<String, String> {
    not_empty(text)?;
    if text.len() > COMM_BYTES {
        let cut = text.get(..COMM_BYTES).unwrap_or_default();
        return Err(format!(
            "a process's name has {COMM_BYTES} bytes at most; the kernel calls this one '{cut}'"
        ));
    }
    Ok(text.to_owned())
}

fn system_name(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if plain && !text.is_empty() {
        Ok(text.to_owned())
    } else {
        Err(format!("'{text}' is no name; use letters, digits, '-' and '_'"))
    }
}

fn variable_name(text: &str) -> Result<(), String> {
    if text.is_empty() || text.contains(['=', '\0']) {
        return Err(format!("'{text}' is no name of an environment variable"));
    }
    Ok(())
}

fn url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() && !text.contains(char::is_whitespace) => Ok(text.to_owned()),
        _ => Err(format!("'{text}' is no http:// or https:// address")),
    }
}
