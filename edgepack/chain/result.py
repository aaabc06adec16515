from edgepack.ledger import PassResult

__all__ = ["PassResult"]
