"""Several hosts, one run: who takes part, what all of them must know, and whose rows are whose.

Each host of a slice runs the same program in a process of its own, and all of them make the same
calls in the same order. With one process, every function here does nothing, or the obvious.
"""

from prm_jax.hosts.rows import gather_rows, held, owned, place, place_rows, whole
from prm_jax.hosts.stop import Stopped, check_stop, stop_asked, stoppable
from prm_jax.hosts.together import count, first, gather, in_turn, index, join
from prm_jax.hosts.watch import TEMPORARY, deadline, end, watched

__all__ = [
    "TEMPORARY",
    "Stopped",
    "check_stop",
    "count",
    "deadline",
    "end",
    "first",
    "gather",
    "gather_rows",
    "held",
    "in_turn",
    "index",
    "join",
    "owned",
    "place",
    "place_rows",
    "stop_asked",
    "stoppable",
    "watched",
    "whole",
]
