//! What a cgroup path tells: the systemd unit and the container (systemd.slice(5), the runtimes' naming schemes).

/// Length of a container id in every OCI runtime's cgroup name.
const CONTAINER_ID_CHARS: usize = 64;
/// Length of a UUID.
const POD_UID_CHARS: usize = 36;

/// The systemd unit of a path: its last service, or its last scope where there is none.
/// A user's own unit stands below `user@UID.service` and is the more telling one.
pub fn unit(path: &str) -> Option<String> {
    let units: Vec<&str> = path.split('/').filter(|part| part.len() > 6).collect();
    let last = |suffix: &str| units.iter().rev().find(|part| part.ends_with(suffix));
    last(".service").or_else(|| last(".scope")).map(|part| (*part).to_owned())
}

/// The container id of a path: the last component that carries 64 hexadecimal digits, as in `docker-ID.scope`,
/// `/docker/ID`, `cri-containerd-ID.scope`, `crio-ID.scope`, `libpod-ID.scope`, `/kubepods/…/ID`.
pub fn container(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|part| {
        let name = part.strip_suffix(".scope").unwrap_or(part);
        let id = name.rsplit('-').next()?;
        (id.len() == CONTAINER_ID_CHARS && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .then(|| id.to_owned())
    })
}

/// The uid of the Kubernetes pod of a path: `/kubepods/besteffort/podUID/…`, and as systemd writes it, `…-podUID_WITH_UNDERSCORES.slice`.
pub fn pod(path: &str) -> Option<String> {
    path.split('/').find_map(|part| {
        let name = part.strip_suffix(".slice").unwrap_or(part);
        let (before, uid) = name.rsplit_once("pod")?;
        let uid = uid.replace('_', "-");
        let is_uid =
            uid.len() == POD_UID_CHARS && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        (is_uid && (before.is_empty() || before.ends_with('-'))).then_some(uid)
    })
}

/// Picks the path that limits memory: that of v1's controller where it has it, else v2's.
pub fn memory(text: &str) -> Option<String> {
    let mut unified = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        if controllers.split(',').any(|name| name == "memory") {
            return Some(path.to_owned());
        }
        if controllers.is_empty() {
            unified = Some(path.to_owned());
        }
    }
    unified
}

/// Picks from `/proc/PID/cgroup` (cgroups(7)) the path that says most: v2, then systemd's own hierarchy, then any v1
/// hierarchy that names a container; `/` where none says more.
pub fn from_proc(text: &str) -> Option<String> {
    let lines: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .collect();
    let of = |controller: &str| lines.iter().find(|(name, _)| *name == controller).map(|(_, path)| *path);
    let telling = |path: &&str| *path != "/";
    of("")
        .filter(telling)
        .or_else(|| of("name=systemd").filter(telling))
        .or_else(|| lines.iter().map(|(_, path)| *path).find(|path| container(path).is_some()))
        .or_else(|| of(""))
        .or_else(|| of("name=systemd"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_limited_where_its_controller_is() {
        let hybrid = "5:cpu,memory:/docker/c0ffee\n1:name=systemd:/x\n0::/y";
        assert_eq!(memory(hybrid).as_deref(), Some("/docker/c0ffee"));
        assert_eq!(memory("0::/system.slice/x.service").as_deref(), Some("/system.slice/x.service"));
        assert_eq!(memory("1:name=systemd:/x"), None);
    }

    const ID: &str = "4f1c9e0b7a6d5c4b3a29181706f5e4d3c2b1a0998877665544332211aabbccdd";

    #[test]
    fn runtimes_name_their_containers() {
        for path in [
            format!("/docker/{ID}"),
            format!("/system.slice/docker-{ID}.scope"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-{ID}.scope"
            ),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            format!("/kubepods/besteffort/pod5/{ID}/init.scope"),
        ] {
            assert_eq!(container(&path).as_deref(), Some(ID), "{path}");
        }
        assert_eq!(container("/system.slice/docker.service"), None);
    }

    #[test]
    fn units_are_found() {
        assert_eq!(unit("/system.slice/actions.runner.service").as_deref(), Some("actions.runner.service"));
        assert_eq!(
            unit("/user.slice/user-1000.slice/user@1000.service/app.slice/web.service").as_deref(),
            Some("web.service")
        );
        assert_eq!(unit("/user.slice/user-0.slice/session-3.scope").as_deref(), Some("session-3.scope"));
        assert_eq!(unit("/"), None);
    }

    #[test]
    fn the_most_telling_hierarchy_is_taken() {
        assert_eq!(from_proc("0::/a.service\n").as_deref(), Some("/a.service"));
        assert_eq!(from_proc("1:name=systemd:/b.service\n0::/\n").as_deref(), Some("/b.service"));
        let v1 = format!("4:memory:/docker/{ID}\n1:name=systemd:/\n");
        assert_eq!(from_proc(&v1), Some(format!("/docker/{ID}")));
        assert_eq!(from_proc("9:x:/\n0::/\n").as_deref(), Some("/"));
        assert_eq!(from_proc("nonsense"), None);
    }
}
