"""Comparisons of settings over seeds: `python -m prm_jax.study --study studies/X.py`.

A study file defines arms and seeds (`arms.py`). Every arm with every seed is one run of
`prm_jax.train` in a workdir of its own; runs take finished stages from each other where they agree
in all settings that decide them (`runs.py`). `runner.py` starts them, `records.py` keeps one line
per run in `results/runs.jsonl`, and `tables.py` makes the page from these lines alone.
"""

from prm_jax.study.arms import Arm, Study, load_study, with_settings

__all__ = ["Arm", "Study", "load_study", "with_settings"]
