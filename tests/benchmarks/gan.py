"""Trains class-conditional GANs and compares them with diffusion models that were trained for the same time.

    python tests/benchmarks/gan.py train --seed 0 -o output/gan/0
    fmnist-diffusion evaluate output/gan/0/samples.npz -o output/gan/0/evaluation
    accelerate launch --cpu --num_processes=1 --num_cpu_threads_per_process=2 training/train.py \
        --config training/configs/speedrun.yaml --num_epochs=auto --max_train_steps=N --seed=0 \
        --output_dir=output/gan/diffusion-0
    fmnist-diffusion evaluate output/gan/diffusion-0/pipeline -o output/gan/diffusion-0/evaluation
    python tests/benchmarks/gan.py report output/gan/*

`train` runs training steps for two hours, not counting the time between the steps, and resumes an interrupted run. It
uses bf16 on CPUs where the trainer of the diffusion model uses bf16. N is the number of steps that the trainer
completes in two hours. These two hours include data loading and compilation, so the comparison favors the GAN. Do not
run other programs during these measurements. `report` prints the mean and standard deviation of the metrics over the
evaluated runs of each kind of model.

The generator has 3.2 M parameters (the model of `speedrun.yaml`: 3.7 M). Both networks are residual networks
(Mescheder et al., 2018, arXiv 1801.04406, appendix D). The generator uses conditional batch normalization (Dumoulin et
al., 2017, arXiv 1610.07629), and the discriminator is a projection discriminator (Miyato and Koyama, 2018, arXiv
1802.05637). They are trained with the non-saturating loss and the R1 penalty (equation 9 of Mescheder et al.), which
is computed every 16 steps (Karras et al., 2020, arXiv 1912.04958, appendix B). The samples use the EMA of the
generator.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import nn

from fmnist_diffusion.data import load_images, to_uint8


sys.path.append(str(Path(__file__).parents[2] / "training"))

from batches import Batches
from machine import choose_mixed_precision


NUM_CLASSES = 10
LATENT_DIM = 128
CLASS_DIM = 64
R1_GAMMA = 0.1
R1_INTERVAL = 16
BATCH_SIZE = 64
SECONDS_PER_CHECKPOINT = 120
BATCH_NORM_BATCHES = 50
METRICS = {
    "fid_train": "FID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "class_accuracy": "class accuracy",
}


class ConditionalBatchNorm(nn.Module):
    """Batch normalization whose scale and shift depend on the embedding of the noise and the class."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale_shift = nn.Linear(LATENT_DIM + CLASS_DIM, 2 * channels)

    def forward(self, hidden_states: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        scale, shift = self.scale_shift(emb)[:, :, None, None].chunk(2, dim=1)
        return self.norm(hidden_states) * (1 + scale) + shift


class GeneratorBlock(nn.Module):
    """A residual block that doubles the height and width."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1, self.norm2 = ConditionalBatchNorm(in_channels), ConditionalBatchNorm(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden_states: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        residual = F.interpolate(F.silu(self.norm1(hidden_states, emb)), scale_factor=2.0)
        residual = self.conv2(F.silu(self.norm2(self.conv1(residual), emb)))
        return F.interpolate(self.shortcut(hidden_states), scale_factor=2.0) + residual


class Generator(nn.Module):
    """Maps noise `(B, 128)` and class labels `(B,)` to images `(B, 1, 28, 28)` in [-1, 1]."""

    def __init__(self, channels: tuple[int, int, int] = (256, 128, 64)):
        super().__init__()
        self.class_embedding = nn.Embedding(NUM_CLASSES, CLASS_DIM)
        self.conv_in = nn.Linear(LATENT_DIM + CLASS_DIM, channels[0] * 7 * 7)
        self.blocks = nn.ModuleList(map(GeneratorBlock, channels, channels[1:]))
        self.norm_out = nn.BatchNorm2d(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], 1, 3, padding=1)

    def forward(self, noise: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        emb = torch.cat([noise, self.class_embedding(class_labels)], dim=1)
        hidden_states = self.conv_in(emb).unflatten(1, (-1, 7, 7))
        for block in self.blocks:
            hidden_states = block(hidden_states, emb)
        return self.conv_out(F.silu(self.norm_out(hidden_states))).tanh()


class DiscriminatorBlock(nn.Module):
    """A residual block without normalization that halves the height and width."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(hidden_states, 0.2)), 0.2))
        # The factor 0.1 is that of Mescheder et al.
        return F.avg_pool2d(self.shortcut(hidden_states) + 0.1 * residual, 2)


class Discriminator(nn.Module):
    """Maps images `(B, 1, 28, 28)` and class labels `(B,)` to logits `(B,)`, which are high for real images."""

    def __init__(self, channels: tuple[int, int, int] = (64, 128, 256)):
        super().__init__()
        self.conv_in = nn.Conv2d(1, channels[0], 3, padding=1)
        self.blocks = nn.Sequential(*map(DiscriminatorBlock, channels, channels[1:]))
        self.conv_out = nn.Conv2d(channels[-1], channels[-1], 3, padding=1)
        self.logit = nn.Linear(channels[-1], 1)
        self.class_embedding = nn.Embedding(NUM_CLASSES, channels[-1])

    def forward(self, images: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv_out(F.leaky_relu(self.blocks(self.conv_in(images)), 0.2))
        features = F.leaky_relu(hidden_states, 0.2).mean((2, 3))
        return self.logit(features)[:, 0] + (self.class_embedding(class_labels) * features).sum(1)


class GAN:
    """The networks, optimizers and random state of a run.

    Args:
        seed: Random seed of the initial weights and of the noise.
        generator: The generator; its EMA generates the samples.
        bf16: Whether to train with bf16 autocast. The R1 penalty and the samples always use float32.
    """

    def __init__(self, seed: int, generator: Generator, discriminator: Discriminator, bf16: bool = False):
        self.generator, self.discriminator, self.bf16 = generator, discriminator, bf16
        self.ema = EMAModel(generator.parameters(), decay=0.999, use_ema_warmup=True, power=3 / 4)
        adam: dict[str, Any] = {"lr": 5e-4, "betas": (0.0, 0.99), "fused": True}
        self.generator_optimizer = torch.optim.Adam(generator.parameters(), **adam)
        self.discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), **adam)
        self.random = torch.Generator().manual_seed(seed)
        self.num_steps, self.seconds = 0, 0.0

    def autocast(self, enabled: bool = True) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16 and enabled)

    def generate(self, class_labels: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(len(class_labels), LATENT_DIM, generator=self.random)
        with self.autocast():
            return self.generator(noise, class_labels).float()

    def step(self, images: torch.Tensor, class_labels: torch.Tensor) -> dict[str, float]:
        """Updates both networks with a batch of real images in [-1, 1]. Returns the losses."""
        losses = self.update_discriminator(images, class_labels) | self.update_generator(class_labels)
        self.ema.step(self.generator.parameters())
        self.num_steps += 1
        return losses

    def update_discriminator(self, images: torch.Tensor, class_labels: torch.Tensor) -> dict[str, float]:
        with torch.no_grad():
            fake = self.generate(class_labels)
        penalize = self.num_steps % R1_INTERVAL == 0
        images.requires_grad_(penalize)
        with self.autocast(not penalize):
            real_logits = self.discriminator(images, class_labels).float()
            fake_logits = self.discriminator(fake, class_labels).float()
        loss = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
        losses = {"discriminator_loss": loss.item()}
        if penalize:
            penalty = compute_r1_penalty(real_logits, images)
            losses["r1_penalty"] = penalty.item()
            loss = loss + R1_INTERVAL * R1_GAMMA / 2 * penalty
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        self.discriminator_optimizer.step()
        return losses

    def update_generator(self, class_labels: torch.Tensor) -> dict[str, float]:
        self.discriminator.requires_grad_(False)
        fake = self.generate(class_labels)
        with self.autocast():
            logits = self.discriminator(fake, class_labels)
        loss = F.softplus(-logits.float()).mean()
        self.generator_optimizer.zero_grad()
        loss.backward()
        self.generator_optimizer.step()
        self.discriminator.requires_grad_(True)
        return {"generator_loss": loss.item()}

    @torch.no_grad()
    def sample(self, class_labels: torch.Tensor, seed: int, batch_size: int = 100) -> torch.Tensor:
        """Samples uint8 images `(N, 1, 28, 28)` of the classes with the EMA weights.

        The statistics of batch normalization are estimated for these weights.
        """
        generator, random = copy.deepcopy(self.generator), torch.Generator().manual_seed(seed)
        self.ema.copy_to(generator.parameters())
        for module in generator.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        for _ in range(BATCH_NORM_BATCHES):
            noise = torch.randn(batch_size, LATENT_DIM, generator=random)
            generator(noise, torch.arange(batch_size) % NUM_CLASSES)
        generator.eval()
        noise = torch.randn(len(class_labels), LATENT_DIM, generator=random)
        batches = zip(noise.split(batch_size), class_labels.split(batch_size), strict=True)
        return torch.cat([to_uint8(generator(*batch)) for batch in batches])

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "random": self.random.get_state(),
            "num_steps": self.num_steps,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("generator", "discriminator", "ema", "generator_optimizer", "discriminator_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.random.set_state(state["random"])
        self.num_steps, self.seconds = state["num_steps"], state["seconds"]


def compute_r1_penalty(logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared norm of the gradients of `logits` with respect to the real images."""
    (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradients.square().sum((1, 2, 3)).mean()


def iterate(batches: Batches, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields the images and labels of the batches, starting with batch number `start` of the run."""
    epoch, start = divmod(start, len(batches))
    while True:
        for images, labels, _ in batches.epoch(epoch, start):
            assert labels is not None
            yield images, labels
        epoch, start = epoch + 1, 0


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    gan = GAN(options.seed, Generator(), Discriminator(), bf16=choose_mixed_precision("cpu") == "bf16")
    for model in (gan.generator, gan.discriminator):
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    checkpoint, losses_path = options.output_dir / "checkpoint.pt", options.output_dir / "losses.jsonl"
    options.output_dir.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float]] = []
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        gan.load_state_dict(state.pop("gan"))
        rows = state["losses"]
    images = load_images(train_data_dir=options.train_data_dir)
    batches = Batches(images, BATCH_SIZE, options.seed, torch.device("cpu"))

    def save() -> None:
        temporary = checkpoint.with_suffix(".tmp")
        torch.save({"gan": gan.state_dict(), "losses": rows}, temporary)
        temporary.replace(checkpoint)
        losses_path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    saved = gan.seconds
    for real, class_labels in iterate(batches, gan.num_steps):
        if gan.seconds >= options.seconds:
            break
        start = time.perf_counter()
        losses = gan.step(real, class_labels)
        gan.seconds += time.perf_counter() - start
        if "r1_penalty" in losses:
            rows.append({"step": gan.num_steps, "seconds": round(gan.seconds, 1)} | losses)
            print(json.dumps(rows[-1]), flush=True)
        if gan.seconds - saved > SECONDS_PER_CHECKPOINT:
            save()
            saved = gan.seconds
    save()
    labels = torch.arange(options.num_samples) % NUM_CLASSES
    samples = gan.sample(labels, options.seed)
    np.savez_compressed(options.output_dir / "samples.npz", images=samples.numpy(), labels=labels.numpy())
    print(f"Trained on {gan.num_steps * BATCH_SIZE:,} images. Saved {options.output_dir / 'samples.npz'}.")


def read_metrics(folder: Path) -> dict[str, float]:
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())["metrics"]
    return {name: metrics[name] for name in METRICS}


def report(options: argparse.Namespace) -> None:
    groups: dict[str, list[dict[str, float]]] = {"GAN": [], "diffusion": []}
    for folder in options.folders:
        if (folder / "evaluation" / "metrics.json").is_file():
            groups["GAN" if (folder / "samples.npz").is_file() else "diffusion"].append(read_metrics(folder))
    print(f"| model | runs | {' | '.join(METRICS.values())} |")
    print("|---" * (len(METRICS) + 2) + "|")
    for name, runs in groups.items():
        if runs:
            columns = [format_spread([run[metric] for run in runs]) for metric in METRICS]
            print(f"| {name} | {len(runs)} | {' | '.join(columns)} |")


def format_spread(values: list[float]) -> str:
    """Returns the mean and, if there are several values, the standard deviation."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train_parser = commands.add_parser("train", help="train a GAN or resume an interrupted run, and save samples")
    train_parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    train_parser.add_argument(
        "--seconds", type=float, default=7200, help="duration of all training steps in seconds (default: %(default)s)"
    )
    train_parser.add_argument("--threads", type=int, default=2, help="number of CPU threads (default: %(default)s)")
    train_parser.add_argument("--train-data-dir", help="local copy of Fashion-MNIST (default: the dataset on the Hub)")
    train_parser.add_argument(
        "-n", "--num-samples", type=int, default=10_000, help="number of samples (default: %(default)s)"
    )
    train_parser.add_argument("-o", "--output-dir", type=Path, required=True, help="folder of the run")
    train_parser.set_defaults(run=train)
    report_parser = commands.add_parser("report", help="print the metrics of evaluated runs")
    report_parser.add_argument("folders", type=Path, nargs="+", help="folders of evaluated runs; others are skipped")
    report_parser.set_defaults(run=report)
    options = parser.parse_args(args)
    options.run(options)


if __name__ == "__main__":
    main()
