"""Wheels in a bundle: create an environment from them, without network, pip or trust."""
