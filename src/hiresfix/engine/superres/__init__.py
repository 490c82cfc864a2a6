"""Super-resolution networks, tiled inference, and the offline creative engine."""
