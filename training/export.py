"""Exports pipelines together with the settings of their training."""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoint import Progress
from config import TrainingConfig
from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.files import replace_folder
from fmnist_diffusion.hub_client import is_repo_id


# These settings of the machine and the Hub are not published in train_config.json.
PRIVATE_SETTINGS = (
    "output_dir",
    "resume",
    "push_to_hub",
    "push_to_hub_epochs",
    "hub_model_id",
    "hub_private_repo",
    "hub_license",
)


def save_with_train_config(
    pipe: FashionMNISTPipeline, folder: Path, train_config: dict[str, Any], sample_grid: Path | None = None
) -> None:
    """Writes a pipeline with the settings of its training and, if it exists, the sample grid of its weights.

    Raises:
        `WriteError`: If the pipeline cannot be written. In this case, `folder` is unchanged.
    """
    # Metrics and samples from an earlier export do not belong to these weights, so the whole folder is replaced.
    with replace_folder(folder) as temporary:
        pipe.save_pretrained(temporary)
        (temporary / "train_config.json").write_text(json.dumps(train_config, indent=2) + "\n")
        if sample_grid is not None and sample_grid.exists():
            (temporary / "images").mkdir()
            shutil.copyfile(sample_grid, temporary / "images" / "samples.png")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a script that writes a new pipeline."""
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write the new pipeline to")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="dtype of the new weights (default: %(default)s)",
    )


def make_train_config(config: TrainingConfig, progress: Progress) -> dict[str, Any]:
    """Returns the settings and the progress of a run without local paths."""
    train_config: dict[str, Any] = asdict(config) | {"progress": asdict(progress)}
    for name in PRIVATE_SETTINGS:
        del train_config[name]
    hide_local_paths(train_config)
    hide_local_paths(train_config["data"])
    return train_config


def hide_local_paths(settings: dict[str, Any]) -> None:
    """Replaces the names of pipelines and datasets in `settings`, in place, with their public names."""
    for name in ("init_from", "vae", "dataset_name", "train_data_dir"):
        if settings.get(name) is not None:
            settings[name] = get_public_name(settings[name])


def get_public_name(source: str) -> str:
    """Returns the id of a dataset or pipeline on the Hub, or the last component of a local path."""
    path = Path(source)
    return source if is_repo_id(source) and not path.exists() else path.name
