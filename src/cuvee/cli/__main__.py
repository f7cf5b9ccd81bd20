"""`python -m cuvee.cli`, for `torchrun -m cuvee.cli train …`."""

from cuvee.cli import main

main()
