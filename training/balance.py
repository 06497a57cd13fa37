"""Makes a class-conditional pipeline draw of each class as often where it is told none:

    fmnist-diffusion evaluate base --num-samples 10000 --unconditional -o evaluation/base-unconditional
    python training/balance.py base evaluation/base-unconditional --output_dir output/balanced

The embedding of the null label moves towards those of the classes that were too rare. What the pipeline draws with a
label stays the same. Evaluate the new pipeline likewise, and repeat with it where classes are still rare.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


# A script's modules are looked for in its own folder, and ours are beside that.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fmnist_diffusion import FashionMNISTUNet2DModel, export_pipeline, load_pipeline
from fmnist_diffusion.cli import DTYPES
from fmnist_diffusion.evaluation import pipeline_hash
from fmnist_diffusion.hub import pipeline_folder
from fmnist_diffusion.publish import read_train_config
from training.combine import check_new


def balance(unet: FashionMNISTUNet2DModel, class_shares: Sequence[float], strength: float) -> None:
    r"""Moves the null label's embedding of `unet`, in place, by $s \sum_k (e_k - \bar e) \log (1 / (K p_k))$.

    Args:
        unet ([`FashionMNISTUNet2DModel`]): A class-conditional model of $K$ classes with the embeddings $e_k$.
        class_shares (`Sequence[float]`): $p_k$, how much of what it draws without labels is of each class.
        strength (`float`): $s$.

    Raises:
        `ValueError`: the model knows no classes, or others than these, or a class was never drawn.
    """
    num_classes = unet.config["num_class_embeds"]
    if num_classes is None or num_classes != len(class_shares):
        raise ValueError(
            f"the pipeline knows {num_classes or 'no'} classes, and {len(class_shares)} were measured; give a"
            " class-conditional pipeline of Fashion-MNIST."
        )
    shares = torch.tensor(class_shares)
    if shares.min() <= 0:
        raise ValueError("a class was never drawn, which no step from there could mend; give more samples.")
    assert unet.class_embedding is not None
    embeddings = unet.class_embedding.weight.data
    classes = embeddings[:num_classes]
    embeddings[num_classes] += strength * -(num_classes * shares).log() @ (classes - classes.mean(dim=0))


def is_of(measured: dict[str, Any], pipeline: str) -> bool:
    """Whether that measurement is of `pipeline`, as loaded in the dtype that it was drawn with."""
    return measured["unet_sha256"] == pipeline_hash(load_pipeline(pipeline, dtype=getattr(torch, measured["dtype"])))


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="a folder or a bundled pipeline")
    parser.add_argument("evaluation", type=Path, help="what fmnist-diffusion evaluate --unconditional wrote of it")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the pipeline is written")
    parser.add_argument("--strength", type=float, default=0.15, help="of the step (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: %(default)s)")
    options = parser.parse_args(args)
    try:
        check_new(options.output_dir)
        measured = json.loads((options.evaluation / "metrics.json").read_text())
        if measured.get("conditional", True) or not is_of(measured, options.pipeline):
            raise ValueError(
                f"{options.evaluation} is not of samples of {options.pipeline} without labels; give what"
                " fmnist-diffusion evaluate --unconditional wrote of it."
            )
        pipe = load_pipeline(options.pipeline, scheduler=None)
        shares = measured["metrics"]["class_shares"]
        balance(pipe.unet, shares, options.strength)
        train_config = read_train_config(pipeline_folder(options.pipeline) / "train_config.json") or {}
        step = {"class_shares": shares, "strength": options.strength, "unet_sha256": measured["unet_sha256"]}
        train_config["balanced"] = [*train_config.get("balanced", []), step]
        pipe.unet.to(getattr(torch, options.dtype))
        export_pipeline(pipe.unet, pipe.scheduler, options.output_dir, train_config=train_config)
    except (OSError, TypeError, ValueError) as error:
        parser.exit(2, f"balance.py: error: {error}\n")
    print(f"The pipeline is in {options.output_dir}.")


if __name__ == "__main__":
    main()
