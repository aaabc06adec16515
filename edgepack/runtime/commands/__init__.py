"""Commands of `python3 BUNDLE`, one module each."""
