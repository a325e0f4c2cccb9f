"""Cho & Lee, "Active Noise Canceling using Analog Neuro-Chip with On-Chip Learning Capability", NIPS 1998."""
