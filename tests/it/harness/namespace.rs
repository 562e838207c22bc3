//! Runs a test again by itself in namespaces of its own, where it may change what the rest of the machine must not see.

use std::process::{Command, Stdio};

use super::{is_set, not_run};

/// Set for the test that runs inside.
const INSIDE: &str = "FOREMAN_TEST_INSIDE";

/// What a test changes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Changes {
    /// It mounts file systems.
    Mounts,
    /// It takes network addresses away.
    Addresses,
}

/// Whether this is the run inside. If not, the test is run again by itself in namespaces of its own, where the system lets
/// it, and this run of it has nothing more to do.
pub(crate) fn is_inside(test: &str, changes: Changes) -> bool {
    if is_set(INSIDE) {
        return true;
    }
    let (flags, probe, needs) = match changes {
        Changes::Mounts => (
            ["-m", "-Urm"],
            "mount -t tmpfs tmpfs /tmp",
            "the right to mount (root, or unshare -Urm)",
        ),
        Changes::Addresses => (
            ["-n", "-Urn"],
            "ip link set lo up",
            "ip, and the right to a network (root, or unshare -Urn)",
        ),
    };
    let is_let = |flags: &&&str| {
        let mut command = Command::new("unshare");
        command.args([**flags, "sh", "-c", probe]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let Some(flags) = flags.iter().find(is_let) else {
        not_run(needs);
        return false;
    };
    let mut inside = Command::new("unshare");
    inside.arg(flags).arg(std::env::current_exe().unwrap());
    inside.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    assert!(inside.status().unwrap().success(), "{test} failed, see above");
    false
}
