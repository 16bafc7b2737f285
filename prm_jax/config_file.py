"""Config files: Python files that define `get_config() -> Config`, the JSON that a run keeps of
its settings, and how two configs differ.
"""

import dataclasses
import difflib
import importlib.util
import json
import re
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from prm_jax.config import Config, ConfigError, PromptsConfig

ASKING = "prm_jax.json"  # in an exported model's folder: how it was asked in training


def load_config(path: Path) -> Config:
    """Runs a config file and returns its `get_config()`; raises ConfigError if it has none."""
    config = run_file(path, "config", "get_config")
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: get_config() returned {type(config).__name__}, not a Config")
    return config


def run_file(path: Path, option: str, function: str) -> Any:
    """Runs a Python file and returns what its `function()` returns; `--option` named the file.

    Raises ConfigError if there is no such file or function, or where it fails: then with the line.
    """
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")])
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"--{option} = {str(path)!r} is not a file{hint}")
    if path.suffix != ".py":
        raise ConfigError(
            f"--{option} = {str(path)!r} must be a .py file that defines {function}()"
        )
    name = f"prm_jax_{option}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise ConfigError(
                f"--{option} = {str(path)!r} must define {function}() -> {option.capitalize()}"
            )
        return getattr(module, function)()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{path}{_where(error, path)}: {_said_of(error, module)}") from error


def _where(error: Exception, path: Path) -> str:
    """Where in the file an error came about; and where else, if it did in a file of the user's that
    this one imports."""
    places = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    libraries = {
        sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
    installed = tuple(f"{folder}/" for folder in (Path(__file__).parent, *libraries))
    known = [(file, line) for file, line in places if not file.startswith((*installed, "<"))]
    here = [line for file, line in places if file == str(path.resolve())]
    said = f", line {here[-1]}" if here else ""
    if known and known[-1][0] != str(path.resolve()):
        said += f" (from {known[-1][0]}, line {known[-1][1]})"
    return said


def _said_of(error: Exception, module: ModuleType) -> str:
    """The error in a line, and the field that was meant where one is misspelt."""
    said = f"{type(error).__name__}: {error}"
    misspelt = re.match(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    of = vars(module).get(misspelt[1]) if misspelt else None
    if misspelt and dataclasses.is_dataclass(of):
        names = [field.name for field in dataclasses.fields(of)]
        if near := difflib.get_close_matches(misspelt[2], names, n=1):
            return f"{said}; did you mean {near[0]!r}?"
        return f"{said}; there are {', '.join(names)}"
    return said


def read_config(path: Path) -> Config:
    """The settings that a run keeps as `config.json`; `to_json` wrote them.

    A run of an earlier version lacks settings that came later: they stand at their defaults.

    Raises ConfigError if the file is not that: it names the first field that does not fit.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is not there: {path.parent} is not the workdir of a run"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return _rebuilt(Config(), settings, str(path))


def asking_of(config: Config) -> dict[str, Any]:
    """What an exported model's `prm_jax.json` holds; `read_asking` reads it."""
    return {
        "prompts": dataclasses.asdict(config.prompts),
        "max_prompt_tokens": config.max_prompt_tokens,
        "max_completion_tokens": config.max_completion_tokens,
    }


def read_asking(folder: Path) -> tuple[PromptsConfig, tuple[int, int]] | None:
    """Prompts, max_prompt_tokens and max_completion_tokens of an exported model; None if its folder
    does not say them.

    Raises ConfigError if the file is not what `asking_of` gave.
    """
    path = folder / ASKING
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    wanted = asking_of(Config())
    if not isinstance(settings, dict) or settings.keys() != wanted.keys():
        got = sorted(settings) if isinstance(settings, dict) else settings
        raise ConfigError(f"{path} holds {got} and must hold {sorted(wanted)}: export it again")
    prompts = _rebuilt(PromptsConfig(), settings.pop("prompts"), f"{path}: prompts")
    for name, value in settings.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{path}: {name} = {value!r} must be a number above 0")
    return prompts, (settings["max_prompt_tokens"], settings["max_completion_tokens"])


def _rebuilt(default: Any, settings: Any, where: str) -> Any:
    """The dataclass of `default`'s kind that has these settings; those of later versions keep
    their defaults.
    """
    names = {field.name for field in dataclasses.fields(default)}
    if not isinstance(settings, dict) or not settings.keys() <= names:
        got = sorted(settings.keys() - names) if isinstance(settings, dict) else settings
        raise ConfigError(
            f"{where} holds {got}, and this version of prm_jax has {sorted(names)} there: "
            "use the version that made the run"
        )
    values = {}
    for name, value in settings.items():
        before = getattr(default, name)
        if dataclasses.is_dataclass(before):
            value = _rebuilt(before, value, f"{where}: {name}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(default, **values)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields that differ between two configs as dicts: `name: old -> new`."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines
