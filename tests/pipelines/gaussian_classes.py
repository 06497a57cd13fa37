"""A mixture of Gaussian classes with exact predictions, used to test classifier guidance."""

import math

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from oracle_unet import NoiseScheduler, OracleUNet

from fmnist_diffusion import FashionMNISTGuidanceClassifier, FashionMNISTPipeline
from fmnist_diffusion.schedulers import make_scheduler


STANDARD_DEVIATION = 0.1
PRIORS = (0.5, 0.3, 0.2)
MEANS = 0.4 * torch.rand(3, 1, 16, 12, generator=torch.manual_seed(1)) - 0.2
CONFIG = {"sample_size": (16, 12), "block_out_channels": (8,), "attention_levels": (), "time_embedding_dim": 4}


def make_noise_scheduler(prediction_type: str) -> NoiseScheduler:
    if prediction_type == "flow_prediction":
        return FlowMatchEulerDiscreteScheduler(shift=2.0)
    return DDPMScheduler(prediction_type=prediction_type)


def joint_log_prob(noisy: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """Returns `log p(x, y)` of noisy images `x = alpha * x0 + sigma * noise` for all classes `y`, up to a constant."""
    variance = (alpha * STANDARD_DEVIATION) ** 2 + sigma**2
    distances = (noisy[:, None] - alpha * MEANS.to(noisy)).square().flatten(2).sum(2)
    return torch.tensor(PRIORS).log() - distances / (2 * variance)


class MixtureUNet(OracleUNet):
    """Predicts the mean of x0 for noisy images of one class or, without labels, of the mixture."""

    def predict_clean(self, sample, alpha, sigma, class_labels):
        variance = (alpha * STANDARD_DEVIATION) ** 2 + sigma**2
        weights = joint_log_prob(sample, alpha, sigma).softmax(1)
        if self.config.num_class_embeds is not None:
            is_null = class_labels == len(MEANS)
            one_hot = torch.nn.functional.one_hot(class_labels.clamp(max=len(MEANS) - 1), len(MEANS))
            weights = torch.where(is_null[:, None], weights, one_hot.to(weights))
        means = torch.einsum("bk,kchw->bchw", weights, MEANS)
        return means + alpha * STANDARD_DEVIATION**2 / variance * (sample - alpha * means)


class MixtureClassifier(FashionMNISTGuidanceClassifier):
    """Predicts the exact class probabilities of noisy images."""

    def set_unet(self, unet: MixtureUNet) -> "MixtureClassifier":
        # A list prevents the U-Net from being registered as a submodule.
        self.unets = [unet]
        return self

    def forward(self, sample, timestep):
        return joint_log_prob(sample, *self.unets[0].get_coefficients(float(timestep)))


def make_mixture_pipeline(
    scheduler: str, prediction_type: str, num_class_embeds: int | None = None
) -> FashionMNISTPipeline:
    noise_scheduler = make_noise_scheduler(prediction_type)
    unet = MixtureUNet(**CONFIG, num_class_embeds=num_class_embeds).set_target(MEANS, noise_scheduler)
    classifier = MixtureClassifier(num_classes=3, block_out_channels=(4,), norm_num_groups=1).set_unet(unet)
    pipe = FashionMNISTPipeline(unet, make_scheduler(scheduler, noise_scheduler.config), classifier=classifier)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tilted_mean(noisy: torch.Tensor, alpha: float, sigma: float, labels: list[int], scale: float) -> torch.Tensor:
    """
    Computes the mean of x0 under the score of `p(x) p(y | x) ** scale` with automatic differentiation in float64.

    By Tweedie's formula, the mean is `(x + sigma ** 2 * score) / alpha`.
    """
    with torch.enable_grad():
        noisy = noisy.double().requires_grad_()
        log_probs = joint_log_prob(noisy, alpha, sigma)
        constant = noisy[0].numel() / 2 * math.log((alpha * STANDARD_DEVIATION) ** 2 + sigma**2)
        log_prob = log_probs.logsumexp(1) - constant + scale * log_probs.log_softmax(1)[range(len(labels)), labels]
        (score,) = torch.autograd.grad(log_prob.sum(), noisy)
    return ((noisy + sigma**2 * score) / alpha).detach().float()
