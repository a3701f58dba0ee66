#!/usr/bin/env python
"""Train a detector or a segmentor, on one process or many.

python tools/train.py configs/detection/cascade_convnext_t.py
python tools/train.py CONFIG --data my_data --init-from cascade_coco.pth
torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch
"""

from contextlib import nullcontext

from backbones.checkpoints import trusted
from backbones.errors import reported_in_one_line
from backbones.openmmlab.command_line import run_config, run_parser
from backbones.openmmlab.doctor import check_data
from backbones.openmmlab.fine_tuning import start_from
from backbones.openmmlab.runner import Runner, fit_to_machine


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
    args = parser.parse_args()
    config = run_config(args)
    config.resume = args.resume
    start_from(config, args.init_from)
    check_data(config, ("train", "val"))
    fit_to_machine(config)
    with trusted() if args.trust_checkpoint else nullcontext():
        Runner.from_cfg(config).train()


if __name__ == "__main__":
    with reported_in_one_line("continue with --resume"):
        main()
