import pytest

from milestones import describe_run_length, get_num_images_needed


@pytest.mark.parametrize(
    ("images_seen", "text"),
    [
        (1_920, "This run ends after 1,920 images (4%), so expect noise or distorted shapes. Increase --num_epochs"),
        (39_999, "This run ends after 39,999 images (99%), so expect noise"),
        (40_000, "This run ends after 40,000 images (100%)."),
        (4_000_000, "This run ends after 4,000,000 images (10,000%)."),
    ],
)
def test_length_of_a_run_is_compared_with_the_measured_one(
    monkeypatch: pytest.MonkeyPatch, images_seen: int, text: str
):
    monkeypatch.setattr("milestones.IMAGES_FROM_SCRATCH", 40_000)
    expected = f"Usable samples require about 40,000 images. {text}"
    assert describe_run_length(images_seen, fine_tuning=False).startswith(expected)


def test_fine_tuning_has_its_own_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("milestones.IMAGES_FOR_FINE_TUNING", 123)
    assert get_num_images_needed(fine_tuning=True) == 123
    assert describe_run_length(123, fine_tuning=True).endswith("(100%).")
