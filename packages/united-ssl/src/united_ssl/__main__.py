"""`python -m united_ssl`, for example `torchrun --nproc-per-node 2 -m united_ssl pretrain ...`."""

from united_ssl.cli import main

main()
