"""The sandboxes of all hosts as one, for programs that every host knows: each judges its share."""

from collections.abc import Callable
from concurrent.futures import Future

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
        self._here: list[tuple[int, Future[Verdict]]] = []
        self._open: dict[int, _Shared] = {}

    def submit(self, problem: Problem, program: str) -> Future[Verdict]:
        """The future is done once somebody has asked for its result, or for that of another."""
        number = self._submitted
        self._submitted += 1
        if number % hosts.count() == hosts.index():
            with hosts.deadline(self._deadline_s, "handing a program to the sandbox"):
                self._here.append((number, self._judge_here(problem, program)))
        future = self._open[number] = _Shared(self)
        return future

    def exchange(self) -> None:
        """Waits for all programs that were submitted, and settles their futures."""
        with hosts.deadline(self._deadline_s, f"judging {len(self._here)} programs"):
            verdicts = [(number, future.result()) for number, future in self._here]
        for number, verdict in (item for some in hosts.gather(verdicts) for item in some):
            self._open[number].set_result(verdict)
        self._here.clear()
        self._open.clear()


class _Shared(Future[Verdict]):
    def __init__(self, sandbox: SharedSandbox):
        super().__init__()
        self._sandbox = sandbox

    def result(self, timeout: float | None = None) -> Verdict:
        if not self.done():
            self._sandbox.exchange()
        return super().result(timeout)
