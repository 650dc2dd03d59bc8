"""A plan in words, as JSON and as a row of a table."""

from __future__ import annotations

from typing import Any

from modality_forcing.planning import hardware
from modality_forcing.planning.search import GIB, NOT_MODELED, Plan, describe, min_tokens_per_chip

COLUMNS = (
    *(
        "config",
        "topology",
        "layout",
        "batch",
        "GiB a chip",
        "of",
        "TFLOP a step",
        "bound, ms",
        "MFU bound",
    ),
    *("ICI, ms", "host GiB at save", "compile, s"),
)


def to_json(p: Plan) -> dict[str, Any]:
    """Returns plain data; bytes are per chip, seconds and FLOPs of one step of all chips."""
    chip = p.target.chip.devices  # jax devices in one
    bound = p.roofline
    return {
        "config": p.config.name,
        "topology": p.target.topology,
        "slices": p.target.slices,
        "chips": p.target.chips,
        "params": p.params,
        "tokens_per_step": p.tokens_per_step,
        "flops_per_step": p.flops_per_step,
        "bytes_per_chip": {
            "arguments": p.bytes.arguments * chip,
            "temporaries": p.bytes.temporaries * chip,
            "output": p.bytes.output * chip,
            "alias": p.bytes.alias * chip,
            "total": p.bytes.total * chip,
        },
        "hbm_bytes": int(p.target.chip.usable_bytes * chip),
        "fits": p.fits,
        "collectives": p.collectives,
        "kernels": p.kernels,
        "collective_warnings": p.collective_warnings,
        "compile_seconds": round(p.compile_seconds, 1),
        "roofline_seconds": bound.seconds if bound else None,
        "exposed_collective_seconds": bound.exposed_seconds if bound else None,
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
    """Returns what a person reads before booking."""
    m, c = p.target.chip.devices, p.config
    gib = lambda n: f"{n * m / GIB:.2f}"
    slices = f" x {p.target.slices} slices" if p.target.slices > 1 else ""
    lines = [
        f"{c.name} on {p.target.topology}{slices}, {p.target.chips} chips, {p.target.hosts} hosts: {'fits' if p.fits else 'does not fit'}",
        f"  parameters      {p.params / 1e9:.3f} B",
        f"  layout          {describe(p)}; mesh data {c.mesh.data}, fsdp {c.mesh.fsdp}, tensor {c.mesh.tensor}",
        f"  batch           {c.train.batch} in {c.train.grad_accum_steps} micro-batches, {p.tokens_per_step:,} tokens",
        f"  analytic FLOPs  {p.flops_per_step / 1e12:,.1f} T a step",
        f"  GiB a chip      {gib(p.bytes.total)} of {p.target.chip.usable_bytes * m / GIB:.2f}: arguments {gib(p.bytes.arguments)}"
        f" (state {gib(p.state_bytes)}), temporaries {gib(p.bytes.temporaries)}, output {gib(p.bytes.output)},"
        f" of it in place {gib(p.bytes.alias)}",
        f"  host at save    {p.host_bytes_at_save / GIB:.1f} GiB of the state on each host",
        f"  not sharded     {sum(p.replicated.values()) / 2**20:.2f} MiB: {', '.join(list(p.replicated)[:3]) or 'nothing'}",
        f"  compile         {p.compile_seconds:.0f} s",
    ]
    if p.roofline is None:
        return "\n".join([*lines, f"  too large: {too_much(p)}"])
    bound = p.roofline
    lines += [
        f"  {kind:15} {v['executions']} a step, {v['bytes'] / GIB:.2f} GiB a device"
        for kind, v in p.collectives.items()
    ]
    lines += [
        f"  kernels         {', '.join(f'{n} x{k}' for n, k in p.kernels.items()) or 'none'}",
        f"  roofline        {bound.seconds * 1e3:.1f} ms a step at least: instructions {bound.serial_seconds * 1e3:.1f},"
        f" all memory traffic {bound.hbm_seconds * 1e3:.1f}, collectives {bound.ici_seconds * 1e3:.1f}"
        f" (if they do not overlap, {bound.exposed_seconds * 1e3:.1f} come on top)",
        f"  MFU at most     {p.mfu_bound:.1%}",
    ]
    lines += [f"  warning         {line}" for line in p.collective_warnings]
    lines += [
        f"  run with        --config.mesh.data={c.mesh.data} --config.mesh.fsdp={c.mesh.fsdp} --config.mesh.slices={p.target.slices}"
        f" --config.mesh.preset={c.mesh.preset} --config.model.remat={c.model.remat} --config.train.batch={c.train.batch}",
        f"                  LIBTPU_INIT_ARGS='{hardware.libtpu_init_args(p.target.chip, p.target.slices)}'",
    ]
    tokens = p.tokens_per_step // p.target.chips // p.config.train.grad_accum_steps
    if tokens < min_tokens_per_chip(p.target):
        lines.append(
            f"  warning         {tokens} tokens a chip: below {min_tokens_per_chip(p.target):.0f} collectives take longer than products;"
            " take fewer chips or a larger batch"
        )
    return "\n".join([*lines, f"  {NOT_MODELED}"])


def too_much(p: Plan) -> str:
    """Returns which part of a plan that does not fit is to blame."""
    m, usable = p.target.chip.devices, p.target.chip.usable_bytes
    state, rest = p.state_bytes * m / GIB, (p.bytes.total - p.state_bytes) * m / GIB
    if p.state_bytes > usable:
        return f"the state alone, {state:.1f} GiB a chip: shard it over more devices (mesh.fsdp)"
    whose = "activations and gathered weights" if p.config.mesh.preset == "zero2" else "activations"
    return f"{whose}, {rest:.1f} GiB a chip beside {state:.1f} of state: a smaller batch, remat=full or mesh.preset=fsdp"


def row(p: Plan, name: str) -> str:
    """Returns a line of a Markdown table with `COLUMNS`."""
    m, bound = p.target.chip.devices, p.roofline
    cells = [
        name,
        p.target.topology + (f" x{p.target.slices}" if p.target.slices > 1 else ""),
        describe(p),
        str(p.config.train.batch),
        f"{p.bytes.total * m / GIB:.1f}",
        f"{p.target.chip.usable_bytes * m / GIB:.1f}" + ("" if p.fits else " **does not fit**"),
        f"{p.flops_per_step / 1e12:,.0f}",
        f"{bound.seconds * 1e3:.0f}" if bound else "",
        f"{p.mfu_bound:.2f}" if bound else "",
        f"{bound.ici_seconds * 1e3:.0f}" if bound else "",
        f"{p.host_bytes_at_save / GIB:.1f}",
        f"{p.compile_seconds:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"
