"""A model whose answers are written down beforehand, for tests of everything around sampling.

Its weights are a tiny checkpoint's and a token is a byte; `play` puts the script in the sampler's
place, and all else is real: prompts, stop strings, code spans, sandbox, journal.
"""

from collections.abc import Callable
from pathlib import Path

import chats
import numpy as np
import tiny_checkpoints

from prm_jax.stages import attempts, probing
from prm_jax.tokenizer import Tokenizer
from prm_jax.types import Samples

Script = Callable[[str, int], str]  # (prompt and prefix, number of the sample) -> what follows


def model(folder: Path, *, template: str = "", prm: bool = False, positions: int = 100_000) -> Path:
    """A folder in Hugging Face layout: a policy or a PRM."""
    chats.tokenizer(folder, template or None)
    config = tiny_checkpoints.CONFIGS["llama 3, grouped, tied"]
    config = config | {"max_position_embeddings": positions}
    if prm:
        config = config | {"architectures": ["LlamaForTokenClassification"]}
    return tiny_checkpoints.write(folder, config)


def seen(folder: Path, prompt: str) -> str:
    """What the script is given for a prompt: special tokens are no text."""
    tokenizer = Tokenizer.load(folder)
    return tokenizer.decode(tokenizer.encode(prompt))


class Played:
    """What the sampler was asked."""

    def __init__(self):
        self.widths: list[int] = []  # of the prompts of each batch
        self.starts: list[str] = []


def play(monkeypatch, folder: Path, script: Script, interrupt_at: int = 0) -> Played:
    """Puts `script` in the sampler's place; the `interrupt_at`-th batch is interrupted."""
    tokenizer = Tokenizer.load(folder)
    played = Played()

    def make_sampler(model, mesh, *, completion_tokens, samples_per_prompt, stops, **_):
        def sampler(params, tokens, valid, budget, key, stop_state=None):
            assert (stop_state is None) == (stops is None)
            n, width = tokens.shape
            played.widths.append(width)
            if len(played.widths) == interrupt_at:
                raise KeyboardInterrupt
            shape = (n * samples_per_prompt, width + completion_tokens)
            out, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
            for i in range(n):
                start = tokenizer.decode(tokens[i][valid[i]].tolist())
                played.starts.append(start)
                for k in range(samples_per_prompt):
                    ids = [*tokenizer.encode(script(start, k)), tokenizer.eos_id][: budget[i]]
                    row = i * samples_per_prompt + k
                    out[row, width : width + len(ids)] = ids
                    mask[row, width : width + len(ids)] = True
            return Samples(out, mask, mask, np.zeros(shape, np.float32))

        return sampler

    class Completer:
        """What PrefixCompleter does, from the script."""

        def __init__(self, model, mesh, key, *, places, samples, stops, **_):
            self.places, self._samples = places, samples

        def use(self, params) -> None:
            pass

        def complete(self, asked):
            played.widths.append(max(len(a.prefix) for a in asked))
            if len(played.widths) == interrupt_at:
                raise KeyboardInterrupt
            found = []
            for a in asked:
                start = tokenizer.decode(list(a.prefix))
                played.starts.append(start)
                rows = [tokenizer.encode(script(start, k)) for k in range(self._samples)]
                found.append([tuple([*ids, tokenizer.eos_id][: a.budget]) for ids in rows])
            return found

    monkeypatch.setattr(attempts, "make_sampler", make_sampler)
    monkeypatch.setattr(probing, "PrefixCompleter", Completer)
    return played
