"""Options that require a component which the checkpoint does not have."""

from pathlib import Path

import pytest
from diffusers import LCMScheduler

from latent_pipelines import get_latent_pipeline
from text_pipelines import get_text_pipeline
from tiny_pipelines import get_pipeline, make_classifier


LABELS, PROMPT, GUIDANCE = ["--class-labels", "bag"], ["--prompt", "a dark bag"], ["--guidance-scale", "2"]
CLASSIFIER_GUIDANCE = ["--classifier-guidance-scale", "1"]
NO_CLASSIFIER = (
    "--classifier-guidance-scale must be 0.0 for a pipeline without a classifier, got 1.0. Omit it, or load a"
    " pipeline with a classifier (`training/train_guidance_classifier.py`)."
)
UNCONDITIONAL = (
    "--guidance-scale must be 1.0 for unconditional sampling, got 2.0. Omit it, or evaluate conditional samples."
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A folder with one pipeline for each combination of components."""
    folder = tmp_path_factory.mktemp("pipelines")
    for name, pipe in {
        "class": get_pipeline(),
        "unconditional": get_pipeline(num_class_embeds=None),
        "guided": get_pipeline(num_class_embeds=None, classifier=make_classifier()),
        "consistency": get_pipeline(LCMScheduler()),
        "text": get_text_pipeline(),
        "latent": get_latent_pipeline(),
    }.items():
        pipe.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("command", "name", "options", "message"),
    [
        ("sample", "class", PROMPT, "--prompt requires a text-conditional model. Pass --class-labels instead."),
        ("sample", "unconditional", PROMPT, "--prompt requires a text-conditional model. Omit it."),
        ("sample", "unconditional", LABELS, "--class-labels is not supported by an unconditional model. Omit it."),
        (
            "sample",
            "text",
            LABELS,
            "--class-labels is not supported by a text-conditional model. Pass --prompt instead.",
        ),
        ("sample", "class", [*LABELS, *CLASSIFIER_GUIDANCE], NO_CLASSIFIER),
        ("sample", "class", CLASSIFIER_GUIDANCE, NO_CLASSIFIER),
        ("sample", "text", [*PROMPT, *CLASSIFIER_GUIDANCE], NO_CLASSIFIER),
        (
            "sample",
            "guided",
            CLASSIFIER_GUIDANCE,
            "--classifier-guidance-scale must be 0.0 without --class-labels, got 1.0. Pass --class-labels to use"
            " guidance.",
        ),
        (
            "sample",
            "guided",
            LABELS,
            "An unconditional model only supports --class-labels with classifier guidance. Pass"
            " --classifier-guidance-scale, or omit --class-labels.",
        ),
        (
            "sample",
            "guided",
            [*LABELS, *CLASSIFIER_GUIDANCE, *GUIDANCE],
            "--guidance-scale must be 1.0 for an unconditional model, got 2.0. Use --classifier-guidance-scale"
            " instead.",
        ),
        ("evaluate", "class", CLASSIFIER_GUIDANCE, NO_CLASSIFIER),
        ("evaluate", "unconditional", CLASSIFIER_GUIDANCE, NO_CLASSIFIER),
        ("evaluate", "text", CLASSIFIER_GUIDANCE, NO_CLASSIFIER),
        ("evaluate", "unconditional", GUIDANCE, UNCONDITIONAL),
        ("evaluate", "guided", GUIDANCE, UNCONDITIONAL),
        (
            "evaluate",
            "guided",
            [*CLASSIFIER_GUIDANCE, *GUIDANCE],
            "--guidance-scale must be 1.0 for an unconditional model, got 2.0. Use --classifier-guidance-scale"
            " instead.",
        ),
        (
            "evaluate",
            "guided",
            [*CLASSIFIER_GUIDANCE, "--unconditional"],
            "--classifier-guidance-scale must be 0.0 for unconditional sampling, got 1.0. Omit it, or evaluate"
            " conditional samples.",
        ),
        ("evaluate", "unconditional", ["--cas"], "--cas requires labeled samples"),
        ("likelihood", "text", [], "The likelihood of text-conditional pipelines is not supported."),
        ("likelihood", "latent", [], "The likelihood of latent diffusion models is not supported."),
        ("likelihood", "consistency", [], "A consistency model does not predict the velocity"),
        ("export", "text", ["-o", "onnx"], "A text-conditional pipeline cannot be exported to ONNX."),
        ("export", "latent", ["-o", "onnx"], "A latent diffusion pipeline cannot be exported to ONNX."),
    ],
)
def test_missing_component_is_an_error(no_slow_steps, get_error, folders, tmp_path, command, name, options, message):
    if command == "export":
        pytest.importorskip("onnxscript")
    if command == "evaluate":
        (tmp_path / "inception.pt").touch()
        options = [*options, "--inception-weights", "inception.pt"]
    assert get_error(command, folders / name, *options).startswith(message)
