"""Tebelskis et al., "Continuous Speech Recognition by Linked Predictive Neural Networks", NIPS 1990."""
