"""`python -m odex`, for example `torchrun --nproc-per-node 2 -m odex learn ...`."""

from odex.cli import main

main()
