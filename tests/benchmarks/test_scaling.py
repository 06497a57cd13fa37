"""The scaling benchmark recovers the coefficients of measurements that follow its formulas."""

from pathlib import Path

import pytest
import scaling
from scaling import Measurement


OVERHEAD, PER_FLOP, PER_FEATURE = 0.02, 1e-11, 3e-7
MEMORY, PER_FEATURE_MEMORY = 4e8, 120


def make_measurement(resolution: int, width: int, batch_size: int) -> Measurement:
    features, flop, parameters = resolution**2 * width, 1000.0 * resolution**2 * width**2, 50 * width**2
    return Measurement(
        resolution,
        width,
        batch_size,
        parameters,
        flop,
        OVERHEAD + batch_size * (PER_FLOP * flop + PER_FEATURE * features),
        MEMORY + 20 * parameters + batch_size * PER_FEATURE_MEMORY * features,
    )


MEASUREMENTS = [
    make_measurement(resolution, width, batch_size)
    for resolution in (28, 64)
    for width in (16, 64)
    for batch_size in (4, 32)
]


def test_fit_finds_the_coefficients():
    assert scaling.fit_time(MEASUREMENTS) == pytest.approx([OVERHEAD, PER_FLOP, PER_FEATURE], rel=1e-6)
    assert scaling.fit_memory(MEASUREMENTS) == pytest.approx([MEMORY, PER_FEATURE_MEMORY], rel=1e-6)


def test_fit_predicts_a_larger_setting():
    larger = make_measurement(256, 128, 64)
    seconds = scaling.predict_seconds(scaling.fit_time(MEASUREMENTS), larger.flop, larger.features, 64)
    memory = scaling.predict_memory(scaling.fit_memory(MEASUREMENTS), larger.parameters, larger.features, 64)
    assert (seconds, memory) == pytest.approx((larger.seconds, larger.memory), rel=1e-6)


def test_flop_count_grows_with_resolution_and_width():
    flop = scaling.count_flop(0.25, 32)
    assert scaling.count_flop(0.25, 64) == pytest.approx(4 * flop, rel=0.02)
    assert scaling.count_flop(0.5, 32) == pytest.approx(4 * flop, rel=0.05)


@pytest.mark.slow
def test_measured_settings_are_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    settings = [(28, 0.25, 2), (32, 0.25, 4)]
    monkeypatch.setattr(scaling, "SETTINGS", {"cpu": settings, "cuda": settings})
    path = tmp_path / "scaling.json"
    monkeypatch.setattr("sys.argv", ["scaling.py", "measure", "--steps", "1", "-o", str(path)])
    scaling.main()
    measured = capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["scaling.py", "fit", str(path)])
    scaling.main()
    report = capsys.readouterr().out
    assert measured.endswith(report)
    assert "\n| 28 | 16 | 2 |" in report and "\n| 32 | 16 | 4 |" in report
