//! `cargo bench --bench compare`: sniffer beside ss, lsof, fuser, netstat, somo and killport, and what its agent costs as the host grows.
//!
//! Makes hosts of 100, 2,000 and 10,000 processes for real, asks each tool who holds a port, and counts time, CPU and system calls.
//! Then makes ports that are taken in other ways, and looks which tool names who has them. Then hosts with more sockets and more
//! namespaces, with the agent idle. Prints markdown tables; `-- --picture FILE` draws the curves as SVG. Needs root, and Debian's
//! iproute2, lsof, psmisc, net-tools, nftables and strace; somo and killport are installed by cargo below `target/` where that
//! works, and left out where not. killport is run with `--dry-run` only.
//!
//! `-- --quick` makes small hosts, to try the benchmark itself.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark is a program of its own, and its product is the table"
)]

#[path = "common/mod.rs"]
mod common;
#[path = "compare/finds.rs"]
mod finds;
#[path = "compare/growth.rs"]
mod growth;
#[path = "compare/picture.rs"]
mod picture;
#[path = "compare/questions.rs"]
mod questions;
#[path = "compare/tools.rs"]
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use common::load::Scale;
use common::{Failure, interrupt, worker};
use picture::{Line, Panel};
use tools::Tool;

/// Sniffer beside other tools.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Small hosts, for a first look
    #[arg(long)]
    quick: bool,
    /// Processes of each host
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "100,2000,10000",
        default_value_if("quick", "true", "20,100")
    )]
    processes: Vec<usize>,
    /// Open descriptors of each process
    #[arg(long, default_value_t = 100)]
    descriptors: usize,
    /// TCP listeners of each host of the second part
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1000,10000,40000",
        default_value_if("quick", "true", "100,1000")
    )]
    listeners: Vec<usize>,
    /// Network namespaces of each host of the third part
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10,100,300",
        default_value_if("quick", "true", "2,10")
    )]
    namespaces: Vec<usize>,
    /// How often each tool is asked, if that takes no longer than 20 seconds
    #[arg(long, default_value_t = 9, default_value_if("quick", "true", "3"))]
    repetitions: usize,
    /// Tools not to ask, by their names: at 10,000 processes some take minutes for an answer
    #[arg(long, value_delimiter = ',')]
    leave_out: Vec<String>,
    /// How long the idle agent is watched on each host, in seconds
    #[arg(long, default_value_t = 30, default_value_if("quick", "true", "5"))]
    idle: u64,
    /// Draw the curves into this file, as SVG
    #[arg(long)]
    picture: Option<PathBuf>,
    /// Given by `cargo bench`; without it, as in `cargo test --benches`, nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(worker::ARGUMENT) {
        return worker::run(arguments);
    }
    let options = Options::parse();
    if !options.bench {
        println!("nothing is measured: run it with `cargo bench --bench compare`");
        return ExitCode::SUCCESS;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("compare: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root, to make network namespaces: sudo -E cargo bench --bench compare".to_owned());
    }
    interrupt::catch()?;
    let mut tools = tools::all();
    tools.retain(|tool| options.leave_out.iter().all(|name| name != tool.name));
    println!("What each finds:\n\n{}\n", finds::table(&tools)?);

    let mut asked = Vec::new();
    let mut by_processes = Vec::new();
    for processes in &options.processes {
        let scale = Scale {
            processes: *processes,
            descriptors: options.descriptors,
            listeners: 200.min(*processes),
            namespaces: 10,
        };
        let (cost, rows) = growth::host(scale, options.idle, |load, daemon| {
            questions::ask(&tools, load, daemon, options.repetitions)
        })?;
        println!("Who holds a port, on a host of {}:\n\n{}\n", scale.words(), questions::table(&rows));
        asked.push((*processes, rows));
        by_processes.push(cost);
    }
    let idle_only = |scale: Scale| growth::host(scale, options.idle, |_, _| Ok(())).map(|(cost, ())| cost);
    let of_sockets = |listeners: &usize| {
        idle_only(Scale { processes: 400, descriptors: 10, listeners: *listeners, namespaces: 100 })
    };
    let by_sockets = options.listeners.iter().map(of_sockets).collect::<Result<Vec<_>, Failure>>()?;
    let of_namespaces = |namespaces: &usize| {
        idle_only(Scale { processes: 1000, descriptors: 10, listeners: 1000, namespaces: *namespaces })
    };
    let by_namespaces = options.namespaces.iter().map(of_namespaces).collect::<Result<Vec<_>, Failure>>()?;
    let all = by_processes.iter().chain(&by_sockets).chain(&by_namespaces);
    println!("What the agent costs, idle for {} s:\n\n{}\n", options.idle, growth::table(all));

    if let Some(path) = &options.picture {
        let memory = |title, axis, of: fn(&Scale) -> usize, costs: &[growth::Cost]| Panel {
            title,
            x: axis,
            y: "MiB",
            logarithmic: false,
            lines: vec![Line::of(
                "resident",
                costs.iter().map(|cost| (of(&cost.scale) as f64, cost.resident_mib)),
            )],
        };
        let panels = [
            answers(&tools, &asked),
            memory("The idle agent: memory", "processes", |scale| scale.processes, &by_processes),
            memory("The idle agent: memory", "TCP listeners", |scale| scale.listeners, &by_sockets),
            memory("The idle agent: memory", "network namespaces", |scale| scale.namespaces, &by_namespaces),
        ];
        std::fs::write(path, picture::svg(&panels))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// The time of an answer by the number of processes, a line for each tool.
fn answers(tools: &[Tool], asked: &[(usize, Vec<questions::Row>)]) -> Panel {
    let lines = tools.iter().map(|tool| {
        let points = asked.iter().filter_map(|(processes, rows)| {
            let row = rows.iter().find(|row| row.tool == tool.name)?;
            Some((*processes as f64, row.milliseconds))
        });
        Line::of(tool.name, points)
    });
    Panel {
        title: "Who holds a port: time of an answer",
        x: "processes",
        y: "ms",
        logarithmic: true,
        lines: lines.collect(),
    }
}
