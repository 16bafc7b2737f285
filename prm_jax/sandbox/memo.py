"""Verdicts that outlive a run: a file of what was judged before, on this machine, by this code."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import sqlite3
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from prm_jax.types import Verdict

# The others may come out differently where the machine is busier.
KEPT = ("passed", "failed", "error", "forbidden")
MOST = 1_000_000  # verdicts in a file, about 200 MB; the oldest are forgotten first
_WAIT_S = 5.0  # for other processes that write


class Memo:
    """Verdicts by a digest of program, tests and limits, in an SQLite file that processes share.

    Only what another run would find again is kept: no timeouts, and nothing from another version of
    the sandbox, of Python or of an installed package. A file that is broken, locked for long or
    cannot be written is told once and then done without. Not for use by several threads at once.
    """

    def __init__(self, path: Path, *, without: Collection[str] = ()):
        """`without` are the layers of isolation that are off."""
        self._path = path
        self._world = _world(without)
        self._file: sqlite3.Connection | None = None
        with self._guarded():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(path)

    def get(self, key: bytes) -> Verdict | None:
        """The verdict on the work with this digest, if it is known."""
        with self._guarded():
            if self._file is not None:
                query = "SELECT verdict FROM verdicts WHERE key = ?"
                row = self._file.execute(query, (self._key(key),)).fetchone()
                return None if row is None else Verdict(**json.loads(row[0]))
        return None

    def put(self, key: bytes, verdict: Verdict) -> None:
        """Keeps a verdict, if it is of a kind that is kept."""
        if verdict.status not in KEPT:
            return
        with self._guarded():
            if self._file is not None:
                text = json.dumps(dataclasses.asdict(verdict))
                insert = "INSERT OR REPLACE INTO verdicts (key, verdict) VALUES (?, ?)"
                self._file.execute(insert, (self._key(key), text))

    def close(self) -> None:
        with self._guarded():
            if self._file is not None:
                self._file.close()
        self._file = None

    def _key(self, key: bytes) -> bytes:
        return hashlib.blake2b(self._world + key, digest_size=16).digest()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """A memo that fails is none: whoever asks it can always judge again."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            self._file = None
            logging.getLogger(__name__).warning(
                "verdicts of earlier runs are not used: %s: %s; delete the file if this stays",
                self._path,
                error,
            )


def _opened(path: Path) -> sqlite3.Connection:
    # The sandbox calls from several threads, one at a time.
    file = sqlite3.connect(path, _WAIT_S, isolation_level=None, check_same_thread=False)
    file.execute("PRAGMA journal_mode = WAL")
    file.execute("PRAGMA synchronous = OFF")  # a power cut may break the file; a kill does not
    file.execute(
        "CREATE TABLE IF NOT EXISTS verdicts "
        "(number INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, verdict TEXT NOT NULL)"
    )
    oldest = "DELETE FROM verdicts WHERE number <= (SELECT max(number) FROM verdicts) - ?"
    file.execute(oldest, (MOST,))
    return file


def _world(without: Collection[str]) -> bytes:
    """A digest of what a verdict depends on beside program, tests and limits."""
    digest = hashlib.sha256(f"{sys.version} {os.uname().machine} {sorted(without)}".encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    packages = {f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}
    digest.update(" ".join(sorted(packages)).encode())
    return digest.digest()
