from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.commands import main
from fmnist_diffusion.commands.sample import get_file_label, split_labels
from latent_pipelines import get_latent_pipeline
from saved_pipelines import save_pipeline
from text_pipelines import get_text_pipeline
from tiny_pipelines import get_pipeline, make_classifier


@pytest.fixture
def sample(pipeline, tmp_path):
    """Generates images with two steps; returns the PNG files by name."""

    def sample(*args: str, folder: Path = tmp_path / "out") -> dict[str, Image.Image]:
        main(["sample", pipeline, "--num-inference-steps", "2", "--output-dir", str(folder), *args])
        images = {}
        for path in sorted(folder.iterdir()):
            with Image.open(path) as image:
                images[path.name] = image.copy()
        return images

    return sample


def test_images_and_grid_are_saved(sample, tmp_path, capsys):
    images = sample("-n", "5", "--class-labels", "Ankle boot, T-SHIRT/TOP", "--class-labels", "3", "--batch-size", "2")
    grid = images.pop("grid.png")
    assert list(images) == [
        "0000-ankle-boot.png",
        "0001-t-shirt-top.png",
        "0002-dress.png",
        "0003-ankle-boot.png",
        "0004-t-shirt-top.png",
    ]
    assert all((image.size, image.mode) == ((8, 8), "L") for image in images.values())
    assert grid.size == (3 * 8, 2 * 8)
    for i, image in enumerate(images.values()):
        x, y = i % 3 * 8, i // 3 * 8
        assert grid.crop((x, y, x + 8, y + 8)).tobytes() == image.tobytes()
    assert capsys.readouterr().out == f"Saved the images and grid.png to {tmp_path}/out.\n"


def test_class_names_may_contain_commas():
    names = ("tench, Tinca tinca", "goldfish", "a", "b")
    assert split_labels(["Tench, tinca tinca", "goldfish", "a,b"], names) == [
        "Tench, tinca tinca",
        "goldfish",
        "a",
        "b",
    ]
    assert split_labels(["1,0"], None) == ["1", "0"]


def test_labels_and_path_are_not_confused(get_error):
    assert get_error("sample", "--class-labels", "circle", "path/to/pipeline").startswith(
        "Could not find a pipeline at 'path/to/pipeline'"
    )


def test_file_names_keep_the_letters_of_any_script():
    names = ["Ботинок / сапог", "जूता", "靴", "Ä\u0308rmel", "👟", "a/../b", "T_shirt", "x" * 300]
    labels = [get_file_label(names, i) for i in range(len(names))]
    assert labels == ["ботинок-сапог", "जूता", "靴", "ä\u0308rmel", "4", "a-b", "t-shirt", "x" * 40]
    assert get_file_label(None, 7) == "7"


def test_label_names_of_the_checkpoint_are_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_pipeline(tmp_path / "shoes", num_class_embeds=2, label_names=["Кеды", 'the "best"'])
    main(["sample", "./shoes", "-n", "2", "--num-inference-steps", "1", "--class-labels", 'кеды,the "best"'])
    names = {path.name for path in Path("samples/001").iterdir()}
    assert names == {"0000-кеды.png", "0001-the-best.png", "grid.png"}


def test_prompts_are_cycled_through(tmp_path):
    get_text_pipeline().save_pretrained(tmp_path / "text")
    options = ["-n", "3", "--num-inference-steps", "1", "--output-dir", str(tmp_path / "out"), "--guidance-scale", "2"]
    main(["sample", str(tmp_path / "text"), *options, "--prompt", "a dark bag, flat", "--prompt", "../?"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"0000-a-dark-bag-flat.png", "0001-prompt.png", "0002-a-dark-bag-flat.png", "grid.png"}


def test_negative_prompt_changes_guided_images(tmp_path):
    get_text_pipeline().save_pretrained(tmp_path / "text")

    def generate(name: str, *options: str) -> bytes:
        options = ("-n", "1", "--prompt", "a dark bag", "--output-dir", str(tmp_path / name), *options)
        main(["sample", str(tmp_path / "text"), *options])
        return (tmp_path / name / "grid.png").read_bytes()

    guided = generate("guided", "--guidance-scale", "9")
    assert generate("negative", "--guidance-scale", "9", "--negative-prompt", "a bright dress") != guided
    assert generate("plain") == generate("ignored", "--negative-prompt", "a bright dress")


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (get_text_pipeline, "Pass --prompt to use guidance."),
        (get_pipeline, "Pass --class-labels to use guidance."),
        (lambda: get_pipeline(num_class_embeds=None), "Omit it."),
    ],
    ids=["text", "class", "unconditional"],
)
def test_guidance_without_a_condition_is_an_error(get_error, tmp_path, make, hint):
    make().save_pretrained(tmp_path / "pipeline")
    message = get_error("sample", str(tmp_path / "pipeline"), "--guidance-scale", "2")
    assert message == f"--guidance-scale must be 1.0 for unconditional sampling, got 2.0. {hint}"


def test_images_with_four_channels_are_saved(tmp_path):
    config = {"num_class_embeds": None, "in_channels": 4, "out_channels": 4}
    get_pipeline(**config).save_pretrained(tmp_path / "transparent")
    main(["sample", str(tmp_path / "transparent"), "-n", "1", "--output-dir", str(tmp_path / "out")])
    with Image.open(tmp_path / "out" / "0000.png") as image:
        assert image.mode == "RGBA"


def test_latents_are_decoded(tmp_path):
    get_latent_pipeline().save_pretrained(tmp_path / "latent")
    options = ["-n", "2", "--num-inference-steps", "1", "--output-dir", str(tmp_path / "out"), "--upscale", "2"]
    main(["sample", str(tmp_path / "latent"), *options])
    with Image.open(tmp_path / "out" / "0001.png") as image:
        assert image.size == (32, 32) and image.mode == "RGB"


def test_classifier_guidance_needs_only_the_classes_of_the_classifier(tmp_path):
    get_pipeline(classifier=make_classifier(), num_class_embeds=None).save_pretrained(tmp_path / "guided")
    images = []
    for scale in ("1", "9"):
        options = ["-n", "2", "--class-labels", "bag,3", "--output-dir", str(tmp_path / scale)]
        main(["sample", str(tmp_path / "guided"), *options, "--classifier-guidance-scale", scale])
        names = {path.name for path in (tmp_path / scale).iterdir()}
        assert names == {"0000-bag.png", "0001-dress.png", "grid.png"}
        images.append((tmp_path / scale / "grid.png").read_bytes())
    assert images[0] != images[1]


def test_finished_images_stay_if_a_later_batch_fails(sample, tmp_path, monkeypatch):
    call, calls = FashionMNISTPipeline.__call__, []

    def fail_in_second_batch(*args, **kwargs):
        calls.append(kwargs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(*args, **kwargs)

    monkeypatch.setattr(FashionMNISTPipeline, "__call__", fail_in_second_batch)
    with pytest.raises(SystemExit, match="130"):
        sample("-n", "5", "--batch-size", "2")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0000.png", "0001.png"]


def test_image_only_depends_on_its_seed(sample, tmp_path):
    many = sample("-n", "5", "--seed", "7", "--class-labels", "bag", folder=tmp_path / "many")
    few = sample("-n", "3", "--seed", "8", "--class-labels", "bag", "--batch-size", "2", folder=tmp_path / "few")
    for i in range(3):
        first, second = few[f"{i:04d}-bag.png"], many[f"{i + 1:04d}-bag.png"]
        # Rounding errors depend on the batch size.
        np.testing.assert_allclose(np.asarray(first, float), np.asarray(second, float), rtol=0, atol=1)
    assert many["0000-bag.png"].tobytes() != many["0001-bag.png"].tobytes()


def test_upscale_repeats_pixels(sample, tmp_path):
    small = np.asarray(sample("-n", "1", folder=tmp_path / "small")["0000.png"])
    large = np.asarray(sample("-n", "1", "--upscale", "3", folder=tmp_path / "large")["0000.png"])
    np.testing.assert_array_equal(large, small.repeat(3, axis=0).repeat(3, axis=1))


def test_sampling_options_reach_the_pipeline(sample, tmp_path):
    def generate(name: str, *args: str) -> bytes:
        images = sample("-n", "1", "--class-labels", "bag", *args, folder=tmp_path / name)
        return images["0000-bag.png"].tobytes()

    default = generate("default")
    assert generate("ddim", "--scheduler", "ddim") != default
    assert generate("class", "--scheduler", "DDIMScheduler") == generate("short", "--scheduler", "ddim")
    assert generate("guided", "--guidance-scale", "9") != default
    assert generate("never-guided", "--guidance-scale", "9", "--guidance-interval", "0", "0") == default
    assert generate("steps", "--num-inference-steps", "3") != default


def test_inpainting_keeps_the_black_pixels_of_the_mask(sample, tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    inputs = [
        "-n",
        "3",
        "--batch-size",
        "2",
        "--image",
        f"{tmp_path}/image.png",
        "--mask-image",
        f"{tmp_path}/mask.png",
    ]
    images = sample(*inputs, folder=tmp_path / "once")
    repeated = sample(*inputs, "--num-resampling-steps", "2", folder=tmp_path / "repeated")
    similar = sample(*inputs, "--strength", "0.5", folder=tmp_path / "similar")
    for name in ("0000.png", "0001.png", "0002.png"):
        for result in (images, repeated, similar):
            np.testing.assert_array_equal(np.asarray(result[name])[4:], pixels[4:])
        assert len({result[name].tobytes() for result in (images, repeated, similar)}) == 3
    assert images["0000.png"].tobytes() != images["0001.png"].tobytes()


def test_image_to_image_follows_the_strength(sample, tmp_path):
    Image.new("RGB", (20, 12), "white").save(tmp_path / "image.png")
    inputs = ["-n", "1", "--num-inference-steps", "20", "--image", f"{tmp_path}/image.png"]
    similar = np.asarray(sample(*inputs, "--strength", "0.05", folder=tmp_path / "similar")["0000.png"])
    different = np.asarray(sample(*inputs, folder=tmp_path / "different")["0000.png"])
    assert similar.mean() > max(220, different.mean() + 5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--mask-image", "image.png"], "--mask-image requires an --image. Pass the image"),
        (["--strength", "0.5"], "--strength requires an --image, got 0.5."),
        (["--num-resampling-steps", "2"], "--num-resampling-steps must be 1 without a --mask-image, got 2."),
        (["--image", "image.png", "--strength", "2"], "--strength must be in (0, 1], got 2.0."),
        (
            ["--image", "missing.png"],
            "Could not read missing.png (No such file or directory). Pass a different file as --image.",
        ),
        (["--image", "text.png"], "Could not read text.png (unknown image format)."),
        (
            ["--image", "image.png", "--mask-image", "large.png"],
            "--image and --mask-image must have the same size, got 8x8 and 8x9 pixels. Resize them.",
        ),
    ],
)
def test_invalid_input_images_are_errors(pipeline, get_error, tmp_path, args, message):
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    Image.new("L", (9, 8)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("text")
    assert get_error("sample", pipeline, *args).startswith(message)


class TestOutputDir:
    def test_folders_are_numbered(self, pipeline, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        # Another run may be about to write into an empty folder.
        (tmp_path / "samples" / "001").mkdir(parents=True)
        for _ in range(2):
            main(["sample", pipeline, "-n", "1", "--num-inference-steps", "1"])
        assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")) == [
            "samples/002/0000.png",
            "samples/002/grid.png",
            "samples/003/0000.png",
            "samples/003/grid.png",
        ]

    def test_errors_leave_no_empty_folder(self, pipeline, get_error, tmp_path):
        get_error("sample", pipeline, "--class-labels", "hat")
        assert list((tmp_path / "samples").iterdir()) == []
        get_error("sample", pipeline, "--class-labels", "hat", "--output-dir", tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_errors_keep_an_existing_folder(self, pipeline, get_error, tmp_path):
        (tmp_path / "empty").mkdir()
        get_error("sample", pipeline, "--class-labels", "hat", "--output-dir", tmp_path / "empty")
        assert (tmp_path / "empty").is_dir()

    def test_files_are_never_overwritten(self, pipeline, get_error, tmp_path):
        (tmp_path / "grid.png").write_text("mine")
        assert get_error("sample", pipeline, "--output-dir", tmp_path) == (
            f"--output-dir must be a new or empty folder, got {tmp_path}, which contains files."
        )
        assert (tmp_path / "grid.png").read_text() == "mine"

    def test_folder_that_cannot_be_created_is_an_error(self, pipeline, get_error):
        assert get_error("sample", pipeline, "--output-dir", f"{__file__}/out").startswith(
            "--output-dir must be a writable folder, got"
        )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num-images", "0"], "Invalid value for '--num-images' / '-n'"),
        (["--num-images", "some"], "Invalid value for '--num-images' / '-n'"),
        (["--batch-size", "100000000"], "Invalid value for '--batch-size'"),
        (["--num-images", "100001"], "Invalid value for '--num-images' / '-n'"),
        (["--upscale", "2147483648"], "Invalid value for '--upscale'"),
        (["--upscale", "101"], "Invalid value for '--upscale'"),
        (["-n", "1000", "--upscale", "100"], "--num-images * --upscale**2 must be at most 1250000 for images of 8x8"),
        (["-o", "a/" * 2000], "--output-dir must have at most 100 levels, got 2000."),
        (["-o", "a" * 5000], "--output-dir must be a writable folder, got aaa"),
        (["-o", "/dev/null"], "--output-dir must be a writable folder, got /dev/null (File exists)."),
        (["-o", "/proc/1/new"], "--output-dir must be a writable folder, got /proc/1/new"),
        (["-o", "a\0b"], "Invalid value for '--output-dir' / '-o'"),
        (["--seed", "-1"], "--seed must be"),
        (["--scheduler", "magic"], "Could not find the scheduler 'magic'"),
        (["--num-inference-steps", "2000"], "--num-inference-steps must be"),
        (["--class-labels", "hat"], "--class-labels must be"),
        (["--class-labels", "1,,2"], "--class-labels must be"),
        (["--class-labels", "1", "--guidance-interval", "1", "0"], "--guidance-interval must be"),
        (["--class-labels", "1", "--guidance-scale", "nan"], "--guidance-scale must be"),
        (["--device", "abacus"], "--device must be auto or an available torch device, got 'abacus'."),
        *(
            (["--device", name], "--device must be auto or an available torch device, got")
            for name in (
                "meta",
                "hpu",
                "xpu",
                "xla",
                "cuda:99",
                "cpu:-1",
                "cuda:x",
                "vulkan",
                "privateuseone",
                "",
                "x" * 999,
            )
        ),
        (["--device", "cpu", "--dtype", "float16"], "--dtype must be float32 or bfloat16 on a CPU"),
        (["--dtype", "float8"], "Invalid value for '--dtype'"),
    ],
)
def test_invalid_options_are_errors(pipeline, get_error, args, message):
    assert get_error("sample", pipeline, *args).startswith(message)


def test_auto_dtype_is_measured(sample, monkeypatch):
    measured = []
    monkeypatch.setattr("fmnist_diffusion.sampling.select_dtype", lambda pipe: measured.append(pipe) or torch.bfloat16)
    sample("-n", "1", "--dtype", "auto")
    assert [pipe.unet.dtype for pipe in measured] == [torch.bfloat16]


def test_folder_without_a_pipeline_is_an_error(get_error, tmp_path):
    assert "model_index.json" in get_error("sample", tmp_path)


def test_error_while_saving_names_the_file(pipeline, get_error, monkeypatch):
    def save(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    message = get_error("sample", pipeline, "-n", "1", "--num-inference-steps", "1", "--output-dir", "out")
    assert message == "Could not write out/0000.png (No space left on device). Pass a different --output-dir."
