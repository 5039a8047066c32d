"""Rows, the numbers of a pixel: sums over taps, activations, and the rule at their end."""
