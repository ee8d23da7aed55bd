"""The package list, the arrows between rooms, the help of every command, and what a start imports."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hxrd.cli.main import COMMANDS, hxrd

CHECKOUT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {"kernels": "hxrd.kernels", "cli": "hxrd.cli"}

# Who may import whom (besides itself, errors, cores and the bare package): arrows point down only.
LOWER = {"crystal", "archive", "formats", "sources", "physics", "models"}
ROOMS = {
    "errors": set(),
    "cores": set(),
    "kernels": set(),
    "crystal": {"kernels"},
    "archive": {"crystal"},
    "formats": {"crystal"},
    "sources": {"crystal"},
    "physics": {"crystal", "kernels"},
    "models": {"crystal", "physics", "kernels"},
    "simulate": {*LOWER, "kernels"},
    "classify": {*LOWER, "kernels"},
    "evaluate": LOWER,
    "train": {*LOWER, "simulate", "classify", "kernels"},
    "cli": {*LOWER, "simulate", "classify", "evaluate", "train", "kernels"},
}
HEAVY = {
    "gemmi",
    "matplotlib",
    "moyopy",
    "numba",
    "numpy",
    "pandas",
    "pyarrow",
    "pymatgen",
    "rich",
    "scipy",
    "torch",
    "zarr",
}


def packages_on_disk() -> dict[str, Path]:
    folders = [file.parent.relative_to(CHECKOUT) for file in (CHECKOUT / "hxrd").rglob("__init__.py")]
    packages = {".".join(folder.parts): CHECKOUT / folder for folder in folders}
    return packages | {package: CHECKOUT / folder for folder, package in TOP_LEVEL.items()}


def modules() -> Iterator[tuple[str, str, Path]]:
    """Yield (room, module, file) of every source file."""
    for package, folder in packages_on_disk().items():
        for file in sorted(folder.glob("*.py")):
            room = file.stem if package == "hxrd" else package.split(".")[1]
            yield room, package, file


def imported(file: Path, package: str) -> Iterator[str]:
    """Yield the full name of every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parent, *filter(None, [node.module])]) if node.level else str(node.module)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_the_package_list_is_what_lies_on_disk() -> None:
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert sorted(settings["packages"]) == sorted(packages_on_disk())
    for package, folder in settings["package-dir"].items():
        assert packages_on_disk()[package] == CHECKOUT / folder


def test_every_package_is_importable_under_its_installed_name() -> None:
    names = sorted(packages_on_disk())
    program = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")


def test_arrows_between_rooms_point_down_only() -> None:
    wrong = []
    for room, package, file in modules():
        if room == "__init__":
            continue
        for name in imported(file, package):
            parts = name.split(".")
            target = parts[1] if parts[0] == "hxrd" and len(parts) > 1 else None
            if target in ROOMS and target not in ROOMS[room] | {room, "errors", "cores"}:
                wrong.append(f"{file.relative_to(CHECKOUT)} imports {name}")
            if room == "kernels" and parts[0] == "hxrd" and target != "kernels":
                wrong.append(f"{file.relative_to(CHECKOUT)} imports {name}")
            if name.split(".")[0] in TOP_LEVEL:
                wrong.append(f"{file.relative_to(CHECKOUT)} imports bare {name}")
    assert sorted(set(wrong)) == []


def test_every_room_is_in_the_table_of_arrows() -> None:
    assert {room for room, _, _ in modules()} - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    context = click.Context(hxrd, info_name="hxrd")
    command = hxrd.get_command(context, name)
    assert command is not None
    assert set(command.context_settings.get("help_option_names", [])) == {"-h", "--help"}
    text = command.get_help(click.Context(command, info_name=name, parent=context))
    assert "Example" in text
    assert f"hxrd {name}" in text.split("Example", 1)[1]


def documented(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Yield the public functions and methods that take arguments, with their docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node, ast.get_docstring(node) or ""


def test_numpydoc_sections_are_underlined() -> None:
    """A heading without its line is how numpydoc sections go unnoticed."""
    headings = ("Parameters", "Returns", "Raises", "Yields", "Notes", "References", "Examples")
    wrong = []
    for _, _, file in modules():
        for function, docstring in documented(ast.parse(file.read_text(encoding="utf-8"))):
            lines = docstring.splitlines()
            for line, following in zip(lines, [*lines[1:], ""], strict=False):
                if line in headings and following != "-" * len(line):
                    wrong.append(f"{file.relative_to(CHECKOUT)}: {function.name}: {line}")
    assert wrong == []


def test_functions_that_document_parameters_name_those_they_have() -> None:
    wrong = []
    for _, _, file in modules():
        for function, docstring in documented(ast.parse(file.read_text(encoding="utf-8"))):
            arguments = function.args
            own = {argument.arg for argument in arguments.posonlyargs + arguments.args + arguments.kwonlyargs}
            own |= {argument.arg for argument in (arguments.vararg, arguments.kwarg) if argument}
            for name in parameters(docstring) - own:
                wrong.append(f"{file.relative_to(CHECKOUT)}: {function.name} has no parameter {name}")
    assert wrong == []


def parameters(docstring: str) -> set[str]:
    """Return the names in the Parameters section of a numpydoc docstring."""
    lines = docstring.splitlines()
    if "Parameters" not in lines:
        return set()
    names: set[str] = set()
    for line in lines[lines.index("Parameters") + 2 :]:
        if line.startswith("---"):
            break
        if line and not line.startswith(" ") and " : " in line:
            names |= {name.strip().lstrip("*") for name in line.split(" : ")[0].split(",")}
    return names


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["simulate", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from hxrd.cli.main import main\n"
        f"code = main({arguments!r})\n"
        "print('imported:', *sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "hxrd" in done.stdout
    assert set(done.stderr.partition("imported:")[2].split()) & HEAVY == set()


def test_help_lists_every_command_of_the_table() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hxrd.cli.main", "-h"], capture_output=True, text=True, check=True
    )
    listed = {line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()}
    assert listed == set(COMMANDS)
