"""Samples that are texts, and the tokenizers that convert them."""
