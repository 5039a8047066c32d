"""Inference over clips: frames read ahead, several clips at once, results and overlays.

What ``deltaconvert run`` does, without its flags.
"""
