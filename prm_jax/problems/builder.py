"""Problems as a `tensorflow_datasets` builder over files that the user brings.

Every format comes down to one record per `Problem`, so a prepared set is read without its file's
format. Prepared data is keyed by the content of the files and the source of their parsers: a file
that changed is prepared anew, beside what was there.
"""

import contextlib
import dataclasses
import hashlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import tensorflow_datasets as tfds

from prm_jax.metrics import Progress
from prm_jax.problems import formats, rows
from prm_jax.types import CallTests, CheckTests, Limits, Problem, StdioTests, Tests

_SKIPPED = "skipped"
_LARGE_BYTES = 64 << 20  # files whose preparation takes long enough to tell how far it is


@dataclasses.dataclass(kw_only=True)
class ProblemFilesConfig(tfds.core.BuilderConfig):
    """Files of one format."""

    format: formats.Format
    files: tuple[Path, ...] = ()


def builder_config(format: formats.Format, files: Sequence[Path]) -> ProblemFilesConfig:
    """The configuration for these files: its name holds a digest of content and parsers."""
    digest = hashlib.sha256(format.name.encode())
    room = Path(__file__).parent
    for source in [room / "builder.py", room / "rows.py", *sorted((room / "formats").glob("*.py"))]:
        digest.update(source.read_bytes())
    for file in files:
        digest.update(rows.split_in_name(file).encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return ProblemFilesConfig(
        name=f"{format.name}-{digest.hexdigest()[:16]}",
        description=f"Problems of {format.title}.",
        format=format,
        files=tuple(files),
    )


class ProblemFiles(tfds.core.GeneratorBasedBuilder):
    """Prompts, solutions and tests of a problem set, in the splits that it was published in."""

    # Nothing is downloaded, so there are no checksums to look for beside the code.
    code_path = None  # pyright: ignore[reportAssignmentType]

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "Call, check and stdio tests.", "1.1.0": "Plans."}

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.trouble: rows.ProblemsError | None = None  # tfds wraps what a generator raises

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        texts = tfds.features.Sequence(text)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Problems of code generation with tests and reference solutions.",
            features=tfds.features.FeaturesDict(
                {
                    "task_id": text,
                    "prompt": text,
                    "instruction": text,
                    "program_prefix": text,
                    "solution": text,
                    "plan": text,
                    "horizon": np.int64,
                    "difficulty": text,
                    "kind": text,  # calls, check or stdio
                    "asserts": texts,  # calls
                    "setup": text,  # calls
                    "code": text,  # check
                    "entry_point": text,  # check
                    "inputs": texts,  # stdio
                    "outputs": texts,  # stdio
                    # As text: without TensorFlow, a float64 comes back rounded to a float32.
                    "float_tolerance": text,
                    "cpu_s": text,
                    "memory_mib": np.int64,
                    "output_bytes": np.int64,
                }
            ),
            disable_shuffling=True,  # problems keep the order of their file
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        config = self.builder_config
        assert isinstance(config, ProblemFilesConfig)
        with self._keeping_trouble():
            files: dict[str, list[Path]] = {}  # with problems of a split: tfds has no empty splits
            skipped, first = [], {}
            for row in self._rows(config.files, f"read {config.format.name}"):
                problem = config.format.problem(row)
                if problem is None:
                    skipped.append(row.where)
                    continue
                split = config.format.split(row)
                if problem.task_id in first:
                    raise rows.BadRow(
                        f"{row.where}: {problem.task_id!r} is the name of another problem, "
                        f"{first[problem.task_id]}: every problem must have its own"
                    )
                first[problem.task_id] = row.where
                if Path(row.file) not in files.setdefault(split, []):
                    files[split].append(Path(row.file))
            if not files:
                raise rows.ProblemsError(f"{config.files[0]} holds no problem that has tests")
        assert self.info.metadata is not None
        self.info.metadata[_SKIPPED] = skipped
        order = sorted(files, key=lambda s: (formats.SPLITS.index(s), s))
        return {split: self._generate_examples(split, files[split]) for split in order}

    def _generate_examples(self, split: str, files: list[Path]) -> Iterator[tuple[int, dict]]:
        """Records of one split, keyed by their place in it."""
        config = self.builder_config
        assert isinstance(config, ProblemFilesConfig)
        with self._keeping_trouble():
            place = 0
            for row in self._rows(files, f"prepare {config.format.name} {split}"):
                if config.format.split(row) != split:
                    continue
                if (problem := config.format.problem(row)) is not None:
                    yield place, record(problem)
                    place += 1

    def _rows(self, files: Sequence[Path], title: str) -> Iterator[rows.Row]:
        """The rows of files, with progress where they are large."""
        n_bytes = sum(file.stat().st_size for file in files)
        if n_bytes < _LARGE_BYTES:
            yield from rows.read_rows(files)
            return
        with Progress(n_bytes >> 20, title, "MiB") as progress:
            read = 0

            def follow(more: int) -> None:
                nonlocal read
                read += more
                if (whole := read >> 20) > progress.done:
                    progress.update(whole - progress.done)

            yield from rows.read_rows(files, follow)

    @contextlib.contextmanager
    def _keeping_trouble(self) -> Iterator[None]:
        try:
            yield
        except rows.ProblemsError as error:
            self.trouble = error
            raise


def prepare(
    config: ProblemFilesConfig, data_dir: Path
) -> tuple[dict[str, "Problems"], tuple[str, ...]]:
    """The splits of a set, prepared at first use, and the rows that have no tests.

    Raises ProblemsError for files that cannot be read.
    """
    with quiet_tfds():
        builder = _builder(config, data_dir)
        try:
            builder.download_and_prepare()
        except FileExistsError:  # another process was quicker: processes of a run start together
            builder = _builder(config, data_dir)
        except Exception:
            if builder.trouble is not None:
                raise builder.trouble from None
            raise
    sources: Any = builder.as_data_source()
    order = sorted(sources, key=lambda s: (formats.SPLITS.index(s), s))
    metadata = builder.info.metadata or {}
    return {split: Problems(sources[split]) for split in order}, tuple(metadata[_SKIPPED])


def _builder(config: ProblemFilesConfig, data_dir: Path) -> ProblemFiles:
    return ProblemFiles(data_dir=str(data_dir), config=config, file_format="array_record")


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keeps back what tfds prints while it prepares: it speaks of downloads, and there are none."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
        tfds.enable_progress_bar()


class Problems(Sequence[Problem]):
    """The problems of one split, read from disk when they are asked for."""

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            places = range(len(self))[index]
            return [problem(r) for r in self._source.__getitems__(places)] if places else []
        return problem(self._source[range(len(self))[index]])

    def __iter__(self) -> Iterator[Problem]:
        return (self[i] for i in range(len(self)))


def record(problem: Problem) -> dict[str, Any]:
    """A problem as the builder's record."""
    limits = problem.limits
    fields: dict[str, Any] = {
        "task_id": problem.task_id,
        "prompt": problem.prompt,
        "instruction": problem.instruction,
        "program_prefix": problem.program_prefix,
        "solution": problem.solution,
        "plan": problem.plan,
        "horizon": problem.horizon,
        "difficulty": problem.difficulty,
        "kind": "calls",
        "asserts": (),
        "setup": "",
        "code": "",
        "entry_point": "",
        "inputs": (),
        "outputs": (),
        "float_tolerance": "0.0",
        "cpu_s": repr(limits.cpu_s),
        "memory_mib": limits.memory_mib,
        "output_bytes": limits.output_bytes,
    }
    match problem.tests:
        case CallTests(asserts=asserts, setup=setup, float_tolerance=tolerance):
            fields |= {"asserts": asserts, "setup": setup, "float_tolerance": repr(tolerance)}
        case CheckTests(code=code, entry_point=entry_point):
            fields |= {"kind": "check", "code": code, "entry_point": entry_point}
        case StdioTests(cases=cases, float_tolerance=tolerance):
            fields |= {
                "kind": "stdio",
                "inputs": [given for given, _ in cases],
                "outputs": [expected for _, expected in cases],
                "float_tolerance": repr(tolerance),
            }
    return {name: _encoded(value) for name, value in fields.items()}


def problem(record: Mapping[str, Any]) -> Problem:
    """The problem that a record of the builder holds: `problem(record(p)) == p`."""
    fields = {name: _decoded(value) for name, value in record.items()}
    tests: Tests
    match fields["kind"]:
        case "calls":
            tolerance = float(fields["float_tolerance"])
            tests = CallTests(fields["asserts"], fields["setup"], tolerance)
        case "check":
            tests = CheckTests(fields["code"], fields["entry_point"])
        case kind:
            assert kind == "stdio", kind
            cases = tuple(zip(fields["inputs"], fields["outputs"], strict=True))
            tests = StdioTests(cases, float(fields["float_tolerance"]))
    return Problem(
        task_id=fields["task_id"],
        prompt=fields["prompt"],
        tests=tests,
        solution=fields["solution"],
        plan=fields["plan"],
        program_prefix=fields["program_prefix"],
        instruction=fields["instruction"],
        horizon=fields["horizon"],
        difficulty=fields["difficulty"],
        limits=Limits(float(fields["cpu_s"]), fields["memory_mib"], fields["output_bytes"]),
    )


def _encoded(value: Any) -> Any:
    """Text as bytes: JSON can hold half a surrogate pair, which is no Unicode text."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, int):
        return value
    return [_encoded(item) for item in value]


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogatepass")
    if isinstance(value, list | np.ndarray):
        return tuple(_decoded(item) for item in value)
    return int(value)
