"""`python -m reliability`: the soak. A module of its own, which no child of the soak imports again."""

import sys

from reliability.soak import main

sys.exit(main())
