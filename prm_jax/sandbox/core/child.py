"""What runs in a forked child: the program, and expressions whose values go to the broker.

The code here shares an interpreter with a hostile program, so nothing that it says counts as a
verdict: it sends values, and the broker, which alone knows the expected ones, compares. Every
outcome that it reports itself is one that does not pass.
"""

import _sitebuiltins
import atexit
import builtins
import errno
import io
import marshal
import os
import resource
import sys
import threading
import traceback
import types
from typing import Any

from prm_jax.sandbox.core import frames, values

_MAX_MESSAGE = 500
_PROGRAM_FILE = "<program>"
_THREAD_STACK_BYTES, _MAX_THREAD_STACK_BYTES = 8 << 20, 64 << 20


def load_job(fd: int, size: int) -> dict[str, Any]:
    """The job of this many bytes from its memory file, which the broker wrote and sealed.

    It is in Python's own format: the broker is an interpreter of the same version, and most code
    of tests comes compiled.
    """
    body = os.pread(fd, size, 0)
    os.close(fd)
    return marshal.loads(body)


def run_calls(job: dict[str, Any], out: int) -> int:
    """Load the program, then send the value of each expression, or the error that it raised."""
    namespace = load_program(job["program"], "program", job["setup"], out)
    if namespace is None:
        return 1
    for i, code in enumerate(job["expressions"]):
        try:
            value = eval(code, namespace)
            encoded = encode(value, job["output_bytes"])
        except BaseException as error:
            frames.write(out, ["x", i, *report(error)])
        else:
            frames.write(out, ["v", i, encoded])
    return 0


def run_stdio(job: dict[str, Any], out: int) -> int:
    """Run the program as `__main__` on real file descriptors; returns its exit status."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        raw = io.FileIO(fd, mode, closefd=False)
        buffer = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
        errors = "backslashreplace" if fd == 2 else "surrogateescape"
        stream = io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=fd == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    stdout = sys.stdout
    sys.argv = ["program.py"]
    status = 0
    try:
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(job["program"], _PROGRAM_FILE, "exec"), module.__dict__)
    except SystemExit as error:
        code = error.code
        status = 0 if code is None else code & 0xFF if isinstance(code, int) else 1
    except BaseException as error:
        frames.write(out, ["load", *report(error)])
        status = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, stdout):
            if not stream.closed:
                stream.flush()
    except BaseException as error:
        frames.write(out, ["load", *report(error)])
        status = 1
    return status


def load_program(
    source: str, name: str, setup: types.CodeType | str | None, out: int
) -> dict[str, Any] | None:
    """Execute the program and the set-up code in a module; reports what it raises on `out`."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        exec(compile(source, _PROGRAM_FILE, "exec"), module.__dict__)
        if setup is not None:
            exec(setup, module.__dict__)
    except BaseException as error:
        frames.write(out, ["load", *report(error)])
        return None
    return module.__dict__


def encode(value: Any, max_bytes: int, **options: Any) -> Any:
    """The value as tagged JSON, at a recursion limit that suffices for its deepest legal form."""
    if sys.getrecursionlimit() < 2000:
        sys.setrecursionlimit(2000)
    return values.Encoder(max_bytes, **options).encode(value)


def report(error: BaseException) -> tuple[str, str]:
    """The status that an error means, and a text for people. Never raises."""
    give_back_memory()
    try:
        kind = type(error)
        status = "error"
        if issubclass(kind, MemoryError):
            status = "memory"
        elif issubclass(kind, PermissionError) and error.errno in (errno.EPERM, errno.EACCES):  # type: ignore[attr-defined]
            status = "forbidden"
        return status, f"{values.type_name(error)}: {text_of(error)}{_place(error)}"
    except BaseException:
        return "error", "an error that cannot be shown"


def give_back_memory() -> None:
    """Raise the soft limits to the hard ones: reporting that memory ran out needs some."""
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (hard, hard))


def text_of(error: BaseException) -> str:
    """Its `str`, cut and printable. Never raises."""
    try:
        return str(error)[:_MAX_MESSAGE].encode("utf-8", "backslashreplace").decode()
    except BaseException:
        return "(no text)"


def _place(error: BaseException) -> str:
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == _PROGRAM_FILE
    ]
    return f" (line {lines[-1]})" if lines else ""


def prepare_interpreter() -> None:
    """Make this interpreter what programs expect of one; once, in the zygote."""
    sys.orig_argv[:] = sys.argv  # the command that started this one tells where the sandbox lies
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")  # type: ignore[assignment]
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")  # type: ignore[assignment]
    builtins.help = _sitebuiltins._Helper()  # type: ignore[assignment]
    # The stack limit, which is high for deep recursion, would be the size of every thread's stack
    # and count as data; contest programs ask for more than their memory limit on principle.
    set_size = threading.stack_size
    set_size(_THREAD_STACK_BYTES)

    def stack_size(size: int = 0) -> int:
        return set_size(min(size, _MAX_THREAD_STACK_BYTES))

    threading.stack_size = stack_size
