import pytest
import torch
from diffusers import DDPMScheduler

from config import ObjectiveConfig
from losses import DiffusionLoss


def make_loss(num_class_embeds: int | None = None, prediction_type: str = "epsilon", **objective) -> DiffusionLoss:
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    return DiffusionLoss(ObjectiveConfig(**objective), scheduler, num_class_embeds, torch.device("cpu"))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_scheduler_recovers_the_image_from_the_target(prediction_type: str):
    loss = make_loss(prediction_type=prediction_type)
    images = torch.rand(8, 1, 28, 28) * 2 - 1
    batch = loss.add_noise(images, None)
    for image, noisy, timestep, target in zip(images, batch.images, batch.timesteps, batch.target, strict=True):
        step = loss.noise_scheduler.step(target[None], int(timestep), noisy[None])
        torch.testing.assert_close(step.pred_original_sample[0], image, rtol=0, atol=2e-3)


def test_loss_of_the_target_is_zero_and_weights_scale_the_loss():
    torch.manual_seed(0)
    loss = make_loss(snr_gamma=5.0)
    batch = loss.add_noise(torch.randn(8, 1, 4, 4), None)
    assert not torch.equal(batch.weights, torch.ones(8))
    value, image_losses = loss(batch.target, batch)
    assert value == 0 and not image_losses.any()
    value, image_losses = loss(batch.target + 1, batch)
    torch.testing.assert_close(image_losses, torch.ones(8))
    torch.testing.assert_close(value, batch.weights.mean())


@pytest.mark.parametrize(("label_dropout", "expected"), [(0.0, [3, 1, 4]), (1.0, [10, 10, 10])])
def test_dropped_labels_become_the_null_label(label_dropout: float, expected: list[int]):
    batch = make_loss(10, label_dropout=label_dropout).add_noise(torch.zeros(3, 1, 4, 4), torch.tensor([3, 1, 4]))
    assert batch.class_labels is not None
    assert batch.class_labels.tolist() == expected


def test_unconditional_model_gets_no_labels():
    assert make_loss().add_noise(torch.zeros(3, 1, 4, 4), torch.tensor([3, 1, 4])).class_labels is None
