"""Random augmentation of training images."""

import torch
import torch.nn.functional as F


MAX_SHIFT = 2


def augment(images: torch.Tensor, augmentation: str) -> torch.Tensor:
    """Applies `augmentation` to images `(B, C, H, W)`; `"shift"` repeats the pixels at the edge."""
    batch, channels, height, width = images.shape
    device = images.device
    if augmentation == "flip":
        flipped = torch.rand(batch, 1, 1, 1, device=device) < 0.5
        return torch.where(flipped, images.flip(-1), images)
    if augmentation == "shift":
        padded = F.pad(images, [MAX_SHIFT] * 4, mode="replicate")
        top, left = torch.randint(2 * MAX_SHIFT + 1, (2, batch, 1), device=device)
        rows = (torch.arange(height, device=device) + top)[:, None, :, None]
        columns = (torch.arange(width, device=device) + left)[:, None, None, :]
        image = torch.arange(batch, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[None, :, None, None]
        return padded[image, channel, rows, columns]
    return images
