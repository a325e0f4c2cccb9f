"""Schraudolph & Sejnowski, "Tempering Backpropagation Networks", NIPS 1995: the family-relations experiment."""
