import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.data import FASHION_MNIST_LABELS, ImageTensors, to_uint8
from fmnist_diffusion.evaluation import likelihood, measure_likelihood
from fmnist_diffusion.evaluation.likelihood import (
    dequantize,
    estimate_divergence,
    log_likelihood,
    to_bits_per_dim,
)
from fmnist_diffusion.sampling import copy_pipeline, make_pipeline
from fmnist_diffusion.schedulers import compute_angles
from latent_pipelines import get_latent_pipeline
from text_pipelines import get_text_pipeline
from tiny_pipelines import get_pipeline, make_unet


SCHEDULES = {
    # The terminal SNR is so low that the last timestep is almost pure noise.
    "epsilon": DDPMScheduler(prediction_type="epsilon", beta_end=0.025),
    "v_prediction": DDPMScheduler(
        prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True
    ),
    "sample": DDPMScheduler(prediction_type="sample", beta_schedule="squaredcos_cap_v2"),
}
# The pixels of class k have the mean MEANS[k]. The last entry is for unconditional samples.
MEANS = torch.tensor([-0.5, 0.8, 0.2])
STD = 0.3


class GaussianUNet(FashionMNISTUNet2DModel):
    """Predicts the noise, the velocity or the clean image exactly for normally distributed pixels."""

    def set_schedule(self, noise_scheduler: DDPMScheduler) -> "GaussianUNet":
        self.angles = compute_angles(noise_scheduler.alphas_cumprod).numpy()
        self.prediction_type = noise_scheduler.config.prediction_type
        return self

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        if class_labels is None:
            class_labels = torch.full((len(sample),), len(MEANS) - 1)
        mean = MEANS[class_labels].view(-1, 1, 1, 1)
        angle = np.interp(timestep, np.arange(len(self.angles)), self.angles)
        alpha, sigma = math.cos(angle), math.sin(angle)
        residual = (sample - alpha * mean) / (alpha**2 * STD**2 + sigma**2)
        clean, epsilon = mean + alpha * STD**2 * residual, sigma * residual
        predictions = {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * clean, "sample": clean}
        return UNet2DOutput(sample=predictions[self.prediction_type])


def make_images(count: int = 5, num_classes: int | None = 10) -> ImageTensors:
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    if num_classes is None:
        return ImageTensors(images)
    return ImageTensors(images, torch.arange(count) % num_classes, FASHION_MNIST_LABELS)


def make_likelihood_pipeline(num_class_embeds: int | None = 10) -> FashionMNISTPipeline:
    # With v-prediction, the velocity of a model with random weights is small.
    return get_pipeline(DDIMScheduler(prediction_type="v_prediction"), num_class_embeds=num_class_embeds)


def measure(pipe, folder: Path, images: ImageTensors | None = None, **kwargs) -> dict:
    settings = {"name": "tiny", "conditional": True, "num_images": 5, "num_steps": 2} | kwargs
    return measure_likelihood(pipe, make_images() if images is None else images, folder, **settings)


@pytest.mark.parametrize("class_labels", [torch.tensor([0, 1]), None], ids=["conditional", "unconditional"])
@pytest.mark.parametrize("prediction_type", SCHEDULES)
def test_log_likelihood_of_a_normal_distribution_is_exact(prediction_type: str, class_labels):
    noise_scheduler = SCHEDULES[prediction_type]
    unet = GaussianUNet(block_out_channels=(8,), attention_levels=(), time_embedding_dim=4)
    unet.set_schedule(noise_scheduler)
    generator = torch.manual_seed(1)
    mean = MEANS[[2, 2] if class_labels is None else class_labels].view(-1, 1, 1, 1)
    samples = mean + STD * torch.randn(2, 1, 16, 12, generator=generator)
    probes = torch.randint(0, 2, samples.shape, generator=generator) * 2.0 - 1
    actual = log_likelihood(unet, noise_scheduler, samples, probes, 20, class_labels)

    alpha_squared = noise_scheduler.alphas_cumprod[0].double()
    std = (alpha_squared * STD**2 + 1 - alpha_squared).sqrt()
    expected = torch.distributions.Normal(alpha_squared.sqrt() * mean, std).log_prob(samples.double())
    # The error is below 0.001 bits per dimension.
    torch.testing.assert_close(actual, expected.flatten(1).sum(1), rtol=0, atol=0.001 * 192 * math.log(2))


def test_discretization_error_decreases_with_the_fourth_power_of_the_number_of_steps():
    noise_scheduler = SCHEDULES["v_prediction"]
    unet = GaussianUNet(block_out_channels=(8,), attention_levels=(), time_embedding_dim=4)
    unet.set_schedule(noise_scheduler)
    samples = torch.zeros(1, 1, 16, 12)
    few, more, many = (
        log_likelihood(unet, noise_scheduler, samples, torch.ones_like(samples), num_steps).item()
        for num_steps in (8, 16, 64)
    )
    assert abs(few - many) > 8 * abs(more - many)


def test_divergence_estimate_is_unbiased():
    unet = make_unet(None).eval().requires_grad_(False)
    generator = torch.manual_seed(0)
    image = torch.randn(1, 1, 4, 4, generator=generator, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda x: unet(x, 10).sample, image).reshape(16, 16)
    trace = jacobian.trace().item()

    # The batch repeats one image with different probes.
    images = image.detach().repeat(4000, 1, 1, 1).requires_grad_()
    probes = torch.randint(0, 2, images.shape, generator=generator) * 2.0 - 1
    estimates = estimate_divergence(unet(images, 10).sample, images, probes)
    standard_error = estimates.std().item() / math.sqrt(len(estimates))
    assert 0 < standard_error < 0.1 * abs(trace)
    assert abs(estimates.mean().item() - trace) < 4 * standard_error


def test_dequantized_pixels_fill_the_interval_that_is_rounded_to_their_value():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(50, 1, 1, 1)
    samples, probes = dequantize(images, seed=3, start=7)
    assert torch.equal(to_uint8(samples), images)
    noise = (samples.double() + 1) * 127.5 - images
    assert noise.min() >= -0.5001 and noise.max() <= 0.5001
    assert abs(noise.mean()) < 0.01 and abs(noise.var() - 1 / 12) < 0.002
    assert set(probes.unique().tolist()) == {-1.0, 1.0} and abs(probes.mean()) < 0.05
    # Image i only depends on the seed and its index.
    later_samples, later_probes = dequantize(images[2:], seed=3, start=9)
    assert torch.equal(later_samples, samples[2:]) and torch.equal(later_probes, probes[2:])
    assert not torch.equal(samples[0], samples[1])


def test_uniformly_distributed_pixels_have_eight_bits():
    # In [-1, 1], a uniform distribution over the intervals of 256 pixel values has the density 127.5 / 256.
    log_density = 12 * math.log(127.5 / 256)
    torch.testing.assert_close(to_bits_per_dim(torch.tensor([log_density]), 12), torch.tensor([8.0]))


@pytest.mark.parametrize("num_classes", [10, None])
def test_results_do_not_depend_on_batches_or_interruptions(num_classes: int | None, tmp_path: Path, monkeypatch):
    pipe, images = make_likelihood_pipeline(num_classes), make_images(num_classes=num_classes)
    options = {"images": images, "conditional": num_classes is not None}
    expected = measure(pipe, tmp_path / "whole", **options)
    assert expected == json.loads((tmp_path / "whole" / "likelihood.json").read_text())

    sizes = []

    def record(*args):
        sizes.append(len(args[2]))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return log_likelihood(*args)

    monkeypatch.setattr(likelihood, "log_likelihood", record)
    with pytest.raises(KeyboardInterrupt):
        measure(pipe, tmp_path / "parts", batch_size=2, **options)
    assert not (tmp_path / "parts" / "likelihood.json").exists()
    result = measure(pipe, tmp_path / "parts", batch_size=3, **options)
    # The interrupted batch is the only one that is measured again.
    assert sizes == [2, 2, 1, 1]
    assert result["bits_per_dim"] == pytest.approx(expected["bits_per_dim"], abs=1e-3)
    assert result["standard_error"] == pytest.approx(expected["standard_error"], abs=1e-3)


def test_images_can_be_added_to_a_run(tmp_path: Path, monkeypatch):
    pipe = make_likelihood_pipeline()
    expected, first = measure(pipe, tmp_path / "whole"), measure(pipe, tmp_path / "parts", num_images=3)
    assert first["bits_per_dim"] != expected["bits_per_dim"]
    assert measure(pipe, tmp_path / "parts")["bits_per_dim"] == pytest.approx(expected["bits_per_dim"], abs=1e-3)
    # Existing results are reused.
    monkeypatch.setattr(likelihood, "log_likelihood", None)
    assert measure(pipe, tmp_path / "whole", num_images=3)["bits_per_dim"] == pytest.approx(
        first["bits_per_dim"], abs=1e-3
    )


def test_model_in_training_mode_is_not_changed(tmp_path: Path):
    pipe = make_pipeline(make_unet(norm_type="batch"), DDPMScheduler(prediction_type="v_prediction"))
    images = make_images(num_classes=None)
    expected = measure(pipe, tmp_path / "evaluation", images, conditional=False)
    state = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    pipe.unet.train()
    for batch_size in (2, 5):
        result = measure(pipe, tmp_path / str(batch_size), images, conditional=False, batch_size=batch_size)
        assert result["bits_per_dim"] == pytest.approx(expected["bits_per_dim"], rel=1e-5)
    assert pipe.unet.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in pipe.unet.state_dict().items())


def test_results_are_the_mean_and_its_standard_error(tmp_path: Path):
    pipe, images = make_likelihood_pipeline(), make_images()
    result = measure(pipe, tmp_path / "result", seed=4)
    samples, probes = dequantize(images.images, 4, 0)
    noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    bits = to_bits_per_dim(log_likelihood(pipe.unet, noise_scheduler, samples, probes, 2, images.labels), 64).numpy()
    assert result["bits_per_dim"] == pytest.approx(bits.mean())
    assert result["standard_error"] == pytest.approx(bits.std(ddof=1) / math.sqrt(5))
    assert (result["num_images"], result["num_function_evaluations"]) == (5, 8)


def test_labels_and_seeds_affect_the_likelihood(tmp_path: Path):
    pipe = make_likelihood_pipeline()
    results = [
        measure(pipe, tmp_path / str(i), **options)["bits_per_dim"]
        for i, options in enumerate([{}, {"conditional": False}, {"seed": 1}])
    ]
    assert len(set(results)) == 3


def test_unsuitable_arguments_are_rejected(tmp_path: Path):
    pipe = make_likelihood_pipeline()
    with pytest.raises(ValueError, match="`num_images` must be between 2 and 5, the number of images, got 6"):
        measure(pipe, tmp_path / "new", num_images=6)
    with pytest.raises(ValueError, match="`num_steps` must be a positive integer, got 0"):
        measure(pipe, tmp_path / "new", num_steps=0)
    with pytest.raises(
        ValueError, match=r"must be grayscale images of 8x8 pixels like .* got RGB images of 8x8 pixels"
    ):
        measure(pipe, tmp_path / "new", ImageTensors(make_images().images.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match=r"must have the classes of the pipeline \(T-shirt/top, .*\), got none\."):
        measure(pipe, tmp_path / "new", make_images(num_classes=None))
    with pytest.raises(ValueError, match="The likelihood of text-conditional pipelines is not supported"):
        measure(get_text_pipeline(), tmp_path / "new")
    with pytest.raises(ValueError, match="The likelihood of latent diffusion models is not supported"):
        measure(get_latent_pipeline(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    measure(pipe, tmp_path / "run")
    relabeled = replace(make_images(), labels=torch.zeros(5, dtype=torch.int64))
    for images, seed in ((None, 1), (relabeled, 0)):
        with pytest.raises(ValueError, match="contains a different run"):
            measure(pipe, tmp_path / "run", images, seed=seed)


def test_pipelines_without_a_probability_flow_ode_are_rejected(tmp_path: Path):
    with pytest.raises(ValueError, match="A consistency model does not predict the velocity"):
        measure(get_pipeline(LCMScheduler()), tmp_path / "new")
    with pytest.raises(ValueError, match="A consistency model does not predict the velocity"):
        measure(copy_pipeline(get_pipeline(LCMScheduler()), "ddim"), tmp_path / "new")
    zero_snr = DDPMScheduler(beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="Use a model with v-prediction"):
        measure(get_pipeline(zero_snr), tmp_path / "new")
    flow = make_pipeline(make_unet(), FlowMatchEulerDiscreteScheduler())
    for scheduler in (None, "dpmsolver++"):
        with pytest.raises(ValueError, match="The likelihood of flow-matching models is not supported"):
            measure(copy_pipeline(flow, scheduler), tmp_path / "new")


def test_results_that_are_not_finite_are_reported(tmp_path: Path):
    pipe = make_likelihood_pipeline()
    torch.nn.init.constant_(pipe.unet.conv_out.bias, math.nan)
    with pytest.raises(ValueError, match="The likelihood is NaN or infinite"):
        measure(pipe, tmp_path / "run")
