"""`python -m fda_mri`, for example `torchrun --nproc-per-node 2 -m fda_mri train ...`."""

from fda_mri.cli import main

main()
