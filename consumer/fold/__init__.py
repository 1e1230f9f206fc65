"""The fold: the chunks of an answer in, the message they make out, exactly as each format's reference makes it.

`fold` takes all chunks at once, `Fold` takes them as they come and can be stored at any point. A format is one module
with one `Draft`, registered in `FORMATS`. `ui_message` shows the message of any format in one model, for readers that
do not want to know them all. Nothing here reads a clock, a socket or a file.
"""

from consumer.fold.draft import BadMessage
from consumer.fold.fold import FORMATS, BadFoldState, Fold, FoldError, UnknownFormat, fold
from consumer.fold.projection import ui_message
from consumer.fold.ui_message_stream import BadUIMessageStream, UIMessageStreamReader, read_ui_message_stream

__all__ = [
    "FORMATS",
    "BadFoldState",
    "BadMessage",
    "BadUIMessageStream",
    "Fold",
    "FoldError",
    "UIMessageStreamReader",
    "UnknownFormat",
    "fold",
    "read_ui_message_stream",
    "ui_message",
]
