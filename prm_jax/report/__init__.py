"""The page that a run leaves behind: `report.html`, one file that needs nothing else.

`page.py` reads the workdir and fills `page.html`; `figures.py` draws. Every number on the page
comes from the files of the workdir (docs/results.md describes them); what is not there yet is said
to be missing. `python -m prm_jax.report --workdir runs/tiny` redraws the page.
"""

from prm_jax.report.page import ReportError, write_report
from prm_jax.report.programs import write_programs

__all__ = ["ReportError", "write_programs", "write_report"]
