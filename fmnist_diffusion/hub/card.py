"""Creates model cards."""

import json
import re
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fmnist_diffusion.data import DEFAULT_DATASET
from fmnist_diffusion.hub_client import is_repo_id
from fmnist_diffusion.metadata import (
    count_parameters,
    flatten,
    format_count,
    format_number,
    get_dataset,
    get_license,
    measured_metrics,
)
from fmnist_diffusion.pipelines import FashionMNISTPipeline


TEMPLATE = Path(__file__).parents[1] / "templates" / "model_card.md"


def make_model_card(
    pipe: FashionMNISTPipeline,
    repo_id: str,
    train_config: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    images: list[str] | None = None,
    license: str | None = None,
    other_metrics: Sequence[dict[str, Any]] = (),
) -> ModelCard:
    """
    Creates the model card of a pipeline.

    Args:
        pipe ([`FashionMNISTPipeline`]): The pipeline.
        repo_id (`str`): Repository id of the pipeline, `owner/name`.
        train_config (`dict`, *optional*): Content of `train_config.json`.
        metrics (`dict`, *optional*): Content of `metrics.json`, which also defines the evaluation results of the card.
        images (`list[str]`, *optional*): Names of the files in `images/`.
        license (`str`, *optional*): See [`push_pipeline`].
        other_metrics (`Sequence[dict]`, defaults to `()`):
            Contents of `metrics-1-step.json` and similar files, with other numbers of steps.
    """
    images, metrics = images or [], metrics or {}
    settings = dict(flatten(train_config or {}))
    dataset = get_dataset(train_config)
    fashion_mnist = dataset == DEFAULT_DATASET
    if license is None:
        license = get_license(train_config)
    measured = measured_metrics(metrics) if metrics else []
    model_name = repo_id.rpartition("/")[2]
    dataset_type, dataset_name = get_reference(metrics)
    config, parameters = pipe.unet.config, count_parameters(pipe)
    channels, height, width = pipe.image_shape
    task = "unconditional-image-generation" if pipe.text_encoder is None else "text-to-image"
    flow_matching = pipe.prediction_type == "flow_prediction"
    card_data = ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag=task,
        datasets=[dataset] if dataset else None,
        tags=[
            "diffusers",
            "flow-matching" if flow_matching else "ddpm",
            "image-generation",
            *(["fashion-mnist"] if fashion_mnist else []),
        ],
        model_name=model_name,
        widget=[{"text": Path(name).stem, "output": {"url": f"images/{quote(name)}"}} for name in images] or None,
        metrics=[metric.type for metric in measured] or None,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=dataset_type,
                dataset_name=dataset_name,
                metric_type=metric.type,
                metric_name=f"{metric.title}, {metrics['num_samples']:,} generated images",
                metric_value=float(f"{metric.value:.5g}"),
            )
            for metric in measured
        ]
        or None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        model_name=model_name,
        repo_id=repo_id,
        channels=channels,
        size=f"{height}x{width}",
        options={
            format_code(name): format_cell(value)
            for name, value in config.items()
            if not name.startswith("_") and value is not None
        },
        label_names=pipe.label_names,
        text=pipe.text_encoder is not None,
        flow_matching=flow_matching,
        conditional=pipe.is_conditional,
        classifier=pipe.classifier is not None,
        arguments=get_example_arguments(pipe),
        parameters=parameters,
        components={name: type(pipe.components[name]).__name__ for name in parameters},
        dtype=str(pipe.unet.dtype).removeprefix("torch."),
        scheduler=type(pipe.scheduler).__name__,
        num_inference_steps=pipe.config["num_inference_steps"],
        dataset=dataset,
        fashion_mnist=fashion_mnist,
        license=license,
        grid="samples.png" if "samples.png" in images else next(iter(images), None),
        combined="combined" in (train_config or {}),
        settings={format_code(name): format_cell(value) for name, value in settings.items() if value is not None},
        metrics=metrics,
        reference=format_cell(dataset_name) if "reference" in metrics else None,
        protocol=format_cell(metrics.get("protocol")),
        sampler=format_code(metrics.get("scheduler") or ""),
        measured=measured,
        columns=[
            (
                format_count(other["num_inference_steps"], "step"),
                {metric.title: format_number(metric.value) for metric in measured_metrics(other)},
            )
            for other in sorted(
                (content for content in other_metrics if content.get("num_inference_steps")),
                key=itemgetter("num_inference_steps"),
            )
        ],
        format_count=format_count,
        format_number=format_number,
    )


def get_example_arguments(pipe: FashionMNISTPipeline) -> str:
    """Returns the arguments of an example call of the pipeline as Python source code, such as `"Bag"`."""
    if pipe.text_encoder is not None:
        return 'prompt="a photo of a bag"'
    arguments = [format_label(pipe.label_names[-1])] if pipe.label_names else []
    if pipe.label_names and not pipe.is_conditional:
        arguments.append("classifier_guidance_scale=1.0")
    return ", ".join(arguments)


def get_reference(metrics: dict[str, Any]) -> tuple[str, str]:
    """Returns the Hub id, or a placeholder, and the name of the dataset that the metrics refer to."""
    reference = metrics.get("reference")
    if not isinstance(reference, dict):
        return DEFAULT_DATASET, "Fashion-MNIST"
    name = str(reference.get("name"))
    return name if is_repo_id(name) else "custom", name


def format_cell(value: Any) -> str:
    """Formats `value` for a Markdown table and escapes the special characters of Markdown and HTML."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"([\\`*|\[\]<>])", r"\\\1", replace_surrogates(" ".join(text.split())))


def format_code(name: Any) -> str:
    """Formats a name for inline code in a Markdown table, where characters cannot be escaped."""
    return replace_surrogates(re.sub(r"[`|\s]+", " ", str(name)))


def format_label(label: str) -> str:
    """Formats a class name as a Python string."""
    # A JSON string is also a valid Python string.
    return json.dumps(replace_surrogates(label), ensure_ascii=False)


def replace_surrogates(text: str) -> str:
    """Replaces lone surrogates, which JSON allows but UTF-8 does not."""
    return text.encode("utf-8", "replace").decode("utf-8")
