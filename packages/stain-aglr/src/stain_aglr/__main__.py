"""`python -m stain_aglr`, for example `torchrun --nproc-per-node 2 -m stain_aglr train ...`."""

from stain_aglr.cli import main

main()
