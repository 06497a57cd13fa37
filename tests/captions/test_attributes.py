import pytest
import torch

from fmnist_diffusion.captions import (
    ATTRIBUTES,
    check_directions,
    compute_thresholds,
    find_directions,
    load_thresholds,
)
from fmnist_diffusion.data import FASHION_MNIST_LABELS, load_images


@pytest.fixture(scope="module")
def images(fashion_mnist_folder):
    return load_images(train_data_dir=str(fashion_mnist_folder))


def test_thresholds_are_those_of_the_training_images(complete_fashion_mnist_folder):
    images = load_images(train_data_dir=str(complete_fashion_mnist_folder))
    computed, stored = compute_thresholds(images.images, images.labels), load_thresholds()
    assert stored.keys() == computed.keys() == set(FASHION_MNIST_LABELS)
    for name, attributes in computed.items():
        assert stored[name].keys() == attributes.keys()
        for key, thresholds in attributes.items():
            assert vars(stored[name][key]) == pytest.approx(vars(thresholds), abs=1e-3), (name, key)


def test_captions_only_mention_clear_attributes(images):
    directions = find_directions(images.images, images.labels)
    for image, label, attributes in zip(images.images, images.labels.tolist(), directions, strict=True):
        name = FASHION_MNIST_LABELS[label]
        for key, attribute in ATTRIBUTES[name].items():
            value, thresholds = float(attribute.measure(image)), load_thresholds()[name][key]
            if attributes.get(key) == 1:
                assert value >= thresholds.high and value > thresholds.median
            elif attributes.get(key) == -1:
                assert value <= thresholds.low and value < thresholds.median
            else:
                assert thresholds.low < value < thresholds.high or value == thresholds.median


def test_both_directions_of_each_attribute_are_common(images):
    directions = find_directions(images.images, images.labels)
    for label, name in enumerate(FASHION_MNIST_LABELS):
        of_class = [directions[index] for index in (images.labels == label).nonzero().flatten().tolist()]
        for key in ATTRIBUTES[name]:
            for direction in (-1, 1):
                # 8% of all T-shirts are sleeveless.
                assert sum(attributes.get(key) == direction for attributes in of_class) >= 0.02 * len(of_class)


def test_real_images_are_on_the_side_of_their_own_attributes(images):
    directions = find_directions(images.images, images.labels)
    opposite = [{key: -direction for key, direction in attributes.items()} for attributes in directions]
    checks = check_directions(images.images, images.labels, directions)
    assert [check.keys() for check in checks] == [attributes.keys() for attributes in directions]
    assert all(all(check.values()) for check in checks)
    assert not any(any(check.values()) for check in check_directions(images.images, images.labels, opposite))


def test_blank_images_are_dark():
    blank = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    checks = check_directions(blank, torch.tensor([0, 9]), [{"brightness": -1}, {"brightness": 1}])
    assert checks == [{"brightness": True}, {"brightness": False}]
