#!/usr/bin/env python
"""Evaluate a published model by the published protocol, and compare with the published scores.

convnext reproduce cascade_convnext_t             downloads model and validation set
convnext reproduce upernet_convnext_t.openmmlab --data data/ade/ADEChallengeData2016
convnext reproduce --all                          the paper's Tables 3 and 4; resumes
convnext reproduce cascade_convnext_t --data-mini my_subset
Exit status: 0 if no figure differs by more than the tolerance, 1 if one does, 2 after a mistake.
"""

import sys
from pathlib import Path

from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config.command_line import Overrides, parser_for
from backbones.openmmlab.config.names import published_model
from backbones.openmmlab.reproduction.evaluation import Request, reproduce
from backbones.openmmlab.reproduction.figures import tables_3_and_4
from backbones.weights import work_offline


def main() -> None:
    parser = parser_for(__doc__)
    add = parser.add_argument
    add("name", nargs="*", help="published models: a config's name, optionally with its publisher")
    add("--all", action="store_true", help="all models of the paper's Tables 3 and 4")
    add("--data", type=Path, metavar="ROOT", help="folder of the published data set, as it is")
    subset = "a subset of it in the same layout: compares nothing with the published scores"
    add("--data-mini", type=Path, metavar="DIR", help=subset)
    expected = "verdict of an earlier run on this subset, whose figures are expected again"
    add("--expect", type=Path, metavar="FILE", help=expected)
    add("--mirror", metavar="URL", help="folder with the zip files of the data set")
    written = "folder of the verdicts, NAME.json and NAME.md (default: reproduced)"
    add("--out", type=Path, default=Path("reproduced"), help=written)
    add("--offline", action="store_true", help="download nothing; use cached files only")
    changed = "set config keys, which the verdict names"
    add("--cfg-options", nargs="+", action=Overrides, metavar="KEY=VALUE", help=changed)
    args = parser.parse_args()

    if args.all == bool(args.name):
        raise InputError("give the names of published models, or --all", where="name")
    if args.offline:
        work_offline()
    models = tables_3_and_4() if args.all else [published_model(name) for name in args.name]
    request = Request(
        args.out,
        args.data,
        args.data_mini,
        args.expect,
        args.mirror,
        args.cfg_options or {},
    )
    failed = False
    for model in models:
        verdict = reproduce(model, request)
        failed |= verdict.failed
        print(verdict.row(), flush=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    with reported_in_one_line("run again to resume"):
        main()
