"""Places in the checkout, and of data that tests use where it is there."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests/recorded"
CAMVID = Path(os.environ.get("DIGA_CAMVID", ROOT.parent / "shared/data/camvid"))
