"""Generates the images of the README and the guides with the bundled checkpoints base, text and fast:

    python .github/images/make.py

The script does not generate fine-tuned.png and latent.png, which show other models. The screenshots require Debian's
chromium and npm.
"""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from playwright.sync_api import Page, sync_playwright

from fmnist_diffusion import load_pipeline
from fmnist_diffusion.data import FASHION_MNIST_LABELS, load_images
from fmnist_diffusion.evaluation.report import class_grid, show_image
from fmnist_diffusion.hub.static_space import make_static_space
from fmnist_diffusion.images import image_grid, save_gif, upscale
from fmnist_diffusion.loading import get_pipeline_folder
from fmnist_diffusion.sampling import Samples, SamplingConfig, generate, make_generators


FOLDER = Path(__file__).parent
PROMPTS = (
    "a dark pullover",
    "a bright pullover",
    "narrow trousers",
    "wide trousers",
    "a sleeveless dress",
    "a dress with sleeves",
    "a low-top sneaker",
    "a high-top sneaker",
    "a flat sandal",
    "a sandal with a high heel",
    "a bag with a handle",
    "a bag without a handle",
)


def sample_classes(name: str, num_inference_steps: int) -> Samples:
    """Generates eight samples of each class; they are not cherry-picked."""
    pipe = load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    config = SamplingConfig(num_inference_steps=num_inference_steps)
    return Samples.concatenate(list(generate(pipe, config, 80, class_labels=range(10))))


def draw_classes(axis: Axes, title: str, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Draws the first eight images of each class in a column."""
    show_image(axis, class_grid(images, labels))
    axis.set_xticks([28 * (i + 0.5) - 0.5 for i in range(10)], FASHION_MNIST_LABELS, rotation=35, ha="right")
    axis.set_title(title)


def save_comparison() -> None:
    """Saves test images and samples of each class."""
    samples, real = sample_classes("base", 20), load_images(split="test")
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_classes(left, "test images", real.images, real.labels)
    draw_classes(right, "samples of base, 20 NFE", samples.images, samples.labels)
    figure.savefig(FOLDER / "real-and-generated.png", dpi=90, bbox_inches="tight")


def save_few_steps() -> None:
    """Saves samples of `fast` with one, two and four steps beside samples of `base`."""
    figure = Figure(figsize=(11, 9.6), layout="constrained")
    FigureCanvasAgg(figure)
    models = (("fast", 1), ("fast", 2), ("fast", 4), ("base", 20))
    for axis, (name, num_steps) in zip(figure.subplots(2, 2, sharex=True).flat, models, strict=True):
        samples = sample_classes(name, num_steps)
        draw_classes(axis, f"{name}, {num_steps} NFE", samples.images, samples.labels)
    figure.savefig(FOLDER / "few-steps.png", dpi=90, bbox_inches="tight")


def save_animation() -> None:
    """Saves an animation of denoising one image per class, from pure noise to the final images."""
    frames = load_pipeline("base").trajectory(range(10), generator=make_generators(25, 10))
    grids = [upscale(image_grid(images, 10, border=1), 3) for images in frames]
    save_gif(grids, FOLDER / "denoising.gif", duration=100, hold=2000)


def save_prompts() -> None:
    """Saves six images of each prompt with the same seeds; they are not cherry-picked."""
    pipe = load_pipeline("text")
    figure = Figure(figsize=(8.4, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, prompt in zip(figure.subplots(6, 2).flat, PROMPTS, strict=True):
        generator = make_generators(0, 6)
        images = pipe(prompt=prompt, num_images_per_prompt=6, guidance_scale=3, generator=generator).images
        axis.imshow(image_grid(images, 6), cmap="gray", vmin=0, vmax=255)
        axis.set_title(prompt, fontsize=10)
        axis.axis("off")
    figure.savefig(FOLDER / "prompts.png", dpi=90, bbox_inches="tight")


@contextmanager
def open_page(command: list, url: str) -> Iterator[Page]:
    """Starts a server, waits until it responds, and opens its page in chromium."""
    server = subprocess.Popen(command)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                time.sleep(1)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 720})
            page.goto(url)
            yield page
            browser.close()
    finally:
        server.terminate()
        server.wait()


def save_screenshot() -> None:
    command = [Path(sys.executable).with_name("fmnist-diffusion"), "demo"]
    with open_page(command, "http://127.0.0.1:7860") as page:
        page.get_by_role("button", name="Generate", exact=True).click()
        page.wait_for_selector("#generate-strip img")
        page.wait_for_timeout(1000)
        page.screenshot(path=FOLDER / "demo.png", full_page=True)


def save_browser_screenshot() -> None:
    with TemporaryDirectory() as folder:
        make_static_space([get_pipeline_folder(name) for name in ("fast", "base")], Path(folder))
        command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", folder, "7861"]
        with open_page(command, "http://127.0.0.1:7861") as page:
            page.get_by_text("available offline").wait_for()
            page.get_by_text("Ankle boot", exact=True).first.click()
            page.get_by_label("Seed", exact=True).fill("25")
            # Clicking the heading removes the focus from the settings. The image is complete after five seconds.
            page.get_by_role("heading", name="Fashion-MNIST diffusion").click()
            page.wait_for_timeout(5000)
            page.screenshot(path=FOLDER / "browser.png", full_page=True)


if __name__ == "__main__":
    save_comparison()
    save_few_steps()
    save_animation()
    save_prompts()
    save_screenshot()
    save_browser_screenshot()
