"""Checkpoints through Orbax: sharded, asynchronous, atomic, and restored to any mesh.

A stage keeps its whole training state (to resume) and, apart from it, the parameters that later
stages read. A save that a kill cut short is never seen as a checkpoint. Of several hosts each
writes what it holds, into a folder that all of them see.
"""

from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from prm_jax import hosts


class Checkpoints:
    """The checkpoints of one kind in one folder, by step; a context manager that waits for saves.

    `keep` is how many of the newest stay (None keeps all).
    """

    def __init__(self, directory: Path, *, keep: int | None = None):
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps that can be restored, oldest first."""
        return hosts.first(lambda: sorted(self._manager.all_steps()))

    def save(self, step: int, tree: Any) -> None:
        """Starts saving `tree` and returns; a step that is already there is left alone.

        The arrays are copied first: a training step donates its state, and on CPU the writer
        would otherwise read buffers that the next step is overwriting.
        """
        if step not in self.steps():
            self._manager.save(step, args=ocp.args.StandardSave(jax.tree.map(jnp.copy, tree)))

    def wait(self) -> None:
        """Returns when every save that was started is on disk."""
        self._manager.wait_until_finished()

    def restore(self, step: int, like: Any) -> Any:
        """The tree saved at `step`, each array in the shape, dtype and sharding of `like`'s.

        Raises FileNotFoundError if there is no such step.
        """
        if step not in self.steps():
            raise FileNotFoundError(
                f"{self._manager.directory} has no checkpoint of step {step}; it has {self.steps()}"
            )
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract(like)))


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree's arrays, without their contents."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
