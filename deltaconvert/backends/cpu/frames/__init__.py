"""What runs a frame: the table of steps, the candidates of each, and who helps with them."""
