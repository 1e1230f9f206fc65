"""The broker: `create_app(Settings(...))` makes an ASGI application of it, to be served or mounted."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.app import App, create_app
    from broker.settings import Settings

_HOME = {"App": "broker.app", "Settings": "broker.settings", "create_app": "broker.app"}

__all__ = ["App", "Settings", "create_app"]


def __getattr__(name: str) -> Any:
    """Load the server when it is asked for: the clients' command line lives here too, and may do without it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
