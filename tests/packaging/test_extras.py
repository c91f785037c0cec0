"""What the code imports is what the package asks for."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "adtr").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
BROUGHT = {
    "fsspec": "ray",
    "huggingface-hub": "timm",
    "pydantic": "fastapi",
    "scipy": "scikit-learn",
    "starlette": "fastapi",
    "torchvision": "timm",
    "typing-extensions": "torch",
}
"""What comes with something else, on which that cannot do without it."""
ELSEWHERE = {"anomalib", "datasets"}
"""What lives in an environment of its own, or is there because its user brings what it made."""


homes = cache(packages_distributions)
"""The distributions that a top-level module comes from."""


def name_of(requirement: str) -> str:
    return Requirement(requirement).name.lower().replace("_", "-")


def asked_for() -> set[str]:
    """Names of the distributions that the package and its extras, but not those of its makers, ask for."""
    extras = PROJECT["optional-dependencies"]
    lists = [PROJECT["dependencies"], *(extras[name] for name in extras if name not in ("docs", "test"))]
    return {name_of(requirement) for requirements in lists for requirement in requirements}


def imported(source: Path) -> set[str]:
    """Top-level modules of others that a module imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"adtr"}


@pytest.mark.parametrize("source", SOURCES, ids=[str(path.relative_to(ROOT / "src")) for path in SOURCES])
def test_what_is_imported_is_asked_for(source: Path) -> None:
    for module in imported(source) - ELSEWHERE:
        names = {BROUGHT.get(name_of(home), name_of(home)) for home in homes().get(module, [module])}
        assert names & asked_for(), module


def test_the_extras_that_messages_and_pages_name_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for file in [*SOURCES, *pages]:
        for names in re.findall(r"(?:adtr|\.)\[([a-z][a-z,-]*)\]'", file.read_text("utf-8")):
            assert set(names.split(",")) <= set(PROJECT["optional-dependencies"]), (file, names)


def own_extras(requirements: Iterable[str]) -> set[str]:
    """Extras of adtr that its requirements name."""
    return {extra for one in map(Requirement, requirements) if one.name == "adtr" for extra in one.extras}


def test_the_tests_have_every_extra() -> None:
    """But for those that `make test-all` adds, and anomalib, which wants an environment of its own."""
    extras = PROJECT["optional-dependencies"]
    wanted = own_extras(extras["test"])
    through = own_extras(requirement for name in wanted for requirement in extras[name])
    covered = {name_of(requirement) for name in wanted | through for requirement in extras[name]}
    for name in set(extras) - {"anomalib", "docs", "mlflow", "test", "wandb"}:
        assert {name_of(requirement) for requirement in extras[name]} - {"adtr"} <= covered, name
