"""What is a report's page made of? Self-contained HTML, with nothing in it that is not escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from string import Template


def page(
    *,
    title: str,
    lead: str,
    networks: str,
    facts: Mapping[str, str],
    accuracy_of: str,
    sections: str,
    command: str = "",
) -> str:
    """The whole page, from plain text but for `networks` and `sections`, which are HTML.

    Args:
        lead: the outcome in a sentence.
        networks: a table of them.
        facts: what stands beside the table, by name; a name that starts with "- " is a part of the one before.
        accuracy_of: what the accuracies are.
        sections: the figures.
        command: what to type to get the same.
    """
    template = Template(resources.files(__package__).joinpath("report_template.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        lead=escape(lead),
        networks=networks,
        facts="\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()),
        command=f"<p><code>{escape(command)}</code></p>" if command else "",
        accuracy_of=escape(accuracy_of),
        sections=sections,
    )


def figure(title: str, svg: bytes) -> str:
    """A drawing under its heading; as an image, not inline: the ids inside two inline drawings could clash."""
    data = base64.b64encode(svg).decode("ascii")
    image = f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'
    return f"<h2>{escape(title)}</h2>\n<figure>{image}</figure>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, marked: str | None = None) -> str:
    """Cells of plain text; the row that starts with `marked` stands out."""
    lines = ["<table>", f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr></thead>", "<tbody>"]
    for row in rows:
        opening = f'<tr class="{marked}">' if row[0] == marked else "<tr>"
        lines.append(f"{opening}{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"])


def folded(title: str, table: str) -> str:
    """A long table that opens on a click."""
    return f'<details><summary>{escape(title)}</summary><div class="scroll">{table}</div></details>'
