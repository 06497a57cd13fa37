"""Layout of the page: tabs, controls and event listeners."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

import markup
from engine import MAX_FRAMES, MAX_GUIDANCE, MAX_IMAGES, MAX_PROMPT_LENGTH, MAX_STEPS, MIN_FRAMES, Engine
from fmnist_diffusion.sampling import MAX_SEED
from handlers import (
    ALL_CLASSES,
    DEFAULT_SCHEDULER,
    FIRST_INTERPOLATION_SEEDS,
    MAX_LIVE_STEPS,
    SCHEDULER_CHOICES,
    Handlers,
)
from runs import FRAME_COLUMNS, get_positions
from server import SafeBlocks, get_launch_options, make_file_folder


# These are the maximum numbers of running and of waiting requests. Further requests get an error.
CONCURRENCY_LIMIT, QUEUE_SIZE = 2, 30
# With more classes, a dropdown replaces the checkboxes so that the main button stays visible.
MAX_CHECKBOXES = 12
LIVE_INFO = f"With at most {MAX_LIVE_STEPS} steps, new images appear whenever you change a setting."
# With fewer steps, few values of the strength are possible, and the images of `fast` often keep the original class.
MIN_IMAGE_TO_IMAGE_STEPS = 20
# DDPM adds noise that cannot be interpolated.
INTERPOLATION_SCHEDULERS = [name for name in SCHEDULER_CHOICES if name != "ddpm"]

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

# Each entry contains the texts of one or more prompts. The captions of `training/configs/text.yaml` use these words.
PROMPTS = [("a dark pullover",), ("a dress with sleeves",), ("a high-heeled sandal",), ("a bag with a handle",)]
INTERPOLATION_PROMPTS = [
    ("a dark pullover", "a bright pullover"),
    ("a flat sandal", "a high-heeled sandal"),
    ("a short coat", "a long coat"),
]

Components = list[Any]
# These options are for events that run in the browser.
PAGE_EVENT: dict[str, Any] = {"queue": False, "api_visibility": "private"}
# These options are for handlers that only change what the page shows.
QUIET_EVENT: dict[str, Any] = {"preprocess": False, "show_progress": "hidden", "api_visibility": "private"}


def steps_slider(value: int, info: str | None = None) -> gr.Slider:
    return gr.Slider(1, MAX_STEPS, value, step=1, label="Steps", info=info)


def scheduler_dropdown(engines: Iterable[Engine], names: Sequence[str] = SCHEDULER_CHOICES) -> gr.Dropdown:
    """Returns a dropdown of the schedulers that at least one of the engines supports."""
    engines = list(engines)
    choices = [name for name in names if name == DEFAULT_SCHEDULER or any(e.supports(name) for e in engines)]
    return gr.Dropdown(choices, value=DEFAULT_SCHEDULER, label="Scheduler")


def sampling_controls(
    steps: int, engines: Iterable[Engine], is_conditional: bool, guidance: float = 1, info: str | None = None
) -> Components:
    return [
        steps_slider(steps, info),
        scheduler_dropdown(engines),
        gr.Slider(1, MAX_GUIDANCE, guidance, step=0.25, label="Guidance scale", visible=is_conditional),
    ]


def checkpoint_controls(
    handlers: Handlers, name: str, label: str = "Checkpoint", info: str | None = None
) -> tuple[Any, Components]:
    """Returns the event that sets the number of steps, and the checkpoint dropdown with the sampling controls."""
    checkpoint = gr.Dropdown(list(handlers.engines), value=name, label=label)
    num_steps = {name: engine.num_inference_steps for name, engine in handlers.engines.items()}
    engines = handlers.engines.values()
    is_conditional = bool(handlers.offered_names) or any(engine.has_prompts for engine in engines)
    controls = sampling_controls(num_steps[name], engines, is_conditional, info=info)
    script = markup.look_up(num_steps)
    event = checkpoint.input(None, checkpoint, controls[0], js=script, **PAGE_EVENT)
    return event, [checkpoint, *controls]


def update_conditions(handlers: Handlers, checkpoints: Components, outputs: Components) -> None:
    """Shows the `outputs`, the classes and the prompts, only while a selected checkpoint uses them."""
    gr.on([item.input for item in checkpoints], handlers.show_conditions, checkpoints, outputs, **QUIET_EVENT)


def seed_control(value: int = 0, label: str = "Seed") -> gr.Number:
    with gr.Row(equal_height=True, elem_classes="seed"):
        number = gr.Number(value, minimum=0, maximum=MAX_SEED, step=1, label=label, min_width=80)
        button = gr.Button("Random", size="sm", min_width=80, scale=0)
    script = markup.random_number(MAX_SEED)
    button.click(None, None, number, js=script, **PAGE_EVENT)
    return number


def class_choice(handlers: Handlers, checkpoints: Iterable[str]) -> gr.CheckboxGroup | gr.Dropdown:
    """Returns the choice of classes, which is visible if one of the selected `checkpoints` has these classes."""
    names, info = list(handlers.offered_names), "Leave empty for all classes."
    visible = any(handlers.has_offered_classes(handlers.engines[name]) for name in checkpoints)
    if len(names) > MAX_CHECKBOXES:
        return gr.Dropdown(names, value=[], multiselect=True, label="Classes", info=info, visible=visible)
    return gr.CheckboxGroup(names, label="Classes", info=info, visible=visible, elem_classes="chips")


def prompt_field(label: str = "Prompt", visible: bool = True) -> gr.Textbox:
    return gr.Textbox(
        "",
        label=label,
        placeholder="Describe the images",
        max_length=MAX_PROMPT_LENGTH,
        min_width=180,
        visible=visible,
    )


def example_buttons(examples: Sequence[tuple[str, ...]], prompts: Components) -> None:
    """Adds a button for each example that fills in the prompts."""
    with gr.Row(elem_classes="examples"):
        for texts in examples:
            button = gr.Button(" → ".join(texts), size="sm", min_width=0, scale=0)
            button.click(None, None, prompts, js=markup.fill_in(texts), **PAGE_EVENT)


def run_buttons(text: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(text, variant="primary"), gr.Button("Stop", scale=0, min_width=80)


def download_buttons(*names: str) -> Components:
    with gr.Row():
        return [gr.DownloadButton(f"Download {name}", size="sm", interactive=False) for name in names]


def connect(
    start: Callable,
    stop: gr.Button,
    handler: Callable,
    inputs: Components,
    outputs: Components,
    bars: Components,
    **options: Any,
) -> Any:
    """
    Runs `handler` at the event `start`. The button `stop` stops it and marks `bars` as stopped.

    Handlers receive the inputs as they are in the request and check them, because Gradio's errors repeat the inputs.
    """
    event = start(
        handler,
        inputs,
        outputs,
        show_progress="hidden",
        concurrency_id="model",
        concurrency_limit=CONCURRENCY_LIMIT,
        preprocess=False,
        api_name=handler.__name__,
        api_visibility="private",
        **options,
    )
    stop.click(None, cancels=[event], **PAGE_EVENT)
    # The script does not change the bar of a complete run. After an error, only `failure` runs.
    for end in (event.then, event.failure):
        end(None, bars, bars, js=markup.MARK_AS_STOPPED, **PAGE_EVENT)
    return event


def live_change(steps: gr.Slider, settings: Components, event: Any, *checkpoint_events: Any) -> Callable:
    """
    Returns an event that fires when one of the `settings` changes or one of the `checkpoint_events` completes, if
    there are at most `MAX_LIVE_STEPS` steps.

    It stops the run that `event` started, because this run has the previous settings.
    """
    count = gr.Number(0, visible="hidden")
    listener = {"inputs": [count, steps, *settings], "outputs": count, "js": markup.count_changes(MAX_LIVE_STEPS)}
    gr.on([item.change for item in settings], None, **listener, **PAGE_EVENT)
    for checkpoint_event in checkpoint_events:
        checkpoint_event.then(None, **listener, **PAGE_EVENT)
    # When a live run ends, Gradio triggers its event again if the event has occurred in the meantime. This must not
    # stop a new run of `event`, so live runs start at a different event.
    live_count = gr.Number(0, visible="hidden")
    count.change(None, count, live_count, js="(count) => count", cancels=[event], **PAGE_EVENT)
    return live_count.change


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
            labels = class_choice(handlers, [handlers.name])
            with gr.Column(visible=handlers.engine.has_prompts, elem_classes="prompts") as column:
                prompt = prompt_field()
                example_buttons(PROMPTS, [prompt])
            seed = seed_control(first.seed)
            start, stop = run_buttons("Generate")
        with gr.Column(elem_classes="settings"):
            checkpoint_event, (checkpoint, *controls) = checkpoint_controls(handlers, handlers.name, info=LIVE_INFO)
            count = gr.Slider(1, MAX_IMAGES, first.num_images, step=1, label="Number of images")
        with gr.Column(elem_classes="results"):
            captions = handlers.engine.get_captions(first)
            images = gr.HTML(markup.gallery(handlers.first_step.images, captions), elem_id="generate-images")
            bar = gr.HTML(markup.progress_bar(handlers.first_step), elem_id="generate-bar")
            strip = gr.HTML(elem_id="generate-strip")
            downloads = download_buttons("PNG", "GIF")
    update_conditions(handlers, [checkpoint], [labels, column])
    inputs = [labels, count, *controls, seed, prompt]
    run = [checkpoint, *inputs], [images, bar, strip, *downloads], [bar]
    event = connect(start.click, stop, handlers.on_generate, *run)
    # A checkpoint with the same number of steps does not change the steps.
    change = live_change(controls[0], inputs, event, checkpoint_event)
    connect(change, stop, handlers.on_generate_change, *run, trigger_mode="always_last")
    add_endpoint(handlers.generate, inputs, result)


def interpolate_tab(handlers: Handlers, result: gr.Image) -> None:
    names, first, titles = handlers.label_names, handlers.first_interpolation, ("First", "Last")
    with gr.Row(elem_classes="workspace"):
        with gr.Column(elem_classes="actions"):
            with gr.Row(visible=bool(names)):
                labels = [
                    gr.Dropdown(names, value=name, label=f"{title} class", min_width=120, visible=bool(names))
                    for title, name in zip(titles, handlers.first_ends or (None, None), strict=True)
                ]
            with gr.Column(visible=handlers.engine.has_prompts, elem_classes="prompts"):
                prompts = [prompt_field(f"{title} prompt") for title in titles]
                example_buttons(INTERPOLATION_PROMPTS, prompts)
            seeds = [
                seed_control(seed, f"{title} seed")
                for title, seed in zip(titles, FIRST_INTERPOLATION_SEEDS, strict=True)
            ]
            start, stop = run_buttons("Interpolate")
        with gr.Column(elem_classes="settings"):
            count = gr.Slider(MIN_FRAMES, MAX_FRAMES, MAX_FRAMES if first else 12, step=1, label="Number of images")
            steps = steps_slider(handlers.engine.num_inference_steps, LIVE_INFO)
            scheduler = scheduler_dropdown([handlers.engine], INTERPOLATION_SCHEDULERS)
        with gr.Column(elem_classes="results"):
            text = markup.placeholder("Interpolate", "see how the first image changes into the last one")
            shown_image = shown_bar = ""
            if first:
                captions, middle = get_positions(len(first.images)), len(first.images) // 2
                shown_image = markup.figure(first.images[middle], captions[middle])
                text, shown_bar = markup.gallery(first.images, captions, FRAME_COLUMNS), markup.progress_bar(first)
            with gr.Row(elem_id="interpolate-views"):
                image = gr.HTML(shown_image, elem_id="interpolate-image")
                animation = gr.HTML(elem_id="interpolate-animation")
            position = gr.Slider(0, 100, 50, step=1, label="Position (%)")
            images = gr.HTML(text, elem_id="interpolate-images")
            bar = gr.HTML(shown_bar, elem_id="interpolate-bar")
            downloads = download_buttons("PNG", "GIF")
    changes = [position.change, images.change]
    gr.on(changes, None, [position, images], image, js=markup.SELECT_IMAGE, **PAGE_EVENT)
    settings = [*seeds, count, steps, scheduler, *prompts]
    inputs = [*labels, *settings]
    run = inputs, [animation, images, bar, *downloads], [bar]
    event = connect(start.click, stop, handlers.on_interpolate, *run)
    # Without classes, the labels are null. Null settings, such as an empty seed, start no run.
    change = live_change(steps, inputs if names else settings, event)
    connect(change, stop, handlers.on_interpolate_change, *run, trigger_mode="always_last")
    add_endpoint(handlers.interpolate, inputs, result)


def image_to_image_tab(handlers: Handlers, result: gr.Image) -> None:
    names, first_example = handlers.label_names, next(iter(handlers.examples))
    has_prompts = handlers.engine.has_prompts
    with gr.Row(elem_classes="workspace"):
        with gr.Column(elem_classes="actions"):
            with gr.Row():
                example = gr.Dropdown(list(handlers.examples), value=first_example, label="Example", min_width=120)
                label = gr.Dropdown(
                    [ALL_CLASSES, *names], value=ALL_CLASSES, label="New class", min_width=120, visible=bool(names)
                )
                prompt = prompt_field(visible=has_prompts)
            with gr.Column(visible=has_prompts):
                example_buttons(PROMPTS, [prompt])
            preview = gr.HTML(handlers.preview(None, first_example), elem_id="preview", js_on_load=markup.PAINT_MASK)
            clear = gr.Button("Clear mask", size="sm")
            mask = gr.Textbox("", label="Mask", visible="hidden")
            start, stop = run_buttons("Transform")
        with gr.Column(elem_classes="settings"):
            upload = gr.File(label="Your own image", file_types=["image"], height=140, elem_id="upload")
            strength = gr.Slider(
                0.05, 1, 0.85, step=0.05, label="Strength", info="Higher values change the image more."
            )
            steps = max(handlers.engine.num_inference_steps, MIN_IMAGE_TO_IMAGE_STEPS)
            controls = sampling_controls(steps, [handlers.engine], bool(names) or has_prompts, guidance=2)
            seed = seed_control()
        with gr.Column(elem_classes="results"):
            goal = "match the prompt" if has_prompts else "match the new class" if names else "look different"
            text = markup.placeholder("Transform", f"make the image or the painted region {goal}")
            images = gr.HTML(text, elem_id="image-to-image-images")
            bar = gr.HTML(elem_id="image-to-image-bar")
            downloads = download_buttons("PNG")
    upload.change(handlers.preview, [upload, example], preview, **QUIET_EVENT)
    example.input(handlers.choose_example, example, [preview, upload], **QUIET_EVENT)
    clear.click(None, js=markup.CLEAR_MASK, **PAGE_EVENT)
    settings, outputs = [example, label, strength, *controls, seed], [images, bar, *downloads]
    # `markup.READ_MASK` replaces the last input.
    inputs = [*settings, prompt, upload, mask]
    connect(start.click, stop, handlers.on_image_to_image, inputs, outputs, [bar], js=markup.READ_MASK)
    add_endpoint(handlers.image_to_image, [*settings, upload, mask, prompt], result)


def compare_tab(handlers: Handlers) -> None:
    with gr.Row(elem_classes="workspace"):
        with gr.Column(elem_classes="actions"):
            # A published demo contains only one checkpoint.
            names = (list(handlers.engines) * 2)[:2]
            labels = class_choice(handlers, names)
            has_prompts = any(handlers.engines[name].has_prompts for name in names)
            with gr.Column(visible=has_prompts, elem_classes="prompts") as column:
                prompt = prompt_field()
                example_buttons(PROMPTS, [prompt])
            start, stop = run_buttons("Compare")
        with gr.Column(elem_classes="settings"):
            count = gr.Slider(1, MAX_IMAGES, 10, step=1, label="Number of images")
            seed = seed_control(handlers.first_request.seed)
            sides, outputs = [], []
            for side, name in zip("AB", names, strict=True):
                with gr.Group():
                    sides += checkpoint_controls(handlers, name, f"Checkpoint {side}")[1]
        with gr.Column(elem_classes="results"):
            for side in ("A", "B"):
                gr.HTML(f"<h2>{side}</h2>")
                text = markup.placeholder("Compare", f"see images with the settings of {side}")
                outputs += [
                    gr.HTML(text, elem_id=f"compare-images-{side}"),
                    gr.HTML(elem_id=f"compare-bar-{side}"),
                ]
    update_conditions(handlers, [sides[0], sides[len(sides) // 2]], [labels, column])
    inputs = [labels, prompt, count, seed, *sides]
    connect(start.click, stop, handlers.on_compare, inputs, outputs, outputs[1::2])


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
    # `api_open=False` closes routes that skip the queue.
    page.queue(max_size=QUEUE_SIZE, default_concurrency_limit=CONCURRENCY_LIMIT, api_open=False)
    return page


def launch(page: gr.Blocks, **options: Any) -> Any:
    return page.launch(
        theme=THEME,
        css_paths=Path(__file__).parent / "style.css",
        mcp_server=True,
        show_error=False,
        # On the Hub, Gradio would otherwise serve the page through Node.js.
        ssr_mode=False,
        footer_links=["api"],
        **get_launch_options(page),
        **options,
    )
