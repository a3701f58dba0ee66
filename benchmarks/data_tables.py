"""Write what `benchmarks/data_path.py` measured as Markdown."""

from math import ceil

# Images a second that a GPU may train on; what one takes is known only where it was measured.
RATES = {"detection": (5, 10, 20), "segmentation": (10, 20, 40), "classification": (400, 800, 1600)}
KINDS: dict[str, str] = dict.fromkeys(("LoadImage", "LoadRGB", "LoadImageFromFile"), "decoding")
KINDS |= dict.fromkeys(("LoadAnnotations", "LoadPanopticAnnotations"), "annotations")


def markdown(report: dict) -> str:
    head = report["machine"]
    kind = "photographs of COCO" if report["photographs"] else "drawn images of 640x640"
    versions = ", ".join(
        f"{name} {head['versions'][name]}"
        for name in ("torch", "torchvision", "timm", "onedl-mmdetection", "onedl-mmsegmentation")
    )
    lines = [
        "# The data path, measured",
        "",
        f"Made by `python -m benchmarks.data_path --data DATA --images {report['images']} "
        "--out docs/data-path`: CPU",
        f"milliseconds of one DataLoader worker for an image, over {report['images']} {kind}, from",
        "the file to the batch in shared memory. They are CPU time, which other processes on the",
        "machine disturb little; a worker that also waits for a disk makes fewer images.",
        "",
        f"{head['device']}; processor flags: {', '.join(head['flags']) or 'not known'}. "
        f"Python {head['python']}, {versions}.",
        "",
        "| recipe | ms | decoding | annotations | the rest | images/s a worker |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["recipes"]:
        parts: dict[str, float] = dict.fromkeys(("decoding", "annotations"), 0.0)
        for name, ms in row["parts"].items():
            if name in KINDS:
                parts[KINDS[name]] += ms
        rest = row["ms"] - sum(parts.values())
        known = [f"{ms:.1f}" for ms in (*parts.values(), rest)]
        if not row["parts"]:  # a data set that joins images reads them by itself
            known = ["", "", ""]
        others = f" and {len(row['others'])} more" if row["others"] else ""
        lines.append(
            f"| {row['recipe']}{others} | {row['ms']:.1f} | {' | '.join(known)} | "
            f"{row['images_per_s']:.0f} |"
        )
    lines += [
        "",
        "A row stands for all recipes that read and augment their training images alike. Panoptic",
        "annotations are drawn: the instances of the photographs, and four bands of stuff.",
        "",
        "## Workers that a GPU needs",
        "",
        "The least number of workers that make so many images a second. What a GPU takes has not",
        "been measured here ([gpu.md](gpu.md)). A user of timm reported 794 images/s in training",
        "ConvNeXt-T at 224 with mixed precision on an RTX 3090 (pull request 1747 of timm).",
        "",
    ]
    for task, rates in RATES.items():
        rows = [row for row in report["recipes"] if row["task"] == task]
        if not rows:
            continue
        lines += [
            f"| {task} | recipe's workers | " + " | ".join(f"{rate}/s" for rate in rates) + " |",
            "|---|---|" + "---|" * len(rates),
        ]
        for row in rows:
            numbers = " | ".join(str(ceil(rate / row["images_per_s"])) for rate in rates)
            lines.append(f"| {row['recipe']} | {row['num_workers']} | {numbers} |")
        lines.append("")
    lines += [
        "## Decoders",
        "",
        "| decoder | ms | largest difference of a pixel from ours |",
        "|---|---|---|",
        *(
            f"| {name} | {row['ms']:.2f} | {row['difference']:.0f} |"
            for name, row in report["decoders"].items()
        ),
        "",
        "## Masks and labels",
        "",
        "| 100 masks of 640x480 | ms |",
        "|---|---|",
        *(f"| {name} | {row['ms']:.1f} |" for name, row in report["encoders"].items()),
        "",
        f"Checking the labels of a crop of 512x512 takes a worker {report['label_check']:.2f} ms.",
    ]
    return "\n".join(lines) + "\n"
