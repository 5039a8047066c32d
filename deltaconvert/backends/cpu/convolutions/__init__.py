"""Convolutions and linear layers: rows times filters, Winograd's tiles, the dense fallback."""
