"""`python -m adagrad_unet`, which torchrun starts."""

from adagrad_unet.cli import main

main()
