"""Text-conditional pipelines."""

import json
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTGuidanceClassifier, FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.sampling import SamplingConfig, generate
from text_pipelines import CAPTIONS, get_text_pipeline
from tiny_pipelines import get_pipeline, sample


FIRST, SECOND = CAPTIONS[:2]


@pytest.fixture
def pipe() -> FashionMNISTPipeline:
    return get_text_pipeline()


@torch.no_grad()
def encode(pipe: Any, prompt: str) -> torch.Tensor:
    token_ids = pipe.tokenizer(prompt, return_tensors="pt").input_ids
    return pipe.text_encoder(token_ids).pooler_output


class TestPrompt:
    def test_image_depends_on_the_prompt(self, pipe):
        images = [sample(pipe, prompt=prompt) for prompt in (FIRST, SECOND, "")]
        assert (images[0] - images[1]).abs().max() > 1e-3
        assert torch.equal(images[0], sample(pipe, prompt=FIRST))
        assert torch.equal(images[2], sample(pipe))

    def test_images_of_each_prompt_are_consecutive(self, pipe):
        def make_generators():
            return [torch.Generator().manual_seed(seed) for seed in range(4)]

        images = pipe(
            prompt=[FIRST, SECOND], num_images_per_prompt=2, generator=make_generators(), output_type="pt"
        ).images
        for index, generator in enumerate(make_generators()):
            prompt = FIRST if index < 2 else SECOND
            expected = pipe(prompt=prompt, generator=generator, output_type="pt").images
            assert_close(images[index : index + 1], expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("negative_prompt", [None, SECOND])
    def test_guidance_equals_a_manual_computation(self, pipe, negative_prompt):
        latents, embeds = torch.randn(1, 1, 8, 8), encode(pipe, FIRST)
        negative_embeds = encode(pipe, negative_prompt or "")
        images = pipe(
            prompt=FIRST, negative_prompt=negative_prompt, guidance_scale=3.0, latents=latents, output_type="latent"
        ).images
        scheduler, expected = DDIMScheduler(), latents
        scheduler.set_timesteps(2)
        for t in scheduler.timesteps:
            with torch.no_grad():
                cond, uncond = (pipe.unet(expected, t, class_labels=e).sample for e in (embeds, negative_embeds))
            expected = scheduler.step(uncond + 3.0 * (cond - uncond), t, expected).prev_sample
        assert_close(images, expected, atol=1e-4, rtol=1e-4)

    def test_negative_prompts_are_those_of_the_images(self, pipe):
        settings = {"guidance_scale": 2.0, "latents": torch.randn(2, 1, 8, 8), "output_type": "pt"}
        images = pipe(prompt=[FIRST, SECOND], negative_prompt=[SECOND, FIRST], **settings).images
        settings["latents"] = settings["latents"][1:]
        assert_close(images[1:], pipe(prompt=SECOND, negative_prompt=FIRST, **settings).images, atol=1e-4, rtol=0)

    def test_tokens_are_padded_and_truncated_without_changing_the_tokenizer(self, pipe, monkeypatch):
        prompts, inputs = ["", "a dark bag", "a dark bag " * 20], []
        backend, encode = pipe.tokenizer.backend_tokenizer, pipe.text_encoder.forward
        monkeypatch.setattr(pipe.text_encoder, "forward", lambda ids, **kwargs: (inputs.append(ids), encode(ids))[1])
        pipe.encode_prompt(prompts)
        assert (backend.padding, backend.truncation) == (None, None)
        expected = pipe.tokenizer([*prompts, "", "", ""], padding="max_length", truncation=True, return_tensors="pt")
        assert torch.equal(inputs[0], expected.input_ids)
        assert expected.input_ids.shape == (6, pipe.tokenizer.model_max_length)

    def test_embeddings_are_on_the_device_of_the_pipeline(self, pipe):
        pipe.to("meta")
        assert [embeds.device.type for embeds in pipe.encode_prompt("a bag")] == ["meta", "meta"]

    def test_classifier_guidance_is_not_supported(self, pipe):
        pipe.classifier = FashionMNISTGuidanceClassifier(1, 10)
        with pytest.raises(ValueError, match=r"must be 0\.0 for a text-conditional model, got 1\.0\. Use `prompt`"):
            pipe(0, classifier_guidance_scale=1.0)

    def test_unknown_words_are_logged(self, pipe, diffusers_log):
        sample(pipe, prompt=CAPTIONS[1].upper() + ", 1!")
        assert not diffusers_log.records
        images = sample(pipe, prompt=["a dark spaceship", "Ünïcödé 👗"])
        assert images.isfinite().all()
        assert [record.message for record in diffusers_log.records] == [
            "The tokenizer does not know these words of the prompt: spaceship, Ünïcödé."
            " If the images do not show them, use other words."
        ]

    def test_ignored_part_of_a_long_prompt_is_logged_once(self, pipe, diffusers_log, caplog):
        # A sequence has a start token, 22 tokens of the prompt and an end token.
        kept, ignored = "a dark bag " * 7 + "a", "dark bag with long sleeves"
        expected = sample(pipe, prompt=kept)
        assert not diffusers_log.records
        images = pipe(
            prompt=[f"{kept} {ignored}"] * 2,
            negative_prompt=f"{kept} a photo",
            generator=[torch.Generator().manual_seed(0) for _ in range(2)],
            output_type="pt",
        ).images
        assert_close(images[:1], expected, atol=1e-5, rtol=0)
        assert [record.getMessage() for record in diffusers_log.records] == [
            "The following part of the prompt was truncated because the text encoder can only handle sequences of up"
            f" to 24 tokens: '{ignored}', 'a photo'. Use a shorter prompt."
        ]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"class_labels": "Bag"}, "Pass `prompt` instead"),
            ({"prompt": []}, "non-empty list of strings"),
            ({"prompt": 3}, "string"),
            ({"prompt": [FIRST, None]}, "string"),
            ({"prompt": FIRST, "negative_prompt": 3}, "`negative_prompt` must be a string"),
            (
                {"prompt": FIRST, "negative_prompt": [FIRST, SECOND]},
                r"must be one prompt, or one for each prompt \(1\), got 2",
            ),
            ({"guidance_scale": 2.0}, "Pass `prompt` to use guidance"),
        ],
    )
    def test_invalid_arguments_are_errors(self, pipe, arguments, message):
        with pytest.raises(ValueError, match=message):
            pipe(**arguments)

    @pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
    def test_class_conditional_pipeline_has_no_prompts(self, name):
        with pytest.raises(ValueError, match=f"`{name}` requires a pipeline with a text encoder"):
            get_pipeline()(**{name: FIRST})


class TestInterpolate:
    def test_first_and_last_image_are_those_of_the_prompts(self, pipe):
        images = pipe.interpolate(prompt=[FIRST, SECOND], seeds=(3, 4), num_images=4, output_type="pt").images
        assert pipe.num_function_evaluations == 4
        assert_close(images[:1], sample(pipe, prompt=FIRST, seed=3), atol=1e-4, rtol=0)
        assert_close(images[-1:], sample(pipe, prompt=SECOND, seed=4), atol=1e-4, rtol=0)

    def test_one_prompt_requires_one_evaluation_per_step(self, pipe):
        images = pipe.interpolate(prompt=FIRST, seeds=(3, 4), num_images=2, output_type="pt").images
        assert pipe.num_function_evaluations == 2
        assert_close(images[:1], sample(pipe, prompt=FIRST, seed=3), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("prompts", [["a", "b", "c"], ["a", "b", "a"]])
    def test_three_prompts_are_an_error(self, pipe, prompts):
        with pytest.raises(ValueError, match="one or two prompts, got 3"):
            pipe.interpolate(prompt=prompts)


def test_generate_cycles_through_prompts(pipe):
    (samples,) = generate(pipe, SamplingConfig(seed=5), 3, prompts=[FIRST, SECOND])
    (last,) = generate(pipe, SamplingConfig(seed=7), 1, prompts=[FIRST])
    assert samples.labels is None
    assert (samples.images[2].int() - last.images[0].int()).abs().max() <= 1


@pytest.mark.usefixtures("dynamic_modules")
class TestSaving:
    def test_round_trips_keep_the_images_and_log_nothing(self, pipe, tmp_path, diffusers_log, caplog):
        expected = sample(pipe, prompt=FIRST)
        pipe.save_pretrained(tmp_path / "0")
        index = json.loads((tmp_path / "0" / "model_index.json").read_text())
        assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
        assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
        for i, load in enumerate(
            [load_pipeline, lambda folder: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)]
        ):
            again: Any = load(tmp_path / str(i))
            again.set_progress_bar_config(disable=True)
            assert not again.text_encoder.training
            # Rounding errors depend on the alignment of the loaded weights in memory.
            assert_close(sample(again, prompt=FIRST), expected, rtol=0, atol=1e-5)
            again.save_pretrained(tmp_path / str(i + 1))
        files = [
            {path.relative_to(tmp_path / str(i)) for path in (tmp_path / str(i)).rglob("*") if path.is_file()}
            for i in range(3)
        ]
        assert files[0] == files[1] == files[2]
        for path in (tmp_path / "2").rglob("*.json"):
            assert str(tmp_path) not in path.read_text()
        assert not diffusers_log.records
        assert not caplog.records

    def test_from_pipe_keeps_the_text_encoder(self, pipe):
        again = FashionMNISTPipeline.from_pipe(pipe)
        assert again.text_encoder is pipe.text_encoder

    def test_pipeline_without_text_encoder_does_not_list_one(self, tmp_path):
        get_pipeline().save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert not index.keys() & {"text_encoder", "tokenizer"}


@pytest.mark.parametrize("damage", ["no text encoder", "no tokenizer", "class labels"])
def test_missing_or_mismatched_text_components_are_an_error(pipe, tmp_path, damage):
    pipe.save_pretrained(tmp_path)
    if damage.startswith("no "):
        index = json.loads((tmp_path / "model_index.json").read_text())
        del index[damage.removeprefix("no ").replace(" ", "_")]
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        expected = {
            "no text encoder": "requires a text encoder with a `hidden_size` of 16",
            "no tokenizer": "requires a tokenizer. Pass one as `tokenizer`",
        }[damage]
    else:
        get_pipeline().unet.save_pretrained(tmp_path / "unet")
        expected = "`hidden_size` must be None, got 16"
    with pytest.raises(OSError, match=expected):
        load_pipeline(tmp_path)
