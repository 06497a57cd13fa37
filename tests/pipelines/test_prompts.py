"""Text-conditional pipelines."""

import json
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTGuidanceClassifier, FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.sampling import SamplingConfig, copy_pipeline, generate
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

    def test_callback_can_enable_guidance(self, pipe):
        def callback(pipe, step, timestep, tensors):
            pipe._guidance_scale = 3.0

        prompts = {"prompt": FIRST, "negative_prompt": SECOND}
        images = sample(pipe, callback_on_step_end=callback, **prompts)
        expected = sample(pipe, guidance_scale=3.0, guidance_interval=(0.5, 1.0), **prompts)
        assert_close(images, expected)
        assert (expected - sample(pipe, prompt=FIRST)).abs().max() > 1e-4

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
        # All prompts have the same negative prompt, so it is encoded once.
        expected = pipe.tokenizer([*prompts, ""], padding="max_length", truncation=True, return_tensors="pt")
        assert torch.equal(inputs[0], expected.input_ids)
        assert expected.input_ids.shape == (4, pipe.tokenizer.model_max_length)

    def test_embeddings_are_on_the_device_of_the_pipeline(self, pipe):
        pipe.to("meta")
        assert [embeds.device.type for embeds in pipe.encode_prompt("a bag")] == ["meta", "meta"]

    def test_encode_prompt_accepts_the_arguments_of_stable_diffusion(self, pipe):
        embeds, negative_embeds = pipe.encode_prompt([FIRST, SECOND], torch.device("cpu"), 2, True, "a bag")
        assert_close(embeds, torch.cat([encode(pipe, prompt) for prompt in (FIRST, FIRST, SECOND, SECOND)]))
        assert_close(negative_embeds, encode(pipe, "a bag").expand(4, -1))
        again = pipe.encode_prompt(None, None, 1, True, None, embeds, negative_embeds)
        assert torch.equal(again[0], embeds) and torch.equal(again[1], negative_embeds)
        embeds, negative_embeds = pipe.encode_prompt(FIRST, do_classifier_free_guidance=False)
        assert_close(embeds, encode(pipe, FIRST))
        assert negative_embeds is None

    @pytest.mark.parametrize("has_text_encoder", [True, False])
    @pytest.mark.parametrize("num_negative", [1, 2])
    def test_embeddings_replace_prompts(self, pipe, has_text_encoder, num_negative):
        negative_prompts = ["a dark dress", "a bright bag"][:num_negative]
        settings = {"guidance_scale": 2.0, "num_images_per_prompt": 2}
        expected = sample(pipe, prompt=[FIRST, SECOND], negative_prompt=negative_prompts, **settings)
        unguided = sample(pipe, prompt=[FIRST, SECOND])
        embeds, _ = pipe.encode_prompt([FIRST, SECOND])
        negative_embeds = pipe.encode_prompt(negative_prompts)[0]
        if not has_text_encoder:
            pipe = FashionMNISTPipeline(pipe.unet, pipe.scheduler, 2)
            pipe.set_progress_bar_config(disable=True)
        images = sample(pipe, prompt_embeds=embeds, negative_prompt_embeds=negative_embeds, **settings)
        assert_close(images, expected, atol=1e-5, rtol=0)
        assert_close(sample(pipe, prompt_embeds=embeds), unguided, atol=1e-5, rtol=0)

    def test_text_and_embeddings_can_be_combined(self, pipe):
        embeds, negative_embeds = pipe.encode_prompt(FIRST, negative_prompt=SECOND)
        expected = sample(pipe, prompt=FIRST, negative_prompt=SECOND, guidance_scale=2.0)
        for arguments in (
            {"prompt_embeds": embeds, "negative_prompt": SECOND},
            {"prompt": FIRST, "negative_prompt_embeds": negative_embeds},
        ):
            assert_close(sample(pipe, guidance_scale=2.0, **arguments), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "`prompt` requires a text encoder and a tokenizer, but the pipeline does not have both"),
            (
                {"prompt": FIRST},
                "`prompt` requires a text encoder and a tokenizer, but the pipeline does not have both",
            ),
            (
                {"prompt_embeds": torch.zeros(1, 16), "guidance_scale": 2.0},
                "`negative_prompt` requires a text encoder and a tokenizer, but the",
            ),
            (
                {"prompt_embeds": torch.zeros(1, 16), "negative_prompt": ""},
                "`negative_prompt` requires a text encoder and a tokenizer, but the",
            ),
            (
                {"class_labels": "Bag"},
                "`prompt` requires a text encoder and a tokenizer, but the pipeline does not have both",
            ),
        ],
    )
    def test_pipeline_without_text_encoder_requires_embeddings(self, pipe, arguments, message):
        pipe.text_encoder = pipe.tokenizer = None
        with pytest.raises(ValueError, match=message):
            pipe(**arguments)

    def test_methods_that_require_the_text_encoder(self, pipe):
        pipe.text_encoder = pipe.tokenizer = None
        with pytest.raises(ValueError, match="`interpolate` requires the text encoder and"):
            pipe.interpolate()
        with pytest.raises(
            ValueError, match="`prompt` requires a text encoder and a tokenizer, but the pipeline does not have both"
        ):
            pipe.encode_prompt(FIRST)

    def test_text_encoder_without_tokenizer(self, pipe):
        embeds, _ = pipe.encode_prompt(FIRST)
        expected = sample(pipe, prompt_embeds=embeds)
        pipe.tokenizer = None
        assert torch.equal(sample(pipe, prompt_embeds=embeds), expected)
        with pytest.raises(ValueError, match="`prompt` requires a text encoder and a tokenizer, but the pipeline"):
            pipe(prompt=FIRST)

    def test_copies_of_a_pipeline_without_text_encoder(self, pipe):
        embeds, _ = pipe.encode_prompt(FIRST)
        pipe.text_encoder = pipe.tokenizer = None
        for copy in (copy_pipeline(pipe), FashionMNISTPipeline.from_pipe(pipe)):
            copy.set_progress_bar_config(disable=True)
            assert torch.equal(sample(copy, prompt_embeds=embeds), sample(pipe, prompt_embeds=embeds))

    def test_embeddings_are_converted_to_the_dtype_of_the_model(self, pipe):
        embeds, _ = pipe.encode_prompt(FIRST)
        assert torch.equal(sample(pipe, prompt_embeds=embeds.double()), sample(pipe, prompt_embeds=embeds))

    def test_classifier_guidance_is_not_supported(self, pipe):
        pipe.classifier = FashionMNISTGuidanceClassifier(1, 10)
        with pytest.raises(ValueError, match=r"must be 0\.0 for a text-conditional model, got 1\.0\. Use `prompt`"):
            pipe(prompt=FIRST, classifier_guidance_scale=1.0)

    def test_unknown_words_are_logged(self, pipe, diffusers_log):
        sample(pipe, prompt=CAPTIONS[1].upper() + ", 1!")
        assert not diffusers_log.records
        images = sample(pipe, prompt=["a dark spaceship", "Ünïcödé 👗"])
        assert images.isfinite().all()
        assert [record.message for record in diffusers_log.records] == [
            "The vocabulary of the tokenizer does not contain these words: spaceship, Ünïcödé."
            " Unless the model was fine-tuned on them, use other words."
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
            ({"prompt": FIRST, "prompt_embeds": torch.zeros(1, 16)}, "both `prompt` and `prompt_embeds`"),
            ({"prompt_embeds": torch.zeros(1, 8)}, r"tensor of shape \(num_prompts, 16\), got \(1, 8\)"),
            ({"prompt_embeds": torch.zeros(0, 16)}, r"tensor of shape \(num_prompts, 16\), got \(0, 16\)"),
            ({"prompt_embeds": [0.0] * 16}, "`prompt_embeds` must be a tensor .*, got list"),
            (
                {"prompt_embeds": torch.zeros(3, 16), "negative_prompt_embeds": torch.zeros(2, 16)},
                r"`negative_prompt_embeds` must be one embedding, or one for each prompt \(3\), got 2",
            ),
        ],
    )
    def test_invalid_arguments_are_errors(self, pipe, arguments, message):
        with pytest.raises(ValueError, match=message):
            pipe(**arguments)

    @pytest.mark.parametrize("name", ["prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds"])
    def test_class_conditional_pipeline_has_no_prompts(self, name):
        hint = "Omit it" if name.startswith("negative") else "Pass `class_labels` instead"
        with pytest.raises(ValueError, match=f"`{name}` requires a text-conditional model. {hint}"):
            get_pipeline()(**{name: FIRST})
        with pytest.raises(ValueError, match=r"`encode_prompt` requires a text-conditional model\. Load one"):
            get_pipeline(num_class_embeds=4).encode_prompt()


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

    def test_all_models_have_the_requested_dtype(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        half: Any = load_pipeline(tmp_path, dtype=None, torch_dtype=torch.float16)
        assert (half.unet.dtype, half.text_encoder.dtype) == (torch.float16, torch.float16)

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
