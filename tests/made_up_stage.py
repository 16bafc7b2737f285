"""Runs, problems and labelled responses of a few characters, for tests of the stages."""

from types import SimpleNamespace

import jax
from characters import Characters

from prm_jax.config import (
    Config,
    MeshConfig,
)
from prm_jax.problems.chains.generator import Chain
from prm_jax.problems.chains.operations import Step
from prm_jax.rl.lines import split_lines
from prm_jax.sharding import make_mesh
from prm_jax.stages.labelled import LabelledResponse
from prm_jax.types import CallTests, LineKind, PrefixLabels, Problem

TOKENIZER = Characters()
ONE = make_mesh(MeshConfig(), jax.devices()[:1])


CHAIN = Chain(
    (Step("append", 3, "easy"), Step("repeat", 2, "easy"), Step("append", 5, "easy")), "abc"
)
RIGHT = "    b = a + [3]\n    c = b * 2\n    return c + [5]"
WRONG_2 = "    b = a + [3]\n    c = b * 3\n    return c + [5]"
WRONG_3 = "    b = a + [3]\n    c = b * 2\n    return c + [6]"


def problem(name: str, prompt: str = "?", horizon: int = 3) -> Problem:
    return Problem(name, prompt, CallTests(()), program_prefix="def f(a):\n", horizon=horizon)


def run_with(config: Config, **parts) -> SimpleNamespace:
    return SimpleNamespace(
        config=config,
        mesh=ONE,
        tokenizer=TOKENIZER,
        prompt_ids=lambda problem: TOKENIZER.encode(problem.prompt),
        stops=None,
        lines=lambda ids: split_lines(TOKENIZER.pieces(ids)),
        program=lambda problem, ids: problem.program(TOKENIZER.decode(ids)),
        **parts,
    )


def labelled(text: str, *ends: tuple[str, int], **fields) -> LabelledResponse:
    """A failing response to problem "p"; `ends` are (token that ends a step, its label)."""
    ids = TOKENIZER.response(text)
    tokens = [TOKENIZER.eos_id if e == "$" else TOKENIZER.encode(e)[0] for e, _ in ends]
    end_token = tuple(ids.index(token) for token in tokens)
    labels = tuple(label for _, label in ends)
    kinds = tuple(LineKind.CODE if label else LineKind.COMMENT for label in labels)
    return LabelledResponse(
        **dict(task_id="p", split="train", checkpoint=1, passed=False, response_class="revised")
        | fields,
        ids=ids,
        end_token=end_token,
        steps=PrefixLabels(kinds, labels, (0,) * len(labels), (0,) * len(labels)),
    )
