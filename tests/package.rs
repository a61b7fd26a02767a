//! The package as an administrator meets it: installed, upgraded, removed and purged on a booted Debian, with its service at work.
//!
//! It is made by `scripts/package` from the binary under test, so nothing is built again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

#[path = "common/booted.rs"]
mod booted;
mod common;
#[allow(dead_code, reason = "no test is built for other kernels here")]
#[path = "kernels/executables.rs"]
mod executables;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use booted::{Host, SOON, source, text, wait};
use serde_json::Value;
use tempfile::TempDir;

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-1");
const LATER: &str = "9.0.0-1";

/// The package of this binary, and the same as a later version.
struct Packages(TempDir);

static PACKAGES: LazyLock<Packages> = LazyLock::new(|| {
    let directory = common::open_directory();
    for version in [VERSION, LATER] {
        let made = Command::new(source("scripts/package"))
            .args(["--deb-of", common::SNIFFER, "--output"])
            .arg(directory.path())
            .args(["--deb-version", version, "--fast"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}{}", text(&made.stdout), text(&made.stderr));
    }
    Packages(directory)
});

impl Packages {
    fn file(&self, version: &str) -> PathBuf {
        self.0.path().join(format!("sniffer_{version}_amd64.deb"))
    }

    /// A Debian at which both lie, as /packages/VERSION.deb.
    fn boot(&self) -> Host {
        Host::boot(&[(self.file(VERSION), "/packages/first.deb"), (self.file(LATER), "/packages/later.deb")])
    }
}

const INSTALL: &str = "DEBIAN_FRONTEND=noninteractive apt-get install --yes";

#[test]
fn the_version_of_debian_is_the_programs() {
    let changelog = fs::read_to_string(source("packaging/debian/changelog")).unwrap();
    assert!(changelog.starts_with(&format!("sniffer ({VERSION}) ")), "{changelog}");
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn the_package_has_every_file_at_its_place() {
    let listed = Command::new("dpkg-deb").arg("--contents").arg(PACKAGES.file(VERSION)).output().unwrap();
    let listed = text(&listed.stdout);
    let has = |mode: &str, path: &str| {
        let found =
            listed.lines().any(|line| line.starts_with(mode) && line.ends_with(&format!(" ./{path}")));
        assert!(found, "{mode} {path}\n{listed}");
    };
    has("-rwxr-xr-x", "usr/bin/sniffer");
    for path in [
        "usr/lib/systemd/system/sniffer.service",
        "usr/lib/sysusers.d/sniffer.conf",
        "usr/lib/tmpfiles.d/sniffer.conf",
        "usr/share/man/man8/sniffer.8.gz",
        "usr/share/bash-completion/completions/sniffer",
        "usr/share/zsh/vendor-completions/_sniffer",
        "usr/share/fish/vendor_completions.d/sniffer.fish",
        "etc/sniffer/config.toml",
        "usr/share/sniffer/integrations/prometheus/sniffer.rules.yml",
        "usr/share/sniffer/integrations/grafana/sniffer.json",
        "usr/share/doc/sniffer/copyright",
        "usr/share/doc/sniffer/changelog.gz",
        "usr/share/doc/sniffer/changelog.Debian.gz",
        "usr/share/doc/sniffer/docs/install.md",
    ] {
        has("-rw-r--r--", path);
    }
    // Hooks are run where they lie: what a README names as their path is theirs.
    for hook in
        ["github/job-started.sh", "gitlab/job-end.sh", "jenkins/job-start.sh", "buildkite/hooks/pre-exit"]
    {
        has("-rwxr-xr-x", &format!("usr/share/sniffer/integrations/{hook}"));
    }
}

#[test]
#[ignore = "needs root, and Rust's library for musl"]
fn the_static_binary_runs_where_there_is_nothing_else() {
    let output = common::open_directory();
    let made = Command::new(source("scripts/package"))
        .arg("--tar-of")
        .arg(executables::programs().path("sniffer"))
        .arg("--output")
        .arg(output.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}{}", text(&made.stdout), text(&made.stderr));
    let sums =
        Command::new("sha256sum").args(["--check", "SHA256SUMS"]).current_dir(&output).output().unwrap();
    assert!(sums.status.success(), "{}", text(&sums.stderr));

    let root = common::open_directory();
    let name = format!("sniffer-{}-x86_64-unknown-linux-musl", env!("CARGO_PKG_VERSION"));
    let tar = output.path().join(format!("{name}.tar.gz"));
    let unpacked = Command::new("tar").arg("-xzf").arg(tar).arg("-C").arg(root.path()).status().unwrap();
    assert!(unpacked.success());
    for file in [
        "README.md",
        "LICENSE-MIT",
        "config.toml",
        "docs/install.md",
        "systemd/sniffer.service",
        "integrations/README.md",
        "assets/sniffer.8.gz",
    ] {
        assert!(root.path().join(&name).join(file).exists(), "{file}");
    }
    // Nothing but it and /proc.
    fs::create_dir(root.path().join("proc")).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "mount --bind /proc {0}/proc && exec chroot {0} /{name}/sniffer who-holds {port}/tcp --json",
        root.path().display()
    );
    let answer = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    let document: Value = serde_json::from_slice(&answer.stdout).unwrap_or_else(|_| panic!("{answer:?}"));
    assert_eq!(document["claims"][0]["holders"][0]["pid"], std::process::id(), "{document:#}");
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn it_installs_a_service_that_answers_and_a_purge_leaves_nothing() {
    let host = PACKAGES.boot();
    host.done(&format!("{INSTALL} /packages/first.deb"));
    assert_eq!(
        [host.show("ActiveState"), host.show("UnitFileState")],
        ["active", "enabled"],
        "{}",
        host.journal()
    );
    assert_eq!(
        host.done("stat -c '%U' /proc/$(systemctl show --value -p MainPID sniffer)").trim(),
        "sniffer"
    );
    host.listen("listener", "User=root", "", 8081);
    let answer = host.ask_as_nobody(8081);
    assert_eq!(
        (&answer["source"], &answer["claims"][0]["holders"][0]["comm"]),
        (&"daemon".into(), &"perl".into()),
        "{answer:#}"
    );
    assert_eq!(answer["incomplete"], Value::Array(vec![]));
    // The shipped configuration is valid, and is the defaults.
    let checked = host.done("sniffer check-config");
    assert_eq!(checked.trim(), "/etc/sniffer/config.toml: valid");
    assert!(host.done("sniffer --version").contains(env!("CARGO_PKG_VERSION")));
    assert!(host.done("zcat /usr/share/man/man8/sniffer.8.gz").contains("sniffer who\\-holds"));
    host.done("bash -c '. /usr/share/bash-completion/completions/sniffer && complete -p sniffer'");
    host.done("dpkg --verify sniffer");

    host.done("dpkg --remove sniffer");
    assert!(!host.run("test -e /usr/bin/sniffer || test -e /run/sniffer").status.success());
    assert_ne!(host.show("ActiveState"), "active");
    host.done("test -s /etc/sniffer/config.toml && test -s /var/lib/sniffer/history.db");

    host.done("dpkg --purge sniffer");
    let left = host.done(
        "find / -xdev -not -path '/proc/*' -not -path '/packages/*' -iname '*sniffer*' \
         -not -path '/var/log/*' -not -path '/sys/*'",
    );
    assert_eq!(left, "", "files are left");
    host.done("test ! -e /etc/systemd/system/multi-user.target.wants/sniffer.service");
    // As Debian's policy has it: a user stays, since files elsewhere may be its own.
    host.done("id sniffer");
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn an_upgrade_keeps_an_edited_configuration_and_the_history_and_restarts_the_service() {
    let host = PACKAGES.boot();
    host.done(&format!("{INSTALL} /packages/first.deb"));
    host.listen("listener", "User=root", "", 8082);
    host.ask_as_nobody(8082);
    host.done("sed -i 's/^grace .*/grace = \"7s\"/' /etc/sniffer/config.toml && systemctl reload sniffer");
    let before = host.show("MainPID");
    host.done(&format!("{INSTALL} /packages/later.deb"));
    wait("the restarted agent", SOON, || {
        let back = host.show("ActiveState") == "active" && host.show("MainPID") != before;
        back.then_some(()).ok_or_else(|| host.journal())
    });
    assert_eq!(
        host.done("dpkg-query -W -f '${Version} ${Status}' sniffer"),
        format!("{LATER} install ok installed")
    );
    assert!(host.done("cat /etc/sniffer/config.toml").contains("grace = \"7s\""));
    // The hold that was open across the upgrade is one.
    host.ask_as_nobody(8082);
    let history: Value = serde_json::from_str(&host.done("sniffer history 8082 --json")).unwrap();
    let holds = history["holds"].as_array().unwrap();
    assert!(holds.len() == 1 && holds[0]["until"].is_null(), "{history:#}");

    // Who switched it off finds it off after the next upgrade.
    host.done("systemctl disable --now sniffer");
    host.done(&format!("{INSTALL} --reinstall /packages/later.deb"));
    assert_eq!(host.show("UnitFileState"), "disabled");
}

#[test]
#[ignore = "needs root, systemd-nspawn and debootstrap"]
fn a_configuration_with_mistakes_does_not_make_the_installation_fail() {
    let host = PACKAGES.boot();
    host.write("/etc/sniffer/config.toml", "[leak]\ngrace = 'soon'");
    host.done(&format!("{INSTALL} -o Dpkg::Options::=--force-confold /packages/first.deb"));
    assert_eq!(host.show("ActiveState"), "failed");
    assert!(host.journal().contains("leak.grace"), "{}", host.journal());
}
