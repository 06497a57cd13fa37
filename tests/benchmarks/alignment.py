"""Measures how well the images of a text-to-image pipeline match prompts that do not occur in training.

    python tests/benchmarks/alignment.py path/to/pipeline --output alignment.json

The prompts combine classes and attributes of real test images. The results are the class accuracy and, for each
attribute, the fraction of images on the requested side of the median of the training images of the class. `--real`
measures the real images that the prompts describe instead, which gives an upper bound.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fmnist_diffusion import load_pipeline
from fmnist_diffusion.captions import Prompt, find_directions, make_test_prompts
from fmnist_diffusion.data import load_images
from fmnist_diffusion.evaluation import Classifier, measure_alignment
from fmnist_diffusion.sampling import Samples, SamplingConfig, generate


def generate_images(options: argparse.Namespace, prompts: list[Prompt]) -> torch.Tensor:
    """Returns an image for each prompt, uint8 `(num_prompts, 1, 28, 28)`; image i uses the seed `seed + i`."""
    pipe = load_pipeline(options.pipeline).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    config = SamplingConfig(
        num_inference_steps=options.num_inference_steps, guidance_scale=options.guidance_scale, seed=options.seed
    )
    texts = [prompt.text for prompt in prompts]
    batches = generate(pipe, config, len(texts), prompts=texts, batch_size=options.batch_size)
    bar = tqdm(batches, total=math.ceil(len(texts) / options.batch_size))
    return Samples.concatenate(list(bar)).images


def print_table(metrics: dict[str, Any]) -> None:
    counts = f"{metrics['num_prompts']} prompts ({metrics['num_distinct_prompts']} distinct)"
    print(f"class accuracy of {counts}: {metrics['class_accuracy']:.1%}\n")
    print("| attribute | class | prompts | requested side |")
    print("|---|---|---|---|")
    for name, groups in metrics["attributes"].items():
        for group, result in groups.items():
            print(f"| {name} | {group} | {result['num_prompts']} | {result['accuracy']:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("pipeline", nargs="?", help="bundled checkpoint, local folder or Hub repository id")
    source.add_argument("--real", action="store_true", help="measure real images instead of generated ones")
    parser.add_argument("--num-prompts", type=int, default=5000, help="number of prompts (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--num-inference-steps", type=int, help="number of steps (default: that of the pipeline)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=100, help="images per batch (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="device of the networks (default: %(default)s)")
    parser.add_argument("--train-data-dir", help="local copy of Fashion-MNIST (default: the dataset on the Hub)")
    parser.add_argument("--output", type=Path, help="JSON file for the results and the prompts")
    options = parser.parse_args()
    real = load_images(split="test", train_data_dir=options.train_data_dir)
    directions = find_directions(real.images, real.labels)
    generator = torch.Generator().manual_seed(options.seed)
    prompts = make_test_prompts(real.labels, directions, options.num_prompts, generator)
    indices = [prompt.index for prompt in prompts]
    images = real.images[indices] if options.real else generate_images(options, prompts)
    metrics = measure_alignment(images, prompts, Classifier(options.device))
    print_table(metrics)
    if options.output is not None:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        contents = {"settings": settings, "metrics": metrics, "prompts": [vars(prompt) for prompt in prompts]}
        options.output.write_text(json.dumps(contents, indent=2) + "\n")


if __name__ == "__main__":
    main()
