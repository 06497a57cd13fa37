"""Exports the model of a pipeline to an ONNX file with the sampler in its metadata."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fmnist_diffusion import __version__
from fmnist_diffusion.files import write_atomically

from .sampler import describe_sampler


if TYPE_CHECKING:
    from fmnist_diffusion.models import FashionMNISTUNet2DModel
    from fmnist_diffusion.pipelines import FashionMNISTPipeline

METADATA_KEY = "fmnist_diffusion"
MAX_DIFFERENCE = 1e-4
INPUT_NAMES = ("sample", "timestep", "class_labels")


class ExportError(RuntimeError):
    """Raised if the predictions of an exported model differ too much from those of PyTorch."""


class ModelOutput(nn.Module):
    """Returns the prediction of a model as a tensor and takes positional arguments, as the ONNX exporter requires."""

    def __init__(self, unet: "FashionMNISTUNet2DModel"):
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.unet(sample, timestep, class_labels, return_dict=False)[0]


def export_onnx(
    pipe: "FashionMNISTPipeline",
    path: Path,
    *,
    name: str,
    num_inference_steps: Sequence[int] | None = None,
    license: str | None = None,
) -> float:
    """
    Writes one ONNX file with the model in float32 and the sampler, and compares its predictions with PyTorch.

    `README.md` in this folder describes the inputs and the metadata of the file.

    Args:
        pipe ([`FashionMNISTPipeline`]): The pipeline, with its model in float32 and in evaluation mode on the CPU.
        path (`Path`): The new file.
        name (`str`): Name of the model for the metadata.
        num_inference_steps (`Sequence[int]`, *optional*):
            Numbers of denoising steps to describe, starting with the default of the file. Defaults to the number of
            the pipeline.
        license (`str`, *optional*): License of the weights, as a license identifier of the Hub.

    Returns:
        `float`: The maximum absolute difference between the predictions.

    Raises:
        `ExportError`: If the difference exceeds 1e-4. In this case, no file is written.
        `ValueError`: If the pipeline is text-conditional or has an autoencoder, if the scheduler does not support the
            number of steps, or if its steps are not linear.
        `WriteError`: If the file cannot be written.
    """
    if pipe.prompt_embeds_dim is not None:
        raise ValueError("A text-conditional pipeline cannot be exported to ONNX. Export a different pipeline.")
    if pipe.vae is not None:
        raise ValueError("A latent diffusion pipeline cannot be exported to ONNX. Export a different pipeline.")
    metadata = make_metadata(pipe, name, num_inference_steps or [pipe.config.num_inference_steps], license)
    model = ModelOutput(pipe.unet).eval()
    program: Any = convert_to_onnx(model, make_inputs(pipe, 2))
    program.model.metadata_props[METADATA_KEY] = json.dumps(metadata)
    with write_atomically(path) as temporary:
        program.save(temporary, external_data=False)
        difference = compare(model, [make_inputs(pipe, batch_size) for batch_size in (1, 3)], temporary)
        # This condition is also true for NaN.
        if not difference <= MAX_DIFFERENCE:
            raise ExportError(
                f"The predictions of the exported model differ from PyTorch by up to {difference:.1e}, but at most"
                f" {MAX_DIFFERENCE:.0e} is allowed, so {path} was not written. Check the weights for large values."
            )
    return difference


def make_metadata(
    pipe: "FashionMNISTPipeline", name: str, num_inference_steps: Sequence[int], license: str | None
) -> dict[str, Any]:
    config = pipe.unet.config
    return {
        "name": name,
        "source": f"fmnist-diffusion {__version__}",
        "license": license,
        "image_shape": list(pipe.latent_shape),
        "prediction_type": pipe.prediction_type,
        # The class names may belong to the classifier, which is not exported.
        "label_names": list(pipe.label_names) if pipe.is_conditional and pipe.label_names else None,
        "null_label": config.num_class_embeds,
        "num_inference_steps": num_inference_steps[0],
        "samplers": {str(steps): describe_sampler(pipe, steps) for steps in num_inference_steps},
    }


def make_inputs(pipe: "FashionMNISTPipeline", batch_size: int) -> tuple[torch.Tensor, ...]:
    """Returns a random sample, timesteps and, for a class-conditional model, class labels."""
    num_class_embeds = pipe.unet.config.num_class_embeds
    generator = torch.Generator().manual_seed(batch_size)
    sample = torch.randn(batch_size, *pipe.latent_shape, generator=generator)
    timestep = torch.rand(batch_size, generator=generator) * (pipe.scheduler.config.num_train_timesteps - 1)
    if num_class_embeds is None:
        return sample, timestep
    return sample, timestep, torch.randint(num_class_embeds + 1, (batch_size,), generator=generator)


def convert_to_onnx(model: ModelOutput, inputs: tuple[torch.Tensor, ...]) -> torch.onnx.ONNXProgram:
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

    with warnings.catch_warnings():
        # The exporter uses deprecated functions of torch, and warns that the inputs share the axis `batch`.
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            model,
            inputs,
            input_names=INPUT_NAMES[: len(inputs)],
            output_names=["prediction"],
            dynamic_shapes=tuple({0: "batch"} for _ in inputs),
            dynamo=True,
            verbose=False,
        )
    # The exporter stores stack traces with local paths in the metadata of the nodes.
    ClearMetadataAndDocStringPass()(program.model)
    return program


@torch.no_grad()
def compare(model: ModelOutput, batches: Sequence[tuple[torch.Tensor, ...]], path: Path) -> float:
    """Returns the maximum absolute difference between the predictions of PyTorch and of ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for inputs in batches:
        feeds = {name: tensor.numpy() for name, tensor in zip(INPUT_NAMES, inputs, strict=False)}
        (prediction,) = session.run(None, feeds)
        differences.append((torch.from_numpy(prediction) - model(*inputs)).abs().max())
    # Unlike `max`, this returns NaN if any of the differences is NaN.
    return float(torch.stack(differences).max())
