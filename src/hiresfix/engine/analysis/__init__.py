"""Measurements on images: degradation of the input, fidelity of the result, seams; and the colour lock."""
