"""Gruslys et al., "Memory-Efficient Backpropagation Through Time", NIPS 2016: costs of plans, and measured times."""
