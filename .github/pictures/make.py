"""Makes the pictures of the README from the bundled `base`; Debian's chromium takes the one of the demo.

python .github/pictures/make.py
"""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from playwright.sync_api import sync_playwright

from fmnist_diffusion import load_pipeline
from fmnist_diffusion.data import FASHION_MNIST_LABELS, load_images
from fmnist_diffusion.evaluation import SamplingSettings, draw
from fmnist_diffusion.evaluation.report import class_columns
from fmnist_diffusion.pictures import enlarge, image_grid


HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "space"))

import app  # noqa: E402
import generation  # noqa: E402


def real_and_generated() -> None:
    """The first test images of each class beside the first samples of it, none picked."""
    pipe = load_pipeline("base")
    pipe.set_progress_bar_config(disable=True)
    samples = draw(pipe, SamplingSettings(20, conditional=True), 0, 80)
    real = load_images(split="test")
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, title, images, labels in zip(
        figure.subplots(1, 2),
        ("test images", "generated, in 20 evaluations"),
        (real.images, samples.images),
        (real.labels, samples.labels),
        strict=True,
    ):
        axis.imshow(class_columns(images[:, 0], labels).numpy(), cmap="gray", vmin=0, vmax=255)
        axis.set_xticks([28 * (i + 0.5) - 0.5 for i in range(10)], FASHION_MNIST_LABELS, rotation=35, ha="right")
        axis.set(yticks=[], title=title)
    figure.savefig(HERE / "real-and-generated.png", dpi=90, bbox_inches="tight")


def denoising(studio: generation.Studio) -> None:
    settings = generation.Settings(studio.label_names, 10, 25, seed=20)
    frames = [enlarge(image_grid(step.images, 10, border=1), 3) for step in studio.draw(settings)]
    generation.save_gif(frames, HERE / "denoising.gif", 90, hold=1500)


def screenshot(page: app.gr.Blocks) -> None:
    _, url, _ = app.launch(page, prevent_thread_lock=True, quiet=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1180, "height": 820})
        tab.goto(url)
        tab.wait_for_selector("#draw-wall img")
        tab.get_by_role("button", name="Draw", exact=True).click()
        tab.wait_for_selector("#draw-strip img", timeout=120_000)
        tab.wait_for_timeout(600)
        tab.screenshot(path=HERE / "demo.png", full_page=True)
        browser.close()
    page.close()


if __name__ == "__main__":
    real_and_generated()
    demo = app.App("base")
    denoising(demo.studio)
    screenshot(app.build(demo))
