"""Bae & Lee (2000): tables 1 and 2, and figure 3."""
