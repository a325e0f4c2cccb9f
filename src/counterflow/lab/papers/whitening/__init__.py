"""Desjardins, Simonyan, Pascanu & Kavukcuoglu, "Natural Neural Networks", NIPS 2015: projected natural gradient."""
