"""Everything of the sandbox that runs outside the trainer: the broker, the zygotes, the children.

These modules import the standard library and each other, nothing else, so that a broker starts in
tens of milliseconds and a zygote stays small.
"""

import os


def start_code(module: str, before: str = "") -> str:
    """Code for `python -c` that runs `main` of a module here and loads nothing of the trainer's.

    The packages above are stood in for by empty ones: their own code would import JAX. The line
    `before` runs before anything is imported.
    """
    sandbox = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return (
        f"{before}\n"
        "import sys, types\n"
        f"for name, folder in (('prm_jax', {os.path.dirname(sandbox)!r}),"
        f" ('prm_jax.sandbox', {sandbox!r})):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "    sys.modules[name].__path__ = [folder]\n"
        f"from prm_jax.sandbox.core import {module}\n"
        f"{module}.main()\n"
    )
