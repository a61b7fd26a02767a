//! Which test a process is of: what the runners of tests leave in variables, arguments and paths. As exact as that is, and no more.
//!
//! Some runners name each test (nextest, pytest in what it starts, Bazel), some only the worker or the binary that runs several.
//! Sources: nextest's env-vars.md, pytest's and pytest-xdist's documentation, Bazel's test encyclopedia, CTest's cmCTest.cxx, the
//! workers of Gradle, Surefire, jest-worker, Vitest's and Playwright's.

use crate::model::job::Test;
use crate::model::process::{Process, Variables};

/// The environment variables it reads; no others are ever kept.
pub const VARIABLES: &[&str] = &[
    NAMED,
    "NEXTEST_TEST_NAME",
    "PYTEST_CURRENT_TEST",
    "VITEST_POOL_ID",
    "TEST_PARALLEL_INDEX",
    "TEST_WORKER_INDEX",
    "JEST_WORKER_ID",
    "TEST_TARGET",
    "TEST_SHARD_INDEX",
    "TEST_TOTAL_SHARDS",
    CTEST[0],
    CTEST[1],
];

/// A name that a command was given by `sniffer run --name`.
pub const NAMED: &str = "SNIFFER_TEST_NAME";
/// Set by CTest for everything it starts: for a dashboard the first, else the second (3.25.1, read off its tests' environment).
const CTEST: [&str; 2] = ["DASHBOARD_TEST_FROM_CTEST", "CTEST_INTERACTIVE_DEBUG_MODE"];
/// Programs that run the one that their first argument names.
const INTERPRETERS: [&str; 6] = ["sh", "bash", "dash", "python3", "perl", "node"];
/// This program.
const OURSELVES: &str = "sniffer";
/// What cargo puts between a name and `.`: the length of its hash.
const CARGO_HASH_CHARS: usize = 16;

/// The test of a process that has just begun to run a program, or was met. `parent` is the name of its parent, `inherited` that one's
/// test.
pub fn recognize(process: &Process, parent: Option<&str>, inherited: Option<&Test>) -> Option<Test> {
    let Process { variables, cmdline, .. } = process;
    let own = by_variables(variables)
        .or_else(|| by_arguments(cmdline))
        .or_else(|| by_ctest(variables, cmdline, parent));
    let worker =
        variables.get("JEST_WORKER_ID").filter(|_| inherited.is_some_and(|test| test.framework == "jest"));
    // jest-worker is used by others too: only below jest is its worker one of tests.
    own.or_else(|| worker.map(|worker| test("jest", format!("worker {worker}"))))
        .or_else(|| inherited.cloned())
}

fn test(framework: &str, name: impl Into<String>) -> Test {
    Test { framework: framework.to_owned(), name: name.into() }
}

/// Those that say it to all they start; the most exact first.
fn by_variables(variables: &Variables) -> Option<Test> {
    let get = |name| variables.get(name);
    if let Some(name) = get(NAMED) {
        return Some(test("custom", name));
    }
    if let Some(running) = get("PYTEST_CURRENT_TEST") {
        // `tests/test_api.py::test_get (call)`
        let id = running.rsplit_once(" (").map_or(running, |(id, _)| id);
        return Some(test("pytest", id));
    }
    if let Some(name) = get("NEXTEST_TEST_NAME") {
        return Some(test("nextest", name));
    }
    if let Some(pool) = get("VITEST_POOL_ID") {
        return Some(test("vitest", format!("worker {pool}")));
    }
    if let (Some(worker), Some(_)) = (get("TEST_WORKER_INDEX"), get("TEST_PARALLEL_INDEX")) {
        return Some(test("playwright", format!("worker {worker}")));
    }
    let target = get("TEST_TARGET").filter(|target| target.starts_with("//") || target.starts_with('@'))?;
    let shard =
        match (get("TEST_SHARD_INDEX").and_then(|index| index.parse::<u32>().ok()), get("TEST_TOTAL_SHARDS"))
        {
            (Some(index), Some(total)) if total != "1" && total != "0" => {
                format!(" (shard {} of {total})", index.saturating_add(1))
            }
            _ => String::new(),
        };
    Some(test("bazel", format!("{target}{shard}")))
}

/// Those that are told by their program.
fn by_arguments(arguments: &[String]) -> Option<Test> {
    let program = arguments.first()?;
    cargo(program)
        .or_else(|| go(program, arguments))
        .or_else(|| pytest(arguments))
        .or_else(|| gradle(arguments))
        .or_else(|| maven(arguments))
        .or_else(|| jest(arguments))
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `/repo/target/debug/deps/api-0123456789abcdef`
fn cargo(program: &str) -> Option<Test> {
    let (directory, file) = program.rsplit_once('/')?;
    let (name, hash) = file.rsplit_once('-')?;
    let is_hash = hash.len() == CARGO_HASH_CHARS && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    (base(directory) == "deps" && is_hash && !name.is_empty()).then(|| test("cargo", name))
}

/// `/tmp/go-build123/b001/provider.test -test.timeout=10m0s`, or one that was kept by `go test -c`.
fn go(program: &str, arguments: &[String]) -> Option<Test> {
    let name = base(program);
    let is_test = name.ends_with(".test") && name.len() > ".test".len();
    let told = program.contains("/go-build")
        || arguments.iter().skip(1).any(|argument| argument.starts_with("-test."));
    (is_test && told)
        .then(|| test("go", one(arguments).map_or(name.to_owned(), |one| format!("{name} {one}"))))
}

/// `-test.run=^TestGet$/^empty$`: one test, as `go test -run` is asked for it. Of any other pattern nobody knows what it meets.
fn one(arguments: &[String]) -> Option<String> {
    let pattern = arguments.iter().find_map(|argument| argument.strip_prefix("-test.run="))?;
    let name = |part: &str| {
        let name = part.strip_prefix('^')?.strip_suffix('$')?;
        let plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-#=".contains(c));
        plain.then(|| name.to_owned())
    };
    let names: Option<Vec<String>> = pattern.split('/').map(name).collect();
    Some(names?.join("/"))
}

/// `pytest tests/unit`, `python3 -m pytest tests/unit`, `python3 /venv/bin/pytest`. What it starts names the test itself.
fn pytest(arguments: &[String]) -> Option<Test> {
    let is_pytest = |argument: &String| matches!(base(argument), "pytest" | "py.test");
    let mut rest = arguments.iter();
    let program = rest.next()?;
    if !is_pytest(program) {
        base(program).starts_with("python").then_some(())?;
        // Options of Python itself take no word of their own, but -m, -c, -W and -X.
        let first = rest.find(|argument| *argument == "-m" || !argument.starts_with('-'))?;
        let script = if first == "-m" { rest.next()? } else { first };
        is_pytest(script).then_some(())?;
    }
    // Behind an option a word may be its value: only what stands before, or is surely a test, counts.
    let arguments: Vec<&str> = rest.map(String::as_str).collect();
    let options = arguments.iter().position(|argument| argument.starts_with('-')).unwrap_or(arguments.len());
    let is_test = |argument: &str| argument.contains(".py::") && !argument.starts_with('-');
    let places: Vec<&str> = arguments
        .iter()
        .enumerate()
        .filter(|(index, argument)| *index < options || is_test(argument))
        .map(|(_, argument)| *argument)
        .collect();
    Some(test("pytest", if places.is_empty() { "pytest".to_owned() } else { places.join(" ") }))
}

/// `… worker.org.gradle.process.internal.worker.GradleWorkerMain 'Gradle Test Executor 3'`: the executor, and project and task of its
/// temporary directory, `/repo/app/build/tmp/test/work`.
fn gradle(arguments: &[String]) -> Option<Test> {
    arguments.iter().any(|argument| argument.ends_with("GradleWorkerMain")).then_some(())?;
    let executor =
        arguments.iter().find(|argument| argument.trim_matches('\'').starts_with("Gradle Test Executor"))?;
    let executor = executor.trim_matches('\'');
    let task = arguments.iter().find_map(|argument| {
        let directory = argument.strip_prefix("-Dorg.gradle.internal.worker.tmpdir=")?;
        let (project, task) = directory.split_once("/build/tmp/")?;
        Some(format!("{}:{}", base(project), task.split('/').next()?))
    });
    Some(test("gradle", task.map_or_else(|| executor.to_owned(), |task| format!("{task} ({executor})"))))
}

/// `java -jar /repo/app/target/surefire/surefirebooter123.jar …`: the module.
fn maven(arguments: &[String]) -> Option<Test> {
    let jar = arguments.iter().find(|argument| base(argument).starts_with("surefirebooter"))?;
    let module =
        jar.split_once("/target/").map(|(module, _)| base(module)).filter(|module| !module.is_empty());
    Some(test("maven", module.unwrap_or("surefire")))
}

/// `node /repo/node_modules/.bin/jest`
fn jest(arguments: &[String]) -> Option<Test> {
    (base(arguments.first()?) == "node").then_some(())?;
    let script = arguments.iter().skip(1).find(|argument| !argument.starts_with('-'))?;
    let is_jest = base(script) == "jest"
        || script.ends_with("/jest/bin/jest.js")
        || script.ends_with("/jest-cli/bin/jest.js");
    is_jest.then(|| test("jest", "jest"))
}

/// CTest starts a test's program and says nothing of its name: the program stands for it. What that starts has the variable too, and
/// names nothing.
fn by_ctest(variables: &Variables, arguments: &[String], parent: Option<&str>) -> Option<Test> {
    CTEST.iter().find_map(|name| variables.get(name))?;
    parent.filter(|parent| ["ctest", OURSELVES].contains(parent))?;
    let program = match arguments {
        [interpreter, script, ..]
            if INTERPRETERS.contains(&base(interpreter)) && !script.starts_with('-') =>
        {
            base(script)
        }
        _ => base(arguments.first()?),
    };
    // Whoever wraps tests with `sniffer run` means what that runs.
    (program != OURSELVES).then(|| test("ctest", program))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::process::fixtures::literal;

    fn process(arguments: &[&str], variables: Variables) -> Process {
        let cmdline = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Process { cmdline, variables, ..literal(7, 1, "x") }
    }

    fn told(arguments: &[&str]) -> Option<(String, String)> {
        let found = recognize(&process(arguments, Variables::default()), None, None)?;
        Some((found.framework, found.name))
    }

    #[track_caller]
    fn assert_told(arguments: &[&str], framework: &str, name: &str) {
        assert_eq!(told(arguments), Some((framework.to_owned(), name.to_owned())), "{arguments:?}");
    }

    #[test]
    fn variables_name_the_test_and_the_most_exact_counts() {
        for (variables, framework, name) in [
            (Variables::from([("NEXTEST_TEST_NAME", "api::get")]), "nextest", "api::get"),
            (
                Variables::from([("PYTEST_CURRENT_TEST", "t/test_a.py::test_b[x (y)] (setup)")]),
                "pytest",
                "t/test_a.py::test_b[x (y)]",
            ),
            (Variables::from([("VITEST_POOL_ID", "2"), ("JEST_WORKER_ID", "2")]), "vitest", "worker 2"),
            (
                Variables::from([("TEST_WORKER_INDEX", "4"), ("TEST_PARALLEL_INDEX", "1")]),
                "playwright",
                "worker 4",
            ),
            (Variables::from([("TEST_TARGET", "//api:get")]), "bazel", "//api:get"),
            (
                Variables::from([
                    ("TEST_TARGET", "//api:get"),
                    ("TEST_SHARD_INDEX", "0"),
                    ("TEST_TOTAL_SHARDS", "4"),
                ]),
                "bazel",
                "//api:get (shard 1 of 4)",
            ),
            (
                Variables::from([("TEST_TARGET", "//api:get"), ("PYTEST_CURRENT_TEST", "a.py::b (call)")]),
                "pytest",
                "a.py::b",
            ),
            (
                Variables::from([("SNIFFER_TEST_NAME", "smoke"), ("TEST_TARGET", "//api:get")]),
                "custom",
                "smoke",
            ),
        ] {
            let found = recognize(&process(&["/bin/sh"], variables), None, None).unwrap();
            assert_eq!((found.framework.as_str(), found.name.as_str()), (framework, name));
        }
        for nothing in [
            Variables::from([("TEST_TARGET", "staging")]),
            Variables::from([("TEST_WORKER_INDEX", "1")]),
            Variables::from([("JEST_WORKER_ID", "1")]),
            Variables::from([("NEXTEST_TEST_NAME", "")]),
        ] {
            assert_eq!(recognize(&process(&["/bin/sh"], nothing.clone()), None, None), None, "{nothing:?}");
        }
    }

    #[test]
    fn programs_that_run_tests_are_known_by_their_arguments() {
        assert_told(&["/r/target/debug/deps/api-0123456789abcdef", "--nocapture"], "cargo", "api");
        assert_told(&["/tmp/go-build12/b001/provider.test", "-test.v=true"], "go", "provider.test");
        assert_told(&["./gateway.test", "-test.run=TestA"], "go", "gateway.test");
        assert_told(&["./gateway.test", "-test.run=^TestA$/^b_c$"], "go", "gateway.test TestA/b_c");
        assert_told(&["./gateway.test", "-test.run=^(TestA|TestB)$"], "go", "gateway.test");
        assert_told(
            &["/usr/bin/python3", "-m", "pytest", "tests/unit", "-x", "-p", "no:cacheprovider", "-k", "get"],
            "pytest",
            "tests/unit",
        );
        assert_told(
            &["/usr/bin/python3", "-B", "/venv/bin/pytest", "--junitxml", "out/r.xml"],
            "pytest",
            "pytest",
        );
        assert_told(&["pytest", "a/test_x.py::test_y"], "pytest", "a/test_x.py::test_y");
        assert_told(
            &[
                "/jdk/bin/java",
                "-Dorg.gradle.internal.worker.tmpdir=/r/app/build/tmp/test/work",
                "worker.org.gradle.process.internal.worker.GradleWorkerMain",
                "'Gradle Test Executor 3'",
            ],
            "gradle",
            "app:test (Gradle Test Executor 3)",
        );
        assert_told(&["java", "-jar", "/r/core/target/surefire/surefirebooter71.jar"], "maven", "core");
        assert_told(&["node", "/r/node_modules/.bin/jest", "--ci"], "jest", "jest");
        for other in [
            &["/r/target/debug/api"][..],
            &["/r/target/debug/build/x-0123456789abcdef/build-script-build"],
            &["/usr/bin/app.test"],
            &["python3", "-m", "http.server"],
            &["python3", "-c", "import pytest"],
            &[
                "java",
                "worker.org.gradle.process.internal.worker.GradleWorkerMain",
                "'Gradle Compiler Daemon 1'",
            ],
            &["node", "server.js"],
            &["jest"],
            &[],
        ] {
            assert_eq!(told(other), None, "{other:?}");
        }
    }

    #[test]
    fn what_a_test_starts_is_of_that_test() {
        let go = test("go", "api.test");
        assert_eq!(recognize(&process(&["redis-server"], Variables::default()), None, Some(&go)), Some(go));
        let ctest = || Variables::from([("DASHBOARD_TEST_FROM_CTEST", "3.25")]);
        let first = recognize(&process(&["/b/test_api", "1"], ctest()), Some("ctest"), None).unwrap();
        assert_eq!(first, test("ctest", "test_api"));
        let interactive = Variables::from([("CTEST_INTERACTIVE_DEBUG_MODE", "1")]);
        assert_eq!(
            recognize(&process(&["/bin/sh", "/b/test_api"], interactive), Some("sniffer"), None),
            Some(first.clone())
        );
        assert_eq!(recognize(&process(&["/usr/bin/sniffer", "run"], ctest()), Some("ctest"), None), None);
        assert_eq!(recognize(&process(&["/usr/bin/server"], ctest()), Some("sh"), Some(&first)), Some(first));
        let orphan = recognize(&process(&["/usr/bin/server"], ctest()), Some("systemd"), None);
        assert_eq!(orphan, None, "whose test it was nobody knows");
        let jest = test("jest", "jest");
        let worker = Variables::from([("JEST_WORKER_ID", "3")]);
        assert_eq!(
            recognize(&process(&["node", "w.js"], worker), None, Some(&jest)),
            Some(test("jest", "worker 3"))
        );
    }

    proptest::proptest! {
        #[test]
        fn no_arguments_panic(arguments in proptest::collection::vec(".{0,60}", 0..6)) {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let _ = told(&arguments);
        }
    }
}
