"""HTML for the parts of the page that have no Gradio component, and scripts. This module escapes all text."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from engine import Step
from fmnist_diffusion.metadata import format_count, format_number, measured_metrics


def header(checkpoint: str, title: str) -> str:
    return (
        f"<header><h1>{html.escape(title)}</h1><p>A diffusion model turns noise into images, step by step."
        f" Checkpoint: <code>{html.escape(checkpoint)}</code></p></header>"
    )


def data_uri(content: bytes, mime_type: str = "image/png") -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"


def image_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return data_uri(buffer.getvalue())


def figure(image: Image.Image, caption: str) -> str:
    """Returns an image above its caption, which is also the alternative text."""
    caption = html.escape(caption)
    return f'<figure><img src="{image_uri(image)}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def gallery(images: Sequence[Image.Image], captions: Sequence[str], columns: int = 5) -> str:
    """Returns a grid of images with captions. Narrow screens ignore `columns`."""
    figures = "".join(map(figure, images, captions))
    return f'<div class="gallery" style="--columns:{columns}">{figures}</div>'


def single_image(source: str, description: str, class_name: str) -> str:
    """Returns an image above its description. `source` is a data URI."""
    description = html.escape(description)
    return f'<figure class="{class_name}"><img src="{source}" alt=""><figcaption>{description}</figcaption></figure>'


def preview(image: Image.Image) -> str:
    """Returns the model input below a transparent canvas of the same size, on which the user paints a mask."""
    return (
        f'<figure class="preview"><div><img src="{image_uri(image)}" alt="Model input">'
        f'<canvas width="{image.width}" height="{image.height}" role="img" aria-label="Mask"></canvas></div>'
        "<figcaption>Model input. Paint over a region to change only its pixels (inpainting).</figcaption></figure>"
    )


def animation(gif: bytes) -> str:
    return single_image(data_uri(gif, "image/gif"), "From the first to the last image and back", "animation")


def denoising_strip(image: Image.Image) -> str:
    text = "The first image during denoising: noisy image (top) and predicted x0 (bottom)"
    return single_image(image_uri(image), text, "strip")


def placeholder(button: str, purpose: str) -> str:
    return f'<div class="placeholder">Press <b>{html.escape(button)}</b> to {html.escape(purpose)}.</div>'


def progress_bar(step: Step) -> str:
    share = round(100 * step.number / step.total)
    text = f"step {step.number} of {step.total}"
    role = f'role="progressbar" aria-label="Steps" aria-valuenow="{share}"'
    if step.number == step.total:
        text = (
            f"{format_count(len(step.images), 'image')} in {step.seconds:.1f} s,"
            f' {step.num_function_evaluations} <abbr title="number of function evaluations">NFE</abbr> per image'
        )
        role = 'role="status"'
    return f'<div class="bar" {role}><i style="width:{share}%"></i><span>{text}</span></div>'


# This JavaScript runs when a generation ends. Its pattern does not match the progress bar of a complete run, which
# shows no step.
MARK_AS_STOPPED = "(...bars) => bars.map(bar => bar.replace(/>step (\\d+) of/, '>stopped at step $1 of'))"


def random_number(maximum: int) -> str:
    """Returns JavaScript that returns a random whole number from 0 to `maximum`."""
    return f"() => Math.floor(Math.random() * {maximum + 1})"


def fill_in(texts: Sequence[str]) -> str:
    """Returns a JavaScript function that returns the text of one output, or a list of texts for several outputs."""
    return f"() => {json.dumps(texts[0] if len(texts) == 1 else list(texts))}"


def look_up(values: Mapping[str, int]) -> str:
    """Returns JavaScript that returns the value of a key."""
    return f"(key) => ({json.dumps(values)})[key]"


def count_changes(max_steps: int) -> str:
    """Returns JavaScript that increases a count if there are at most `max_steps` steps and no setting is empty."""
    return f"(count, steps, ...settings) => count + (steps <= {max_steps} && !settings.includes(null))"


# This JavaScript returns the image of a gallery at a position from 0 (first image) to 100 (last image). A placeholder
# contains no images.
SELECT_IMAGE = """(position, gallery) => {
    const figures = new DOMParser().parseFromString(gallery, "text/html").querySelectorAll("figure");
    return figures.length ? figures[Math.round(position / 100 * (figures.length - 1))].outerHTML : "";
}"""


# This JavaScript paints on the canvas of a preview with a square brush. Strokes that start on a painted pixel erase.
PAINT_MASK = """element.addEventListener("pointerdown", (start) => {
    const canvas = start.target;
    if (canvas.tagName !== "CANVAS") return;
    const context = canvas.getContext("2d", {willReadFrequently: true});
    const brush = Math.max(1, Math.round(Math.min(canvas.width, canvas.height) / 9));
    const locate = (event) => {
        const box = canvas.getBoundingClientRect();
        const x = (event.clientX - box.left) / box.width * canvas.width;
        return [x, (event.clientY - box.top) / box.height * canvas.height];
    };
    let [x, y] = locate(start);
    const erase = context.getImageData(Math.floor(x), Math.floor(y), 1, 1).data[3] > 0;
    context.fillStyle = "#ea580c";
    const paint = (event) => {
        const [endX, endY] = locate(event), count = Math.ceil(Math.max(Math.abs(endX - x), Math.abs(endY - y), 1));
        for (let i = 1; i <= count; i++) {
            const corner = [x + (endX - x) * i / count, y + (endY - y) * i / count]
                .map((value) => Math.round(value - brush / 2));
            context[erase ? "clearRect" : "fillRect"](...corner, brush, brush);
        }
        [x, y] = [endX, endY];
    };
    canvas.setPointerCapture(start.pointerId);
    canvas.onpointermove = paint;
    canvas.onpointerup = canvas.onpointercancel = () => { canvas.onpointermove = null; };
    paint(start);
});"""
CLEAR_MASK = """() => {
    const canvas = document.querySelector("#preview canvas");
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}"""
# This JavaScript replaces the last input with the mask: one 0 or 1 for each pixel, or an empty string without paint.
READ_MASK = """(...inputs) => {
    const canvas = document.querySelector("#preview canvas");
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const mask = Array.from({length: pixels.length / 4}, (_, i) => pixels[4 * i + 3] ? "1" : "0").join("");
    return [...inputs.slice(0, -1), mask.includes("1") ? mask : ""];
}"""


def quality_table(metrics: dict[str, Any] | None) -> str:
    rows = measured_metrics(metrics) if metrics else []
    if not metrics or not rows:
        return "<p>This checkpoint has no metrics yet. Compute them with <code>fmnist-diffusion evaluate</code>.</p>"
    body = "".join(
        f"<tr><th scope=row>{html.escape(metric.title)}</th><td>{format_number(metric.value)}</td>"
        f"<td>{format_number(metric.real_value)}</td></tr>"
        for metric in rows
    )
    name, real, column = "the training images of Fashion-MNIST", "the 10,000 real test images", "Test images"
    if "reference" in metrics:
        name = f"{metrics['reference']['num_images']:,} images of {html.escape(metrics['reference']['name'])}"
        real, column = "one half of these real images, compared with the other half", "Real images"
    return (
        f"<p>These metrics compare {metrics['num_samples']:,} generated images with {name}. The last column shows the"
        f" same metrics for {real}. FID, KID and FD-classifier should be low, and the other metrics high.</p>"
        "<table><thead><tr><th scope=col>Metric</th><th scope=col>This checkpoint</th>"
        f"<th scope=col>{column}</th></tr></thead><tbody>{body}</tbody></table>"
    )
