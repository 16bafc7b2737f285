"""The functions with branches as a `tensorflow_datasets` builder, read without TensorFlow.

The dataset has one configuration per setting of the generator. Its splits are `sft` (pairs) and the
problem sets, which leave the fields of the other empty.
"""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from prm_jax.config import BranchesConfig
from prm_jax.problems.branches import generator, statements


@dataclasses.dataclass(kw_only=True)
class BranchesBuilderConfig(tfds.core.BuilderConfig):
    """One setting of the generator."""

    settings: BranchesConfig = BranchesConfig()


def builder_config(settings: BranchesConfig) -> BranchesBuilderConfig:
    """The configuration for these settings: its name holds a digest of them and of the source."""
    source = inspect.getsource(generator) + inspect.getsource(statements)
    content = json.dumps(dataclasses.asdict(settings), sort_keys=True) + source
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return BranchesBuilderConfig(
        name=f"seed{settings.seed}-{digest}",
        description="Functions with a loop and branches.",
        settings=settings,
    )


class Branches(tfds.core.GeneratorBasedBuilder):
    """Prompts, solutions and hidden tests of functions with branches."""

    # Nothing is downloaded, so there are no checksums to look for beside the code.
    code_path = None  # pyright: ignore[reportAssignmentType]

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Loops, conditions and early exits in three wordings."}

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Functions with branches in words, their solutions and hidden tests.",
            features=tfds.features.FeaturesDict(
                {
                    "task_id": text,
                    "prompt": text,
                    "completion": text,  # SFT: as written in haste; problems: the solution
                    "asserts": tfds.features.Sequence(text),
                    "statements": tfds.features.Sequence(text),
                    "numbers": tfds.features.Sequence(np.int32),
                    "wordings": tfds.features.Sequence(text),
                    "depths": tfds.features.Sequence(np.int32),
                }
            ),
            supervised_keys=("prompt", "completion"),
            disable_shuffling=True,  # problems are balanced over horizons by their order
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        assert isinstance(self.builder_config, BranchesBuilderConfig)
        settings = self.builder_config.settings
        problems = generator.make_problems(settings)
        pairs = generator.make_sft_pairs(settings, [p for ps in problems.values() for p in ps])
        splits = {
            "sft": self._generate_examples("sft", ((p.function, p.completion, ()) for p in pairs))
        }
        for split, rows in problems.items():
            solved = ((p.function, p.function.solution(), p.tests.asserts) for p in rows)
            splits[split] = self._generate_examples(split, solved)
        return splits

    def _generate_examples(
        self, split: str, rows: Iterable[tuple[generator.Function, str, tuple[str, ...]]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Examples of (function, completion, asserts), keyed by their place in the split."""
        for i, (function, completion, asserts) in enumerate(rows):
            yield (
                i,
                {
                    "task_id": f"{split}/{i}",
                    "prompt": function.prompt(),
                    "completion": completion,
                    "asserts": list(asserts),
                    "statements": [line.statement for line in function.lines],
                    "numbers": [line.number for line in function.lines],
                    "wordings": [line.wording for line in function.lines],
                    "depths": [line.depth for line in function.lines],
                },
            )


def read_function(example: Mapping[str, Any]) -> generator.Function:
    """The function that an example of the builder asks for."""
    columns = zip(
        example["statements"], example["numbers"], example["wordings"], example["depths"],
        strict=True,
    )  # fmt: skip
    return generator.Function(
        tuple(statements.Line(s.decode(), int(n), w.decode(), int(d)) for s, n, w, d in columns)
    )
