"""`python -m panda_fusion_cli` is the `panda-fusion` program."""

from panda_fusion_cli.main import main

main()
