"""Pixels without networks: resizing, sharpening, back-projection and the geometry of tiles."""
