"""README.md and BUILD.md say what the code does."""

import pathlib
import re

from aadml_jax.training.config import FIELDS

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def between(start, end="<!-- end -->"):
    return README.split(start, 1)[1].split(end, 1)[0]


def code_in(text, language):
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


def flag_table():
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    for field in FIELDS.values():
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        elif isinstance(default, bool):
            default = str(default).lower()
        help_text = field.metadata["help"]
        if choices := field.metadata.get("choices"):
            help_text += ": " + ", ".join(f"`{choice}`" for choice in choices)
        shown = "" if default is None else f"`{default}`"
        rows.append(f"| `--{field.name}` | {shown} | {help_text} |")
    return "\n".join(rows)


def test_the_snippet_runs_as_it_stands():
    names = {}
    exec(code_in(between("<!-- snippet: executed by the tests -->"), "python"), names)
    shown = re.search(r"print\(.*\)  # (\S+) (\S+)\n", README)
    before, after = (float(names["retrieval_map"](names[name])) for name in ("first", "towers"))
    assert [f"{before:.3f}", f"{after:.3f}"] == list(shown.groups())
    assert after > before


def test_the_flag_table_is_the_configuration():
    shown = between("<!-- flags: compared with the code by the tests -->").strip()
    assert shown == flag_table(), f"the table should be:\n{flag_table()}"


def test_continuous_integration_runs_the_readmes_test_command():
    command = code_in(between("<!-- test command -->"), "bash")
    assert "-m pytest" in command
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()
    assert command.split("-m pytest")[1].strip() in (ROOT / "BUILD.md").read_text()


def test_every_relative_link_leads_somewhere():
    for page in (ROOT / "README.md", ROOT / "BUILD.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_module_named_in_a_command_exists():
    for page in (ROOT / "README.md", ROOT / "BUILD.md"):
        for module in re.findall(r"-m ((?:experiments|benchmarks)\.\w+)", page.read_text()):
            path = ROOT / module.replace(".", "/")
            exists = path.with_suffix(".py").exists() or (path / "__main__.py").exists()
            assert exists, f"{page.name}: {module}"
