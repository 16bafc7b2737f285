"""Compiled programs: each module makes jitted functions `(state, batch) -> (state, metrics)`."""
