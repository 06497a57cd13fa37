"""What the demo draws, without its page."""

import dataclasses
import itertools
import pickle
import shutil
import struct
import threading
import time
import zlib

import generation
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from generation import RequestError, Settings, Studio
from PIL import Image, ImageDraw
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTUNet2DModel, export_pipeline, load_pipeline
from fmnist_diffusion.data import FASHION_MNIST_LABELS, load_images


@pytest.fixture(scope="session")
def studio(model_folder) -> Studio:
    return Studio(model_folder)


@pytest.fixture(scope="session")
def plain_studio() -> Studio:
    """The bundled checkpoint, which knows no classes."""
    return Studio("spec")


def last(steps):
    *_, step = steps
    return step


def arrays(images) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


class TestSettings:
    @pytest.mark.parametrize(
        "name, value",
        [
            ("num_images", 0),
            ("num_images", 41),
            ("num_images", 2.5),
            ("num_inference_steps", 101),
            ("num_inference_steps", "20"),
            ("guidance_scale", 0.5),
            ("guidance_scale", float("nan")),
            ("guidance_scale", None),
            ("seed", -1),
            ("seed", 2**32),
            ("seed", True),
            ("scheduler", "Magic"),
        ],
    )
    def test_out_of_range(self, name, value):
        with pytest.raises(RequestError, match=r"^The .* must be .*\.$"):
            Settings(**{name: value})

    def test_whole_numbers_may_come_as_floats(self):
        assert Settings(num_images=3.0, seed=7.0) == Settings(num_images=3, seed=7)

    def test_classes(self, studio, plain_studio):
        assert studio.label_ids(Settings(("Bag", "Dress"), 3)) == [8, 3, 8]
        assert studio.label_ids(Settings((), 12)) == [*range(10), 0, 1]
        assert plain_studio.label_ids(Settings()) is None
        with pytest.raises(RequestError, match="'Hat' is none of the classes: choose of T-shirt/top, Trouser"):
            studio.label_ids(Settings(("Hat",)))
        with pytest.raises(RequestError, match="knows no classes"):
            plain_studio.label_ids(Settings(("Bag",)))


class TestDraw:
    def test_is_what_the_pipeline_draws(self, studio, model_folder):
        settings = Settings(("Bag", "Dress"), 3, 4, "DDPM", 2.0, 5)
        steps = list(studio.draw(settings))
        pipe = load_pipeline(model_folder, scheduler=None)
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
        expected = pipe([8, 3, 8], num_inference_steps=4, guidance_scale=2.0, generator=generators).images
        assert abs(arrays(steps[-1].images) - arrays(expected)).max() <= 1
        assert [step.number for step in steps] == [1, 2, 3, 4, 4]
        assert {step.total for step in steps} == {4}
        # With guidance, twice a step.
        assert [step.evaluations for step in steps] == [2, 4, 6, 8, 8]
        assert [step.seconds for step in steps] == sorted(step.seconds for step in steps)

    @pytest.mark.parametrize("scheduler", generation.SCHEDULERS)
    def test_every_scheduler(self, studio, scheduler):
        step = last(studio.draw(Settings(("Coat",), 2, 3, scheduler)))
        assert step.evaluations == 3
        assert arrays(step.images).std() > 5

    def test_a_scheduler_that_cannot_draw_with_the_model(self, tmp_path):
        unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8)
        export_pipeline(unet, DDPMScheduler(prediction_type="sample"), tmp_path)
        with pytest.raises(RequestError, match="prediction_type not implemented yet: sample"):
            last(Studio(str(tmp_path)).draw(Settings((), 1, 2, "Euler ancestral")))

    def test_bundled_checkpoint_takes_shape(self, plain_studio):
        """The expected picture changes less and less, and ends as a thing on black."""
        steps = list(plain_studio.draw(Settings(num_images=2, num_inference_steps=10, seed=3)))
        changes = [abs(arrays(a.images) - arrays(b.images)).mean() for a, b in itertools.pairwise(steps)]
        assert changes[0] > 5 * changes[-2]
        assert (arrays(steps[-1].images)[:, :2] < 30).mean() > 0.5

    def test_requests_do_not_disturb_one_another(self, studio):
        wanted = [
            Settings(("Bag",), 2, 12, "DDPM", 1.0, 1),
            Settings(("Dress",), 3, 9, "DPM-Solver++", 3.0, 2),
            Settings(("Coat",), 1, 15, "Euler ancestral", 1.0, 3),
            Settings((), 4, 7, "UniPC", 2.0, 4),
        ]
        alone = [last(studio.draw(settings)).images for settings in wanted]
        together: dict[int, list] = {}

        def run(i: int) -> None:
            together[i] = last(studio.draw(wanted[i])).images

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(wanted))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, images in enumerate(alone):
            assert abs(arrays(images) - arrays(together[i])).max() <= 1

    def test_closed_it_stops_working(self, studio):
        threads = set(threading.enumerate())
        run = studio.draw(Settings(num_images=40, num_inference_steps=100))
        next(run)
        worker = next(thread for thread in threading.enumerate() if thread not in threads)
        run.close()
        worker.join(timeout=10)
        assert not worker.is_alive()

    def test_out_of_time(self, studio, monkeypatch):
        monkeypatch.setattr(generation, "TIME_LIMIT", 0.05)
        with pytest.raises(RequestError, match="This took more than 0 seconds: ask for less"):
            list(studio.draw(Settings(num_images=40, num_inference_steps=100)))

    def test_the_model_is_left_as_it_was(self, studio):
        before = {name: value.clone() for name, value in studio.unet.state_dict().items()}
        config = dict(studio.scheduler_config)
        list(studio.draw(Settings(num_images=1, num_inference_steps=3, scheduler="UniPC")))
        assert not studio.unet.training
        assert config == dict(studio.scheduler_config)
        for name, value in studio.unet.state_dict().items():
            assert torch.equal(value, before[name])


class TestElsewhere:
    """On ZeroGPU a forked process draws, and pickle carries what goes in and comes out."""

    def test_what_is_sent_is_the_request_and_not_the_weights(self, model_folder):
        studio = generation.get_studio(model_folder)
        sent = pickle.dumps((studio, Settings(), {"generator": generation.generators([3])}))
        assert len(sent) < 50_000
        received, _, kwargs = pickle.loads(sent)
        assert received is studio
        assert kwargs["generator"][0].get_state().equal(generation.generators([3])[0].get_state())

    def test_errors_come_back_in_words(self, model_folder, monkeypatch):
        studio = generation.get_studio(model_folder)
        monkeypatch.setattr(generation, "TIME_LIMIT", 0.0)
        monkeypatch.setattr(generation.FashionMNISTPipeline, "__call__", lambda *args, **kwargs: time.sleep(0.5))
        (item,) = studio._run(Settings(num_images=1))
        assert isinstance(pickle.loads(pickle.dumps(item)), RequestError)


class TestQuality:
    @pytest.mark.parametrize("content", ["{", "{}", "[]", '{"metrics": {"fid_train": 2}}', '{"accuracy": 0.9}'])
    def test_of_another_program(self, model_folder, tmp_path, content):
        folder = shutil.copytree(model_folder, tmp_path / "model")
        (folder / "metrics.json").write_text(content)
        assert Studio(str(folder)).quality() == []

    def test_of_the_bundled_checkpoint(self, plain_studio):
        rows = {title: (value, real) for title, value, real in plain_studio.quality()}
        value, real = rows["FID against the training images"]
        assert 1 < real < 2 < value
        assert {"Precision", "Recall", "Coverage"} <= rows.keys()


class TestMorph:
    def test_ends_are_what_draw_makes(self, studio):
        start, stop = Settings(("Bag",), 5, 6, "DDIM", 1.0, 3), Settings(("Dress",), 5, 6, "DDIM", 1.0, 9)
        images = last(studio.morph(start, stop)).images
        assert len(images) == 5
        for image, settings in ((images[0], start), (images[-1], stop)):
            alone = last(studio.draw(dataclasses.replace(settings, num_images=1))).images
            assert abs(arrays([image]) - arrays(alone)).max() <= 1
        assert abs(arrays(images[:1]) - arrays(images[-1:])).mean() > 1

    @pytest.mark.parametrize("scheduler", generation.SCHEDULERS)
    def test_starts_with_what_draw_makes_of_the_seed(self, studio, scheduler):
        start = Settings(("Bag",), 3, 6, scheduler, 1.0, 3)
        first = last(studio.morph(start, Settings(("Dress",), 3, 6, scheduler, 1.0, 9))).images[:1]
        alone = last(studio.draw(dataclasses.replace(start, num_images=1))).images
        assert abs(arrays(first) - arrays(alone)).max() <= 1

    def test_without_classes(self, plain_studio):
        step = last(plain_studio.morph(Settings((), 3, 3, seed=1), Settings((), 3, 3, seed=2)))
        assert len(step.images) == 3
        assert step.evaluations == 3

    def test_slerp(self):
        first, second = torch.randn(2, 1, 784, generator=torch.manual_seed(0))
        assert_close(generation.slerp(first, second, 0.0), first)
        assert_close(generation.slerp(first, second, 1.0), second)
        # Noise half way has the size of noise, where the straight line has 0.7 of it.
        assert 0.9 < generation.slerp(first, second, 0.5).norm() / first.norm() < 1.1
        assert_close(generation.slerp(first, first, 0.5), first)


class TestRepaint:
    def test_strength(self, plain_studio):
        image = Image.open(next(iter(generation.Path(generation.__file__).parent.glob("examples/7-*.png"))))
        changes = []
        for strength in (0.1, 0.5, 1.0):
            step = last(plain_studio.repaint(image, strength, Settings((), 2, 20)))
            assert step.total == round(20 * strength)
            changes.append(abs(arrays(step.images) - arrays([image])).mean())
        assert changes[0] < 15 < changes[2]
        assert changes == sorted(changes)

    @pytest.mark.parametrize("strength", [0, -1, 1.5, None, "half", float("nan")])
    def test_of_no_strength(self, studio, strength):
        with pytest.raises(RequestError, match="The strength must be above 0"):
            list(studio.repaint(Image.new("L", (28, 28)), strength, Settings()))

    def test_a_scheduler_that_cannot(self, studio, monkeypatch):
        monkeypatch.setitem(generation.SCHEDULERS, "PNDM", "PNDMScheduler")
        with pytest.raises(RequestError, match="cannot start from an `image`"):
            list(studio.repaint(Image.new("L", (28, 28)), 0.5, Settings(scheduler="PNDM")))


class TestUploads:
    def write(self, tmp_path, image: Image.Image, name: str = "upload.png", **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
    def test_formats(self, tmp_path, suffix):
        path = self.write(tmp_path, Image.new("RGB", (60, 30), "red"), f"upload.{suffix}")
        assert generation.open_upload(path).size == (60, 30)

    @pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"<svg/>"])
    def test_of_no_picture(self, tmp_path, content):
        (tmp_path / "upload.png").write_bytes(content)
        with pytest.raises(RequestError, match="no picture that can be read: send a PNG"):
            generation.open_upload(tmp_path / "upload.png")

    def test_sixteen_bits(self, tmp_path):
        ramp = np.linspace(0, 65535, 28 * 28).reshape(28, 28).astype(np.uint16)
        image = generation.open_upload(self.write(tmp_path, Image.fromarray(ramp)))
        assert image.mode == "L"
        assert_close(np.asarray(image).astype(float), ramp / 256, atol=1, rtol=0)

    def test_cut_short(self, tmp_path):
        path = self.write(tmp_path, Image.effect_noise((200, 200), 50))
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(RequestError, match="no picture that can be read"):
            generation.open_upload(path)

    def test_bomb(self, tmp_path):
        """A file of a few bytes that says that it is gigapixels large is never unpacked."""

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        (tmp_path / "upload.png").write_bytes(content + chunk(b"IEND", b""))
        with pytest.raises(RequestError, match=r"megapixels|no picture"):
            generation.open_upload(tmp_path / "upload.png")

    def test_too_many_bytes(self, tmp_path):
        (tmp_path / "upload.bmp").write_bytes(b"BM" + b"\0" * generation.MAX_UPLOAD_BYTES)
        with pytest.raises(RequestError, match="larger than 5 MB"):
            generation.open_upload(tmp_path / "upload.bmp")

    def thing(self, ink, paper, mode="RGB") -> Image.Image:
        image = Image.new(mode, (300, 200), paper)
        ImageDraw.Draw(image).rectangle((120, 40, 180, 160), fill=ink)
        return image

    @pytest.mark.parametrize(
        "image",
        [
            ("white", "black"),
            ("black", "white"),
            ("navy", "#eeeeee"),
            ((255, 255, 255, 255), (0, 0, 0, 0), "RGBA"),
            ((0, 0, 40, 255), (0, 0, 0, 0), "RGBA"),
            ((30, 30, 30, 255), (255, 255, 255, 0), "RGBA"),
            ((0, 0, 0, 254), (255, 255, 255, 254), "RGBA"),
        ],
    )
    def test_becomes_a_light_thing_on_black_that_fills_the_frame(self, image):
        pixels = np.asarray(generation.to_fashion_mnist(self.thing(*image)))
        assert pixels.shape == (28, 28)
        assert pixels[:, :4].max() < 30 and pixels[:, -4:].max() < 30
        assert pixels[2:-2, 12:16].min() > 150

    def test_pictures_of_the_data_set_stay_what_they_are(self, fashion_mnist_folder):
        images = load_images(split="test", train_data_dir=str(fashion_mnist_folder)).images[:, 0].numpy()
        kept = [np.asarray(generation.to_fashion_mnist(Image.fromarray(image))) for image in images]
        # The corners of a few show the thing itself.
        assert np.mean([np.array_equal(*pair) for pair in zip(images, kept, strict=True)]) > 0.95

    @pytest.mark.parametrize("size", [(1, 3000), (3000, 2)])
    def test_of_a_hair(self, size):
        assert generation.to_fashion_mnist(Image.new("L", size, "white")).size == (28, 28)

    def test_of_what_is_transparent_all_over(self):
        assert np.asarray(generation.to_fashion_mnist(Image.new("RGBA", (90, 90), (9, 9, 9, 0)))).max() == 0

    @pytest.mark.parametrize("value", [0, 255])
    def test_of_nothing(self, value):
        assert generation.to_fashion_mnist(Image.new("L", (1, 1), value)).size == (28, 28)


class TestFiles:
    def test_strip_shows_noise_and_picture(self, plain_studio):
        steps = list(plain_studio.draw(Settings((), 3, 12)))
        strip = generation.strip(steps)
        assert strip.size == (10 * 29 - 1, 3 * 29 - 1)
        assert strip.crop((9 * 29, 0, 10 * 29 - 1, 28)).tobytes() == steps[-1].images[0].tobytes()
        assert strip.crop((0, 0, 28, 28)).tobytes() == steps[0].images[0].tobytes()

    def test_gif(self, tmp_path):
        frames = [Image.new("L", (28, 28), value) for value in (0, 100, 200)]
        with Image.open(generation.save_gif(frames, tmp_path / "a.gif", 80, hold=1000, swing=True)) as gif:
            assert gif.n_frames == 4
            assert gif.info["loop"] == 0
            values = []
            for i in range(4):
                gif.seek(i)
                values.append(gif.convert("L").getpixel((0, 0)))
            assert values == [0, 100, 200, 100]
            assert gif.info["duration"] == 1080


def test_examples_are_pictures_of_the_data_set():
    import app

    assert len(app.EXAMPLES) == len(FASHION_MNIST_LABELS)
    for path in app.EXAMPLES.values():
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (28, 28))
