"""Property-based tests: each generated input must have the right result or a documented error.

tests/benchmarks/campaign.py checks many more inputs.
"""

import pytest
from hypothesis import HealthCheck, given, settings

from generated_inputs import KINDS, check_input


# These numbers of inputs take about 10 s for each kind on one CPU core.
NUM_INPUTS = {"folders": 60, "labels": 60, "images": 250, "configurations": 60, "model folders": 200}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_input_has_the_right_result_or_a_documented_error(kind: str):
    @settings(
        max_examples=NUM_INPUTS[kind],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(KINDS[kind].strategy)
    def check(value: object) -> None:
        check_input(kind, value)

    check()
