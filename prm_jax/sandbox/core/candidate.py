"""The program's side of test code that runs elsewhere: calls come in, values go out.

Arguments and results cross as values. Arguments that the program changed are sent back; objects
that are no values stay here, and the test code gets a handle to call or to ask for attributes.
"""

import builtins
from typing import Any

from prm_jax.sandbox.core import child, frames, values

_MAX_OBJECTS = 10_000
_MAX_TEXT = 10_000


def serve(job: dict[str, Any], requests: int, responses: int, out: int) -> int:
    """Load the program and answer requests until the test code closes the pipe."""
    namespace = child.load_program(job["program"], "program", None, out)
    if namespace is None:
        return 1
    desk = _Desk(namespace, job["output_bytes"])
    while True:
        request = frames.read(requests, job["output_bytes"])
        if request is None:
            return 0
        try:
            response = desk.answer(*request)
        except BaseException as error:
            response = ["x", _builtin_name(error), _text(error), *child.report(error)]
        frames.write(responses, response)


class _Desk:
    def __init__(self, namespace: dict[str, Any], max_bytes: int):
        self._namespace = namespace
        self._max_bytes = max_bytes
        self._objects: list[Any] = []

    def answer(self, verb: str, target: Any, *rest: Any) -> list[Any]:
        if verb == "get":
            return ["v", self._encode(eval(target, self._namespace)), []]
        if verb == "attribute":
            return ["v", self._encode(getattr(self._objects[target], rest[0])), []]
        arguments = [values.decode(a, self._object) for a in rest[0]]
        named = {name: values.decode(a, self._object) for name, a in rest[1].items()}
        before = [self._encode(a) if _is_mutable(a) else None for a in arguments]
        result = self._encode(self._objects[target](*arguments, **named))
        changed = []
        for i, (argument, old) in enumerate(zip(arguments, before, strict=True)):
            if old is not None and (new := self._encode(argument)) != old:
                changed.append([i, new])
        return ["v", result, changed]

    def _encode(self, value: Any) -> Any:
        return child.encode(value, self._max_bytes, iterators=True, other=self._handle)

    def _handle(self, value: Any) -> list[Any]:
        if len(self._objects) >= _MAX_OBJECTS:
            raise values.TooLarge("too many objects")
        self._objects.append(value)
        return ["h", len(self._objects) - 1, values.type_name(value)]

    def _object(self, data: list[Any]) -> Any:
        if data[0] != "h":
            raise values.Malformed("unknown tag")
        return self._objects[data[1]]


def _text(error: BaseException) -> str:
    """What the error was made with; `str` of a KeyError has quotes around it."""
    if len(error.args) == 1 and type(error.args[0]) is str:
        return error.args[0][:_MAX_TEXT]
    return child.text_of(error)


def _is_mutable(value: Any) -> bool:
    return type(value) in (list, dict, set, bytearray)


def _builtin_name(error: BaseException) -> str:
    for kind in type(error).__mro__:
        if getattr(builtins, kind.__name__, None) is kind:
            return kind.__name__
    return "Exception"
