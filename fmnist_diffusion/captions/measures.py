"""Measurements of garments, shoes and bags in Fashion-MNIST images.

Every function takes uint8 pixels of shape `(batch, 28, 28)` and returns float32 values of shape `(batch,)`. Background
pixels are 0 in Fashion-MNIST. Shoes point to the left.
"""

import torch


# The background of a generated image is not exactly 0.
MIN_FOREGROUND = 8


def measure_brightness(images: torch.Tensor) -> torch.Tensor:
    """Returns the mean of the foreground pixels, from 0 to 255."""
    foreground = find_foreground(images)
    return (images * foreground).sum((1, 2)) / foreground.sum((1, 2)).clamp(min=1)


def measure_width(images: torch.Tensor) -> torch.Tensor:
    """Returns the mean width of the rows with foreground, in pixels."""
    widths = measure_row_widths(images)
    return widths.sum(1) / (widths > 0).sum(1).clamp(min=1)


def measure_height(images: torch.Tensor) -> torch.Tensor:
    """Returns the number of rows with foreground."""
    return find_foreground(images).any(2).sum(1).float()


def measure_torso_length(images: torch.Tensor) -> torch.Tensor:
    """Returns the mean height of the six columns in the center, in pixels. The sleeves do not reach these columns."""
    return measure_row_widths(images.mT)[:, 11:17].mean(1)


def measure_shoulder_width(images: torch.Tensor) -> torch.Tensor:
    """Returns the mean width of the rows at the shoulders, in pixels, which includes short sleeves."""
    return measure_row_widths(images)[:, 4:10].mean(1)


def measure_sleeve_span(images: torch.Tensor) -> torch.Tensor:
    """Returns the mean width of the rows at the waist, in pixels, which includes the cuffs of long sleeves."""
    return measure_row_widths(images)[:, 17:23].mean(1)


def measure_shoulder_ratio(images: torch.Tensor) -> torch.Tensor:
    """Returns the width at the shoulders, including sleeves, divided by the width of the skirt."""
    widths = measure_row_widths(images)
    return widths[:, 4:11].mean(1) / widths[:, 16:26].mean(1).clamp(min=1)


def measure_shaft(images: torch.Tensor) -> torch.Tensor:
    """Returns the mean height of a shoe in the columns between the instep and the heel, in pixels."""
    return measure_row_widths(images.mT)[:, 16:27].mean(1)


def measure_arch(images: torch.Tensor) -> torch.Tensor:
    """Returns the mean height of the gap below a shoe between the toe and the heel, in pixels."""
    foreground = find_foreground(images)
    rows = torch.arange(1, foreground.shape[1] + 1, device=images.device)
    bottoms = (foreground * rows[:, None]).amax(1)  # (batch, width)
    ground = bottoms.amax(1, keepdim=True)
    return torch.where(bottoms > 0, ground - bottoms, 0)[:, 8:22].float().mean(1)


def measure_top_gap(images: torch.Tensor) -> torch.Tensor:
    """Returns the fraction of background pixels in the five rows below the top of a bag; it is high below a handle."""
    foreground = find_foreground(images)
    top = foreground.any(2).int().argmax(1)
    rows = (top[:, None] + torch.arange(1, 6, device=images.device)).clamp(max=foreground.shape[1] - 1)
    fill = foreground.gather(1, rows[:, :, None].expand(-1, -1, foreground.shape[2])).float().mean((1, 2))
    return 1 - fill


def find_foreground(images: torch.Tensor) -> torch.Tensor:
    """Returns a Boolean mask of the object, of the same shape as `images`."""
    return images >= MIN_FOREGROUND


def measure_row_widths(images: torch.Tensor) -> torch.Tensor:
    """
    Returns the distance between the first and the last foreground pixel of each row, inclusive, or 0 for empty rows,
    as float32 of shape `(batch, height)`.
    """
    foreground = find_foreground(images).int()
    first, last = foreground.argmax(2), foreground.shape[2] - foreground.flip(2).argmax(2)
    return torch.where(foreground.any(2), last - first, 0).float()
