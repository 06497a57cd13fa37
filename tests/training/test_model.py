"""New models and the noise schedule; test_adaptation.py tests pretrained weights."""

from dataclasses import replace

import torch
from diffusers import DPMSolverMultistepScheduler

from config import DataConfig, ResolvedConfig, SchedulerConfig
from fmnist_diffusion import FashionMNISTUNet2DModel
from fmnist_diffusion.data import FASHION_MNIST_LABELS
from model import make_model
from noise_schedule import make_noise_scheduler


TINY = {"block_out_channels": [8, 16], "attention_head_dim": 8}
CONFIG = ResolvedConfig(model=TINY, data=DataConfig(resolution=28, channels=1))


def test_images_determine_size_channels_and_classes():
    data = DataConfig(resolution=(16, 24), channels=3)
    unet = make_model(ResolvedConfig(model=TINY | {"num_class_embeds": 2}, data=data), ("cat", "dog"), None, None)
    assert tuple(unet.config["sample_size"]) == (16, 24)
    assert (unet.config["in_channels"], unet.config["out_channels"]) == (3, 3)
    assert unet.config["num_class_embeds"] == 2
    assert tuple(unet.config["label_names"]) == ("cat", "dog")


def test_unconditional_model_ignores_class_names():
    unet = make_model(CONFIG, FASHION_MNIST_LABELS, None, None)
    assert unet.config["num_class_embeds"] is None
    assert unet.config["label_names"] is None


def test_sigmoid_schedule_works_with_other_schedulers():
    scheduler = make_noise_scheduler(SchedulerConfig(beta_schedule="sigmoid"))
    torch.testing.assert_close(DPMSolverMultistepScheduler.from_config(scheduler.config).betas, scheduler.betas)


def test_fine_tuning_starts_with_the_pretrained_weights():
    pretrained = FashionMNISTUNet2DModel(**TINY)
    unet = make_model(replace(CONFIG, init_from="pretrained"), None, pretrained, None)
    for name, weight in pretrained.state_dict().items():
        assert torch.equal(unet.state_dict()[name], weight), name
