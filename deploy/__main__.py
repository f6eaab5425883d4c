"""`python -m deploy` is `trident`."""

from deploy.cli import main

main()
