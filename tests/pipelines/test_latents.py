"""Latent diffusion pipelines."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.data import to_uint8
from fmnist_diffusion.export import export_onnx
from fmnist_diffusion.pipelines import encode_images
from fmnist_diffusion.sampling import SamplingConfig, copy_pipeline, generate, make_pipeline
from fmnist_diffusion.schedulers import SCHEDULERS
from latent_pipelines import get_latent_pipeline, make_vae
from tiny_pipelines import get_pipeline, make_unet, sample


@pytest.fixture
def pipe() -> FashionMNISTPipeline:
    return get_latent_pipeline()


@torch.no_grad()
def decode(pipe: FashionMNISTPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Decodes latents to pixels in [0, 1]."""
    return (pipe.vae.decode(latents / 3.0 + 0.1).sample / 2 + 0.5).clamp(0, 1)


class TestSampling:
    def test_images_are_decoded_latents(self, pipe):
        latents = sample(pipe, ["Bag", 3], output_type="latent")
        assert pipe.vae_scale_factor == 2
        assert latents.shape == (2, *pipe.latent_shape) == (2, 2, 8, 8)
        images = sample(pipe, ["Bag", 3])
        assert images.shape == (2, *pipe.image_shape) == (2, 3, 16, 16)
        assert_close(images, decode(pipe, latents))
        assert images.std() > 0.01

    def test_latents_are_not_clipped(self, pipe):
        tensors = {}

        def save_tensors(pipe: Any, step: int, timestep: Any, values: dict[str, torch.Tensor]) -> None:
            tensors.update(values)

        noise = 30 * torch.randn(1, 2, 8, 8, generator=torch.manual_seed(0))
        names = ["pred_original_sample"]
        settings = {"callback_on_step_end": save_tensors, "callback_on_step_end_tensor_inputs": names}
        latents = pipe(latents=noise, output_type="latent", **settings).images
        assert latents.abs().max() > 1
        assert_close(tensors["pred_original_sample"], latents, atol=1e-3, rtol=1e-3)

    def test_scheduler_that_clips_is_an_error(self, pipe):
        pipe.scheduler = DDIMScheduler()
        with pytest.raises(ValueError, match="DDIMScheduler must not clip the latents"):
            sample(pipe)

    def test_options_of_other_schedulers_do_not_clip(self, pipe):
        # diffusers keeps `clip_sample` in the config, although this scheduler has no such option.
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(DDIMScheduler(clip_sample=True).config)
        assert pipe.scheduler.config.clip_sample
        assert sample(pipe).isfinite().all()

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_schedulers_do_not_clip(self, name):
        unet = make_unet(in_channels=2, out_channels=2)
        pipe = make_pipeline(unet, DDPMScheduler(), num_inference_steps=4, vae=make_vae())
        copy = copy_pipeline(pipe, name)
        copy.set_progress_bar_config(disable=True)
        assert sample(copy).isfinite().all()
        assert copy.vae is pipe.vae

    def test_generate_returns_pixels(self, pipe):
        (samples,) = generate(pipe, SamplingConfig(seed=5), 2, class_labels=[1])
        (expected,) = generate(pipe, SamplingConfig(seed=6), 1, class_labels=[1])
        assert samples.images.shape == (2, 3, 16, 16)
        assert (samples.images[1].int() - expected.images[0].int()).abs().max() <= 1
        pil = pipe(1, generator=torch.Generator().manual_seed(6)).images[0]
        assert pil.size == (16, 16) and pil.mode == "RGB"

    def test_latents_are_decoded_without_gradients(self, pipe):
        latents = sample(pipe, ["Bag", 3], output_type="latent")
        images = pipe.image_processor.postprocess(pipe.decode_latents(latents), "np")
        assert_close(torch.from_numpy(images).permute(0, 3, 1, 2), sample(pipe, ["Bag", 3]))

    def test_interpolation_and_trajectory_are_decoded(self, pipe):
        assert pipe.interpolate([1, 2], num_images=3, output_type="pt").images.shape == (3, 3, 16, 16)
        frames = pipe.trajectory([1], tensor_name="pred_original_sample")
        assert [image.size for (image,) in frames] == 3 * [(16, 16)]


class TestImages:
    @pytest.fixture
    def image(self) -> torch.Tensor:
        return torch.rand(1, 3, 16, 16, generator=torch.manual_seed(1))

    @torch.no_grad()
    def test_encoding_uses_the_mean_of_the_posterior(self, pipe, image):
        mean = pipe.vae.encode(image).latent_dist.mean
        assert_close(encode_images(pipe.vae, image), (mean - 0.1) * 3.0)

    def test_autoencoder_without_posterior_encodes_images(self, pipe, image):
        vae: Any = AutoencoderTiny(
            encoder_block_out_channels=(4, 4),
            decoder_block_out_channels=(4, 4),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=2,
        )
        pipe = FashionMNISTPipeline(pipe.unet, pipe.scheduler, vae=vae.eval())
        pipe.set_progress_bar_config(disable=True)
        with torch.no_grad():
            expected = vae.encode(2 * image - 1).latents
            assert_close(encode_images(vae, 2 * image - 1), expected)
        mask = torch.zeros(1, 16, 16)
        images = sample(pipe, image=image, mask_image=mask)
        assert_close(images, image)

    def test_image_to_image_starts_from_noisy_latents(self, pipe, image):
        generator = torch.Generator().manual_seed(3)
        latents = pipe(image=image, strength=0.5, generator=generator, output_type="latent").images
        noise = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(3))
        scheduler = pipe.scheduler
        scheduler.set_timesteps(2)
        t = scheduler.timesteps[1]
        with torch.no_grad():
            noisy = scheduler.add_noise(encode_images(pipe.vae, 2 * image - 1), noise, t.reshape(1))
            expected = scheduler.step(pipe.unet(noisy, t).sample, t, noisy).prev_sample
        assert_close(latents, expected, atol=1e-4, rtol=1e-4)

    def test_inpainting_keeps_the_known_pixels(self, pipe, image):
        mask = torch.zeros(1, 1, 16, 16)
        mask[..., 3:8, 5:] = 1
        pixels = (255 * image).to(torch.uint8)
        inputs = {"image": pixels, "mask_image": mask}
        (samples,) = generate(pipe, SamplingConfig(), 2, **inputs)
        known = (mask == 0).expand(2, 3, -1, -1)
        assert torch.equal(samples.images[known], pixels.expand(2, -1, -1, -1)[known])
        assert (samples.images != pixels)[~known].float().mean() > 0.9
        # The latent of a block of pixels is generated if the mask contains any of them.
        latents = sample(pipe, output_type="latent", **inputs)
        with torch.no_grad():
            expected = encode_images(pipe.vae, 2 * (pixels / 255) - 1)
        kept = latents == expected
        assert kept[..., 4:, :].all() and kept[..., :1, :].all() and kept[..., :2].all()
        assert not kept[..., 1:4, 2:].any()


@pytest.mark.usefixtures("dynamic_modules")
class TestSaving:
    def test_saved_pipeline_generates_the_same_images(self, pipe, tmp_path):
        expected = sample(pipe, [1, 2])
        pipe.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
        loaded = load_pipeline(tmp_path)
        assert torch.equal(sample(loaded, [1, 2]), expected)
        assert torch.equal(
            sample(DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True), [1, 2]), expected
        )
        assert torch.equal(sample(FashionMNISTPipeline.from_pipe(pipe), [1, 2]), expected)
        vae = make_vae()
        assert load_pipeline(tmp_path, vae=vae).vae is vae
        loaded.save_pretrained(tmp_path / "copy")
        assert str(tmp_path) not in (tmp_path / "copy" / "vae" / "config.json").read_text()

    def test_default_pipeline_keeps_latents_unclipped(self, tmp_path):
        make_pipeline(make_unet(in_channels=2, out_channels=2), DDPMScheduler(), vae=make_vae()).save_pretrained(
            tmp_path
        )
        pipe = load_pipeline(tmp_path, scheduler="ddim")
        assert pipe.scheduler.config["clip_sample"] is False
        pipe = load_pipeline(tmp_path)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        assert sample(pipe).isfinite().all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"scaling_factor": None}, "`scaling_factor` in .* must be a positive number, got 'None'"),
            ({"scaling_factor": -1.0}, "`scaling_factor` in .* must be a positive number, got '-1.0'"),
            ({"shift_factor": "1"}, "`shift_factor` in .* must be a finite number, got '1'"),
            ({"latent_channels": 4}, "requires"),
        ],
    )
    def test_invalid_config_of_the_autoencoder_is_an_error(self, pipe, tmp_path: Path, options, message):
        pipe.save_pretrained(tmp_path)
        path = tmp_path / "vae" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | options))
        with pytest.raises(OSError, match=message):
            load_pipeline(tmp_path)

    def test_autoencoder_must_fit_the_model(self, pipe, tmp_path: Path):
        pipe.save_pretrained(tmp_path)
        with pytest.raises(OSError, match="`latent_channels` must be 1, got 2"):
            load_pipeline(tmp_path, unet=make_unet())


def test_export_to_onnx_is_not_supported(pipe, tmp_path):
    with pytest.raises(ValueError, match="latent diffusion pipeline cannot be exported"):
        export_onnx(pipe, tmp_path / "model.onnx", name="model")


def test_latents_are_the_images_without_an_autoencoder():
    pipe = get_pipeline()
    latents = sample(pipe, output_type="latent")
    assert pipe.vae_scale_factor == 1 and pipe.image_shape == pipe.latent_shape == (1, 8, 8)
    assert pipe.decode_latents(latents) is latents
    (samples,) = generate(pipe, SamplingConfig(), 1)
    assert torch.equal(samples.images, to_uint8(latents))
