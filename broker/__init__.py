"""The Streamfold broker: a durable log for AI answers."""

from broker.app import App, create_app
from broker.settings import Settings

__all__ = ["App", "Settings", "create_app"]
