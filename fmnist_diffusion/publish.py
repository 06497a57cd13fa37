"""Publishing on the Hub: repository folders with a model card, and their upload."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar, get_args

import httpx2
import torch
from diffusers import DDPMScheduler
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, SpaceCard, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open

from .data import DEFAULT_DATASET
from .hub import STOCK_PIPELINES, export_pipeline, load_pipeline
from .objectives import PredictionType
from .pipelines.pipeline_fmnist import FashionMNISTPipeline


PACKAGE_DIR = Path(__file__).parent
CARD_TEMPLATE = PACKAGE_DIR / "templates" / "model_card.md"
TASK = "unconditional-image-generation"
# What `training/train.py` takes as `--scheduler.*`.
SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
)
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# Somebody else's commit that came between, too many requests, trouble of the Hub's own: all of it passes.
PASSING_STATUS = (409, 412, 429, 500, 502, 503, 504)
# Between attempts, in seconds; huggingface_hub itself repeats single requests besides.
WAITS = (1.0, 4.0)
# JSONDecodeError is what huggingface_hub makes of an answer in HTML, the built-in ones come from its Xet uploads.
TROUBLE = (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    httpx2.TransportError,
    json.JSONDecodeError,
    ConnectionError,
    TimeoutError,
)
LOGIN = "run `hf auth login`, or set HF_TOKEN, with a token that may write"

Result = TypeVar("Result")


class PublishError(Exception):
    """Why something could not be published, in one sentence that says what to do."""


class Metric(NamedTuple):
    """A number of a card, beside that of the real test images."""

    type: str
    title: str
    value: float
    real: float


# Name in metrics.json, type of metric, title, and where the figure of the real test images lies in its "real" part.
METRICS = (
    ("fid_train", "fid", "FID against the training images", ("inception", "test", "frechet_distance")),
    ("kid_train", "kid", "KID against training images", ("inception", "test", "kernel_distance")),
    ("precision", "precision", "Precision", ("inception", "test", "precision")),
    ("recall", "recall", "Recall", ("inception", "test", "recall")),
    ("density", "density", "Density", ("inception", "test", "density")),
    ("coverage", "coverage", "Coverage", ("inception", "test", "coverage")),
    (
        "classifier_frechet_distance_train",
        "classifier_frechet_distance",
        "Fréchet distance in a classifier's features",
        ("classifier", "test", "frechet_distance"),
    ),
    ("class_agreement", "accuracy", "Taken for the class asked for, by a classifier", ("classifier_accuracy", "test")),
)


def push_pipeline(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    token: str | None = None,
) -> str:
    r"""
    Publishes a pipeline's folder as a model repository, which it makes where there is none.

    Pushed again unchanged, it makes no commit; after a failure the same call completes the work. `folder` stays as it
    is.

    Args:
        folder (`str` or `os.PathLike`): What [`export_pipeline`], the trainer or `save_pretrained` wrote.
        repo_id (`str`): `owner/name`, or `name` for one of your own.
        private (`bool`, defaults to `False`): Whether a repository that is made now is private.
        revision (`str`, *optional*): The branch to push to, made where there is none; `main` without it.
        tag (`str`, *optional*): A tag for the commit.
        create_pr (`bool`, defaults to `False`): Propose the change as a pull request instead.
        license (`str`, *optional*):
            The Hub's name of the weights' licence, for the card. Without it, `mit` where `train_config.json` says
            that it was trained on the Hub's Fashion-MNIST, else none.
        token (`str`, *optional*): A token that may write; without it, that of `hf auth login` or HF_TOKEN.

    Returns:
        `str`: The address of the repository, or of the pull request.

    Raises:
        [`PublishError`]: the Hub could not be reached, or refused.
        `OSError`, `ValueError`, `TypeError`: the arguments contradict each other, or the folder can't be published.
    """
    if create_pr and (tag or revision):
        raise ValueError("a pull request has no branch or tag of its own: leave out --revision and --tag")
    api = connect(token)
    repo_id = full_repo_id(api, repo_id)
    with TemporaryDirectory() as staging:
        make_repository(Path(folder), repo_id, Path(staging), license)
        make_repo(api, repo_id, private)
        if revision is not None:
            ask_hub(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), repo_id)
        commit = ask_hub(
            lambda: api.upload_folder(
                repo_id=repo_id,
                folder_path=staging,
                commit_message="Upload the pipeline",
                revision=revision,
                create_pr=create_pr,
                # What an earlier push left there.
                delete_patterns=["images/*", "unet/*", "metrics.json", "train_config.json"],
            ),
            repo_id,
            # Repeated after an answer that was lost, it would make a second pull request.
            waits=() if create_pr else WAITS,
        )
    if tag is not None:
        set_tag(api, repo_id, tag, commit.oid)
    return commit.pr_url or f"{api.endpoint}/{repo_id}"


def push_space(repo_id: str, model_id: str, *, private: bool = False, token: str | None = None) -> str:
    r"""
    Publishes the demo as a Space that shows one model.

    Pushed again unchanged, it makes no commit. The Space carries this package's source along.

    Args:
        repo_id (`str`): `owner/name`, or `name` for one of your own.
        model_id (`str`): The repository of the model, `owner/name`, or `name` for one of your own.
        private (`bool`, defaults to `False`): Whether a Space that is made now is private.
        token (`str`, *optional*): A token that may write; without it, that of `hf auth login` or HF_TOKEN.

    Returns:
        `str`: The address of the Space.

    Raises:
        [`PublishError`]: the Hub could not be reached, or refused; or the model is not there or private.
    """
    api = connect(token)
    repo_id, model_id = full_repo_id(api, repo_id), full_repo_id(api, model_id)
    if ask_hub(lambda: api.model_info(model_id), model_id).private:
        raise PublishError(f"{model_id} is private, and the Space could not read it: make the model public first")
    with TemporaryDirectory() as staging:
        make_space(model_id, Path(staging))
        make_repo(api, repo_id, private, repo_type="space", space_sdk="gradio")
        ask_hub(lambda: api.add_space_variable(repo_id, "MODEL_ID", model_id), repo_id)
        ask_hub(
            lambda: api.upload_folder(
                repo_id=repo_id,
                repo_type="space",
                folder_path=staging,
                commit_message="Upload the demo",
                delete_patterns=["*.py", "examples/*", "fmnist_diffusion/*"],
            ),
            repo_id,
        )
    return f"{api.endpoint}/spaces/{repo_id}"


def space_dir() -> Path:
    """The demo: inside the package that was installed from a wheel, beside it in a checkout."""
    inside = PACKAGE_DIR / "space"
    return inside if inside.is_dir() else PACKAGE_DIR.parent / "space"


def make_space(model_id: str, target: Path) -> None:
    """Writes into `target` all that the Space of a model holds."""
    shutil.copytree(space_dir(), target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for source in sorted(PACKAGE_DIR.rglob("*.py")):
        path = source.relative_to(PACKAGE_DIR)
        # What measures stays at home, and the Space's own files are there already.
        if path.parts[0] not in ("evaluation", "space"):
            (target / PACKAGE_DIR.name / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / PACKAGE_DIR.name / path)
    card = SpaceCard.load(target / "README.md")
    card.data["models"] = [model_id]
    card.save(target / "README.md")


def connect(token: str | None) -> HfApi:
    token = token or get_token()
    if token is None:
        raise PublishError(f"you are not logged in to the Hub: {LOGIN}")
    return HfApi(token=token)


def full_repo_id(api: HfApi, repo_id: str) -> str:
    if "/" in repo_id:
        return repo_id
    return f"{ask_hub(api.whoami, repo_id)['name']}/{repo_id}"


def make_repo(api: HfApi, repo_id: str, private: bool, **options: Any) -> None:
    """Makes the repository where there is none; with `private`, refuses one that everybody can see."""
    ask_hub(lambda: api.create_repo(repo_id, private=private, exist_ok=True, **options), repo_id)
    if private:
        found = ask_hub(lambda: api.repo_info(repo_id, repo_type=options.get("repo_type")), repo_id)
        if not found.private:
            raise PublishError(
                f"{repo_id} exists and is public: leave out --private, make it private on the Hub, or give another"
                " --repo-id"
            )


def set_tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    ask_hub(lambda: api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True), repo_id)
    tags = {ref.name: ref.target_commit for ref in ask_hub(lambda: api.list_repo_refs(repo_id), repo_id).tags}
    if tags.get(tag) != commit:
        raise PublishError(f"the files are in {repo_id}, but {tag} is the tag of another commit: give another --tag")


def ask_hub(action: Callable[[], Result], repo_id: str, waits: tuple[float, ...] = WAITS) -> Result:
    """Calls `action`, again after each of `waits` seconds while what went wrong may pass.

    Raises:
        [`PublishError`]: it went wrong for good.
    """
    for wait in (*waits, None):
        try:
            return action()
        except (*TROUBLE, RuntimeError) as raised:
            # So huggingface_hub wraps what stops the upload of a large file, and Xet says nothing but the text.
            error = (raised.__cause__ or raised) if isinstance(raised, RuntimeError) else raised
            if not isinstance(error, (*TROUBLE, RuntimeError)):
                raise
            if wait is None or not may_pass(error):
                raise PublishError(explain(error, repo_id)) from error
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def may_pass(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING_STATUS
    return not isinstance(error, OfflineModeIsEnabled)


def explain(error: BaseException, repo_id: str) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing was asked of the Hub: unset it"
    reason = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, HfHubHTTPError):
        return f"the Hub could not be reached ({reason}): run the same command again when it can"
    status = error.response.status_code
    if status == 401:
        return f"the Hub does not accept your token: {LOGIN}"
    if status == 403:
        return f"your token may not write to {repo_id}: give a --repo-id of your own, or {LOGIN}"
    if status == 404:
        return f"{repo_id} is not there, or your token may not see it: check its name, or {LOGIN}"
    if status in (409, 412):
        return f"somebody else is writing to {repo_id}: run the same command again"
    if status in PASSING_STATUS:
        return f"the Hub has trouble (HTTP {status}): run the same command again later"
    return f"the Hub refused {repo_id} ({reason}): check --repo-id and the names of branch and tag"


def make_repository(folder: Path, repo_id: str, target: Path, license: str | None = None) -> None:
    r"""
    Writes into `target` all that a model repository holds: the pipeline in the layout of [`export_pipeline`], its
    settings, metrics and pictures, and a model card.

    Args:
        folder (`Path`): A pipeline's folder; nothing else that lies there, such as checkpoints, is taken along.
        repo_id (`str`): What the card calls the repository.
        target (`Path`): Where to write.
        license (`str`, *optional*): As for [`push_pipeline`].

    Raises:
        `OSError`, `ValueError`: `folder` holds no pipeline, or one that cannot be loaded.
        `TypeError`: its scheduler has no noise schedule of a DDPMScheduler.
    """
    # The weights as they are stored.
    dtypes = set().union(*(weights_dtypes(path) for path in (folder / "unet").glob("*.safetensors")))
    dtype = DTYPES.get(dtypes.pop(), torch.float32) if len(dtypes) == 1 else torch.float32
    pipe = load_pipeline(folder.resolve(), scheduler=None, dtype=dtype)
    scheduler: Any = pipe.scheduler
    trainable = scheduler.config.get("prediction_type") in get_args(PredictionType)
    if type(scheduler) not in STOCK_PIPELINES and DDPMScheduler in scheduler.compatibles and trainable:
        # One to sample with, made from the config of the one that was trained with.
        scheduler = DDPMScheduler.from_config(scheduler.config)
    train_config, metrics = read_train_config(folder / "train_config.json"), read_metrics(folder / "metrics.json")
    export_pipeline(pipe.unet, scheduler, target, train_config=train_config)
    if metrics is not None:
        shutil.copyfile(folder / "metrics.json", target / "metrics.json")
    images = sorted((folder / "images").glob("*.png"))
    for image in images:
        (target / "images").mkdir(exist_ok=True)
        shutil.copyfile(image, target / "images" / image.name)
    card = model_card(pipe, repo_id, train_config, metrics, [image.name for image in images], license)
    card.save(target / "README.md")


def weights_dtypes(path: Path) -> set[str]:
    """The names, such as `"F16"`, of the floating-point types in a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {dtype for name in file.keys() if "F" in (dtype := file.get_slice(name).get_dtype())}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} holds no weights ({error}): fetch or export it again") from error


def read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON ({error}): mend it, or remove it") from error


def read_train_config(path: Path) -> dict[str, Any] | None:
    """What the trainer wrote to `path`; `None` where that is not there."""
    config = read_json(path)
    if not isinstance(config, dict | None):
        raise ValueError(f"{path.name} holds no settings by name: mend it, or remove it")
    return config


def read_metrics(path: Path) -> dict[str, Any] | None:
    """What `fmnist-diffusion evaluate` wrote to `path`; `None` where that is not there, or is another program's."""
    metrics = read_json(path)
    return metrics if isinstance(metrics, dict) and {"metrics", "num_samples", "real"} <= metrics.keys() else None


def model_card(
    pipe: FashionMNISTPipeline,
    repo_id: str,
    train_config: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    images: list[str] | None = None,
    license: str | None = None,
) -> ModelCard:
    r"""
    Fills `templates/model_card.md`, with the metrics as a model index.

    Args:
        pipe ([`FashionMNISTPipeline`]): The pipeline.
        repo_id (`str`): Its repository, `owner/name`.
        train_config (`dict`, *optional*): What is in `train_config.json`.
        metrics (`dict`, *optional*): What is in `metrics.json`.
        images (`list[str]`, *optional*): Names of the pictures in `images/`.
        license (`str`, *optional*): As for [`push_pipeline`].
    """
    images = images or []
    settings = dict(flatten(train_config or {}))
    # Fine-tuning goes on with the same noise schedule.
    trained_with, defaults = dict(pipe.scheduler.config), DDPMScheduler().config
    schedule = [
        f" \\\n    --scheduler.{name}={trained_with[name]}"
        for name in SCHEDULE
        if trained_with.get(name, defaults[name]) != defaults[name]
    ]
    dataset = None if settings.get("data.train_data_dir") else settings.get("data.dataset_name")
    if dataset and "/" not in dataset:
        # A folder's name.
        dataset = None
    fashion_mnist = dataset == DEFAULT_DATASET
    if license is None and fashion_mnist:
        license = "mit"
    measured = measured_metrics(metrics) if metrics else []
    model_name = repo_id.rpartition("/")[2]
    card_data = ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag=TASK,
        datasets=[dataset] if dataset else None,
        tags=["diffusers", "ddpm", "image-generation", *(["fashion-mnist"] if fashion_mnist else [])],
        model_name=model_name,
        widget=[{"text": Path(name).stem, "output": {"url": f"images/{name}"}} for name in images] or None,
        metrics=[metric.type for metric in measured] or None,
        eval_results=[
            EvalResult(
                task_type=TASK,
                dataset_type=DEFAULT_DATASET,
                dataset_name="Fashion-MNIST",
                metric_type=metric.type,
                metric_name=f"{metric.title} ({metrics['num_samples']:,} samples)",
                metric_value=float(f"{metric.value:.5g}"),
            )
            for metric in measured
        ]
        if metrics
        else None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(CARD_TEMPLATE),
        model_name=model_name,
        repo_id=repo_id,
        config={name: value for name, value in pipe.unet.config.items() if not name.startswith("_")},
        label_names=pipe.label_names,
        parameters=pipe.unet.num_parameters(),
        dtype=str(pipe.unet.dtype).removeprefix("torch."),
        dataset=dataset,
        schedule="".join(schedule),
        fashion_mnist=fashion_mnist,
        license=license,
        grid="samples.png" if "samples.png" in images else next(iter(images), None),
        settings={name: value for name, value in settings.items() if value is not None},
        metrics=metrics,
        measured=measured,
    )


def measured_metrics(metrics: dict[str, Any]) -> list[Metric]:
    """The numbers of `metrics.json` that a card shows; of several seeds, their mean."""
    found = []
    for name, kind, title, path in METRICS:
        value, real = metrics["metrics"].get(name), metrics["real"]
        if value is not None:
            for key in path:
                real = real[key]
            found.append(Metric(kind, title, value["mean"] if isinstance(value, dict) else value, real))
    return found


def flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as pairs such as `("optimizer.learning_rate", 1e-4)`."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
