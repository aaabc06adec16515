"""Distances between answers, and the gates that bound them."""
