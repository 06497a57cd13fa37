import pytest
import torch

from fmnist_diffusion.captions import measures


def make_image(*rectangles: tuple[int, int, int, int], value: int = 200) -> torch.Tensor:
    """Returns an image, uint8 `(1, 28, 28)`, of rectangles `(top, bottom, left, right)` on a black background."""
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    for top, bottom, left, right in rectangles:
        image[:, top:bottom, left:right] = value
    return image


TORSO = (0, 28, 8, 20)
SHORT_SLEEVES, LONG_SLEEVES = [(3, 12, 4, 8), (3, 12, 20, 24)], [(3, 26, 4, 8), (3, 26, 20, 24)]


def test_brightness_ignores_the_background():
    image = make_image((5, 9, 5, 9), value=100)
    image[:, 7:9, 5:9] = 200
    assert measures.measure_brightness(image).tolist() == [150]


@pytest.mark.parametrize("function", [value for name, value in vars(measures).items() if name.startswith("measure_")])
def test_measurements_of_an_empty_image_are_finite(function):
    values = function(torch.zeros(2, 28, 28, dtype=torch.uint8))
    assert len(values) == 2
    assert values.dtype == torch.float32
    assert values.isfinite().all()


def test_faint_noise_does_not_change_the_measurements():
    image = make_image(TORSO, *SHORT_SLEEVES)
    noisy = torch.where(image == 0, torch.randint(8, image.shape, generator=torch.Generator().manual_seed(0)), image)
    for name, function in vars(measures).items():
        if name.startswith("measure_"):
            assert torch.equal(function(noisy.to(torch.uint8)), function(image)), name


def test_width_and_height_are_in_pixels():
    image = make_image((4, 24, 6, 16))
    assert measures.measure_width(image).tolist() == [10]
    assert measures.measure_height(image).tolist() == [20]


def test_dark_stripes_do_not_change_the_width():
    image = make_image((0, 28, 4, 8), (0, 28, 20, 24))
    assert measures.measure_width(image).tolist() == [20]


def test_torso_length_does_not_include_sleeves():
    image = make_image((0, 20, 8, 20), *LONG_SLEEVES)
    assert measures.measure_torso_length(image).tolist() == [20]


def test_sleeves_widen_the_shoulders_and_long_sleeves_widen_the_waist():
    images = torch.cat([make_image(TORSO), make_image(TORSO, *SHORT_SLEEVES), make_image(TORSO, *LONG_SLEEVES)])
    assert measures.measure_shoulder_width(images).tolist() == [12, 20, 20]
    assert measures.measure_sleeve_span(images).tolist() == [12, 12, 20]
    ratios = measures.measure_shoulder_ratio(images[:2])
    assert ratios[0] == 1 < ratios[1]


def test_heel_and_shaft_of_a_shoe():
    # The shoe has a sole at the left, a heel at the right, and a gap of 5 pixels between them.
    flat, heeled = make_image((15, 25, 0, 28)), make_image((15, 20, 0, 28), (20, 25, 0, 8), (20, 25, 22, 28))
    assert measures.measure_arch(torch.cat([flat, heeled])).tolist() == [0, 5]
    tall = make_image((15, 25, 0, 28), (3, 15, 16, 27))
    assert measures.measure_shaft(torch.cat([flat, tall])).tolist() == [10, 22]


def test_handle_of_a_bag_is_a_gap_below_the_top():
    body = (12, 26, 0, 28)
    handle = [(4, 5, 8, 20), (5, 12, 8, 9), (5, 12, 19, 20)]
    gaps = measures.measure_top_gap(torch.cat([make_image(body), make_image(body, *handle)]))
    assert gaps.tolist() == pytest.approx([0, 26 / 28])
