//! Programs that outlive jobs on purpose: build servers, caches, agents (`leak.exempt` in config.toml).

/// What a build tool's server is called where neither its name nor its executable says so.
const SERVERS_BY_ARGUMENT: [(&str, &str); 3] = [
    ("gradle", "org.gradle.launcher.daemon.bootstrap.GradleDaemon"),
    ("gradle", "org.jetbrains.kotlin.daemon.KotlinCompileDaemon"),
    ("bazel", "com.google.devtools.build.lib.bazel.Bazel"),
];

/// A process as far as exemption goes.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// Its name.
    pub comm: &'a str,
    /// Its arguments.
    pub cmdline: &'a [String],
}

/// The entry of the list that a program falls under, if any: by its name, by its first argument's file name (bazel calls
/// itself `bazel(workspace)`), or as the server of a build tool that runs inside a JVM.
pub fn entry<'a>(list: &'a [String], program: Program<'_>) -> Option<&'a str> {
    let argument0 = program.cmdline.first().map(|argument| argument.rsplit('/').next().unwrap_or(argument));
    list.iter().map(String::as_str).find(|name| {
        program.comm == *name
            || argument0.is_some_and(|argument| argument == *name || is_call_of(argument, name))
            || SERVERS_BY_ARGUMENT
                .iter()
                .any(|(tool, class)| tool == name && program.cmdline.iter().any(|argument| argument == class))
    })
}

fn is_call_of(argument: &str, name: &str) -> bool {
    argument.strip_prefix(name).is_some_and(|rest| rest.starts_with('(') && rest.ends_with(')'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_exempt(comm: &str, cmdline: &[&str]) -> bool {
        let list = ["bazel".to_owned(), "gradle".to_owned(), "sccache".to_owned()];
        let cmdline: Vec<String> = cmdline.iter().map(|argument| (*argument).to_owned()).collect();
        entry(&list, Program { comm, cmdline: &cmdline }).is_some()
    }

    #[test]
    fn servers_are_known_by_name_argument_or_class() {
        assert!(is_exempt("sccache", &["/usr/bin/sccache"]));
        assert!(is_exempt("java", &["bazel(gateway)", "-Xmx2g"]));
        assert!(is_exempt(
            "java",
            &["/usr/bin/java", "org.gradle.launcher.daemon.bootstrap.GradleDaemon", "8.5"]
        ));
    }

    #[test]
    fn what_they_start_is_not() {
        assert!(!is_exempt("java", &["java", "worker.org.gradle.process.internal.worker.GradleWorkerMain"]));
        assert!(!is_exempt("bazel-server-test", &["./bazel-server-test"]));
        assert!(!is_exempt("sh", &["sh", "-c", "sccache"]));
    }
}
