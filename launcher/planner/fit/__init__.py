"""What would make a job fit: changes as ready overrides, every one planned again and really fitting.

equivalent.py lists the changes that leave the training as it is, altering.py those that do not; change.py says what a
change is; search.py tries them, what costs the least time first; advice.py is for a run that ran out of memory.
"""

from __future__ import annotations

from launcher.planner.fit.search import suggestions

__all__ = ["suggestions"]
