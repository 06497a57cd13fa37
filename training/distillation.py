"""Distillation loss: consistency distillation with an optional adversarial loss."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler

from config import ObjectiveConfig
from consistency import ddim_step, get_angles, predict_images, pseudo_huber_loss, rotate, sample_segments
from discriminator import AdversarialLoss
from fmnist_diffusion.objectives import TimestepSampler
from fmnist_diffusion.schedulers import has_unstable_epsilon
from losses import BatchLoss, DiffusionLoss, NoisyBatch


# The logit-normal timesteps of the noise for the discriminator have this mean and standard deviation. Most of them
# are low, because strong noise hides the details in which generated images differ from real ones.
LOGIT_MEAN, LOGIT_STD = -2.5, 1.5


@dataclass
class DistillationBatch(NoisyBatch):
    """A batch with the training images and the noise for the adversarial loss.

    Attributes:
        real_images: Training images, float32 `(B, C, H, W)`.
        noise: Noise that is added to the training images and the predicted images, float32 `(B, C, H, W)`.
        noise_timesteps: Timesteps that determine the level of this noise, int64 `(B,)`.
    """

    real_images: torch.Tensor
    noise: torch.Tensor
    noise_timesteps: torch.Tensor


class ConsistencyLoss(DiffusionLoss):
    r"""Loss of consistency distillation (arXiv 2303.01469, algorithm 2) with an optional adversarial loss.

    The teacher takes two DDIM steps from the noisy image $x_t$ to $x_r$, where $r < t$ are the timesteps at the ends
    of a segment of the noise schedule. The loss compares the clean image $f(x_t, t)$ that the model predicts with the
    prediction $f(x_r, r)$ of the EMA weights, clamped to [-1, 1].

    With `adversarial_loss`, a discriminator also learns to distinguish $f(x_t, t)$ from the training image. The same
    noise is added to both first.

    Args:
        config: The training objective; only `label_dropout` is used.
        num_segments: Number of segments that the noise schedule is divided into.
        noise_scheduler: The noise schedule and the prediction type.
        null_label: The null label, or its token ids `(L,)`; `None` for an unconditional model.
        device: Device of the batches.
        target_unet: Model with the EMA weights.
        teacher: The model to distill.
        autocast: Function that returns the context in which `target_unet` and `teacher` run.
        adversarial_loss: The adversarial loss, or `None`.
        process_index, num_processes: Index of this process and number of processes that share each batch.

    Raises:
        `ValueError`: If the model predicts the noise and the noise schedule ends with pure noise.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        num_segments: int,
        noise_scheduler: DDPMScheduler,
        null_label: int | torch.Tensor | None,
        device: torch.device,
        target_unet: torch.nn.Module,
        teacher: torch.nn.Module,
        autocast: Callable[..., AbstractContextManager],
        adversarial_loss: AdversarialLoss | None = None,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        super().__init__(config, noise_scheduler, null_label, device, process_index, num_processes)
        alphas_cumprod = noise_scheduler.alphas_cumprod
        self.prediction_type: Any = noise_scheduler.config["prediction_type"]
        if has_unstable_epsilon(noise_scheduler):
            raise ValueError(
                "The model predicts the noise, which does not determine the image at the last timestep of this noise"
                " schedule. Distill a model whose prediction type is v_prediction or sample."
            )
        self.num_segments, self.target_unet, self.teacher = num_segments, target_unet, teacher
        self.autocast, self.adversarial_loss = autocast, adversarial_loss
        if adversarial_loss is not None:
            self.term_names = ("consistency_loss", "generator_loss", "discriminator_loss")
        self.angles = get_angles(alphas_cumprod).to(device)
        num_timesteps = len(alphas_cumprod)
        self.noise_timestep_sampler = TimestepSampler("logit_normal", num_timesteps, device, LOGIT_MEAN, LOGIT_STD)

    def prepare_batch(
        self, images: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator
    ) -> NoisyBatch:
        """Samples segments and noise for clean `images`, `(B, C, H, W)`, and drops some of the `labels`.

        The `target` of the batch contains the clean images that `target_unet` predicts at the earlier timesteps of the
        segments. With an adversarial loss, the batch is a [`DistillationBatch`], which also contains the noise of that
        loss. See [`DiffusionLoss.prepare_batch`].
        """
        class_labels = self.select_labels(labels, generator)
        count = self.num_processes * len(images)
        segments = sample_segments(count, self.num_segments, len(self.angles) - 1, generator)
        later, earlier = (timesteps.view(self.num_processes, -1)[self.process_index] for timesteps in segments)
        noisy_images = rotate(images, self.sample_noise(images, generator), self._get_angles(later))
        # If a segment spans a single timestep, the first step does not change the images.
        middle = (later + earlier + 1) // 2
        target = self._take_teacher_step(noisy_images, later, middle, class_labels)
        target = self._take_teacher_step(target, middle, earlier, class_labels)
        target = self._predict_images(self.target_unet, target, earlier, class_labels)
        weights = torch.ones(len(images), device=images.device)
        if self.adversarial_loss is None:
            return NoisyBatch(noisy_images, later, class_labels, target, weights)
        noise_timesteps, _ = self.noise_timestep_sampler.sample(count, generator)
        noise_timesteps = noise_timesteps.view(self.num_processes, -1)[self.process_index]
        noise = self.sample_noise(images, generator)
        return DistillationBatch(
            noisy_images,
            later,
            class_labels,
            target,
            weights,
            real_images=images,
            noise=noise,
            noise_timesteps=noise_timesteps,
        )

    def __call__(self, prediction: torch.Tensor, batch: NoisyBatch) -> BatchLoss:
        """Returns the loss of the batch and the consistency loss of each image.

        The loss of the batch is the mean consistency loss, plus the adversarial loss if there is one.
        """
        angles = self._get_angles(batch.timesteps)
        images = predict_images(batch.images, prediction.float(), angles, self.prediction_type)
        losses = pseudo_huber_loss(images, batch.target)
        loss = losses.mean()
        if self.adversarial_loss is None:
            return BatchLoss(loss, losses)
        assert isinstance(batch, DistillationBatch)
        angles = self._get_angles(batch.noise_timesteps)
        real, generated = (rotate(x, batch.noise, angles) for x in (batch.real_images, images))
        adversarial_losses = self.adversarial_loss(real, generated, batch.noise_timesteps, batch.class_labels)
        return BatchLoss(loss + sum(adversarial_losses), losses, (loss, *adversarial_losses))

    def _get_angles(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self.angles[timesteps + 1]

    @torch.no_grad()
    def _predict_images(
        self, unet: torch.nn.Module, images: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns the clean images that `unet` predicts, clamped to [-1, 1]. Images at timestep -1 are clean."""
        with self.autocast():
            prediction = unet(images, timesteps.clamp(min=0), class_labels).sample
        angles = self._get_angles(timesteps)
        return predict_images(images, prediction.float(), angles, self.prediction_type).clamp(-1, 1)

    def _take_teacher_step(
        self,
        images: torch.Tensor,
        timesteps: torch.Tensor,
        next_timesteps: torch.Tensor,
        class_labels: torch.Tensor | None,
    ) -> torch.Tensor:
        predicted = self._predict_images(self.teacher, images, timesteps, class_labels)
        return ddim_step(images, predicted, self._get_angles(timesteps), self._get_angles(next_timesteps))
