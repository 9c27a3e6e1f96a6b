"""Compile the crop kernel for a Hopper GPU, on any machine, and count its instructions: python -m benchmarks.crop_kernel

Writes results/crop_kernel.json: registers, spills, and instructions for each value of the output.
"""

import re
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.shared.files import write_json

RECORDED = Path(__file__).parent / "results" / "crop_kernel.json"
HOPPER, WARP = 90, 32
LABEL = re.compile(r"^\s*(\.L_x_\d+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Z0-9_.]*)(.*)")


def main() -> None:
    counts = compile_for_hopper(crop=224)
    write_json(RECORDED, counts)
    print("\n".join(f"{name}: {value}" for name, value in counts.items()))


def compile_for_hopper(crop: int) -> dict[str, Any]:
    """Triton to sm_90 and back to assembly, by the tools in Triton's own wheel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from stages.shared import crop_kernel as kernel

    constants = kernel.launch_constants(crop)
    types = {
        "pixels": "*u8", "index": "*i64", "boxes": "*i64", "flips": "*i1", "scale": "*fp32", "shift": "*fp32",
        "images": "*bf16", "height": "i32", "width": "i32",
    }  # fmt: skip
    aligned = {(list(types).index(name),): [["tt.divisibility", 16]] for name in ("pixels", "scale", "shift", "images")}
    source = ASTSource(
        kernel._crop_rows, {**types, **dict.fromkeys(constants, "constexpr")}, constexprs=constants, attrs=aligned
    )
    num_warps = kernel.num_warps(constants["columns"])
    made = triton.compile(source, GPUTarget("cuda", HOPPER, WARP), {"num_warps": num_warps, "enable_fp_fusion": True})
    usage, sass = disassemble(Path(triton.__file__).parent / "backends" / "nvidia" / "bin", made.asm["cubin"])
    values = 3 * constants["columns"] // (num_warps * WARP)  # of a thread and row
    return {
        "triton": version("triton"),
        "target": f"sm_{HOPPER}",
        "crop": crop,
        "registers": usage["REG"],
        "stack_bytes": usage["STACK"],
        "local_bytes": usage["LOCAL"],
        **count_instructions(sass, values, constants["rows"]),
    }


def disassemble(tools: Path, cubin: bytes) -> tuple[dict[str, int], str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, sass = (
            subprocess.run([tools / tool, option, path], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    line = next(line for line in usage.splitlines() if "REG:" in line)
    return {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", line)}, sass


def count_instructions(sass: str, values: int, rows: int) -> dict[str, Any]:
    """Instructions for each of the `values` that a thread writes in a row, `rows` rows a program.

    ptxas writes the taps' code several times, for four, two and one tap. A tap counts as its costliest copy; of the code
    around the copies every instruction counts, executed or not: an upper estimate.
    """
    names, loops = parse(sass)
    holding = sorted(loop for loop in ((end - start + 1, start, end) for start, end in loops) if loads(names, loop))
    (down, *inside), (row, *_) = holding[-2:]  # the loops over source rows and over output rows; the others are of taps
    costs = [length * values / loads(names, (length, *place)) for length, *place in holding[:-2]]  # of a tap
    copies = loads(names, (down, *inside)) / values
    around_taps, around_rows = down - copies * min(costs), row - down + (len(names) - row) / rows
    return {
        "instructions": len(names),
        "instructions_per_tap_and_value": round(max(costs) / values, 1),
        "instructions_per_value": {
            f"{n} x {n} taps": round((n * (around_taps + n * max(costs)) + around_rows) / values) for n in (2, 3, 5)
        },
    }


def parse(sass: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The instructions' names, and the loops: from the target of a backward branch to the branch."""
    names: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in sass.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(names)
        elif found := INSTRUCTION.search(line):
            target = re.search(r"(\.L_x_\d+)", found[2])
            if found[1].startswith("BRA") and target and target[1] in labels and labels[target[1]] < len(names):
                loops.append((labels[target[1]], len(names)))
            names.append(found[1])
    return names, loops


def loads(names: list[str], loop: tuple[int, ...]) -> int:
    """Reads of source pixels in a loop, (length, first, last)."""
    return sum(name.startswith("LDG.E.U8") for name in names[loop[1] : loop[2] + 1])


if __name__ == "__main__":
    main()
