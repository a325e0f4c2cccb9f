"""Local winner-take-all (Srivastava et al., NIPS 2013): its claims and the experiments that measure them."""
