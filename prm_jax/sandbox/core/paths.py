"""What a program needs to read: the standard library, the shared libraries, time zones.

Packages of the host are not among it: benchmark packages carry hidden tests and solutions, and
the sandbox's own modules are no business of a program. NumPy is named where a pool asks for it.
"""

import dataclasses
import glob
import os
import sysconfig

_EXCLUDED = {"site-packages", "dist-packages", "test", "idlelib", "ensurepip", "turtledemo"}
_LIBRARIES = ("/lib/{}-linux-gnu", "/usr/lib/{}-linux-gnu", "/lib64", "/usr/lib64")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_DATA = ("/etc/ld.so.cache", "/usr/share/zoneinfo")


@dataclasses.dataclass(frozen=True)
class Paths:
    """Absolute paths, links resolved in none of them, so that they read as Python has them."""

    trees: list[str]  # folders and files to show in a jail
    hidden: list[str]  # folders inside those to cover
    readable: list[str]  # what Landlock lets a program read
    listable: list[str]  # what it lets a program list
    devices: list[str]


def readable_paths(packages: list[str]) -> Paths:
    """Paths for an interpreter like this one, and for these packages (folders)."""
    standard = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    trees = sorted(p for p in standard if os.path.isdir(p))
    hidden, readable = [], []
    for tree in trees:
        for name in sorted(os.listdir(tree)):
            path = os.path.join(tree, name)
            if name in _EXCLUDED:
                hidden.append(path)
            else:
                readable.append(path)
    others = [p.format(os.uname().machine) for p in _LIBRARIES] + list(_DATA)
    libdir = str(sysconfig.get_config_var("LIBDIR") or "")
    if libdir not in ("", "/usr/lib", "/lib"):
        others += sorted(glob.glob(os.path.join(libdir, "*.so*")))
    others = [p for p in others + packages if os.path.exists(p)]
    folders = [p for p in others if os.path.isdir(p)]
    others = [p for p in others if not any(p.startswith(f + "/") for f in folders)]
    return Paths(
        trees=trees + others,
        hidden=[p for p in hidden if os.path.isdir(p)],
        readable=readable + others,
        listable=trees,
        devices=[d for d in _DEVICES if os.path.exists(d)],
    )
