import pytest

from config import DistillationConfig, ResolvedConfig, TrainingConfig
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
    assert describe_run_length(images_seen, ResolvedConfig()).startswith(expected)


@pytest.mark.parametrize(("max_train_steps", "name"), [(10, "max_train_steps"), (11, "num_epochs")])
def test_advice_names_the_setting_that_limits_the_run(max_train_steps: int, name: str):
    config = ResolvedConfig(max_train_steps=max_train_steps, train_batch_size=4, gradient_accumulation_steps=2)
    assert describe_run_length(80, config).endswith(f". Increase --{name} to train longer.")


@pytest.mark.parametrize(
    ("name", "config", "condition"),
    [
        (
            "IMAGES_FOR_FINE_TUNING",
            ResolvedConfig(init_from="base"),
            " if the images differ from the training images of base",
        ),
        ("IMAGES_FOR_DISTILLATION", TrainingConfig(init_from="base", distillation=DistillationConfig(32)), ""),
    ],
)
def test_fine_tuning_and_distillation_have_their_own_numbers(
    monkeypatch: pytest.MonkeyPatch, name: str, config: TrainingConfig, condition: str
):
    monkeypatch.setattr(f"milestones.{name}", 123)
    assert get_num_images_needed(config) == 123
    assert describe_run_length(123, config).endswith("(100%).")
    assert f", so expect noise or distorted shapes{condition}. " in describe_run_length(122, config)
