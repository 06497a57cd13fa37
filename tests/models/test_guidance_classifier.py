import pytest
import torch
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTGuidanceClassifier
from tiny_pipelines import make_classifier


def test_default_model_has_the_documented_size():
    classifier = FashionMNISTGuidanceClassifier()
    assert classifier.num_parameters() == 652_330
    assert classifier(torch.zeros(3, 1, 28, 28), 5).shape == (3, 10)


def test_each_image_has_its_own_timestep():
    classifier = make_classifier(num_classes=4, in_channels=3)
    images, timesteps = torch.randn(3, 3, 7, 12), torch.tensor([0, 400, 999])
    logits = classifier(images, timesteps)
    assert logits.shape == (3, 4)
    for i in range(3):
        assert_close(logits[i : i + 1], classifier(images[i : i + 1], int(timesteps[i])), atol=1e-5, rtol=0)
    assert (logits - classifier(images, 10)).abs().max() > 1e-3


def test_model_round_trips(tmp_path):
    classifier = make_classifier(num_classes=2, label_names=("cat", "dog"))
    classifier.save_pretrained(tmp_path)
    again = FashionMNISTGuidanceClassifier.from_pretrained(tmp_path)
    assert not again.training
    assert tuple(again.config.label_names) == ("cat", "dog")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(images, 3), classifier(images, 3))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"in_channels": 0}, "`in_channels` must be an integer from 1 to"),
        ({"num_classes": True}, "`num_classes` must be an integer from 1 to"),
        ({"norm_num_groups": 2.0}, "`norm_num_groups` must be an integer from 1 to"),
        ({"block_out_channels": ()}, "`block_out_channels` must be a tuple of 1 to 8 integers"),
        ({"norm_num_groups": 5}, "`norm_num_groups` must divide every entry of `block_out_channels`"),
        ({"label_names": ["a", "a"]}, "`label_names` must be a tuple of distinct strings"),
        ({"label_names": ["a", "b"]}, r"one name for each class \(`num_classes`=10\), got 2"),
    ],
)
def test_invalid_parameters_are_errors(config, message):
    with pytest.raises(ValueError, match=message):
        FashionMNISTGuidanceClassifier(**config)
