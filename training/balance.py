"""Balances the classes of the unconditional samples of a class-conditional Fashion-MNIST pipeline:

    fmnist-diffusion evaluate base --num-samples 10000 --unconditional -o evaluation/base-unconditional
    python training/balance.py base evaluation/base-unconditional --output_dir output/balanced

The script moves the embedding of the null label toward the embeddings of underrepresented classes. Conditional
samples do not change. Evaluate the new pipeline with the same settings, and repeat the step if necessary.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from export import add_output_arguments, save_with_train_config
from fmnist_diffusion import FashionMNISTUNet2DModel, load_pipeline
from fmnist_diffusion.data import has_fashion_mnist_order
from fmnist_diffusion.data.errors import list_names
from fmnist_diffusion.metadata import has_same_weights, read_metrics
from fmnist_diffusion.sampling import convert_dtype
from output_folder import check_new_folder
from pretrained import find_train_config


def balance(unet: FashionMNISTUNet2DModel, class_shares: Sequence[float], strength: float) -> None:
    r"""Moves the embedding of the null label in `unet`, in place, by $s \sum_k (e_k - \bar e) \log (1 / (K p_k))$.

    Args:
        unet ([`FashionMNISTUNet2DModel`]): A class-conditional model of $K$ classes with the embeddings $e_k$.
        class_shares (`Sequence[float]`): $p_k$, the fraction of each class among the unconditional samples.
        strength (`float`): $s$.

    Raises:
        `ValueError`: If the number of classes differs from the evaluation, or if a class has no samples.
    """
    num_classes = unet.config["num_class_embeds"]
    if num_classes is None or num_classes != len(class_shares):
        raise ValueError(
            f"The pipeline must have the {len(class_shares)} classes of the evaluation, got {num_classes or 'none'}."
            " Pass the pipeline that was evaluated."
        )
    shares = torch.tensor(class_shares)
    if shares.min() <= 0:
        raise ValueError("All classes must occur in the evaluated samples. Evaluate more samples.")
    assert isinstance(unet.class_embedding, torch.nn.Embedding)
    embeddings = unet.class_embedding.weight.data
    classes = embeddings[:num_classes]
    embeddings[num_classes] += strength * -(num_classes * shares).log() @ (classes - classes.mean(dim=0))


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="local folder, name of a bundled checkpoint or Hub repository")
    parser.add_argument("evaluation", type=Path, help="output folder of fmnist-diffusion evaluate --unconditional")
    parser.add_argument("--strength", type=float, default=0.15, help="size of the step (default: %(default)s)")
    add_output_arguments(parser)
    options = parser.parse_args(args)
    try:
        check_new_folder(options.output_dir)
        evaluation = read_metrics(options.evaluation / "metrics.json") or {}
        # An evaluation with other reference images does not measure the class shares.
        shares = None if evaluation.get("conditional", True) else evaluation["metrics"].get("class_shares")
        pipe = load_pipeline(options.pipeline)
        if shares is None or not has_same_weights(evaluation, pipe):
            raise ValueError(
                f"{options.evaluation} must be an evaluation of unconditional samples of {options.pipeline} against"
                f" Fashion-MNIST. Run `fmnist-diffusion evaluate {options.pipeline} --unconditional` to the end."
            )
        if not has_fashion_mnist_order(pipe.label_names):
            raise ValueError(
                "The pipeline must have the classes of Fashion-MNIST in their original order, got"
                f" {list_names(pipe.label_names or ['none'])}. Pass a different pipeline."
            )
        balance(pipe.unet, shares, options.strength)
        train_config = find_train_config(options.pipeline) or {}
        step = {"class_shares": shares, "strength": options.strength, "weights_sha256": evaluation["weights_sha256"]}
        train_config["balanced"] = [*train_config.get("balanced", []), step]
        convert_dtype(pipe.unet, getattr(torch, options.dtype))
        save_with_train_config(pipe, options.output_dir, train_config)
    except (OSError, ValueError) as error:
        parser.exit(2, f"balance.py: error: {error}\n")
    print(f"Saved the pipeline to {options.output_dir}.")


if __name__ == "__main__":
    main()
