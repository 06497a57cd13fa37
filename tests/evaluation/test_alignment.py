import pytest
import torch

from fmnist_diffusion.captions import find_directions, make_test_prompts
from fmnist_diffusion.data import load_images
from fmnist_diffusion.evaluation import Classifier, measure_alignment


@pytest.fixture(scope="module")
def images(fashion_mnist_folder):
    return load_images(train_data_dir=str(fashion_mnist_folder))


def test_real_images_agree_with_their_own_prompts(images, classifier: Classifier):
    directions = find_directions(images.images, images.labels)
    prompts = make_test_prompts(images.labels, directions, 200, torch.Generator().manual_seed(0))
    metrics = measure_alignment(images.images[[prompt.index for prompt in prompts]], prompts, classifier)
    assert metrics["num_prompts"] == 200
    assert metrics["class_accuracy"] > 0.9
    for groups in metrics["attributes"].values():
        assert {group["accuracy"] for group in groups.values()} == {1.0}
        counts = {name: group["num_prompts"] for name, group in groups.items()}
        assert counts.pop("all") == sum(counts.values())
    brightness = metrics["attributes"]["brightness"]["all"]
    assert brightness["num_prompts"] == sum("brightness" in prompt.directions for prompt in prompts)


def test_images_of_other_prompts_do_not_agree(images, classifier: Classifier):
    directions = find_directions(images.images, images.labels)
    prompts = make_test_prompts(images.labels, directions, 200, torch.Generator().manual_seed(0))
    rotated = [*prompts[1:], prompts[0]]
    metrics = measure_alignment(images.images[[prompt.index for prompt in rotated]], prompts, classifier)
    assert metrics["class_accuracy"] < 0.2
    assert 0.2 < metrics["attributes"]["brightness"]["all"]["accuracy"] < 0.8
