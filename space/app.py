"""The demo: `python space/app.py`, or `fmnist-diffusion demo`. MODEL_ID names another checkpoint to show."""

import base64
import html
import io
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import generation
import gradio as gr
from generation import SCHEDULERS, RequestError, Settings, Step, Studio, get_studio
from gradio_client.utils import is_http_url_like
from PIL import Image

from fmnist_diffusion import bundled_pipelines
from fmnist_diffusion.pictures import enlarge, image_grid


HERE = Path(__file__).parent
STYLE = HERE / "style.css"
EXAMPLES = {path.stem.partition("-")[2]: path for path in sorted((HERE / "examples").glob("*.png"))}
DOWNLOAD_SCALE, DOWNLOAD_COLUMNS = 8, 10
# Requests that compute at once, and that wait; one more is told to come back.
RUNNING, WAITING = 2, 30
OWN_CLASSES = "all in turn"

# The fonts need no network, the colours have the contrast of WCAG's level AA.
theme = gr.themes.Base(
    primary_hue="orange",
    neutral_hue="stone",
    font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
    font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    radius_size="lg",
).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
)

Update = Any
# What a download button has to offer until a run has ended.
NOTHING_YET = gr.update(interactive=False)


def download(path: Path) -> Update:
    """Gradio copies the file before the function that yields this goes on."""
    return gr.update(value=str(path), interactive=True)


def refuse_addresses(file: gr.File) -> None:
    """Has `file` fetch nothing from an address that it is given, for nothing would limit what comes."""
    move = file.async_move_resource_to_block_cache

    async def move_file(path: str | Path | None) -> str | None:
        if is_http_url_like(str(path)):
            raise gr.Error("Send the picture itself, not its address.", title="Not drawn", print_exception=False)
        return await move(path)

    file.async_move_resource_to_block_cache = move_file


def data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def wall(images: Sequence[Image.Image], captions: Sequence[str], columns: int | None = None) -> str:
    """Pictures side by side, each with its caption, which is also what a screen reader says."""
    figures = "".join(
        f'<figure><img src="{data_uri(image)}" alt="{html.escape(caption)}"><figcaption>{html.escape(caption)}'
        "</figcaption></figure>"
        for image, caption in zip(images, captions, strict=True)
    )
    style = f' style="--columns:{columns}"' if columns else ""
    return f'<div class="wall"{style}>{figures}</div>'


def sheet(image: Image.Image, description: str) -> str:
    return f'<div class="sheet"><img src="{data_uri(image)}" alt="{html.escape(description)}"></div>'


def empty(button: str, what: str) -> str:
    return f'<div class="empty">Press <b>{button}</b> to see {html.escape(what)}.</div>'


def bar(step: Step) -> str:
    share = round(100 * step.number / step.total)
    text = f"step {step.number} of {step.total}"
    role = f'role="progressbar" aria-label="Steps" aria-valuenow="{share}"'
    if step.number == step.total:
        role = 'role="status"'
        text = (
            f"{step.evaluations} network evaluations a picture, {step.seconds:.1f} s for {len(step.images)} pictures"
        )
    return f'<div class="bar" {role}><i style="width:{share}%"></i><span>{text}</span></div>'


@contextmanager
def in_words() -> Iterator[None]:
    """Shows what is wrong with a request, and of what is wrong with us only that there is something."""
    try:
        yield
    except RequestError as error:
        raise gr.Error(str(error), title="Not drawn", print_exception=False) from error


def captions(studio: Studio, settings: Settings) -> list[str]:
    labels = studio.label_ids(settings)
    if labels is None:
        return [f"seed {settings.seed + i}" for i in range(settings.num_images)]
    return [studio.label_names[label] for label in labels]


class App:
    """The page of one checkpoint, and of those to compare it with."""

    def __init__(self, model_id: str):
        # Of a folder, people see the name and not where it lies.
        self.name = Path(model_id).name if Path(model_id).is_dir() else model_id
        self.studio = get_studio(model_id)
        self.studios = {self.name: self.studio} | {
            name: get_studio(name) for name in bundled_pipelines() if name != self.name
        }
        names = self.studio.label_names
        count = min(len(names) or 10, generation.MAX_IMAGES)
        self.first = Settings(labels=names, num_images=count, num_inference_steps=20, seed=3)
        # Before the first visitor comes, ZeroGPU lends no GPU.
        studio = self.studio if self.studio.device.type == "cpu" else Studio(model_id, device="cpu")
        *_, self.shown = studio.draw(self.first)

    def other(self, name: str) -> Studio:
        if name not in self.studios:
            raise RequestError(f"The checkpoint must be one of {', '.join(self.studios)}.")
        return self.studios[name]

    def repaint_settings(self, label, steps, scheduler, guidance, seed) -> Settings:
        labels = () if label == OWN_CLASSES or not label else (label,)
        count = 1 if labels else min(len(self.studio.label_names) or 6, generation.MAX_IMAGES)
        return Settings(labels, count, steps, scheduler, guidance, seed)

    def morph_settings(self, first, second, first_seed, second_seed, frames, steps, scheduler) -> list[Settings]:
        if self.studio.label_names and not (first and second):
            raise RequestError("Choose a class to begin with and one to end with.")
        return [
            Settings((label,) if label else (), frames, steps, scheduler, 1.0, seed)
            for label, seed in ((first, first_seed), (second, second_seed))
        ]

    # What the buttons do: generators, for a picture of every step.

    def draw(self, labels, num_images, steps, scheduler, guidance, seed) -> Iterator[tuple[Update, ...]]:
        with in_words():
            settings = Settings(tuple(labels or ()), num_images, steps, scheduler, guidance, seed)
            names, seen = captions(self.studio, settings), []
            with closing(self.studio.draw(settings)) as run:
                for step in run:
                    seen.append(step)
                    yield wall(step.images, names), bar(step), gr.skip(), NOTHING_YET, NOTHING_YET
            film = generation.strip(seen)
            text = f"The denoising of the first {min(5, len(names))} pictures, from noise on the left"
            with tempfile.TemporaryDirectory() as folder:
                png, gif = Path(folder, "pictures.png"), Path(folder, "denoising.gif")
                enlarge(image_grid(seen[-1].images, DOWNLOAD_COLUMNS, border=1), DOWNLOAD_SCALE).save(png)
                thinned = seen[:: -(-len(seen) // generation.MAX_GIF_FRAMES)]
                if thinned[-1] is not seen[-1]:
                    thinned.append(seen[-1])
                factor = max(1, generation.MAX_GIF_CELL // self.studio.size[0])
                frames = [enlarge(image_grid(step.images, DOWNLOAD_COLUMNS, border=1), factor) for step in thinned]
                generation.save_gif(frames, gif, 80, hold=1500)
                yield wall(seen[-1].images, names), bar(seen[-1]), sheet(film, text), download(png), download(gif)

    def morph(self, first, second, first_seed, second_seed, frames, steps, scheduler) -> Iterator[tuple[Update, ...]]:
        with in_words():
            start, stop = self.morph_settings(first, second, first_seed, second_seed, frames, steps, scheduler)
            names = [f"{round(100 * i / max(frames - 1, 1))} %" for i in range(frames)]
            with closing(self.studio.morph(start, stop)) as run:
                for step in run:
                    yield wall(step.images, names), gr.skip(), bar(step), NOTHING_YET, NOTHING_YET
            images = step.images
            with tempfile.TemporaryDirectory() as folder:
                png, gif = Path(folder, "morph.png"), Path(folder, "morph.gif")
                enlarge(image_grid(images, 8, border=1), DOWNLOAD_SCALE).save(png)
                large = [enlarge(image, DOWNLOAD_SCALE) for image in images]
                generation.save_gif(large, gif, 110, hold=500, swing=True)
                moving = base64.b64encode(gif.read_bytes()).decode()
                film = (
                    f'<div class="sheet"><img src="data:image/gif;base64,{moving}" alt="The way there and back"></div>'
                )
                yield wall(images, names), film, bar(step), download(png), download(gif)

    def prepare(self, upload, example) -> Image.Image:
        """The picture to repaint as the model sees it: one that was sent, or an example."""
        if upload:
            return generation.to_fashion_mnist(generation.open_upload(upload), self.studio.size)
        if example not in EXAMPLES:
            raise RequestError(f"Send a picture, or choose one of {', '.join(EXAMPLES)}.")
        return Image.open(EXAMPLES[example]).convert("L").resize(self.studio.size)

    def preview(self, upload, example) -> str:
        with in_words():
            return wall([self.prepare(upload, example)], ["what the model gets"], 1)

    def choose(self, example) -> tuple[str, None]:
        """The preview of an example, which takes the place of what was sent before."""
        return self.preview(None, example), None

    def repaint(
        self, upload, example, label, strength, steps, scheduler, guidance, seed
    ) -> Iterator[tuple[Update, ...]]:
        with in_words():
            image = self.prepare(upload, example)
            settings = self.repaint_settings(label, steps, scheduler, guidance, seed)
            names = captions(self.studio, settings)
            with closing(self.studio.repaint(image, strength, settings)) as run:
                for step in run:
                    yield wall(step.images, names), bar(step), NOTHING_YET
            with tempfile.TemporaryDirectory() as folder:
                png = Path(folder, "repainted.png")
                row = [image.convert(self.studio.mode), *step.images]
                enlarge(image_grid(row, len(row), border=1), DOWNLOAD_SCALE).save(png)
                yield wall(step.images, names), bar(step), download(png)

    def compare(self, labels, num_images, seed, *sides) -> Iterator[tuple[Update, ...]]:
        """Draws with the settings of both sides, one after the other, from the same noise."""
        with in_words():
            runs = []
            for name, steps, scheduler, guidance in (sides[:4], sides[4:]):
                studio = self.other(name)
                wanted = tuple(labels or ()) if studio.label_names else ()
                runs.append((studio, Settings(wanted, num_images, steps, scheduler, guidance, seed)))
            shown = [gr.skip()] * 4
            for side, (studio, settings) in enumerate(runs):
                names = captions(studio, settings)
                with closing(studio.draw(settings)) as run:
                    for step in run:
                        shown[2 * side : 2 * side + 2] = wall(step.images, names), bar(step)
                        yield tuple(shown)

    # What programs call: pictures and facts at the end, and until then nothing, but a chance to be cancelled.

    def api_draw(self, labels, num_images, steps, scheduler, guidance, seed) -> Iterator[tuple[Update, Update]]:
        """Draws Fashion-MNIST pictures with a diffusion model; returns them, their classes and what the run took.

        Args:
            labels: Names of classes, drawn in turn; empty for all of them.
            num_images: Pictures, from 1 to 40.
            steps: Denoising steps, from 1 to 100; more take longer.
            scheduler: The sampler; SDE-DPM-Solver++ draws best.
            guidance: Classifier-free guidance towards the class, from 1 (none) to 8.
            seed: Picture i starts from the noise of seed + i; a whole number below 2^32.
        """
        with in_words():
            settings = Settings(tuple(labels or ()), num_images, steps, scheduler, guidance, seed)
            yield from whole(self.studio.draw(settings), settings, captions(self.studio, settings))

    def api_morph(
        self, first, second, first_seed, second_seed, frames, steps, scheduler
    ) -> Iterator[tuple[Update, Update]]:
        """Draws pictures on the way from one class and seed to another.

        Args:
            first: Name of the class at the start.
            second: Name of the class at the end.
            first_seed: Seed of the noise at the start.
            second_seed: Seed of the noise at the end.
            frames: Pictures in all, from 3 to 24.
            steps: Denoising steps, from 1 to 100.
            scheduler: The sampler.
        """
        with in_words():
            start, stop = self.morph_settings(first, second, first_seed, second_seed, frames, steps, scheduler)
            names = [*start.labels, *stop.labels]
            yield from whole(self.studio.morph(start, stop), start, names, second_seed=stop.seed)

    def api_repaint(
        self, upload, example, label, strength, steps, scheduler, guidance, seed
    ) -> Iterator[tuple[Update, Update]]:
        """Noises a picture to a strength and denoises it again, as another class if you like.

        Args:
            upload: The picture, of any size; none for an example.
            example: Name of an example, where no picture is sent.
            label: Name of the class, or "all in turn".
            strength: How much of the picture is made anew, above 0 up to 1.
            steps: Denoising steps of a whole drawing, from 1 to 100; the strength is the part of them that is done.
            scheduler: The sampler.
            guidance: Classifier-free guidance towards the class, from 1 (none) to 8.
            seed: Seed of the noise.
        """
        with in_words():
            settings = self.repaint_settings(label, steps, scheduler, guidance, seed)
            run = self.studio.repaint(self.prepare(upload, example), strength, settings)
            yield from whole(run, settings, captions(self.studio, settings))

    def api_quality(self) -> dict[str, Any]:
        """What was measured of the checkpoint, beside the real test images."""
        rows = self.studio.quality()
        return {"model": self.name, "num_samples": self.studio.metrics["num_samples"] if rows else None} | {
            title: {"samples": value, "real": real} for title, value, real in rows
        }


def whole(run: Generator[Step], settings: Settings, names: list[str], **more: int) -> Iterator[tuple[Update, Update]]:
    with closing(run):
        for last in run:
            step = last
            yield gr.skip(), gr.skip()
    yield step.images, facts(step, settings, names) | more


def facts(step: Step, settings: Settings, names: list[str]) -> dict[str, Any]:
    return {
        "classes": names,
        "seed": settings.seed,
        "scheduler": settings.scheduler,
        "num_inference_steps": settings.num_inference_steps,
        "evaluations_per_picture": step.evaluations,
        "seconds": round(step.seconds, 3),
    }


def quality_table(app: App) -> str:
    rows = "".join(
        f"<tr><th scope=row>{html.escape(title)}</th><td>{value:.4g}</td><td>{real:.4g}</td></tr>"
        for title, value, real in app.studio.quality()
    )
    metrics = app.studio.metrics
    if metrics is None or not rows:
        return "<p>This checkpoint has not been measured.</p>"
    how = f" by {metrics['scheduler']} in {metrics['num_inference_steps']} steps" if "scheduler" in metrics else ""
    return (
        f"<p>{metrics['num_samples']:,} pictures{how}, measured against the training images of Fashion-MNIST."
        " The last column is what 10,000 real test images get.</p>"
        "<table><thead><tr><th>metric</th><th>this checkpoint</th><th>real images</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def settings_row(steps: int = 20, with_guidance: bool = True) -> list[gr.components.Component]:
    """Steps, scheduler and guidance."""
    return [
        gr.Slider(1, generation.MAX_STEPS, steps, step=1, label="Steps"),
        gr.Dropdown(list(SCHEDULERS), value=Settings.scheduler, label="Scheduler"),
        gr.Slider(
            1, generation.MAX_GUIDANCE, 1, step=0.25, label="Guidance", info="towards the class", visible=with_guidance
        ),
    ]


def seed_row(seed: int = 0, label: str = "Seed") -> gr.Number:
    with gr.Row(equal_height=True):
        number = gr.Number(seed, precision=0, minimum=0, maximum=generation.MAX_SEED, label=label, min_width=80)
        dice = gr.Button("Roll", elem_classes="dice", min_width=64, scale=0)
    dice.click(generation.random_seed, None, number, queue=False, show_progress="hidden", api_visibility="private")
    return number


def build(app: App) -> gr.Blocks:
    names = list(app.studio.label_names)
    knows_classes = bool(names)
    first = app.first

    def on(button: gr.Button, stop: gr.Button, function: Callable, inputs: list, outputs: list) -> None:
        event = button.click(
            function,
            inputs,
            outputs,
            show_progress="hidden",
            concurrency_id="model",
            concurrency_limit=RUNNING,
            api_name=f"on_{function.__name__}",
            api_visibility="private",
        )
        stop.click(None, cancels=[event], queue=False, api_visibility="private")

    def endpoint(name: str, function: Callable, inputs: list, outputs: list) -> None:
        gr.Button(visible=False).click(
            function, inputs, outputs, api_name=name, concurrency_id="model", concurrency_limit=RUNNING
        )

    def buttons(text: str) -> tuple[gr.Button, gr.Button]:
        with gr.Row():
            return gr.Button(text, variant="primary"), gr.Button("Stop", elem_classes="stop", scale=0, min_width=80)

    with gr.Blocks(title="Fashion from noise", delete_cache=(600, 3600), analytics_enabled=False) as page:
        gr.HTML(
            "<header><h1>Fashion from noise</h1><p>A diffusion model, trained on Fashion-MNIST, that makes a picture"
            f" out of noise, step by step. Checkpoint: <code>{html.escape(app.name)}</code>.</p></header>"
        )
        pictures = gr.Gallery(visible=False, format="png", label="Pictures")
        run_facts = gr.JSON(visible=False, label="Facts")

        with gr.Tab("Draw"), gr.Row():
            with gr.Column(scale=1, min_width=280):
                labels = gr.CheckboxGroup(
                    names, label="Classes", info="none is all of them", visible=knows_classes, elem_classes="chips"
                )
                count = gr.Slider(1, generation.MAX_IMAGES, first.num_images, step=1, label="Pictures")
                steps, scheduler, guidance = settings_row(first.num_inference_steps, knows_classes)
                seed = seed_row(first.seed)
                go, stop = buttons("Draw")
            with gr.Column(scale=3, min_width=280):
                stage = gr.HTML(wall(app.shown.images, captions(app.studio, first)), elem_id="draw-wall")
                progress = gr.HTML(bar(app.shown), elem_id="draw-bar")
                film = gr.HTML(elem_id="draw-strip")
                with gr.Row():
                    png, gif = (gr.DownloadButton(name, size="sm", interactive=False) for name in ("PNG", "GIF"))
            inputs = [labels, count, steps, scheduler, guidance, seed]
            on(go, stop, app.draw, inputs, [stage, progress, film, png, gif])
            endpoint("draw", app.api_draw, inputs, [pictures, run_facts])

        with gr.Tab("Morph"), gr.Row():
            with gr.Column(scale=1, min_width=280):
                ends = [
                    gr.Dropdown(names, value=name, label=label, visible=knows_classes)
                    for label, name in (
                        ("From", names[-1] if names else None),
                        ("To", names[7 if len(names) > 8 else 0] if names else None),
                    )
                ]
                seeds = [seed_row(3, "From seed"), seed_row(4, "To seed")]
                frames = gr.Slider(3, generation.MAX_FRAMES, 12, step=1, label="Pictures on the way")
                steps = gr.Slider(1, generation.MAX_STEPS, 20, step=1, label="Steps")
                scheduler = gr.Dropdown(list(SCHEDULERS), value=Settings.scheduler, label="Scheduler")
                go, stop = buttons("Morph")
            with gr.Column(scale=3, min_width=280):
                film = gr.HTML(empty("Morph", "a moving picture from one seed to another"), elem_id="morph-film")
                stage = gr.HTML(elem_id="morph-wall")
                progress = gr.HTML(elem_id="morph-bar")
                with gr.Row():
                    png, gif = (gr.DownloadButton(name, size="sm", interactive=False) for name in ("PNG", "GIF"))
            inputs = [*ends, *seeds, frames, steps, scheduler]
            on(go, stop, app.morph, inputs, [stage, film, progress, png, gif])
            endpoint("morph", app.api_morph, inputs, [pictures, run_facts])

        with gr.Tab("Repaint"), gr.Row():
            with gr.Column(scale=1, min_width=280):
                example = gr.Dropdown(list(EXAMPLES), value="sneaker", label="Picture")
                upload = gr.File(
                    label="or your own", file_types=["image"], type="filepath", height=110, elem_id="upload"
                )
                refuse_addresses(upload)
                preview = gr.HTML(app.preview(None, "sneaker"), elem_id="preview")
                label = gr.Dropdown(
                    [OWN_CLASSES, *names], value=OWN_CLASSES, label="Denoise as", visible=knows_classes
                )
                strength = gr.Slider(0.05, 1, 0.6, step=0.05, label="Strength", info="how much of it is made anew")
                steps, scheduler, guidance = settings_row(20, knows_classes)
                seed = seed_row()
                go, stop = buttons("Repaint")
            with gr.Column(scale=3, min_width=280):
                stage = gr.HTML(empty("Repaint", "the picture made anew"), elem_id="repaint-wall")
                progress = gr.HTML(elem_id="repaint-bar")
                png = gr.DownloadButton("PNG", size="sm", interactive=False)
            upload.change(app.preview, [upload, example], preview, show_progress="hidden", api_visibility="private")
            example.input(app.choose, example, [preview, upload], show_progress="hidden", api_visibility="private")
            inputs = [upload, example, label, strength, steps, scheduler, guidance, seed]
            on(go, stop, app.repaint, inputs, [stage, progress, png])
            endpoint("repaint", app.api_repaint, inputs, [pictures, run_facts])

        with gr.Tab("Compare"):
            with gr.Row():
                labels = gr.CheckboxGroup(names, label="Classes", visible=knows_classes, elem_classes="chips")
                count = gr.Slider(
                    1, generation.MAX_IMAGES, 10, step=1, label="Pictures", info="both start from the same noise"
                )
                seed = seed_row()
            sides, shown = [], []
            with gr.Row():
                for side, side_steps in (("A", 30), ("B", 8)):
                    with gr.Column(min_width=280):
                        model = gr.Dropdown(list(app.studios), value=app.name, label=f"{side}: checkpoint")
                        sides += [model, *settings_row(side_steps, knows_classes)]
                        wall_of_side = gr.HTML(empty("Compare", f"what {side} draws"), elem_id=f"compare-{side}")
                        shown += [wall_of_side, gr.HTML(elem_id=f"compare-bar-{side}")]
            go, stop = buttons("Compare")
            on(go, stop, app.compare, [labels, count, seed, *sides], shown)

        with gr.Tab("Quality"):
            gr.HTML(quality_table(app), elem_id="quality")
            endpoint("quality", app.api_quality, [], [run_facts])

    page.queue(max_size=WAITING, default_concurrency_limit=RUNNING)
    return page


def launch(page: gr.Blocks, **options: Any):
    return page.launch(
        theme=theme,
        css_paths=STYLE,
        mcp_server=True,
        max_file_size=generation.MAX_UPLOAD_BYTES,
        show_error=False,
        footer_links=["api"],
        **options,
    )


if __name__ == "__main__":
    launch(build(App(os.environ.get("MODEL_ID", "base"))))
