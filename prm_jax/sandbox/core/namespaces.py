"""A root file system that holds what a program may read and nothing else, in namespaces of its own.

Made by an ordinary user inside a user namespace, or by root without one. After `enter` the
process sees a read-only tmpfs with bind mounts of the standard library and the shared libraries,
its own /proc, five devices, no network and no other process.
"""

import os

from prm_jax.sandbox.core import linux
from prm_jax.sandbox.core.paths import Paths

_EMPTY = "/box"  # where programs start; nothing can be written there
_SCAFFOLD = ("/mnt", "/srv", "/media", "/opt", "/run", "/sys", "/tmp")
_JAIL_ID = 1000


def unshare(*, with_user: bool) -> None:
    """Leave the host's namespaces; the next fork is process 1 of the new one. Raises OSError."""
    flags = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET
    flags |= linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
    uid, gid = os.geteuid(), os.getegid()
    if with_user:
        linux.unshare(flags | linux.CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{_JAIL_ID} {uid} 1")
        _write("/proc/self/gid_map", f"{_JAIL_ID} {gid} 1")
    else:
        linux.unshare(flags)
    linux.sethostname(b"jail")


def enter(paths: Paths) -> None:
    """As process 1 of the new namespaces: build the root and move into it. Raises OSError."""
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    root = _scaffold(paths)
    linux.mount("jail", root, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=1m")
    for path in paths.trees:
        _show(path, root)
        linux.mount_setattr(root + path, _READ_ONLY, recursive=True)
    for path in paths.hidden:
        linux.mount("none", root + path, "tmpfs", linux.MS_NOSUID, "mode=755,size=0,nr_inodes=1")
        linux.mount_setattr(root + path, _READ_ONLY, recursive=False)
    for path in paths.devices:
        _show(path, root)
    for name, number in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{number}", f"{root}/dev/{name}")
    os.mkdir(root + "/proc")
    _mount_proc(root + "/proc")
    os.mkdir(root + _EMPTY)
    os.mkdir(root + "/.old")
    linux.pivot_root(root, root + "/.old")
    os.chdir("/")
    linux.umount("/.old")
    os.rmdir("/.old")
    linux.mount_setattr("/", _READ_ONLY | linux.MOUNT_ATTR_NOEXEC, recursive=False)
    os.chdir(_EMPTY)


_READ_ONLY = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV


def _scaffold(paths: Paths) -> str:
    """A folder of the host to mount the new root on, that hides nothing that is needed."""
    for folder in _SCAFFOLD:
        if os.path.isdir(folder) and not os.path.islink(folder):
            if not any(os.path.realpath(p).startswith(folder + "/") for p in paths.trees):
                return folder
    raise OSError(f"none of {_SCAFFOLD} is free to mount the jail on")


def _show(path: str, root: str) -> None:
    target = root + path
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    linux.mount(os.path.realpath(path), target, None, linux.MS_BIND | linux.MS_REC)


def _mount_proc(target: str) -> None:
    """Some containers cover parts of /proc and then allow no new one: programs go without."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    for options in ("hidepid=2,subset=pid", "hidepid=2"):
        try:
            linux.mount("proc", target, "proc", flags, options)
            return
        except OSError:
            continue


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
