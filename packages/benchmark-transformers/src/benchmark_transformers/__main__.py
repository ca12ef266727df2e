"""`python -m benchmark_transformers`, for example `torchrun --nproc-per-node 2 -m benchmark_transformers pretrain ...`."""

from benchmark_transformers.cli import main

main()
