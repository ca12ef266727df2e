"""`python -m aiva`, for example `torchrun --nproc-per-node 2 -m aiva pretrain ...`."""

from aiva.cli import main

main()
