"""`python -m panda_fusion_cli` is the `panda-fusion` program."""

import sys

from panda_fusion_cli.main import main

sys.exit(main())
