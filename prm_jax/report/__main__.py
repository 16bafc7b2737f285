"""Redraws `report.html` of a workdir: `python -m prm_jax.report --workdir runs/tiny`."""

import sys
from pathlib import Path

import tyro

from prm_jax.report.page import ReportError, write_report


def main(workdir: Path) -> None:
    """Redraws report.html of a run from the files in its workdir.

    Args:
        workdir: where `python -m prm_jax.train` left its results, such as runs/tiny.
    """
    try:
        print(write_report(workdir))
    except ReportError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    tyro.cli(main)
