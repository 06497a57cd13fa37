"""Compares schedulers, numbers of function evaluations (NFE) and guidance by FD-classifier and class accuracy, and by
FID if there are more than 2,048 samples and the Inception network is in the cache.

    python tests/benchmarks/samplers.py base

All rows use the same initial noise and class labels. With `--weak`, guidance uses an earlier checkpoint of the same
model in place of the unconditional prediction (autoguidance, arXiv 2406.02507, equation 3). Heun uses the noise levels
of arXiv 2206.00364 (table 1) up to sigma 80, because the noise levels of a cosine schedule are almost unbounded.
"""

import argparse
from itertools import product
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput

from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.evaluation import FastMetrics
from fmnist_diffusion.sampling import Samples, SamplingConfig, generate
from fmnist_diffusion.schedulers import SCHEDULERS, make_scheduler


HEUN_SIGMA_MAX = 80


class Benchmark:
    def __init__(self, options: argparse.Namespace):
        dtype = getattr(torch, options.dtype)
        self.options = options
        self.pipe = load_pipeline(options.pipeline, dtype=dtype).to(options.device)
        self.weak = load_pipeline(options.weak, dtype=dtype).to(options.device).unet if options.weak else None
        self.forward = self.pipe.unet.forward
        self.timestep_power = options.timestep_power or self.pipe.config.timestep_power
        self.metrics = FastMetrics(options.num_samples, options.device)

    def set_autoguidance(self, scale: float) -> None:
        def forward(*args: Any, **kwargs: Any) -> UNet2DOutput:
            strong, weak = self.forward(*args, **kwargs).sample, self.weak(*args, **kwargs).sample
            return UNet2DOutput(weak + scale * (strong - weak))

        self.pipe.unet.forward = self.forward if scale == 1 else forward

    def make_pipeline(self, name: str) -> FashionMNISTPipeline:
        config = dict(self.pipe.scheduler.config)
        if name == "heun":
            noise_schedule = DDPMScheduler.from_config(config)
            sigmas = (1 / noise_schedule.alphas_cumprod - 1).sqrt()
            num_timesteps = int((sigmas <= HEUN_SIGMA_MAX).sum())
            config |= {
                "num_train_timesteps": num_timesteps,
                "trained_betas": noise_schedule.betas[:num_timesteps].tolist(),
                "use_karras_sigmas": True,
                "clip_sample": True,
            }
        scheduler = make_scheduler(name, config)
        power = self.timestep_power if name in ("sde-dpmsolver++", "LCMScheduler") else None
        components = {name: getattr(self.pipe, name) for name in self.pipe._optional_components}
        pipe = FashionMNISTPipeline(self.pipe.unet, scheduler, timestep_power=power, **components)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def make_row(self, scheduler: str, num_inference_steps: int, guidance_scale: float) -> str:
        num_samples, interval = self.options.num_samples, tuple(self.options.guidance_interval)
        config = SamplingConfig(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, guidance_interval=interval
        )
        guidance = f"{guidance_scale:g} in {interval[0]:g} to {interval[1]:g}"
        if self.weak is not None:
            self.set_autoguidance(guidance_scale)
            config = SamplingConfig(num_inference_steps=num_inference_steps)
            guidance = f"{guidance_scale:g} with the weak checkpoint"
        num_classes = self.pipe.unet.config.num_class_embeds
        labels = None if num_classes is None else range(num_classes)
        pipe = self.make_pipeline(scheduler)
        batches = generate(pipe, config, num_samples, class_labels=labels, batch_size=self.options.batch_size)
        samples = Samples.concatenate(list(batches))
        metrics = self.metrics(samples)
        nfe = samples.num_function_evaluations / num_samples
        if self.weak is not None and guidance_scale != 1:
            nfe *= 2
        columns = [
            scheduler,
            str(num_inference_steps),
            "" if guidance_scale == 1 else guidance,
            f"{nfe:.0f}",
            f"{metrics['classifier_frechet_distance_train']:.3f}",
            f"{metrics['class_accuracy'] * 100:.1f}%" if labels else "",
            f"{metrics['fid_train']:.2f}" if "fid_train" in metrics else "",
        ]
        return f"| {' | '.join(columns)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="bundled checkpoint, local folder or Hub repository id")
    parser.add_argument("--weak", metavar="PIPELINE", help="earlier checkpoint of the same model for autoguidance")
    parser.add_argument("-n", "--num-samples", type=int, default=1000, help="samples per row (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=100, help="images per batch (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="device of the networks (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="dtype of the model (default: %(default)s)",
    )
    parser.add_argument(
        "--schedulers",
        nargs="+",
        choices=(*SCHEDULERS, "LCMScheduler"),
        default=["ddpm", "ddim", "dpmsolver++", "unipc", "heun", "sde-dpmsolver++"],
        help="schedulers to compare (default: six of them)",
    )
    parser.add_argument(
        "--nfe",
        nargs="+",
        type=int,
        default=[50, 20, 10, 5],
        help="function evaluations per image without guidance (default: 50 20 10 5)",
    )
    parser.add_argument(
        "--timestep-power",
        type=float,
        help="timestep spacing of sde-dpmsolver++ and LCMScheduler (default: that of the checkpoint)",
    )
    parser.add_argument(
        "--guidance-scales", nargs="+", type=float, default=[1.0], help="guidance scales to compare (default: 1)"
    )
    parser.add_argument(
        "--guidance-interval",
        nargs=2,
        type=float,
        default=[0.0, 1.0],
        help="range of sampling steps that use guidance, as fractions from 0 (noise) to 1 (image) (default: 0 1)",
    )
    options = parser.parse_args()
    if options.weak and options.guidance_interval != [0.0, 1.0]:
        parser.error("--guidance-interval has no effect with --weak, which guides all steps.")
    benchmark = Benchmark(options)
    print("| scheduler | steps | guidance | NFE | FD-classifier | class accuracy | FID |")
    print("|---|---|---|---|---|---|---|")
    for scheduler, nfe, scale in product(options.schedulers, options.nfe, options.guidance_scales):
        # Heun evaluates the model twice in each step except the last one.
        steps = (nfe + 1) // 2 if scheduler == "heun" else nfe
        print(benchmark.make_row(scheduler, steps, scale), flush=True)


if __name__ == "__main__":
    main()
