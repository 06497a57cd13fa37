"""Settings of the property-based tests.

Tests generate the same inputs in every run. `FMNIST_DIFFUSION_EXAMPLES=50` generates 50 times as many random inputs.
"""

import os

from hypothesis import HealthCheck, settings


def make_settings(max_examples: int) -> settings:
    factor = int(os.environ.get("FMNIST_DIFFUSION_EXAMPLES", "1"))
    return settings(
        max_examples=max_examples * factor,
        derandomize=factor == 1,
        database=None,
        deadline=None,
        # Fixtures such as tmp_path and capsys are shared by all inputs of a test.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
