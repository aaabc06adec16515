"""Task metrics of a whole evaluation set, and statistics of the original's answers."""
