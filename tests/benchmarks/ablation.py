"""What each choice of base.yaml is worth: trained at half its width and briefly, with one thing changed at a time.

    python tests/benchmarks/ablation.py

All rows have the same images, steps and starting noise. Where the architecture changes, so do the starting weights,
for which "the recipe with another seed" is the measure. Rows that `--output-dir` has already are not done again;
several processes can each do some of the `--rows`, the guided one after the recipe that it draws with.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from fmnist_diffusion import SDEDPMSolverScheduler, load_pipeline
from fmnist_diffusion.cli import choose_device
from fmnist_diffusion.evaluation import FastMetrics, InceptionFeatures, SamplingSettings, draw_all, find_inception


ROOT = Path(__file__).resolve().parents[2]
BATCH = 32
# In float32, for the sake of any machine, and with an average over fewer steps, of which there are fewer.
RECIPE = {
    "config": ROOT / "training" / "configs" / "base.yaml",
    "model.block_out_channels": [16, 32, 64, 128],
    "train_batch_size": BATCH,
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
ROWS = {
    "the recipe": {},
    "the recipe with another seed": {"seed": 1},
    "BatchNorm": {"model.norm_type": "batch"},
    "time at the bottleneck only": {"model.time_conditioning": "bottleneck"},
    "time added, not scale and shift": {"model.resnet_time_scale_shift": "default"},
    "attention at the bottleneck only": {"model.attention_levels": [3]},
    "predicting the image": {"scheduler.prediction_type": "sample"},
    "linear schedule": {"scheduler.beta_schedule": "linear"},
    # The timesteps at which that schedule has the noise that the recipe's has at its own.
    "linear schedule, trained on the recipe's noise": {
        "scheduler.beta_schedule": "linear",
        "objective.logit_mean": -1.55,
        "objective.logit_std": 1.0,
    },
    "linear schedule, predicting the noise": {
        "scheduler.beta_schedule": "linear",
        "scheduler.prediction_type": "epsilon",
        "scheduler.rescale_betas_zero_snr": "false",
    },
    "min-SNR weights (gamma 5)": {"objective.snr_gamma": 5},
    "uniform timesteps": {"objective.timestep_sampling": "uniform"},
    "logit-normal timesteps, unshifted": {"objective.logit_mean": 0, "objective.logit_std": 1},
    "logit-normal timesteps, shifted further": {"objective.logit_mean": -1.1},
    "no EMA": {"ema.enabled": "false"},
    "EMA of 0.98": {"ema.max_decay": 0.98},
    "EMA of 0.9995": {"ema.max_decay": 0.9995},
    "flips": {"data.augmentation": "flip"},
    "no label dropout": {"objective.label_dropout": 0},
    "constant learning rate": {"optimizer.lr_scheduler": "constant_with_warmup"},
}
# It takes 19 evaluations an image, and the plain one 20.
GUIDED = "guidance 1.5 in the middle"
PLAIN_SAMPLING = SamplingSettings(20, conditional=True)
GUIDED_SAMPLING = SamplingSettings(14, 1.5, (0.3, 0.7), conditional=True)
# The same on any schedule.
TIMESTEP_POWER = 1.5


def train(row: str, options: argparse.Namespace) -> Path:
    """Returns the pipeline of that row, trained unless it is there already."""
    folder = options.output_dir / f"{file_name(row)}-{options.num_images}"
    if not (folder / "pipeline" / "model_index.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        settings = RECIPE | {"max_train_steps": options.num_images // BATCH, "output_dir": folder} | ROWS[row]
        command = [sys.executable, ROOT / "training" / "train.py"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
    return folder / "pipeline"


def file_name(row: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in row)


def measure(row: str, options: argparse.Namespace) -> dict[str, float]:
    trained_row, settings = ("the recipe", GUIDED_SAMPLING) if row == GUIDED else (row, PLAIN_SAMPLING)
    path = options.output_dir / f"{file_name(row)}-{options.num_images}-{options.num_samples}.json"
    if not path.is_file():
        device = choose_device("auto")
        pipe = load_pipeline(train(trained_row, options)).to(device)
        pipe.scheduler = SDEDPMSolverScheduler.from_config(pipe.scheduler.config, timestep_power=TIMESTEP_POWER)
        pipe.set_progress_bar_config(disable=True)
        samples = draw_all(pipe, settings, options.num_samples, batch_size=100)
        metrics = FastMetrics(options.num_samples, device)(samples)
        path.write_text(json.dumps(metrics, indent=2) + "\n")
    return json.loads(path.read_text())


def main() -> None:
    rows = [*ROWS, GUIDED]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows, metavar="ROW", help="; ".join(rows))
    parser.add_argument("--num-images", type=int, default=120_000, help="images that each row is trained for")
    parser.add_argument("-n", "--num-samples", type=int, default=2500, help="from 2049 on with FID")
    parser.add_argument("-o", "--output-dir", type=Path, default=Path("output/ablation"))
    options = parser.parse_args()
    if options.num_samples > InceptionFeatures.num_features and find_inception() is None:
        parser.error("the network of FID is missing: run make inception, or give -n 2048 or less")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    print("| changed | classifier's distance | of the class asked for | FID |")
    print("|---|---|---|---|")
    for row in options.rows:
        metrics = measure(row, options)
        distance, agreement = metrics["classifier_frechet_distance_train"], metrics["class_agreement"]
        fid = f"{metrics['fid_train']:.1f}" if "fid_train" in metrics else ""
        print(f"| {row} | {distance:.3f} | {agreement:.1%} | {fid} |", flush=True)


if __name__ == "__main__":
    main()
