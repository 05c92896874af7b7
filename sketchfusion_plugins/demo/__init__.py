"""A page to draw on: classes, pictures, places and points that a model finds for the drawing."""
