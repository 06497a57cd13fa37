"""Runs the command line with `python -m fmnist_diffusion.commands`, which `accelerate launch -m` requires."""

from . import main


main()
