"""Settings of an evaluation."""

from dataclasses import dataclass, field

from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.sampling import MAX_SEED, SamplingConfig


# Evaluation seed k uses random seeds starting at k * 2**20, so samples of different seeds never share noise.
IMAGES_PER_SEED = 2**20
NUM_SEEDS = (MAX_SEED + 1) // IMAGES_PER_SEED
LABELS_REQUIRED = (
    "`cas` requires labeled samples. Pass a class-conditional pipeline, or images with the classes of the reference."
)


@dataclass(frozen=True)
class EvaluationConfig:
    """
    Settings of [`evaluate_pipeline`].

    Attributes:
        sampling ([`SamplingConfig`]): The sampling settings, whose `seed` is ignored.
        conditional (`bool`, defaults to `True`):
            Whether to generate samples of all classes (see [`Reference.choose_conditions`]) or unconditional samples.
        num_samples (`int`, *optional*):
            Number of samples per seed, at most 2**20. Defaults to 10,000, or with `cas` to the number of real images.
        seeds (`tuple[int, ...]`, defaults to `(0,)`):
            Evaluation seeds from 0 to 4095. Image i of a seed uses the random seed `seed * 2**20 + i`. With several
            seeds, the results contain the mean, the minimum and the value of each seed.
        batch_size (`int`, defaults to 100): Number of images per batch. It only affects rounding errors.
        cas (`bool`, defaults to `False`):
            Whether to measure the classification accuracy score of the samples of the first seed; see [`measure_cas`].
        classifier_guidance_scale (`float`, defaults to 0.0): See [`~FashionMNISTPipeline.__call__`].

    Raises:
        `ValueError`: If settings contradict each other or are out of range.
    """

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    conditional: bool = True
    num_samples: int | None = None
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 100
    cas: bool = False
    classifier_guidance_scale: float = 0.0

    def __post_init__(self):
        if self.num_samples is not None and not 1 <= self.num_samples <= IMAGES_PER_SEED:
            raise ValueError(f"`num_samples` must be between 1 and {IMAGES_PER_SEED}, got {self.num_samples}.")
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer, got {self.batch_size}.")
        if not self.seeds:
            raise ValueError("`seeds` must contain at least one seed.")
        if not all(0 <= seed < NUM_SEEDS for seed in self.seeds):
            raise ValueError(f"`seeds` must be between 0 and {NUM_SEEDS - 1}, got {', '.join(map(str, self.seeds))}.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must not contain duplicates, got {', '.join(map(str, self.seeds))}.")
        for name, value, disabled in (
            ("guidance_scale", self.sampling.guidance_scale, 1.0),
            ("classifier_guidance_scale", self.classifier_guidance_scale, 0.0),
        ):
            if not self.conditional and value != disabled:
                raise ValueError(
                    f"`{name}` must be {disabled} for unconditional sampling, got {value}. Omit it, or evaluate"
                    " conditional samples."
                )
        if not self.conditional and self.cas:
            raise ValueError(LABELS_REQUIRED)

    def check_pipeline(self, pipe: FashionMNISTPipeline) -> None:
        """Raises `ValueError` if `pipe` lacks a component that these settings require."""
        has_prompts = pipe.text_encoder is not None
        # The pipeline checks these arguments itself, but only after the real images have been prepared.
        pipe.check_inputs(
            class_labels=0 if self.conditional and not has_prompts else None,
            prompt="" if self.conditional and has_prompts else None,
            num_images_per_prompt=1,
            num_inference_steps=1,
            output_type="latent",
            callback_on_step_end_tensor_inputs=(),
            guidance_scale=self.sampling.guidance_scale,
            classifier_guidance_scale=self.classifier_guidance_scale,
        )
