"""What each of two processes with two devices checks about rows, values and checkpoints.

`python -c "import host_rows; host_rows.main()" FOLDER`, started as tests/host_processes.py does.
"""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from prm_jax import hosts
from prm_jax.checkpoint import Checkpoints
from prm_jax.config import MeshConfig
from prm_jax.sharding import batch_sharding, make_mesh, replicated
from prm_jax.stages.journal import Journal
from prm_jax.stages.run import write_atomically

BATCH = np.arange(24, dtype=np.int32).reshape(8, 3)


def rows(data: int, fsdp: int, tensor: int) -> None:
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    sharding = batch_sharding(mesh)
    held, mine = hosts.owned(sharding, 8)
    own = held[mine]
    everybody = np.concatenate(hosts.gather(own))
    assert sorted(everybody.tolist()) == list(range(8))
    if tensor == 1:
        assert len(own) == 4 and mine.all()
    whole = hosts.place(BATCH, sharding)
    assert {shard.data.shape for shard in whole.addressable_shards} == {(8 // (data * fsdp), 3)}
    np.testing.assert_array_equal(hosts.held(whole), BATCH[held])
    np.testing.assert_array_equal(hosts.whole(whole), BATCH)
    again = hosts.place_rows(BATCH[held], 8, sharding)
    assert again.sharding == sharding and again.shape == (8, 3)
    np.testing.assert_array_equal(hosts.whole(again), BATCH)
    np.testing.assert_array_equal(hosts.gather_rows(own, BATCH[own], 8), BATCH)
    everywhere = hosts.place(BATCH, replicated(mesh))
    assert {shard.data.shape for shard in everywhere.addressable_shards} == {(8, 3)}


def values() -> None:
    me = hosts.index()
    assert hosts.gather({"host": me, "text": "x" * (3000 * me)}) == [
        {"host": 0, "text": ""},
        {"host": 1, "text": "x" * 3000},
    ]
    assert hosts.first(lambda: f"of {me}") == "of 0"
    made: Path = Path(sys.argv[1]) / "made"

    def make_or_read() -> str:
        if not made.exists():
            made.write_text(f"by {me}")
        return made.read_text()

    assert hosts.in_turn(make_or_read) == "by 0"


def files(folder: Path) -> None:
    write_atomically(folder / "text", f"host {hosts.index()}")
    with Journal(folder / "journal.jsonl") as journal:
        assert journal.get("before") == "known to the first alone"
        journal.put("after", hosts.index())
    mesh = make_mesh(MeshConfig(data=1, fsdp=4))
    array = hosts.place(BATCH.astype(np.float32), batch_sharding(mesh))
    with jax.set_mesh(mesh), Checkpoints(folder / "arrays") as checkpoints:
        checkpoints.save(3, {"rows": array, "step": hosts.place(jnp.int32(3), replicated(mesh))})
        checkpoints.wait()
        assert checkpoints.steps() == [3]


def main() -> None:
    hosts.join()
    with hosts.watched():
        assert (hosts.count(), len(jax.devices()), len(jax.local_devices())) == (2, 4, 2)
        for mesh in ((4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)):
            rows(*mesh)
        values()
        files(Path(sys.argv[1]))
    print("checked", os.getpid(), file=sys.stderr)
