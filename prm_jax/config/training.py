"""Settings of the stages: SFT, PPO, line rewards, labels, PRM, evaluation."""

import dataclasses
from typing import ClassVar, Literal

from prm_jax.config.section import ConfigError, Section


@dataclasses.dataclass(frozen=True)
class _SupervisedConfig(Section):
    steps: int = 600
    """Optimizer steps."""
    batch_size: int = 64
    """Responses per step."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW: linear warm-up, then a cosine to a tenth."""
    warmup_steps: int = 30
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    checkpoint_every: int = 200
    """Steps between the checkpoints that a killed run resumes from."""

    def __post_init__(self):
        self._positive("batch_size", "learning_rate", "max_grad_norm", "checkpoint_every")
        self._not_negative("steps", "warmup_steps", "weight_decay")


@dataclasses.dataclass(frozen=True)
class SFTConfig(_SupervisedConfig):
    """Supervised fine-tuning on (prompt, solution) pairs."""

    section: ClassVar[str] = "sft"

    steps: int = 600
    """Optimizer steps; 0 starts RL from the model as it is."""
    learning_rate: float = 3e-3
    """Peak rate of AdamW: linear warm-up, then a cosine to a tenth."""


@dataclasses.dataclass(frozen=True)
class PPOConfig(Section):
    """PPO, shared by the baseline (`rl`) and the run with the PRM (`rl_prm`)."""

    section: ClassVar[str] = "ppo"

    steps: int = 100
    """Rollouts, each followed by an update."""
    rollouts: int = 128
    """Responses per step."""
    samples_per_prompt: int = 1
    """Responses to each prompt of a step."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 2
    """Optimizer steps per pass."""
    learning_rate: float = 1.2e-3
    """Of the policy; Adam, constant."""
    critic_learning_rate: float = 1e-3
    """Of the critic; Adam, constant."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    temperature: float = 1.0
    """Of sampling, and so of every log-prob in the loss."""
    clip_low: float = 0.2
    """The ratio to the old policy is clipped to 1 - clip_low."""
    clip_high: float = 0.2
    """... and to 1 + clip_high."""
    value_clip: float = 0.2
    """Largest step of a value from the old one that the loss rewards."""
    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    kl_coef: float = 0.02
    """Beta: penalty per nat of log pi - log pi_ref, at each token."""
    checkpoint_every: int = 20
    """Steps between the checkpoints that a killed run resumes from."""

    def __post_init__(self):
        self._positive(
            "steps", "rollouts", "samples_per_prompt", "epochs", "minibatches", "learning_rate",
            "critic_learning_rate", "max_grad_norm", "temperature", "value_clip",
            "checkpoint_every",
        )  # fmt: skip
        self._require("clip_low", 0 < self.clip_low < 1, "between 0 and 1")
        self._require("clip_high", 0 < self.clip_high, "greater than 0")
        self._fraction("gamma", "gae_lambda")
        self._not_negative("kl_coef")
        self._require(
            "rollouts",
            self.rollouts % (self.samples_per_prompt * self.minibatches) == 0,
            f"a multiple of samples_per_prompt x minibatches = "
            f"{self.samples_per_prompt} x {self.minibatches}",
        )


@dataclasses.dataclass(frozen=True)
class DenseConfig(Section):
    """DenseReward: lam * R / (lines of the response) at every line end (paper, section 3.3)."""

    section: ClassVar[str] = "dense"

    enabled: bool = True
    """DenseReward on or off."""
    lam_fail: float = 0.45
    """Weight in responses that fail; the paper has 0.25."""
    lam_pass: float = 0.45
    """Weight in responses that pass; the paper has 0.025."""
    allow_rank_inversion: bool = False
    """Accept weights under which a failing program could earn more than a passing one."""

    def __post_init__(self):
        self._not_negative("lam_fail", "lam_pass")
        if self.lam_fail + self.lam_pass >= 1 and not self.allow_rank_inversion:
            raise ConfigError(
                f"dense.lam_fail = {self.lam_fail} and dense.lam_pass = {self.lam_pass} are not "
                "allowed together: a failing program could earn lam_fail and a passing one "
                "1 - lam_pass, so their sum must be below 1; lower one of them, or accept it with "
                "dense.allow_rank_inversion"
            )


@dataclasses.dataclass(frozen=True)
class LabelConfig(Section):
    """PRM data: responses of checkpoints of the baseline, labelled by binary search."""

    section: ClassVar[str] = "label"

    checkpoints: int = 4
    """Checkpoints of the baseline, evenly spaced, that the responses come from."""
    prompts: int = 1_000
    """Training prompts that each checkpoint answers, other ones each time while the set lasts."""
    responses_per_prompt: int = 1
    """n: responses of each checkpoint to each prompt."""
    validation_prompts: int = 64
    """Validation prompts that each checkpoint answers: these responses judge the PRM."""
    samples_per_prefix: int = 8
    """K: completions per probed prefix; the paper has 20."""
    wave: int = 4
    """Completions sampled at a time; a prefix is settled by the first wave with a pass."""
    temperature: float = 1.0
    """Of the responses and of the completions."""
    completer: Literal["policy", "best"] = "best"
    """Who completes: the checkpoint that wrote the response (paper), or the checkpoint with the
    highest pass rate."""

    def __post_init__(self):
        self._positive(
            "checkpoints", "prompts", "responses_per_prompt", "validation_prompts",
            "samples_per_prefix", "wave", "temperature",
        )  # fmt: skip
        self._require(
            "wave",
            self.samples_per_prefix % self.wave == 0,
            f"a divisor of samples_per_prefix = {self.samples_per_prefix}",
        )


@dataclasses.dataclass(frozen=True)
class PRMConfig(_SupervisedConfig):
    """The process reward model: the SFT backbone with a scalar head, squared error on labels."""

    section: ClassVar[str] = "prm"

    selection: Literal["full", "remove_hard", "medium_only", "revised_only"] = "full"
    """Which responses train it; the paper prefers revised_only."""
    loss_on: Literal["all", "first_error"] = "first_error"
    """All lines (paper), or the lines up to and including the first -1."""

    def __post_init__(self):
        super().__post_init__()
        self._positive("steps")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Section):
    """pass@k on held-out problems, with bootstrap intervals over problems."""

    section: ClassVar[str] = "evaluate"

    samples: int = 10
    """Responses per problem."""
    temperature: float = 0.2
    """Of sampling; the paper has 0.2."""
    top_p: float = 1.0
    """Nucleus sampling; 1 keeps all."""
    bootstrap: int = 2_000
    """Resamples of the problems for each interval."""
    confidence: float = 0.95
    """Of the intervals."""

    def __post_init__(self):
        self._positive("samples", "temperature", "bootstrap")
        self._require("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._require("confidence", 0 < self.confidence < 1, "between 0 and 1")
