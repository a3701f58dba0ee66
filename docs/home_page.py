"""Add the repository's own pages to the site: README as its home, and what README links to."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "THIRD_PARTY.md")
LINK = re.compile(r"(?<!!)\[([^]]*)\]\(([^)]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put README in the place of the list of pages, which the site's navigation is."""
    listing = files.get_file_from_path("README.md")
    assert listing is not None
    files.remove(listing)
    for name in ("README.md", *PAGES):
        text = LINK.sub(site_link, (ROOT / name).read_text(encoding="utf-8"))
        text = text.replace("](docs/", "](")  # pictures
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    return markdown.replace("](../README.md", "](README.md")


def site_link(link: re.Match) -> str:
    """Return a link between files of the repository as one between pages of the site."""
    text, target = link.groups()
    if target.startswith("docs/"):
        page = target.removeprefix("docs/") or "README.md"
        return f"[{text}]({page})"
    if target in PAGES or target.startswith(("http", "#")):
        return link[0]
    return text  # a config or the licence: no page
