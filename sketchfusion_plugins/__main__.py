"""``python -m sketchfusion_plugins`` is ``sketchfusion``."""

from sketchfusion_plugins.cli import app

app()
