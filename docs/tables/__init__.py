"""The tables of the documentation, a file for each thing that they are about."""
