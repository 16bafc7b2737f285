"""Labelled responses as files: a line of JSON each, which the label stage writes and the PRM reads.

`label/labels.jsonl` has the responses, `label/repairs.jsonl` completions that passed, and
`label/candidates.jsonl` responses that a PRM chooses among, which have no labels.
"""

import dataclasses
import json
from typing import Any, Literal, NamedTuple

from prm_jax import hosts
from prm_jax.config import ConfigError
from prm_jax.rl.labels import response_class
from prm_jax.stages.run import Run, whole_lines
from prm_jax.stages.search import Response, Split
from prm_jax.types import LineKind, PrefixLabels

CANDIDATES = 8  # responses to each validation prompt that a PRM chooses among


@dataclasses.dataclass(frozen=True)
class LabelledResponse:
    """A response whose search has ended."""

    task_id: str
    split: Split
    checkpoint: int  # step of the policy that wrote it
    passed: bool
    response_class: str
    ids: tuple[int, ...]
    end_token: tuple[int, ...]
    steps: PrefixLabels

    @classmethod
    def of(cls, response: Response, *, neutral_comments: bool) -> "LabelledResponse":
        """With the labels of what its search found."""
        return cls(
            task_id=response.problem.task_id,
            split=response.split,
            checkpoint=response.checkpoint,
            passed=response.passed,
            response_class=response_class(response.passed, response.m_star).name.lower(),
            ids=response.ids,
            end_token=tuple(response.end_token.tolist()),
            steps=response.labels(neutral_comments=neutral_comments),
        )

    def to_json(self) -> str:
        return json.dumps(
            {
                "task_id": self.task_id,
                "split": self.split,
                "checkpoint": self.checkpoint,
                "passed": self.passed,
                "class": self.response_class,
                "ids": self.ids,
                "end_token": self.end_token,
                "kinds": [kind.name.lower() for kind in self.steps.kinds],
                "labels": self.steps.labels,
                "passes": self.steps.passes,
                "samples": self.steps.samples,
            }
        )

    @classmethod
    def from_json(cls, line: str) -> "LabelledResponse":
        row: dict[str, Any] = json.loads(line)
        return cls(
            task_id=row["task_id"],
            split=row["split"],
            checkpoint=row["checkpoint"],
            passed=row["passed"],
            response_class=row["class"],
            ids=tuple(row["ids"]),
            end_token=tuple(row["end_token"]),
            steps=PrefixLabels(
                kinds=tuple(LineKind[kind.upper()] for kind in row["kinds"]),
                labels=tuple(row["labels"]),
                passes=tuple(row["passes"]),
                samples=tuple(row["samples"]),
            ),
        )


class Candidate(NamedTuple):
    """A line of `label/candidates.jsonl`: one of `CANDIDATES` responses to a validation prompt."""

    task_id: str
    passed: bool
    ids: tuple[int, ...]
    end_token: tuple[int, ...]


def read_labels(run: Run, name: Literal["labels", "repairs"] = "labels") -> list[LabelledResponse]:
    """The labelled responses that the label stage left, or the repairs of failing ones."""
    path = run.workdir / f"label/{name}.jsonl"
    lines = hosts.first(lambda: whole_lines(path))
    return [LabelledResponse.from_json(line) for line in lines]


def read_candidates(run: Run) -> list[Candidate]:
    """The candidates that the label stage left, those of a problem side by side.

    Raises ConfigError if it left none.
    """
    path = run.workdir / "label/candidates.jsonl"
    if not hosts.first(path.exists):
        raise ConfigError(
            f"{path} is missing, so these labels are of an older version: remove label/done.json, "
            "here and in all workdirs of a study that share these labels, and run again, which "
            "keeps all that was sampled"
        )
    return [
        Candidate(row["task_id"], row["passed"], tuple(row["ids"]), tuple(row["end_token"]))
        for row in map(json.loads, hosts.first(lambda: whole_lines(path)))
    ]
