"""`mforce app`: a web page to try a checkpoint on."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from modality_forcing import compilation_cache
from modality_forcing.commands.arguments import add_network, positive_int
from modality_forcing.errors import UserError
from modality_forcing.progress import print_stderr

if TYPE_CHECKING:
    from modality_forcing.app.guard import Guard

PORT = 7860
EXAMPLES = """examples:
  mforce app --checkpoint runs/demo/forcing
  mforce app --checkpoint runs/mf --port 8080
  ssh -L 7860:localhost:7860 HOST     # and mforce app there: the page of a remote machine

Needs Gradio: pip install 'modality_forcing[app]'"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add_network(parser)
    host = "address to listen on (%(default)s); any address but localhost lets other machines in, "
    host += "without a password"
    add("--host", default="127.0.0.1", help=host)
    add("--port", type=port_number, default=PORT, help="0 for any free one (%(default)s)")
    megabytes = "largest file that may be uploaded (%(default)s)"
    add("--max-upload-mb", type=positive_int, default=50, metavar="MB", help=megabytes)


def port_number(text: str) -> int:
    """Parses the number of a port, or 0."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give 0 to 65535")
    return int(text)


def main(options: argparse.Namespace) -> None:
    """Serves the page until a signal ends it.

    Raises UserError for a missing package, a port that is taken and a checkpoint that cannot be
    read, each before the page answers.
    """
    if importlib.util.find_spec("gradio") is None:
        hint = "pip install 'modality_forcing[app]'"
        raise UserError("the page needs the package gradio", hint=hint)
    from modality_forcing.app import server

    with (
        server.listen(options.host, options.port) as listening,
        tempfile.TemporaryDirectory(prefix="mforce-app-", ignore_cleanup_errors=True) as folder,
        compilation_cache.enabled(),
    ):
        is_open = not server.is_loopback(listening)
        with server.serving(_page(options, Path(folder), any_host=is_open), listening):
            if is_open:
                print_stderr(f"{options.host}: all who reach this machine can use the page")
            print(f"{server.address_of(listening)} (Ctrl-C ends it)", flush=True)
            threading.Event().wait()


def _page(options: argparse.Namespace, folder: Path, *, any_host: bool) -> Guard:
    from modality_forcing.app import examples, server
    from modality_forcing.app.guard import Guard
    from modality_forcing.app.sessions import Sessions
    from modality_forcing.inference.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(
        options.checkpoint,
        adapter=options.adapter,
        int8=options.int8,
        text_encoder=options.text_encoder,
        autoencoder=options.autoencoder,
    )
    server.quiet_environment(folder)
    from modality_forcing.app import page  # Gradio reads the environment as it is imported

    sessions = Sessions(folder)
    max_bytes = options.max_upload_mb * 10**6
    made = page.application(
        page.Page(
            model=pipeline,
            sessions=sessions,
            examples=examples.write(folder / "examples", pipeline.generator.config.data.world),
            has_depth="depth" in pipeline.generator.modalities,
            has_normals="normals" in pipeline.generator.modalities,
            about=f"Checkpoint: `{_name(options.checkpoint)}`.",
            max_bytes=max_bytes,
        )
    )
    return Guard(made, folder, max_bytes, any_host=any_host, is_full=sessions.is_full)


def _name(checkpoint: Path) -> str:
    """Returns the last two parts of where a checkpoint is, for all who see the page."""
    return "/".join(checkpoint.parts[-2:]).lstrip("/")
