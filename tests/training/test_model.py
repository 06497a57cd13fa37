"""New models, and models that are fine-tuned."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from config import SchedulerConfig, TrainingConfig
from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.data import FASHION_MNIST_LABELS
from fmnist_diffusion.sampling import make_pipeline
from model import make_model, make_noise_scheduler


TINY = {"block_out_channels": [8, 16], "attention_head_dim": 8}


def make_pretrained(**options) -> FashionMNISTPipeline:
    return make_pipeline(FashionMNISTUNet2DModel(**TINY, **options), make_noise_scheduler(SchedulerConfig()))


def test_images_determine_size_channels_and_classes():
    unet, _ = make_model(TrainingConfig(model=TINY | {"num_class_embeds": 2}), 16, 3, ("cat", "dog"), None)
    assert (unet.config["sample_size"], unet.config["in_channels"], unet.config["out_channels"]) == (16, 3, 3)
    assert unet.config["num_class_embeds"] == 2
    assert tuple(unet.config["label_names"]) == ("cat", "dog")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_typ": "group"}, "model: .*unexpected argument 'norm_typ'"),
        ({"down_block_types": ["DownBlock2D"]}, "model: `down_block_types` is not supported"),
        ({"sample_size": 32}, "Set `data.resolution`, `data.channels` or"),
        ({"num_class_embeds": 7}, r"must be the number of classes of the images \(10\), got 7\."),
    ],
)
def test_invalid_model_options_raise(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_model(TrainingConfig(model=options), 28, 1, FASHION_MNIST_LABELS, None)


def test_model_with_classes_needs_labels():
    with pytest.raises(ValueError, match="requires images with labels"):
        make_model(TrainingConfig(model={"num_class_embeds": 10}), 28, 1, None, None)


def test_sigmoid_schedule_works_with_other_schedulers():
    scheduler = make_noise_scheduler(SchedulerConfig(beta_schedule="sigmoid"))
    torch.testing.assert_close(DPMSolverMultistepScheduler.from_config(scheduler.config).betas, scheduler.betas)


def test_fine_tuning_starts_with_the_pretrained_weights():
    pretrained = make_pretrained()
    unet, _ = make_model(TrainingConfig(init_from="pretrained"), 28, 1, FASHION_MNIST_LABELS, pretrained)
    for name, weight in pretrained.unet.state_dict().items():
        assert torch.equal(unet.state_dict()[name], weight), name


def test_fine_tuning_adapts_to_other_classes_and_channels(caplog: pytest.LogCaptureFixture):
    pretrained = make_pretrained(num_class_embeds=10)
    with caplog.at_level(logging.INFO, logger="training"):
        unet, _ = make_model(TrainingConfig(init_from="pretrained"), 28, 3, ("cat", "dog"), pretrained)
    old, new = pretrained.unet.state_dict(), unet.state_dict()
    assert unet.config["num_class_embeds"] == 2
    assert new["class_embedding.weight"].shape[0] == 3
    assert (new["class_embedding.weight"] == old["class_embedding.weight"][-1]).all()
    assert new["conv_out.weight"].shape[0] == 3
    assert torch.equal(new["down_blocks.1.conv.weight"], old["down_blocks.1.conv.weight"])
    assert "conv_out.weight has a different shape" in caplog.text


def test_new_classes_of_an_unconditional_model_start_without_effect():
    config = TrainingConfig(init_from="pretrained", model={"num_class_embeds": 10})
    unet, _ = make_model(config, 28, 1, FASHION_MNIST_LABELS, make_pretrained())
    assert unet.class_embedding is not None
    assert not unet.class_embedding.weight.any()


def test_fine_tuning_rejects_other_architectures_and_noise_schedules():
    config = TrainingConfig(init_from="pretrained")
    for changes, message in [
        ({"model": {"act_fn": "silu"}}, r"`model.act_fn` must be relu to fine-tune pretrained, got silu\."),
        ({"model": {"num_class_embeds": None}}, "`model.num_class_embeds` must not be null"),
        (
            {"scheduler": SchedulerConfig(prediction_type="sample")},
            r"`scheduler.prediction_type` must be epsilon to fine-tune pretrained, got sample\.",
        ),
        (
            {"scheduler": SchedulerConfig(beta_schedule="squaredcos_cap_v2")},
            r"noise schedule must match that of pretrained.*beta_schedule linear, 1000 timesteps",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            make_model(replace(config, **changes), 28, 1, FASHION_MNIST_LABELS, make_pretrained(num_class_embeds=10))


def test_saved_pipeline_can_be_fine_tuned(tmp_path: Path):
    make_pretrained().save_pretrained(tmp_path)
    pretrained = FashionMNISTPipeline.from_pretrained(tmp_path)
    _, noise_scheduler = make_model(TrainingConfig(init_from=str(tmp_path)), 28, 1, None, pretrained)
    assert torch.equal(noise_scheduler.betas, make_noise_scheduler(SchedulerConfig()).betas)
