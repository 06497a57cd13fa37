import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import DDPMScheduler

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.captions import make_captions
from fmnist_diffusion.captions.captions import CLASS_NOUNS
from fmnist_diffusion.data import FASHION_MNIST_LABELS
from fmnist_diffusion.evaluation import (
    Classifier,
    EvaluationConfig,
    FashionMNISTReference,
    InceptionFeatures,
    evaluate_pipeline,
    evaluate_samples,
    fashion_mnist,
    generation,
    load_batches,
)
from fmnist_diffusion.evaluation.generation import EvaluationSamples
from fmnist_diffusion.evaluation.provenance import tensor_hash
from fmnist_diffusion.evaluation.runner import summarize
from fmnist_diffusion.evaluation.sample_metrics import Measurement, inception_metrics
from fmnist_diffusion.loading import get_pipeline_folder
from fmnist_diffusion.sampling import Samples, SamplingConfig, generate, make_pipeline
from text_pipelines import get_text_pipeline


def make_small_pipeline(**config) -> FashionMNISTPipeline:
    torch.manual_seed(0)
    config = {"block_out_channels": (8, 16), "attention_head_dim": 8, "num_class_embeds": 10} | config
    unet = FashionMNISTUNet2DModel(**config).eval()
    return make_pipeline(unet, DDPMScheduler(beta_schedule="squaredcos_cap_v2"), num_inference_steps=2)


@pytest.fixture(scope="module")
def pipe() -> FashionMNISTPipeline:
    return make_small_pipeline()


@pytest.fixture(scope="module")
def evaluate(pipe: FashionMNISTPipeline, fashion_mnist_folder: Path):
    """Evaluates a small pipeline with the classifier against 512 training images."""

    def evaluate(
        folder: Path,
        inception: InceptionFeatures | None = None,
        pipe: FashionMNISTPipeline = pipe,
        **kwargs,
    ) -> dict[str, Any]:
        config = EvaluationConfig(**{"num_samples": 300, "batch_size": 128} | kwargs)
        reference = FashionMNISTReference(inception, train_data_dir=str(fashion_mnist_folder))
        results = evaluate_pipeline(pipe, folder, config, name="test", reference=reference)
        assert json.loads((folder / "metrics.json").read_text()) == results
        return results

    return evaluate


def compute_accuracy(classifier: Classifier, folder: Path, labels: Sequence[int]) -> float:
    images = torch.cat([batch.images for batch in load_batches(folder)])
    predicted = classifier.classify(classifier(images))
    return (predicted == torch.tensor(labels[: len(images)])).float().mean().item()


def test_text_conditional_pipeline_generates_captions_of_the_test_images(
    tmp_path: Path, evaluate, fashion_mnist_folder: Path, classifier: Classifier
):
    text_pipe = get_text_pipeline(sample_size=28)
    reference = FashionMNISTReference(train_data_dir=str(fashion_mnist_folder))
    conditions = reference.choose_conditions(text_pipe, 300)
    assert conditions["class_labels"] == reference.load_test_images().labels.tolist()
    for prompt, label in zip(conditions["prompts"], conditions["class_labels"], strict=True):
        assert any(noun in prompt.lower() for noun in CLASS_NOUNS[label])
    results = evaluate(tmp_path / "text", pipe=text_pipe)
    # The 300 samples cycle through the 128 captions, so each caption is used at least twice.
    accuracy = compute_accuracy(classifier, tmp_path / "text", conditions["class_labels"] * 3)
    assert results["metrics"]["class_accuracy"] == pytest.approx(accuracy)
    # The hash of the weights includes the text encoder.
    text_pipe.text_encoder.get_input_embeddings().weight.data += 1
    assert evaluate(tmp_path / "other", pipe=text_pipe)["weights_sha256"] != results["weights_sha256"]


@pytest.fixture(scope="module")
def run_folder(evaluate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete run with seed 3."""
    folder = tmp_path_factory.mktemp("runner") / "run"
    evaluate(folder, seeds=(3,))
    return folder


def read_results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def test_results_of_a_pipeline_are_complete(run_folder: Path, classifier: Classifier):
    results = read_results(run_folder)
    metrics = results["metrics"]
    assert metrics["num_function_evaluations"] == 2
    assert metrics["images_per_second"] > 0
    assert metrics["classifier_frechet_distance_train"] > results["real_metrics"]["classifier_frechet_distance_train"]
    assert sum(metrics["class_shares"]) == pytest.approx(1)
    accuracy = compute_accuracy(classifier, run_folder, list(range(10)) * 30)
    assert metrics["class_accuracy"] == pytest.approx(accuracy)
    assert metrics["nearest_pixels"]["median"] > metrics["nearest_pixels"]["test_median"]
    assert "fid_train" not in metrics
    # The features of all training images would take most of the time.
    assert "nearest_classifier" not in metrics
    assert "Inception" not in results["protocol"] and "KID" not in results["protocol"]
    assert (results["source"], results["num_samples"], results["seeds"]) == ("test", 300, [3])
    assert (results["num_inference_steps"], results["guidance_scale"]) == (2, 1)
    assert (results["scheduler"], results["timestep_power"]) == ("DPMSolverMultistepScheduler", 1.2)
    # JSON has no number for infinity.
    assert results["scheduler_config"]["lambda_min_clipped"] == "-inf"
    assert {"torch", "diffusers", "fmnist-diffusion"} <= results["versions"].keys()
    assert results["sha256"].keys() == {"classifier", "statistics_classifier_train", "statistics_classifier_test"}
    assert results["num_real_images"] == {"classifier_train": 60_000, "classifier_test": 10_000, "nearest": 512}
    assert (run_folder / "report.png").is_file()


def test_results_have_the_keys_of_the_bundled_metrics(run_folder: Path):
    bundled = json.loads((get_pipeline_folder("base") / "metrics.json").read_text())
    assert list(read_results(run_folder)) == list(bundled)


def test_results_describe_the_sampling_settings_that_were_used(evaluate, pipe: FashionMNISTPipeline, tmp_path: Path):
    sampling = SamplingConfig("ddim", num_inference_steps=4, guidance_scale=2.0, guidance_interval=(0.5, 1.0))
    results = evaluate(tmp_path / "out", sampling=sampling)
    assert (results["scheduler"], results["timestep_power"]) == ("DDIMScheduler", None)
    assert "algorithm_type" not in results["scheduler_config"]
    assert (results["num_inference_steps"], results["guidance_interval"]) == (4, [0.5, 1.0])
    assert results["metrics"]["num_function_evaluations"] == 6
    assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"


def test_samples_of_a_seed_start_at_a_multiple_of_2_to_the_20(run_folder: Path, pipe: FashionMNISTPipeline):
    saved = Samples.concatenate(list(load_batches(run_folder)))
    (expected,) = generate(pipe, SamplingConfig(seed=3 * 2**20), 128, class_labels=range(10), batch_size=128)
    assert torch.equal(saved.images[:128], expected.images)
    assert saved.labels is not None
    assert saved.labels.tolist() == [i % 10 for i in range(300)]


def test_an_interrupted_run_continues_with_the_same_results(
    evaluate, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    starts = []

    def generate_with_interrupt(*args, start: int, **kwargs):
        starts.append(start)
        if starts == [0, 128]:
            raise KeyboardInterrupt
        return generate(*args, start=start, **kwargs)

    monkeypatch.setattr(generation, "generate", generate_with_interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "out", seeds=(3,))
    results, expected = evaluate(tmp_path / "out", seeds=(3,)), read_results(run_folder)
    assert starts == [0, 128, 128, 256]
    for metrics in (expected["metrics"], results["metrics"]):
        del metrics["images_per_second"]
    assert results == expected


def test_several_seeds_give_mean_and_minimum(evaluate, tmp_path: Path):
    metrics = evaluate(tmp_path / "out", seeds=(0, 1), conditional=False)["metrics"]
    distance = metrics["classifier_frechet_distance_train"]
    assert distance["min"] == min(distance["seeds"])
    assert distance["mean"] == pytest.approx(sum(distance["seeds"]) / 2)
    assert distance["seeds"][0] != distance["seeds"][1]
    assert "class_accuracy" not in metrics


def test_existing_samples_are_evaluated(fashion_mnist_folder: Path, tmp_path: Path):
    images = torch.randint(0, 256, (300, 1, 28, 28), dtype=torch.uint8)
    results = evaluate_samples(
        Samples(images),
        tmp_path / "out",
        name="noise",
        reference=FashionMNISTReference(train_data_dir=str(fashion_mnist_folder)),
    )
    assert (results["source"], results["num_samples"]) == ("noise", 300)
    assert "num_function_evaluations" not in results["metrics"] and "class_accuracy" not in results["metrics"]
    assert (tmp_path / "out" / "report.png").is_file()


def test_existing_samples_are_shuffled(fashion_mnist_folder: Path, tmp_path: Path):
    """The images of a folder are sorted by class, and some metrics only use the first 10,000."""
    images = torch.arange(300).to(torch.uint8).view(300, 1, 1, 1).expand(-1, 1, 28, 28)
    order = []

    class Reference(FashionMNISTReference):
        def measure(self, run: EvaluationSamples) -> Measurement:
            order.extend(run.samples.images[:, 0, 0, 0].tolist())
            assert torch.equal(run.samples.images[:, 0, 0, 0].long() % 10, run.samples.labels)
            return super().measure(run)

    samples = Samples(images.contiguous(), images[:, 0, 0, 0].long() % 10)
    reference = Reference(train_data_dir=str(fashion_mnist_folder))
    evaluate_samples(samples, tmp_path, name="sorted", reference=reference)
    assert sorted(order) == sorted(images[:, 0, 0, 0].tolist())
    assert len({value // 32 for value in order[:60]}) == 8


class FakeInception:
    """Stands in for [`InceptionFeatures`]: random projections of the pixels."""

    name, num_features, sha256, device = "inception", 2048, "0" * 64, torch.device("cpu")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        projection = torch.randn(28 * 28, 2048, generator=torch.Generator().manual_seed(0))
        return images.flatten(1).float() @ projection / 1000


@pytest.mark.slow
@pytest.mark.parametrize("existing", [True, False])
def test_inception_network_adds_its_metrics(
    existing: bool, evaluate, fashion_mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train = FashionMNISTReference(train_data_dir=str(fashion_mnist_folder)).real_images
    monkeypatch.setattr(fashion_mnist, "TRAIN_SHA256", tensor_hash(train.images))
    monkeypatch.setattr("fmnist_diffusion.evaluation.distances.KID_SUBSETS", 3)
    inception = cast(InceptionFeatures, FakeInception())
    if existing:
        images = torch.randint(0, 256, (2100, 1, 28, 28), dtype=torch.uint8)
        results = evaluate_samples(
            Samples(images),
            tmp_path / "out",
            name="noise",
            reference=FashionMNISTReference(inception, train_data_dir=str(fashion_mnist_folder)),
        )
    else:
        results = evaluate(tmp_path / "out", num_samples=2100, inception=inception)
    bundled = json.loads((get_pipeline_folder("base") / "metrics.json").read_text())
    sampling_keys = {"class_accuracy", "num_function_evaluations", "images_per_second"} if existing else set()
    assert set(results["metrics"]) == set(bundled["metrics"]) - sampling_keys
    assert results["inception"] is True
    assert results["num_real_images"]["inception_train"] == 60_000
    assert {"inception", "statistics_inception_train", "statistics_inception_test"} < results["sha256"].keys()
    assert "KID" in results["protocol"]


def test_fid_needs_the_original_training_images(fashion_mnist_folder: Path):
    with pytest.raises(
        ValueError, match=r"FID requires the 60,000 training images .* Pass a different `train_data_dir`\."
    ):
        _ = FashionMNISTReference(
            cast(InceptionFeatures, FakeInception()), train_data_dir=str(fashion_mnist_folder)
        ).real_images


def test_a_folder_of_another_run_is_not_changed(evaluate, run_folder: Path):
    before = (run_folder / "metrics.json").read_bytes()
    with pytest.raises(ValueError, match=r"The folder .*run contains a different run or other files\."):
        evaluate(run_folder, seeds=(5,))
    assert (run_folder / "metrics.json").read_bytes() == before


def test_damaged_parts_are_generated_again(evaluate, run_folder: Path, tmp_path: Path):
    shutil.copytree(run_folder, tmp_path / "out")
    first, second, third = sorted((tmp_path / "out" / "seed-3").iterdir())
    content = second.read_bytes()
    first.write_bytes(b"")
    second.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    # Interrupted programs leave such files.
    third.rename(third.with_name(f".incomplete-1-{third.name}"))
    results, expected = evaluate(tmp_path / "out", seeds=(3,), batch_size=100), read_results(run_folder)
    for metrics in (expected["metrics"], results["metrics"]):
        del metrics["images_per_second"]
    assert results == expected
    batches = list(load_batches(tmp_path / "out"))
    # The second batch starts where it started before, although the batch size is different.
    assert [len(batch) for batch in batches] == [100, 28, 100, 72]
    expected_images = torch.cat([batch.images for batch in load_batches(run_folder)])
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected_images)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"num_samples": 100},
            r"The Fréchet distance requires at least 257 samples, got 100\. Evaluate more samples\.",
        ),
        ({"num_samples": 2**21}, r"`num_samples` must be between 1 and 1048576, got 2097152\."),
        ({"num_samples": 0}, r"`num_samples` must be between 1 and 1048576, got 0\."),
        ({"batch_size": 0}, r"`batch_size` must be a positive integer, got 0\."),
        ({"seeds": ()}, r"`seeds` must contain at least one seed\."),
        ({"seeds": (0, 4096)}, r"`seeds` must be between 0 and 4095, got 0, 4096\."),
        (
            {"sampling": SamplingConfig(guidance_scale=2.0), "conditional": False},
            r"`guidance_scale` must be 1\.0 for unconditional sampling, got 2\.0\.",
        ),
        (
            {"classifier_guidance_scale": 2.0},
            r"`classifier_guidance_scale` must be 0\.0 for a pipeline without a classifier, got 2\.0\.",
        ),
        ({"sampling": SamplingConfig("other")}, r"Could not find the scheduler 'other'"),
    ],
)
def test_invalid_arguments_are_rejected(kwargs: dict[str, Any], message: str, evaluate, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path / "out", **kwargs)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"sample_size": (32, 28)},
            r"grayscale images of 28x28 pixels for a comparison with Fashion-MNIST, got grayscale images of 32x28"
            r" pixels\. Pass `reference` to compare them with other images\.",
        ),
        ({"in_channels": 3, "out_channels": 3}, r"got RGB images of 28x28 pixels\."),
        (
            {"num_class_embeds": 4},
            r"must have the classes of Fashion-MNIST in their original order, got 4 classes without names\.",
        ),
        ({"num_class_embeds": None}, r"got no classes\. Pass `conditional=False`\."),
        (
            {"label_names": sorted(FASHION_MNIST_LABELS)},
            r"original order, got Ankle boot, Bag, Coat, Dress, Pullover and 5 more\. Pass `conditional=False`, or",
        ),
    ],
)
def test_other_pipelines_are_rejected(config: dict[str, Any], message: str, evaluate, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path / "out", pipe=make_small_pipeline(**config))
    assert not (tmp_path / "out").exists()


def test_samples_with_nan_are_rejected(evaluate, tmp_path: Path):
    pipe = make_small_pipeline()
    torch.nn.init.constant_(pipe.unet.conv_out.bias, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        evaluate(tmp_path / "out", pipe=pipe)


def test_fid_of_few_samples_is_not_reported():
    features, reference = FakeInception()(torch.zeros(60, 1, 28, 28)), torch.rand(100, 2048)
    assert inception_metrics(features, reference).keys() == {"kid_train", "precision", "recall", "density", "coverage"}


def test_the_summary_of_one_seed_is_its_results():
    one, other = {"a": 1.0, "b": {"c": 2.0}, "d": [1, 2]}, {"a": 3.0, "b": {"c": 4.0}, "d": [3, 2]}
    assert summarize([one]) == one
    assert summarize([one, other]) == {
        "a": {"mean": 2.0, "min": 1.0, "seeds": [1.0, 3.0]},
        "b": {"c": {"mean": 3.0, "min": 2.0, "seeds": [2.0, 4.0]}},
        "d": [2.0, 2.0],
    }


def test_samples_of_other_prompts_are_not_reused(tmp_path: Path, evaluate, monkeypatch: pytest.MonkeyPatch):
    text_pipe = get_text_pipeline(sample_size=28)
    evaluate(tmp_path, pipe=text_pipe)

    def make_reversed_captions(*args: Any) -> list[str]:
        return make_captions(*args)[::-1]

    monkeypatch.setattr(fashion_mnist, "make_captions", make_reversed_captions)
    with pytest.raises(ValueError, match="contains a different run"):
        evaluate(tmp_path, pipe=text_pipe)
