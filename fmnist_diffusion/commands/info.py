"""The command `fmnist-diffusion info`."""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import import_libraries
from .options import get_existing_folder


if TYPE_CHECKING:
    from fmnist_diffusion import FashionMNISTPipeline


def info(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help="a bundled checkpoint or a local folder")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Describe a pipeline: its model, weights, class names, scheduler, training settings and metrics."""
    import_libraries()

    from fmnist_diffusion.loading import load_pipeline

    folder = get_existing_folder(pipeline)
    facts = describe(load_pipeline(folder.resolve()), folder)
    typer.echo(json.dumps(facts, indent=2) if as_json else "\n".join(format_facts(facts)))


def describe(pipe: "FashionMNISTPipeline", folder: Path) -> dict[str, Any]:
    """
    Returns a JSON-serializable description of a pipeline.

    Args:
        pipe ([`FashionMNISTPipeline`]): The pipeline.
        folder (`Path`): The folder of the pipeline.
    """
    from fmnist_diffusion.metadata import count_parameters, read_metrics, read_train_config, weights_dtypes

    parameters = count_parameters(pipe)
    weights = [path for name in parameters for path in sorted((folder / name).glob("*.safetensors"))]
    return {
        "folder": str(folder),
        "model": type(pipe.unet).__name__,
        "text_encoder": pipe.text_encoder and describe_text_encoder(pipe),
        "parameters": parameters,
        "vae": pipe.vae and describe_vae(pipe),
        "config": get_changed_options(pipe.unet),
        "weights": {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "dtype": ", ".join(sorted(weights_dtypes(path))),
            }
            for path in weights
        },
        "labels": pipe.label_names,
        "scheduler": type(pipe.scheduler).__name__,
        "num_train_timesteps": pipe.scheduler.config["num_train_timesteps"],
        "prediction_type": pipe.prediction_type,
        "scheduler_config": get_changed_options(pipe.scheduler),
        "num_inference_steps": pipe.config["num_inference_steps"],
        "timestep_power": pipe.config["timestep_power"],
        "train_config": read_train_config(folder / "train_config.json"),
        "metrics": read_metrics(folder / "metrics.json"),
    }


def describe_text_encoder(pipe: "FashionMNISTPipeline") -> dict[str, Any]:
    return {"model": type(pipe.text_encoder).__name__, "tokens": len(pipe.tokenizer)}


def describe_vae(pipe: "FashionMNISTPipeline") -> dict[str, Any]:
    return {
        "model": type(pipe.vae).__name__,
        "latent_shape": list(pipe.latent_shape),
        "scaling_factor": pipe.vae.config["scaling_factor"],
    }


def get_changed_options(component: Any) -> dict[str, Any]:
    """Returns the options of a model or scheduler that differ from the defaults of its class."""

    def to_json(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    parameters = inspect.signature(type(component)).parameters
    options = {name: to_json(value) for name, value in component.config.items() if name in parameters}
    return {name: value for name, value in options.items() if value != to_json(parameters[name].default)}


def format_facts(facts: dict[str, Any]) -> list[str]:
    from fmnist_diffusion.metadata import format_count, format_number

    metrics = facts["metrics"]
    steps = format_count(facts["num_inference_steps"], "step")
    if facts["timestep_power"] is not None:
        steps += f", timestep power {facts['timestep_power']}"
    text, vae, parameters = facts["text_encoder"], facts["vae"], facts["parameters"]
    parts = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
    return [
        f"folder      {facts['folder']}",
        f"model       {facts['model']}",
        *format_section("  non-default options", facts["config"]),
        *([f"text        {text['model']}, {text['tokens']:,} tokens"] if text else []),
        *([f"latents     {vae['model']}, {'x'.join(map(str, vae['latent_shape']))}"] if vae else []),
        f"parameters  {sum(parameters.values()):,} ({parts})",
        *(
            f"weights     {name}, {file['bytes'] / 1e6:.1f} MB, {file['dtype']}"
            for name, file in facts["weights"].items()
        ),
        f"labels      {', '.join(facts['labels'] or ['none'])}",
        f"scheduler   {facts['scheduler']}, {format_count(facts['num_train_timesteps'], 'timestep')},"
        f" {facts['prediction_type']}",
        *format_section("  non-default options", facts["scheduler_config"]),
        f"sampling    {steps}",
        *format_section("training    train_config.json", facts["train_config"] or {}),
        *(format_section("evaluation  metrics.json", metrics["metrics"], format_number) if metrics else []),
    ]


def format_section(title: str, values: Mapping[str, Any], format_float: Callable[[float], str] = str) -> list[str]:
    """
    Formats nested values as a title and one indented line per value.

    Args:
        title (`str`): First line.
        values (`Mapping`): Nested values. The result is empty if there are none.
        format_float (`Callable`, defaults to `str`): Function that formats floating-point numbers.
    """
    from fmnist_diffusion.metadata import flatten

    def format_value(value: Any) -> str:
        if isinstance(value, float):
            return format_float(value)
        if isinstance(value, list):
            return ", ".join(map(format_value, value))
        return str(value)

    rows = [(name, format_value(value)) for name, value in flatten(values)]
    width = max((len(name) for name, _ in rows), default=0)
    return [title, *(f"    {name:{width}}  {value}" for name, value in rows)] if rows else []
