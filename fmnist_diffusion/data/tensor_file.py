"""Reader and writer of safetensors files with decoded images."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .errors import DataError, get_reason
from .image_tensors import ImageTensors, check_label_range


SAFETENSORS_SUFFIX = ".safetensors"


def save_tensors(tensors: ImageTensors, path: str | Path) -> None:
    """Writes decoded images to a `.safetensors` file. [`load_images`] accepts this file as `train_data_dir`."""
    if Path(path).suffix != SAFETENSORS_SUFFIX:
        raise DataError(f"`path` must end with {SAFETENSORS_SUFFIX}, got {path}.")
    contents = {"images": tensors.images.contiguous()}
    if tensors.labels is not None:
        contents["labels"] = tensors.labels.contiguous()
    metadata = {} if tensors.label_names is None else {"label_names": json.dumps(tensors.label_names)}
    if tensors.captions is not None:
        metadata["captions"] = json.dumps(tensors.captions)
    # `save_file` would create a file that other users cannot read.
    Path(path).write_bytes(save(contents, metadata))


def load_tensors(path: Path) -> ImageTensors:
    """Reads a file that [`save_tensors`] wrote."""
    advice = "Write it again with `save_tensors`."
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            contents = {name: file.get_tensor(name) for name in ("images", "labels") if name in names}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"Could not read {path} ({get_reason(error)}). {advice}") from error
    images, labels = contents.get("images"), contents.get("labels")
    if images is None or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            f"The file {path} must contain a uint8 tensor `images` of shape (num_images, 1 or 3, height, width)."
            f" {advice}"
        )
    if images.numel() == 0:
        raise DataError(
            f"The file {path} contains no images or images without pixels, got shape {tuple(images.shape)}. {advice}"
        )
    label_names = captions = None
    if "label_names" in metadata:
        label_names = _parse_strings(metadata["label_names"])
        if label_names is None or len(set(label_names)) < len(label_names):
            raise DataError(f"The metadata `label_names` of {path} must be a JSON list of distinct strings. {advice}")
    if "captions" in metadata:
        captions = _parse_strings(metadata["captions"])
        if captions is None or len(captions) != len(images):
            raise DataError(
                f"The metadata `captions` of {path} must be a JSON list with one string per image"
                f" ({len(images)}). {advice}"
            )
    if labels is not None:
        if labels.shape != (len(images),) or labels.dtype != torch.int64:
            raise DataError(
                f"The file {path} must contain an int64 tensor `labels` with one label per image"
                f" ({len(images)}). {advice}"
            )
        if label_names is None:
            raise DataError(f"The file {path} contains labels but no label names. {advice}")
        # The null label for unconditional training follows the class indices.
        check_label_range(labels, len(label_names) + 1, path)
    return ImageTensors(images, labels, label_names, captions)


def _parse_strings(text: str) -> tuple[str, ...] | None:
    try:
        strings = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        return None
    return tuple(strings)
