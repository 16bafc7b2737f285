"""Takes a trained model out of a run: `python -m prm_jax.export --run runs/tiny --out tiny-policy`.

The folder that it writes is in Hugging Face layout. A policy loads with transformers'
AutoModelForCausalLM (and in servers that read such folders); a process reward model or a critic
with AutoModelForTokenClassification, whose one label is the score.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from prm_jax.checkpoint import Checkpoints
from prm_jax.config import Config, ConfigError, MeshConfig
from prm_jax.config_file import ASKING, asking_of, read_config
from prm_jax.metrics import MetricsLog
from prm_jax.pretrained import save_policy, save_scalar
from prm_jax.problems import ProblemSets
from prm_jax.sharding import ShardingError, make_mesh
from prm_jax.stages.opening import TOKENIZER, assemble, read_tokenizer
from prm_jax.tokenizer import PAD

POLICIES = ("rl_prm/policy", "rl/policy", "sft/policy")  # the last that a run makes comes first
# The stages that made each kind of model.
MADE_BY = {
    "sft/policy": ("sft",),
    "rl/policy": ("sft", "rl"),
    "rl/critic": ("sft", "rl"),
    "prm/model": ("sft", "rl", "label", "prm"),
    "rl_prm/policy": ("sft", "rl", "label", "prm", "rl_prm"),
    "rl_prm/critic": ("sft", "rl", "label", "prm", "rl_prm"),
}

_EPILOG = """\
Kinds of checkpoints are sft/policy, rl/policy, rl_prm/policy, prm/model, rl/critic and
rl_prm/critic, those that the run has; @STEP takes another than the last, for example
--checkpoint rl/policy@40. The export runs on the CPU and needs memory for the model in float32.

Then, in Python:
  model = transformers.AutoModelForCausalLM.from_pretrained("tiny-policy")
  tokenizer = transformers.AutoTokenizer.from_pretrained("tiny-policy")
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 where the run, the checkpoint or the folder cannot be used."""
    options = _parser().parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    try:
        export(options.run, options.out, options.checkpoint, options.dtype)
    except (ConfigError, ShardingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m prm_jax.export",
        description=f"{first}\n\n{rest}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="workdir of the run")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write; not there, or empty",
    )
    add(
        "--checkpoint",
        default="",
        metavar="KIND[@STEP]",
        help="which model; the default is the policy of the last stage that trained one",
    )
    add("--dtype", choices=("bfloat16", "float32"), default="float32", help="of the weights")
    return parser


def export(run: Path, out: Path, checkpoint: str = "", dtype: Any = "float32") -> None:
    """Writes one checkpoint of a run to `out`; raises ConfigError for what is not there."""
    config = read_config(run / "config.json")
    kind, step = _find(run, checkpoint)
    source = Path(config.tokenizer.path or config.model.path or run / TOKENIZER)
    tokenizer = read_tokenizer(source, config.tokenizer.eos)
    longest = config.max_prompt_tokens + config.max_completion_tokens
    model = config.model
    model = dataclasses.replace(model, max_positions=model.max_positions or longest)
    config = dataclasses.replace(config, model=model)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    is_policy = kind.endswith("/policy")
    with tempfile.TemporaryDirectory() as scratch, MetricsLog(scratch) as log:
        nothing = ProblemSets((), (), (), {}, ())
        opened = assemble(config, run, mesh, tokenizer, nothing, None, log)
        module = opened.policy if is_policy else opened.scalar
        params = opened.restore(kind, module, step)
    save: Any = save_policy if is_policy else save_scalar
    save(
        params,
        module,
        out,
        tokenizer_from=source,
        card=model_card(run, config, kind, step),
        dtype=dtype,
        tokens={
            "eos_token": config.tokenizer.eos or tokenizer.names["eos_token"],
            "pad_token": PAD,
        },
        beside={ASKING: asking_of(config)},
    )
    print(f"{out}: {kind} at step {step} of {run}", file=sys.stderr)


def _find(run: Path, checkpoint: str) -> tuple[str, int]:
    """Kind and step of a checkpoint that the run has."""
    there = {kind: steps for kind in MADE_BY if (steps := _steps(run / kind))}
    kind, _, wanted = checkpoint.partition("@")
    kind = kind or next((kind for kind in POLICIES if kind in there), "sft/policy")
    if kind not in there:
        has = ", ".join(there) or "none yet"
        raise ConfigError(f"--checkpoint = {kind!r} is not in {run}: choose one that is ({has})")
    if not wanted:
        return kind, there[kind][-1]
    if not wanted.isdecimal() or int(wanted) not in there[kind]:
        steps = ", ".join(map(str, there[kind]))
        raise ConfigError(f"--checkpoint = {checkpoint!r} is not there: {kind} has steps {steps}")
    return kind, int(wanted)


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    with Checkpoints(folder) as checkpoints:
        return checkpoints.steps()


# -------------------------------------------------------------------------------- model card


def model_card(run: Path, config: Config, kind: str, step: int) -> str:
    """README.md of an export: what the model is, how it is used, how it was trained."""
    stage, _, role = kind.partition("/")
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {'text-generation' if role == 'policy' else 'token-classification'}",
        "tags: [code, process-supervision]",
        "---",
        "",
        f"# {_TITLES[role]}",
        "",
        _what(config, stage, role),
        "",
        f"Prompts are in style `{config.prompts.style}`; prompt and response are encoded apart and "
        "joined, and nothing stands between them."
        + (
            " Responses open with a plan, between lines `<plan>` and `</plan>`, which is one step."
            if config.prompts.plan
            else ""
        ),
        "",
        "```python",
        *_usage(role),
        "```",
        "",
        "## How it was trained",
        "",
        f"By prm_jax, after arXiv 2410.17621, on the problems `{config.problems.name}`, from "
        + (
            f"the weights `{Path(config.model.path).name}`"
            if config.model.path
            else "random weights"
        )
        + f"; this is `{kind}` at step {step}. The stages that made it, their settings and what "
        "each reports:",
        "",
    ]
    for made_by in _made_by(kind, config):
        lines += [f"### {made_by}", "", _stage(made_by, config), ""]
        section = _settings(made_by, config)
        done = run / made_by / "done.json"
        report = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else {}
        lines += ["```", *_flat(section), "```", ""]
        if made_by == stage and not report:
            lines += ["This stage was not finished when the model was taken.", ""]
        if report:
            lines += ["```", *_flat(report), "```", ""]
    return "\n".join(lines)


_TITLES = {
    "policy": "Policy for code",
    "model": "Process reward model for code",
    "critic": "Critic",
}


def _what(config: Config, stage: str, role: str) -> str:
    """What the model gives, in words."""
    if role == "policy":
        return "A language model that answers programming problems with programs."
    if role == "critic":
        lines = ", line rewards" if stage == "rl_prm" and config.dense.enabled else ""
        return (
            "It predicts returns. The logit at a token is the expected sum of rewards (unit "
            f"tests{lines} and KL penalty) of the tokens after it."
        )
    if config.prm.loss_on == "outcome":
        return (
            "It scores whole programs. The logit at the last token is near 1 for a program that "
            "passes its unit tests and near -1 for one that fails; at other tokens it means "
            "nothing. Clip it to [-1, 1]."
        )
    first = (
        "It scores programs line by line. The logit at the last token of a line is the score of "
        "the program up to and including that line: "
    )
    if config.prm.target == "binary":
        meaning = (
            "near 1 where the line search found that the program can still be completed to one "
            "that passes its unit tests, near -1 where no completion passed"
        )
    else:
        meaning = "the share of sampled completions that pass the unit tests, mapped to -1 ... 1"
    return f"{first}{meaning}. Clip it to [-1, 1]; at other tokens it means nothing."


def _made_by(kind: str, config: Config) -> tuple[str, ...]:
    """The stages that the model follows from: without PRM where no setting let it be read."""
    scored = config.dense.enabled and config.dense.source == "prm"
    if kind.startswith("rl_prm/") and not (scored or config.value_init):
        return ("sft", "rl_prm")
    return MADE_BY[kind]


def _stage(stage: str, config: Config) -> str:
    """What a stage did under these settings, in words."""
    if stage == "sft":
        return "Supervised fine-tuning on pairs of a prompt and a solution."
    if stage == "label":
        by = {
            "cheapest": "by a search over lines with sampled completions",
            "binary": "by a binary search over lines with sampled completions",
            "dense": "with sampled completions of every prefix",
        }[config.label.search]
        return (
            f"Line labels for responses of checkpoints of that PPO, {by} that the unit tests judge."
        )
    if stage == "prm":
        if config.prm.loss_on == "outcome":
            return (
                "An outcome model: squared error, at the last line alone, on whether a response "
                "of these passes."
            )
        return "The process reward model: squared error on these labels."
    reward = {
        "pass": "whether a program passes its unit tests",
        "partial": "credit for the unit tests that a program passes, less for errors",
    }[config.ppo.outcome]
    if stage == "rl":
        return f"PPO; the reward is {reward}."
    dense = "without line rewards"
    if config.dense.enabled and config.dense.source == "oracle":
        dense = (
            "with line rewards of an exact oracle that knows the solutions, a ceiling for "
            "comparisons and no method"
        )
    elif config.dense.prm_learns:
        dense = (
            "with line rewards of a process reward model that learned on the way, from labels of "
            "the policy's own responses, found by completing their prefixes, and with these "
            "completions as rollouts"
        )
    elif config.dense.labels_online:
        dense = (
            "with line rewards from labels of its own failing responses, found by completing their "
            "prefixes, and with these completions as rollouts"
        )
    elif config.dense.enabled:
        dense = "with line rewards of the process reward model"
    critic = (
        "the critic starts from the process reward model"
        if config.value_init
        else (
            "there is no critic"
            if config.ppo.advantage == "group"
            else "the critic starts from the fine-tuned policy"
        )
    )
    return f"PPO {dense}; {critic}. The reward at the end is {reward}."


def _settings(stage: str, config: Config) -> dict[str, Any]:
    """The settings that a stage read."""
    settings = dataclasses.asdict(config)
    if stage == "rl_prm":
        labels = ("label",) if config.dense.labels_online else ()
        prm = ("prm",) if config.dense.prm_learns else ()
        return {name: settings[name] for name in ("value_init", "dense", "ppo", *labels, *prm)}
    return settings["ppo" if stage == "rl" else stage]


def _usage(role: str) -> list[str]:
    kind = "CausalLM" if role == "policy" else "TokenClassification"
    lines = [
        f"from transformers import AutoModelFor{kind}, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("this folder")',
        f'model = AutoModelFor{kind}.from_pretrained("this folder")',
        'inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)',
    ]
    if role == "policy":
        return [*lines, "tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0])"]
    return [*lines, "scores = model(**inputs).logits[0, :, 0]  # one for each token"]


def _flat(values: dict[str, Any], prefix: str = "") -> list[str]:
    """`name = value` for every number and word in a tree; lists of tables are left out."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            lines.append(f"{prefix}{name} = {value}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
