"""Merges checkpoints of the same model by a linear combination of their weights (arXiv 2404.02241):

    python training/combine.py output/second/pipeline output/first/pipeline --weights 1.2 -0.2 --output_dir output/both

If the second run was initialized from the first one (`--init_from`), a small negative coefficient of the first one
extrapolates in the direction of the training. Compare different coefficients with `fmnist-diffusion evaluate`.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from autoencoder import hash_vae
from export import add_output_arguments, save_with_train_config
from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.metadata import weights_hash
from fmnist_diffusion.sampling import convert_dtype
from fmnist_diffusion.schedulers import get_noise_scheduler
from noise_schedule import get_betas
from output_folder import check_new_folder
from pretrained import find_train_config


def combine(
    pipelines: Sequence[FashionMNISTPipeline], weights: Sequence[float], component: str = "unet"
) -> dict[str, torch.Tensor]:
    """Returns the state dict of the linear combination of the models, in float32.

    The running statistics of BatchNorm are combined like the weights.

    Args:
        pipelines: Pipelines with the same architecture, vocabulary, autoencoder, prediction type and noise schedule.
        weights: One weight per pipeline, positive or negative, with a sum of 1.
        component: The component to combine: `"unet"` or `"text_encoder"`.

    Raises:
        `ValueError`: If there is not one weight per pipeline, if their sum is not 1, if the models differ, or if a
            running variance of BatchNorm is not positive.
    """
    if len(weights) != len(pipelines) or not abs(sum(weights) - 1) < 1e-6:
        raise ValueError(
            f"`--weights` must be one number per pipeline ({len(pipelines)}) and sum to 1, got"
            f" {' '.join(map(str, weights))}."
        )
    for number, other in enumerate(pipelines[1:], start=2):
        if not is_same_model(other, pipelines[0]):
            raise ValueError(
                f"Pipeline {number} differs from the first one in its architecture, autoencoder, vocabulary,"
                " prediction type or noise schedule. Pass checkpoints of the same model."
            )
    states = [getattr(pipe, component).state_dict() for pipe in pipelines]
    combined = {}
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            terms = [weight * state[name].float() for weight, state in zip(weights, states, strict=True)]
            tensor = sum(terms, start=torch.zeros(()))
        if name.endswith("running_var") and tensor.min() <= 0:
            raise ValueError(
                f"These `--weights` make the running variance {name} zero or negative. Use weights between 0 and 1."
            )
        combined[name] = tensor
    return combined


def is_same_model(first: FashionMNISTPipeline, second: FashionMNISTPipeline) -> bool:
    def describe(pipe: FashionMNISTPipeline) -> tuple[Any, ...]:
        # Models that only differ in their dropout can be merged.
        config = {name: value for name, value in pipe.unet.config.items() if name != "dropout"}
        architecture = {name: value for name, value in config.items() if not name.startswith("_")}
        vocab = pipe.tokenizer and pipe.tokenizer.get_vocab()
        shapes = pipe.text_encoder and {key: value.shape for key, value in pipe.text_encoder.state_dict().items()}
        vae = pipe.vae and {name: value for name, value in pipe.vae.config.items() if not name.startswith("_")}
        # The latents of different autoencoders have different meanings.
        vae_hash = pipe.vae and hash_vae(pipe.vae)
        noise_scheduler = get_noise_scheduler(pipe)
        num_train_timesteps = noise_scheduler.config["num_train_timesteps"]
        noise_schedule = pipe.prediction_type, num_train_timesteps, get_betas(noise_scheduler)
        return architecture, vocab, shapes, vae, vae_hash, noise_schedule

    return describe(first) == describe(second)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "pipelines",
        nargs="+",
        help="local folders, names of bundled checkpoints or Hub repositories; the scheduler and the settings of the"
        " first one are used",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        type=float,
        required=True,
        help="coefficient of each pipeline; the coefficients must sum to 1",
    )
    add_output_arguments(parser)
    options = parser.parse_args(args)
    try:
        check_new_folder(options.output_dir)
        pipelines = [load_pipeline(name) for name in options.pipelines]
        combined = {"weights": options.weights, "weights_sha256": [weights_hash(pipe) for pipe in pipelines]}
        train_config = find_train_config(options.pipelines[0]) or {}
        if "combined" in train_config:
            combined["first"] = train_config["combined"]
        pipe = pipelines[0]
        for name in ("unet", "text_encoder"):
            model = getattr(pipe, name)
            if model is not None:
                model.float().load_state_dict(combine(pipelines, options.weights, name))
                convert_dtype(model, getattr(torch, options.dtype))
        save_with_train_config(pipe, options.output_dir, train_config | {"combined": combined})
    except (OSError, ValueError) as error:
        parser.exit(2, f"combine.py: error: {error}\n")
    print(f"Saved the pipeline to {options.output_dir}.")


if __name__ == "__main__":
    main()
