r"""
Likelihood of images under the probability-flow ODE (arXiv 2011.13456, section 4.3 and appendix D.2).

A noisy image is $x_\theta = \cos(\theta)\,x_0 + \sin(\theta)\,\epsilon$, where $\cos^2(\theta)$ is `alphas_cumprod`.
The angle $\theta$ increases with the timestep, from $\theta_0$ to $\theta_{T-1}$. With the angle as time, the ODE is
$dx/d\theta = v(x, \theta)$, where $v$ is the predicted velocity (arXiv 2202.00512, appendix D). The instantaneous
change of variables gives the density of the images that the ODE generates from Gaussian noise:

$$\log p(x_{\theta_0}) = \log N(x_{\theta_{T-1}}; 0, I) + \int_{\theta_0}^{\theta_{T-1}} \nabla\cdot v\; d\theta$$

**Start of the ODE.** The models are trained for the timesteps 0 to T - 1, so the ODE starts at timestep 0, which has
some noise. The dequantized images are used as samples of timestep 0, although they do not contain this noise.
Fractional timesteps are interpolated linearly in the angle.

**Dequantization.** Uniform noise between -1/2 and 1/2 is added to the uint8 pixels. The mean log-density is then a
lower bound of the log-likelihood of a discrete model (arXiv 1511.01844, section 3.1). This model generates an image
with the ODE, stops at timestep 0 and rounds the pixels to integers. Because it keeps the noise of timestep 0, even a
perfect model needs $\log_2(127.5\sqrt{2\pi}\,s) + \log_2(e)/(6(255s)^2)$ bits for a pixel that it knows, where
$s = \sin(\theta_0)$.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, LCMScheduler
from tqdm.auto import tqdm

from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.data import ImageTensors, to_model_input
from fmnist_diffusion.metadata import weights_hash
from fmnist_diffusion.pipelines.pipeline_fmnist import evaluation_mode
from fmnist_diffusion.sampling import get_max_batch_size, make_generators
from fmnist_diffusion.schedulers import (
    NOISE_SCHEDULE_OPTIONS,
    compute_angles,
    get_noise_scheduler,
    has_unstable_epsilon,
)

from .provenance import get_device_name, get_versions, tensor_hash
from .run_folder import prepare_folder, write_json
from .samples import describe_shape
from .verified_tensors import load_verified, save_verified


DEFAULT_NUM_STEPS = 20
# Each step of the solver evaluates the model and its divergence four times.
STAGES_PER_STEP = 4
# The steps are shorter at low noise levels, where the velocity changes fastest.
TIMESTEP_POWER = 2.0
DEQUANTIZATION = "uniform noise between -1/2 and 1/2 is added to the uint8 pixels; the ODE starts at timestep 0"

Dynamics = Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]


def measure_likelihood(
    pipe: FashionMNISTPipeline,
    images: ImageTensors,
    folder: Path,
    *,
    name: str,
    conditional: bool,
    num_images: int,
    num_steps: int = DEFAULT_NUM_STEPS,
    seed: int = 0,
    batch_size: int = 100,
) -> dict[str, Any]:
    r"""
    Measures the bits per dimension of the first images of a split, and writes `likelihood.json`.

    The results of every batch are saved in `folder`. After an interruption, the same call resumes after the last
    saved batch. A call with a larger `num_images` only measures the additional images.

    Args:
        pipe ([`FashionMNISTPipeline`]): A pipeline with float32 weights; it is not changed.
        images ([`ImageTensors`]): The images of a split.
        folder (`Path`): A new folder, or the folder of an earlier call with the same settings.
        name (`str`): Name of the pipeline in the results.
        conditional (`bool`):
            Whether to measure the likelihood given the labels. If `False`, the unconditional likelihood is measured. A
            class-conditional model then uses its null label.
        num_images (`int`): Number of images to measure, from the start of `images`.
        num_steps (`int`, defaults to 20):
            Number of steps of the fourth-order Runge-Kutta method. Each step requires four function evaluations (NFE)
            and four vector-Jacobian products.
        seed (`int`, defaults to 0):
            Random seed. The dequantization and the trace estimator of image i use the seed `seed + i`.
        batch_size (`int`, defaults to 100): Maximum number of images per batch. It only affects rounding errors.

    Returns:
        `dict`: The content of `likelihood.json`. `bits_per_dim` is the mean over the images, and `standard_error` is
            the standard error of this mean. The bits per dimension are an upper bound on the negative log2-likelihood
            of the uint8 pixels, divided by the number of values per image.

    Raises:
        `ValueError`: If an argument is out of range, if the pipeline does not support the images or has no
            probability-flow ODE, if a likelihood is not finite, or if `folder` contains other files.
        [`WriteError`]: If a file cannot be written.
    """
    if not 2 <= num_images <= len(images):
        raise ValueError(f"`num_images` must be between 2 and {len(images)}, the number of images, got {num_images}.")
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be a positive integer, got {num_steps}.")
    check_likelihood(pipe)
    check_images(pipe, images, conditional)
    labels = images.labels if conditional else None
    noise_scheduler = get_noise_scheduler(pipe)
    settings = {
        "source": name,
        "weights_sha256": weights_hash(pipe),
        "images_sha256": tensor_hash(images.images),
        "labels_sha256": None if labels is None else tensor_hash(labels),
        "conditional": conditional,
        "noise_schedule": {option: pipe.scheduler.config.get(option) for option in NOISE_SCHEDULE_OPTIONS},
        "num_steps": num_steps,
        "timestep_power": TIMESTEP_POWER,
        "seed": seed,
        "device": get_device_name(pipe.unet.device),
        "versions": get_versions(),
    }
    prepare_folder(folder, settings)
    path = folder / "log_likelihoods.safetensors"
    saved = load_verified(path)
    log_likelihoods = torch.empty(0, dtype=torch.float64) if saved is None else saved[0]["log_likelihoods"]

    batch_size = min(batch_size, get_max_batch_size(pipe))
    bar = tqdm(total=num_images, initial=min(len(log_likelihoods), num_images), unit="image", disable=None)
    with evaluation_mode(pipe.unet), bar:
        while (start := len(log_likelihoods)) < num_images:
            batch = slice(start, min(start + batch_size, num_images))
            samples, probes = dequantize(images.images[batch], seed, start)
            class_labels = None if labels is None else labels[batch]
            values = log_likelihood(pipe.unet, noise_scheduler, samples, probes, num_steps, class_labels)
            if not values.isfinite().all():
                raise ValueError("The likelihood is NaN or infinite. Increase `num_steps`, or check the weights.")
            log_likelihoods = torch.cat([log_likelihoods, values])
            save_verified(path, {"log_likelihoods": log_likelihoods})
            bar.update(len(values))

    bits = to_bits_per_dim(log_likelihoods[:num_images], images.images[0].numel())
    results = {
        **settings,
        "num_images": num_images,
        "num_function_evaluations": STAGES_PER_STEP * num_steps,
        "dequantization": DEQUANTIZATION,
        "bits_per_dim": bits.mean().item(),
        "standard_error": bits.std().item() / math.sqrt(num_images),
    }
    write_json(folder / "likelihood.json", results)
    return results


def check_likelihood(pipe: FashionMNISTPipeline) -> None:
    """Raises `ValueError` if the likelihood of this kind of pipeline cannot be measured."""
    if isinstance(pipe.scheduler, LCMScheduler) or isinstance(pipe._original_scheduler, LCMScheduler):
        raise ValueError(
            "A consistency model does not predict the velocity of a probability-flow ODE, so it has no likelihood."
            " Measure the pipeline that it was distilled from."
        )
    if pipe.vae is not None:
        raise ValueError("The likelihood of latent diffusion models is not supported. Measure a different pipeline.")
    if pipe.text_encoder is not None:
        raise ValueError(
            "The likelihood of text-conditional pipelines is not supported. Measure a different pipeline."
        )
    if pipe.prediction_type == "flow_prediction":
        raise ValueError(
            "The likelihood of flow-matching models is not supported. Pass a model with a noise schedule."
        )
    if has_unstable_epsilon(get_noise_scheduler(pipe)):
        raise ValueError(
            "The predicted noise does not determine the velocity if the terminal SNR is almost zero. Use a model with"
            " v-prediction, or with a different noise schedule."
        )


def check_images(pipe: FashionMNISTPipeline, images: ImageTensors, conditional: bool) -> None:
    """Raises `ValueError` if the pipeline does not support the images or, with `conditional`, their labels."""
    shape = tuple(images.images.shape[1:])
    if shape != pipe.image_shape:
        raise ValueError(
            f"The images must be {describe_shape(pipe.image_shape)} like those of the pipeline, got"
            f" {describe_shape(shape)}. Resize or convert them."
        )
    if conditional and (images.labels is None or images.label_names != pipe.label_names):
        raise ValueError(
            f"The images must have the classes of the pipeline ({', '.join(pipe.label_names or ['none'])}), got"
            f" {', '.join(images.label_names or ['none'])}. Pass `conditional=False`."
        )


def dequantize(images: torch.Tensor, seed: int, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Adds uniform noise to uint8 images and samples the probes of the trace estimator.

    Args:
        images (`torch.Tensor`): uint8 images of shape `(batch, channels, height, width)`.
        seed (`int`): Random seed.
        start (`int`): Index of the first image. Image `start + i` uses the seed `seed + start + i`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: float32 samples, scaled like inputs of the model, and float32 probes with
            the values -1 and 1 (Rademacher). Both have the shape of `images`.
    """
    generators = make_generators(seed, len(images), start)
    shape = images.shape[1:]
    noise = torch.stack([torch.rand(shape, generator=generator) for generator in generators])
    probes = torch.stack([torch.randint(0, 2, shape, generator=generator) for generator in generators])
    return to_model_input(images) + (noise - 0.5) / 127.5, probes * 2.0 - 1


def to_bits_per_dim(log_likelihoods: torch.Tensor, num_dims: int) -> torch.Tensor:
    """Converts log-densities of pixels in [-1, 1], in nats, to bits per dimension of pixels in [0, 255]."""
    return math.log2(127.5) - log_likelihoods / (num_dims * math.log(2))


def log_likelihood(
    unet: torch.nn.Module,
    noise_scheduler: DDPMScheduler,
    samples: torch.Tensor,
    probes: torch.Tensor,
    num_steps: int,
    class_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Estimates the log-density of samples at timestep 0 with the probability-flow ODE.

    Args:
        unet (`torch.nn.Module`): The model.
        noise_scheduler ([`DDPMScheduler`]): The noise schedule and prediction type that the model was trained with.
        samples (`torch.Tensor` of shape `(batch, channels, height, width)`): Samples, scaled like inputs of the model.
        probes (`torch.Tensor`): Random vectors of the trace estimator, of the shape of `samples`.
        num_steps (`int`): Number of steps.
        class_labels (`torch.Tensor` of shape `(batch,)`, *optional*):
            Class labels. If omitted, the unconditional likelihood is estimated.

    Returns:
        `torch.Tensor` of shape `(batch,)`: float64 log-densities on the CPU, in nats.
    """
    device = next(unet.parameters()).device
    samples, probes = samples.to(device), probes.to(device)
    class_labels = None if class_labels is None else class_labels.to(device)
    angles = compute_angles(noise_scheduler.alphas_cumprod).numpy()
    timesteps = np.arange(len(angles))
    prediction_type = noise_scheduler.config["prediction_type"]

    def dynamics(noisy: torch.Tensor, angle: float) -> tuple[torch.Tensor, torch.Tensor]:
        timestep = float(np.interp(angle, angles, timesteps))
        with torch.enable_grad():
            noisy = noisy.detach().requires_grad_()
            prediction = unet(noisy, timestep, class_labels=class_labels).sample
            velocity = compute_velocity(noisy, prediction, angle, prediction_type)
            return velocity.detach(), estimate_divergence(velocity, noisy, probes)

    grid = np.interp(timesteps[-1] * np.linspace(0, 1, num_steps + 1) ** TIMESTEP_POWER, timesteps, angles)
    noise, divergence = integrate(dynamics, samples, grid.tolist())
    # Apple GPUs do not support float64.
    prior = -0.5 * (noise.cpu().double().square() + math.log(2 * math.pi)).flatten(1).sum(1)
    return prior + divergence


def compute_velocity(
    noisy: torch.Tensor, prediction: torch.Tensor, angle: float, prediction_type: str
) -> torch.Tensor:
    r"""Converts the output of a model to the velocity $v = \cos(\theta)\,\epsilon - \sin(\theta)\,x_0$."""
    if prediction_type == "epsilon":
        return (prediction - math.sin(angle) * noisy) / math.cos(angle)
    if prediction_type == "sample":
        return (math.cos(angle) * noisy - prediction) / math.sin(angle)
    return prediction


def estimate_divergence(output: torch.Tensor, input: torch.Tensor, probes: torch.Tensor) -> torch.Tensor:
    r"""
    Estimates the trace of the Jacobian $J$ of each image as $p^\top J\,p$ (Skilling-Hutchinson, arXiv 2011.13456,
    equation 40).

    Args:
        output, input (`torch.Tensor` of shape `(batch, ...)`): Output of a function and the input that it depends on.
        probes (`torch.Tensor`): Random vectors $p$ with mean 0 and covariance $I$, of the shape of `input`.

    Returns:
        `torch.Tensor` of shape `(batch,)`: float64 estimates on the CPU.
    """
    (product,) = torch.autograd.grad(output, input, probes)
    return (product * probes).cpu().double().flatten(1).sum(1)


def integrate(dynamics: Dynamics, samples: torch.Tensor, grid: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Solves an ODE with the classical fourth-order Runge-Kutta method and integrates its divergence along the solution.

    Args:
        dynamics (`Callable`):
            Returns the derivative and its divergence, float64 `(batch,)` on the CPU, for samples and a time.
        samples (`torch.Tensor` of shape `(batch, ...)`): The initial values.
        grid (`list[float]`): Times at which the steps start and end.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The final samples, and the integral of the divergence, float64 `(batch,)`
        on the CPU.
    """
    integral = torch.zeros(len(samples), dtype=torch.float64)
    for start, end in itertools.pairwise(grid):
        step = end - start
        velocity_1, divergence_1 = dynamics(samples, start)
        velocity_2, divergence_2 = dynamics(samples + step / 2 * velocity_1, start + step / 2)
        velocity_3, divergence_3 = dynamics(samples + step / 2 * velocity_2, start + step / 2)
        velocity_4, divergence_4 = dynamics(samples + step * velocity_3, end)
        samples = samples + step / 6 * (velocity_1 + 2 * velocity_2 + 2 * velocity_3 + velocity_4)
        integral = integral + step / 6 * (divergence_1 + 2 * divergence_2 + 2 * divergence_3 + divergence_4)
    return samples, integral
