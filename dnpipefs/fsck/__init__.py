"""Checks all that lies below a prefix, and mends what can be mended without losing anything.

What is wrong is judged in `core/check_*.py`; here it is read, piece by piece, and carried out.
"""

from dnpipefs.fsck.run import Checker, Report, Verdict

__all__ = ["Checker", "Report", "Verdict"]
