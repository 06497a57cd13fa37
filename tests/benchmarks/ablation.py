"""Trains base.yaml at half its width for a short time, with changed settings in each row, and compares the samples.

    python tests/benchmarks/ablation.py

All rows use the same images, number of steps and initial noise. Changes of the architecture also change the initial
weights; the row "another seed" shows how much of the difference is random. Existing results in `--output-dir` are
reused. Several processes can compute different `--rows`; compute the row with guidance after the baseline, whose
checkpoint it uses.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.evaluation import FastMetrics, InceptionFeatures, find_inception
from fmnist_diffusion.sampling import Samples, SamplingConfig, generate


ROOT = Path(__file__).resolve().parents[2]
BATCH_SIZE = 32
# All machines support float32. The decay of the EMA is lower because there are fewer steps.
RECIPE = {
    "config": ROOT / "training" / "configs" / "base.yaml",
    "model.block_out_channels": [16, 32, 64, 128],
    "train_batch_size": BATCH_SIZE,
    "ema.max_decay": 0.995,
    "mixed_precision": "no",
    "compile": "false",
    "num_epochs": 1000,
    "save_images_epochs": 1000,
    "save_model_epochs": 1000,
    "checkpointing_steps": 1_000_000,
    "eval.every_n_epochs": "null",
    "report_to": "none",
}
BASELINE = "baseline"
ROWS = {
    BASELINE: {},
    "another seed": {"seed": 1},
    "BatchNorm": {"model.norm_type": "batch"},
    "timestep embedding at the bottleneck only": {"model.time_conditioning": "bottleneck"},
    "timestep embedding added, without scale and shift": {"model.resnet_time_scale_shift": "default"},
    "attention at the bottleneck only": {"model.attention_levels": [3]},
    "sample prediction": {"scheduler.prediction_type": "sample"},
    "linear schedule": {"scheduler.beta_schedule": "linear"},
    # With these timesteps, the linear schedule has the noise levels of the baseline.
    "linear schedule, noise levels of the baseline": {
        "scheduler.beta_schedule": "linear",
        "objective.logit_mean": -1.55,
        "objective.logit_std": 1.0,
    },
    "linear schedule, epsilon prediction": {
        "scheduler.beta_schedule": "linear",
        "scheduler.prediction_type": "epsilon",
        "scheduler.rescale_betas_zero_snr": "false",
    },
    "min-SNR weights (gamma 5)": {"objective.snr_gamma": 5},
    "uniform timesteps": {"objective.timestep_sampling": "uniform"},
    "logit-normal timesteps, mean 0": {"objective.logit_mean": 0, "objective.logit_std": 1},
    "logit-normal timesteps, mean -1.1": {"objective.logit_mean": -1.1},
    "no EMA": {"ema.enabled": "false"},
    "EMA decay 0.98": {"ema.max_decay": 0.98},
    "EMA decay 0.9995": {"ema.max_decay": 0.9995},
    "horizontal flips": {"data.augmentation": "flip"},
    "no label dropout": {"objective.label_dropout": 0},
    "constant learning rate": {"optimizer.lr_scheduler": "constant_with_warmup"},
}
# The row with guidance needs 19 function evaluations per image, the others 20.
GUIDANCE_ROW = "guidance scale 1.5 in the middle of sampling"
SAMPLING = SamplingConfig(num_inference_steps=20)
GUIDED_SAMPLING = SamplingConfig(num_inference_steps=14, guidance_scale=1.5, guidance_interval=(0.3, 0.7))
# All rows use the same timestep spacing, regardless of their noise schedule.
TIMESTEP_POWER = 1.5


def get_slug(row: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in row)


def train(row: str, options: argparse.Namespace) -> Path:
    """Trains the pipeline of a row unless it exists, and returns its folder."""
    folder = options.output_dir / f"{get_slug(row)}-{options.num_images}"
    if not (folder / "pipeline" / "model_index.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        settings = RECIPE | {"max_train_steps": options.num_images // BATCH_SIZE, "output_dir": folder} | ROWS[row]
        command = [sys.executable, ROOT / "training" / "train.py"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
    return folder / "pipeline"


def evaluate(row: str, options: argparse.Namespace) -> dict[str, float]:
    """Computes the metrics of a row unless they are saved in the output folder, and returns them."""
    trained_row, sampling = (BASELINE, GUIDED_SAMPLING) if row == GUIDANCE_ROW else (row, SAMPLING)
    path = options.output_dir / f"{get_slug(row)}-{options.num_images}-{options.num_samples}.json"
    if not path.is_file():
        trained = load_pipeline(train(trained_row, options)).to(options.device)
        pipe = FashionMNISTPipeline(trained.unet, trained.scheduler, timestep_power=TIMESTEP_POWER)
        pipe.set_progress_bar_config(disable=True)
        batches = generate(pipe, sampling, options.num_samples, class_labels=range(10), batch_size=100)
        metrics = FastMetrics(options.num_samples, options.device)(Samples.concatenate(list(batches)))
        path.write_text(json.dumps(metrics, indent=2) + "\n")
    return json.loads(path.read_text())


def main() -> None:
    rows = [*ROWS, GUIDANCE_ROW]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", choices=rows, default=rows, metavar="ROW", help=f"rows to compute: {'; '.join(rows)}"
    )
    parser.add_argument(
        "--num-images", type=int, default=120_000, help="training images per row (default: %(default)s)"
    )
    parser.add_argument(
        "-n",
        "--num-samples",
        type=int,
        default=2500,
        help="samples per row; FID needs at least 2049 (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="device for sampling and evaluation (default: cuda if available, else cpu)",
    )
    parser.add_argument(
        "-o",
        "--output-dir",
        type=Path,
        default=Path("output/ablation"),
        help="folder for pipelines and results (default: %(default)s)",
    )
    options = parser.parse_args()
    if options.num_samples > InceptionFeatures.num_features and find_inception() is None:
        parser.error("FID needs the Inception network: run `make inception`, or pass -n 2048 or less.")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    print("| change | FD-classifier | class accuracy | FID |")
    print("|---|---|---|---|")
    for row in options.rows:
        metrics = evaluate(row, options)
        distance, accuracy = metrics["classifier_frechet_distance_train"], metrics["class_accuracy"]
        fid = f"{metrics['fid_train']:.1f}" if "fid_train" in metrics else ""
        print(f"| {row} | {distance:.3f} | {accuracy * 100:.1f}% | {fid} |", flush=True)


if __name__ == "__main__":
    main()
