"""A result to look at, in whatever form its reader can show: a page to hover and click, a still figure, a table."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from interp_gpt2.errors import AnalysisError
from interp_gpt2.views.html import document, printable, tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

SUFFIXES = (".html", ".png", ".pdf", ".svg", ".csv")
_DPI = 100  # of the still picture in a notebook: 700 pixels for a figure over two columns


@dataclass(frozen=True, eq=False)
class View:
    """A picture to hover and click, for a notebook or a file, with a still figure and a table of the same numbers.

    In a notebook it shows itself: as a page where that can be shown, and where frames cannot (on GitHub, before a notebook is
    trusted, in a PDF) as the still figure. `packed` is what the page holds, `fragment` its HTML (which needs the page of
    `document` around it), `height` its height in a notebook, in pixels. `to_frame` and `draw` make `.data` and `.figure()`
    when they are asked for.
    """

    title: str
    packed: Any
    fragment: Markup
    to_frame: Callable[[], "DataFrame"]
    draw: Callable[[], "Figure"]
    height: int = 600

    @cached_property
    def data(self) -> "DataFrame":
        """The numbers shown, as a tidy table."""
        return self.to_frame()

    def figure(self) -> "Figure":
        """The still figure, for a paper: at most two columns wide, unless it says otherwise."""
        return self.draw()

    def save(self, path: str | Path) -> Path:
        """Write the view as its path's suffix says, and return the path.

        .html is the page, which opens from disk without a network; .pdf, .svg and .png are the still figure; .csv is the
        table. Raises AnalysisError for another suffix.
        """
        path = Path(path)
        kind = path.suffix.lower()
        if kind == ".html":
            path.write_text(document(self.title, self._body()), encoding="utf-8", newline="\n")
        elif kind == ".csv":
            self.data.to_csv(path, index=False, encoding="utf-8", lineterminator="\n")
        elif kind in SUFFIXES:
            from interp_gpt2.views.figures import save_picture

            save_picture(self.figure(), path)
        else:
            raise AnalysisError(f"a view is not written as {path.suffix or 'a file without a suffix'}; name one of {SUFFIXES}")
        return path

    def _body(self) -> Markup:
        return tag("main", {"class": "single"}, tag("h1", {}, self.title) if self.title else "", self.fragment)

    @cached_property
    def _still(self) -> bytes:
        """The figure as a PNG of at most 256 colours, a third of the size of one of all: a notebook holds it twice."""
        from PIL import Image

        drawn, small = io.BytesIO(), io.BytesIO()
        self.figure().savefig(drawn, format="png", dpi=_DPI)
        Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT).save(small, "PNG", optimize=True)
        return small.getvalue()

    def _repr_png_(self) -> bytes:
        return self._still

    def _repr_html_(self) -> str:
        # A frame of its own: neither the notebook's style nor another view's script can reach into it. It lies on top of the
        # still picture, which is what remains where frames and styles are taken out.
        page, said = escape(document(self.title, self._body())), escape(printable(self.title or "the view"))
        still = base64.b64encode(self._still).decode()
        return (
            f'<div style="position:relative;height:{self.height}px;overflow:hidden">'
            f'<img alt="{said}, still picture" src="data:image/png;base64,{still}">'
            f'<iframe srcdoc="{page}" title="{said}" width="100%" height="{self.height}" frameborder="0" '
            'style="position:absolute;inset:0;background:#fff" sandbox="allow-scripts allow-downloads"></iframe></div>'
        )

    def __repr__(self) -> str:
        return f"View({self.title!r}); .save('view.html') writes it ({' '.join(SUFFIXES[1:])} too), .data is its table"
