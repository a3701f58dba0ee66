#!/usr/bin/env python
"""Train a detector, a segmentor or a classifier, on one rank or many.

python tools/train.py configs/detection/cascade_convnext_t.py
python tools/train.py CONFIG --data my_data --init-from cascade_coco.pth
torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch
torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch --strategy fsdp
Fewer ranks take the recipe's optimizer steps too: gradients are accumulated to its batch size.
"""

from contextlib import nullcontext

from mmengine.logging import print_log

from backbones.errors import reported_in_one_line
from backbones.openmmlab.config.command_line import run_parser
from backbones.openmmlab.config.global_batch import LR_SCALES
from backbones.openmmlab.config.machine import is_first_rank
from backbones.openmmlab.config.prepare import Options, prepare
from backbones.openmmlab.config.strategy import STRATEGIES
from backbones.openmmlab.config.tracking import TRACKERS
from backbones.openmmlab.doctor.checks import check_data, check_quickly
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
        help="initialize from a trained model; class-dependent layers are skipped if the classes "
        "differ",
    )
    parser.add_argument(
        "--skip-bad-images",
        action="store_true",
        help="replace images that cannot be read by others, and list them",
    )
    parser.add_argument(
        "--global-batch",
        type=int,
        metavar="N",
        help="images of an optimizer step over all ranks, accumulated where needed (default: the "
        "recipe's)",
    )
    parser.add_argument(
        "--scale-lr",
        choices=LR_SCALES,
        help="scale the learning rate with the global batch size, linearly or by its square root",
    )
    parser.add_argument(
        "--track",
        action="append",
        choices=TRACKERS,
        default=[],
        help="log metrics to this tracker too; may be given more than once",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the network with torch.compile"
    )
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        help="how ranks share the model: ddp, a copy on each, or fsdp, sharded across them "
        "(default: the config's, or ddp)",
    )
    args = parser.parse_args()
    config = prepare(Options.of(args), "train")
    check_data(config, ("train", "val"))
    for issue in check_quickly(config) if is_first_rank(config) else ():
        if issue.severity != "note":
            print_log(f"{issue.severity}: {issue}", "current")
    with trusted() if args.trust_checkpoint else nullcontext():
        Runner.from_cfg(config).train()


if __name__ == "__main__":
    with reported_in_one_line("continue with --resume"), process_group_cleanup():
        main()
