"""The pipeline to fine-tune, and the default settings of a run that fine-tunes it or resumes another run."""

import functools
import logging
from dataclasses import asdict, dataclass, fields
from typing import Any

from config import (
    ObjectiveConfig,
    SchedulerConfig,
    TextEncoderConfig,
    get_saved_settings_path,
    read_saved_settings,
)
from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.hub_client import HubError
from fmnist_diffusion.loading import find_pipeline_file
from fmnist_diffusion.metadata import read_train_config
from fmnist_diffusion.schedulers import get_noise_scheduler
from noise_schedule import get_betas
from yaml_files import convert_tuples


logger = logging.getLogger("training")


@dataclass(frozen=True)
class PretrainedPipeline:
    """The pipeline to fine-tune.

    Attributes:
        pipe: The pipeline itself.
        model: Arguments of its model.
        scheduler: Its noise schedule, with the fields of [`SchedulerConfig`].
        betas: Variances of its noising steps; empty for flow matching.
        objective: Its training objective, with the fields of [`ObjectiveConfig`]; empty if the pipeline was saved
            without `train_config.json`.
    """

    pipe: FashionMNISTPipeline
    model: dict[str, Any]
    scheduler: dict[str, Any]
    betas: list[float]
    objective: dict[str, Any]

    @property
    def text_encoder_config(self) -> dict[str, Any]:
        """Settings of the text encoder, with the fields of [`TextEncoderConfig`]."""
        if self.pipe.text_encoder is None:
            return {"num_hidden_layers": None}
        return {field.name: getattr(self.pipe.text_encoder.config, field.name) for field in fields(TextEncoderConfig)}

    def get_fixed_settings(self) -> dict[str, Any]:
        """Returns the settings that fine-tuning cannot change, with dotted names such as `scheduler.beta_end`."""
        # The weights do not depend on the timestep spacing or the shift. Fine-tuning can add a text encoder.
        changeable = {
            *("model.num_class_embeds", "model.dropout"),
            "scheduler.shift"
            if self.scheduler["prediction_type"] == "flow_prediction"
            else "scheduler.timestep_spacing",
            *(["text_encoder.num_hidden_layers"] if self.pipe.text_encoder is None else []),
        }
        sections = {"model": self.model, "scheduler": self.scheduler, "text_encoder": self.text_encoder_config}
        settings = {f"{section}.{name}": value for section in sections for name, value in sections[section].items()}
        return {name: value for name, value in settings.items() if name not in changeable}


# Parsing, resolving and training need the same pipeline, and loading it from the Hub sends several requests.
@functools.lru_cache(maxsize=1)
def load_pretrained(init_from: str) -> PretrainedPipeline:
    """Loads the pipeline `init_from`; raises `OSError` or `ValueError` if it cannot be loaded."""
    pipe = load_pipeline(init_from)
    model = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    noise_scheduler = get_noise_scheduler(pipe)
    schedule_names = {field.name for field in fields(SchedulerConfig)}
    objective_names = {field.name for field in fields(ObjectiveConfig)}
    objective = (find_train_config(init_from) or {}).get("objective", {})
    return PretrainedPipeline(
        pipe=pipe,
        model=convert_tuples(model),
        # The scheduler of a flow-matching model does not have all fields.
        scheduler=asdict(SchedulerConfig(prediction_type="flow_prediction"))
        | {name: value for name, value in noise_scheduler.config.items() if name in schedule_names},
        betas=get_betas(noise_scheduler),
        objective={name: value for name, value in objective.items() if name in objective_names},
    )


def find_train_config(init_from: str) -> dict[str, Any] | None:
    """Returns the content of `train_config.json`, or `None` if there is no such file or it cannot be downloaded.

    Raises:
        `ValueError`: If the file is not a JSON object.
    """
    try:
        path = find_pipeline_file(init_from, "train_config.json")
    except HubError as error:
        logger.warning(
            "Could not download train_config.json of %s, so its settings are not used. %s", init_from, error
        )
        return None
    return None if path is None else read_train_config(path)


def find_defaults(init_from: str | None, resume: str | None, output_dir: str) -> dict[str, Any]:
    """Returns the defaults of the settings of a run, such as `{"objective": {"label_dropout": 0.1}}`.

    They are the settings of the run to resume, or the noise schedule, the objective, the text encoder and the
    autoencoder of the pipeline to fine-tune.

    Raises:
        `ValueError`, `OSError`: If the pipeline or the saved settings of the run cannot be read.
    """
    if resume is not None:
        path = get_saved_settings_path(resume, output_dir)
        saved = read_saved_settings(path) if path.is_file() else {}
        return {name: value for name, value in saved.items() if name not in ("output_dir", "resume")}
    if init_from is not None:
        pretrained = load_pretrained(init_from)
        return {
            "scheduler": pretrained.scheduler,
            "objective": pretrained.objective,
            "text_encoder": pretrained.text_encoder_config,
            "vae": None if pretrained.pipe.vae is None else init_from,
        }
    return {}
