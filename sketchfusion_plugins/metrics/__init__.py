"""Metrics of the four sketch tasks, each by the protocols that the literature reports."""
