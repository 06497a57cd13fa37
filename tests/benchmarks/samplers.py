"""How well each scheduler draws with so many evaluations, and with guidance, by the classifier's distance.

    python tests/benchmarks/samplers.py base

All settings start from the same noise, and are asked for the same classes.
"""

import argparse
from itertools import product

import diffusers
import torch

from fmnist_diffusion import load_pipeline
from fmnist_diffusion.cli import SCHEDULERS
from fmnist_diffusion.evaluation import Classifier, SamplingSettings, classifier_metrics, draw


class Bench:
    def __init__(self, options: argparse.Namespace):
        self.pipe = load_pipeline(options.pipeline).to(options.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.classifier = Classifier(options.device)
        self.num_samples, self.batch_size = options.num_samples, options.batch_size
        self.config = self.pipe.scheduler.config

    def row(self, scheduler: str, steps: int, scale: float = 1.0, interval: tuple[float, float] = (0.0, 1.0)) -> str:
        self.pipe.scheduler = getattr(diffusers, SCHEDULERS[scheduler]).from_config(self.config)
        settings = SamplingSettings(steps, scale, interval, self.pipe.unet.config.num_class_embeds is not None)
        parts = [
            draw(self.pipe, settings, start, min(self.batch_size, self.num_samples - start))
            for start in range(0, self.num_samples, self.batch_size)
        ]
        features = torch.cat([self.classifier(part.images) for part in parts])
        labels = torch.cat([part.labels for part in parts]) if settings.conditional else None
        metrics = classifier_metrics(features, self.classifier.classify(features), labels)
        evaluations = sum(part.evaluations for part in parts) / self.num_samples
        agreement = f"{metrics['class_agreement']:.1%}" if settings.conditional else ""
        guidance = "" if scale == 1 else f"{scale:g} in {interval[0]:g} to {interval[1]:g}"
        distance = metrics["classifier_frechet_distance_train"]
        return f"| {scheduler} | {steps} | {guidance} | {evaluations:.0f} | {distance:.3f} | {agreement} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="a bundled pipeline, a folder, or a repository on the Hub")
    parser.add_argument("-n", "--num-samples", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--schedulers", nargs="+", choices=SCHEDULERS, default=["ddpm", "ddim", "dpmsolver++", "unipc", "heun"]
    )
    parser.add_argument(
        "--evaluations", nargs="+", type=int, default=[50, 20, 10, 5], help="guided images take twice these"
    )
    parser.add_argument("--guidance-scales", nargs="+", type=float, default=[1.0])
    parser.add_argument("--guidance-interval", nargs=2, type=float, default=[0.0, 1.0])
    options = parser.parse_args()
    bench = Bench(options)
    print("| scheduler | steps | guidance | evaluations | classifier's distance | of the class asked for |")
    print("|---|---|---|---|---|---|")
    for scheduler, evaluations, scale in product(options.schedulers, options.evaluations, options.guidance_scales):
        # Heun evaluates twice in each step but the last.
        steps = (evaluations + 1) // 2 if scheduler == "heun" else evaluations
        print(bench.row(scheduler, steps, scale, tuple(options.guidance_interval)), flush=True)


if __name__ == "__main__":
    main()
