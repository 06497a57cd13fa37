"""Small checkpoints for tests."""

from pathlib import Path

from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from fmnist_diffusion.sampling import make_pipeline
from tiny_pipelines import make_unet


TRAIN_CONFIG = {
    "seed": 7,
    "data": {"dataset_name": "zalando-datasets/fashion_mnist", "train_data_dir": None},
    "optimizer": {"learning_rate": 0.0001},
}
METRICS = {
    "num_samples": 12345,
    "seeds": [0, 1],
    "num_inference_steps": 18,
    "guidance_scale": 1.5,
    "conditional": True,
    "scheduler": "DDIMScheduler",
    "protocol": "as in the papers",
    "metrics": {
        "fid_train": {"mean": 4.25, "min": 4.0, "seeds": [4.0, 4.5]},
        "precision": {"mean": 0.75, "min": 0.7, "seeds": [0.7, 0.8]},
        "class_accuracy": {"mean": 0.9, "min": 0.8, "seeds": [0.8, 1.0]},
    },
    "real_metrics": {
        "num_images": 10000,
        "fid_train": 2.5,
        "kid_train": 0.0,
        "precision": 0.8,
        "recall": 0.7,
        "classifier_frechet_distance_train": 0.01,
        "class_accuracy": 0.94,
    },
}


def save_pipeline(
    folder: Path,
    noise_scheduler: DDPMScheduler | FlowMatchEulerDiscreteScheduler | None = None,
    num_class_embeds: int | None = None,
    **config,
) -> Path:
    """Saves a pipeline with random weights."""
    unet = make_unet(num_class_embeds, **config)
    make_pipeline(unet, noise_scheduler or DDPMScheduler()).save_pretrained(folder)
    return folder
