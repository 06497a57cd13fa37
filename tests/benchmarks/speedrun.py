"""Compares how long this and other projects train on two CPU cores until FID reaches 40, 20 and 10.

    pip install einops==0.8.2
    pip install --no-deps denoising-diffusion-pytorch==2.3.4 ema-pytorch==0.8.3 smalldiffusion==0.5.0
    python tests/benchmarks/speedrun.py speed
    python tests/benchmarks/speedrun.py quality ours --num-images 100000 200000 400000
    python tests/benchmarks/speedrun.py quality diffusers --num-images 2500 5000 10000 20000
    python tests/benchmarks/speedrun.py report

FID depends on the number of images that a model has seen, and not on the device. The commands therefore measure speed
and quality separately:

- `speed` measures the start-up time and the training speed on the CPU, in float32 and bf16. The start-up includes
  imports, data loading and compilation. A training step includes the batch, the noise, the forward and backward pass,
  the optimizer and the EMA. The projects are measured alternately. The result is the median in the faster precision.
- `quality` trains from random weights and computes the FID of 10,000 samples against the training images, with 20
  function evaluations per sample. It uses bf16 and CUDA graphs if there is a GPU. The learning rate of this project's
  preset decays to zero, so each value of `--num-images` is a separate run. The other projects have a constant
  learning rate or a long schedule, so they continue training after each evaluation.
- `report` computes the time as start-up + images / speed. Between two evaluations, FID is interpolated linearly on
  logarithmic axes. An FID that takes longer than two hours counts as not reached. If the first evaluation is later
  than that and its FID is already lower, the report shows its time as an upper bound (≤).

The commands append their results to `speed.jsonl` and `quality.jsonl` in `--output-dir`, so they can run several times
and on different machines. Use a separate folder for the speed of each machine. Pass one of these folders to `report`,
together with the folders that contain quality results.

speedrun_entries.py lists the settings of the other projects. Other options are settings of this project's trainer,
such as `--optimizer.learning_rate=0.002`. They define a variant of the preset with its own row in the report. The
preset is class-conditional and the other projects are unconditional. `--model.num_class_embeds=null` trains the preset
without labels.
"""

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any


ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "training" / "configs" / "speedrun.yaml"
OURS = "ours"
CLASSES = {
    "diffusers": "DiffusersExample",
    "denoising-diffusion-pytorch": "DenoisingDiffusion",
    "smalldiffusion-unet": "SmallDiffusionUnet",
    "smalldiffusion-dit": "SmallDiffusionDiT",
}
NAMES = [OURS, *CLASSES]
TARGETS = (40, 20, 10)
TIME_LIMIT = 2 * 60 * 60
Record = dict[str, Any]


def make_entry(name: str, options: argparse.Namespace, num_images: int) -> Any:
    """Creates an entry. For this project, the learning rate schedule ends after `num_images`."""
    import speedrun_entries

    if name == OURS:
        settings = [f"--config={options.config}", *options.settings]
        return speedrun_entries.Ours(options.train_data_dir, options.seed, settings, num_images)
    return getattr(speedrun_entries, CLASSES[name])(options.train_data_dir, options.seed)


def get_title(name: str, options: argparse.Namespace) -> str:
    """Returns the name of an entry in the report, which contains the settings of a variant."""
    if name != OURS:
        return name
    config = [] if options.config == CONFIG else [options.config.stem]
    return " ".join([name, *config, *options.settings])


def append(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record), flush=True)


class Stopwatch:
    """Measures the speed of one entry in its own process, which starts at `start_time`."""

    def __init__(self, name: str, options: argparse.Namespace, start_time: float):
        import torch

        torch.set_num_threads(options.threads)
        # The length of the learning rate schedule does not affect the speed.
        self.entry = make_entry(name, options, num_images=1_000_000)
        self.startup_seconds = time.time() - start_time

    def measure_startup(self) -> float:
        return self.startup_seconds

    def count_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.entry.parameters)

    def train(self, precision: str, seconds: float) -> tuple[int, float]:
        """Trains for at least one step and `seconds`. Returns the number of images and the measured seconds."""
        self.entry.bf16 = precision == "bf16"
        start, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() - start < seconds:
            self.entry.step()
            steps += 1
        return steps * self.entry.batch_size, time.perf_counter() - start


stopwatch: Stopwatch


def start(name: str, options: argparse.Namespace, start_time: float) -> None:
    """Initializes the process of an entry."""
    global stopwatch
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # torch.compile must not reuse the cache of earlier runs.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(dir=options.cache_dir)
    stopwatch = Stopwatch(name, options, start_time)


def call(method: str, *args: Any) -> Any:
    return getattr(stopwatch, method)(*args)


def measure_speed(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as options.cache_dir:
        pools, first_steps, startups, parameters = {}, {}, {}, {}
        for name in options.names:
            pool = ProcessPoolExecutor(1, get_context("spawn"), start, (name, options, time.time()))
            pools[name] = pool
            startups[name] = pool.submit(call, "measure_startup").result()
            parameters[name] = pool.submit(call, "count_parameters").result()
            for precision in options.precisions:
                first_steps[name, precision] = pool.submit(call, "train", precision, 0).result()
        for _ in range(options.rounds):
            for name, precision in first_steps:
                images, seconds = pools[name].submit(call, "train", precision, options.seconds).result()
                first_images, first_seconds = first_steps[name, precision]
                record = {
                    "name": get_title(name, options),
                    "precision": precision,
                    "images_per_second": images / seconds,
                    # The first step includes the compilation.
                    "startup_seconds": startups[name] + max(first_seconds - first_images * seconds / images, 0),
                    "parameters": parameters[name],
                    "threads": options.threads,
                    "machine": platform.node(),
                }
                append(options.output_dir / "speed.jsonl", record)
        for pool in pools.values():
            pool.shutdown()


def make_fid(device: Any) -> Callable[[Any], float]:
    """Returns a function that computes the FID of uint8 images, `(num_images, 1, 28, 28)`."""
    from fmnist_diffusion.evaluation import InceptionFeatures, find_inception, frechet_distance
    from fmnist_diffusion.evaluation.bundled_statistics import load_moments

    weights = find_inception()
    if weights is None:
        raise SystemExit("speedrun.py: error: FID needs the Inception network. Run `make inception`.")
    inception, moments = InceptionFeatures(weights, device), load_moments("inception", "train")
    return lambda images: frechet_distance(inception(images), moments)


def measure_quality(options: argparse.Namespace) -> None:
    import torch

    name, title, start_time = options.name, get_title(options.name, options), time.perf_counter()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    compute_fid = make_fid(device)

    def log(message: str) -> None:
        print(f"[{time.perf_counter() - start_time:6.1f} s] {title}: {message}", flush=True)

    entry, steps = None, 0
    for num_images in sorted(options.num_images):
        if entry is None or name == OURS:
            entry, steps = make_entry(name, options, num_images), 0
            entry.bf16 = device == "cuda"
            log(f"{sum(parameter.numel() for parameter in entry.parameters):,} parameters on {entry.device}")
        while (steps + 1) * entry.batch_size <= num_images:
            entry.step()
            steps += 1
            if steps & (steps - 1) == 0:
                log(f"step {steps}")
        log(f"trained on {steps * entry.batch_size:,} images")
        for sampler in entry.samplers:
            record = {
                "name": title,
                "num_images": steps * entry.batch_size,
                "sampler": sampler,
                "num_samples": options.num_samples,
                "precision": "bf16" if entry.bf16 else "float32",
                "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
                "seed": options.seed,
            }
            images = entry.sample(options.num_samples, sampler)
            log(f"generated {len(images):,} samples")
            append(options.output_dir / "quality.jsonl", record | {"fid": compute_fid(images)})
            log("computed FID")


@dataclass
class Curve:
    """The speed and quality of an entry.

    Attributes:
        points: Numbers of images and FIDs, in the order of the numbers of images.
    """

    name: str
    precision: str
    images_per_second: float
    startup_seconds: float
    parameters: int
    points: list[tuple[int, float]]

    def get_seconds(self, num_images: float) -> float:
        return self.startup_seconds + num_images / self.images_per_second

    @property
    def times(self) -> list[float]:
        return [self.get_seconds(images) for images, _ in self.points]

    def find_time(self, fid: float) -> tuple[float, str] | None:
        """Returns the seconds after which an FID is first reached, and "≤ " if the first evaluation is already lower.

        Returns `None` if the FID is not reached.
        """
        if self.points[0][1] <= fid:
            return self.times[0], "≤ " if self.points[0][1] < fid else ""
        for (images1, fid1), (images2, fid2) in zip(self.points, self.points[1:], strict=False):
            if fid2 <= fid:
                return self.get_seconds(interpolate(fid, (fid1, images1), (fid2, images2))), ""
        return None

    def find_fid(self, seconds: float) -> tuple[float, str]:
        """Returns the FID at a time, and "≤ " after the last evaluation or "≥ " before the first one."""
        images = (seconds - self.startup_seconds) * self.images_per_second
        if images < self.points[0][0]:
            return self.points[0][1], "≥ "
        for (images1, fid1), (images2, fid2) in zip(self.points, self.points[1:], strict=False):
            if images <= images2:
                return interpolate(images, (images1, fid1), (images2, fid2)), ""
        return self.points[-1][1], "" if images == self.points[-1][0] else "≤ "


def interpolate(x: float, first: tuple[float, float], second: tuple[float, float]) -> float:
    """Interpolates linearly between two points on logarithmic axes."""
    position = (math.log(x) - math.log(first[0])) / (math.log(second[0]) - math.log(first[0]))
    return math.exp((1 - position) * math.log(first[1]) + position * math.log(second[1]))


def read_records(folders: list[Path], name: str) -> list[Record]:
    paths = [folder / name for folder in folders if (folder / name).is_file()]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def make_curve(name: str, speeds: list[Record], qualities: list[Record]) -> Curve:
    """Combines the records of an entry: the median speed and, for each number of images, the mean FID over the seeds.

    If there are several samplers, this uses the one with the lowest FID after the most images.
    """
    by_precision: dict[str, list[Record]] = {}
    for record in speeds:
        by_precision.setdefault(record["precision"], []).append(record)
    medians = {
        precision: median(record["images_per_second"] for record in records)
        for precision, records in by_precision.items()
    }
    precision = max(medians, key=lambda precision: medians[precision])
    last = max(record["num_images"] for record in qualities)
    sampler = min((record["fid"], record["sampler"]) for record in qualities if record["num_images"] == last)[1]
    fids: dict[int, list[float]] = {}
    for record in qualities:
        if record["sampler"] == sampler:
            fids.setdefault(record["num_images"], []).append(record["fid"])
    return Curve(
        name,
        precision,
        medians[precision],
        median(record["startup_seconds"] for record in by_precision[precision]),
        speeds[0]["parameters"],
        [(images, sum(fids[images]) / len(fids[images])) for images in sorted(fids)],
    )


def load_curves(folders: list[Path]) -> list[Curve]:
    """Returns the curves of all entries with results of `speed` and `quality`."""
    speeds, qualities = read_records(folders, "speed.jsonl"), read_records(folders, "quality.jsonl")
    for records, key in ((speeds, "machine"), (speeds, "threads"), (qualities, "num_samples")):
        values = {record[key] for record in records}
        if len(values) > 1:
            found = ", ".join(map(str, sorted(values)))
            raise SystemExit(
                f"speedrun.py: error: The results have different values of `{key}` ({found}). Pass only folders with"
                " the same value."
            )
    curves = []
    for name in dict.fromkeys(record["name"] for record in qualities):
        own_speeds = [record for record in speeds if record["name"] == name]
        if own_speeds:
            curves.append(make_curve(name, own_speeds, [record for record in qualities if record["name"] == name]))
    return curves


def describe_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def describe_time(curve: Curve, fid: float) -> str:
    found = curve.find_time(fid)
    if found is None and curve.times[-1] < TIME_LIMIT:
        return f"> {describe_duration(curve.times[-1])}"
    if found is not None and (found[0] <= TIME_LIMIT or found[1]):
        return f"{found[1]}{describe_duration(found[0])}"
    return "not reached"


def describe_speedup(fid: float, ours: list[Curve], others: list[Curve]) -> str:
    """Returns a sentence that compares this project's time with that of the fastest other project."""
    times = [found for curve in ours if (found := curve.find_time(fid)) is not None]
    if not times:
        return f"This project did not reach FID {fid}."
    seconds, own_bound = min(times)
    if seconds > TIME_LIMIT:
        if own_bound:
            return f"FID {fid}: Evaluate this project after fewer training images to measure the time."
        return f"This project did not reach FID {fid}."
    result = f"FID {fid}: {own_bound}{describe_duration(seconds)}"
    if not others:
        return f"{result}."
    found = {curve.name: time for curve in others if (time := curve.find_time(fid)) is not None}
    # If a first evaluation after the time limit has a lower FID, `fid` may have been reached within the limit.
    unknown = [name for name, (other_seconds, bound) in found.items() if other_seconds > TIME_LIMIT and bound]
    if unknown:
        return f"{result}. Evaluate {unknown[0]} after fewer training images to compare the times."
    reached = {name: time for name, time in found.items() if time[0] <= TIME_LIMIT}
    if reached:
        fastest = min(reached, key=lambda name: reached[name])
        other_seconds, bound = reached[fastest]
        if own_bound and bound:
            return f"{result}. Evaluate this project and {fastest} after fewer training images to compare the times."
        bound = "≥ " if own_bound else bound
        return f"{result}, {bound}{other_seconds / seconds:.1f}x as fast as {fastest}."
    measured = min(TIME_LIMIT, *(curve.times[-1] for curve in others))
    return (
        f"{result}. No other project reached it within {describe_duration(measured)}, so this project is more than"
        f" {measured / seconds:.1f}x as fast."
    )


def format_report(curves: list[Curve]) -> str:
    columns = ["entry", "parameters (M)", "precision", "images/s", "start-up (s)"]
    columns += [f"FID {target}" for target in TARGETS] + ["FID after two hours"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for curve in curves:
        fid, bound = curve.find_fid(TIME_LIMIT)
        row = [
            curve.name,
            f"{curve.parameters / 1e6:.1f}",
            curve.precision,
            f"{curve.images_per_second:.1f}",
            f"{curve.startup_seconds:.0f}",
            *[describe_time(curve, target) for target in TARGETS],
            f"{bound}{fid:.1f}",
        ]
        lines.append(f"| {' | '.join(row)} |")
    ours = [curve for curve in curves if curve.name not in CLASSES]
    others = [curve for curve in curves if curve.name in CLASSES]
    return "\n".join([*lines, "", *[describe_speedup(target, ours, others) for target in TARGETS]])


def plot(curves: list[Curve], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        fids = [fid for _, fid in curve.points]
        axes.plot([seconds / 60 for seconds in curve.times], fids, marker="o", label=curve.name)
    for target in TARGETS:
        axes.axhline(target, color="gray", linewidth=0.5)
    axes.axvline(TIME_LIMIT / 60, color="gray", linestyle="dashed", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="training time on the CPU (minutes)", ylabel="FID of 10,000 samples")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
    figure.legend(fontsize="small", loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=150)


def report(options: argparse.Namespace) -> None:
    curves = load_curves(options.folders)
    if not curves:
        raise SystemExit(
            "speedrun.py: error: Found no entry with results of both `speed` and `quality`. Run both commands first."
        )
    print(format_report(curves))
    path = options.folders[0] / "speedrun.png"
    plot(curves, path)
    print(f"\nSaved {path}.")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    output_dir = Path("output/speedrun-benchmark")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config", type=Path, default=CONFIG, help="preset of this project (default: training/configs/speedrun.yaml)"
    )
    common.add_argument("--train-data-dir", help="folder with the IDX files of Fashion-MNIST (default: the Hub data)")
    common.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    common.add_argument("--threads", type=int, default=2, help="number of CPU threads (default: %(default)s)")
    common.add_argument(
        "-o", "--output-dir", type=Path, default=output_dir, help="folder for the results (default: %(default)s)"
    )

    speed = commands.add_parser("speed", parents=[common], help="measure the speed on the CPU")
    speed.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="entries to measure (default: all)")
    speed.add_argument("--rounds", type=int, default=3, help="measurements per entry (default: %(default)s)")
    speed.add_argument("--seconds", type=float, default=10, help="seconds per measurement (default: %(default)s)")
    speed.add_argument(
        "--precisions",
        nargs="+",
        choices=("float32", "bf16"),
        default=["float32", "bf16"],
        help="precisions to measure (default: float32 bf16)",
    )
    speed.set_defaults(run=measure_speed)

    quality = commands.add_parser("quality", parents=[common], help="measure FID after several numbers of images")
    quality.add_argument("name", choices=NAMES, help="entry to train")
    quality.add_argument(
        "--num-images", type=int, nargs="+", required=True, metavar="N", help="numbers of training images"
    )
    quality.add_argument(
        "-n", "--num-samples", type=int, default=10_000, help="number of samples per evaluation (default: %(default)s)"
    )
    quality.set_defaults(run=measure_quality)

    report_parser = commands.add_parser("report", help="combine the results")
    report_parser.add_argument(
        "folders", type=Path, nargs="*", default=[output_dir], help=f"folders with results (default: {output_dir})"
    )
    report_parser.set_defaults(run=report)
    return parser


def main(args: list[str]) -> None:
    parser = make_parser()
    options, settings = parser.parse_known_args(args)
    unknown = set(getattr(options, "names", [])) - set(NAMES)
    if unknown:
        parser.error(f"Could not find the entry {min(unknown)!r}: pass one of {', '.join(NAMES)}.")
    names = getattr(options, "names", [getattr(options, "name", None)])
    if settings and OURS not in names:
        parser.error(f"Only the entry {OURS!r} has settings. Omit {settings[0]}.")
    options.settings = settings
    options.run(options)


if __name__ == "__main__":
    main(sys.argv[1:])
