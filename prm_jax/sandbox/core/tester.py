"""Trusted test code in a jailed child of its own, with the program behind a proxy.

The program lives in another process, so it cannot replace `abs`, rewrite the asserts or read what
they expect: all that it can do is to return values. Those are rebuilt here from tagged JSON as
plain built-in objects; what is no value is a `Remote`, which equals nothing but itself.
"""

import builtins
import importlib
from typing import Any

from prm_jax.sandbox.core import child, frames, values

_SILENT = (StopIteration, StopAsyncIteration)  # would end a loop of the tests without an error


class Gone(BaseException):
    """The program's process has ended."""


def run(job: dict[str, Any], requests: int, responses: int, out: int) -> int:
    """Run the tests and send, for each, whether it passed and if not, why."""
    link = _Link(requests, responses, job["output_bytes"])
    namespace: dict[str, Any] = {"__name__": "tests"}
    i = 0
    try:
        _resolve(job["names"], namespace, link)
        for i, code in enumerate(job["tests"]):
            try:
                exec(code, namespace)
            except Gone:
                raise
            except BaseException as error:
                frames.write(out, ["fail", i, *link.blame(error)])
                if job["stop_at_first"]:
                    return 0
            else:
                frames.write(out, ["pass", i])
        frames.write(out, ["end"])
    except Gone:
        frames.write(out, ["gone", i])
    return 0


def _resolve(names: dict[str, Any], namespace: dict[str, Any], link: "_Link") -> None:
    """Bind the names that the tests do not define: from modules, or what the program defines."""
    for name, source in names.items():
        if isinstance(source, tuple):
            module, attribute = source
            found = importlib.import_module(module)
            namespace[name] = getattr(found, attribute) if attribute else found
        else:
            try:
                namespace[name] = link.ask("get", source)
            except Exception as error:
                namespace[name] = _Missing(f"the program has no {source}: {error}")


class _Missing:
    """Stands for a function that the program does not define: calling it raises NameError."""

    def __init__(self, text: str):
        self._text = text

    def __call__(self, *_: Any, **__: Any) -> None:
        raise NameError(self._text)


class _Link:
    def __init__(self, requests: int, responses: int, max_bytes: int):
        self._requests = requests
        self._responses = responses
        self._max_bytes = max_bytes
        self._last: tuple[BaseException | None, str, str] = (None, "", "")

    def ask(self, verb: str, target: Any, *rest: Any, mutable: tuple[Any, ...] = ()) -> Any:
        try:
            frames.write(self._requests, [verb, target, *rest])
            response = frames.read(self._responses, 2 * self._max_bytes)
        except BrokenPipeError:
            response = None
        if response is None:
            raise Gone
        if response[0] != "v":
            raise self._error(*response[1:])
        for i, new in response[2]:
            _copy_back(mutable[i], values.decode(new, self._remote))
        return values.decode(response[1], self._remote)

    def encode(self, value: Any) -> Any:
        return values.Encoder(self._max_bytes, iterators=True, other=_handle).encode(value)

    def blame(self, error: BaseException) -> tuple[str, str]:
        """Status and message of the error that ended a test."""
        if error is self._last[0]:
            return self._last[1:]
        status, message = child.report(error)
        return ("failed" if isinstance(error, AssertionError) else status), message

    def _remote(self, data: list[Any]) -> "Remote":
        if data[0] != "h" or type(data[1]) is not int:
            raise values.Malformed("unknown tag")
        return Remote(self, data[1], str(data[2])[:80])

    def _error(self, kind: str, text: str, status: str, message: str) -> Exception:
        """The built-in exception that the program raised, to be raised here."""
        found = getattr(builtins, str(kind), None)
        error: Exception = RuntimeError(message)
        if isinstance(found, type) and issubclass(found, Exception) and found not in _SILENT:
            try:
                error = found(text)
            except TypeError:
                pass  # one of the few that need more arguments
        self._last = (error, str(status), str(message))
        return error


class Remote:
    """A function, class or object of the program, known here by its number."""

    def __init__(self, link: _Link, number: int, name: str):
        self._link = link
        self._number = number
        self._name = name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        encode = self._link.encode
        encoded = [encode(a) for a in arguments], {k: encode(a) for k, a in named.items()}
        return self._link.ask("call", self._number, *encoded, mutable=arguments)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("attribute", self._number, name)

    def __repr__(self) -> str:
        return f"<{self._name} of the program>"


def _handle(value: Any) -> list[Any]:
    if isinstance(value, Remote):
        return ["h", value._number, value._name]
    raise TypeError(f"a {values.type_name(value)} cannot be passed to the program")


def _copy_back(argument: Any, new: Any) -> None:
    """Give an argument the content that the program left in its copy."""
    if type(argument) is not type(new):
        return
    if isinstance(argument, list | bytearray):
        argument[:] = new
    elif isinstance(argument, dict | set):
        argument.clear()
        argument.update(new)
