"""Harnesses that take turns in one run, each in a process of its own, and how they compare."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
Found = list[dict[str, Any]]  # what a harness printed, one object a line


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all these benchmarks have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return made


def paired_parser(description: str, rounds: int, what: str) -> argparse.ArgumentParser:
    """Those of the ones that have peers."""
    made = parser(description)
    made.add_argument("--rounds", type=int, default=rounds, help=f"{what} ({rounds})")
    made.add_argument("--tunix", metavar="PYTHON", help="the Python that has google-tunix")
    made.add_argument("--trl", metavar="PYTHON", help="the Python that has torch and TRL")
    made.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    return made


def take_turns(module: str, mode: str, options: argparse.Namespace) -> dict[str, Found]:
    """What each harness that is there printed; those that are not are named on stderr.

    There and back again, so that a machine that grows busier is no one's luck.
    """
    commands: dict[str, list[str]] = {
        "ours": [sys.executable, "-m", module, "--ours", "--rounds", str(options.rounds)]
    }
    for name, python, file in (
        ("Tunix", options.tunix, "with_tunix.py"),
        ("TRL" if mode == "ppo" else "Hugging Face", options.trl, "with_torch.py"),
    ):
        if python is None:
            head = (PEERS / file).read_text().split('"""')[1]
            how = next(line.strip() for line in head.splitlines() if "venv" in line)
            print(f"{name} is left out; to pair with it: {how}", file=sys.stderr)
        else:
            commands[name] = [python, str(PEERS / file), mode, str(options.rounds)]
    found: dict[str, Found] = {name: [] for name in commands}
    for name in (*commands, *reversed(commands)):
        print(f"{name} ...", file=sys.stderr)
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(commands[name], capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
        found[name] += [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    return found


def median(found: Sequence[Mapping[str, Any]], field: str) -> float:
    return statistics.median(row[field] for row in found if field in row)


def say(**fields: Any) -> None:
    """One line of what a harness found."""
    print(json.dumps(fields), flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """In Markdown; numbers to three digits."""
    lines = [list(head), ["---"] * len(head)]
    lines += [[f"{x:.3g}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def finish(text: str, figures: Any, options: argparse.Namespace) -> None:
    """Prints the table and where it was measured, and writes the figures."""
    import jax

    machine = f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    where = {"machine": machine, "jax": jax.__version__, "load": os.getloadavg()[0]}
    print(f"\n{text}\n\n{machine}, JAX {jax.__version__}; load {where['load']:.1f} at the end")
    if options.json:
        options.json.write_text(json.dumps({"where": where, "figures": figures}, indent=2))
