"""Loss of consistency distillation and consistency tuning."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler

from config import DistillationConfig, ObjectiveConfig
from consistency import (
    compute_angles,
    ddim_step,
    predict_images,
    pseudo_huber_loss,
    rotate,
    sample_gaps,
    sample_segments,
)
from fmnist_diffusion.sampling import NEAR_ZERO_SNR
from losses import DiffusionLoss, NoisyBatch


@dataclass
class ConsistencyBatch(NoisyBatch):
    """Model inputs of one batch. `target` contains the same images at earlier timesteps.

    Attributes:
        target_timesteps: Timesteps of `target`, int64 `(B,)`; -1 is the clean image.
    """

    target_timesteps: torch.Tensor


class ConsistencyLoss(DiffusionLoss):
    r"""Loss of a consistency function $f$ between two timesteps $t > r$ of the same image.

    - Consistency distillation (arXiv 2303.01469, algorithm 2): the teacher takes two DDIM steps from $x_t$ to $x_r$.
      The loss compares $f(x_t, t)$ with $f(x_r, r)$ of the EMA weights, clamped to [-1, 1].
    - Consistency tuning (arXiv 2406.14548, section 3): $x_t$ and $x_r$ have the same noise. The loss compares
      $f(x_t, t)$ with $f(x_r, r)$ of the current weights. Its weight is inversely proportional to the gap between the
      angles of $t$ and $r$.

    Args:
        objective: The objective, of which only `label_dropout` is used.
        distillation: Method and number of segments.
        noise_scheduler: The noise schedule and the prediction type.
        num_class_embeds: Number of classes, which is also the null label; `None` for an unconditional model.
        device: Device of the batches.
        target_unet: Model with the weights that compute the target.
        teacher: The teacher; only used by consistency distillation.
        autocast: Returns the context in which `target_unet` and `teacher` run.
        process_index, num_processes: Index of this process and number of processes that share each batch.

    Raises:
        `ValueError`: If the model predicts the noise and the noise schedule ends with pure noise.
    """

    def __init__(
        self,
        objective: ObjectiveConfig,
        distillation: DistillationConfig,
        noise_scheduler: DDPMScheduler,
        num_class_embeds: int | None,
        device: torch.device,
        target_unet: torch.nn.Module,
        teacher: torch.nn.Module | None,
        autocast: Callable[..., AbstractContextManager],
        process_index: int = 0,
        num_processes: int = 1,
    ):
        super().__init__(objective, noise_scheduler, num_class_embeds, device, process_index, num_processes)
        alphas_cumprod = noise_scheduler.alphas_cumprod
        self.prediction_type: Any = noise_scheduler.config["prediction_type"]
        if self.prediction_type == "epsilon" and float(alphas_cumprod[-1]) < NEAR_ZERO_SNR:
            raise ValueError(
                "The model predicts the noise, which does not determine the image at the last timestep of this noise"
                " schedule. Distill a model with v_prediction or sample prediction."
            )
        self.num_segments, self.target_unet, self.teacher = distillation.num_segments, target_unet, teacher
        self.autocast = autocast
        self.angles = compute_angles(alphas_cumprod).to(device)

    def add_noise(
        self, images: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator, progress: float = 0.0
    ) -> ConsistencyBatch:
        """Samples pairs of timesteps and noise for clean `images`, `(B, C, H, W)`, and drops some of the `labels`.

        See [`DiffusionLoss.add_noise`]. `progress` selects the number of segments.
        """
        class_labels = self.select_labels(labels, generator)
        count = self.num_processes * len(images)
        num_segments = self.num_segments[int(progress * len(self.num_segments))]
        if self.teacher is None:
            pairs = sample_gaps(count, num_segments, self.angles, generator)
        else:
            pairs = sample_segments(count, num_segments, len(self.angles) - 1, generator)
        later, earlier = (timesteps.view(self.num_processes, -1)[self.process_index] for timesteps in pairs)
        noise = self.sample_noise(images, generator)
        noisy_images = rotate(images, noise, self._get_angles(later))
        if self.teacher is None:
            gaps = self._get_angles(later) - self._get_angles(earlier)
            # Relative to the largest gap, so that the norm of the gradient does not depend on the number of segments.
            weights = self.angles[-1] / num_segments / gaps
            target = rotate(images, noise, self._get_angles(earlier))
        else:
            weights = torch.ones(len(images), device=images.device)
            # The segment may have only one timestep. The first step then does not change the images.
            middle = (later + earlier + 1) // 2
            target = self._take_teacher_step(noisy_images, later, middle, class_labels)
            target = self._take_teacher_step(target, middle, earlier, class_labels)
        return ConsistencyBatch(noisy_images, later, class_labels, target, weights, earlier)

    def __call__(self, prediction: torch.Tensor, batch: NoisyBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the weighted loss of the batch, a scalar, and the unweighted loss of each image, `(B,)`."""
        assert isinstance(batch, ConsistencyBatch)
        angles = self._get_angles(batch.timesteps)
        images = predict_images(batch.images, prediction.float(), angles, self.prediction_type)
        target = self._predict_images(self.target_unet, batch.target, batch.target_timesteps, batch.class_labels)
        if self.teacher is not None:
            target = target.clamp(-1, 1)
        losses = pseudo_huber_loss(images, target)
        return (losses * batch.weights).mean(), losses

    def _get_angles(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self.angles[timesteps + 1]

    @torch.no_grad()
    def _predict_images(
        self, unet: torch.nn.Module, images: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns the clean images that `unet` predicts. Images at timestep -1 are already clean."""
        with self.autocast():
            prediction = unet(images, timesteps.clamp(min=0), class_labels).sample.float()
        predicted = predict_images(images, prediction, self._get_angles(timesteps), self.prediction_type)
        return torch.where((timesteps < 0).view(-1, 1, 1, 1), images, predicted)

    def _take_teacher_step(
        self,
        images: torch.Tensor,
        timesteps: torch.Tensor,
        next_timesteps: torch.Tensor,
        class_labels: torch.Tensor | None,
    ) -> torch.Tensor:
        assert self.teacher is not None
        predicted = self._predict_images(self.teacher, images, timesteps, class_labels).clamp(-1, 1)
        return ddim_step(images, predicted, self._get_angles(timesteps), self._get_angles(next_timesteps))
