"""Settings of what comes in and where it runs: problems, tokenizer, prompts, sandbox."""

import dataclasses
from typing import ClassVar, Literal

from prm_jax.config.section import Section
from prm_jax.types import Limits


@dataclasses.dataclass(frozen=True)
class _GeneratedConfig(Section):
    fewest_lines: ClassVar[int] = 1  # of a solution

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
    final: int = 0
    """Held-out problems like those of `test`, for one look at the end of a study
    (problems.held_out); 0 makes none."""
    sft_horizons: tuple[int, int] = (1, 8)
    """Fewest and most lines of a solution, both included."""
    train_horizons: tuple[int, int] = (6, 8)
    """Also those of the validation problems."""
    test_horizons: tuple[int, int] = (3, 8)
    """Of the held-out problems."""
    long_horizons: tuple[int, int] = (9, 10)
    """Of `test_long`: longer than anything in training."""

    def __post_init__(self):
        super().__post_init__()
        self._positive("sft_pairs", "train", "validation", "test")
        self._not_negative("final")
        for name in ("sft_horizons", "train_horizons", "test_horizons", "long_horizons"):
            low, high = getattr(self, name)
            fewest = self.fewest_lines
            self._require(name, fewest <= low <= high, f"two numbers, {fewest} <= fewest <= most")
        self._require(
            "long_horizons",
            self.long_horizons[0] > max(self.sft_horizons[1], self.train_horizons[1]),
            f"longer than every training horizon (sft {self.sft_horizons}, "
            f"train {self.train_horizons})",
        )


@dataclasses.dataclass(frozen=True)
class ChainsConfig(_GeneratedConfig):
    """The built-in problems: chains of list operations, one line each, from a generator."""

    section: ClassVar[str] = "problems.chains"


@dataclasses.dataclass(frozen=True)
class BranchesConfig(_GeneratedConfig):
    """Built-in problems of another kind: functions with a loop and branches, from a generator."""

    section: ClassVar[str] = "problems.branches"
    fewest_lines: ClassVar[int] = 4  # start, loop, an action, return

    sft_horizons: tuple[int, int] = (4, 9)
    """Fewest and most lines of a solution, both included; the fewest are 4."""
    train_horizons: tuple[int, int] = (7, 9)
    """Also those of the validation problems."""
    test_horizons: tuple[int, int] = (5, 9)
    """Of the held-out problems."""
    long_horizons: tuple[int, int] = (10, 12)
    """Of `test_long`: longer than anything in training."""


@dataclasses.dataclass(frozen=True)
class ProblemsConfig(Section):
    """Which problems: the built-in `chains` or `branches`, a benchmark, or a file of your own."""

    section: ClassVar[str] = "problems"

    name: str = "chains"
    """chains; branches; the name of a set (human_eval); a name and its file (mbpp:PATH); or a file
    (docs/problems.md). Its training problems serve SFT, RL and the labels."""
    validation: int = 0
    """Training problems that are kept to judge the PRM, where the set has no validation split; 0
    keeps a tenth."""
    train_prompt_tokens: int = 0
    """Training and validation problems with longer prompts are left out, since every rollout is as
    wide as the longest prompt; 0 keeps all up to max_prompt_tokens."""
    held_out: Literal["development", "final"] = "development"
    """Which held-out problems judge the policies: those that choices are made by, or those that are
    looked at once (built-in problems, `final` of their settings)."""
    chains: ChainsConfig = ChainsConfig()
    branches: BranchesConfig = BranchesConfig()

    def __post_init__(self):
        super().__post_init__()
        self._require("name", self.name.strip() != "", "the name or the file of a problem set")
        if self.held_out == "final":
            built_in = self.name in ("chains", "branches")
            self._require("held_out", built_in, "development, except for chains and branches")
            field = f"{self.name}.final"
            final = getattr(self, self.name).final
            self._require(field, final > 0, "above 0 to hold final problems")
        self._not_negative("validation", "train_prompt_tokens")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Section):
    """The tokenizer: any Hugging Face `tokenizer.json`, or one trained on the SFT pairs."""

    section: ClassVar[str] = "tokenizer"

    path: str = ""
    """A `tokenizer.json`; empty trains a byte-level BPE on the SFT pairs at first use."""
    vocab_size: int = 704
    """Entries of the BPE that is trained; the model's vocabulary follows the tokenizer."""
    eos: str = ""
    """End-of-sequence token of `path`; empty tries the usual names."""

    def __post_init__(self):
        super().__post_init__()
        self._require("vocab_size", self.vocab_size >= 260, "at least 260 (bytes and specials)")


@dataclasses.dataclass(frozen=True)
class PromptsConfig(Section):
    """How the policy is asked, and which part of its response is the program."""

    section: ClassVar[str] = "prompts"

    style: Literal["completion", "chat", "chat_fence"] = "completion"
    """completion: the problem's prompt as it is, and the response is code. chat: the model's own
    chat template, and the first fenced block of the response is the code. chat_fence: the same, but
    the prompt opens the block, so the response is code until it closes."""
    system: str = ""
    """System message of the chat styles; empty sends none."""
    plan: bool = False
    """A response opens with a plan, a block between the lines <plan> and </plan>, before the code:
    the first step that labels and PRM judge. SFT needs problems whose solutions have one (chains;
    `plan` of your own file); a chat model is asked for it."""
    stop: tuple[str, ...] = ()
    """Strings that end a response, beside those of the problem set."""

    def __post_init__(self):
        super().__post_init__()
        self._require("stop", "" not in self.stop, "strings that are not empty")
        self._require(
            "plan",
            not self.plan or self.style != "chat_fence",
            "false with prompts.style = 'chat_fence', whose response is code from its first byte",
        )
        self._require(
            "system",
            not self.system or self.style != "completion",
            "empty with prompts.style = 'completion', which sends no system message",
        )


@dataclasses.dataclass(frozen=True)
class SandboxConfig(Section):
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
    deadline_s: float = 900.0
    """Of several hosts, each must have judged its programs of one batch after this time: if one
    has not, the run ends on all of them, and the same command goes on from the last checkpoint."""

    def __post_init__(self):
        super().__post_init__()
        self._not_negative("jobs")
        self._positive("cpu_s", "memory_mib", "deadline_s")

    def limits(self) -> Limits:
        return Limits(cpu_s=self.cpu_s, memory_mib=self.memory_mib)
