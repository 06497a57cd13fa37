"""Training: gradient checkpointing, EMA, mixed precision and memory formats."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.training_utils import EMAModel
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

from fmnist_diffusion import FashionMNISTUNet2DModel
from tiny_unets import CONFIGS, TINY, assert_close, compute_loss, make_inputs, make_model, predict


def reentrant_checkpoint(module, *args):
    return checkpoint(module.__call__, *args, use_reentrant=True)


@CONFIGS
@pytest.mark.parametrize("checkpointing_func", [None, reentrant_checkpoint])
def test_gradient_checkpointing_gives_the_same_gradients(config, checkpointing_func):
    model, inputs = make_model(config).train(), make_inputs(config)
    inputs["sample"].requires_grad_()  # Reentrant checkpointing requires an input with a gradient.
    checkpointed = copy.deepcopy(model)
    assert not checkpointed.is_gradient_checkpointing
    checkpointed.enable_gradient_checkpointing(checkpointing_func)
    assert checkpointed.is_gradient_checkpointing
    for _ in range(2):
        loss, checkpointed_loss = compute_loss(model, inputs), compute_loss(checkpointed, inputs)
        assert_close(checkpointed_loss, loss)
        loss.backward()
        checkpointed_loss.backward()
    for (name, parameter), other in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, atol=1e-5, rtol=0, msg=name)
    for name, buffer in model.named_buffers():
        assert torch.equal(checkpointed.get_buffer(name), buffer), name
    checkpointed.disable_gradient_checkpointing()
    assert not checkpointed.is_gradient_checkpointing


def test_gradient_checkpointing_is_applied_to_every_block():
    model, inputs = make_model(TINY).train(), make_inputs(TINY)
    checkpointed = []

    def record(module, *args):
        checkpointed.append(module)
        return checkpoint(module, *args, use_reentrant=False)

    model.enable_gradient_checkpointing(record)
    predict(model, **inputs)
    assert checkpointed == []
    compute_loss(model, inputs)
    assert checkpointed == [*model.down_blocks, *model.up_blocks]


@CONFIGS
def test_ema_averages_the_weights(config):
    model, inputs = make_model(config).train(), make_inputs(config)
    ema = EMAModel(model.parameters(), decay=0.5, model_cls=FashionMNISTUNet2DModel, model_config=model.config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(3):
        compute_loss(model, inputs).backward()
        optimizer.step()
        ema.step(model.parameters())
        decay = ema.cur_decay_value
        shadow = [decay * s + (1 - decay) * p.detach() for s, p in zip(shadow, model.parameters(), strict=True)]
    ema.store(model.parameters())
    trained = predict(model.eval(), **inputs)
    ema.copy_to(model.parameters())
    for parameter, expected in zip(model.parameters(), shadow, strict=True):
        assert_close(parameter.detach(), expected, atol=1e-6)
    assert not torch.equal(predict(model, **inputs), trained)
    ema.restore(model.parameters())
    assert torch.equal(predict(model, **inputs), trained)


@CONFIGS
def test_mixed_precision_gives_similar_gradients(config):
    model, inputs = make_model(config).train(), make_inputs(config)
    with torch.autocast("cpu", torch.bfloat16):
        loss = compute_loss(model, inputs)
    loss.backward()
    exact = copy.deepcopy(model)
    exact.zero_grad()
    compute_loss(exact, inputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name
    cosine = F.cosine_similarity(model.conv_out.weight.grad.flatten(), exact.conv_out.weight.grad.flatten(), dim=0)
    assert cosine > 0.99


@CONFIGS
def test_channels_last_is_kept_and_gives_the_same_output(config):
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    model.to(memory_format=torch.channels_last)
    inputs["sample"] = inputs["sample"].contiguous(memory_format=torch.channels_last)
    features = []
    model.up_blocks[-1].register_forward_hook(lambda module, args, output: features.append(output))
    assert_close(predict(model, **inputs), expected)
    assert features[0].is_contiguous(memory_format=torch.channels_last)
    compute_loss(model.train(), inputs).backward()


def test_sampling_in_training_mode_does_not_change_the_model():
    model = make_model({**TINY, "sample_size": 8}).train()
    before = copy.deepcopy(model.state_dict())
    assert "down_blocks.0.resnets.0.norm1.running_mean" in before
    pipe = DDPMPipeline(model, DDPMScheduler(num_train_timesteps=10))
    pipe.set_progress_bar_config(disable=True)
    pipe(batch_size=2, num_inference_steps=2)
    predict(model, sample=torch.full((1, 1, 8, 8), torch.inf), timestep=5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    compute_loss(model, make_inputs(TINY)).backward()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "running_" in name or "num_batches_tracked" in name}


def test_update_bn_estimates_the_running_statistics():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = make_model(TINY)

        def forward(self, sample):
            return self.unet(sample, 10)

    model, inputs = Model(), torch.randn(2, 1, 12, 16)
    features = []
    norm = model.unet.down_blocks[0].resnets[0].norm1
    norm.register_forward_pre_hook(lambda module, args: features.append(args[0]))
    update_bn([inputs], model.train())
    assert_close(norm.running_mean, features[0].mean((0, 2, 3)))
