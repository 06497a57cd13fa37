"""Trains the Fashion-MNIST classifier whose features the evaluation uses: `python training/train_classifier.py`.

The classifier is a RegNet (arXiv 2003.13678) with 1 M parameters, small enough for the package and fast enough to
evaluate samples during training.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import HfArgumentParser, ViTImageProcessorPil

from fmnist_diffusion.data import DEFAULT_DATASET, load_images
from fmnist_diffusion.data.errors import rename_arguments
from fmnist_diffusion.evaluation import ClassifierTrainingConfig, measure_accuracy, train_classifier
from fmnist_diffusion.evaluation.classifier import IMAGE_SIZE
from fmnist_diffusion.files import describe_write_errors, replace_folder
from fmnist_diffusion.loading import get_device
from output_folder import check_new_folder


@dataclass
class DataArguments:
    """Data, output folder and device."""

    dataset_name: str = field(default=DEFAULT_DATASET, metadata={"help": "dataset id on the Hub"})
    train_data_dir: str | None = field(
        default=None, metadata={"help": "local images to use instead, such as an IDX folder"}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "maximum number of training images, from the start of the dataset"}
    )
    output_dir: str = field(
        default="output/classifier", metadata={"help": "folder in which the new folder classifier is created"}
    )
    device: str = field(
        default="auto", metadata={"help": "torch device, such as cuda; auto uses a GPU if one is available"}
    )


def main(args: list[str] | None = None) -> None:
    argument_classes: Any = (DataArguments, ClassifierTrainingConfig)
    parser = HfArgumentParser(argument_classes, description=__doc__)
    try:
        run(*parser.parse_args_into_dataclasses(args))
    except (OSError, ValueError) as error:
        parser.exit(2, f"train_classifier.py: error: {error}\n")


def run(data: DataArguments, config: ClassifierTrainingConfig) -> None:
    folder, device = Path(data.output_dir) / "classifier", get_device(data.device, "--device")
    check_new_folder(folder)
    with describe_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    source = {"dataset_name": data.dataset_name, "train_data_dir": data.train_data_dir}
    options = {f"`{name}`": f"`--{name}`" for name in source} | {"`max_samples`": "`--max_train_samples`"}
    with rename_arguments(options):
        train = load_images(split="train", resolution=28, channels=1, max_samples=data.max_train_samples, **source)
        test = load_images(split="test", resolution=28, channels=1, **source)
    model = train_classifier(train, config, device)
    accuracy = measure_accuracy(model, test)
    metrics = {
        "test_accuracy": accuracy,
        "num_test_images": len(test),
        "num_train_images": len(train),
        "parameters": model.num_parameters(),
        "training": asdict(config),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    with replace_folder(folder) as temporary:
        model.save_pretrained(temporary)
        # The image-classification pipeline of transformers requires this file; the evaluation does not.
        ViTImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, resample=2, image_mean=[0.5], image_std=[0.5]
        ).save_pretrained(temporary)
        (temporary / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"Saved the classifier to {folder}. Its test accuracy is {accuracy:.4f}.")


if __name__ == "__main__":
    main()
