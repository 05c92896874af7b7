"""Judging models on the four tasks, all through one code path."""
