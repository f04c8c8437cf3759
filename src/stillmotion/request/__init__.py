"""What to make, as plain data: the request, its messages, model cards and concepts. No torch."""

from stillmotion.request.request import Request

__all__ = ["Request"]
