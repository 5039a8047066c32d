"""Converted against dense: the law, the errors of outputs, and what is said of them."""
