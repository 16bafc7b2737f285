"""Everything of the sandbox that runs outside the trainer: the broker, the zygotes, the children.

These modules import the standard library and each other, nothing else, so that a broker starts in
tens of milliseconds and a zygote stays small. They run under `python -I -S` as the package `core`.
"""
