"""Trained models on files and folders: what the command line is made of."""
