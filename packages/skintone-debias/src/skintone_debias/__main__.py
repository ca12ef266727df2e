"""`python -m skintone_debias`, for example `torchrun --nproc-per-node 2 -m skintone_debias train ...`."""

from skintone_debias.cli import main

# Without the guard every process that `label` starts would run the command again.
if __name__ == "__main__":
    main()
