"""Renders a report's Markdown as one self-contained HTML page."""

import base64
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dualcaps.study.report.figures import Picture
from dualcaps.study.verdicts import VERDICTS


class _Heading(NamedTuple):
    id: str
    text: str


_FIGURE = re.compile(r"<p>(<img [^>]*>)</p>\s*<p><em>(.*?)</em></p>", re.DOTALL)
"""A picture and its caption, as `image` writes them."""


def make_page(text: str, pictures: Sequence[Picture], folded: Sequence[str] = ()) -> str:
    """Render the Markdown, with the pictures inside the page.

    Headings of the second level have anchors. Cells know the heading of their column, by which small screens show each
    row as a card, and those that begin with a verdict get its CSS class.

    Args:
        text: Markdown that begins with a heading of the first level.
        pictures: the pictures that it refers to as `figures/<name>`.
        folded: headings of sections that are closed at first.
    """
    import jinja2
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    content = {f"figures/{picture.name}": _data_url(picture) for picture in pictures}
    headings: list[_Heading] = []
    columns: list[str] = []
    cells: Iterator[str] = iter(())
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        inside = following.children or [] if following is not None and following.type == "inline" else []
        words = "".join(child.content for child in inside)
        if token.type == "heading_open" and token.tag == "h2":
            headings.append(_Heading(f"part-{len(headings)}", words))
            token.attrSet("id", headings[-1].id)
        elif token.type == "thead_open":
            columns = []
        elif token.type == "th_open":
            columns.append(words)
        elif token.type == "tr_open":
            cells = iter(columns)
        elif token.type == "td_open":
            token.attrSet("data-label", next(cells))
            if verdict := _verdict_of(inside):
                token.attrSet("class", verdict.replace(" ", "-"))
        for child in token.children or []:
            if child.type == "image":
                child.attrSet("src", content[str(child.attrGet("src"))])
            elif child.type == "text":
                child.content = re.sub(
                    r"(?<=[\dn]) ([±=]) (?=\d)", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", child.content
                )
    parser.add_render_rule("table_open", lambda *_: '<div class="table"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    environment: dict[str, Any] = {}

    def render(part: Sequence[Any]) -> str:
        rendered = parser.renderer.render(part, parser.options, environment)
        return _FIGURE.sub(r"<figure>\1<figcaption>\2</figcaption></figure>", rendered)

    starts = [n for n, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"]
    opening = render(tokens[: starts[0] if starts else len(tokens)])
    body = ""
    for heading, start, end in zip(headings, starts, [*starts[1:], len(tokens)], strict=True):
        title, rest = render(tokens[start : start + 3]), render(tokens[start + 3 : end])
        if heading.text in folded:
            body += f"<details><summary>{title}</summary>\n{rest}</details>\n"
        else:
            body += title + rest
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("dualcaps.study.report"), autoescape=True, keep_trailing_newline=True
    )
    style, _, _ = templates.loader.get_source(templates, "style.css") if templates.loader else ("", None, None)
    return templates.get_template("page.html").render(
        title="".join(child.content for child in (tokens[1].children or [])),
        style=Markup(style),
        opening=Markup(opening),
        headings=headings,
        body=Markup(body),
    )


def _verdict_of(cell: Sequence[Any]) -> str | None:
    text = cell[0].content if cell else ""
    return next((verdict for verdict in VERDICTS if re.match(rf"{verdict}(:|$)", text)), None)


def _data_url(picture: Picture) -> str:
    kind = "svg+xml" if picture.name.endswith(".svg") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture.content).decode()}"
