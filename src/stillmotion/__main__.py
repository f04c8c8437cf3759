"""`python -m stillmotion` is `stillmotion`: for torchrun, accelerate launch and machines without scripts."""

from stillmotion.cli import main

main()
