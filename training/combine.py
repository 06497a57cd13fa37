"""Makes one pipeline of checkpoints of the same model, with a weighted sum of their weights (arXiv 2404.02241):

    python training/combine.py output/second/pipeline output/first/pipeline --weights 1.2 -0.2 --output_dir output/both

Where the second run began with the first's weights (`--init_from`), a small negative weight of the first goes further
in the direction that training went. `fmnist-diffusion evaluate` tells which weights are best.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


# A script's modules are looked for in its own folder, and ours are beside that.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, export_pipeline, load_pipeline
from fmnist_diffusion.cli import DTYPES
from fmnist_diffusion.evaluation import pipeline_hash
from fmnist_diffusion.hub import pipeline_folder
from fmnist_diffusion.publish import read_train_config


def combine(pipelines: Sequence[FashionMNISTPipeline], weights: Sequence[float]) -> FashionMNISTUNet2DModel:
    """The model whose weights are the sums of those of `pipelines`, each times its weight, in float32.

    The running statistics of BatchNorm are summed alike.

    Args:
        pipelines: Of one architecture, prediction type and noise schedule.
        weights: One for each pipeline, of any sign, which add up to 1.

    Raises:
        `ValueError`: the weights are not that, the pipelines hold different models, or a running variance of BatchNorm
            would not be positive.
    """
    if len(weights) != len(pipelines) or not abs(sum(weights) - 1) < 1e-6:
        raise ValueError(
            f"--weights are {' '.join(map(str, weights))}; give one for each pipeline, which add up to 1."
        )

    def architecture(pipe: FashionMNISTPipeline) -> dict[str, Any]:
        return {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}

    first = pipelines[0]
    for other in pipelines[1:]:
        if (
            architecture(other) != architecture(first)
            or other.scheduler.config["prediction_type"] != first.scheduler.config["prediction_type"]
            or not torch.equal(other.scheduler.betas, first.scheduler.betas)
        ):
            raise ValueError("the pipelines hold different models; give checkpoints of one model.")
    states = [pipe.unet.state_dict() for pipe in pipelines]
    combined = {}
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            tensor = sum(weight * state[name].float() for weight, state in zip(weights, states, strict=True))
        if name.endswith("running_var") and tensor.min() <= 0:
            raise ValueError(f"{name} would not be positive; give --weights nearer to 0 and 1.")
        combined[name] = tensor
    unet = FashionMNISTUNet2DModel.from_config(first.unet.config)
    unet.load_state_dict(combined)
    return unet.eval()


def check_new(output_dir: Path) -> None:
    """Raises `ValueError` where the folder holds files."""
    if output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(f"{output_dir} holds files already; give a new folder as --output_dir.")


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipelines", nargs="+", help="folders or bundled pipelines; the first one's settings are kept")
    parser.add_argument("--weights", nargs="+", type=float, required=True, help="one for each, which add up to 1")
    parser.add_argument("--output_dir", required=True, help="where the pipeline is written")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: %(default)s)")
    options = parser.parse_args(args)
    output_dir = Path(options.output_dir)
    try:
        check_new(output_dir)
        pipelines = [load_pipeline(name, scheduler=None) for name in options.pipelines]
        unet = combine(pipelines, options.weights).to(getattr(torch, options.dtype))
        train_config = read_train_config(pipeline_folder(options.pipelines[0]) / "train_config.json") or {}
        combined = {"weights": options.weights, "unet_sha256": [pipeline_hash(pipe) for pipe in pipelines]}
        if "combined" in train_config:
            combined["first"] = train_config["combined"]
        export_pipeline(unet, pipelines[0].scheduler, output_dir, train_config=train_config | {"combined": combined})
    except (OSError, TypeError, ValueError) as error:
        parser.exit(2, f"combine.py: error: {error}\n")
    print(f"The pipeline is in {options.output_dir}.")


if __name__ == "__main__":
    main()
