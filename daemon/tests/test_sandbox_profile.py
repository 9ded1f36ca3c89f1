"""The list of system calls of a sandbox, and what a sandbox's unit asks of the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopd.config import SandboxSettings, Settings
from loopd.seccomp import sandbox_profile
from loopd.units import EGRESS_UID, SANDBOX_OOM_ADJ, egress_unit, sandbox_unit

NEVER = (
    *(
        "mount",
        "umount2",
        "pivot_root",
        "chroot",
        "unshare",
        "setns",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
    ),
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "keyctl", "add_key", "request_key"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "open_by_handle_at", "reboot"),
    *("name_to_handle_at", "syslog", "acct", "iopl", "ioperm", "swapon", "quotactl", "fanotify_init", "pidfd_getfd"),
    *("move_mount", "open_tree", "fsopen", "fsmount", "mount_setattr", "modify_ldt", "lookup_dcookie", "settimeofday"),
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=Path("/var/lib/x"), run_dir=Path("/run/x"))


def test_what_is_not_listed_is_refused_and_nothing_dangerous_is_listed() -> None:
    told = json.loads(sandbox_profile())
    assert (told["defaultAction"], told["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    allowed = {name for rule in told["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert allowed.isdisjoint(NEVER)
    assert {"read", "write", "execve", "clone", "socket", "futex"} <= allowed


def test_calls_with_dangerous_arguments_are_listed_with_conditions_alone() -> None:
    rules = json.loads(sandbox_profile())["syscalls"]
    for name in ("clone", "socket", "socketpair", "ioctl", "personality"):
        assert all(rule["args"] for rule in rules if name in rule["names"])
    families = {rule["args"][0]["value"] for rule in rules if "socket" in rule["names"]}
    assert families == {1, 2, 10, 16}


@pytest.mark.parametrize("request_", [0x5412, 0x541C, 0x5423])
def test_terminal_injection_is_refused_whatever_the_upper_half_says(request_: int) -> None:
    """The kernel looks at 32 bits of an ioctl's request, the filter at 64."""
    rules = [rule["args"] for rule in json.loads(sandbox_profile())["syscalls"] if "ioctl" in rule["names"]]

    def allowed(number: int) -> bool:
        return any(all(number & arg["value"] == arg["valueTwo"] for arg in args) for args in rules)

    assert not allowed(request_)
    assert not allowed((1 << 32) | request_)
    assert all(
        allowed(other) for other in (0x5401, 0x5413, 0x541B, 0x5421, 0x80045430, request_ ^ 1, request_ ^ (1 << 31))
    )


def test_a_sandbox_asks_for_all_that_holds_it(settings: Settings) -> None:
    unit = sandbox_unit(settings, "i", "s")
    held = unit.confinement
    assert (unit.network, held.oom_score_adj, held.open_files) == ("none", SANDBOX_OOM_ADJ, 1024)
    assert held.seccomp == sandbox_profile()
    assert {"/proc/kcore", "/proc/keys", "/proc/sysrq-trigger", "/sys/firmware", "/sys/kernel"} <= set(
        held.masked_paths
    )
    assert all("nosuid" in options and "nodev" in options and "size=" in options for _, options in unit.tmpfs)
    assert [mount.target for mount in unit.mounts] == ["/run/toolrunner"]


def test_sizes_are_settings(settings: Settings) -> None:
    box = SandboxSettings(workspace_bytes=1 << 30, tmp_bytes=1 << 20, open_files=99)
    unit = sandbox_unit(settings.model_copy(update={"sandbox": box}), "i", "s")
    assert f"size={1 << 30}," in dict(unit.tmpfs)["/workspace"]
    assert f"size={1 << 20}," in dict(unit.tmpfs)["/dev/shm"]
    assert unit.confinement.open_files == 99


def test_the_proxy_sees_nothing_of_the_host_but_a_door_it_cannot_write_to(settings: Settings) -> None:
    unit = egress_unit(settings, "i")
    assert (unit.network, unit.user) == ("egress", f"{EGRESS_UID}:{EGRESS_UID}")
    assert [(mount.target, mount.read_only) for mount in unit.mounts] == [("/run/egress", True)]
