"""`python -m popar`, for example `torchrun --nproc-per-node 2 -m popar pretrain ...`."""

from popar.cli import main

main()
