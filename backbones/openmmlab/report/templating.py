"""Render the pages' templates, with every inserted text escaped."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent
ENVIRONMENT = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
STYLE = Markup(FOLDER.joinpath("page.css").read_text(encoding="utf-8"))


def fill(template: str, **view: object) -> str:
    """Render a template of `templates/`, with the style of all pages.

    Args:
        template: its file name.
        view: what it shows.
    """
    return ENVIRONMENT.get_template(template).render(style=STYLE, **view)
