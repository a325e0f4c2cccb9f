"""Stochastic multiple choice learning: the trials, and what is measured from them."""
