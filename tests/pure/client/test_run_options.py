"""The table of options agrees with the submission that its values go into."""

from __future__ import annotations

import msgspec

from sshgrid.client import run_options
from sshgrid.client.run_options import OPTIONS, options_of, submission_fields
from sshgrid.model import Limits, OnDisconnect, OnHostLoss, Program, Submission


def test_the_defaults_of_fields_are_those_of_the_submission() -> None:
    own, limits = submission_fields(run_options.defaults_of("run"))
    program = Program("c", "x.c", (), limits=Limits(**limits))
    assert Submission(program, "x.c", **own) == Submission(Program("c", "x.c", ()), "x.c")


def test_each_choice_is_a_value_of_the_model() -> None:
    choices = {option.name: option.choices for option in OPTIONS if option.kind == run_options.CHOICE}
    assert choices == {"on_host_loss": tuple(OnHostLoss), "on_disconnect": tuple(OnDisconnect)}
    defaults = run_options.defaults_of("run")
    fields = {field.name: field.default for field in msgspec.structs.fields(Submission)}
    assert all(defaults[name] == fields[name] for name in choices)


def test_names_and_flags_are_unique_for_each_command() -> None:
    for verb in ("run", "sweep"):
        options = list(options_of(verb))
        assert len({option.name for option in options}) == len(options)
        flags = [flag for option in options for flag in option.flags]
        assert len(set(flags)) == len(flags)


def test_each_option_has_help_that_is_a_sentence() -> None:
    for option in (*OPTIONS, *run_options.GLOBAL_OPTIONS):
        for text in filter(None, option.help.values()):
            assert text[0].isupper()
            assert text.endswith(".") or ": " in text
