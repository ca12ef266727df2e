"""`python -m sissi`, for example `torchrun --nproc-per-node 2 -m sissi train ...`."""

from sissi.cli import main

main()
