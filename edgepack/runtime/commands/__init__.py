"""What `python3 BUNDLE` can do: a module for each command."""
