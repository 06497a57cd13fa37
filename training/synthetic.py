"""Makes training images of the samples that evaluations drew, for a model to be trained on what it draws itself:

    fmnist-diffusion evaluate base --num-samples 50000 -o evaluation/base-50000
    fmnist-diffusion evaluate base --num-samples 10000 --unconditional -o evaluation/base-unconditional
    python training/synthetic.py evaluation/base-50000 evaluation/base-unconditional -o synthetic.safetensors
    accelerate launch training/train.py --config training/configs/base_self.yaml
    python training/combine.py base output/base_self/pipeline --weights 1.5 -0.5 --output_dir output/better

So it learns what is wrong with its pictures twice over, and the weights in the opposite direction draw better ones
(arXiv 2510.03597). Where some of the samples' labels are wrong (`--label_noise=0.2`), more pictures are of the class
asked for, away from that.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch


# A script's modules are looked for in its own folder, and ours are beside that.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fmnist_diffusion.data import FASHION_MNIST_LABELS, ImageTensors, save_tensors
from fmnist_diffusion.evaluation import Samples, load_parts


def synthetic_images(folders: list[Path], label_noise: float = 0.0) -> ImageTensors:
    """The samples in `folders` of `fmnist-diffusion evaluate`, with the labels that they were asked to be of.

    Samples of no class get the null label; where all are that, there are no labels. Of the others, each has a label
    drawn at random instead with the probability `label_noise`.

    Raises:
        `ValueError`: a folder holds no samples, `label_noise` is not in [0, 1], or there are no labels for it.
    """
    if not 0 <= label_noise <= 1:
        raise ValueError(f"--label_noise is {label_noise}; give a probability from 0 to 1.")
    parts = [replace(part, inception=None) for folder in folders for part in load_parts(folder)]
    if all(part.labels is None for part in parts):
        if label_noise:
            raise ValueError("none of the samples has a label; leave out --label_noise.")
        return ImageTensors(Samples.joined(parts).images)
    null = len(FASHION_MNIST_LABELS)
    parts = [replace(part, labels=torch.full((len(part),), null)) if part.labels is None else part for part in parts]
    samples = Samples.joined(parts)
    assert samples.labels is not None
    generator = torch.Generator().manual_seed(0)
    noisy = (torch.rand(len(samples), generator=generator) < label_noise) & (samples.labels < null)
    labels = samples.labels.masked_scatter(noisy, torch.randint(null, (len(samples),), generator=generator))
    return ImageTensors(samples.images, labels, FASHION_MNIST_LABELS)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders that fmnist-diffusion evaluate wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--label_noise", type=float, default=0.0, help="how many of the labels to draw at random instead, from 0 to 1"
    )
    options = parser.parse_args(args)
    try:
        if options.output.exists():
            raise ValueError(f"{options.output} exists already; give another --output.")
        tensors = synthetic_images(options.folders, options.label_noise)
        save_tensors(tensors, options.output)
    except (OSError, ValueError) as error:
        parser.exit(2, f"synthetic.py: error: {error}\n")
    print(f"{len(tensors)} images are in {options.output}.")


if __name__ == "__main__":
    main()
