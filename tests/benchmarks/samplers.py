"""How well each scheduler draws with so many evaluations, and with guidance: by the classifier's distance, and by FID
where there are more than 2,048 samples and its network is in the cache.

    python tests/benchmarks/samplers.py base

All settings start from the same noise, and are asked for the same classes. With `--weak`, an earlier checkpoint of
the same model, guidance is by that one (autoguidance, arXiv 2406.02070, equation 3) and not by the null label. Heun
draws at the noise levels of arXiv 2206.00364 (table 1), from its largest on, for a cosine schedule's have no end.
"""

import argparse
from itertools import product
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DOutput

from fmnist_diffusion import load_pipeline
from fmnist_diffusion.cli import DTYPES, SCHEDULERS
from fmnist_diffusion.evaluation import FastMetrics, SamplingSettings, draw_all
from fmnist_diffusion.schedulers import scheduler_class


HEUN_SIGMA_MAX = 80


class Bench:
    def __init__(self, options: argparse.Namespace):
        dtype = getattr(torch, options.dtype)
        self.pipe = load_pipeline(options.pipeline, scheduler=None, dtype=dtype).to(options.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.weak = load_pipeline(options.weak, dtype=dtype).to(options.device).unet if options.weak else None
        self.strong_forward = self.pipe.unet.forward
        self.metrics = FastMetrics(options.num_samples, options.device)
        self.num_samples, self.batch_size = options.num_samples, options.batch_size
        self.trained = self.pipe.scheduler
        self.own = {} if options.timestep_power is None else {"timestep_power": options.timestep_power}

    def autoguide(self, scale: float) -> None:
        def forward(*args: Any, **kwargs: Any) -> UNet2DOutput:
            strong, weak = self.strong_forward(*args, **kwargs).sample, self.weak(*args, **kwargs).sample
            return UNet2DOutput(weak + scale * (strong - weak))

        self.pipe.unet.forward = self.strong_forward if scale == 1 else forward

    def row(self, scheduler: str, steps: int, scale: float = 1.0, interval: tuple[float, float] = (0.0, 1.0)) -> str:
        config = self.own if scheduler == "sde-dpmsolver++" else {}
        if scheduler == "heun":
            noise_levels = (1 / self.trained.alphas_cumprod - 1).sqrt()
            num_timesteps = int((noise_levels <= HEUN_SIGMA_MAX).sum())
            config = {
                "num_train_timesteps": num_timesteps,
                "trained_betas": self.trained.betas[:num_timesteps].tolist(),
                "use_karras_sigmas": True,
            }
        self.pipe.scheduler = scheduler_class(SCHEDULERS[scheduler]).from_config(self.trained.config, **config)
        conditional = self.pipe.unet.config.num_class_embeds is not None
        settings = SamplingSettings(steps, scale, interval, conditional)
        if self.weak is not None:
            self.autoguide(scale)
            settings = SamplingSettings(steps, conditional=conditional)
        samples = draw_all(self.pipe, settings, self.num_samples, self.batch_size)
        metrics = self.metrics(samples)
        evaluations = samples.evaluations / self.num_samples
        if self.weak is not None and scale != 1:
            evaluations *= 2
        agreement = f"{metrics['class_agreement']:.1%}" if conditional else ""
        where = "by the weak one" if self.weak is not None else f"in {interval[0]:g} to {interval[1]:g}"
        guidance = "" if scale == 1 else f"{scale:g} {where}"
        distance = metrics["classifier_frechet_distance_train"]
        fid = f"{metrics['fid_train']:.2f}" if "fid_train" in metrics else ""
        return f"| {scheduler} | {steps} | {guidance} | {evaluations:.0f} | {distance:.3f} | {agreement} | {fid} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="a bundled pipeline, a folder, or a repository on the Hub")
    parser.add_argument("--weak", metavar="PIPELINE", help="an earlier checkpoint of it, to guide by")
    parser.add_argument("-n", "--num-samples", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--schedulers",
        nargs="+",
        choices=SCHEDULERS,
        default=["ddpm", "ddim", "dpmsolver++", "unipc", "heun", "sde-dpmsolver++"],
    )
    parser.add_argument(
        "--evaluations", nargs="+", type=int, default=[50, 20, 10, 5], help="guided images take up to twice these"
    )
    parser.add_argument("--timestep-power", type=float, help="of sde-dpmsolver++, in place of its default")
    parser.add_argument("--guidance-scales", nargs="+", type=float, default=[1.0])
    parser.add_argument("--guidance-interval", nargs=2, type=float, default=[0.0, 1.0])
    options = parser.parse_args()
    if options.weak and options.guidance_interval != [0.0, 1.0]:
        parser.error("--weak guides all the way: leave out --guidance-interval")
    bench = Bench(options)
    print("| scheduler | steps | guidance | evaluations | classifier's distance | of the class asked for | FID |")
    print("|---|---|---|---|---|---|---|")
    for scheduler, evaluations, scale in product(options.schedulers, options.evaluations, options.guidance_scales):
        # Heun evaluates twice in each step but the last.
        steps = (evaluations + 1) // 2 if scheduler == "heun" else evaluations
        print(bench.row(scheduler, steps, scale, tuple(options.guidance_interval)), flush=True)


if __name__ == "__main__":
    main()
