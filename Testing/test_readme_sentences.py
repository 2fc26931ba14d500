"""README's table of error sentences against the code: whoever searches for a sentence must find the one we say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADING = "### When something goes wrong"


def said_in_code() -> list[str]:
    """Every text in the shipped code, joined where it was split; what varies is a NUL."""
    texts = []
    for path in [*(ROOT / "HiEndSegLib").rglob("*.py"), *(ROOT / "HiEndSeg").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"\{[^{}]*\}", "\0", node.value))
    return texts


def rows(readme: str) -> list[list[str]]:
    """The table below the heading: sentence, meaning, what to do."""
    chapter = readme.split(HEADING, 1)[1].split("\n## ", 1)[0]
    lines = [line for line in chapter.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def pattern(sentence: str) -> re.Pattern:
    """Fragments in order in one text, with something that varies between them where the README has an ellipsis."""
    parts = [re.escape(part) for part in re.split(r"\s*…\s*", sentence)]
    return re.compile(r"[^\0]{0,3}\0[^\0]{0,3}".join(parts))


def test_every_sentence_of_the_table_is_said_somewhere():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    texts, table = said_in_code(), rows(readme)
    assert len(table) >= 25
    for cells in table:
        assert len(cells) == 3 and all(cells), cells
        sentence = re.fullmatch(r"“(.+)”", cells[0])
        assert sentence, f"{cells[0]} is not in quotation marks"
        wanted = pattern(sentence.group(1).strip())
        assert any(wanted.search(text) for text in texts), f"nobody says: {sentence.group(1)}"


def test_a_sentence_that_was_changed_is_noticed():
    texts = ["The wheel of \0 in the folder is for another system", "The worker did not start within \0 s and was"]
    assert pattern("The wheel of … in the folder is for").search(texts[0])
    assert pattern("The worker did not start within …").search(texts[1])
    assert not pattern("The wheel of … is for").search(texts[0])
    assert not pattern("The wheel … of the folder").search(texts[0])
    assert rows(f"# x\n{HEADING}\n\n| a | b | c |\n|---|---|---|\n| “x” | y | z |\n\n## next\n| no | no | no |\n") == [
        ["“x”", "y", "z"]]
