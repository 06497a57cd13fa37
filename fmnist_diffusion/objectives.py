"""The maths of training that diffusers leaves to its users: losses, loss weights and the choice of timesteps."""

from typing import Literal

import torch
import torch.nn.functional as F


PredictionType = Literal["epsilon", "v_prediction", "sample"]
LossType = Literal["mse", "l1", "huber"]
TimestepSampling = Literal["uniform", "logit_normal", "importance"]

# Of the pseudo-Huber loss, in units of the noise's standard deviation.
HUBER_C = 0.1


def per_image_loss(prediction: torch.Tensor, target: torch.Tensor, loss_type: LossType) -> torch.Tensor:
    """The loss of each image, (B,), a mean over its pixels. `"huber"` is sqrt(x^2 + c^2) - c with c = 0.1."""
    if loss_type == "mse":
        loss = F.mse_loss(prediction, target, reduction="none")
    elif loss_type == "l1":
        loss = F.l1_loss(prediction, target, reduction="none")
    else:
        loss = ((prediction - target).square() + HUBER_C**2).sqrt() - HUBER_C
    return loss.flatten(1).mean(1)


def min_snr_weights(snr: torch.Tensor, snr_gamma: float, prediction_type: PredictionType) -> torch.Tensor:
    """Min-SNR-gamma loss weights, (B,) (arXiv 2303.09556, section 3.4).

    The loss on the clean sample is weighted by min(SNR, gamma); in terms of epsilon that is min(SNR, gamma) / SNR, of
    v it is min(SNR, gamma) / (SNR + 1). `snr` (B,) is not negative, as `compute_snr` of diffusers gives it.
    """
    clipped = snr.clamp(max=snr_gamma)
    if prediction_type == "epsilon":
        # The limit at SNR 0 is 1.
        return torch.where(snr > 0, clipped / snr, 1.0)
    if prediction_type == "v_prediction":
        return clipped / (snr + 1)
    return clipped


class TimestepSampler:
    """Chooses the timesteps to train on, with the loss weights that keep the objective unbiased where that is meant.

    - `"uniform"`: every timestep alike, weight 1 (arXiv 2006.11239, algorithm 1).
    - `"logit_normal"`: T * sigmoid(n) with n from N(mean, std), weight 1: the middle is trained more (arXiv
      2403.03206, section 3.1).
    - `"importance"`: in proportion to the root mean square of each timestep's last ten losses, weighted by the inverse
      (arXiv 2102.09672, section 3.3). Uniform until each timestep has ten.

    Draws from torch's global generator of `device`.
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
        """Remembers the unweighted losses (B,) of `timesteps` (B,), from all processes, for `"importance"`."""
        timesteps, order = timesteps.sort(stable=True)
        # In a range whose squares are positive and finite.
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
    """Replaces each of `class_labels` (B,) by `null_label` with `probability`.

    That trains the unconditional branch of classifier-free guidance (arXiv 2207.12598, algorithm 1).
    """
    dropped = torch.rand(class_labels.shape, device=class_labels.device) < probability
    return class_labels.masked_fill(dropped, null_label)
