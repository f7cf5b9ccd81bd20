"""`python -m cuvee.cli`, as used by `torchrun -m cuvee.cli train …`."""

from cuvee.cli import main

main()
