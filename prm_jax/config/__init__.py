"""Every setting of a run, as frozen dataclasses that refuse bad values when they are made.

A config file (`configs/*.py`) defines `get_config() -> Config`; the command line overrides single
fields (`--ppo.clip-low=0.1`). The resolved config is written to the workdir before anything else,
and it stops at `steps/` and `stages/`: the math takes plain scalars.
"""

import dataclasses
import json

from prm_jax.config.model import MeshConfig, ModelConfig, RopeConfig
from prm_jax.config.problems import (
    BranchesConfig,
    ChainsConfig,
    ProblemsConfig,
    PromptsConfig,
    SandboxConfig,
    TokenizerConfig,
)
from prm_jax.config.section import ConfigError, Section
from prm_jax.config.training import (
    DenseConfig,
    EvaluateConfig,
    LabelConfig,
    PPOConfig,
    PRMConfig,
    SFTConfig,
)

__all__ = [
    "BranchesConfig",
    "ChainsConfig",
    "Config",
    "ConfigError",
    "DenseConfig",
    "EvaluateConfig",
    "LabelConfig",
    "MeshConfig",
    "ModelConfig",
    "PPOConfig",
    "PRMConfig",
    "ProblemsConfig",
    "PromptsConfig",
    "RopeConfig",
    "SFTConfig",
    "SandboxConfig",
    "TokenizerConfig",
    "paper_recipe",
    "to_json",
]


@dataclasses.dataclass(frozen=True)
class Config(Section):
    """All settings of one run."""

    seed: int = 0
    """Root of all randomness of the run (the problems have their own seed)."""
    value_init: bool = True
    """ValueInit: the critic of `rl_prm` starts as the PRM, its head scaled to the returns."""
    max_prompt_tokens: int = 48
    """P: a prompt that is longer is refused."""
    max_completion_tokens: int = 68
    """C: a response is cut off after this many tokens."""
    device_batch: int = 256
    """Responses to read at once outside of PPO's rollouts, for sampling or the PRM's scores: fewer
    need less memory, but no fewer than the responses to one prompt."""
    decode_rows: int = 32
    """Responses that are being written at once, in PPO's rollouts too: one that ends makes room for
    the next. A CPU is at its best with few rows, an accelerator with as many as fit."""
    problems: ProblemsConfig = ProblemsConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    prompts: PromptsConfig = PromptsConfig()
    model: ModelConfig = ModelConfig()
    mesh: MeshConfig = MeshConfig()
    sandbox: SandboxConfig = SandboxConfig()
    sft: SFTConfig = SFTConfig()
    ppo: PPOConfig = PPOConfig()
    dense: DenseConfig = DenseConfig()
    label: LabelConfig = LabelConfig()
    prm: PRMConfig = PRMConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def __post_init__(self):
        super().__post_init__()
        self._positive("max_prompt_tokens", "max_completion_tokens", "device_batch", "decode_rows")
        self._not_negative("seed")
        bound = self.ppo.gamma ** (self.max_completion_tokens - 1)
        weights = self.dense.advantage_of_failing(max_lines=self.max_completion_tokens)
        if self.dense.enabled and weights >= bound and not self.dense.allow_rank_inversion:
            without = "" if self.dense.length_normalised else " without dense.length_normalised"
            raise ConfigError(
                f"ppo.gamma = {self.ppo.gamma} is not allowed with dense.lam_fail = "
                f"{self.dense.lam_fail} and dense.lam_pass = {self.dense.lam_pass}{without}: line "
                f"rewards could favour a failing program by {weights:.3g}, and the outcome of a "
                f"passing one may be discounted to {bound:.3g}; lower the weights, raise "
                "ppo.gamma, or accept it with dense.allow_rank_inversion"
            )
        if self.dense.form == "plan" and not self.prompts.plan:
            raise ConfigError(
                "dense.form = 'plan' is not allowed without prompts.plan: lines are rewarded "
                "relative to the plan that a response opens with; turn it on, or choose 'value'"
            )
        if self.dense.form == "plan" and self.dense.source == "prm" and self.prm.loss_on != "all":
            raise ConfigError(
                f"prm.loss_on = {self.prm.loss_on!r} is not allowed with dense.form = 'plan': a "
                "PRM that never learns of the lines after a lost plan could pay them for anything; "
                "choose 'all'"
            )
        self._require(
            "value_init",
            not self.value_init or self.ppo.advantage != "group",
            "false with ppo.advantage = 'group', which has no critic",
        )
        if self.prm.target == "rate":
            self._label_for_rates()
        if self.dense.labels_online:
            self._labels_online()
        if self.label.checkpoints > self.ppo.steps:
            raise ConfigError(
                f"label.checkpoints = {self.label.checkpoints} is not allowed: the baseline has "
                f"only ppo.steps = {self.ppo.steps}; lower it to that or less"
            )

    @property
    def whole_responses(self) -> int:
        """How many of a step's rollouts begin with the prompt alone, in stage `rl_prm`."""
        return self.ppo.rollouts - (self.dense.completions if self.dense.labels_online else 0)

    def _labels_online(self) -> None:
        whole, ppo = self.whole_responses, self.ppo
        asked, from_labels = self.dense.labels_for, self.dense.source == "labels"
        if whole < 1 or whole % ppo.samples_per_prompt:
            raise ConfigError(
                f"dense.completions = {self.dense.completions} is not allowed with dense.{asked}: "
                f"of ppo.rollouts = {ppo.rollouts} programs a step it must leave some, a multiple "
                f"of ppo.samples_per_prompt = {ppo.samples_per_prompt}, as whole responses"
            )
        if self.dense.completions < self.label.wave:
            raise ConfigError(
                f"dense.completions = {self.dense.completions} is not allowed: a probe takes "
                f"label.wave = {self.label.wave} completions at a time; give it as many, or more"
            )
        if self.dense.form not in ("value", "min"):
            raise ConfigError(
                f"dense.form = {self.dense.form!r} is not allowed with dense.{asked}: it compares "
                "lines with others that may have no label, or that are given to a completion; "
                "choose 'value' or 'min'"
            )
        for name, value, allowed, why in (
            (
                "value_init",
                self.value_init and from_labels,
                False,
                "no PRM is made for the critic to start from",
            ),
            ("ppo.critic_warmup_steps", ppo.critic_warmup_steps, 0, "no critic is warmed up"),
            ("ppo.advantage", ppo.advantage, "gae", "completions form no groups"),
        ):
            if value != allowed:
                raise ConfigError(
                    f"{name} = {value!r} is not allowed with dense.{asked}, where {why}: set it to "
                    f"{allowed!r}"
                )

    def _label_for_rates(self) -> None:
        label = self.label
        if label.wave < label.samples_per_prefix:
            raise ConfigError(
                f"label.wave = {label.wave} is not allowed with prm.target = 'rate': a probe ends "
                "with the first wave that has a pass, which makes rates too high; give one wave of "
                f"label.samples_per_prefix = {label.samples_per_prefix}, or choose 'counts'"
            )
        if label.search == "cheapest":
            raise ConfigError(
                "label.search = 'cheapest' is not allowed with prm.target = 'rate': completions of "
                "shorter prefixes count as well, and a pass among them ends a prefix, which makes "
                "rates too high; choose 'binary' or 'dense', or prm.target = 'counts'"
            )


def paper_recipe(config: Config) -> Config:
    """`config` with the paper's choices wherever the paper states one (arXiv 2410.17621).

    K = 20 completions per prefix by the checkpoint that wrote the response, four checkpoints,
    Revised-only data, the loss on all lines, lambda 0.25 for failing and 0.025 for passing
    responses, DenseReward and ValueInit both on, pass@1 at temperature 0.2 over 10 samples.
    """
    replace = dataclasses.replace
    return replace(
        config,
        value_init=True,
        ppo=replace(config.ppo, outcome="pass", advantage="gae"),
        dense=DenseConfig(enabled=True, lam_fail=0.25, lam_pass=0.025),
        label=replace(
            config.label,
            checkpoints=4,
            samples_per_prefix=20,
            wave=5,
            completer="policy",
            search="binary",
            neutral_comments=True,
        ),
        prm=replace(config.prm, selection="revised_only", loss_on="all", target="binary"),
        evaluate=replace(config.evaluate, samples=10, temperature=0.2),
    )


def to_json(config: Config) -> str:
    """The settings as JSON text, as the workdir keeps them."""
    return json.dumps(dataclasses.asdict(config), indent=2)
