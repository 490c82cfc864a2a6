"""Models on offer, their presets and prices, and the weight files they are made of."""
