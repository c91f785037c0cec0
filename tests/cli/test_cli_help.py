"""Help, version, presets, backbones: what the command line says of itself."""

import subprocess
import sys

import pytest

from adtr import __version__, list_presets
from adtr.cli import COMMANDS, main
from adtr.config import load_preset, settings

HEAVY = ("torch", "timm", "numpy", "PIL", "rich", "sklearn", "scipy", "lightning_fabric", "yaml")


def adtr(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


def imported_by(*arguments: str) -> set[str]:
    """The top-level modules that a command imports, as a process of its own."""
    code = (
        "import sys\nfrom adtr.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "finally:\n    print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"], ["fit", "nowhere", "-o", "x"]])
def test_nothing_heavy_is_imported_to_answer_fast(arguments: list[str]) -> None:
    modules = imported_by(*arguments)
    assert "click" in modules
    allowed = {"numpy", "PIL"} if "nowhere" in arguments else set()  # looking for images needs the decoder's suffixes
    assert not modules & (set(HEAVY) - allowed)


def test_a_model_is_described_without_torch(model: object) -> None:
    assert not imported_by("info", str(model)) & {"torch", "timm", "rich", "sklearn", "scipy"}


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert adtr(*arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, description in COMMANDS.items():
        assert f"  {name}" in out
        assert description in " ".join(out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert adtr(name, "--help") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: adtr {name} ")
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80


def test_the_help_of_fit_lists_every_field_in_a_section_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    adtr("fit", "--help")
    options, fields = capsys.readouterr().out.split("Configuration (overrides the preset and --config):")
    flat = " ".join(fields.split())
    for name, setting in settings().items():
        flag = f"--{name.replace('_', '-')} "
        assert flag in flat
        assert flag not in options
        # The wrapping of the help breaks words at their hyphens.
        assert setting.help.replace(" ", "").replace("-", "") in flat.replace(" ", "").replace("-", "")
    assert "--output" in options


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert adtr("--version") == 0
    assert capsys.readouterr().out == f"adtr {__version__}\n"


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert adtr("presets") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(list_presets())
    for name in list_presets():
        assert adtr("presets", name) == 0
        shown = capsys.readouterr().out.splitlines()
        config = load_preset(name)
        sections = dict.fromkeys(setting.section for setting in settings().values())
        assert [line for line in shown if line.startswith("[")] == [f"[{section}]" for section in sections]
        values = {line.split()[0]: line.split()[1] for line in shown if line.startswith("  ")}
        height, width = config.embedding.image_size
        assert values["image_size"] == f"{height}x{width}"
        assert values["epochs"] == str(config.training.epochs)
        assert set(values) == set(settings())


def test_backbones_are_listed_with_their_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert adtr("backbones") == 0
    lines = capsys.readouterr().out.splitlines()
    default = next(line for line in lines if line.startswith("tf_efficientnet_lite2 "))
    assert default.endswith("[installed]")
    assert any(line.startswith("tf_efficientnet_b4.aa_in1k ") and "hub" in line for line in lines)
