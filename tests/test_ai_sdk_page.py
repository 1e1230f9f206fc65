"""docs/ai-sdk.md shows the code that the browser tests run, not something like it."""

import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ai-sdk.md").read_text(encoding="utf-8")
CHAT = ROOT / "tests" / "e2e" / "chat"
CODE = "\n".join(
    path.read_text(encoding="utf-8") for path in [CHAT / "agent.py", *sorted((CHAT / "src").glob("*.js*"))]
)
BLOCKS = re.findall(r"^```\w+\n(.+?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_shows_code() -> None:
    assert len(BLOCKS) == 6


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_in_the_chat_that_is_tested(block: str) -> None:
    assert block in CODE or textwrap.indent(block, "  ") in CODE
