"""A plan as text, as JSON and as a row of a table."""

from __future__ import annotations

from modality_forcing.chips import GIB
from modality_forcing.planning import hardware
from modality_forcing.planning.analysis import NOT_MODELED
from modality_forcing.planning.roofline import Roofline
from modality_forcing.planning.search import Plan, describe, min_tokens_per_chip
from modality_forcing.tree import JsonObject

COLUMNS = (
    *("config", "topology", "layout", "batch", "GiB a chip", "of"),
    *("TFLOP a step", "bound, ms", "MFU bound", "ICI, ms", "host GiB at save", "compile, s"),
)


def to_json(p: Plan) -> JsonObject:
    """Returns plain data; bytes are per chip, seconds and FLOPs of one step of all chips.

    The total of a chip is arguments + temporaries + output + code - alias.
    """
    chip = p.target.chip.devices  # jax devices in one
    return {
        "config": p.config.name,
        "topology": p.target.topology,
        "slices": p.target.slices,
        "chips": p.target.chips,
        "params": p.params,
        "tokens_per_step": p.tokens_per_step,
        "flops_per_step": p.flops,
        "bytes_per_chip": {
            "arguments": p.bytes.arguments * chip,
            "temporaries": p.bytes.temporaries * chip,
            "output": p.bytes.output * chip,
            "alias": p.bytes.alias * chip,
            "code": p.bytes.code * chip,
            "total": p.bytes.total * chip,
        },
        "hbm_bytes": int(p.target.chip.usable_bytes * chip),
        "fits": p.fits,
        "collectives": p.collectives,
        "kernels": p.kernels,
        "collective_warnings": p.collective_warnings,
        "compile_seconds": round(p.compile_seconds, 1),
        **p.bound_json(),
        "mfu_bound": p.mfu_bound,
        "batch": p.config.train.batch,
        "grad_accum_steps": p.config.train.grad_accum_steps,
        "micro_batch": p.micro_batch,
        "remat": p.config.model.remat,
        "preset": p.config.mesh.preset,
        "mesh": {
            "data": p.config.mesh.data,
            "fsdp": p.config.mesh.fsdp,
            "tensor": p.config.mesh.tensor,
        },
        "replicated_bytes": sum(p.replicated.values()),
        "host_bytes_at_save": p.host_bytes_at_save,
        "libtpu_init_args": hardware.libtpu_init_args(p.target.chip, p.target.slices),
        "not_modeled": NOT_MODELED,
    }


def to_text(p: Plan) -> str:
    """Returns the plan as text."""
    c, target = p.config, p.target

    def gib(size: float) -> str:
        return f"{p.chip_gib(size):.2f}"

    slices = f" x {target.slices} slices" if target.slices > 1 else ""
    fits = "fits" if p.fits else "does not fit"
    where = f"{target.topology}{slices}, {target.chips} chips, {target.hosts} hosts"
    mesh = f"mesh data {c.mesh.data}, fsdp {c.mesh.fsdp}, tensor {c.mesh.tensor}"
    batch = f"{c.train.batch} in {c.train.grad_accum_steps} micro-batches"
    replicated = ", ".join(list(p.replicated)[:3]) or "nothing"
    lines = [
        f"{c.name} on {where}: {fits}",
        f"  parameters      {p.params / 1e9:.3f} B",
        f"  layout          {describe(p)}; {mesh}",
        f"  batch           {batch}, {p.tokens_per_step:,} tokens",
        f"  analytic FLOPs  {p.flops / 1e12:,.1f} T a step",
        f"  GiB a chip      {gib(p.bytes.total)} of {gib(target.chip.usable_bytes)}:"
        f" arguments {gib(p.bytes.arguments)} (state {gib(p.state_bytes)}),"
        f" temporaries {gib(p.bytes.temporaries)}, output {gib(p.bytes.output)},"
        f" of it in place {gib(p.bytes.alias)}, code {gib(p.bytes.code)}",
        f"  host at save    {p.host_bytes_at_save / GIB:.1f} GiB of the state on each host",
        f"  not sharded     {sum(p.replicated.values()) / 2**20:.2f} MiB: {replicated}",
        f"  compile         {p.compile_seconds:.0f} s",
    ]
    if p.bound is None:
        return "\n".join([*lines, f"  too large: {too_much(p)}"])
    lines += [*_program_lines(p, p.bound), *p.bound.warnings]
    lines += [f"  warning         {line}" for line in p.collective_warnings]
    overrides = {
        "mesh.data": c.mesh.data,
        "mesh.fsdp": c.mesh.fsdp,
        "mesh.slices": target.slices,
        "mesh.preset": c.mesh.preset,
        "model.remat": c.model.remat,
        "train.batch": c.train.batch,
    }
    options = " ".join(f"--config.{key}={value}" for key, value in overrides.items())
    libtpu = hardware.libtpu_init_args(target.chip, target.slices)
    lines += [f"  run with        {options}", f"                  LIBTPU_INIT_ARGS='{libtpu}'"]
    tokens = p.tokens_per_step // target.chips // c.train.grad_accum_steps
    if tokens < (least := min_tokens_per_chip(target)):
        lines.append(
            f"  warning         {tokens} tokens a chip: below {least:.0f}, collectives take longer"
            " than products; take fewer chips or a larger batch"
        )
    return "\n".join([*lines, f"  {NOT_MODELED}"])


def _program_lines(p: Plan, bound: Roofline) -> list[str]:
    """The lines of what the compiled program moves and how long it takes at least, in ms."""
    return [
        *p.collective_lines("step"),
        f"  kernels         {', '.join(f'{n} x{k}' for n, k in p.kernels.items()) or 'none'}",
        f"  roofline        {1e3 * bound.seconds:.1f} ms a step at least:"
        f" instructions {1e3 * bound.serial_seconds:.1f},"
        f" all memory traffic {1e3 * bound.hbm_seconds:.1f},"
        f" collectives {1e3 * bound.ici_seconds:.1f}"
        f" (without overlap they add {1e3 * bound.exposed_seconds:.1f})",
        f"  MFU at most     {p.mfu_bound:.1%}",
    ]


def too_much(p: Plan) -> str:
    """Returns which part of a plan that does not fit is too large, and what to change."""
    state, rest = p.chip_gib(p.state_bytes), p.chip_gib(p.bytes.total - p.state_bytes)
    if p.state_bytes > p.target.chip.usable_bytes:
        return f"the state alone, {state:.1f} GiB a chip: shard it over more devices (mesh.fsdp)"
    gathered = " and gathered weights" if p.config.mesh.preset == "zero2" else ""
    sizes = f"activations{gathered}, {rest:.1f} GiB a chip beside {state:.1f} of state"
    return f"{sizes}: take a smaller batch, remat=full or mesh.preset=fsdp"


def row(p: Plan, name: str) -> str:
    """Returns a line of a Markdown table with `COLUMNS`."""
    bound = p.bound
    cells = [
        name,
        p.target.topology + (f" x{p.target.slices}" if p.target.slices > 1 else ""),
        describe(p),
        str(p.config.train.batch),
        f"{p.chip_gib(p.bytes.total):.1f}",
        f"{p.chip_gib(p.target.chip.usable_bytes):.1f}" + ("" if p.fits else " **does not fit**"),
        f"{p.flops / 1e12:,.0f}",
        f"{bound.seconds * 1e3:.0f}" if bound else "",
        f"{p.mfu_bound:.2f}" if bound else "",
        f"{bound.ici_seconds * 1e3:.0f}" if bound else "",
        f"{p.host_bytes_at_save / GIB:.1f}",
        f"{p.compile_seconds:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"
