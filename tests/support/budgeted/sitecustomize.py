"""On the path of a Python process, it puts the process on the budget that its environment names."""

import os
from pathlib import Path

from tests.support.budget import VARIABLE, Budget

Budget(Path(os.environ[VARIABLE])).enforce()
