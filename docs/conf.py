"""Sphinx configuration: MyST for the pages, furo for the looks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import servo

project = "Servo"
author = "the Servo authors"
copyright = "2026, the Servo authors"
release = servo.__version__
version = release

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "changelog.d"]

html_theme = "furo"
html_title = "Servo"
