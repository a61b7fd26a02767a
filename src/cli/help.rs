//! What the help of each verb ends with: what its exit codes mean, and examples. Each example is parsed by a test, so all of
//! them can be run as they stand.

/// `sniffer` itself.
pub(super) const SNIFFER: &str = "\
Without a daemon the commands look for themselves; `sniffer doctor` says what these privileges let them see. As root they see all.
Exit code: 0 answered, 1 answered the other way (nobody holds it), 2 could not be answered: standard error says why, and what to do.

Examples:
  sniffer who-holds 8081
  sniffer can-bind 8081/tcp
  sniffer run --fail-on-leak -- make test
  sniffer doctor";

pub(super) const WHO_HOLDS: &str = "\
Exit code: 0 held, 1 nobody holds it, 2 could not be answered.

Examples:
  sniffer who-holds 8081
  sniffer who-holds 127.0.0.1:8081/tcp --json
  sniffer who-holds 8000-8100 --netns blue
  sniffer who-holds 8081 --watch";

pub(super) const LIST: &str = "\
Exit code: 0 some port is held, 1 none is, 2 could not be answered.

Examples:
  sniffer list
  sniffer list --netns host
  sniffer list --watch --json
  sniffer list --json | jq '.claims[].port'";

pub(super) const LEAKS: &str = "\
Exit code: 0 nothing leaked, 1 leaks exist, 2 no daemon runs.

Examples:
  sniffer leaks
  sniffer leaks --json";

pub(super) const CAN_BIND: &str = "\
A bare port means TCP and UDP, on every address. Nothing is bound to find out.
Exit code: 0 it would, 1 it would not, 2 could not be answered.

Examples:
  sniffer can-bind 8081
  sniffer can-bind 127.0.0.1:8081/tcp --reuseaddr
  sniffer can-bind 80/tcp --uid 1001 --json";

pub(super) const WAIT_FREE: &str = "\
Exit code: 0 it would succeed now, 1 timed out, 2 could not be answered.

Examples:
  sniffer wait-free 8081/tcp --timeout 30s && ./server
  sniffer wait-free 127.0.0.1:5432/tcp --reuseaddr";

pub(super) const CONFLICTS: &str = "\
Where no daemon runs, the file that the last one wrote is read.
Exit code: 0 there are some, 1 there are none, 2 could not be answered.

Examples:
  sniffer conflicts
  sniffer conflicts --since 2h
  sniffer conflicts --since 14:03 --json";

pub(super) const HISTORY: &str = "\
Asks the daemon; where none runs it reads the file that the last one wrote. Connections are not remembered.
Exit code: 0 somebody is remembered, 1 nobody is, 2 could not be answered.

Examples:
  sniffer history 8081
  sniffer history 8081 --at 14:03
  sniffer history 8000-8100 --since 2h --json
  sniffer history 8081 --db ./history.db";

pub(super) const REPORT: &str = "\
Every port of the job, refused binds with both sides, leaks and lost listeners.
Exit code: 0 written, 2 no such job is remembered.

Examples:
  sniffer report --job github_1f0c
  sniffer report --job 4711 --ci gitlab --format html -o ports.html";

pub(super) const REAP: &str = "\
Never ends a client, pid 1 or what is exempt (unless you name its port); reaches exactly the process that was planned, or none.
Exit code: 0 planned or ended, 1 something did not end, 2 not permitted or no daemon.

Examples:
  sniffer reap --leaked
  sniffer reap --job github_1f0c --yes
  sniffer reap 8081/tcp --yes";

pub(super) const RUN: &str = "\
Signals are handed on. What is left is told on standard error.
Exit code: the command's (126 and 127 where it cannot be run or found, its signal where one ended it); 3 with --fail-on-leak where it \
passed and left a held port behind; 2 wrong usage.

Examples:
  sniffer run -- make test
  sniffer run --fail-on-leak -- go test ./...
  sniffer run --name api --fail-on-leak --reap -- ./run-tests.sh
  sniffer run --ports 1 -- sh -c './server --port $SNIFFER_PORT'";

pub(super) const JOB: &str = "\
Hooks that call it are in integrations/.

Examples:
  sniffer job start --id nightly-7
  sniffer job end --id nightly-7
  sniffer job list";

pub(super) const JOB_START: &str = "\
Of the job is what has SNIFFER_JOB_ID=ID in its environment, and every descendant of --pid, whose end also ends the job. A job of a \
system that sniffer knows is of it without.
Exit code: 0 begun, 2 refused (the id was used already, another user's job or process) or no daemon.

Examples:
  sniffer job start --id nightly-7 --name nightly && export SNIFFER_JOB_ID=nightly-7
  sniffer job start --id 4711 --ci gitlab --pid 4121";

pub(super) const JOB_END: &str = "\
Exit code: 0 ended, 2 refused (no such job, ended already, another user's) or no daemon.

Examples:
  sniffer job end --id nightly-7
  sniffer job end --id \"$RUNNER_TRACKING_ID\" --format github";

pub(super) const JOB_LIST: &str = "\
Exit code: 0 there are some, 1 there are none, 2 no daemon.

Examples:
  sniffer job list
  sniffer job list --json | jq '.jobs[] | select(.state == \"running\")'";

pub(super) const DAEMON: &str = "\
SIGTERM ends it, SIGHUP reloads the configuration. SNIFFER_LOG sets the log filter (error, warn, info, debug).
Exit code: 0 ended by a signal, 2 it could not start.

Examples:
  sniffer daemon
  sniffer daemon --config ./config.toml";

pub(super) const CHECK_CONFIG: &str = "\
Exit code: 0 valid, 2 mistakes.

Examples:
  sniffer check-config
  sniffer check-config ./config.toml";

pub(super) const DOCTOR: &str = "\
Exit code: 0 everything is there, 1 something is missing.

Examples:
  sniffer doctor
  sudo sniffer doctor --json";

pub(super) const COMPLETIONS: &str = "\
Examples:
  sniffer completions bash > /usr/share/bash-completion/completions/sniffer
  sniffer completions zsh > /usr/local/share/zsh/site-functions/_sniffer
  sniffer completions fish > ~/.config/fish/completions/sniffer.fish";

pub(super) const MAN: &str = "\
Examples:
  sniffer man | man -l -
  sniffer man > /usr/local/share/man/man8/sniffer.8";

/// The part of a help that has examples, one a line; `None` where there is none.
pub(super) fn examples(help: &str) -> Option<impl Iterator<Item = &str>> {
    Some(help.split_once("Examples:\n")?.1.lines().map(str::trim))
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    use super::super::Cli;
    use super::examples;

    /// Every verb, and the verbs below it, with its full name.
    fn verbs(command: &Command, found: &mut Vec<(String, Command)>) {
        for verb in command.get_subcommands() {
            found.push((verb.get_bin_name().unwrap_or_default().to_owned(), verb.clone()));
            verbs(verb, found);
        }
    }

    fn all() -> Vec<(String, Command)> {
        let mut command = Cli::command();
        command.build();
        let mut found = vec![("sniffer".to_owned(), command.clone())];
        verbs(&command, &mut found);
        found
    }

    /// The arguments of `sniffer` in a line of a shell, up to what is another command's or file's.
    fn arguments(line: &str) -> Vec<String> {
        let (mut words, mut quote, mut begun) = (vec![String::new()], None, false);
        for c in line.chars() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (None, '\'' | '"') => (quote, begun) = (Some(c), true),
                (None, ' ') => {
                    words.push(String::new());
                    begun = false;
                }
                (None, '|' | '&' | '>' | ';') => break,
                (_, c) => words.last_mut().unwrap().push(c),
            }
        }
        words.retain(|word| !word.is_empty() || begun);
        let program = words.iter().position(|word| word == "sniffer").expect("it runs sniffer");
        words.split_off(program)
    }

    #[test]
    fn a_line_of_a_shell_is_read_as_a_shell_does() {
        let line = "sudo sniffer job end --id \"$A B\" --format 'x y' | jq '.a | b'";
        assert_eq!(arguments(line), ["sniffer", "job", "end", "--id", "$A B", "--format", "x y"]);
    }

    #[test]
    fn every_verb_says_what_it_does_and_ends_with_examples_that_parse() {
        let verbs = all();
        assert!(verbs.iter().any(|(name, _)| name == "sniffer job end"), "the verbs below verbs are there");
        for (name, verb) in &verbs {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty(), "{name} does not say what it does");
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            let shown: Vec<&str> =
                examples(&help).unwrap_or_else(|| panic!("{name} has no examples")).collect();
            assert!((2..=4).contains(&shown.len()), "{name}: {shown:?}");
            for example in shown {
                let arguments = arguments(example);
                let parsed = Cli::command().try_get_matches_from(&arguments);
                assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
                let named = arguments.join(" ");
                assert!(named.starts_with(name), "an example of another verb stands at {name}: {example}");
            }
        }
    }

    #[test]
    fn every_argument_says_what_it_is() {
        for (name, verb) in all() {
            for argument in verb.get_arguments() {
                assert!(argument.get_help().is_some(), "{name}: {}", argument.get_id());
            }
        }
    }

    #[test]
    fn an_exit_code_is_said_where_it_answers() {
        let no_answer = ["sniffer job", "sniffer completions", "sniffer man"];
        for (name, verb) in all().iter().filter(|(name, _)| !no_answer.contains(&name.as_str())) {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Exit code: "), "{name}");
        }
    }
}
