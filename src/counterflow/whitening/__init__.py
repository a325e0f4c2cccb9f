"""Whitened layers: projected natural gradient descent.

Source: Desjardins, Simonyan, Pascanu, Kavukcuoglu, "Natural Neural Networks", NIPS 2015.
"""

__all__: list[str] = []
