//! Loads and attaches programs, and says in words why one does not.

use std::fs::{self, File};
use std::io;

use aya::maps::{Map, MapError};
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSock, CgroupSockAddr, FExit, Program, ProgramError, RawTracePoint,
};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};

use super::{Gain, Reasons, Unavailable};
use crate::kernel::cgroup;

/// What a program hooks into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// `cgroup/bind*`, at the root of cgroup v2.
    BindAddress,
    /// `cgroup/sock_release`, there too.
    Socket,
    /// A tracepoint of this name, with BTF.
    Tracepoint(&'static str),
    /// The end of this function of the kernel.
    End(&'static str),
    /// A tracepoint of this name, whose arguments differ from kernel to kernel.
    RawTracepoint(&'static str),
    /// None: it is run when we want it to.
    Asked,
}

/// The program that tells what the slots hold; its only argument is which part of them.
pub(super) const LOOK_THROUGH: &str = "look_through";

/// Every program of `events.bpf.c`. Ends are attached before beginnings, so that none is seen to begin without its end.
pub(super) const PROGRAMS: [(Gain, &str, Hook); 12] = [
    (Gain::Binds, LOOK_THROUGH, Hook::Asked),
    (Gain::Binds, "sock_release", Hook::Socket),
    (Gain::Binds, "bind4", Hook::BindAddress),
    (Gain::Binds, "bind6", Hook::BindAddress),
    (Gain::Listens, "state", Hook::Tracepoint("inet_sock_set_state")),
    (Gain::Processes, "renamed", Hook::Tracepoint("task_rename")),
    (Gain::Processes, "exited", Hook::Tracepoint("sched_process_exit")),
    (Gain::Oom, "oom_killed", Hook::RawTracepoint("mark_victim")),
    (Gain::Processes, "execed", Hook::Tracepoint("sched_process_exec")),
    (Gain::Processes, "forked", Hook::Tracepoint("sched_process_fork")),
    (Gain::Errno, "inet_bind_ended", Hook::End("inet_bind")),
    (Gain::Errno, "inet6_bind_ended", Hook::End("inet6_bind")),
];

const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
/// Of what the verifier says so much is shown: its verdict is in the last lines.
const VERIFIER_LINES: usize = 3;

/// Programs that are loaded and attached, and what could not be.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) missing: Vec<(Gain, String)>,
}

/// The running kernel's types, which every access to its memory is relocated by.
pub(super) fn types() -> Result<Btf, Unavailable> {
    Btf::from_sys_fs().map_err(|error| Unavailable::NoBtf(error.to_string()))
}

/// Before Linux 5.11 maps count as locked memory, of which even root has little by default. A refusal shows when it matters.
fn allow_maps() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

/// Makes the maps of an object and relocates its programs.
pub(super) fn object(bytes: &[u8], btf: &Btf, reasons: Reasons) -> Result<Ebpf, Unavailable> {
    allow_maps();
    let level = match reasons {
        Reasons::InBrief => VerifierLogLevel::DISABLE,
        Reasons::Whole => VerifierLogLevel::DEBUG,
    };
    EbpfLoader::new().btf(Some(btf)).verifier_log_level(level).load(bytes).map_err(|error| match &error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) => denied(io_error, &error.to_string()),
        _ => Unavailable::Failed(error.to_string()),
    })
}

/// Loads and attaches these programs. Errors: not even binds can be watched.
pub(super) fn attach_all(
    bytes: &[u8],
    programs: &[(Gain, &str, Hook)],
    reasons: Reasons,
) -> Result<Loaded, Unavailable> {
    let mount = cgroup::mount().ok_or(Unavailable::NoCgroup)?;
    if !cgroup::sees_root() {
        return Err(Unavailable::ForeignCgroup);
    }
    let root =
        File::open(&mount).map_err(|error| Unavailable::Failed(format!("{}: {error}", mount.display())))?;
    let btf = types()?;
    let mut ebpf = object(bytes, &btf, reasons)?;
    let mut missing: Vec<(Gain, String)> = Vec::new();
    for (gain, name, hook) in programs {
        if missing.iter().any(|(lost, _)| lost == gain) {
            continue;
        }
        if matches!(hook, Hook::End(_)) && !trampolines_are_safe() {
            missing.push((*gain, "fexit is not used before Linux 5.12".to_owned()));
            continue;
        }
        match attach(&mut ebpf, name, *hook, &root, &btf) {
            Ok(()) => {}
            Err(error) if *gain == Gain::Binds => return Err(unavailable(name, &error)),
            Err(error) => missing.push((*gain, format!("{name}: {}", sentence(&error)))),
        }
    }
    // A group that lacks a program would tell half of what happens.
    for (gain, name, hook) in programs {
        if missing.iter().any(|(lost, _)| lost == gain) {
            detach(&mut ebpf, name, *hook);
        }
    }
    Ok(Loaded { ebpf, missing })
}

/// Before Linux 5.12 the code that runs fexit programs could be freed while a thread slept in the function (e21aa341785c, "bpf: Fix
/// fexit trampoline"), and bind(2) sleeps; on a 5.10 that has the fix two processors were seen to hang while several agents
/// attached and bound at once. The errno is not worth that: a version is asked here, not a probe.
fn trampolines_are_safe() -> bool {
    aya::util::KernelVersion::current()
        .is_ok_and(|version| version >= aya::util::KernelVersion::new(5, 12, 0))
}

fn attach(ebpf: &mut Ebpf, name: &str, hook: Hook, root: &File, btf: &Btf) -> Result<(), ProgramError> {
    let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    match hook {
        Hook::BindAddress => {
            let program: &mut CgroupSockAddr = program.try_into()?;
            program.load()?;
            program.attach(root, CgroupAttachMode::Single)?;
        }
        Hook::Socket => {
            let program: &mut CgroupSock = program.try_into()?;
            program.load()?;
            program.attach(root, CgroupAttachMode::Single)?;
        }
        Hook::Tracepoint(tracepoint) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(tracepoint, btf)?;
            program.attach()?;
        }
        Hook::End(function) => {
            let program: &mut FExit = program.try_into()?;
            program.load(function, btf)?;
            program.attach()?;
        }
        Hook::RawTracepoint(tracepoint) => {
            let program: &mut RawTracePoint = program.try_into()?;
            program.load()?;
            program.attach(tracepoint)?;
        }
        Hook::Asked => {
            let program: &mut RawTracePoint = program.try_into()?;
            program.load()?;
        }
    }
    Ok(())
}

fn detach(ebpf: &mut Ebpf, name: &str, hook: Hook) {
    // One that was never loaded has nothing to unload.
    let _ = match (hook, ebpf.program_mut(name)) {
        (Hook::Tracepoint(_), Some(Program::BtfTracePoint(program))) => program.unload(),
        (Hook::End(_), Some(Program::FExit(program))) => program.unload(),
        _ => Ok(()),
    };
}

/// What the kernel answered, where it is the kernel that refused.
fn refusal(error: &ProgramError) -> Option<&io::Error> {
    match error {
        ProgramError::LoadError { io_error, .. } => Some(io_error),
        ProgramError::SyscallError(error) => Some(&error.io_error),
        _ => None,
    }
}

pub(super) fn unavailable(name: &str, error: &ProgramError) -> Unavailable {
    match (error, refusal(error)) {
        // Loaded, and refused at the cgroup: whoever is attached there allows no other.
        (ProgramError::SyscallError(_), Some(io_error)) if name != "open_files" && is_denial(io_error) => {
            Unavailable::CgroupLocked(format!("{name}: {io_error}"))
        }
        (_, Some(io_error)) if is_denial(io_error) => denied(io_error, &sentence(error)),
        _ => Unavailable::Failed(format!("{name}: {}", sentence(error))),
    }
}

fn is_denial(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn denied(error: &io::Error, words: &str) -> Unavailable {
    let locked = fs::read_to_string(LOCKDOWN).is_ok_and(|modes| modes.contains("[confidentiality]"));
    match (is_denial(error), locked) {
        (true, true) => Unavailable::LockedDown,
        (true, false) => Unavailable::Denied(words.to_owned()),
        (false, _) => Unavailable::Failed(words.to_owned()),
    }
}

/// An error in one line; of the verifier's words the last ones.
fn sentence(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            let last = lines.get(lines.len().saturating_sub(VERIFIER_LINES)..).unwrap_or_default().join("; ");
            if last.is_empty() { io_error.to_string() } else { format!("{io_error} ({last})") }
        }
        error => error.to_string(),
    }
}

/// Takes a map out of an object.
pub(super) fn map<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T, Unavailable> {
    let map =
        ebpf.take_map(name).ok_or_else(|| Unavailable::Failed(format!("the object has no map '{name}'")))?;
    T::try_from(map).map_err(|error| Unavailable::Failed(error.to_string()))
}
