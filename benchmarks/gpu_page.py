"""Write what `benchmarks/gpu.py` found as Markdown."""

from pathlib import Path

from .results import markdown


def page(report: dict) -> str:
    head = report["machine"]
    lines = [
        "# Performance on a GPU, measured",
        "",
        f"Made by `make gpu` on {head['device']}, Python {head['python']}, "
        + ", ".join(f"{name} {version}" for name, version in head["versions"].items())
        + ".",
        "",
        "## Values",
        "",
        "Relative errors of maps and gradients against float64 on a CPU. Allowed is twice a CPU's",
        "in the same dtype, and a few roundings.",
        "",
        "| network | maps | allowed | gradients | allowed | |",
        "|---|---|---|---|---|---|",
    ]
    for row in report.get("values", ()):
        (maps, gradients), (maps_bound, gradients_bound) = row["error"], row["allowed"]
        lines.append(
            f"| {row['name']} | {maps:.1e} | {maps_bound:.1e} | {gradients:.1e} | "
            f"{gradients_bound:.1e} | {'passed' if row['passed'] else 'FAILED'} |"
        )
    if report.get("depthwise"):
        lines += [
            "",
            "## Depthwise convolution and norm",
            "",
            "Milliseconds, and the share of the time that the GPU takes to copy the maps' bytes.",
            "",
            "| map | dtype | way | forward | share | backward | share |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in report["depthwise"]:
            share = row["share"]
            lines.append(
                f"| {'x'.join(map(str, row['shape']))} | {row['dtype']} | {row['way']} | "
                f"{row['forward']:.3f} | {share['forward']:.2f} | {row['backward']:.3f} | "
                f"{share['backward']:.2f} |"
            )
    if report.get("overfits"):
        lines += ["", "## Photographs learnt by heart", "", "| task | score | |", "|---|---|---|"]
        for task, scores in report["overfits"].items():
            lines += [f"| {task} | {name} | {value:.3f} |" for name, value in scores.items()]
    if report["notes"]:
        lines += ["", "## What did not finish", ""]
        lines += [f"- `--parts {part}`: {note}" for part, note in report["notes"].items()]
    if report.get("speed"):
        lines += ["", markdown(report["speed"], Path("precision.json")).replace("# ", "## ", 1)]
    return "\n".join(lines).rstrip("\n") + "\n"
