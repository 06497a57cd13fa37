"""Trains an autoencoder for latent diffusion (arXiv 2112.10752):

    accelerate launch training/train_autoencoder.py --data.train_data_dir=path/to/images

The output folder contains the autoencoder (`vae`, which is passed to train.py as `--vae`), its metrics on held-out
images (`vae/metrics.json`), some of these images with their reconstructions (`reconstructions.png`), the losses
(`loss.csv`, `loss.png`), the settings and a checkpoint. To resume a run, pass its settings:

    accelerate launch training/train_autoencoder.py --config=output/autoencoder/config.yaml --resume=true
"""

import sys
from functools import partial
from pathlib import Path

import torch

from autoencoder_config import AutoencoderConfig
from autoencoder_trainer import AutoencoderTrainer
from checkpoint import get_resume_advice
from fmnist_diffusion.files import WriteError
from interrupts import get_exit_code
from launch_environment import print_and_exit
from parsing import parse
from processes import destroy_process_groups_after


PROGRAM = "train_autoencoder.py"


def main(args: list[str]) -> None:
    destroy_process_groups_after(partial(run, args))


def run(args: list[str]) -> None:
    config = parse(args, AutoencoderConfig, PROGRAM, __doc__, "output/autoencoder/config.yaml")
    stop = partial(print_and_exit, PROGRAM)
    try:
        trainer = AutoencoderTrainer(config)
        trainer.train()
    except KeyboardInterrupt as interrupt:
        stop(f"Interrupted. {get_advice(config)}", get_exit_code(interrupt))
    except FloatingPointError as error:
        stop(f"error: {error} Reduce --optimizer.learning_rate, and start again with a different --output_dir.", 1)
    except torch.OutOfMemoryError:
        stop(
            "error: The GPU ran out of memory. Reduce --train_batch_size, and start again with a different"
            " --output_dir.",
            1,
            where="process",
        )
    except WriteError as error:
        stop(f"error: {error} {get_advice(config)}", 1)
    except (OSError, ValueError) as error:
        stop(f"error: {error}", 2, where="machine")
    trainer.accelerator.print(f"Saved the autoencoder to {trainer.folder / 'vae'}.")


def get_advice(config: AutoencoderConfig) -> str:
    """Returns a sentence about how to resume the stopped run."""
    return get_resume_advice(Path(config.output_dir), "true" if config.checkpoint.is_dir() else None)


if __name__ == "__main__":
    main(sys.argv[1:])
