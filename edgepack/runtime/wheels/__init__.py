"""The wheels in a bundle: an environment from them, without network, pip or trust."""
