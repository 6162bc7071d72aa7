"""`python -m saga_ray` is `saga-ray`."""

from saga_ray.cli.main import main

main()
