//! Which container a client of an engine starts, by its arguments: `docker start ID`, as GitHub's runner starts a job's container and its
//! services. A container that is only entered (`docker exec`) was somebody's before.
//! Source: actions/runner, src/Runner.Worker/Container/DockerCommandManager.cs.

/// The engines' own clients.
const CLIENTS: [&str; 3] = ["docker", "podman", "nerdctl"];
/// A whole id, as engines and cgroups have it. A name, or the beginning of an id, may be another container's next time.
const ID_CHARS: usize = 64;

/// The ids of the containers that a process starts.
pub fn starts<'a>(comm: &str, cmdline: &'a [String]) -> impl Iterator<Item = &'a str> {
    let is_client = CLIENTS.contains(&comm);
    let mut words = cmdline.iter().skip(1).map(String::as_str).skip_while(|word| *word != "start");
    let is_start = words.next().is_some();
    words.filter(move |word| is_client && is_start && is_id(word))
}

fn is_id(word: &str) -> bool {
    word.len() == ID_CHARS && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_that_starts_a_whole_id_is_meant() {
        let id = "4f".repeat(32);
        let found = |comm: &str, words: &[&str]| {
            let cmdline: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            starts(comm, &cmdline).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(found("docker", &["/usr/bin/docker", "start", &id]), [id.as_str()]);
        assert_eq!(found("podman", &["podman", "container", "start", "--attach", &id]), [id.as_str()]);
        for (comm, words) in [
            ("docker", &["docker", "exec", "-i", &id, "sh"][..]),
            ("docker", &["docker", "run", "start"]),
            ("docker", &["docker", "start", "web"]),
            ("docker", &["docker", "start", "4f4f4f4f4f4f"]),
            ("docker", &[]),
            ("sh", &["sh", "start", &id]),
        ] {
            assert_eq!(found(comm, words), [""; 0], "{words:?}");
        }
    }
}
