"""Config files: Python files that define `get_config() -> Config`, and how two configs differ."""

import difflib
import importlib.util
from pathlib import Path
from typing import Any

from prm_jax.config import Config, ConfigError


def load_config(path: Path) -> Config:
    """Runs a config file and returns its `get_config()`; raises ConfigError if it has none."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")])
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"--config = {str(path)!r} is not a file{hint}")
    if path.suffix != ".py":
        raise ConfigError(f"--config = {str(path)!r} must be a .py file that defines get_config()")
    spec = importlib.util.spec_from_file_location(f"prm_jax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config = {str(path)!r} must define get_config() -> Config")
    config = module.get_config()
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: get_config() returned {type(config).__name__}, not a Config")
    return config


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
