"""Trains the Fashion-MNIST classifier whose features the evaluation uses: `python training/train_classifier.py`.

The classifier is a RegNet (arXiv 2003.13678) with 1 M parameters, small enough for the package and fast enough to
evaluate samples during training. All options of `transformers.TrainingArguments` are supported.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    HfArgumentParser,
    RegNetConfig,
    RegNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTImageProcessorPil,
)

from batches import augment
from fmnist_diffusion.data import (
    DEFAULT_DATASET,
    FASHION_MNIST_LABELS,
    DataError,
    ImageTensors,
    load_images,
    to_model_input,
)
from fmnist_diffusion.evaluation.classifier import IMAGE_SIZE, to_classifier_input


@dataclass
class DataArguments:
    dataset_name: str = field(default=DEFAULT_DATASET, metadata={"help": "dataset id on the Hub"})
    train_data_dir: str | None = field(
        default=None, metadata={"help": "local images to use instead, such as an IDX folder"}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "use only the first images"})
    num_plain_epochs: int = field(default=3, metadata={"help": "number of final epochs without augmentation"})


class LabeledImages(torch.utils.data.Dataset):
    """Dicts of `pixel_values`, uint8 of shape `(1, 28, 28)`, and `labels`."""

    def __init__(self, tensors: ImageTensors):
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        assert self.tensors.labels is not None
        return {"pixel_values": self.tensors.images[index], "labels": self.tensors.labels[index]}


class ClassifierTrainer(Trainer):
    """Augments and resizes batches. Batches of the final epochs and of the test split are only resized."""

    num_plain_epochs: int

    def _prepare_inputs(self, inputs):
        batch = super()._prepare_inputs(inputs)
        images = to_model_input(batch["pixel_values"])
        assert self.model is not None
        if self.model.training and self.state.epoch < self.args.num_train_epochs - self.num_plain_epochs:
            images = augment(augment(images, "shift"), "flip")
        return batch | {"pixel_values": to_classifier_input(images)}


def make_classifier() -> RegNetForImageClassification:
    labels: dict[int, str] = dict(enumerate(FASHION_MNIST_LABELS))
    config = RegNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[24, 64, 128, 256],
        depths=[1, 1, 1, 1],
        # One group per layer: more groups reduce the accuracy and save little time on a CPU.
        groups_width=256,
        layer_type="x",
        downsample_in_first_stage=False,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    return RegNetForImageClassification(config)


def compute_accuracy(result: Any) -> dict[str, float]:
    return {"accuracy": float((result.predictions.argmax(-1) == result.label_ids).mean())}


def main(args: list[str] | None = None) -> None:
    argument_classes: Any = (DataArguments, TrainingArguments)
    parser = HfArgumentParser(argument_classes, description=__doc__)
    parser.set_defaults(
        output_dir="output/classifier",
        num_train_epochs=17,
        per_device_train_batch_size=128,
        per_device_eval_batch_size=500,
        learning_rate=4e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.05,
        optim="adamw_torch_fused",
        label_smoothing_factor=0.1,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=100,
        dataloader_pin_memory=False,
        report_to="none",
    )
    data, settings = parser.parse_args_into_dataclasses(args)
    source = {"dataset_name": data.dataset_name, "train_data_dir": data.train_data_dir}
    try:
        train = load_images(split="train", max_samples=data.max_train_samples, **source)
        test = load_images(split="test", **source)
    except DataError as error:
        sys.exit(f"train_classifier.py: error: {error}")

    transformers.set_seed(settings.seed)
    model = make_classifier()
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    trainer = ClassifierTrainer(
        model=model,
        args=settings,
        train_dataset=LabeledImages(train),
        eval_dataset=LabeledImages(test),
        compute_metrics=compute_accuracy,
    )
    trainer.num_plain_epochs = data.num_plain_epochs
    trainer.train(resume_from_checkpoint=settings.resume_from_checkpoint)
    accuracy = trainer.evaluate()["eval_accuracy"]

    folder = Path(settings.output_dir) / "classifier"
    trainer.save_model(str(folder))
    (folder / "training_args.bin").unlink()
    # The image-classification pipeline of transformers requires this file; the evaluation does not.
    ViTImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, resample=2, image_mean=[0.5], image_std=[0.5]
    ).save_pretrained(folder)
    names = (
        "num_train_epochs",
        "per_device_train_batch_size",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "weight_decay",
        "optim",
        "label_smoothing_factor",
        "seed",
    )
    metrics = {
        "test_accuracy": accuracy,
        "num_test_images": len(test),
        "num_train_images": len(train),
        "parameters": model.num_parameters(),
        "training": {name: settings.to_dict()[name] for name in names} | {"num_plain_epochs": data.num_plain_epochs},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"Saved the classifier to {folder}. Its test accuracy is {accuracy:.4f}.")


if __name__ == "__main__":
    main()
