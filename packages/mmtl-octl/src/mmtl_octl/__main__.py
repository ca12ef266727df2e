"""`python -m mmtl_octl`, for example `torchrun --nproc-per-node 2 -m mmtl_octl train ...`."""

from mmtl_octl.cli import main

main()
