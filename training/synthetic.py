"""Turns the samples of a Fashion-MNIST pipeline into training images, to train a model on its own samples:

    fmnist-diffusion evaluate base --num-samples 50000 -o evaluation/base-50000
    fmnist-diffusion evaluate base --num-samples 10000 --unconditional -o evaluation/base-unconditional
    python training/synthetic.py evaluation/base-50000 evaluation/base-unconditional -o synthetic.safetensors
    accelerate launch training/train.py --config training/configs/base_self.yaml
    python training/combine.py base output/base_self/pipeline --weights 1.5 -0.5 --output_dir output/better

Training a model on its own samples amplifies its errors, so extrapolation in the opposite direction reduces them
(negative extrapolation from self-training, arXiv 2510.03597). With wrong labels for some of the samples
(`--label_noise=0.2`), the extrapolation also increases the class accuracy.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from fmnist_diffusion.data import FASHION_MNIST_LABELS, ImageTensors, save_tensors
from fmnist_diffusion.evaluation import load_batches
from fmnist_diffusion.files import write_atomically
from fmnist_diffusion.metadata import format_count, read_json
from fmnist_diffusion.sampling import Samples


def load_synthetic_images(folders: list[Path], label_noise: float = 0.0) -> ImageTensors:
    """Returns the samples of evaluations with the labels that they were generated with.

    Unconditional samples get the null label. If all samples are unconditional, there are no labels.

    Args:
        folders: Output folders of `fmnist-diffusion evaluate`.
        label_noise: Probability with which a label is replaced by a random one.

    Raises:
        `ValueError`: If a folder contains no samples, samples of another dataset or an unfinished evaluation, if
            `label_noise` is not in [0, 1], or if there are no labels to replace.
    """
    if not 0 <= label_noise <= 1:
        raise ValueError(f"`--label_noise` must be between 0 and 1, got {label_noise}.")
    batches: list[Samples] = []
    for folder in folders:
        settings = read_json(folder / "settings.json") or {}
        if "reference" in settings:
            raise ValueError(
                f"{folder} contains samples that were evaluated with `--reference`, but only samples of Fashion-MNIST"
                " models are supported. Pass a different folder."
            )
        expected = settings.get("num_samples", 0) * len(settings.get("seeds", []))
        loaded = list(load_batches(folder))
        found = sum(map(len, loaded))
        if found < expected:
            raise ValueError(
                f"{folder} must contain {expected} samples, got {found}. Run the same `fmnist-diffusion evaluate`"
                " again to finish the evaluation."
            )
        batches += loaded
    if all(batch.labels is None for batch in batches):
        if label_noise:
            raise ValueError("`--label_noise` requires conditional samples, but all samples are unconditional.")
        return ImageTensors(Samples.concatenate(batches).images)
    null = len(FASHION_MNIST_LABELS)
    batches = [
        replace(batch, labels=torch.full((len(batch),), null)) if batch.labels is None else batch for batch in batches
    ]
    samples = Samples.concatenate(batches)
    assert samples.labels is not None
    generator = torch.Generator().manual_seed(0)
    noisy = (torch.rand(len(samples), generator=generator) < label_noise) & (samples.labels < null)
    labels = samples.labels.masked_scatter(noisy, torch.randint(null, (len(samples),), generator=generator))
    return ImageTensors(samples.images, labels, FASHION_MNIST_LABELS)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="output folders of fmnist-diffusion evaluate")
    parser.add_argument("-o", "--output", type=Path, required=True, help=".safetensors file to write")
    parser.add_argument(
        "--label_noise",
        type=float,
        default=0.0,
        help="probability of replacing a label with a random one, from 0 to 1 (default: %(default)s)",
    )
    options = parser.parse_args(args)
    try:
        if options.output.exists():
            raise ValueError(f"`--output` must be a new file, but {options.output} exists. Pass a different path.")
        if options.output.suffix != ".safetensors":
            raise ValueError(f"`--output` must end with .safetensors, got {options.output}.")
        tensors = load_synthetic_images(options.folders, options.label_noise)
        with write_atomically(options.output) as temporary:
            save_tensors(tensors, temporary)
    except (OSError, ValueError) as error:
        parser.exit(2, f"synthetic.py: error: {error}\n")
    print(f"Saved {format_count(len(tensors), 'image')} to {options.output}.")


if __name__ == "__main__":
    main()
