"""Peak memory of a benchmark."""

import resource
import sys


def get_peak_memory() -> int:
    """Returns the highest amount of memory that this process has used, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux reports KiB.
    return peak if sys.platform == "darwin" else peak * 1024
