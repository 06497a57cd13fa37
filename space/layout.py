"""Layout of the page: tabs, controls and event listeners."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

import markup
from engine import MAX_FRAMES, MAX_GUIDANCE, MAX_IMAGES, MAX_STEPS, MIN_FRAMES
from fmnist_diffusion.sampling import MAX_SEED
from handlers import ALL_CLASSES, DEFAULT_SCHEDULER, SCHEDULERS, Handlers, get_captions, random_seed
from server import SafeBlocks, get_launch_options, make_file_folder


# These are the maximum numbers of running and of waiting requests. Further requests get an error.
CONCURRENCY_LIMIT, QUEUE_SIZE = 2, 30
# With more classes, a dropdown replaces the checkboxes so that the main button stays visible.
MAX_CHECKBOXES = 12
# DDPM adds noise that cannot be interpolated.
INTERPOLATION_SCHEDULERS = SCHEDULERS[:-1]

# System fonts require no network access. The colors meet the contrast requirements of WCAG level AA.
THEME = gr.themes.Base(
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

Components = list[Any]


def steps_slider(value: int) -> gr.Slider:
    return gr.Slider(1, MAX_STEPS, value, step=1, label="Steps")


def scheduler_dropdown(choices: Sequence[str] = SCHEDULERS) -> gr.Dropdown:
    return gr.Dropdown(list(choices), value=DEFAULT_SCHEDULER, label="Scheduler")


def sampling_controls(steps: int, class_conditional: bool, guidance: float = 1) -> Components:
    return [
        steps_slider(steps),
        scheduler_dropdown(),
        gr.Slider(1, MAX_GUIDANCE, guidance, step=0.25, label="Guidance scale", visible=class_conditional),
    ]


def seed_control(value: int = 0, label: str = "Seed") -> gr.Number:
    with gr.Row(equal_height=True, elem_classes="seed"):
        number = gr.Number(value, minimum=0, maximum=MAX_SEED, step=1, label=label, min_width=80)
        button = gr.Button("Random", size="sm", min_width=80, scale=0)
    button.click(random_seed, None, number, queue=False, show_progress="hidden", api_visibility="private")
    return number


def class_choice(handlers: Handlers) -> gr.CheckboxGroup | gr.Dropdown:
    names, info = handlers.label_names, "Leave empty for all classes."
    if len(names) > MAX_CHECKBOXES:
        return gr.Dropdown(names, value=[], multiselect=True, label="Classes", info=info)
    return gr.CheckboxGroup(names, label="Classes", info=info, visible=bool(names), elem_classes="chips")


def run_buttons(text: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(text, variant="primary"), gr.Button("Stop", scale=0, min_width=80)


def download_buttons(*names: str) -> Components:
    with gr.Row():
        return [gr.DownloadButton(f"Download {name}", size="sm", interactive=False) for name in names]


def connect(
    buttons: tuple[gr.Button, gr.Button], handler: Callable, inputs: Components, outputs: Components, bars: Components
) -> None:
    """
    Runs `handler` when the first button is pressed. The second button stops it and marks `bars` as stopped.

    Handlers receive the inputs as they are in the request and check them, because Gradio's errors repeat the inputs.
    """
    start, stop = buttons
    event = start.click(
        handler,
        inputs,
        outputs,
        show_progress="hidden",
        concurrency_id="model",
        concurrency_limit=CONCURRENCY_LIMIT,
        preprocess=False,
        api_name=handler.__name__,
        api_visibility="private",
    )
    stop.click(None, cancels=[event], queue=False, api_visibility="private")
    # `then` also runs after an error. The script does not change the bar of a complete run.
    event.then(None, bars, bars, js=markup.MARK_AS_STOPPED, queue=False, api_visibility="private")


def add_endpoint(handler: Callable, inputs: Components, output: Any) -> None:
    """Adds an endpoint and MCP tool with the name of its handler. Gradio requires a component for this."""
    gr.Button(visible=False).click(
        handler,
        inputs,
        output,
        preprocess=False,
        api_name=handler.__name__,
        concurrency_id="model",
        concurrency_limit=CONCURRENCY_LIMIT,
    )


def generate_tab(handlers: Handlers, result: gr.Image) -> None:
    first = handlers.first_request
    with gr.Row(elem_classes="workspace"):
        with gr.Column(elem_classes="actions"):
            labels = class_choice(handlers)
            buttons = run_buttons("Generate")
        with gr.Column(elem_classes="settings"):
            count = gr.Slider(1, MAX_IMAGES, first.num_images, step=1, label="Number of images")
            controls = sampling_controls(handlers.engine.num_inference_steps, bool(handlers.label_names))
            seed = seed_control(first.seed)
        with gr.Column(elem_classes="results"):
            captions = get_captions(handlers.engine, first)
            images = gr.HTML(markup.gallery(handlers.first_step.images, captions), elem_id="generate-images")
            bar = gr.HTML(markup.progress_bar(handlers.first_step), elem_id="generate-bar")
            strip = gr.HTML(elem_id="generate-strip")
            downloads = download_buttons("PNG", "GIF")
    inputs = [labels, count, *controls, seed]
    connect(buttons, handlers.on_generate, inputs, [images, bar, strip, *downloads], [bar])
    add_endpoint(handlers.generate, inputs, result)


def interpolate_tab(handlers: Handlers, result: gr.Image) -> None:
    names = handlers.label_names
    with gr.Row(elem_classes="workspace"):
        with gr.Column(elem_classes="actions"):
            with gr.Row():
                labels = [
                    gr.Dropdown(
                        names, value=names[index] if names else None, label=label, min_width=120, visible=bool(names)
                    )
                    for label, index in (("First class", len(names) * 3 // 4), ("Last class", -1))
                ]
            buttons = run_buttons("Interpolate")
        with gr.Column(elem_classes="settings"):
            seeds = [seed_control(3, "First seed"), seed_control(4, "Last seed")]
            count = gr.Slider(MIN_FRAMES, MAX_FRAMES, 12, step=1, label="Number of images")
            steps = steps_slider(handlers.engine.num_inference_steps)
            scheduler = scheduler_dropdown(INTERPOLATION_SCHEDULERS)
        with gr.Column(elem_classes="results"):
            text = markup.placeholder("Interpolate", "see images that change from one seed and class to another")
            animation = gr.HTML(text, elem_id="interpolate-animation")
            images = gr.HTML(elem_id="interpolate-images")
            bar = gr.HTML(elem_id="interpolate-bar")
            downloads = download_buttons("PNG", "GIF")
    inputs = [*labels, *seeds, count, steps, scheduler]
    connect(buttons, handlers.on_interpolate, inputs, [animation, images, bar, *downloads], [bar])
    add_endpoint(handlers.interpolate, inputs, result)


def image_to_image_tab(handlers: Handlers, result: gr.Image) -> None:
    names, first_example = handlers.label_names, next(iter(handlers.examples))
    with gr.Row(elem_classes="workspace"):
        with gr.Column(elem_classes="actions"):
            with gr.Row():
                example = gr.Dropdown(list(handlers.examples), value=first_example, label="Image", min_width=120)
                label = gr.Dropdown(
                    [ALL_CLASSES, *names], value=ALL_CLASSES, label="New class", min_width=120, visible=bool(names)
                )
            buttons = run_buttons("Transform")
        with gr.Column(elem_classes="settings"):
            preview = gr.HTML(handlers.preview(None, first_example), elem_id="preview")
            upload = gr.File(label="Your own image", file_types=["image"], height=140, elem_id="upload")
            strength = gr.Slider(
                0.05, 1, 0.85, step=0.05, label="Strength", info="Higher values change the image more."
            )
            controls = sampling_controls(handlers.engine.num_inference_steps, bool(names), guidance=2)
            seed = seed_control()
        with gr.Column(elem_classes="results"):
            text = markup.placeholder("Transform", "turn the image into other classes")
            images = gr.HTML(text, elem_id="image-to-image-images")
            bar = gr.HTML(elem_id="image-to-image-bar")
            downloads = download_buttons("PNG")
    options: dict[str, Any] = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}
    upload.change(handlers.preview, [upload, example], preview, **options)
    example.input(handlers.choose_example, example, [preview, upload], **options)
    inputs = [example, label, strength, *controls, seed, upload]
    connect(buttons, handlers.on_image_to_image, inputs, [images, bar, *downloads], [bar])
    add_endpoint(handlers.image_to_image, inputs, result)


def compare_tab(handlers: Handlers) -> None:
    with gr.Row(elem_classes="workspace"):
        with gr.Column(elem_classes="actions"):
            labels = class_choice(handlers)
            buttons = run_buttons("Compare")
        with gr.Column(elem_classes="settings"):
            count = gr.Slider(1, MAX_IMAGES, 10, step=1, label="Number of images")
            seed = seed_control(handlers.first_request.seed)
            sides, outputs = [], []
            for side, steps in (("A", 20), ("B", 8)):
                with gr.Group():
                    checkpoint = gr.Dropdown(list(handlers.engines), value=handlers.name, label=f"Checkpoint {side}")
                    sides += [checkpoint, *sampling_controls(steps, bool(handlers.label_names))]
        with gr.Column(elem_classes="results"):
            for side in ("A", "B"):
                gr.HTML(f"<h2>{side}</h2>")
                text = markup.placeholder("Compare", f"see images with the settings of {side}")
                outputs += [
                    gr.HTML(text, elem_id=f"compare-images-{side}"),
                    gr.HTML(elem_id=f"compare-bar-{side}"),
                ]
    connect(buttons, handlers.on_compare, [labels, count, seed, *sides], outputs, outputs[1::2])


def build(handlers: Handlers) -> gr.Blocks:
    make_file_folder()
    title = "Fashion-MNIST diffusion" if handlers.engine.is_fashion_mnist else "Image diffusion"
    with SafeBlocks(title=title, analytics_enabled=False) as page:
        gr.HTML(markup.header(handlers.name, title))
        result = gr.Image(visible=False, format="png", label="Images")
        with gr.Tab("Generate"):
            generate_tab(handlers, result)
        with gr.Tab("Interpolate"):
            interpolate_tab(handlers, result)
        with gr.Tab("Image-to-image"):
            image_to_image_tab(handlers, result)
        with gr.Tab("Compare"):
            compare_tab(handlers)
        with gr.Tab("Quality"):
            gr.HTML(markup.quality_table(handlers.engine.metrics), elem_id="quality")
            add_endpoint(handlers.quality, [], gr.JSON(visible=False, label="Metrics"))
    page.queue(max_size=QUEUE_SIZE, default_concurrency_limit=CONCURRENCY_LIMIT)
    return page


def launch(page: gr.Blocks, **options: Any) -> Any:
    return page.launch(
        theme=THEME,
        css_paths=Path(__file__).parent / "style.css",
        mcp_server=True,
        show_error=False,
        footer_links=["api"],
        **get_launch_options(page),
        **options,
    )
