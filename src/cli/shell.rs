//! `sniffer completions SHELL` and `sniffer man`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{ANSWERED, Cli, Failure, printed};
use crate::report;

/// Completions of a shell.
pub(super) fn completions(shell: Shell) -> Result<u8, Failure> {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sniffer", &mut bytes);
    printed(report::print_bytes(&bytes))?;
    Ok(ANSWERED)
}

/// One manual page with every verb.
pub(super) fn man() -> Result<u8, Failure> {
    let mut bytes = Vec::new();
    render(&mut bytes).map_err(|error| format!("cannot make the manual page: {error}"))?;
    printed(report::print_bytes(&bytes))?;
    Ok(ANSWERED)
}

fn render(bytes: &mut Vec<u8>) -> std::io::Result<()> {
    let mut command = Cli::command();
    command.build();
    let page = clap_mangen::Man::new(command.clone()).section("8");
    page.render(bytes)?;
    command.get_subcommands().try_for_each(|verb| section(bytes, "SNIFFER", verb))
}

/// A verb, and the verbs below it.
fn section(bytes: &mut Vec<u8>, above: &str, verb: &clap::Command) -> std::io::Result<()> {
    let heading = format!("{above} {}", verb.get_name().to_uppercase().replace('-', "\\-"));
    bytes.extend(format!(".SH \"{heading}\"\n").into_bytes());
    let of_verb = clap_mangen::Man::new(verb.clone());
    of_verb.render_synopsis_section(bytes)?;
    of_verb.render_description_section(bytes)?;
    of_verb.render_options_section(bytes)?;
    of_verb.render_extra_section(bytes)?;
    verb.get_subcommands().try_for_each(|below| section(bytes, &heading, below))
}
