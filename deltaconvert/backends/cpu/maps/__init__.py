"""Maps as compiled loops see them: how numbers are stored, and which pixels are read."""
