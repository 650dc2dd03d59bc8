"""The page of `mforce app`: tabs of Gradio components around `app.actions`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fastapi
import gradio as gr
from gradio import themes
from gradio.components import Component

from modality_forcing.app import actions, uploads, widgets
from modality_forcing.app import settings as choices
from modality_forcing.app.actions import Answer
from modality_forcing.app.examples import Example
from modality_forcing.app.sessions import Sessions
from modality_forcing.inference.pipeline import Pipeline

_WAITING = 32  # requests; more are asked to come back
_CHECK_FILES, _FILE_AGE = 300, 6900  # seconds, two hours in all; examples stay
_CSS = """
.gradio-container {max-width: 1200px !important}
.shown img {image-rendering: pixelated; object-fit: contain}
[id$=_files] .label-clear-button {display: none}
@media (max-width: 640px) {
  .tab-container button {padding: 0 7px !important; font-size: 13px !important}
}
"""
_Part = str | list[str] | None  # of an answer: the path of a file, several, or none


@dataclass(frozen=True)
class Page:
    """What the page is made for.

    has_depth, has_normals: whether the model generates them. about: a line on the checkpoint.
    """

    model: Pipeline
    sessions: Sessions
    examples: Sequence[Example]
    has_depth: bool
    has_normals: bool
    about: str
    max_bytes: int

    def new_folder(self, request: gr.Request) -> Path:
        """Returns an empty folder for the answer to a request."""
        return self.sessions.new_folder(request.session_hash or "")


def build(page: Page) -> gr.Blocks:
    """Returns the page, not yet served."""
    with gr.Blocks(
        title="Modality Forcing", analytics_enabled=False, delete_cache=(_CHECK_FILES, _FILE_AGE)
    ) as blocks:
        megabytes, megapixels = page.max_bytes // 10**6, uploads.MAX_PIXELS // 10**6
        gr.Markdown(
            f"# Modality Forcing\n{page.about} "
            "The first image of each kind takes longer, as its program is compiled then."
        )
        if page.has_depth:
            with gr.Tabs() as tabs:
                with gr.Tab("Image → depth", id="i2d"):
                    send = _image_tab(page)
                with gr.Tab("Depth → image", id="d2i"):
                    depth_file = _depth_tab(page)
                if page.has_normals:
                    with gr.Tab("Image → normals", id="i2n"):
                        _normals_tab(page)
                with gr.Tab("Text → all" if page.has_normals else "Text → both", id="joint"):
                    _text_tab(page)
            send(depth_file, tabs)
        else:
            _text_tab(page)
        gr.Markdown(
            f"Files have at most {megabytes} MB and {megapixels} million pixels. "
            "Results are deleted when you leave the page, uploads within two hours."
        )
        blocks.unload(_closing(page.sessions))
    blocks.queue(max_size=_WAITING, default_concurrency_limit=1, api_open=False)
    # Gradio checks the paths that a request names only if it believes to be launched by itself.
    blocks.has_launched = True
    # A request made by hand may hold anything; Gradio prints a traceback of what it cannot read.
    blocks.preprocess_data = widgets.refusing_others(blocks.preprocess_data)
    return blocks


def application(page: Page) -> Callable[..., Awaitable[None]]:
    """Returns the page as an ASGI application that reads no file outside its sessions' folder."""
    theme = themes.Base(
        primary_hue="indigo",
        font=["system-ui", "sans-serif"],  # the browser's own: nothing is loaded from elsewhere
        font_mono=["ui-monospace", "monospace"],
    ).set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
    )
    return gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build(page),
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=page.max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=_CSS,
    )


def _upload(page: Page) -> gr.Image:
    image = gr.Image(label="Image", type="filepath", sources=["upload", "clipboard"], height=320)
    widgets.accept_uploads(image, page.sessions.root)
    return image


def _image_tab(page: Page) -> Callable[[gr.File, gr.Tabs], None]:
    """Fills the tab; returns what connects it to the file of the next one."""
    with gr.Row(equal_height=False):
        with gr.Column():
            image = _upload(page)
            ensemble = gr.Slider(
                *(1, choices.MAX_ENSEMBLE, 1),
                step=1,
                label="Ensemble",
                info="Samples that are averaged; from 2 on their spread is shown.",
            )
            names, rest = widgets.settings(
                *("condition_guidance", "fov", "jump", "steps", "seed", "colormap")
            )
            with gr.Accordion("Meters from measurements", open=False):
                measured = gr.File(
                    label="Table (.csv) with columns x, y, depth: pixels, meters",
                    type="filepath",
                    height=140,
                    elem_id="i2d_measured",
                )
                widgets.accept_uploads(measured, page.sessions.root)
            button = gr.Button("Estimate depth", variant="primary", elem_id="i2d_run")
            _examples(page, ["image"], [image], images=True)
        with gr.Column():
            depth = widgets.shown("Depth", "i2d_depth")
            note = gr.Markdown(visible=False)
            uncertainty = widgets.shown("Uncertainty", "i2d_uncertainty", visible=False)
            scene, files = widgets.scene("i2d_scene"), widgets.downloads("i2d_files")
            reuse = gr.Button("Use this depth for an image", size="sm", visible=False)

    def run(
        request: gr.Request,
        image: str | None,
        measured: str | None,
        ensemble: object,
        *rest: object,
    ) -> tuple[object, ...]:
        settings = widgets.read_settings(names, rest, ensemble=ensemble)
        folder = page.new_folder(request)
        made = actions.image_to_depth(
            page.model, _path(image), folder, settings, measured=_path(measured)
        )
        spread = gr.update(value=_text(made.uncertainty), visible=made.uncertainty is not None)
        shown = _parts(made, "depth"), _parts(made, "scene", "files")
        line = gr.update(value=made.note, visible=bool(made.note))
        return (*shown[0], line, spread, *shown[1], gr.update(visible=True))

    inputs = [image, measured, widgets.checked_by_settings(ensemble), *rest]
    outputs = [depth, note, uncertainty, scene, files, reuse]
    widgets.on_click(button, run, inputs, outputs)

    def connect(depth_file: gr.File, tabs: gr.Tabs) -> None:
        def take(made: list[str] | None) -> tuple[str | None, gr.Tabs]:
            return (made[0] if made else None), gr.Tabs(selected="d2i")

        reuse.click(take, [files], [depth_file, tabs], api_visibility="private")

    widgets.accept_uploads(files, page.sessions.root)
    return connect


def _depth_tab(page: Page) -> gr.File:
    with gr.Row(equal_height=False):
        with gr.Column():
            file = gr.File(
                label="Depth map: .npy, .exr or 16-bit PNG, 0 where unknown",
                type="filepath",
                height=140,
                elem_id="d2i_file",
            )
            widgets.accept_uploads(file, page.sessions.root)
            cond = widgets.shown("Given depth", "d2i_given", height=220)
            caption = gr.Textbox(label="Caption", placeholder="what the image shows")
            strength = gr.Slider(
                *(0, 1, 1),
                step=0.05,
                label="Strength",
                info="1: follow the depth exactly. Toward 0 it is a hint.",
            )
            names, rest = widgets.settings(
                *("guidance", "condition_guidance", "fov", "jump", "steps", "seed")
            )
            button = gr.Button("Generate image", variant="primary", elem_id="d2i_run")
            _examples(page, ["depth", "caption"], [file, caption], images=True)
        with gr.Column():
            image = widgets.shown("Image", "d2i_image")
            scene, files = widgets.scene("d2i_scene"), widgets.downloads("d2i_files")

    def run(
        request: gr.Request, file: str | None, caption: str | None, strength: object, *rest: object
    ) -> tuple[_Part, ...]:
        settings = widgets.read_settings(names, rest, strength=strength)
        folder = page.new_folder(request)
        made = actions.depth_to_image(page.model, _path(file), caption, folder, settings)
        return _parts(made, "image", "scene", "files")

    def show(request: gr.Request, file: str | None) -> str | None:
        return _text(actions.preview(_path(file), page.new_folder(request)))

    inputs = [file, caption, widgets.checked_by_settings(strength), *rest]
    widgets.on_click(button, run, inputs, [image, scene, files])
    file.change(
        widgets.in_one_line(show),
        [file],
        [cond],
        concurrency_limit=1,
        api_visibility="private",
        show_progress="hidden",
    )
    return file


def _normals_tab(page: Page) -> None:
    with gr.Row(equal_height=False):
        with gr.Column():
            image = _upload(page)
            names, rest = widgets.settings("condition_guidance", "steps", "seed")
            button = gr.Button("Estimate normals", variant="primary", elem_id="i2n_run")
            _examples(page, ["image"], [image], images=True)
        with gr.Column():
            normals, files = widgets.shown("Normals", "i2n_normals"), widgets.downloads("i2n_files")

    def run(request: gr.Request, image: str | None, *rest: object) -> tuple[_Part, ...]:
        settings = widgets.read_settings(names, rest)
        folder = page.new_folder(request)
        made = actions.image_to_normals(page.model, _path(image), folder, settings)
        return _parts(made, "normals", "files")

    widgets.on_click(button, run, [image, *rest], [normals, files])


def _text_tab(page: Page) -> None:
    with gr.Row(equal_height=False):
        with gr.Column():
            caption = gr.Textbox(label="Caption", lines=2, elem_id="text_caption")
            tilt = gr.Slider(
                *(-choices.MAX_TILT, choices.MAX_TILT, 0),
                step=0.5,
                label="Trajectory",
                info="Below 0 the depth is made first, above 0 the image, at 0 both together.",
                visible=page.has_depth,
            )
            refine = gr.Checkbox(
                label="Refine", info="Estimate depth again from the image.", visible=page.has_depth
            )
            shared = ("guidance", "steps", "seed")
            of_depth = ("fov", "jump", "colormap") if page.has_depth else ()
            # Generated depth is rough: at the usual tolerance few points would be left.
            names, rest = widgets.settings(*shared, *of_depth, jump=choices.KEEP_ALL)
            button = gr.Button("Generate", variant="primary", elem_id="text_run")
            _examples(page, ["caption"], [caption], images=False)
        with gr.Column():
            image = widgets.shown("Image", "text_image")
            depth = widgets.shown("Depth", "text_depth", visible=page.has_depth)
            normals = widgets.shown("Normals", "text_normals", visible=page.has_normals)
            scene = widgets.scene("text_scene", visible=page.has_depth)
            files = widgets.downloads("text_files")

    def run(
        request: gr.Request, caption: str | None, tilt: object, refine: bool, *rest: object
    ) -> tuple[_Part, ...]:
        settings = widgets.read_settings(names, rest, log2_alpha=tilt, refine=refine)
        folder = page.new_folder(request)
        made = actions.generate(page.model, caption, folder, settings, has_depth=page.has_depth)
        return _parts(made, "image", "depth", "normals", "scene", "files")

    inputs = [caption, widgets.checked_by_settings(tilt), refine, *rest]
    widgets.on_click(button, run, inputs, [image, depth, normals, scene, files])


def _examples(
    page: Page, names: Sequence[str], outputs: Sequence[Component], *, images: bool
) -> None:
    """Adds examples whose click fills components with their fields of those names.

    `gradio.Examples` would replace the components, and with them what `widgets.accept_uploads` set.
    """
    if not page.examples:
        return
    shown = gr.Image(visible=False) if images else gr.Textbox(visible=False)
    of = "" if images else "captions of "
    chosen = gr.Dataset(
        label=f"Examples: {of}rendered scenes, the only ones that the demo's checkpoint knows",
        components=[shown],
        samples=[[str(one.image) if images else one.caption] for one in page.examples],
        type="index",
        elem_classes="examples",
    )

    def take(index: int) -> str | list[str]:
        values = [str(getattr(page.examples[index], name)) for name in names]
        return values[0] if len(values) == 1 else values

    chosen.click(
        take,
        [chosen],
        list(outputs),
        concurrency_limit=None,
        api_visibility="private",
        show_progress="hidden",
    )


def _closing(sessions: Sessions) -> Callable[[gr.Request], None]:
    def close(request: gr.Request) -> None:
        sessions.close(request.session_hash or "")

    return close


def _parts(made: Answer, *names: str) -> tuple[_Part, ...]:
    values = {**vars(made), "files": [str(path) for path in made.files]}
    return tuple(values[name] if name == "files" else _text(values[name]) for name in names)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
