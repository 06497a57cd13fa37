"""Compares the FID of this package with a direct implementation of the protocol of pytorch-fid:

    python tests/benchmarks/fid_protocol.py FOLDER OTHER_FOLDER

Both folders contain more than 2,048 images of the same size. The direct implementation follows `fid_score.py` of
pytorch-fid: PIL, RGB, floats in [0, 1], bilinear resizing to 299x299, `2x - 1`, the network with TorchScript, and
`scipy.linalg.sqrtm` of the product of NumPy's covariances.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from PIL import Image

from fmnist_diffusion.evaluation import InceptionFeatures, download_inception, frechet_distance, load_samples
from fmnist_diffusion.evaluation.distances import compute_moments
from fmnist_diffusion.evaluation.samples import IGNORED_FILES


BATCH_SIZE = 50


@torch.no_grad()
def compute_features(folder: Path, network: torch.jit.ScriptModule) -> np.ndarray:
    """Returns the features of all images, float32 `(num_images, 2048)`, in the order of their paths."""
    features = []
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in IGNORED_FILES)
    for start in range(0, len(paths), BATCH_SIZE):
        images = [np.array(Image.open(path).convert("RGB")) for path in paths[start : start + BATCH_SIZE]]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        resized = torch.nn.functional.interpolate(pixels, size=(299, 299), mode="bilinear", align_corners=False)
        features.append(network(2 * resized - 1).flatten(1).numpy())
    return np.concatenate(features)


def compute_fid(features: np.ndarray, other: np.ndarray) -> float:
    mean1, mean2 = features.astype(np.float64).mean(0), other.astype(np.float64).mean(0)
    cov1, cov2 = (np.cov(values.astype(np.float64), rowvar=False) for values in (features, other))
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs=2, metavar="FOLDER", help="folder of images")
    options = parser.parse_args()

    weights = download_inception()
    script, inception = torch.jit.load(weights).eval(), InceptionFeatures(weights)
    start = time.perf_counter()
    first, second = (compute_features(folder, script) for folder in options.folders)
    expected, seconds = compute_fid(first, second), time.perf_counter() - start
    start = time.perf_counter()
    ours = [inception(load_samples(folder).images) for folder in options.folders]
    fid, our_seconds = frechet_distance(ours[0], compute_moments(ours[1])), time.perf_counter() - start
    difference = max(float(np.abs(a.numpy() - b).max()) for a, b in zip(ours, (first, second), strict=True))
    print(f"{len(first):,} and {len(second):,} images")
    print(f"protocol of pytorch-fid: FID {expected:.6f} ({seconds:.0f} s)")
    print(f"this package:            FID {fid:.6f} ({our_seconds:.0f} s)")
    print(f"largest difference of a feature: {difference:.6f} (largest feature: {first.max():.3f})")


if __name__ == "__main__":
    main()
