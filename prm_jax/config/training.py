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
        super().__post_init__()
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

    steps: int = 50
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
    """Of the policy; Adam, falling on a line to `final_learning_rate` of it."""
    final_learning_rate: float = 0.1
    """Share of learning_rate that is left at the last step; 1 keeps it constant."""
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
    sampler_cap: float = 0.0
    """Above 0, each token weighs min(pi_trainer / pi_sampler, sampler_cap): for samplers of another
    precision; 0 takes the sampler's log-probs as the trainer's."""
    value_clip: float = 0.2
    """Largest step of a value from the old one that the loss rewards."""
    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    lambda_alpha: float = 0.0
    """Above 0, the advantages' lambda is 1 - 1 / (lambda_alpha x tokens of the response) instead of
    gae_lambda (VAPO)."""
    critic_lambda: float | None = None
    """Lambda of the critic's returns; none takes that of the advantages (VC-PPO: 1)."""
    critic_warmup_steps: int = 0
    """Rollouts of the SFT policy, each followed by an update of the critic alone, before PPO."""
    outcome: Literal["pass", "partial"] = "pass"
    """pass: 1 if all tests pass, else 0 (paper). partial: credit for the tests that pass, and less
    for errors and programs that cannot be parsed (RLTF)."""
    advantage: Literal["gae", "group"] = "gae"
    """gae: from a critic. group: relative to the prompt's other samples, without critic (GRPO)."""
    kl_coef: float = 0.02
    """Beta: penalty per nat of log pi - log pi_ref, at each token."""
    checkpoint_every: int = 20
    """Steps between the checkpoints that a killed run resumes from."""

    def __post_init__(self):
        super().__post_init__()
        self._positive(
            "steps", "rollouts", "samples_per_prompt", "epochs", "minibatches", "learning_rate",
            "critic_learning_rate", "max_grad_norm", "temperature", "value_clip",
            "checkpoint_every",
        )  # fmt: skip
        self._require(
            "final_learning_rate",
            0 < self.final_learning_rate <= 1,
            "above 0 and at most 1: a share of ppo.learning_rate",
        )
        self._require("clip_low", 0 < self.clip_low < 1, "between 0 and 1")
        self._require("clip_high", 0 < self.clip_high, "greater than 0")
        self._fraction("gamma", "gae_lambda")
        if self.critic_lambda is not None:
            self._fraction("critic_lambda")
        self._not_negative("kl_coef", "lambda_alpha", "critic_warmup_steps", "sampler_cap")
        if self.advantage == "group":
            self._require(
                "samples_per_prompt",
                self.samples_per_prompt >= 2,
                "at least 2 with ppo.advantage = 'group', which compares the samples of a prompt",
            )
            for field in ("lambda_alpha", "critic_lambda", "critic_warmup_steps"):
                default = getattr(type(self), field)
                unused = f"{default} with ppo.advantage = 'group', which has no critic"
                self._require(field, getattr(self, field) == default, unused)
        self._require(
            "rollouts",
            self.rollouts % (self.samples_per_prompt * self.minibatches) == 0,
            f"a multiple of samples_per_prompt x minibatches = "
            f"{self.samples_per_prompt} x {self.minibatches}",
        )


@dataclasses.dataclass(frozen=True)
class DenseConfig(Section):
    """DenseReward: the PRM's scores at line ends as rewards (paper, section 3.3; rl/dense.py).

    One weight at 0 is a gate: lam_pass = 0 rewards lines of failing responses only, lam_fail = 0
    those of passing ones only.
    """

    section: ClassVar[str] = "dense"

    enabled: bool = True
    """DenseReward on or off."""
    source: Literal["prm", "oracle", "labels"] = "prm"
    """Who scores the lines. prm: the PRM. labels: no PRM of stage prm, so that label and prm can be
    left out (--stages), but labels of the step's own failing responses, by the policy that wrote
    them; its completions train it as well. Of `label` it reads samples_per_prefix, wave, settle,
    search and neutral_comments. oracle: the exact one of the built-in problems, a ceiling for
    comparisons and no method, since it knows the solution."""
    completions: int = 64
    """Where rollouts are labelled (source `labels`, or prm_updates): at most so many of the
    ppo.rollouts of a step are completions of its failing responses, and places that they leave stay
    empty; the rest are whole responses."""
    prm_updates: int = 0
    """Above 0, a PRM learns from labels of the policy's own responses as RL goes on, by so many
    optimizer steps in each step of PPO, before its own, and scores the lines of all responses. With
    source `prm` it begins as stage `prm` left it, and half of a batch are what that stage learned
    from; with `labels` as a fresh head on the SFT policy, of these labels alone. Its optimizer,
    batches, selection and targets are those of `prm`; with one response to a prompt, 'remove_hard'
    leaves out all whose first line is lost, and 'full' none."""
    form: Literal["value", "progress", "min", "good_prefix", "plan"] = "value"
    """value: lam R / (lines), the paper's. progress: lam (R - R of the line before). min: lam R of
    the worst line, nearly. good_prefix: lam where the lines before the first error end. plan: lam R
    of the plan, and lines relative to it (prompts.plan)."""
    plan: bool = True
    """Reward the plan as well, where responses open with one (prompts.plan)."""
    lam_fail: float = 0.45
    """Weight in responses that fail; the paper has 0.25, good-prefix rewards 0.5."""
    lam_pass: float = 0.45
    """Weight in responses that pass; the paper has 0.025, good-prefix rewards 0."""
    length_normalised: bool = True
    """Divide by the number of lines (paper), so that more lines earn nothing; form `value` only."""
    tau: float = 0.1
    """Temperature of form `min`: how much of the weight the worst line gets."""
    error_threshold: float = 0.0
    """A line that scores below it is an error to form `good_prefix`. 0 is halfway between the
    labels; for a PRM whose prm.target is rate take -1 + 1/K, for counts -1 + 1/(K + 1)."""
    allow_rank_inversion: bool = False
    """Accept weights under which a failing program could earn more than a passing one."""

    def __post_init__(self):
        super().__post_init__()
        self._not_negative("lam_fail", "lam_pass")
        self._require(
            "length_normalised",
            self.length_normalised or self.form == "value",
            f"true with dense.form = {self.form!r}, which never divides by the number of lines",
        )
        self._require(
            "plan", self.plan or self.form != "plan", "true with dense.form = 'plan', which pays it"
        )
        self._positive("tau", "completions")
        self._not_negative("prm_updates")
        self._require(
            "prm_updates",
            not self.prm_updates or self.source != "oracle",
            "0 with dense.source = 'oracle', which scores the lines itself",
        )
        self._require("error_threshold", -1 < self.error_threshold <= 1, "above -1 and at most 1")
        if self.advantage_of_failing() >= 1 and not self.allow_rank_inversion:
            raise ConfigError(
                f"dense.lam_fail = {self.lam_fail} and dense.lam_pass = {self.lam_pass} are not "
                f"allowed together with dense.form = {self.form!r}: a failing program could earn "
                "lam_fail and a passing one 1 - lam_pass (with good_prefix 1), so their sum must "
                "be below 1; lower one of them, or accept it with dense.allow_rank_inversion"
            )

    @property
    def labels_online(self) -> bool:
        """Whether stage `rl_prm` labels its own rollouts."""
        return self.enabled and (self.source == "labels" or self.prm_learns)

    @property
    def prm_learns(self) -> bool:
        """Whether a PRM learns from these labels in stage `rl_prm`."""
        return self.enabled and self.prm_updates > 0

    @property
    def labels_for(self) -> str:
        """The setting that makes stage `rl_prm` label its own rollouts, as messages name it."""
        labels = self.source == "labels"
        return "source = 'labels'" if labels else f"prm_updates = {self.prm_updates}"

    def advantage_of_failing(self, max_lines: int = 1) -> float:
        """The most that dense rewards can bring a failing program up against a passing one.

        It must stay below what the outcome is worth; `max_lines` counts only without the division
        by the number of lines.
        """
        weights = self.lam_fail + (0.0 if self.form == "good_prefix" else self.lam_pass)
        return weights if self.length_normalised else weights * max_lines


@dataclasses.dataclass(frozen=True)
class LabelConfig(Section):
    """PRM data: responses of checkpoints of the baseline, labelled by completing prefixes."""

    section: ClassVar[str] = "label"

    checkpoints: int = 4
    """Checkpoints of the baseline, evenly spaced, that the responses come from."""
    prompts: int = 2_000
    """Training prompts that each checkpoint answers, other ones each time while the set lasts. A
    PRM that saw few responses cannot tell new ones."""
    responses_per_prompt: int = 1
    """n: responses of each checkpoint to each prompt."""
    validation_prompts: int = 64
    """Validation prompts that each checkpoint answers: these responses judge the PRM."""
    samples_per_prefix: int = 8
    """K: completions per probed prefix; the paper has 20."""
    wave: int = 2
    """Completions sampled at a time; a prefix is settled by the first wave with a pass."""
    settle: float = 0.0
    """A prefix without a pass is given up before its K-th completion once the chance that one of
    the rest passes is below this (`chance_of_a_pass`). 0: always K completions (paper)."""
    temperature: float = 1.0
    """Of the responses and of the completions."""
    search: Literal["cheapest", "binary", "dense"] = "cheapest"
    """binary: the middle of what is open, about log2 of the lines in probes (paper). cheapest: the
    prefix that settles the rest at the least expected cost; and a completion that goes on with the
    response's own next lines is a sample of their prefixes too. dense: every prefix is probed."""
    neutral_comments: bool = True
    """Comments are labelled 0 (paper), so that they earn nothing; if not, as any other line."""
    completer: Literal["policy", "best"] = "best"
    """Who completes: the checkpoint that wrote the response (paper), or the checkpoint with the
    highest pass rate."""

    def __post_init__(self):
        super().__post_init__()
        self._positive(
            "checkpoints", "prompts", "responses_per_prompt", "validation_prompts",
            "samples_per_prefix", "wave", "temperature",
        )  # fmt: skip
        self._require(
            "wave",
            self.samples_per_prefix % self.wave == 0,
            f"a divisor of samples_per_prefix = {self.samples_per_prefix}",
        )
        self._require("settle", 0 <= self.settle < 1, "at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class PRMConfig(_SupervisedConfig):
    """The process reward model: the SFT backbone with a scalar head, squared error on labels."""

    section: ClassVar[str] = "prm"

    steps: int = 1_200
    """Optimizer steps."""
    selection: Literal["full", "remove_hard", "medium_only", "revised_only"] = "remove_hard"
    """Which responses train it. remove_hard leaves out those of prompts that nobody came near to,
    whose first line is called lost whatever it is; the paper prefers revised_only."""
    repairs: bool = False
    """Train on completions that passed as well, for each failing response that of its longest
    prefix that has one: the two differ from the line on that the label is about. Costs nothing."""
    loss_on: Literal["all", "first_error", "outcome"] = "first_error"
    """All lines (paper), or the lines up to and including the first -1. outcome: the last line
    alone, with whether the program passes: an outcome model from the same responses."""
    target: Literal["binary", "rate", "counts"] = "binary"
    """binary: the label, +1 or -1 (paper). rate: the share of completions that passed, mapped to
    -1 ... 1, at the prefixes that were completed; it needs one wave and another search than
    cheapest. counts: every single completion, +1 or -1, and the response itself as one of them. Of
    both, a score counts as an error if it is nearer to no pass than to one."""

    def __post_init__(self):
        super().__post_init__()
        self._positive("steps")
        self._require(
            "repairs",
            not self.repairs or self.target == "binary",
            f"false with prm.target = {self.target!r}: a repair passed, whatever the rate of its "
            "prefix is",
        )
        self._require(
            "target",
            self.target == "binary" or self.loss_on != "outcome",
            "binary with prm.loss_on = 'outcome', which reads no label",
        )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Section):
    """pass@k on held-out problems, with bootstrap intervals over problems."""

    section: ClassVar[str] = "evaluate"

    first: int = 0
    """Only so many problems of each held-out set, the first ones; 0 takes all."""
    samples: int = 10
    """Responses per problem."""
    temperature: float = 0.2
    """Of sampling; the paper has 0.2; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus sampling; 1 keeps all."""
    bootstrap: int = 2_000
    """Resamples of the problems for each interval."""
    confidence: float = 0.95
    """Of the intervals."""
    inspect: int = 64
    """Validation problems on which PRM and critics are held against what the trained policies do,
    at most; 0: none."""

    def __post_init__(self):
        super().__post_init__()
        self._positive("samples", "bootstrap")
        self._not_negative("first", "temperature")
        self._require("inspect", self.inspect == 0 or self.inspect > 1, "0 or at least 2")
        self._require("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._require("confidence", 0 < self.confidence < 1, "between 0 and 1")
