"""Relative links of a text as absolute ones, for places that show the README outside of the repository.

    python docs/absolute_links.py README.md https://github.com/OWNER/NAME v0.1.0

A package's page has no files beside it, so `docs/breakout.png` would show nothing there. In the repository
relative links are right for every branch and fork; the publishing workflow, which knows address and tag,
rewrites them just before it builds.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def absolute_links(text: str, repository: str, revision: str) -> str:
    """Return the text with images at `repository`/raw/`revision` and other files at .../blob/....

    Links with a scheme and links within the page stay as they are; so does what stands in code blocks.
    """

    def replace(link: re.Match[str]) -> str:
        target = link["target"]
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['text']}]({repository}/{kind}/{revision}/{target})"

    blocks = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(block if block.startswith("```") else _LINK.sub(replace, block) for block in blocks)


def main(argv: list[str]) -> int:
    """Rewrite a file; return the exit status."""
    if len(argv) != 3:
        print("usage: python docs/absolute_links.py FILE REPOSITORY REVISION", file=sys.stderr)
        return 2
    file, repository, revision = Path(argv[0]), argv[1].rstrip("/"), argv[2]
    file.write_text(absolute_links(file.read_text("utf-8"), repository, revision), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
