"""Runs a program inside the sandbox: drops rights layer by layer, and reports the result.

A script that sandbox.py runs in a new interpreter. It uses the standard library only; a layer that the system does not have is
left out, and the report lists the active ones.
"""

import builtins
import ctypes
import json
import os
import platform
import resource
import struct
import sys

CLONE_THREAD, CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC = 0x00010000, 0x10000000, 0x40000000, 0x08000000
NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
EXECUTE, READ_FILE, READ_DIR = 1 << 0, 1 << 2, 1 << 3
EPERM, ENOSYS = 1, 38

# Calls that start processes or programs, reach other processes, the network, namespaces or keys, change owners, modes, times
# and attributes (which Landlock does not cover), or go around the filter (io_uring).
DENIED = {
    "x86_64": (
        *(57, 58, 59, 322, 62, 200, 234, 424, 129, 297, 101, 310, 311, 41, 53, 42, 165, 166, 272, 308, 321, 425, 250, 248, 249),
        *(298, 323, 90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 261, 280, 188, 189, 190, 197, 198, 199),
    ),
    "aarch64": (
        *(221, 281, 129, 130, 131, 424, 138, 240, 117, 270, 271, 198, 199, 203, 40, 39, 97, 268, 280, 425, 219, 217, 218),
        *(241, 282, 52, 53, 452, 54, 55, 88, 5, 6, 7, 14, 15, 16),
    ),
}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)


def limits(wanted: dict[str, int]) -> bool:
    kinds = {
        resource.RLIMIT_CPU: wanted["cpu_seconds"],
        resource.RLIMIT_AS: wanted["memory_bytes"],
        resource.RLIMIT_FSIZE: wanted["file_bytes"],
        resource.RLIMIT_NOFILE: wanted["open_files"],
        resource.RLIMIT_NPROC: wanted["processes"],
        resource.RLIMIT_CORE: 0,
    }
    held = True
    for kind, most in kinds.items():
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):  # macOS has no limit of address space
            held = False
    return held


def network() -> bool:
    return sys.platform == "linux" and int(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC)) == 0


def files(folder: str, readable: list[str]) -> bool:
    """Sets up Landlock: everything that is handled and not allowed by a rule is refused."""
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1) if sys.platform == "linux" else -1
    if version < 1:
        return False
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    ruleset = struct.pack("QQQ", every, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    handle = libc.syscall(LANDLOCK_CREATE, ctypes.c_char_p(ruleset), size, 0)
    if handle < 0:
        return False
    reading = EXECUTE | READ_FILE | READ_DIR
    rules = [(path, reading) for path in readable] + [(folder, every & ~EXECUTE)]
    for path, access in rules:
        if not os.path.exists(path):
            continue
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = access if os.path.isdir(path) else access & (EXECUTE | READ_FILE)
        libc.syscall(LANDLOCK_ADD, handle, 1, ctypes.c_char_p(struct.pack("=Qi", allowed, opened)), 0)
        os.close(opened)
    held = int(libc.syscall(LANDLOCK_RESTRICT, handle, 0)) == 0
    os.close(handle)
    return held


def calls() -> bool:
    """Sets up seccomp: a filter over system call numbers that neither this process nor its children can remove."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in DENIED:
        return False
    load_arch, load_number, load_argument = (0x20, 0, 0, 4), (0x20, 0, 0, 0), (0x20, 0, 0, 16)
    kill, allow = (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)
    refuse, unknown = (0x06, 0, 0, 0x50000 | EPERM), (0x06, 0, 0, 0x50000 | ENOSYS)
    equal, at_least, has = 0x15, 0x35, 0x45
    program = [load_arch, (equal, 1, 0, AUDIT_ARCH[machine]), kill, load_number, (at_least, 0, 1, X32), refuse]
    for number in DENIED[machine]:
        program += [(equal, 0, 1, number), refuse]
    # A C library that finds no clone3 uses clone, whose flags can be read: threads are let through, processes are not.
    program += [(equal, 0, 1, CLONE3), unknown]
    program += [(equal, 0, 3, CLONE[machine]), load_argument, (has, 1, 0, CLONE_THREAD), refuse, allow]
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    holder = ctypes.create_string_buffer(packed)
    filter_program = struct.pack("HxxxxxxP", len(program), ctypes.addressof(holder))
    return int(libc.prctl(SET_SECCOMP, FILTER, ctypes.c_char_p(filter_program), 0, 0)) == 0


REFUSED = (
    *("socket.", "subprocess.", "ctypes.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill", "pty."),
    *("os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr", "os.startfile", "webbrowser.", "syslog.", "winreg."),
)
PATHS = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.listdir",
    "os.scandir",
    "shutil.",
)


def hook(folder: str, readable: list[str]) -> bool:
    """Adds an audit hook, which cannot be removed; it sees what Python does, not what C code does by itself."""
    root, separator, fsdecode, abspath, writing = (
        os.path.realpath(folder),
        os.sep,
        os.fsdecode,
        os.path.abspath,
        os.O_ACCMODE | os.O_CREAT | os.O_TRUNC,
    )

    def within(path: object, places: list[str]) -> bool:
        if isinstance(path, int) or path is None:
            return True
        whole = abspath(fsdecode(path))  # type: ignore[arg-type]
        return any(whole == place or whole.startswith(place.rstrip(separator) + separator) for place in places)

    def check(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(REFUSED):
            raise PermissionError(f"{event} is not for generated code")
        if event == "open":
            path, _, flags = arguments
            places = [root, folder] if isinstance(flags, int) and flags & writing else [root, folder, *readable]
            if not within(path, places):
                raise PermissionError("files outside the temporary folder are not for generated code")
        elif event.startswith(PATHS) and not all(
            within(path, [root, folder, *readable] if event in ("os.listdir", "os.scandir") else [root, folder])
            for path in arguments
            if isinstance(path, str | bytes)
        ):
            raise PermissionError("folders outside the temporary one are not for generated code")

    sys.addaudithook(check)
    return True


def main() -> None:
    sender = int(sys.argv[1])
    job = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the job cannot be read again
    program, word, wanted = job["program"], job["word"], job["layers"]
    os.environ.clear()
    sys.argv[:] = [""]
    folder = os.getcwd()
    readable = sorted({os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, os.path.dirname(os.__file__))})
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"]
    libraries += ["/dev/null", "/dev/urandom"]
    readable += [path for path in libraries if os.path.exists(path)]
    if sys.platform == "linux":
        libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    # Compiled and imported before the rights are gone, what the report needs is at hand afterwards.
    encode, write, leave = json.dumps, os.write, os._exit
    layers = []
    for name, apply in (
        ("network", network),
        ("files", lambda: files(folder, readable)),
        ("limits", lambda: limits(job["limits"])),
        ("calls", calls),
        ("hook", lambda: hook(folder, readable)),
    ):
        if name in wanted and apply():
            layers.append(name)
    write(sender, encode({"layers": layers, "word": "", "error": ""}).encode() + b"\n")
    error = ""
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__", "__builtins__": builtins})
    except BaseException as caught:
        error = f"{type(caught).__name__}: {caught}"[:300]
    write(sender, encode({"layers": layers, "word": word, "error": error}).encode() + b"\n")
    leave(0)


if __name__ == "__main__":
    main()
