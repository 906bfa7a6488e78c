"""A result's three files: a page of Markdown, a record in JSON, and a picture if that works."""

from collections.abc import Callable
from pathlib import Path

from loadtest.bench.plot import NoPlots


def publish(
    stem: Path,
    text: str,
    record: str,
    draw: Callable[[Path], None],
    say: Callable[[str], None],
) -> None:
    """Write a page, a record and a plot side by side, and show the page."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    file_of(stem, "md").write_text(text)
    file_of(stem, "json").write_text(record)
    say(f"\n{text}")
    kinds = ["md", "json"]
    try:
        draw(file_of(stem, "png"))
        kinds.append("png")
    except NoPlots as error:
        say(f"no plot: {error}")
    say(f"written: {stem.name}.{{{','.join(kinds)}}} in {stem.parent}")


def file_of(stem: Path, ending: str) -> Path:
    """Give one of a result's files; a stem may have points of its own."""
    return stem.with_name(f"{stem.name}.{ending}")
