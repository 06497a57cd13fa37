from collections.abc import Callable
from pathlib import Path

import torch
from run_files import load_weights
from safetensors.torch import load_file


def test_ema_weights_are_exported(tmp_path: Path, make_trainer: Callable):
    trainer = make_trainer("--ema.enabled=true", "--optimizer.learning_rate=1e-2", "--max_train_steps=6")
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-6"
    weights, ema = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "ema"))
    exported = load_weights(tmp_path / "run")
    for name, value in ema.items():
        assert torch.equal(exported[name], value), name
        assert not torch.equal(weights[name], value), name

    # The statistics of BatchNorm are re-estimated for the EMA weights, as the mean over the batches of an epoch.
    components = trainer.components
    unet, statistics = components.unet.train(), {}
    unet.load_state_dict(exported)
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            statistics[name] = []

            def record(module, args, batches=statistics[name]):
                batches.append((args[0].mean((0, 2, 3)), args[0].var((0, 2, 3))))

            module.register_forward_pre_hook(record)
    with torch.no_grad():
        for images, labels, generator in components.batches.epoch(0):
            batch = components.loss.prepare_batch(images, labels, generator)
            unet(batch.images, batch.timesteps)
    for name, batches in statistics.items():
        mean, variance = (torch.stack(values).mean(0) for values in zip(*batches, strict=True))
        torch.testing.assert_close(exported[f"{name}.running_mean"], mean)
        torch.testing.assert_close(exported[f"{name}.running_var"], variance)
    assert statistics
