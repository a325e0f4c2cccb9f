"""Variational dropout and the local reparameterization trick: the trials, and what is measured from them."""
