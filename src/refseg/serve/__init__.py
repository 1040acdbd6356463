"""The HTTP server and its web page: `create_app` builds them, importing does nothing."""

from refseg.serve.app import create_app
from refseg.serve.limits import Limits

__all__ = ["Limits", "create_app"]
