"""Configs of the four sketch tasks, for ``sketchfusion train``."""
