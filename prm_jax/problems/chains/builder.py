"""The chains as a `tensorflow_datasets` builder: prepared once, read without TensorFlow.

The dataset has one configuration per setting of the generator, so that different settings never
share files. Its splits are `sft` (pairs) and the problem sets, which leave the fields of the other
empty.
"""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from prm_jax.config import ChainsConfig
from prm_jax.problems.chains import generator, operations


@dataclasses.dataclass(kw_only=True)
class ChainsBuilderConfig(tfds.core.BuilderConfig):
    """One setting of the generator."""

    settings: ChainsConfig = ChainsConfig()


def builder_config(settings: ChainsConfig) -> ChainsBuilderConfig:
    """The configuration of the builder for these settings.

    Its name holds a digest of the settings and of the generator's source: neither other settings
    nor an older generator's files are ever taken for it.
    """
    source = inspect.getsource(generator) + inspect.getsource(operations)
    content = json.dumps(dataclasses.asdict(settings), sort_keys=True) + source
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return ChainsBuilderConfig(
        name=f"seed{settings.seed}-{digest}",
        description="Chains of list operations, one line each.",
        settings=settings,
    )


class Chains(tfds.core.GeneratorBasedBuilder):
    """Prompts, solutions and hidden tests of chains of list operations."""

    # Nothing is downloaded, so there are no checksums to look for beside the code.
    code_path = None  # pyright: ignore[reportAssignmentType]

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "21 operations in three wordings.", "1.1.0": "Plans."}

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Chains of list operations in words, their solutions and hidden tests.",
            features=tfds.features.FeaturesDict(
                {
                    "task_id": text,
                    "prompt": text,
                    "completion": text,  # SFT: as written in haste; problems: the solution
                    "plan": text,  # that the completion carries out
                    "asserts": tfds.features.Sequence(text),
                    "names": text,
                    "operations": tfds.features.Sequence(text),
                    "numbers": tfds.features.Sequence(np.int32),
                    "wordings": tfds.features.Sequence(text),
                }
            ),
            supervised_keys=("prompt", "completion"),
            disable_shuffling=True,  # problems are balanced over horizons by their order
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        assert isinstance(self.builder_config, ChainsBuilderConfig)
        settings = self.builder_config.settings
        problems = generator.make_problems(settings)
        pairs = generator.make_sft_pairs(settings, [p for ps in problems.values() for p in ps])
        splits = {
            "sft": self._generate_examples(
                "sft", ((p.chain, p.completion, p.plan, ()) for p in pairs)
            )
        }
        for split, rows in problems.items():
            solved = ((p.chain, p.chain.solution(), p.chain.plan(), p.tests.asserts) for p in rows)
            splits[split] = self._generate_examples(split, solved)
        return splits

    def _generate_examples(
        self, split: str, rows: Iterable[tuple[generator.Chain, str, str, tuple[str, ...]]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Examples of (chain, completion, plan, asserts), keyed by their place in the split."""
        for i, (chain, completion, plan, asserts) in enumerate(rows):
            yield i, _example(f"{split}/{i}", chain, completion, plan, asserts)


def _example(
    task_id: str, chain: generator.Chain, completion: str, plan: str, asserts: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "prompt": chain.prompt(),
        "completion": completion,
        "plan": plan,
        "asserts": list(asserts),
        "names": chain.names,
        "operations": [step.operation for step in chain.steps],
        "numbers": [step.number for step in chain.steps],
        "wordings": [step.wording for step in chain.steps],
    }
