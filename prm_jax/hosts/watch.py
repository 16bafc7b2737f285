"""Nobody waits for ever for a host that has ended, vanished or hangs.

A thread in each process tells the others that it is alive, and listens for why the run must end:
the main thread may be in a collective that a lost process never joins. What they tell each other
goes through the service by which JAX's processes find each other.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed  # there is no public way to its key-value store

from prm_jax.hosts.together import count, index

LOST_S = 60.0  # without a sign of life, a process is lost
_BEAT_S = 1.0
_TELL_S = 10.0  # that one who ends waits for the others to have heard why
TEMPORARY = 75  # EX_TEMPFAIL: the same command may be started again
_LEFT = "left"

_watch: "_Watch | None" = None


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within it, this process watches the others, and tells them if it ends by an exception."""
    global _watch
    if count() == 1:
        yield
        return
    _watch = _Watch()
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        with _watch.ending:  # for ever, if another host's end is the reason
            sys.excepthook(type(error), error, error.__traceback__)
        # The loss of another host looks like that, too.
        _watch.wait_for_life()
        _watch.tell(1, f"{type(error).__name__}: {error}", say=False)
    finally:
        _watch.leave()
        _watch = None


@contextlib.contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """Ends the run on all hosts if the block takes longer; `what` says what took so long."""
    if _watch is None:
        yield
        return
    item = (time.monotonic() + seconds, f"{what} took longer than {seconds:g} s")
    _watch.deadlines.add(item)
    try:
        yield
    finally:
        _watch.deadlines.discard(item)


def end(status: int, text: str) -> int:
    """Says why the run ends here. Of several processes it tells the others and ends this one.

    They end with the same status, wherever they are. One process returns the status.
    """
    if _watch is not None:
        _watch.tell(status, text)
    print(text, file=sys.stderr, flush=True)
    return status


def _lives(before: str, now: str) -> bool:
    """Whether there were beats enough for one that was under way not to be the last."""
    return _LEFT in (before, now) or int(now) >= int(before) + 2


class _Watch:
    def __init__(self):
        self.deadlines: set[tuple[float, str]] = set()
        self._client: Any = distributed.global_state.client
        self._index, self._count = index(), count()
        self._seen = {number: ("", time.monotonic()) for number in range(self._count)}
        self.ending = threading.Lock()  # of the thread that ends the process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hosts", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Stops watching; the others don't miss this process."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 may be gone
            self._set("alive", _LEFT)

    def wait_for_life(self) -> None:
        """Returns once all others have given signs of life; the watch ends us if one does not."""
        others = [number for number in range(self._count) if number != self._index]
        before = self._get("alive")
        until_s = time.monotonic() + LOST_S + 5 * _BEAT_S
        while time.monotonic() < until_s:
            now = self._get("alive")
            if all(_lives(before.get(n, "0"), now.get(n, "0")) for n in others):
                return
            time.sleep(_BEAT_S)

    def tell(self, status: int, text: str, *, say: bool = True) -> None:
        """Ends this process and, before that, lets the others know why."""
        with self.ending:
            if say:
                print(text, file=sys.stderr, flush=True)
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 may be gone
                self._publish(self._index, status, text)
                until_s = time.monotonic() + _TELL_S
                knowing: set[int] = set()
                while time.monotonic() < until_s and len(knowing) < self._count:
                    knowing = self._get("heard").keys() | self._get("end").keys()
                    time.sleep(0.1)
            if self._index == 0:
                time.sleep(_BEAT_S)  # the others' ends must not look like the loss of this one
            self._exit(status)

    def _publish(self, host: int, status: int, text: str) -> None:
        self._set("end", json.dumps({"host": host, "status": status, "text": text}))

    def _reason(self) -> dict[str, Any] | None:
        reasons = self._get("end")
        return json.loads(min(reasons.items())[1]) if reasons else None

    def _run(self) -> None:
        beat = 0
        while not self._stop.wait(_BEAT_S):
            beat += 1
            try:
                self._set("alive", str(beat))
                if self._index == 0:
                    self._look_for_lost()
                reason = self._reason()
            except jax.errors.JaxRuntimeError as error:
                if self._stop.is_set():
                    return
                reason = {
                    "host": 0,
                    "status": TEMPORARY,
                    "text": f"host 0, by which the hosts find each other, is gone ({error})",
                }
            if reason is not None:
                self._follow(reason)
            now_s = time.monotonic()
            for until_s, text in list(self.deadlines):
                if now_s > until_s:
                    end(1, f"error: host {self._index} of {self._count}: {text}")

    def _look_for_lost(self) -> None:
        now_s = time.monotonic()
        for number, beat in self._get("alive").items():
            if beat not in (_LEFT, self._seen[number][0]):
                self._seen[number] = (beat, now_s)
            elif beat == _LEFT:
                self._seen[number] = (beat, float("inf"))
        for number, (_, seen_s) in self._seen.items():
            if now_s - seen_s > LOST_S:
                text = f"host {number} of {self._count} has given no sign of life for {LOST_S:g} s"
                self._publish(number, TEMPORARY, f"error: {text}\nrun the same command again")

    def _follow(self, reason: dict[str, Any]) -> None:
        """Ends this process for a reason that another one has, or was."""
        with self.ending:
            if self._stop.is_set():
                return
            print(
                f"host {reason['host']} of {self._count} ended the run:\n{reason['text']}",
                file=sys.stderr,
                flush=True,
            )
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._set("heard", "")
                if self._index == 0:
                    time.sleep(3 * _BEAT_S)  # for the others to hear of it
            self._exit(reason["status"])

    def _exit(self, status: int) -> None:
        # The main thread may be where no exception reaches it, and JAX's own end waits for all.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def _set(self, kind: str, value: str) -> None:
        key = f"prm_jax/{kind}/{self._index}"
        self._client.key_value_set(key, value, allow_overwrite=True)

    def _get(self, kind: str) -> dict[int, str]:
        found = self._client.key_value_dir_get(f"prm_jax/{kind}/")
        return {int(key.rsplit("/", 1)[1]): value for key, value in found}
