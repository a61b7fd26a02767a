//! The threads that wait for events of the kernel, and what they hand to the loop.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Events, Loop, Message, Outside, source};
use crate::engine::status::SourceStatus;
use crate::kernel::bpf::holders::OpenFiles;
use crate::kernel::bpf::{self, Gain};
use crate::kernel::proc_events::{ProcEvents, ProcessEvent, means_lost};
use crate::kernel::process::{self, Reader};
use crate::kernel::{memory, netns};
use crate::model::bind::{BindEvent, CloseEvent};
use crate::model::process::Process;

/// Something that was seen to happen.
#[derive(Debug)]
pub(super) enum Event {
    /// To a process; an exec comes with what was read of the process.
    Process(ProcessEvent, Option<Box<Process>>),
    /// A bind succeeded or was refused.
    Bind(Box<BindEvent>),
    /// A socket that was bound was closed.
    Close(CloseEvent),
}

/// The loop has ended.
struct Stopped;

/// Reads events and sends them on, each exec with what it left of the process's environment, until the loop ends.
pub(super) fn forward(mut events: ProcEvents, reader: &Reader, messages: &mpsc::Sender<Message>) {
    let mut headless = HashSet::new();
    loop {
        let sent = match events.receive_some() {
            Ok(some) => match with_readings(some, reader, &mut headless) {
                // Threads, our own among them, come and go without a word.
                events if events.is_empty() => Ok(()),
                events => messages.blocking_send(Message::Events(source::PROC, events)).map_err(|_| Stopped),
            },
            Err(error) if means_lost(&error) => {
                messages.blocking_send(Message::EventsLost(source::PROC, 1)).map_err(|_| Stopped)
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            Err(error) => {
                let _ = messages.blocking_send(Message::EventsEnded(source::PROC, error.to_string()));
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Adds to each exec what can be read of the process, and corrects the kernel's word about ends: the exit of a process's
/// first thread is told as the process's, though others may go on.
fn with_readings(events: Vec<ProcessEvent>, reader: &Reader, headless: &mut HashSet<u32>) -> Vec<Event> {
    events
        .into_iter()
        .filter_map(|event| match event {
            ProcessEvent::Execed { pid } => {
                headless.remove(&pid);
                Some(Event::Process(ProcessEvent::Execed { pid }, reader.read(pid).ok().map(Box::new)))
            }
            ProcessEvent::Exited { pid, .. } if process::glance(pid).is_ok() => {
                headless.insert(pid);
                None
            }
            ProcessEvent::ThreadExited { pid } => {
                let last = headless.contains(&pid) && process::glance(pid).is_err();
                last.then(|| {
                    headless.remove(&pid);
                    Event::Process(ProcessEvent::Exited { pid, exit: None }, None)
                })
            }
            event => Some(Event::Process(event, None)),
        })
        .collect()
}

/// Reads the events of the kernel's programs and sends them on, until the loop ends.
pub(super) fn forward_bpf(mut events: bpf::Source, reader: &Arc<Reader>, messages: &mpsc::Sender<Message>) {
    let own_netns = netns::own().map_or(0, |own| own.inode);
    loop {
        let sent = match events.receive() {
            Ok(drained) => {
                let told = drained.events.into_iter().filter(|event| !is_probe(event, own_netns));
                let events = told.map(|event| from_bpf(event, reader));
                hand_on(events.collect(), drained.binds, drained.lost, messages)
            }
            Err(error) => {
                let _ = messages.blocking_send(Message::EventsEnded(source::EBPF, error.to_string()));
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// The agent's own binds in another namespace are made to see what the kernel says ([`crate::kernel::probe`]).
fn is_probe(event: &bpf::Event, own_netns: u64) -> bool {
    let bpf::Event::Bind(event) = event else { return false };
    event.bind.pid == std::process::id() && event.netns != own_netns
}

fn from_bpf(event: bpf::Event, reader: &Reader) -> Event {
    match event {
        bpf::Event::Bind(event) => Event::Bind(Box::new(event)),
        bpf::Event::Close(event) => Event::Close(event),
        bpf::Event::Process(event) => Event::Process(event, None),
        bpf::Event::Exec(exec) => {
            let pid = exec.pid;
            Event::Process(ProcessEvent::Execed { pid }, Some(Box::new(reader.from_exec(*exec))))
        }
    }
}

fn hand_on(
    events: Vec<Event>,
    binds: u64,
    lost: u64,
    messages: &mpsc::Sender<Message>,
) -> Result<(), Stopped> {
    let send = |message| messages.blocking_send(message).map_err(|_| Stopped);
    if !events.is_empty() {
        send(Message::Events(source::EBPF, events))?;
    }
    if binds > 0 {
        send(Message::Bound)?;
    }
    if lost > 0 {
        send(Message::EventsLost(source::EBPF, lost))?;
    }
    Ok(())
}

impl<O: Outside> Loop<O> {
    pub(super) fn start_events(&mut self) {
        if self.watch.events.is_empty() {
            let why = Some("switched off by watch.events = \"poll\"".to_owned());
            self.sources.insert(source::PROC, SourceStatus { why, ..SourceStatus::default() });
        }
        if self.watch.events.contains(&Events::Ebpf) {
            let status = self.start_bpf();
            self.sources.insert(source::EBPF, status);
            let status = self.start_walk();
            self.sources.insert(source::OPEN_FILES, status);
            // The kernel's description of its types takes tens of MiB while it is read.
            memory::trim();
        }
        if self.hurry.is_none() && !self.watch.events.is_empty() {
            let status = self.start_proc();
            self.sources.insert(source::PROC, status);
        }
    }

    /// Without the kernel's own walk over open files, /proc is read.
    fn start_walk(&mut self) -> SourceStatus {
        match OpenFiles::load(bpf::Reasons::InBrief) {
            Ok(files) => {
                self.reader.open_files.set(files);
                SourceStatus { up: true, ..SourceStatus::default() }
            }
            Err(error) => {
                tracing::info!("{error}; open files are read from /proc");
                SourceStatus { why: Some(error.to_string()), ..SourceStatus::default() }
            }
        }
    }

    fn start_bpf(&mut self) -> SourceStatus {
        match bpf::Source::load(bpf::Reasons::InBrief) {
            Ok(events) => {
                for (gain, why) in events.missing() {
                    tracing::info!("the kernel's programs tell less here: {} ({why})", gain.lost());
                }
                let missing: Vec<String> =
                    events.missing().iter().map(|(gain, why)| format!("{} ({why})", gain.lost())).collect();
                self.engine.set_oom_told(events.has(Gain::Oom));
                self.hurry = events.has(Gain::Processes).then(|| events.hurry());
                let (messages, reader) = (self.messages.clone(), Arc::clone(&self.reader));
                std::thread::spawn(move || forward_bpf(events, &reader, &messages));
                let why = Some(missing.join("; ")).filter(|why| !why.is_empty());
                SourceStatus { up: true, why, ..SourceStatus::default() }
            }
            Err(error) => {
                tracing::warn!("{error}; failed binds are not seen");
                SourceStatus { why: Some(error.to_string()), ..SourceStatus::default() }
            }
        }
    }

    pub(super) fn start_proc(&mut self) -> SourceStatus {
        match ProcEvents::subscribe() {
            Ok(events) => {
                let (messages, reader) = (self.messages.clone(), Arc::clone(&self.reader));
                std::thread::spawn(move || forward(events, &reader, &messages));
                SourceStatus { up: true, ..SourceStatus::default() }
            }
            Err(error) => {
                tracing::warn!("{error}; processes are polled instead");
                SourceStatus { why: Some(error.to_string()), ..SourceStatus::default() }
            }
        }
    }
}
