"""Judging untrusted programs: a broker, jailed zygotes, and one forked child per program.

`Sandbox` is all that the rest of the project needs. docs/sandbox.md says what it covers, what it
does not, and on which tier.
"""

from prm_jax.sandbox.client import Sandbox, SandboxError, SandboxRefused

__all__ = ["Sandbox", "SandboxError", "SandboxRefused"]
