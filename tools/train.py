#!/usr/bin/env python
"""Train a detector, a segmentor or a classifier, on one process or many.

python tools/train.py configs/detection/cascade_convnext_t.py
python tools/train.py CONFIG --data my_data --init-from cascade_coco.pth
torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch
torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch --strategy fsdp
tools/train.py CONFIG takes the recipe's optimizer steps on fewer processes too, by accumulation.
"""

import os
from contextlib import nullcontext

from mmengine.logging import print_log

from backbones.errors import reported_in_one_line
from backbones.openmmlab.config.command_line import run_config, run_parser
from backbones.openmmlab.config.global_batch import LR_SCALES, batch_norm_note, set_global_batch
from backbones.openmmlab.config.machine import fit_to_machine
from backbones.openmmlab.config.prepare import start_from
from backbones.openmmlab.config.strategy import STRATEGIES, check_strategy
from backbones.openmmlab.config.tracking import TRACKERS, track
from backbones.openmmlab.doctor.examination import check_data, examine_quickly
from backbones.openmmlab.training.ranks import process_group_cleanup
from backbones.openmmlab.training.runner import Runner
from backbones.weights import trusted


def main() -> None:
    parser = run_parser(__doc__)
    parser.add_argument(
        "--resume", action="store_true", help="continue from the work dir's last checkpoint"
    )
    parser.add_argument(
        "--init-from",
        metavar="CHECKPOINT",
        help="start from a trained model, of other classes too: its other layers are taken",
    )
    parser.add_argument(
        "--skip-bad-images",
        action="store_true",
        help="train on others in place of images that cannot be read; count and list them",
    )
    parser.add_argument(
        "--total-batch",
        type=int,
        metavar="N",
        help="images of one optimizer step, accumulated where needed; default: the recipe's own",
    )
    parser.add_argument(
        "--scale-lr",
        choices=LR_SCALES,
        help="scale the learning rate with the total batch, in proportion or by its square root",
    )
    parser.add_argument(
        "--track",
        action="append",
        choices=TRACKERS,
        default=[],
        help="send the figures there as well; may be given more than once",
    )
    parser.add_argument(
        "--compile", action="store_true", help="as `compile = True` in the config: torch.compile"
    )
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        help="what several processes share the work by: ddp, where each holds the whole model, or "
        "fsdp, which divides it among them; default: the config's, or ddp",
    )
    args = parser.parse_args()
    config = run_config(args)
    config.resume = args.resume
    if args.strategy:
        config.strategy = args.strategy
    if args.compile:
        config.setdefault("compile", True)
    check_strategy(config)
    track(config, args.track)
    start_from(config, args.init_from)
    if args.skip_bad_images:
        hooks = config.get("custom_hooks") or []
        config.custom_hooks = [*hooks, dict(type="SkipBadImagesHook")]
    print_log(set_global_batch(config, args.total_batch, args.scale_lr), "current")
    if note := batch_norm_note(config):
        print_log(note, "current")
    check_data(config, ("train", "val"))
    for issue in examine_quickly(config) if os.environ.get("RANK", "0") == "0" else ():
        if issue.severity != "note":
            print_log(f"{issue.severity}: {issue}", "current")
    fit_to_machine(config)
    with trusted() if args.trust_checkpoint else nullcontext():
        Runner.from_cfg(config).train()


if __name__ == "__main__":
    with reported_in_one_line("continue with --resume"), process_group_cleanup():
        main()
