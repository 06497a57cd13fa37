"""The speedrun benchmark with a tiny model, and its report for fixed results."""

import json
import math
import re
from pathlib import Path

import pytest
import speedrun


TINY = [
    "--model.block_out_channels=[8, 16]",
    "--model.attention_levels=[1]",
    "--model.attention_head_dim=8",
    "--model.norm_num_groups=4",
    "--train_batch_size=16",
    "--compile=false",
]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))


def make_speed(name: str, images_per_second: float, startup_seconds: float, precision: str = "float32") -> dict:
    return {
        "name": name,
        "precision": precision,
        "images_per_second": images_per_second,
        "startup_seconds": startup_seconds,
        "parameters": 1_000_000,
        "machine": "cpu",
        "threads": 2,
    }


def make_quality(name: str, fids: dict[int, float], sampler: str = "default") -> list[dict]:
    return [
        {"name": name, "num_images": images, "num_samples": 10_000, "sampler": sampler, "fid": fid}
        for images, fid in fids.items()
    ]


@pytest.mark.parametrize("num_class_embeds", [10, "null"])
def test_quality_trains_for_each_number_of_images(num_class_embeds, tmp_path, monkeypatch, fashion_mnist_folder):
    shapes = []

    def compute_fid(images) -> float:
        shapes.append(tuple(images.shape))
        return float(images.float().mean())

    monkeypatch.setattr(speedrun, "make_fid", lambda device: compute_fid)
    options = ["--num-images", "70", "16", "-n", "3", "--threads", "1", "-o", str(tmp_path)]
    settings = [*TINY, f"--model.num_class_embeds={num_class_embeds}"]
    speedrun.main(["quality", "ours", *options, "--train-data-dir", str(fashion_mnist_folder), *settings])
    first, second = read(tmp_path / "quality.jsonl")
    assert (first["num_images"], second["num_images"]) == (16, 64)
    assert first["name"] == " ".join(["ours", *settings])
    assert shapes == [(3, 1, 28, 28)] * 2
    assert first["fid"] != second["fid"]


@pytest.mark.slow
def test_speed_measures_both_precisions(tmp_path, fashion_mnist_folder):
    options = ["--rounds", "2", "--seconds", "0", "--threads", "1", "-o", str(tmp_path)]
    speedrun.main(["speed", "ours", *options, "--train-data-dir", str(fashion_mnist_folder), *TINY])
    records = read(tmp_path / "speed.jsonl")
    assert [record["precision"] for record in records] == ["float32", "bf16"] * 2
    assert all(record["images_per_second"] > 0 and record["startup_seconds"] > 0 for record in records)
    assert {record["parameters"] for record in records} == {records[0]["parameters"]}


def test_report_combines_and_interpolates_results(tmp_path, capsys):
    write(
        tmp_path / "cpu" / "speed.jsonl",
        [
            make_speed("ours", 90.0, 20),
            make_speed("ours", 100.0, 20),
            make_speed("ours", 500.0, 20),
            make_speed("ours", 50.0, 200, "bf16"),
            make_speed("diffusers", 2.0, 10),
            make_speed("smalldiffusion-dit", 10.0, 0),
        ],
    )
    write(
        tmp_path / "gpu" / "quality.jsonl",
        [
            *make_quality("ours", {4_000: 80.0, 16_000: 20.0, 64_000: 5.0}),
            *make_quality("diffusers", {10_000: 90.0, 40_000: 30.0}, "ddim"),
            *make_quality("diffusers", {10_000: 70.0, 40_000: 35.0}, "dpmsolver++"),
            *make_quality("smalldiffusion-dit", {20_000: 80.0, 60_000: 20.0}),
        ],
    )
    speedrun.main(["report", str(tmp_path / "cpu"), str(tmp_path / "gpu")])
    rows = capsys.readouterr().out.splitlines()
    # FID halves whenever the number of images doubles, so FID 40 needs 8,000 images: 20 s + 80 s.
    assert rows[2] == "| ours | 1.0 | float32 | 100.0 | 20 | 100 s | 180 s | 340 s | ≤ 5.0 |"
    # 14,380 images fit in two hours.
    fid = 90 * math.exp(math.log(1 / 3) * math.log(14_380 / 10_000) / math.log(4))
    not_reached = "not reached"
    assert rows[3] == f"| diffusers | 1.0 | float32 | 2.0 | 10 | {' | '.join([not_reached] * 3)} | {fid:.1f} |"
    # FID 40 needs 20,000 * sqrt(3) images.
    assert rows[4].endswith("| 0 | 58 min | 100 min | > 100 min | ≤ 20.0 |")
    assert rows[6:9] == [
        "FID 40: 100 s, 34.6x as fast as smalldiffusion-dit.",
        "FID 20: 180 s, 33.3x as fast as smalldiffusion-dit.",
        "FID 10: 340 s. No other project reached it within 100 min, so this project is more than 17.6x as fast.",
    ]
    assert (tmp_path / "cpu" / "speedrun.png").stat().st_size > 0


def test_report_makes_no_claim_about_a_late_first_evaluation(tmp_path, capsys):
    write(tmp_path / "speed.jsonl", [make_speed("ours", 100.0, 0), make_speed("diffusers", 2.0, 0)])
    write(
        tmp_path / "quality.jsonl",
        [*make_quality("ours", {10_000: 10.0}), *make_quality("diffusers", {20_000: 30.0, 40_000: 15.0})],
    )
    speedrun.main(["report", str(tmp_path)])
    rows = capsys.readouterr().out.splitlines()
    assert rows[3].endswith("| ≤ 167 min | not reached | not reached | ≥ 30.0 |")
    assert rows[5] == "FID 40: ≤ 100 s. Evaluate diffusers after fewer training images to compare the times."
    assert rows[6].startswith("FID 20: ≤ 100 s. No other project reached it within 120 min")


@pytest.mark.parametrize(
    ("fids", "message"),
    [
        ({2_000: 50.0, 8_000: 30.0}, r"FID 40: ≤ 100 s, ≥ \d+\.\dx as fast as diffusers\."),
        (
            {2_000: 39.0, 8_000: 30.0},
            "FID 40: ≤ 100 s. Evaluate this project and diffusers after fewer training images",
        ),
    ],
)
def test_speedup_of_a_late_first_evaluation_is_a_bound(tmp_path, capsys, fids, message):
    write(tmp_path / "speed.jsonl", [make_speed("ours", 100.0, 0), make_speed("diffusers", 2.0, 0)])
    write(tmp_path / "quality.jsonl", [*make_quality("ours", {10_000: 10.0}), *make_quality("diffusers", fids)])
    speedrun.main(["report", str(tmp_path)])
    assert re.match(message, capsys.readouterr().out.splitlines()[5])


def test_late_first_evaluation_is_not_a_failure(tmp_path, capsys):
    write(tmp_path / "speed.jsonl", [make_speed("ours", 1.0, 0)])
    write(tmp_path / "quality.jsonl", make_quality("ours", {10_000: 15.0}))
    speedrun.main(["report", str(tmp_path)])
    rows = capsys.readouterr().out.splitlines()
    assert "| ≤ 167 min | ≤ 167 min | not reached |" in rows[2]
    message = "Evaluate this project after fewer training images to measure the time."
    assert rows[4:7] == [f"FID 40: {message}", f"FID 20: {message}", "This project did not reach FID 10."]


@pytest.mark.parametrize(("key", "value"), [("machine", "other"), ("threads", 4)])
def test_speeds_of_different_machines_are_not_combined(tmp_path, key, value):
    write(tmp_path / "speed.jsonl", [make_speed("ours", 1.0, 0), make_speed("diffusers", 1.0, 0) | {key: value}])
    write(tmp_path / "quality.jsonl", make_quality("ours", {10_000: 10.0}))
    with pytest.raises(SystemExit, match=f"different values of `{key}`"):
        speedrun.main(["report", str(tmp_path)])


def test_settings_of_other_projects_are_rejected(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        speedrun.main(["quality", "diffusers", "--num-images", "16", "-o", str(tmp_path), "--seeds=3"])
    assert "Only the entry 'ours' has settings. Omit --seeds=3." in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["--gradient_accumulation_steps=2", "--objective.timestep_sampling=importance"])
def test_unsupported_settings_are_rejected(setting, tmp_path, monkeypatch, fashion_mnist_folder):
    monkeypatch.setattr(speedrun, "make_fid", lambda device: None)
    options = ["--num-images", "16", "-o", str(tmp_path), "--train-data-dir", str(fashion_mnist_folder)]
    with pytest.raises(SystemExit, match="does not support `--gradient_accumulation_steps` or"):
        speedrun.main(["quality", "ours", *options, *TINY, setting])


def test_bounds_outside_the_evaluations():
    curve = speedrun.Curve("ours", "float32", 1.0, 0.0, 1, [(100, 30.0), (200, 15.0)])
    assert curve.find_time(40) == (100.0, "≤ ")
    assert curve.find_time(30) == (100.0, "")
    assert curve.find_time(15) == (pytest.approx(200.0), "")
    assert curve.find_time(10) is None
    assert curve.find_fid(50) == (30.0, "≥ ")
    assert curve.find_fid(1000) == (15.0, "≤ ")


def test_report_without_results_is_rejected(tmp_path):
    with pytest.raises(SystemExit, match="results of both"):
        speedrun.main(["report", str(tmp_path)])
