import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from batches import Batches
from config import ObjectiveConfig
from fmnist_diffusion.data import ImageTensors
from fmnist_diffusion.objectives import TimestepSampler
from losses import DiffusionLoss, NoisyBatch
from noise_schedule import NoiseScheduler


CPU = torch.device("cpu")


def make_loss(num_class_embeds: int | None = None, prediction_type: str = "epsilon", **objective) -> DiffusionLoss:
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    return DiffusionLoss(ObjectiveConfig(**objective), scheduler, num_class_embeds, CPU)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_scheduler_recovers_the_image_from_the_target(prediction_type: str):
    loss = make_loss(prediction_type=prediction_type)
    images = torch.rand(8, 1, 28, 28) * 2 - 1
    batch = loss.prepare_batch(images, None, torch.Generator())
    for image, noisy, timestep, target in zip(images, batch.images, batch.timesteps, batch.target, strict=True):
        step = loss.noise_scheduler.step(target[None], int(timestep), noisy[None])
        torch.testing.assert_close(step.pred_original_sample[0], image, rtol=0, atol=2e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_interpolates_between_images_and_noise(shift: float):
    loss = DiffusionLoss(ObjectiveConfig(), FlowMatchEulerDiscreteScheduler(shift=shift), None, CPU)
    images = torch.randn(64, 1, 4, 4)
    batch = loss.prepare_batch(images, None, torch.Generator())
    sigma = batch.timesteps.view(-1, 1, 1, 1) / 1000
    torch.testing.assert_close(batch.images, images + sigma * batch.target)
    noise = batch.target + images
    assert noise.mean().abs() < 0.1 and abs(noise.std() - 1) < 0.1
    torch.testing.assert_close(batch.weights, torch.ones(64))
    assert loss(batch.target, batch).total == 0
    # One step of the scheduler from the noise level of an image to 0 ends at the image.
    for image, noisy, timestep, target in zip(images, batch.images, batch.timesteps, batch.target, strict=True):
        loss.noise_scheduler.set_timesteps(sigmas=[unshift(float(timestep) / 1000, shift)])
        step = loss.noise_scheduler.step(target, loss.noise_scheduler.timesteps[0], noisy)
        torch.testing.assert_close(step.prev_sample, image, rtol=0, atol=1e-5)


def unshift(sigma: float, shift: float) -> float:
    return sigma / (shift - (shift - 1) * sigma)


@pytest.mark.parametrize(("shift", "logit_mean"), [(1.0, 0.0), (3.0, 0.0), (1.0, -1.0)])
def test_shift_moves_the_logit_normal_density(shift: float, logit_mean: float):
    """A shift s adds log(s) to the logit of sigma (arXiv 2403.03206, equation 23)."""
    objective = ObjectiveConfig(timestep_sampling="logit_normal", logit_mean=logit_mean, logit_std=0.7)
    loss = DiffusionLoss(objective, FlowMatchEulerDiscreteScheduler(shift=shift), None, CPU)
    batch = loss.prepare_batch(torch.zeros(20_000, 1, 1, 1), None, torch.Generator().manual_seed(0))
    logits = torch.logit((batch.timesteps - 0.5) / 1000)
    assert logits.mean().item() == pytest.approx(logit_mean + torch.tensor(shift).log().item(), abs=0.02)
    assert logits.std().item() == pytest.approx(0.7, abs=0.02)


def test_weighting_scheme_weights_the_loss():
    images = torch.zeros(64, 1, 2, 2)
    weights = {}
    for scheme in ("none", "sigma_sqrt", "cosmap"):
        objective = ObjectiveConfig(weighting_scheme=scheme)
        loss = DiffusionLoss(objective, FlowMatchEulerDiscreteScheduler(), None, CPU)
        batch = loss.prepare_batch(images, None, torch.Generator().manual_seed(0))
        sigmas, weights[scheme] = batch.timesteps / 1000, batch.weights
    torch.testing.assert_close(weights["none"], torch.ones(64))
    torch.testing.assert_close(weights["sigma_sqrt"], sigmas**-2)
    torch.testing.assert_close(weights["cosmap"], 2 / torch.pi / (1 - 2 * sigmas + 2 * sigmas**2))


def test_importance_sampling_records_the_timesteps_of_flow_matching():
    objective = ObjectiveConfig(timestep_sampling="importance")
    loss = DiffusionLoss(objective, FlowMatchEulerDiscreteScheduler(num_train_timesteps=20, shift=3.0), None, CPU)
    batch = loss.prepare_batch(torch.zeros(64, 1, 2, 2), None, torch.Generator().manual_seed(0))
    loss.update_timestep_sampler(batch.timesteps, torch.ones(64))
    generator = torch.Generator().manual_seed(0)
    expected, _ = TimestepSampler("importance", 20).sample(64, generator)
    assert torch.equal(loss.timestep_sampler.counts, torch.bincount(expected, minlength=20))


def test_loss_of_the_target_is_zero_and_weights_scale_the_loss():
    loss = make_loss(snr_gamma=5.0)
    batch = loss.prepare_batch(torch.randn(64, 1, 4, 4), None, torch.Generator())
    assert not torch.equal(batch.weights, torch.ones(64))
    value = loss(batch.target, batch)
    assert value.total == 0 and not value.per_image.any()
    value = loss(batch.target + 1, batch)
    torch.testing.assert_close(value.per_image, torch.ones(64))
    torch.testing.assert_close(value.total, batch.weights.mean())


@pytest.mark.parametrize(("label_dropout", "expected"), [(0.0, [3, 1, 4]), (1.0, [10, 10, 10])])
def test_dropped_labels_become_the_null_label(label_dropout: float, expected: list[int]):
    loss, labels = make_loss(10, label_dropout=label_dropout), torch.tensor([3, 1, 4])
    batch = loss.prepare_batch(torch.zeros(3, 1, 4, 4), labels, torch.Generator())
    assert batch.class_labels is not None
    assert batch.class_labels.tolist() == expected


def test_unconditional_model_gets_no_labels():
    batch = make_loss().prepare_batch(torch.zeros(3, 1, 4, 4), torch.tensor([3, 1, 4]), torch.Generator())
    assert batch.class_labels is None


def make_noisy_batches(
    process_index: int, num_processes: int, augmentation: str, timestep_sampling: str, scheduler: NoiseScheduler
) -> list[NoisyBatch]:
    """Returns the part of each noisy batch of an epoch that `process_index` trains on."""
    fixed = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, 6, 6), dtype=torch.uint8, generator=fixed)
    processes = {"process_index": process_index, "num_processes": num_processes}
    batches = Batches(
        ImageTensors(images, torch.arange(32) % 10, None), 16, 5, CPU, augmentation=augmentation, **processes
    )
    objective = ObjectiveConfig(timestep_sampling=timestep_sampling, label_dropout=0.5)
    loss = DiffusionLoss(objective, scheduler, 10, CPU, **processes)
    # Importance sampling is uniform until every timestep has ten losses.
    loss.timestep_sampler.update(torch.arange(20).repeat(10), torch.arange(200.0))
    return [loss.prepare_batch(*batch) for batch in batches.epoch(1)]


@pytest.mark.parametrize(
    "scheduler", [DDPMScheduler(20), FlowMatchEulerDiscreteScheduler(num_train_timesteps=20, shift=2.0)]
)
@pytest.mark.parametrize("num_processes", [2, 4])
@pytest.mark.parametrize(
    ("augmentation", "timestep_sampling"), [("none", "uniform"), ("flip", "logit_normal"), ("shift", "importance")]
)
def test_processes_train_on_the_same_noisy_batches_as_one(
    scheduler: NoiseScheduler, num_processes: int, augmentation: str, timestep_sampling: str
):
    settings = augmentation, timestep_sampling, scheduler
    whole = make_noisy_batches(0, 1, *settings)
    parts = [make_noisy_batches(i, num_processes, *settings) for i in range(num_processes)]
    assert len(whole) == 2
    assert not torch.equal(whole[0].target, whole[1].target)
    assert 0 < (whole[0].class_labels == 10).sum() < 16
    for name in ("images", "timesteps", "class_labels", "target", "weights"):
        for batch, *own in zip(whole, *parts, strict=True):
            assert torch.equal(torch.cat([getattr(part, name) for part in own]), getattr(batch, name)), name
