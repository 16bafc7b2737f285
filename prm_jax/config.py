"""Every setting of a run, as frozen dataclasses that refuse bad values when they are made.

A config file (`configs/*.py`) defines `get_config() -> Config`; the command line overrides single
fields (`--ppo.clip-low=0.1`). The resolved config is written to the workdir before anything else,
and it stops at `steps/` and `stages/`: the math takes plain scalars.
"""

import dataclasses
import json
from typing import ClassVar, Literal

from prm_jax.types import Limits


class ConfigError(ValueError):
    """A setting is out of range or contradicts another; names the field, the value, the mend."""


class _Section:
    """Gives a config section `_require`: a check that names the field, its value and the mend."""

    section: ClassVar[str] = ""

    def _require(self, field: str, condition: bool, allowed: str) -> None:
        if not condition:
            name = f"{self.section}.{field}" if self.section else field
            value = self
            for part in field.split("."):
                value = getattr(value, part)
            raise ConfigError(f"{name} = {value!r} is not allowed: it must be {allowed}")

    def _positive(self, *fields: str) -> None:
        for field in fields:
            self._require(field, getattr(self, field) > 0, "greater than 0")

    def _not_negative(self, *fields: str) -> None:
        for field in fields:
            self._require(field, getattr(self, field) >= 0, "at least 0")

    def _fraction(self, *fields: str) -> None:
        for field in fields:
            self._require(field, 0 <= getattr(self, field) <= 1, "between 0 and 1")


@dataclasses.dataclass(frozen=True)
class ProblemsConfig(_Section):
    """The problem sets. `chains` is built in: chains of list operations, one line each."""

    section: ClassVar[str] = "problems"

    name: Literal["chains"] = "chains"
    """Which family of problems."""
    seed: int = 0
    """Seed of the generator; another seed gives other problems."""
    sft_pairs: int = 20_000
    """(prompt, solution) pairs for SFT, some of them with a plausible mistake."""
    train: int = 4_000
    """Problems that RL and the labels ask; SFT never sees them."""
    validation: int = 256
    """Problems that judge the PRM."""
    test: int = 200
    """Held-out problems with the horizons of `test_horizons`; `test_long` has as many."""
    sft_horizons: tuple[int, int] = (1, 8)
    """Fewest and most lines of a solution, both included."""
    train_horizons: tuple[int, int] = (6, 8)
    """Also those of the validation problems."""
    test_horizons: tuple[int, int] = (3, 8)
    """Of the held-out problems."""
    long_horizons: tuple[int, int] = (9, 10)
    """Of `test_long`: longer than anything in training."""

    def __post_init__(self):
        self._positive("sft_pairs", "train", "validation", "test")
        for name in ("sft_horizons", "train_horizons", "test_horizons", "long_horizons"):
            low, high = getattr(self, name)
            self._require(name, 1 <= low <= high, "two numbers, 1 <= fewest <= most")
        self._require(
            "long_horizons",
            self.long_horizons[0] > max(self.sft_horizons[1], self.train_horizons[1]),
            f"longer than every training horizon (sft {self.sft_horizons}, "
            f"train {self.train_horizons})",
        )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(_Section):
    """The tokenizer: any Hugging Face `tokenizer.json`, or one trained on the SFT pairs."""

    section: ClassVar[str] = "tokenizer"

    path: str = ""
    """A `tokenizer.json`; empty trains a byte-level BPE on the SFT pairs at first use."""
    vocab_size: int = 704
    """Entries of the BPE that is trained; the model's vocabulary follows the tokenizer."""
    eos: str = ""
    """End-of-sequence token of `path`; empty tries the usual names."""

    def __post_init__(self):
        self._require("vocab_size", self.vocab_size >= 260, "at least 260 (bytes and specials)")


@dataclasses.dataclass(frozen=True)
class PromptsConfig(_Section):
    """How the policy is asked, and which part of its response is the program."""

    section: ClassVar[str] = "prompts"

    style: Literal["completion", "chat", "chat_fence"] = "completion"
    """completion: the problem's prompt as it is, and the response is code. chat: the model's own
    chat template, and the first fenced block of the response is the code. chat_fence: the same, but
    the prompt opens the block, so the response is code until it closes."""
    system: str = ""
    """System message of the chat styles; empty sends none."""
    stop: tuple[str, ...] = ()
    """Strings that end a response, beside those of the problem set."""

    def __post_init__(self):
        self._require("stop", "" not in self.stop, "strings that are not empty")
        self._require(
            "system",
            not self.system or self.style != "completion",
            "empty with prompts.style = 'completion', which sends no system message",
        )


@dataclasses.dataclass(frozen=True)
class RopeConfig(_Section):
    """Rotary positions, and how a model stretched them to contexts longer than it was trained on.

    The fields below `scaling` say nothing where their kind is not chosen (model/rope.py has the
    equations).
    """

    section: ClassVar[str] = "model.rope"

    theta: float = 10_000.0
    """Base of the frequencies."""
    scaling: Literal["none", "linear", "dynamic", "llama3", "yarn"] = "none"
    """How frequencies are stretched; `dynamic` changes nothing up to `original_positions`."""
    factor: float = 1.0
    """How many times longer the context became."""
    original_positions: int = 0
    """Context before it was stretched (dynamic, llama3, yarn)."""
    low_freq_factor: float = 1.0
    """llama3: waves longer than original_positions / this are stretched in full."""
    high_freq_factor: float = 4.0
    """llama3: waves shorter than original_positions / this are left alone."""
    beta_fast: float = 32.0
    """yarn: frequencies that turn more often than this within the context are left alone."""
    beta_slow: float = 1.0
    """yarn: frequencies that turn less often than this are stretched in full."""
    attention_factor: float = 0.0
    """yarn: queries and keys are scaled by it; 0 takes 0.1 ln(factor) + 1."""
    truncate: bool = True
    """yarn: the two bounds are rounded to whole frequencies."""

    def __post_init__(self):
        self._positive("theta", "low_freq_factor", "beta_fast", "beta_slow")
        self._require("factor", self.factor >= 1, "at least 1")
        self._not_negative("original_positions", "attention_factor")
        self._require(
            "high_freq_factor",
            self.high_freq_factor > self.low_freq_factor,
            f"greater than {self.low_freq_factor=}",
        )
        self._require(
            "original_positions",
            self.original_positions > 0 or self.scaling in ("none", "linear"),
            f"greater than 0 with model.rope.scaling = {self.scaling!r}",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Section):
    """A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Qwen2/2.5 is qkv_bias=True; Qwen3 is qk_norm=True; Llama is neither.
    """

    section: ClassVar[str] = "model"

    path: str = ""
    """Folder in Hugging Face layout or GGUF file that the weights come from; empty: fresh ones."""
    layers: int = 3
    """Transformer blocks."""
    embed: int = 64
    """Width of the residual stream."""
    heads: int = 2
    """Query heads."""
    kv_heads: int = 2
    """Heads of keys and values, each shared by heads / kv_heads query heads."""
    head_dim: int = 32
    """Width of a head; even."""
    mlp: int = 192
    """Inner width of the SwiGLU."""
    vocab_size: int = 0
    """Rows of the embedding; never fewer than the tokenizer has. 0 takes the tokenizer's."""
    max_positions: int = 0
    """Tokens of context that the weights were made for; 0: not known."""
    rope: RopeConfig = RopeConfig()
    norm_eps: float = 1e-6
    """Added under the root of RMSNorm."""
    qkv_bias: bool = False
    """Biases on queries, keys and values (Qwen2)."""
    out_bias: bool = False
    """Bias on the output of attention (Llama and Qwen3 with attention_bias)."""
    mlp_bias: bool = False
    """Biases in the SwiGLU (Llama with mlp_bias)."""
    qk_norm: bool = False
    """RMSNorm on queries and keys (Qwen3)."""
    tied_embeddings: bool = True
    """The output head is the embedding, transposed."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters and optimizer are float32."""
    lora_rank: int = 0
    """Rank of the adapters beside each frozen kernel (LoRA, arXiv 2106.09685); 0: full training."""
    lora_alpha: float = 16.0
    """Adapters are scaled by lora_alpha / lora_rank."""

    def __post_init__(self):
        self._positive("layers", "embed", "heads", "kv_heads", "head_dim", "mlp", "lora_alpha")
        self._not_negative("vocab_size", "max_positions", "lora_rank")
        self._require("norm_eps", self.norm_eps > 0, "greater than 0")
        self._require("head_dim", self.head_dim % 2 == 0, "even (rotary positions turn pairs)")
        self._require("kv_heads", self.heads % self.kv_heads == 0, f"a divisor of {self.heads=}")


@dataclasses.dataclass(frozen=True)
class MeshConfig(_Section):
    """Devices per axis; -1 on one axis takes all that are left."""

    section: ClassVar[str] = "mesh"

    data: int = 1
    """Copies of the model that split the batch."""
    fsdp: int = -1
    """Splits the batch and the parameters."""
    tensor: int = 1
    """Splits heads, MLP and vocabulary."""

    def __post_init__(self):
        axes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in axes.items():
            self._require(name, size >= 1 or size == -1, "at least 1, or -1 for all that are left")
        if list(axes.values()).count(-1) > 1:
            raise ConfigError(f"mesh = {axes} is not allowed: at most one axis may be -1")


@dataclasses.dataclass(frozen=True)
class SandboxConfig(_Section):
    """Where programs run."""

    section: ClassVar[str] = "sandbox"

    jobs: int = 0
    """Programs at once; 0 takes the cores that this process may use."""
    min_tier: Literal["T0", "T1", "T2", "T3", "T4"] = "T3"
    """The weakest isolation that is accepted (docs/sandbox.md)."""
    cpu_s: float = 2.0
    """CPU seconds that one program may use."""
    memory_mib: int = 256
    """Memory that one program may use, in MiB."""

    def __post_init__(self):
        self._not_negative("jobs")
        self._positive("cpu_s", "memory_mib")

    def limits(self) -> Limits:
        return Limits(cpu_s=self.cpu_s, memory_mib=self.memory_mib)


@dataclasses.dataclass(frozen=True)
class _SupervisedConfig(_Section):
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
        self._positive("steps", "batch_size", "learning_rate", "max_grad_norm", "checkpoint_every")
        self._not_negative("warmup_steps", "weight_decay")


@dataclasses.dataclass(frozen=True)
class SFTConfig(_SupervisedConfig):
    """Supervised fine-tuning on (prompt, solution) pairs."""

    section: ClassVar[str] = "sft"

    learning_rate: float = 3e-3
    """Peak rate of AdamW: linear warm-up, then a cosine to a tenth."""


@dataclasses.dataclass(frozen=True)
class PPOConfig(_Section):
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
class DenseConfig(_Section):
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
class LabelConfig(_Section):
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


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(_Section):
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


@dataclasses.dataclass(frozen=True)
class Config(_Section):
    """All settings of one run."""

    seed: int = 0
    """Root of all randomness of the run (the problems have their own seed)."""
    value_init: bool = True
    """ValueInit: the critic of `rl_prm` starts as the PRM, its head scaled to the returns."""
    max_prompt_tokens: int = 48
    """P: a prompt that is longer is refused."""
    max_completion_tokens: int = 68
    """C: a response is cut off after this many tokens."""
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
        self._positive("max_prompt_tokens", "max_completion_tokens")
        self._not_negative("seed")
        bound = self.ppo.gamma ** (self.max_completion_tokens - 1)
        weights = self.dense.lam_fail + self.dense.lam_pass
        if self.dense.enabled and weights >= bound and not self.dense.allow_rank_inversion:
            raise ConfigError(
                f"ppo.gamma = {self.ppo.gamma} is not allowed with dense.lam_fail + dense.lam_pass "
                f"= {weights:.3g}: a passing program's outcome may be discounted to {bound:.3g}, "
                "less than a failing one could earn; raise ppo.gamma, lower the weights, or accept "
                "it with dense.allow_rank_inversion"
            )
        if self.label.checkpoints > self.ppo.steps:
            raise ConfigError(
                f"label.checkpoints = {self.label.checkpoints} is not allowed: the baseline has "
                f"only ppo.steps = {self.ppo.steps}"
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
        dense=DenseConfig(enabled=True, lam_fail=0.25, lam_pass=0.025),
        label=replace(
            config.label, checkpoints=4, samples_per_prefix=20, wave=5, completer="policy"
        ),
        prm=replace(config.prm, selection="revised_only", loss_on="all"),
        evaluate=replace(config.evaluate, samples=10, temperature=0.2),
    )


def to_json(config: Config) -> str:
    """The settings as JSON text, as the workdir keeps them."""
    return json.dumps(dataclasses.asdict(config), indent=2)
