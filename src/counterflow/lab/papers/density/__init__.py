"""Brown & Hinton, "Relative Density Nets", NIPS 2001: competing hidden Markov models that learn by backpropagation."""
