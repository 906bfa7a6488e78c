"""The README says what is true: every file is in its tree, every block of Python compiles."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("routing", "model", "cluster", "deploy", "loadtest")
README = (REPOSITORY / "README.md").read_text()


def files_in_the_tree() -> set[str]:
    block = README.split("## The files")[1].split("```")[1]
    found: set[str] = set()
    folder = ""
    for line in block.strip().splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            found.add(folder + name)
        else:
            folder = name
    return found


def test_the_file_tree_names_every_module() -> None:
    modules = {
        str(path.relative_to(REPOSITORY))
        for room in ROOMS
        for path in (REPOSITORY / room).rglob("*.py")
        if path.name != "__init__.py"
    }

    assert files_in_the_tree() == modules


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)

    assert [target for target in targets if not (REPOSITORY / target).exists()] == []


def test_python_blocks_compile() -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        compile(block, "README.md", "exec")
