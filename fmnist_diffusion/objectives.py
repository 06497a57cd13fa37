"""Training objectives: losses, loss weights and timestep densities."""

from typing import Literal

import torch
import torch.nn.functional as F


PredictionType = Literal["epsilon", "v_prediction", "sample"]
LossType = Literal["mse", "l1", "huber"]
TimestepSampling = Literal["uniform", "logit_normal", "importance"]

# Constant c of the pseudo-Huber loss, in units of the standard deviation of the noise.
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
        snr (`torch.Tensor` of shape `(batch,)`): Signal-to-noise ratios, from 0 on; see diffusers' `compute_snr`.
        snr_gamma (`float`): The constant gamma, above 0.
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
    Samples the timesteps to train on, with their loss weights, from torch's global generator of `device`.

    - `"uniform"`: all timesteps have the same probability, and weight 1 (arXiv 2006.11239, algorithm 1).
    - `"logit_normal"`: `T * sigmoid(n)` with `n` from a normal distribution, and weight 1, which trains the middle
      more (arXiv 2403.03206, section 3.1).
    - `"importance"`: in proportion to the root mean square of the last ten losses of each timestep, with the inverse
      as weight, which keeps the objective unbiased (arXiv 2102.09672, section 3.3). Uniform until each timestep has
      ten losses.

    Args:
        timestep_sampling (`str`): One of the above.
        num_train_timesteps (`int`): Number of timesteps, `T`.
        device (`str` or `torch.device`, defaults to `"cpu"`): Device of the timesteps.
        logit_mean, logit_std (`float`, defaults to 0 and 1): Mean and standard deviation of `"logit_normal"`.
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
    ):
        self.timestep_sampling = timestep_sampling
        self.num_train_timesteps = num_train_timesteps
        self.logit_mean, self.logit_std = logit_mean, logit_std
        self.losses = torch.zeros(num_train_timesteps, self.history_length, device=device)
        self.counts = torch.zeros(num_train_timesteps, dtype=torch.long, device=device)

    def sample(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns timesteps, int64 (B,) in [0, T), and loss weights, float32 (B,)."""
        device, steps = self.losses.device, self.num_train_timesteps
        if self.timestep_sampling == "importance" and bool((self.counts >= self.history_length).all()):
            share = self.losses.square().mean(1).sqrt()
            share = share / share.sum() * (1 - self.uniform_share) + self.uniform_share / steps
            timesteps = torch.multinomial(share, batch_size, replacement=True)
            return timesteps, 1 / (steps * share[timesteps])
        if self.timestep_sampling == "logit_normal":
            position = torch.sigmoid(torch.randn(batch_size, device=device) * self.logit_std + self.logit_mean)
            timesteps = (position * steps).long().clamp(max=steps - 1)
        else:
            timesteps = torch.randint(steps, (batch_size,), device=device)
        return timesteps, torch.ones(batch_size, device=device)

    def update(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Records the unweighted losses (B,) of `timesteps` (B,), from all processes, for `"importance"`."""
        timesteps, order = timesteps.sort(stable=True)
        # The squares of the losses must be positive and finite.
        losses = losses.detach().float()[order].nan_to_num(1.0).clamp(1e-9, 1e9)
        batch_counts = torch.bincount(timesteps, minlength=self.num_train_timesteps)
        place = torch.arange(len(timesteps), device=timesteps.device)
        place -= (batch_counts.cumsum(0) - batch_counts)[timesteps]  # among those of the same timestep
        newest = place >= batch_counts[timesteps] - self.history_length
        slots = (self.counts[timesteps] + place) % self.history_length
        self.losses[timesteps[newest], slots[newest]] = losses[newest]
        self.counts += batch_counts

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"losses": self.losses, "counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        self.losses.copy_(state_dict["losses"])
        self.counts.copy_(state_dict["counts"])


def drop_labels(class_labels: torch.Tensor, probability: float, null_label: int) -> torch.Tensor:
    """
    Replaces each label by `null_label` with `probability`.

    This trains the unconditional branch of classifier-free guidance (arXiv 2207.12598, algorithm 1).

    Args:
        class_labels (`torch.Tensor` of shape `(batch,)`): Class labels.
        probability (`float`): Probability in [0, 1].
        null_label (`int`): The label that stands for unconditional.
    """
    dropped = torch.rand(class_labels.shape, device=class_labels.device) < probability
    return class_labels.masked_fill(dropped, null_label)
