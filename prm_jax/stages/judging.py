"""The sandboxes of all hosts as one, for programs that every host knows: each judges its share."""

from collections.abc import Callable
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait

from prm_jax import hosts
from prm_jax.types import Problem, Verdict


class SharedSandbox:
    """Judges the n-th program that is submitted on host n modulo the number of hosts.

    All hosts submit the same programs in the same order, and ask for results at the same places.
    """

    def __init__(self, judge_here: Callable[[Problem, str], Future[Verdict]], deadline_s: float):
        self._judge_here = judge_here
        self._deadline_s = deadline_s
        self._submitted = 0
        self._here: dict[Future[Verdict], int] = {}  # by number
        self._open: dict[int, _Shared] = {}

    def submit(self, problem: Problem, program: str) -> Future[Verdict]:
        """The future is done once the hosts have exchanged what they found; `result` makes them."""
        number = self._submitted
        self._submitted += 1
        if number % hosts.count() == hosts.index():
            with hosts.deadline(self._deadline_s, "handing a program to the sandbox"):
                self._here[self._judge_here(problem, program)] = number
        future = self._open[number] = _Shared(self)
        return future

    def exchange(self, *, wait_for_all: bool) -> None:
        """Settles the futures of all programs, or of those that are judged by now, at least one."""
        when = ALL_COMPLETED if wait_for_all else FIRST_COMPLETED
        with hosts.deadline(self._deadline_s, f"judging {len(self._here)} programs"):
            done = wait(self._here, return_when=when).done
        verdicts = [(self._here.pop(future), future.result()) for future in done]
        for number, verdict in (item for some in hosts.gather(verdicts) for item in some):
            self._open.pop(number).set_result(verdict)


class _Shared(Future[Verdict]):
    def __init__(self, sandbox: SharedSandbox):
        super().__init__()
        self._sandbox = sandbox

    def result(self, timeout: float | None = None) -> Verdict:
        if not self.done():
            self._sandbox.exchange(wait_for_all=True)
        return super().result(timeout)
