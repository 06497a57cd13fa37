"""Training objectives: losses, loss weights and timestep densities."""

from typing import Literal

import torch
import torch.nn.functional as F


PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
LossType = Literal["mse", "l1", "huber"]
TimestepSampling = Literal["uniform", "logit_normal", "mode", "importance"]
WeightingScheme = Literal["none", "sigma_sqrt", "cosmap"]

# This is the constant c of the pseudo-Huber loss, in units of the standard deviation of the noise.
HUBER_C = 0.1


def per_image_loss(prediction: torch.Tensor, target: torch.Tensor, loss_type: LossType) -> torch.Tensor:
    """
    Computes the mean loss over the pixels of each image.

    Args:
        prediction, target (`torch.Tensor` of shape `(batch, channels, height, width)`): The prediction and its target.
        loss_type (`str`): `"mse"`, `"l1"`, or `"huber"`, which is `sqrt(x**2 + c**2) - c` with `c = 0.1`.

    Returns:
        `torch.Tensor` of shape `(batch,)`.
    """
    if loss_type == "mse":
        loss = F.mse_loss(prediction, target, reduction="none")
    elif loss_type == "l1":
        loss = F.l1_loss(prediction, target, reduction="none")
    else:
        loss = ((prediction - target).square() + HUBER_C**2).sqrt() - HUBER_C
    return loss.flatten(1).mean(1)


def min_snr_weights(snr: torch.Tensor, snr_gamma: float, prediction_type: PredictionType) -> torch.Tensor:
    """
    Computes Min-SNR-gamma loss weights (arXiv 2303.09556, section 3.4).

    The weight of the loss on the clean sample is `min(SNR, gamma)`. The equivalent weight is `min(SNR, gamma) / SNR`
    for epsilon and `min(SNR, gamma) / (SNR + 1)` for v.

    Args:
        snr (`torch.Tensor` of shape `(batch,)`): Non-negative signal-to-noise ratios; see diffusers' `compute_snr`.
        snr_gamma (`float`): The positive constant gamma.
        prediction_type (`str`): `"epsilon"`, `"v_prediction"` or `"sample"`.

    Returns:
        `torch.Tensor` of shape `(batch,)`.
    """
    clipped = snr.clamp(max=snr_gamma)
    if prediction_type == "epsilon":
        # The limit at SNR 0 is 1.
        return torch.where(snr > 0, clipped / snr, 1.0)
    if prediction_type == "v_prediction":
        return clipped / (snr + 1)
    return clipped


class TimestepSampler:
    """
    Samples training timesteps and their loss weights.

    - `"uniform"`: All timesteps have the same probability and weight 1 (arXiv 2006.11239, algorithm 1).
    - `"logit_normal"`: Timesteps are `T * sigmoid(n)`, where `n` is normally distributed, and have weight 1. This
      samples intermediate timesteps more often (arXiv 2403.03206, equation 19).
    - `"mode"`: Timesteps are `T * (1 - u - s * (cos(pi * u / 2)**2 - 1 + u))`, where `u` is uniformly distributed, and
      have weight 1 (arXiv 2403.03206, equation 20).
    - `"importance"`: Probabilities are proportional to the root mean square of the last ten losses of each timestep,
      mixed with 0.1% of the uniform distribution, as in `LossSecondMomentResampler` of openai/improved-diffusion. The
      weights are inversely proportional to the probabilities, which keeps the objective unbiased (arXiv 2102.09672,
      section 3.3). Sampling is uniform until every timestep has ten losses.

    Args:
        timestep_sampling (`str`): `"uniform"`, `"logit_normal"`, `"mode"` or `"importance"`.
        num_train_timesteps (`int`): Number of timesteps, `T`.
        device (`str` or `torch.device`, defaults to `"cpu"`): Device of the timesteps.
        logit_mean, logit_std (`float`, defaults to 0 and 1): Mean and standard deviation of `n`.
        mode_scale (`float`, defaults to 1.29):
            The scale `s`, from -1 to `2 / (pi - 2)`. Positive values sample intermediate timesteps more often.
    """

    history_length = 10
    uniform_share = 0.001

    def __init__(
        self,
        timestep_sampling: TimestepSampling,
        num_train_timesteps: int,
        device: torch.device | str = "cpu",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        mode_scale: float = 1.29,
    ):
        self.timestep_sampling = timestep_sampling
        self.num_train_timesteps = num_train_timesteps
        self.logit_mean, self.logit_std, self.mode_scale = logit_mean, logit_std, mode_scale
        self.losses = torch.zeros(num_train_timesteps, self.history_length, device=device)
        self.counts = torch.zeros(num_train_timesteps, dtype=torch.long, device=device)

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples int64 timesteps (B,) in [0, T) and returns them with their float32 loss weights (B,).

        `generator` must be on the device of the sampler; by default, the global generator is used.
        """
        # This local import keeps the command line fast, because importing diffusers takes several seconds.
        from diffusers.training_utils import compute_density_for_timestep_sampling

        device, steps = self.losses.device, self.num_train_timesteps
        if self.timestep_sampling == "importance" and bool((self.counts >= self.history_length).all()):
            probabilities = self.losses.square().mean(1).sqrt()
            probabilities = probabilities / probabilities.sum() * (1 - self.uniform_share) + self.uniform_share / steps
            timesteps = torch.multinomial(probabilities, batch_size, replacement=True, generator=generator)
            return timesteps, 1 / (steps * probabilities[timesteps])
        if self.timestep_sampling in ("logit_normal", "mode"):
            position = compute_density_for_timestep_sampling(
                self.timestep_sampling,
                batch_size,
                self.logit_mean,
                self.logit_std,
                self.mode_scale,
                device=device,
                generator=generator,
            )
            timesteps = (position * steps).long().clamp(max=steps - 1)
        else:
            timesteps = torch.randint(steps, (batch_size,), generator=generator, device=device)
        return timesteps, torch.ones(batch_size, device=device)

    def update(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Records the unweighted losses (B,) of `timesteps` (B,) of all processes for `"importance"` sampling."""
        timesteps, order = timesteps.sort(stable=True)
        # Clamping keeps the squares of the losses positive and finite.
        losses = losses.detach().float()[order].nan_to_num(1.0).clamp(1e-9, 1e9)
        batch_counts = torch.bincount(timesteps, minlength=self.num_train_timesteps)
        # `rank` counts the losses of the same timestep that come earlier in the batch.
        rank = torch.arange(len(timesteps), device=timesteps.device)
        rank -= (batch_counts.cumsum(0) - batch_counts)[timesteps]
        newest = rank >= batch_counts[timesteps] - self.history_length
        slots = (self.counts[timesteps] + rank) % self.history_length
        self.losses[timesteps[newest], slots[newest]] = losses[newest]
        self.counts += batch_counts

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"losses": self.losses, "counts": self.counts}


def drop_labels(
    class_labels: torch.Tensor,
    probability: float,
    null_label: int | torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Replaces each label with `null_label` at random.

    This trains the unconditional branch of classifier-free guidance (arXiv 2207.12598, algorithm 1).

    Args:
        class_labels (`torch.Tensor`): Class labels of any shape, or token ids of shape `(..., length)`.
        probability (`float`): Probability of replacing a label, in [0, 1].
        null_label (`int` or `torch.Tensor`): The label for unconditional samples, or the token ids
            `(length,)` of the empty prompt.
        generator (`torch.Generator`, *optional*): Random generator on the device of `class_labels`. By default, the
            global generator is used.
    """
    null = torch.as_tensor(null_label, device=class_labels.device)
    shape = class_labels.shape[: class_labels.ndim - null.ndim]
    dropped = torch.rand(shape, generator=generator, device=class_labels.device) < probability
    return torch.where(dropped[(..., *[None] * null.ndim)], null, class_labels)
