"""Pixels without networks: resizing, sharpening, back-projection and tile geometry."""
