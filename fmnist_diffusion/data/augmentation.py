"""Random augmentation of training images."""

import torch
import torch.nn.functional as F


MAX_SHIFT = 2


def augment(
    images: torch.Tensor,
    augmentation: str,
    generator: torch.Generator | None = None,
    process_index: int = 0,
    num_processes: int = 1,
) -> torch.Tensor:
    """Applies `augmentation` to images `(B, C, H, W)`; `"shift"` repeats the pixels at the edge.

    With several processes, `images` are one of `num_processes` equal parts of a batch. If their generators have the
    same state, the parts are augmented like a batch of a single process.
    """
    batch, channels, height, width = images.shape
    device = images.device
    if augmentation == "flip":
        flipped = torch.rand((num_processes, batch, 1, 1, 1), generator=generator, device=device)[process_index] < 0.5
        return torch.where(flipped, images.flip(-1), images)
    if augmentation == "shift":
        padded = F.pad(images, [MAX_SHIFT] * 4, mode="replicate")
        shifts = torch.randint(2 * MAX_SHIFT + 1, (num_processes, batch, 2, 1), generator=generator, device=device)
        top, left = shifts[process_index].unbind(1)
        rows = (torch.arange(height, device=device) + top)[:, None, :, None]
        columns = (torch.arange(width, device=device) + left)[:, None, None, :]
        image = torch.arange(batch, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[None, :, None, None]
        return padded[image, channel, rows, columns]
    return images
