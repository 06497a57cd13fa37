"""A model with exact predictions for tests of schedulers."""

import numpy as np
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.schedulers import make_scheduler


NoiseScheduler = DDPMScheduler | FlowMatchEulerDiscreteScheduler


class OracleUNet(FashionMNISTUNet2DModel):
    """
    Predicts the noise, velocity, clean image or flow exactly, because it knows the clean image of each label.

    `noise_error` is the largest difference between the noise level of an input and that of its timestep.
    """

    def set_target(self, clean: torch.Tensor, noise_scheduler: NoiseScheduler) -> "OracleUNet":
        self.clean = clean  # (num_class_embeds + 1, channels, height, width)
        self.noise_error = 0.0
        if isinstance(noise_scheduler, FlowMatchEulerDiscreteScheduler):
            self.prediction_type = "flow_prediction"
            return self
        self.prediction_type = noise_scheduler.config.prediction_type
        alphas_cumprod = noise_scheduler.alphas_cumprod.clamp(min=2**-24).double().numpy()
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5
        return self

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        if class_labels is None:
            class_labels = torch.full((len(sample),), len(self.clean) - 1)
        alpha, sigma = self.get_coefficients(float(timestep))  # sample = alpha * clean + sigma * epsilon
        clean = self.predict_clean(sample, alpha, sigma, class_labels)
        epsilon = (sample - alpha * clean) / sigma
        self.noise_error = max(self.noise_error, sigma * abs(epsilon.std().item() - 1))
        predictions = {
            "epsilon": epsilon,
            "v_prediction": alpha * epsilon - sigma * clean,
            "sample": clean,
            "flow_prediction": epsilon - clean,
        }
        return UNet2DOutput(sample=predictions[self.prediction_type])

    def predict_clean(self, sample, alpha, sigma, class_labels):
        return self.clean[class_labels]

    def get_coefficients(self, timestep: float) -> tuple[float, float]:
        if self.prediction_type == "flow_prediction":
            return 1 - timestep / 1000, timestep / 1000
        sigma = float(np.interp(timestep, np.arange(len(self.sigmas)), self.sigmas))
        alpha = 1 / (1 + sigma**2) ** 0.5
        return alpha, sigma * alpha


def make_oracle(noise_scheduler: NoiseScheduler) -> OracleUNet:
    unet = OracleUNet(
        sample_size=(16, 12), block_out_channels=(8,), attention_levels=(), time_embedding_dim=4, num_class_embeds=4
    )
    clean = torch.rand(5, 1, 16, 12, generator=torch.manual_seed(1)) - 0.5
    return unet.set_target(clean, noise_scheduler)


def make_oracle_pipeline(scheduler: str, noise_scheduler: NoiseScheduler, **options) -> FashionMNISTPipeline:
    config = {**make_scheduler(scheduler, noise_scheduler.config).config, **options}
    pipe = FashionMNISTPipeline(make_oracle(noise_scheduler), make_scheduler(scheduler, config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def distance(images: torch.Tensor, clean: torch.Tensor) -> float:
    return (images - clean).abs().mean().item()
