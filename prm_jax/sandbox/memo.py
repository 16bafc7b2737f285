"""Verdicts that outlive a run: a file of what was judged before, on this machine, by this code."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

from prm_jax.types import Verdict

# The others may come out differently where the machine is busier.
KEPT = ("passed", "failed", "error", "forbidden")
MOST = 1_000_000  # verdicts in a file, about 250 MB; the oldest are forgotten when it is opened
_WAIT_S = 0.5  # for other processes that write


class Memo:
    """Verdicts by a digest of program, tests and limits, in an SQLite file that processes share.

    Only what another run would find again is kept: no timeouts, and nothing from another version of
    the sandbox, of Python or of an installed package, or from other isolation. A file that is
    broken, locked for long or cannot be written is told once and then done without. The file must
    lie on this machine. Not for use by several threads at once.
    """

    def __init__(self, path: Path, *, isolation: str = ""):
        """`isolation` says how programs are kept apart: the tier, and layers that are off."""
        self._path = path
        self._file: sqlite3.Connection | None = None
        with self._guarded():
            self._world = _world(isolation)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(path)

    def get(self, key: bytes) -> Verdict | None:
        """The verdict on the work with this digest, if it is known."""
        with self._guarded():
            if self._file is not None:
                ours = self._key(key)
                query = "SELECT verdict FROM verdicts WHERE key = ?"
                row = self._file.execute(query, (ours,)).fetchone()
                if row is None:
                    return None
                fields = json.loads(row[0])
                if fields.pop("key") != ours:  # an index that lost its table
                    raise ValueError("a verdict is not of the program that it is kept for")
                return Verdict(**fields)
        return None

    def put(self, key: bytes, verdict: Verdict) -> None:
        """Keeps a verdict, if it is of a kind that is kept."""
        if verdict.status not in KEPT:
            return
        with self._guarded():
            if self._file is not None:
                ours = self._key(key)
                text = json.dumps(dataclasses.asdict(verdict) | {"key": ours})
                insert = "INSERT OR REPLACE INTO verdicts (key, verdict) VALUES (?, ?)"
                self._file.execute(insert, (ours, text))

    def close(self) -> None:
        """Closes the file; from then on nothing is known."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(sqlite3.Error):
                file.close()

    def _key(self, key: bytes) -> str:
        return hashlib.blake2b(self._world + key, digest_size=16).hexdigest()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """A memo that fails is none: whoever asks it can always judge again."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, TypeError, KeyError) as error:
            self.close()
            logging.getLogger(__name__).warning(
                "verdicts of earlier runs are not used: %s: %s; delete the file if this stays",
                self._path,
                error,
            )


def _opened(path: Path) -> sqlite3.Connection:
    # The sandbox calls from several threads, one at a time.
    file = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = OFF")  # a power cut may break the file; a kill does not
        file.execute(
            "CREATE TABLE IF NOT EXISTS verdicts "
            "(number INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, verdict TEXT NOT NULL)"
        )
        oldest = "DELETE FROM verdicts WHERE number <= (SELECT max(number) FROM verdicts) - ?"
        file.execute(oldest, (MOST,))
    except BaseException:
        file.close()
        raise
    return file


def _world(isolation: str) -> bytes:
    """A digest of what a verdict depends on beside program, tests and limits."""
    digest = hashlib.sha256(f"{sys.version} {isolation}".encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    packages = set()
    for found in importlib.metadata.distributions():
        packages.add(f"{found.metadata['Name']}=={found.version}")
    digest.update(" ".join(sorted(packages)).encode())
    return digest.digest()
