"""Loss of one batch: noise, timesteps, target and weights."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr

from config import ObjectiveConfig
from fmnist_diffusion.objectives import TimestepSampler, drop_labels, min_snr_weights, per_image_loss
from noise_schedule import NoiseScheduler


@dataclass
class NoisyBatch:
    """Model inputs, target and loss weights of one batch.

    Attributes:
        images: Noisy images, float32 `(B, C, H, W)`.
        timesteps: int64 `(B,)`, or float32 in flow matching.
        class_labels: int64 `(B,)`, or token ids `(B, L)`, or `None` for an unconditional model.
        target: float32 `(B, C, H, W)`.
        weights: Loss weights, float32 `(B,)`.
    """

    images: torch.Tensor
    timesteps: torch.Tensor
    class_labels: torch.Tensor | None
    target: torch.Tensor
    weights: torch.Tensor


@dataclass
class BatchLoss:
    """Loss of one batch.

    Attributes:
        total: The loss to minimize, a scalar.
        per_image: Unweighted loss of each image, `(B,)`.
        terms: The scalars that add up to `total`, in the order of `term_names`; empty if the loss has only
            one term.
    """

    total: torch.Tensor
    per_image: torch.Tensor
    terms: tuple[torch.Tensor, ...] = ()


class DiffusionLoss:
    r"""Loss of a diffusion model, or of a flow-matching model if `noise_scheduler` uses flow matching.

    In flow matching, the noisy images are $x_\sigma = (1 - \sigma)x_0 + \sigma\epsilon$, the target is
    $\epsilon - x_0$, and the timesteps are $\sigma$ times `num_train_timesteps` (arXiv 2209.03003, equation 1; arXiv
    2403.03206, equation 13). The shift $s$ of the scheduler changes the sampled noise levels from $\sigma$ to
    $s\sigma / (1 + (s - 1)\sigma)$ (arXiv 2403.03206, equation 23).

    Args:
        config: The objective.
        noise_scheduler: The noise schedule and the prediction type.
        null_label: The null label, or its token ids `(L,)`; `None` for an unconditional model.
        device: Device of the batches.
        process_index, num_processes: Index of this process and number of processes that share each batch.

    Attributes:
        term_names: Names of `BatchLoss.terms`; empty if the loss has only one term.
    """

    term_names: tuple[str, ...] = ()

    def __init__(
        self,
        config: ObjectiveConfig,
        noise_scheduler: NoiseScheduler,
        null_label: int | torch.Tensor | None,
        device: torch.device,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.config, self.null_label = config, null_label
        self.process_index, self.num_processes = process_index, num_processes
        # The type annotations of diffusers are stricter than its schedulers, which accept a tensor of timesteps.
        self.noise_scheduler: Any = noise_scheduler
        self.timestep_sampler = TimestepSampler(
            config.timestep_sampling,
            noise_scheduler.config["num_train_timesteps"],
            device,
            config.logit_mean,
            config.logit_std,
            config.mode_scale,
        )
        self.sigmas = None
        if isinstance(noise_scheduler, FlowMatchEulerDiscreteScheduler):
            # diffusers stores the noise levels in descending order.
            self.sigmas = self.noise_scheduler.sigmas.flip(0).to(device)  # (T,)

    def prepare_batch(
        self, images: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator
    ) -> NoisyBatch:
        """Samples timesteps and noise for clean `images`, `(B, C, H, W)`, and drops some of the `labels`.

        All processes must pass generators with the same state. Each process samples random numbers for the images of
        all processes and uses its own part, so that the result does not depend on the number of processes.
        """
        index, count = self.process_index, self.num_processes
        class_labels = self.select_labels(labels, generator)
        timesteps, weights = self.timestep_sampler.sample(count * len(images), generator)
        timesteps, weights = timesteps.view(count, -1)[index], weights.view(count, -1)[index]
        noise = self.sample_noise(images, generator)
        if self.sigmas is not None:
            sigmas = self.sigmas[timesteps]
            weights = weights * compute_loss_weighting_for_sd3(self.config.weighting_scheme, sigmas)
            noisy_images = torch.lerp(images, noise, sigmas.view(-1, 1, 1, 1))
            return NoisyBatch(noisy_images, self._get_flow_timesteps(sigmas), class_labels, noise - images, weights)
        prediction_type = self.noise_scheduler.config["prediction_type"]
        if prediction_type == "v_prediction":
            target = self.noise_scheduler.get_velocity(images, noise, timesteps)
        else:
            target = noise if prediction_type == "epsilon" else images
        if self.config.snr_gamma is not None:
            snr = compute_snr(self.noise_scheduler, timesteps)
            weights = weights * min_snr_weights(snr, self.config.snr_gamma, prediction_type)
        noisy_images = self.noise_scheduler.add_noise(images, noise, timesteps)
        return NoisyBatch(noisy_images, timesteps, class_labels, target, weights)

    def select_labels(self, labels: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor | None:
        """Returns labels `(B,)` or token ids `(B, L)`, some of them dropped; `None` for an unconditional model."""
        if self.null_label is None or labels is None:
            return None
        labels = labels.expand(self.num_processes, *labels.shape)
        dropped = drop_labels(labels, self.config.label_dropout, self.null_label, generator)
        return dropped[self.process_index]

    def sample_noise(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Samples noise with the shape of `images`."""
        shape = (self.num_processes, *images.shape)
        return torch.randn(shape, generator=generator, device=images.device)[self.process_index]

    def update_timestep_sampler(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Records the unweighted losses `(B,)` of the timesteps `(B,)` of all processes for importance sampling."""
        if self.sigmas is not None:
            timesteps = torch.searchsorted(self._get_flow_timesteps(self.sigmas), timesteps)
        self.timestep_sampler.update(timesteps, losses)

    def _get_flow_timesteps(self, sigmas: torch.Tensor) -> torch.Tensor:
        return sigmas * self.noise_scheduler.config["num_train_timesteps"]

    def __call__(self, prediction: torch.Tensor, batch: NoisyBatch) -> BatchLoss:
        """Returns the weighted loss of the batch and the unweighted loss of each image."""
        losses = per_image_loss(prediction.float(), batch.target, self.config.loss_type)
        return BatchLoss((losses * batch.weights).mean(), losses)
