"""The folder of the toy paper."""
