"""The code blocks of the README run in the order in which they appear."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from PIL import Image

from fake_hub import FakeHub


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()

# These options reduce the run time of a command.
FAST_OPTIONS = {
    "training/train.py": "--max_train_steps=2 --model.block_out_channels=[8,16] --model.attention_levels=[1]"
    " --model.attention_head_dim=8 --train_batch_size=32 --data.max_train_samples=64 --samples.num_images=10"
    " --samples.num_inference_steps=2 --eval.every_n_epochs=null",
    "fmnist-diffusion sample": "--num-inference-steps 2",
    "fmnist-diffusion evaluate": "--fast --num-samples 300 --num-inference-steps 1",
}


def read_blocks(section: str, language: str) -> list[str]:
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(command: list[str] | str, folder: Path, variables: Mapping[str, str] | None = None) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= variables or {}
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        shell=isinstance(command, str),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files of the repository that the commands name."""
    for name in ("fmnist_diffusion", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.slow
def test_python_blocks(checkout: Path):
    code = "\n".join(read_blocks("Quick start", "python"))
    run([sys.executable, "-c", code + "\nassert len(frames) == 21 and image.size == (28, 28)"], checkout)
    assert (checkout / "denoising.gif").stat().st_size > 0


@pytest.mark.slow
def test_commands(checkout: Path, complete_fashion_mnist_folder: Path):
    blocks = [*read_blocks("Quick start", "bash"), *read_blocks("Evaluation", "bash")]
    commands = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    commands.remove("fmnist-diffusion demo")
    assert len(commands) == 3
    for command in commands:
        options = next((options for name, options in FAST_OPTIONS.items() if command.startswith(name)), "")
        # Without the Hub, `evaluate` reads the images of the Debian package.
        run(f"{command} {options}", checkout, {"HF_HUB_OFFLINE": "1"})
    assert len(list((checkout / "samples" / "001").glob("*.png"))) == 13
    assert (checkout / "evaluation" / "base-50000" / "report.png").is_file()


@pytest.mark.slow
def test_training_commands(checkout: Path, fashion_mnist_folder: Path):
    _, block = read_blocks("Training", "bash")
    train, resume = block.splitlines()
    run(f"{train} {FAST_OPTIONS['training/train.py']} --data.train_data_dir={fashion_mnist_folder}", checkout)
    config = yaml.safe_load((checkout / "output" / "base" / "config.yaml").read_text())
    assert config["max_train_steps"] == 2
    run(f"{resume} --max_train_steps=3", checkout)
    assert (checkout / "output" / "base" / "pipeline" / "pipeline_fmnist.py").is_file()


@pytest.mark.slow
def test_commands_for_custom_images(checkout: Path, hub: FakeHub, inception_weights: Path):
    block, _ = read_blocks("Training", "bash")
    train, download, *commands = (line.partition(" #")[0].strip() for line in block.splitlines())
    assert download == "make inception"
    for index, name in enumerate(["red", "green", "blue"] * 20):
        path = checkout / "path" / "to" / "images" / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), name).save(path)
    run(f"{train} --max_train_steps=1 --compile=false", checkout)
    config = json.loads((checkout / "output" / "mine" / "pipeline" / "unet" / "config.json").read_text())
    assert (config["in_channels"], config["sample_size"]) == (3, 32)
    assert config["label_names"] == ["blue", "green", "red"]

    # FakeHub does not support Xet.
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    for command in commands:
        command = command.replace("--model my-model", "--model someone/my-model")
        if "evaluate" in command:
            command += f" --num-samples 50 --num-inference-steps 1 --inception-weights {inception_weights}"
        run(command, checkout, environment)
    assert (checkout / "evaluation" / "mine-pipeline" / "report.png").is_file()
    assert set(hub.repositories) == {"someone/my-model", "spaces/someone/my-demo"}


def test_installation_block():
    (block,) = read_blocks("Installation", "bash")
    targets = re.findall(r"^make (\S+)", block, re.MULTILINE)
    assert targets == ["sample", "test", "install"]
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in targets)


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def list_anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_exist():
    pages = [*ROOT.glob("*.md")]
    for part in ("fmnist_diffusion", "space", "training"):
        pages += ROOT.glob(f"{part}/**/README.md")
    for path in pages:
        page = path.relative_to(ROOT)
        for groups in re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', path.read_text()):
            target = "".join(groups)
            if target.startswith("http"):
                continue
            name, _, anchor = target.partition("#")
            file = path.parent / name if name else path
            assert file.exists(), f"{page}: {target}"
            assert not anchor or anchor in list_anchors(file), f"{page}: {target}"


def test_results_are_the_bundled_metrics():
    pattern = r"^\| `(\w+)`, (.*?) \| [\d.]+ M \| (\d+) \| \**([\d.]+)\** \| ([\d,]+) \| ([\d.]*)%? ?\|"
    rows = re.findall(pattern, README, re.MULTILINE)
    assert len(rows) == 5
    for name, kind, evaluations, fid, num_samples, accuracy in rows:
        # The package only contains the conditional evaluation of `base`.
        if (name, kind) == ("base", "unconditional"):
            continue
        results = json.loads((ROOT / "fmnist_diffusion" / "pretrained" / name / "metrics.json").read_text())
        metrics = results["metrics"]
        assert (evaluations, num_samples) == (str(metrics["num_function_evaluations"]), f"{results['num_samples']:,}")
        assert fid == f"{metrics['fid_train']:.2f}"
        assert accuracy == (f"{100 * metrics['class_accuracy']:.1f}" if "class_accuracy" in metrics else "")
