"""The site: built strictly without a network, its links and anchors lead somewhere."""

import inspect
import pkgutil
import re
import socket
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from support.running import REPOSITORY

REFERENCE = re.findall(r"^::: (\S+)$", (REPOSITORY / "docs" / "reference.md").read_text(), re.M)
LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """Collect a page's anchors, its links, and what a browser loads with it."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links, self.loaded = {"", "__top"}, [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors.update(values[key] for key in ("id", "name") if values.get(key))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and values.get(LOADED[tag]) and values.get("rel") != "canonical":
            self.loaded.append(values[LOADED[tag]])


def dead_ends(site: Path) -> list[str]:
    """Return links to files or anchors that do not exist, and what is loaded from elsewhere."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    wrong = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the root of a server
            continue
        wrong += [f"{path.name} loads {url}" for url in page.loaded if urlsplit(url).netloc]
        for url in page.links + page.loaded:
            if urlsplit(url).scheme or urlsplit(url).netloc:
                continue
            file, anchor = urldefrag(url)
            target = (path.parent / unquote(urlsplit(file).path)).resolve() if file else path
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else {""}
            if not target.is_file() or unquote(anchor) not in known:
                wrong.append(f"{path.name} -> {url}")
    for style in site.rglob("*.css"):
        remote = re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"']+", style.read_text())
        wrong += [f"{style.name} loads {url}" for url in remote]
    return wrong


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Build the site in this process, which may not open a connection meanwhile."""
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(folder), strict=True)
    refused = OSError("the site needs a network")
    config.plugins.on_startup(command="build", dirty=False)
    with patch.object(socket.socket, "connect", side_effect=refused):
        build(config)
    return folder


def test_links_and_anchors_exist_and_nothing_is_remote(site):
    assert not dead_ends(site)
    links = [link for path in site.rglob("*.html") for link in Page(path).links]
    assert len([link for link in links if "#" in link]) > 100


def test_every_page_is_in_the_navigation(site):
    navigation = {urldefrag(link).url for link in Page(site / "index.html").links}
    for page in (REPOSITORY / "docs").glob("*.md"):
        name = "index" if page.stem == "README" else page.stem
        assert f"{name}.html" in navigation, page.name


def test_dead_ends_are_noticed(tmp_path):
    (tmp_path / "here.html").write_text(
        "<h1 id='top'></h1><a href='#top'></a><a href='#gone'></a><a href='there.html'></a>"
        "<script src='https://cdn.example/x.js'></script><a href='https://example.org'></a>"
    )
    (tmp_path / "look.css").write_text("@import 'https://fonts.example/css';")
    assert len(dead_ends(tmp_path)) == 4


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_describes_what_exists(site, name):
    """Every name is on the page, and its docstring names only arguments that it takes."""
    found = pkgutil.resolve_name(name)
    anchors = Page(site / "reference.html").anchors
    assert name in anchors or f"{found.__module__}.{found.__qualname__}" in anchors
    taken = set(inspect.signature(found).parameters)
    section = re.search(r"\nArgs:\n((?:    .*\n?|\n)+)", inspect.cleandoc(found.__doc__))
    described = re.findall(r"^    ([*\w, ]+):", section[1], re.M) if section else []
    assert {one.strip("* ") for names in described for one in names.split(",")} <= taken
