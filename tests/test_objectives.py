import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from fmnist_diffusion.objectives import (
    PredictionType,
    TimestepSampler,
    TimestepSampling,
    drop_labels,
    min_snr_weights,
    per_image_loss,
)


def test_per_image_loss_equals_the_formulas():
    prediction, target = torch.tensor([[[[3.0, 0.0]]], [[[0.0, 0.0]]]]), torch.zeros(2, 1, 1, 2)
    torch.testing.assert_close(per_image_loss(prediction, target, "mse"), torch.tensor([4.5, 0.0]))
    torch.testing.assert_close(per_image_loss(prediction, target, "l1"), torch.tensor([1.5, 0.0]))
    huber = ((9 + 0.01) ** 0.5 - 0.1) / 2
    torch.testing.assert_close(per_image_loss(prediction, target, "huber"), torch.tensor([huber, 0.0]))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
class TestMinSNRWeights:
    def test_weights_give_the_same_loss_on_the_clean_sample(self, prediction_type: PredictionType):
        """An error d in the clean sample is an error d sqrt(SNR) in epsilon and d sqrt(SNR + 1) in v."""
        snr = compute_snr(DDPMScheduler(), torch.arange(1000))
        squared_error = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(1000)}[prediction_type]
        weights = min_snr_weights(snr, 5.0, prediction_type)
        torch.testing.assert_close(weights * squared_error, snr.clamp(max=5.0), rtol=1e-4, atol=1e-6)

    def test_weight_at_zero_snr_is_finite(self, prediction_type: PredictionType):
        assert min_snr_weights(torch.zeros(1), 5.0, prediction_type).isfinite().all()


@pytest.mark.parametrize("timestep_sampling", ["uniform", "logit_normal", "mode", "importance"])
def test_timesteps_follow_the_distribution(timestep_sampling: TimestepSampling):
    torch.manual_seed(0)
    sampler = TimestepSampler(timestep_sampling, 10)
    timesteps, weights = sampler.sample(20_000)
    assert timesteps.dtype == torch.long
    assert timesteps.unique().tolist() == list(range(10))
    assert (weights == 1).all()
    shares = torch.bincount(timesteps) / 20_000
    expected = torch.full((10,), 0.1)
    if timestep_sampling == "logit_normal":
        expected = torch.distributions.Normal(0, 1).cdf(torch.logit(torch.linspace(0, 1, 11))).diff()
    if timestep_sampling == "mode":
        uniform = torch.linspace(0, 1, 100_001)
        position = 1 - uniform - 1.29 * ((torch.pi * uniform / 2).cos() ** 2 - 1 + uniform)
        expected = torch.histc(position, 10, 0, 1) / 100_001
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)


def test_logit_normal_uses_its_mean_and_std():
    torch.manual_seed(0)
    timesteps, _ = TimestepSampler("logit_normal", 1000, logit_mean=-2.0, logit_std=0.1).sample(1000)
    assert abs(timesteps.float().mean().item() - 1000 * torch.sigmoid(torch.tensor(-2.0)).item()) < 5


class TestImportance:
    def test_prefers_large_losses_and_stays_unbiased(self):
        torch.manual_seed(0)
        sampler = TimestepSampler("importance", 2)
        losses = torch.tensor([1.0, 3.0])
        for _ in range(9):
            sampler.update(torch.tensor([0, 1]), losses)
        assert (sampler.sample(100)[1] == 1).all(), "sampling must be uniform until each timestep has ten losses"
        sampler.update(torch.tensor([1, 0]), losses.flip(0))
        timesteps, weights = sampler.sample(100_000)
        assert timesteps.float().mean().item() == pytest.approx(0.75, abs=0.01)
        assert (weights * losses[timesteps]).mean().item() == pytest.approx(losses.mean().item(), abs=0.02)

    def test_uses_the_last_ten_losses(self):
        sampler = TimestepSampler("importance", 2)
        for value in range(25):
            sampler.update(torch.tensor([0, 0]), torch.tensor([float(value), float(value)]))
        assert sampler.losses[0].sort().values.tolist() == [20, 20, 21, 21, 22, 22, 23, 23, 24, 24]

    @pytest.mark.parametrize("loss", [0.0, float("inf"), float("nan")])
    def test_invalid_losses_do_not_invalidate_the_probabilities(self, loss):
        sampler = TimestepSampler("importance", 2)
        for _ in range(10):
            sampler.update(torch.tensor([0, 1]), torch.tensor([1.0, loss]))
        timesteps, weights = sampler.sample(100)
        assert set(timesteps.tolist()) <= {0, 1}
        assert weights.isfinite().all()


def test_dropped_labels_become_the_null_label():
    torch.manual_seed(0)
    labels = torch.arange(10_000) % 10
    dropped = drop_labels(labels, 0.25, null_label=10)
    assert (dropped == 10).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(dropped[dropped != 10], labels[dropped != 10])
    assert torch.equal(drop_labels(labels, 0.0, null_label=10), labels)
    assert (drop_labels(labels, 1.0, null_label=10) == 10).all()


def test_dropped_token_ids_become_those_of_the_null_label():
    torch.manual_seed(0)
    token_ids, null = torch.tensor([[1, 2, 3]]).expand(2, 5_000, 3), torch.tensor([7, 8, 8])
    dropped = drop_labels(token_ids, 0.25, null)
    is_null = (dropped == null).all(-1)
    assert is_null.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(dropped[~is_null], token_ids[~is_null])
