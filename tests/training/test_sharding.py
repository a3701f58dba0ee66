"""FSDP takes the steps of one process; its checkpoints are those of any other run."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from support.forked import preload
from support.running import (
    REPOSITORY,
    SEGMENTATION,
    assert_error,
    command,
    free_port,
    run_here,
)
from support.small_runs import six_steps
from torch import distributed, multiprocessing, nn
from torch.distributed.tensor import DTensor

from backbones.convnext import ConvNeXt
from backbones.errors import InputError
from backbones.openmmlab.config.strategy import check_strategy
from backbones.openmmlab.training import ranks
from backbones.openmmlab.training.sharding import (
    divide_loaded_state,
    is_sharded,
    shard,
    whole_states,
)
from backbones.weights import read_checkpoint

WORLD = 2
SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 31))


def join(rank: int, port: int) -> None:
    """Be one of the processes that torchrun would start."""
    os.environ |= dict(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(WORLD),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)


def on_two_processes(function, *arguments) -> None:
    preload()
    multiprocessing.start_processes(function, arguments, WORLD, start_method="forkserver")


class Classifier(BaseModel):
    """A small network with everything that is divided: blocks, downsamplings, and a head beside."""

    def __init__(self, use_grn: bool, with_cp: bool):
        super().__init__()
        self.backbone = ConvNeXt(
            SMALL, use_grn=use_grn, with_cp=with_cp, layer_scale_init_value=0.0 if use_grn else 1.0
        )
        self.head = nn.Linear(SMALL["dims"][-1], 5)

    def forward(self, inputs, labels, mode):
        logits = self.head(self.backbone(inputs)[-1].mean(dim=(-2, -1)))
        return dict(loss=nn.functional.cross_entropy(logits, labels))


def trainer(model: nn.Module):
    """AdamW with layer decay and clipped gradients, as the recipes have them."""
    return build_optim_wrapper(
        model,
        dict(
            type="OptimWrapper",
            constructor="LayerDecayConstructor",
            paramwise_cfg=dict(decay_rate=0.7),
            # A gradient of rounding errors alone must not move a weight.
            optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.05, eps=1e-4),
            clip_grad=dict(max_norm=0.5),
        ),
    )


def take_steps(rank: int, port: int, use_grn: bool, with_cp: bool, dtype: torch.dtype) -> None:
    """Steps on halves of a batch by two sharded processes, and on the batch by a whole model."""
    join(rank, port)
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    whole = Classifier(use_grn, with_cp)
    sharded = copy.deepcopy(whole)
    shard(sharded)
    assert is_sharded(sharded) and not is_sharded(whole)
    ours, reference = trainer(sharded), trainer(whole)
    divide_loaded_state(ours.optimizer)
    groups = [
        [{k: v for k, v in g.items() if k != "params"} for g in w.optimizer.param_groups]
        for w in (ours, reference)
    ]
    assert groups[0] == groups[1]  # rates, weight decay and names of every layer
    # A weight in bfloat16 may round to its other neighbour.
    near = 2e-5 if dtype == torch.float32 else 2e-3
    first = None
    for _ in range(4):
        batch = dict(inputs=torch.randn(4, 3, 32, 32), labels=torch.randint(5, (4,)))
        halves = [{k: v[part] for k, v in batch.items()} for part in (slice(2), slice(2, 4))]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = sharded(**halves[rank], mode="loss")["loss"]
            expected = [whole(**half, mode="loss")["loss"] for half in halves]
        torch.testing.assert_close(loss, expected[rank], rtol=near, atol=near)
        ours.update_params(loss)
        reference.update_params(sum(expected) / 2)
        first = first or float(loss)
    assert abs(first - float(loss)) > 0.02  # the steps that agree have moved the model
    parts = [p for p in sharded.parameters() if isinstance(p, DTensor)]
    assert len(parts) == len(list(whole.parameters()))
    held = sum(p.to_local().numel() for p in parts)
    assert held < 0.6 * sum(p.numel() for p in whole.parameters())

    saved = whole_states(sharded, ours)
    if rank == 0:
        compare(saved["state_dict"], whole.state_dict(), 50 * near)
        theirs = reference.state_dict()
        assert saved["optimizer"]["param_groups"] == theirs["param_groups"]
        for number, state in theirs["state"].items():
            compare(saved["optimizer"]["state"][number], state, 50 * near)
    # What was saved goes into either.
    for model, wrapper in ((sharded, ours), (whole, reference)):
        state = [copy.deepcopy(whole.state_dict()), copy.deepcopy(reference.state_dict())]
        wrapper.optimizer.state.clear()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        model.load_state_dict(state[0])
        wrapper.load_state_dict(state[1])
    loaded = whole_states(sharded, ours)
    if rank == 0:
        compare(loaded["state_dict"], state[0])
        for number, each in state[1]["state"].items():
            compare(loaded["optimizer"]["state"][number], each)
    distributed.destroy_process_group()


def compare(given: dict, wanted: dict, within: float = 0.0) -> None:
    """The same names in the same order, whole tensors, equal or within a bound."""
    assert list(given) == list(wanted)
    bounds = dict(rtol=within, atol=within / 10)
    for name, tensor in wanted.items():
        assert type(given[name]) in (torch.Tensor, nn.Parameter)
        torch.testing.assert_close(given[name], tensor, **bounds, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "use_grn, with_cp, dtype",
    [
        (False, True, torch.float32),
        pytest.param(True, False, torch.float32, marks=pytest.mark.slow),
        pytest.param(False, True, torch.bfloat16, marks=pytest.mark.slow),
    ],
    ids=["v1-recomputed", "v2", "v1-recomputed-bf16"],
)
def test_two_processes_take_the_steps_of_one(use_grn, with_cp, dtype):
    on_two_processes(take_steps, free_port(), use_grn, with_cp, dtype)


OPTIONS = {
    "model.backbone.drop_path_rate": 0.3,
    "model.backbone.with_cp": True,
    "model.test_cfg": dict(mode="slide", crop_size=(64, 64), stride=(43, 43)),
    "val_dataloader.dataset.pipeline.1.scale": (96, 96),
    "val_dataloader.dataset.indices": 4,
}


def run(rank: int, root: Path, data: Path, runs: list[tuple]) -> None:
    """Use the real runner, several times in each of two processes."""
    from backbones.openmmlab.config.machine import fit_to_machine
    from backbones.openmmlab.training.runner import Runner

    for number, (name, strategy, resume, port) in enumerate(runs):
        join(rank, port)
        config = six_steps(root / f"config{rank}", data, OPTIONS)
        config.work_dir, config.launcher, config.strategy = str(root / name), "pytorch", strategy
        config.resume = resume
        config.experiment_name = config.visualizer.name = f"run{number}"
        fit_to_machine(config)
        runner = Runner.from_cfg(config)
        runner.train()
        assert is_sharded(runner.model) == (strategy == "fsdp")
        distributed.destroy_process_group()
        ranks._group = None


def resume_from(run_dir: Path, folder: Path) -> None:
    """A run that was ended after its third step."""
    folder.mkdir()
    shutil.copy(run_dir / "iter_3.pth", folder)
    (folder / "last_checkpoint").write_text(str(folder / "iter_3.pth"))


def scores(run_dir: Path) -> list[str]:
    (log,) = [p for p in run_dir.glob("*/*.log")][-1:]
    return re.findall(r"mIoU: [\d.]+", log.read_text())


@pytest.mark.slow
def test_checkpoints_go_from_either_to_the_other(shapes, tmp_path):
    starts = [("fsdp", "fsdp", False, free_port()), ("ddp", "ddp", False, free_port())]
    on_two_processes(run, tmp_path, shapes, starts)
    resumed = [("fsdp", "fsdp"), ("fsdp", "ddp"), ("ddp", "fsdp")]
    for start, end in resumed:
        resume_from(tmp_path / start, tmp_path / f"{start}-{end}")
    runs = [(f"{start}-{end}", end, True, free_port()) for start, end in resumed]
    on_two_processes(run, tmp_path, shapes, runs)

    def state(name: str, which: str) -> dict:
        return read_checkpoint(tmp_path / name / "iter_6.pth")[which]

    moved = read_checkpoint(tmp_path / "fsdp" / "iter_3.pth")["state_dict"]
    assert any((moved[k] != v).any() for k, v in state("fsdp", "state_dict").items())
    # An FSDP run goes on bit for bit.
    compare(state("fsdp-fsdp", "state_dict"), state("fsdp", "state_dict"))
    for number, each in state("fsdp", "optimizer")["state"].items():
        compare(state("fsdp-fsdp", "optimizer")["state"][number], each)
    # Across strategies, to what sums in another order make of it.
    for name in ("ddp", "fsdp-ddp", "ddp-fsdp"):
        for key, tensor in state("fsdp", "state_dict").items():
            torch.testing.assert_close(
                state(name, "state_dict")[key], tensor, rtol=1e-2, atol=2e-3,
                msg=lambda m, where=(name, key): f"{where}: {m}",
            )  # fmt: skip
        theirs, ours = (state(n, "optimizer")["param_groups"] for n in (name, "fsdp"))
        assert theirs == ours
    assert len(scores(tmp_path / "fsdp")) == 2
    # The checkpoint was saved before its validation, which comes first.
    assert scores(tmp_path / "fsdp-fsdp") == scores(tmp_path / "fsdp")


LATE = """
import torch
from torch import distributed
from backbones.openmmlab.training.ranks import process_group_cleanup

def work():
    for _ in range(5000):
        message = torch.ones(3)
        message.said_by = "Python"  # which the thread that carries it lets go of last
        distributed.all_reduce(message, async_op=True)

distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
with process_group_cleanup():
    work()
"""


def test_messages_under_way_at_the_end_do_not_abort_the_process():
    """Without `process_group_cleanup` eight of eight such processes died by SIGABRT."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_tool_on_two_nodes_equals_one_process(task, shapes, tmp_path):
    """Two launches of torchrun, as on two machines, against one rank at the same batch size."""
    from support.deterministic import DETERMINISTIC, losses, two_equal_halves

    config = REPOSITORY / "configs" / task
    (config,) = config.glob("*_atto_demo.py")
    data = two_equal_halves(Path(shutil.copytree(shapes, tmp_path / "data")), task)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    port, started, curves = free_port(), [], []
    for name, batch, launcher in (
        ("one", 4, []),
        *((f"node{i}", 2, ["--nnodes", "2", "--node-rank", str(i)]) for i in range(2)),
    ):
        path = tmp_path / f"{name}.py"
        path.write_text(DETERMINISTIC[task].format(base=str(config), batch=batch))
        work_dir = tmp_path / ("one" if name == "one" else "two")
        argv = command("train.py", path, "--data", data, "--work-dir", work_dir)
        if launcher:
            where = ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
            torchrun = [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, where)]
            argv = [*torchrun, *argv[1:], "--launcher", "pytorch", "--strategy", "fsdp"]
            argv += ["--cfg-options", "model.backbone.with_cp=True"]
        out = (tmp_path / f"{name}.txt").open("w+")
        started.append(
            (subprocess.Popen(argv, cwd=tmp_path, env=environment, stdout=out, stderr=out), out)
        )
        if not launcher:
            started[-1][0].wait(600)
    weights = []
    for process, out in started:
        process.wait(600)
        out.seek(0)
        text = out.read()
        assert process.returncode == 0, text[-3000:]
        curves.append(losses(text))
    for name in ("one", "two"):
        (saved,) = (tmp_path / name).glob("*_*.pth")
        weights.append(read_checkpoint(saved)["state_dict"])
    assert len(curves[0]) == 4 and not curves[2]  # the first process alone logs
    assert curves[1] == pytest.approx(curves[0], abs=2e-4)
    assert abs(curves[0][0] - curves[0][-1]) > 0.01
    for name, tensor in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], tensor, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


class TestRefusals:
    @pytest.mark.parametrize(
        "change, names",
        [
            (dict(strategy="deepspeed"), ("strategy", "deepspeed", "fsdp")),
            (dict(launcher="none"), ("--strategy fsdp", "torchrun")),
            (dict(custom_hooks=[dict(type="EMAHook")]), ("EMAHook", "custom_hooks")),
            (dict(optim_wrapper=dict(dtype="float16")), ("optim_wrapper.dtype", "bfloat16")),
            (
                dict(optim_wrapper=dict(accumulative_counts=2)),
                ("optim_wrapper.accumulative_counts",),
            ),
            (dict(compile=True), ("config key compile",)),
            (dict(model_wrapper_cfg=dict(broadcast_buffers=True)), ("model_wrapper_cfg",)),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_what_does_not_go_with_it(self, change, names):
        from backbones.openmmlab.config import load_config

        config = load_config(SEGMENTATION)
        config.strategy, config.launcher = "fsdp", "pytorch"
        check_strategy(config)
        config.merge_from_dict(change)
        with pytest.raises(InputError) as caught:
            check_strategy(config)
        for name in names:
            assert name in str(caught.value)

    def test_without_a_launcher(self, shapes, tmp_path):
        arguments = (SEGMENTATION, "--data", shapes, "--work-dir", tmp_path / "run")
        outcome = run_here("train.py", *arguments, "--strategy", "fsdp")
        assert_error(outcome, outcome.code, "--strategy fsdp", "torchrun")
        assert outcome.code and not (tmp_path / "run").exists()
