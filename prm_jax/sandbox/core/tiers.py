"""Isolation tiers: which layers each one has, and what to change on a host that misses one.

A tier is found out by doing: the broker starts a zygote with the layers of the strongest tier,
and goes down the list until one reports that all its layers hold and passes its self-test.
"""

import dataclasses
import os

TIERS = ("T0", "T1", "T2", "T3", "T4")
_ALWAYS = ("landlock", "seccomp")


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A tier and the layers that a zygote is asked to put on for it."""

    tier: str
    layers: frozenset[str]


def attempts(is_root: bool, without: frozenset[str]) -> list[Attempt]:
    """What to try, strongest first. A tier from which a layer is left out counts as T4."""
    table = [("T1", ("namespaces", "user")), ("T3", ()), ("T4", ())]
    if is_root:
        table = [
            ("T0", ("namespaces", "second_uid", "cgroup")),
            ("T1", ("namespaces", "second_uid")),
            ("T1", ("namespaces", "user")),
            ("T2", ("second_uid",)),
            ("T3", ()),
            ("T4", ()),
        ]
    found = []
    for tier, own in table:
        if set(own) & without:
            continue
        layers = frozenset(own) | set(_ALWAYS) if tier != "T4" else {"seccomp"}
        left = frozenset(layers) - without
        found.append(Attempt(tier if left == layers else "T4", left))
    return found + [Attempt("T4", frozenset())]


def strong_enough(tier: str, min_tier: str) -> bool:
    return TIERS.index(tier) <= TIERS.index(min_tier)


def refusal(min_tier: str, tier: str | None, failures: list[tuple[Attempt, str]]) -> str:
    """Why the sandbox does not start, and what to change on the host."""
    got = f"only {tier}" if tier else "no tier at all"
    lines = [f"sandbox.min_tier = {min_tier!r} cannot be had on this host: it gives {got}."]
    for attempt, reason in failures:
        if strong_enough(attempt.tier, min_tier):
            lines.append(f"  {attempt.tier} failed: {reason}")
    lines += [f"  To change: {advice}" for advice in _advice(failures)]
    lines.append(
        "  Or accept weaker isolation with a lower sandbox.min_tier; docs/sandbox.md says what "
        "each tier covers."
    )
    return "\n".join(lines)


def _advice(failures: list[tuple[Attempt, str]]) -> list[str]:
    text = " ".join(reason for _, reason in failures)
    advice = []
    if _setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        advice.append("sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
    if _setting("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        advice.append("sudo sysctl -w kernel.unprivileged_userns_clone=1")
    if _setting("/proc/sys/user/max_user_namespaces") == "0":
        advice.append("sudo sysctl -w user.max_user_namespaces=15000")
    if not advice and "namespaces" in text:
        advice.append(
            "allow user namespaces; in a container, start it with a seccomp profile that lets "
            "unshare and mount through (docker run --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined), or run on the VM itself"
        )
    if "landlock" in text:
        advice.append(
            "use Linux 5.13 or newer with Landlock on: add landlock to the kernel's lsm= list "
            "(/sys/kernel/security/lsm shows it), and let the container's seccomp profile pass it"
        )
    if "seccomp" in text:
        advice.append("use a kernel with CONFIG_SECCOMP_FILTER")
    return advice


def _setting(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def high_uid(slot: int) -> int:
    """Two user ids for a zygote and its children that no account has, if such can be used."""
    base = 1_900_000_000 + (os.getpid() % 100_000) * 1_000
    return base + 2 * (slot % 500)
