"""Lets the test files of this folder import the helper modules that lie here and in ../integration."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "integration")]
