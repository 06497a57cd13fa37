"""Creates model cards."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from diffusers import DDPMScheduler
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fmnist_diffusion.data import DEFAULT_DATASET
from fmnist_diffusion.pipelines import FashionMNISTPipeline

from .metadata import flatten, format_number, measured_metrics


TEMPLATE = Path(__file__).parents[1] / "templates" / "model_card.md"
TASK = "unconditional-image-generation"
# training/train.py accepts these options of the noise schedule as --scheduler.*.
SCHEDULE_OPTIONS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
)


def make_model_card(
    pipe: FashionMNISTPipeline,
    repo_id: str,
    train_config: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    images: list[str] | None = None,
    license: str | None = None,
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
    """
    images = images or []
    settings = dict(flatten(train_config or {}))
    dataset = get_dataset(settings)
    fashion_mnist = dataset == DEFAULT_DATASET
    if license is None and fashion_mnist:
        license = "mit"
    measured = measured_metrics(metrics) if metrics else []
    model_name = repo_id.rpartition("/")[2]
    config = pipe.unet.config
    card_data = ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag=TASK,
        datasets=[dataset] if dataset else None,
        tags=["diffusers", "ddpm", "image-generation", *(["fashion-mnist"] if fashion_mnist else [])],
        model_name=model_name,
        widget=[{"text": Path(name).stem, "output": {"url": f"images/{quote(name)}"}} for name in images] or None,
        metrics=[metric.type for metric in measured] or None,
        eval_results=[
            EvalResult(
                task_type=TASK,
                dataset_type=DEFAULT_DATASET,
                dataset_name="Fashion-MNIST",
                metric_type=metric.type,
                metric_name=f"{metric.title}, {metrics['num_samples']:,} generated images",
                metric_value=float(f"{metric.value:.5g}"),
            )
            for metric in measured
        ]
        if metrics
        else None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        model_name=model_name,
        repo_id=repo_id,
        model_class=type(pipe.unet).__name__,
        channels=config["out_channels"],
        size=format_size(config["sample_size"]),
        options={
            name: format_cell(value)
            for name, value in config.items()
            if not name.startswith("_") and value is not None
        },
        label_names=pipe.label_names,
        # A JSON string is also a valid Python string.
        label=json.dumps(pipe.label_names[-1], ensure_ascii=False) if pipe.label_names else None,
        parameters=pipe.unet.num_parameters(),
        dtype=str(pipe.unet.dtype).removeprefix("torch."),
        scheduler=type(pipe.scheduler).__name__,
        num_inference_steps=pipe.config["num_inference_steps"],
        schedule_options="".join(f" \\\n    {option}" for option in get_schedule_options(pipe)),
        dataset=dataset,
        fashion_mnist=fashion_mnist,
        license=license,
        grid="samples.png" if "samples.png" in images else next(iter(images), None),
        settings={name: format_cell(value) for name, value in settings.items() if value is not None},
        metrics=metrics,
        measured=measured,
        format_number=format_number,
    )


def get_dataset(settings: dict[str, Any]) -> str | None:
    """Returns the Hub dataset that the model was trained on, or `None` if it was trained on local files."""
    name = settings.get("data.dataset_name")
    on_hub = isinstance(name, str) and "/" in name and not settings.get("data.train_data_dir")
    return name if on_hub else None


def get_schedule_options(pipe: FashionMNISTPipeline) -> list[str]:
    """Returns the options of `training/train.py` that select the noise schedule of `pipe` for fine-tuning."""
    noise_scheduler: Any = DDPMScheduler.from_config(pipe.scheduler.config)
    config, defaults = noise_scheduler.config, DDPMScheduler().config
    return [f"--scheduler.{name}={config[name]}" for name in SCHEDULE_OPTIONS if config[name] != defaults[name]]


def format_size(sample_size: int | list[int] | tuple[int, ...]) -> str:
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return f"{height}x{width}"


def format_cell(value: Any) -> str:
    """Formats `value` for a Markdown table and escapes the special characters of Markdown and HTML."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"([\\`*|\[\]<>])", r"\\\1", " ".join(text.split()))
