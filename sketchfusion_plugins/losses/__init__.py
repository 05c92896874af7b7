"""Training losses of the sketch tasks."""
