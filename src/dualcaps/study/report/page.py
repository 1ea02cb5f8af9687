"""Renders a report's Markdown as one self-contained HTML page."""

import base64
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from dualcaps.study.report.figures import Picture
from dualcaps.study.verdicts import VERDICTS


class _Heading(NamedTuple):
    id: str
    text: str


def make_page(text: str, pictures: Sequence[Picture]) -> str:
    """Render the Markdown, with the pictures inside the page.

    Tables scroll horizontally on small screens, headings of the second level have anchors, and cells that begin
    with a verdict get its CSS class.

    Args:
        text: Markdown that begins with a heading of the first level.
        pictures: the pictures that it refers to as `figures/<name>`.
    """
    import jinja2
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    content = {f"figures/{picture.name}": _data_url(picture) for picture in pictures}
    headings: list[_Heading] = []
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        inside = following.children or [] if following is not None and following.type == "inline" else []
        if token.type == "heading_open" and token.tag == "h2":
            headings.append(_Heading(f"part-{len(headings)}", "".join(child.content for child in inside)))
            token.attrSet("id", headings[-1].id)
        elif token.type == "td_open" and (verdict := _verdict_of(inside)):
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
    first = next(
        (n for n, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"), len(tokens)
    )
    environment: dict[str, Any] = {}
    opening = parser.renderer.render(tokens[:first], parser.options, environment)
    body = parser.renderer.render(tokens[first:], parser.options, environment)
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
