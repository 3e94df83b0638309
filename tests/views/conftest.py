"""Texts that try to be more than text, for every view to draw as text; a browser that remembers what a page should not do."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<!--<script>",
    "--><svg onload=alert(1)>",
    '"onmouseover="alert(1)',
    "'><iframe srcdoc='<script>alert(1)</script>'>",
    "&lt;img src=x onerror=alert(1)&gt;",
    "\u2028\u2029</style>",
    "]]><!CDATA[",
    "${alert(1)}{{7*7}}{% raw %}",
    "javascript:alert(1)",
    "\x00\x08\x1b[31m",
    "\u202etxt.exe\u2066",
    "\ud800 lone surrogate",
    "$\\frac{$",
]


@pytest.fixture(scope="session")
def hostile() -> list[str]:
    return HOSTILE


@pytest.fixture(params=HOSTILE)
def hostile_text(request: pytest.FixtureRequest) -> str:
    return request.param


class Watched:
    """A page, opened from a file or from the HTML of a notebook's output, that remembers whatever a page should not do."""

    def __init__(self, browser: Any, opened: Path | str, **options: Any) -> None:
        self.wrongs: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.wrongs.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrongs.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.wrongs.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self._allowed(request.url) or self.wrongs.append(f"request: {request.url[:200]}"))
        self.page.on("popup", lambda popup: self.wrongs.append(f"window: {popup.url}"))
        self.folder = opened.parent.as_uri() if isinstance(opened, Path) else None
        if isinstance(opened, Path):
            self.page.goto(opened.as_uri())
        else:
            self.page.set_content(opened)

    def _allowed(self, url: str) -> bool:
        """A page itself, pages beside it, and what lies in it."""
        return url.startswith(("data:image/png", "about:srcdoc")) or (self.folder is not None and url.startswith(self.folder))

    @property
    def shown(self) -> Any:
        """Where the view is: the frame of a notebook, or the page."""
        return self.page.frames[-1] if len(self.page.frames) > 1 else self.page.main_frame

    def close(self) -> None:
        if not self.page.is_closed():
            self.page.close()
        assert self.wrongs == []


@pytest.fixture
def watch(browser: Any) -> Iterator[Callable[..., Watched]]:
    """Opens pages; at the end of the test none of them may have done anything wrong."""
    opened: list[Watched] = []

    def watch(page: Path | str, **options: Any) -> Watched:
        opened.append(Watched(browser, page, **options))
        return opened[-1]

    yield watch
    for watched in opened:
        watched.close()
