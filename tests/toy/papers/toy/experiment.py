"""Where `load_paper` looks for the toy."""

from toy_paper import PAPER as PAPER
