"""Reader of datasets on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .datasets_utils import import_datasets
from .errors import DataError, get_reason
from .fashion_mnist import DEBIAN_FOLDER, DEFAULT_DATASET
from .idx import load_idx_folder


if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


def load_hub_dataset(name: str, config_name: str | None, split: str) -> dict[str, datasets.Dataset]:
    """
    Loads all splits of a dataset from the Hub or, if the Hub is not reachable, from the local cache.

    If this fails for the default dataset, only the requested split is loaded from the IDX files of the Debian package
    `dataset-fashion-mnist`.
    """
    datasets = import_datasets()
    from datasets.exceptions import DatasetsError

    from ..hub_client import NETWORK_ERRORS

    try:
        with _offline_if_unreachable():
            splits = datasets.load_dataset(name, config_name)
        return {str(split_name): dataset for split_name, dataset in splits.items()}
    # hf_xet raises RuntimeError, and so does `datasets` if a dataset has a loading script.
    except (*NETWORK_ERRORS, DatasetsError, OSError, RuntimeError) as error:
        reason = get_reason(error)
        if name != DEFAULT_DATASET:
            raise DataError(
                f"Could not load the dataset {name} ({reason}). Check its name and the network connection. To read"
                " local files, pass an existing folder or file as `train_data_dir`."
            ) from error
        if not DEBIAN_FOLDER.is_dir():
            raise DataError(
                f"Could not load the dataset {name} ({reason}), and {DEBIAN_FOLDER} does not exist. Install the"
                " Debian package dataset-fashion-mnist, or pass a local copy as `train_data_dir`."
            ) from error
        logger.warning("Could not load the dataset %s (%s). Reading %s instead.", name, reason, DEBIAN_FOLDER)
    except ValueError as error:
        # The second line lists the available configs.
        reason = " ".join(str(error).splitlines()[:2]).rstrip(".") or get_reason(error)
        raise DataError(
            f"Could not load the dataset {name} ({reason}). Check `dataset_name` and `dataset_config_name`."
        ) from error
    return load_idx_folder(DEBIAN_FOLDER, split)


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    # `datasets` retries an unreachable Hub for more than 20 seconds. In offline mode, it uses the cache immediately.
    from datasets import config

    from ..hub_client import is_hub_reachable

    offline = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = offline or not is_hub_reachable()
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = offline
