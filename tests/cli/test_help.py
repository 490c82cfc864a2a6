"""Help texts of the command line: parameters as the catalog states them, and old names that still work."""

from __future__ import annotations

from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from hiresfix.cli import app, keys
from hiresfix.models.catalog import MODELS
from hiresfix.models.param_help import help_text, range_text
from hiresfix.models.parameters import Param

PARAMS = {param.name: param for model in reversed(MODELS) for param in model.params if param.name != "image"}
OPTION_OF = {"scale_factor": "--scale", "num_inference_steps": "--steps", "output_format": "--format"}


def options() -> dict[str, Any]:
    command: Any = get_command(app)
    return {name: option for option in command.commands["upscale"].params for name in option.opts}


@pytest.mark.parametrize("param", PARAMS.values(), ids=PARAMS.keys())
def test_option_help_comes_from_catalog(param: Param) -> None:
    option = options()[OPTION_OF.get(param.name, "--" + param.name.replace("_", "-"))]
    if param.name == "output_format":  # its default depends on --output
        assert option.help == f"{range_text(param)} (default: that of --output, else {param.default})."
    else:
        assert option.help == help_text(param)


def test_help_text_states_range_and_default() -> None:
    param = Param(name="creativity", kind="number", help="How bold.", minimum=0, maximum=1.5, default=0.35)
    assert help_text(param) == "0 to 1.5 (default 0.35). How bold."
    choices = Param(name="content", kind="string", help="What it is.", choices=("photo", "anime"), default="photo")
    assert help_text(choices) == "photo, anime (default photo). What it is. Only for faithful-upscale."
    seed = Param(name="seed", kind="integer", help="Any number.", minimum=0, maximum=9, absent=(-1,))
    assert help_text(seed) == "Any number."


def test_signin_warns_and_acts_as_login_link(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str | None, float]] = []
    monkeypatch.setattr(keys, "login_link", lambda user, minutes: calls.append((user, minutes)))
    result = CliRunner().invoke(app, ["signin", "--user", "ann@example.com", "--minutes", "5"])
    assert (result.exit_code, calls) == (0, [("ann@example.com", 5.0)])
    assert result.stderr == "`hiresfix signin` is now `hiresfix login-link`. Use the new name.\n"
    assert "signin" not in CliRunner().invoke(app, ["--help"]).stdout
