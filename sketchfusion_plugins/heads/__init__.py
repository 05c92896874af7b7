"""Small heads between the fused features and the tasks."""
