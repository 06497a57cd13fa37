"""The models and training settings that speedrun.py compares.

The settings of the other projects are those of their examples:

- `diffusers`: the defaults of `examples/unconditional_image_generation/train_unconditional.py`, with EMA as in its
  README. Images have one channel and are padded to 32x32, because the model halves them five times.
- `denoising-diffusion-pytorch`: the README of version 2.3.4. Images have one channel and are padded to 32x32, because
  the model halves them three times.
- `smalldiffusion-unet` and `smalldiffusion-dit`: `examples/fashion_mnist_unet.py` and `examples/fashion_mnist_dit.py`.

Three more changes make the other projects faster: their training images are decoded in advance, they use the fused
implementations of Adam and AdamW, and they use the channels_last memory format where it is faster on a CPU.
"""

import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from mocked_packages import UNUSED_PACKAGES, mock_packages

from fmnist_diffusion.data import load_images, to_uint8


sys.path.append(str(Path(__file__).parents[2] / "training"))

from averaging import copy_model, reestimate_batch_norm
from batches import Batches
from components import get_memory_format, make_accelerator, make_components, make_lr_scheduler
from losses import NoisyBatch
from parsing import parse_config
from resolve import resolve_config


NUM_STEPS = 20
PADDING = 2


class Entry(ABC):
    """A model that is trained from random weights.

    Args:
        train_data_dir: Folder with the IDX files of the training images; see [`load_images`].
        seed: Random seed of the initial weights, the order of the images, and the noise.

    Attributes:
        batch_size: Number of images per optimizer step.
        model: The model to train.
        bf16: Whether to use bf16 autocast instead of float32.
        samplers: Names of the samplers to evaluate, each with 20 function evaluations.
    """

    batch_size: int
    model: Any
    augmentation = "none"
    num_accumulated = 1
    max_grad_norm: float | None = 1.0
    channels_last = False
    samplers = ("default",)

    def __init__(self, train_data_dir: str | None, seed: int):
        self.bf16 = False
        self.device = Accelerator().device
        set_seed(seed)
        self.batches = Batches(
            load_images(train_data_dir=train_data_dir),
            self.batch_size,
            seed,
            self.device,
            augmentation=self.augmentation,
        )
        self.start()

    def start(self) -> None:
        self.gradients: Callable[..., None] = self.compute_gradients
        self.stream = self.iterate()

    def prepare(self, model: torch.nn.Module) -> Any:
        """Moves a model to the device, in the fastest memory format."""
        fast = self.channels_last or self.device.type == "cuda"
        memory_format = torch.channels_last if fast else torch.contiguous_format
        return model.to(self.device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]

    def iterate(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yields the arguments of `compute_loss` for each batch.

        By default, these are images in [-1, 1], float32 `(batch_size, 1, 28, 28)`.
        """
        for epoch in count():
            for images, _, _ in self.batches.epoch(epoch):
                yield (images,)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.model.parameters())

    @abstractmethod
    def compute_loss(self, *inputs: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def update(self) -> None:
        """Takes an optimizer step and updates the EMA."""

    @abstractmethod
    def sample(self, num_images: int, sampler: str) -> torch.Tensor:
        """Generates uint8 images `(num_images, 1, 28, 28)` with the EMA weights, in float32.

        `sampler` is one of `samplers` and uses 20 function evaluations.
        """

    def compute_gradients(self, *inputs: torch.Tensor) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        for chunks in zip(*(value.chunk(self.num_accumulated) for value in inputs), strict=True):
            with self.autocast():
                loss = self.compute_loss(*chunks)
            (loss / self.num_accumulated).backward()

    def step(self) -> None:
        """Trains on one batch."""
        inputs = next(self.stream)
        if self.device.type == "cuda" and self.gradients == self.compute_gradients:
            self.gradients = CUDAGraph(self.compute_gradients, *inputs)
        self.gradients(*inputs)
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.update()


class CUDAGraph:
    """Captures a function in a CUDA graph, which reduces the launch overhead of small batches.

    A replay overwrites the gradients of the last call, so they must not be set to `None`.
    """

    def __init__(self, function: Callable[..., None], *inputs: torch.Tensor):
        self.inputs = [value.clone() for value in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            function(*self.inputs)

    def __call__(self, *inputs: torch.Tensor) -> None:
        for own, value in zip(self.inputs, inputs, strict=True):
            own.copy_(value)
        self.graph.replay()


class Ours(Entry):
    """This project's trainer.

    Args:
        settings: Command-line arguments of the trainer.
        num_images: Number of images of the run, which determines the learning rate schedule.
    """

    def __init__(self, train_data_dir: str | None, seed: int, settings: list[str], num_images: int):
        # The trainer requires a new or empty output folder, but the benchmark writes nothing.
        with tempfile.TemporaryDirectory() as folder:
            overrides = [f"--seed={seed}", f"--output_dir={folder}", "--num_epochs=1000000", "--report_to=none"]
            config = parse_config([*settings, *overrides])
            config = replace(config, data=replace(config.data, train_data_dir=train_data_dir))
            if config.gradient_accumulation_steps != 1 or config.objective.timestep_sampling == "importance":
                raise SystemExit(
                    "speedrun.py: error: speedrun.py does not support `--gradient_accumulation_steps` or"
                    " `--objective.timestep_sampling=importance`. Omit these settings."
                )
            steps = max(num_images // int(config.train_batch_size), 1)
            config = resolve_config(replace(config, max_train_steps=steps))
        # The entries have their own autocast, and CUDA graphs replace compilation on a GPU.
        config = replace(config, mixed_precision="no", compile=config.compile and not torch.cuda.is_available())
        self.config, self.accelerator = config, make_accelerator(config.mixed_precision)
        self.bf16, self.device = False, self.accelerator.device
        self.batch_size, self.max_grad_norm = config.images_per_step, config.optimizer.max_grad_norm
        set_seed(seed)
        self.components = make_components(config, self.accelerator)
        self.batches, self.model = self.components.batches, self.components.unet
        steps = config.get_total_steps(len(self.batches))
        self.lr_scheduler = make_lr_scheduler(config.optimizer, self.components.optimizer, steps, 0)
        self.start()

    def iterate(self) -> Iterator[tuple[torch.Tensor, ...]]:
        memory_format = get_memory_format(self.config)
        for epoch in count():
            for images, labels, generator in self.batches.epoch(epoch):
                batch = self.components.loss.prepare_batch(images.to(memory_format=memory_format), labels, generator)
                class_labels = () if batch.class_labels is None else (batch.class_labels,)
                yield batch.images, batch.timesteps, batch.target, batch.weights, *class_labels

    def compute_loss(self, *inputs: torch.Tensor) -> torch.Tensor:
        images, timesteps, target, weights, *class_labels = inputs
        batch = NoisyBatch(images, timesteps, class_labels[0] if class_labels else None, target, weights)
        prediction = self.model(batch.images, batch.timesteps, batch.class_labels).sample
        return self.components.loss(prediction, batch).total

    def update(self) -> None:
        self.components.optimizer.step()
        self.lr_scheduler.step()
        if self.components.ema is not None:
            self.components.ema.step(self.model.parameters())

    def sample(self, num_images: int, sampler: str) -> torch.Tensor:
        from fmnist_diffusion.sampling import Samples, SamplingConfig, generate, make_pipeline

        components = self.components
        unet = copy_model(self.accelerator.unwrap_model(self.model), components.ema)
        if components.ema is not None:
            reestimate_batch_norm(unet, components.batches, components.loss, self.accelerator)
        pipe = make_pipeline(self.prepare(unet), components.noise_scheduler, NUM_STEPS)
        pipe.set_progress_bar_config(disable=True)
        labels = None if components.loss.null_label is None else range(components.loss.null_label)
        batches = generate(pipe, SamplingConfig(), num_images, class_labels=labels, batch_size=1000)
        return Samples.concatenate(list(batches)).images


def sample_in_batches(generate_batch: Callable[[int], torch.Tensor], num_images: int) -> torch.Tensor:
    """Returns uint8 images on the CPU. `generate_batch(batch_size)` returns `batch_size` images in [-1, 1]."""
    sizes = [min(1000, num_images - start) for start in range(0, num_images, 1000)]
    return torch.cat([to_uint8(generate_batch(size)).cpu() for size in sizes])


def pad(images: torch.Tensor) -> torch.Tensor:
    """Pads images with black from 28x28 to 32x32."""
    return F.pad(images, 4 * [PADDING], value=-1.0)


def crop(images: torch.Tensor) -> torch.Tensor:
    return images[..., PADDING:-PADDING, PADDING:-PADDING]


class DiffusersExample(Entry):
    batch_size = 16
    samplers = ("ddim", "dpmsolver++")
    num_epochs = 100

    def __init__(self, train_data_dir: str | None, seed: int):
        super().__init__(train_data_dir, seed)
        attention = 4
        blocks = ["DownBlock2D"] * 6, ["UpBlock2D"] * 6
        blocks[0][attention], blocks[1][5 - attention] = "AttnDownBlock2D", "AttnUpBlock2D"
        model = UNet2DModel(
            sample_size=32,
            in_channels=1,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=tuple(blocks[0]),
            up_block_types=tuple(blocks[1]),
        )
        self.model = self.prepare(model)
        self.noise_scheduler: Any = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=True
        )
        self.lr_scheduler = get_scheduler(
            "cosine",
            self.optimizer,
            num_warmup_steps=500,
            num_training_steps=self.num_epochs * len(self.batches),
        )
        self.ema = EMAModel(
            self.parameters, decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=True
        )

    def compute_loss(self, *inputs: torch.Tensor) -> torch.Tensor:
        (images,) = inputs
        images = pad(images)
        noise = torch.randn_like(images)
        timesteps = torch.randint(1000, (len(images),), device=self.device)
        noisy_images = self.noise_scheduler.add_noise(images, noise, timesteps)
        return F.mse_loss(self.model(noisy_images, timesteps).sample.float(), noise)

    def update(self) -> None:
        self.optimizer.step()
        self.lr_scheduler.step()
        self.ema.step(self.model.parameters())

    def make_sampler(self, sampler: str) -> Any:
        config = self.noise_scheduler.config
        if sampler == "ddim":
            return DDIMScheduler.from_config(config, timestep_spacing="trailing")
        # With `sample_max_value=1.0`, thresholding clips the predicted x0 to [-1, 1], like DDIM.
        return DPMSolverMultistepScheduler.from_config(
            config, timestep_spacing="trailing", thresholding=True, sample_max_value=1.0
        )

    @torch.no_grad()
    def sample(self, num_images: int, sampler: str) -> torch.Tensor:
        scheduler = self.make_sampler(sampler)

        def generate_batch(size: int) -> torch.Tensor:
            scheduler.set_timesteps(NUM_STEPS, device=self.device)
            images = torch.randn(size, 1, 32, 32, device=self.device)
            for timestep in scheduler.timesteps:
                prediction = self.model(images, timestep).sample
                images = scheduler.step(prediction, timestep, images).prev_sample
            return crop(images)

        with use_ema_weights(self.model, self.ema):
            return sample_in_batches(generate_batch, num_images)


@contextmanager
def use_ema_weights(model: torch.nn.Module, ema: EMAModel) -> Iterator[None]:
    """Temporarily replaces the weights of `model` with the EMA weights."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    model.eval()
    yield
    ema.restore(model.parameters())
    model.train()


class DenoisingDiffusion(Entry):
    batch_size = 64
    num_accumulated = 2
    augmentation = "flip"

    def __init__(self, train_data_dir: str | None, seed: int):
        with mock_packages(*UNUSED_PACKAGES):
            from denoising_diffusion_pytorch.denoising_diffusion_pytorch import (  # pyright: ignore[reportMissingImports]
                GaussianDiffusion,
                Unet,
            )
            from ema_pytorch import EMA  # pyright: ignore[reportMissingImports]

        super().__init__(train_data_dir, seed)
        unet = self.prepare(Unet(dim=64, dim_mults=(1, 2, 4, 8), channels=1, flash_attn=True))
        self.model = GaussianDiffusion(unet, image_size=32, timesteps=1000, sampling_timesteps=NUM_STEPS)
        self.model.to(self.device)
        self.optimizer = torch.optim.Adam(self.parameters, lr=8e-5, betas=(0.9, 0.99), fused=True)
        self.ema = EMA(self.model, beta=0.995, update_every=10).to(self.device)

    def compute_loss(self, *inputs: torch.Tensor) -> torch.Tensor:
        (images,) = inputs
        # The example scales images to [0, 1].
        return self.model((pad(images) + 1) / 2)

    def update(self) -> None:
        self.optimizer.step()
        self.ema.update()

    def sample(self, num_images: int, sampler: str) -> torch.Tensor:
        self.ema.ema_model.eval()
        return sample_in_batches(lambda size: 2 * crop(self.ema.ema_model.sample(size)) - 1, num_images)


class SmallDiffusion(Entry):
    batch_size = 1024
    augmentation = "flip"
    max_grad_norm = None
    learning_rate: float
    ema_decay: float

    def __init__(self, train_data_dir: str | None, seed: int):
        with mock_packages(*UNUSED_PACKAGES):
            import smalldiffusion  # pyright: ignore[reportMissingImports]

        super().__init__(train_data_dir, seed)
        self.library = smalldiffusion
        self.schedule = self.make_schedule()
        self.schedule.sigmas = self.schedule.sigmas.to(self.device)
        self.model = self.prepare(self.make_model())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.learning_rate, fused=True)
        # The example uses torch-ema, which has the same warm-up.
        self.ema = EMAModel(self.parameters, decay=self.ema_decay, foreach=True)

    @abstractmethod
    def make_schedule(self) -> Any: ...

    @abstractmethod
    def make_model(self) -> torch.nn.Module: ...

    def compute_loss(self, *inputs: torch.Tensor) -> torch.Tensor:
        (images,) = inputs
        # `generate_train_sample` of the library would sample on the CPU.
        indices = torch.randint(len(self.schedule), (len(images), 1, 1, 1), device=self.device)
        return self.model.get_loss(images, self.schedule.sigmas[indices], torch.randn_like(images))

    def update(self) -> None:
        self.optimizer.step()
        self.ema.step(self.model.parameters())

    def sample(self, num_images: int, sampler: str) -> torch.Tensor:
        sigmas = self.schedule.sample_sigmas(NUM_STEPS)

        def generate_batch(size: int) -> torch.Tensor:
            *_, images = self.library.samples(self.model, sigmas, gam=1.6, batchsize=size)
            return images

        with use_ema_weights(self.model, self.ema):
            return sample_in_batches(generate_batch, num_images)


class SmallDiffusionUnet(SmallDiffusion):
    learning_rate, ema_decay = 7e-4, 0.999

    def make_schedule(self) -> Any:
        return self.library.ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800)

    def make_model(self) -> torch.nn.Module:
        return self.library.Scaled(self.library.Unet)(28, 1, 1, ch=64, ch_mult=(1, 1, 2), attn_resolutions=(14,))


class SmallDiffusionDiT(SmallDiffusion):
    learning_rate, ema_decay = 1e-3, 0.99
    channels_last = True

    def make_schedule(self) -> Any:
        return self.library.ScheduleDDPM(beta_start=0.0001, beta_end=0.02, N=1000)

    def make_model(self) -> torch.nn.Module:
        return self.library.DiT(in_dim=28, channels=1, patch_size=2, depth=6, head_dim=32, num_heads=6, mlp_ratio=4.0)
