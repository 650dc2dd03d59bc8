"""`mforce export`: options that go together, and what an export is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from modality_forcing.errors import UserError
from modality_forcing.export import job, program
from modality_forcing.export.hub import Repository
from tests.runs import Command, refused


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """Replaces the exports and the hub by stubs; returns what was asked of them, in order."""
    made: list[tuple] = []

    def of_weights(source, out, kind, **how):
        made.append(("weights", source, kind, how))
        return out

    def of_program(source, out, **how):
        made.append(("program", source, how))
        return out

    def push(repository, folder):
        made.append(("push", repository, folder))
        return "https://hub/owner/name"

    monkeypatch.setattr(job, "export", of_weights)
    monkeypatch.setattr(program, "export", of_program)
    monkeypatch.setattr(Repository, "check", lambda *of: made.append(("check", *of)))
    monkeypatch.setattr(Repository, "push", push)
    return made


PLAIN = {"layout": "", "dtype": "bfloat16", "adapter": False, "license": ""}


@pytest.mark.parametrize(
    ("options", "kind", "changed"),
    [
        ((), "orbax", {}),
        (("--format=safetensors", "--license=MIT"), "safetensors", {"license": "MIT"}),
        (("--adapter",), "safetensors", {"adapter": True}),
        (("--layout=bfl",), "orbax", {"layout": "bfl"}),
        (("--layout=bfl", "--dtype=float32"), "orbax", {"layout": "bfl", "dtype": "float32"}),
    ],
)
def test_weights_are_exported_as_the_options_say(calls, mforce: Command, options, kind, changed):
    done = mforce("export", "--checkpoint=runs/mf", "--out=out", *options)
    assert (done.code, done.out) == (0, "out\n"), done.err
    assert calls == [("weights", Path("runs/mf"), kind, PLAIN | changed)]


def test_program_gets_its_own_options(calls, mforce: Command):
    asked = ("--format=stablehlo", "--steps=3", "--size=48x32", "--autoencoder=flux2:a")
    done = mforce("export", "--checkpoint=runs/mf", "--out=out", *asked)
    assert (done.code, done.out) == (0, "out\n"), done.err
    # Rows come first.
    how = {"steps": 3, "size": (32, 48), "text_encoder": "", "autoencoder": "flux2:a"}
    assert calls == [("program", Path("runs/mf"), how | {"license": ""})]


def test_repository_is_checked_before_the_export_and_named_after_it(calls, mforce: Command):
    pushed = ("--push-to-hub=owner/name", "--private", "--revision=next")
    done = mforce("export", "--checkpoint=runs/mf", "--out=out", *pushed)
    assert (done.code, done.out) == (0, "out\nhttps://hub/owner/name\n"), done.err
    assert [call[0] for call in calls] == ["check", "weights", "push"]
    repository = Repository("owner/name", private=True, revision="next")
    assert calls[0] == ("check", repository, Path("out")) and calls[2][1] == repository


def test_nothing_is_exported_for_a_repository_that_is_refused(calls, mforce: Command, monkeypatch):
    def refuse(*_):
        raise UserError("cannot be reached on the hub")

    monkeypatch.setattr(Repository, "check", refuse)
    done = mforce("export", "--checkpoint=runs/mf", "--out=out", "--push-to-hub=owner/name")
    refused(done, "cannot be reached on the hub")
    assert calls == [] and done.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--private"], "--private is for --push-to-hub; name the repository"),
        (["--revision=next"], "--revision is for --push-to-hub; name the repository"),
        (["--layout=bfl", "--format=orbax"], "--layout and --format are two kinds of files"),
        (["--dtype=float32"], "--dtype needs --layout; leave it out"),
        (["--adapter", "--layout=bfl"], "--adapter has no --layout; leave one of them out"),
        (["--adapter", "--format=orbax"], "--adapter is written as safetensors; leave --for"),
        (["--format=stablehlo", "--adapter"], "--adapter cannot be exported as stablehlo"),
        (["--steps=2"], "--steps is for --format=stablehlo; leave it out"),
        (["--size=512", "--format=orbax"], "--size is for --format=stablehlo"),
        (["--text-encoder=umt5:x"], "--text-encoder is for --format=stablehlo"),
        (["--layout=bfl", "--autoencoder=flux2:x"], "--autoencoder is for --format=stablehlo"),
    ],
)
def test_options_that_do_not_go_together(calls, mforce: Command, options, message):
    refused(mforce("export", "--checkpoint=c", "--out=out", *options), message)
    assert calls == []
