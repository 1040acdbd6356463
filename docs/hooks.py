"""Adds the pages outside docs/ to the site: the model card, the changes, how to contribute, security."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
JOINED = ("MODEL_CARD.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Files, config: Any) -> Files:
    for name in JOINED:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Changes links: in the site all pages are in one folder; in the repository, these are one above the others."""
    if page.file.src_uri in JOINED:
        return markdown.replace("](docs/", "](")
    return re.sub(rf"\]\(\.\./({'|'.join(map(re.escape, JOINED))})", r"](\1", markdown)
