"""mmengine's Runner, with safe reading, whole files only, and a log that a person can read."""

import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import LOG_PROCESSORS
from mmengine.runner import CheckpointLoader, LogProcessor
from mmengine.runner import Runner as MMEngineRunner
from mmengine.utils.dl_utils import collect_env
from torch import nn
from torch.utils.data import DataLoader

from backbones.atomic_write import atomic_path, write_atomically
from backbones.errors import InputError
from backbones.openmmlab.config.loading import inference_dtype
from backbones.openmmlab.precision import infer_in
from backbones.openmmlab.report import ReportHook
from backbones.weights.checkpoints import load_whole, read_checkpoint
from backbones.weights.reading import check_archive

from .checkpointing import last_whole_checkpoint
from .compilation import compile_parts
from .data_workers import outlive_signals, worker_deaths_told
from .fine_tuning import fine_tune
from .interruption import InterruptHook
from .non_finite import NonFiniteHook, check_finite
from .processes import from_all, what_was_lost
from .progress import ProgressHook
from .resume import DueValidationHook, RepeatableStepHook, TrainingState, check_resumable
from .sharding import (
    WholeValidationHook,
    check_strategy,
    divide_loaded_state,
    is_sharded,
    shard,
    whole_states,
    will_be_sharded,
)
from .total_batch import process_count


@CheckpointLoader.register_scheme(
    prefixes=["", "http://", "https://", "hf-hub:", "timm:"], force=True
)
def load_from_anywhere(filename: str, map_location: object = None) -> Mapping:
    """mmengine's door to checkpoint files, through our reader: mmengine's own runs what it cannot
    read as plain weights. Tensors stay on the CPU; the model and the optimizer move their own."""
    return read_checkpoint(filename)


class Runner(MMEngineRunner):
    """mmengine's Runner; what it writes appears whole or not at all, what it loads fits whole."""

    def setup_env(self, env_cfg: dict) -> None:
        """Set processes up; without a GPU by gloo, as mmengine's own way asks for CUDA devices."""
        if self.distributed and not torch.cuda.is_available():
            if self._launcher != "pytorch":
                raise InputError(f"--launcher {self._launcher}: needs GPUs; on CPUs use torchrun")
            torch.distributed.init_process_group("gloo")
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for several processes; mmengine's own way places it on a GPU.

        Validation and testing compute in the config's `inference_dtype`. A model that FSDP will
        divide stays as it is, on the CPU, until its weights are set; see `build_optim_wrapper`.
        """
        if will_be_sharded(self.cfg):
            check_strategy(self.cfg)
        elif self.distributed and not torch.cuda.is_available() and model_wrapper_cfg is None:
            model = MMDistributedDataParallel(module=model, broadcast_buffers=False)
        else:
            model = super().wrap_model(model_wrapper_cfg, model)
        infer_in(model, inference_dtype(self.cfg))
        return model

    def set_randomness(self, seed: int | None, **kwargs) -> None:
        """Seed the run; a resumed one as it was, before anything is built that draws."""
        self._last: tuple[str, Mapping] | None = None
        if self.cfg.get("resume"):
            self._find_last()
        if self._last:
            resumed = self._last[1].get("meta", {}).get("seed")
            if resumed is not None and seed not in (None, resumed):
                print_log(f"resumed with the checkpoint's seed {resumed}, not {seed}", "current")
            seed = seed if resumed is None else resumed
            self._randomness_cfg = {**self._randomness_cfg, "seed": seed}
        super().set_randomness(seed, **kwargs)

    def _find_last(self) -> None:
        """The checkpoint to resume from: the one asked for, or the work dir's last whole one."""
        path = self.cfg.get("load_from")
        if path:
            self._last = path, read_checkpoint(path)
        elif found := last_whole_checkpoint(self._work_dir):
            self._last = str(found[0]), found[1]
        first, *others = from_all(self._last and Path(self._last[0]).name)
        if other := [name for name in others if name != first]:
            raise InputError(
                f"--resume: {self._work_dir} holds {first or 'no checkpoint'} for the first "
                f"process, {other[0] or 'none'} for another: give a folder that all machines share"
            )
        if self._last:
            check_resumable(*self._last)

    def register_hooks(self, default_hooks: dict | None, custom_hooks: list | None) -> None:
        """The config's hooks, and those without which a run would lose something."""
        super().register_hooks(default_hooks, custom_hooks)
        for kind in (InterruptHook, NonFiniteHook, RepeatableStepHook, DueValidationHook):
            if not any(isinstance(hook, kind) for hook in self.hooks):
                self.register_hook(kind())
        if will_be_sharded(self.cfg):
            self.register_hook(WholeValidationHook())

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        """Build the optimizer; under FSDP the weights are set and divided first, as it trains what
        each process is left with."""
        built = isinstance(optim_wrapper, OptimWrapper)  # mmengine asks again when it resumes
        if built or not will_be_sharded(self.cfg):
            return super().build_optim_wrapper(optim_wrapper)
        self._init_model_weights()
        shard(self.model)
        wrapper = super().build_optim_wrapper(optim_wrapper)
        divide_loaded_state(wrapper.optimizer)
        return wrapper

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """Build a data loader whose workers leave signals to the process that trains."""
        loader = MMEngineRunner.build_dataloader(dataloader, *args, **kwargs)
        if loader is not dataloader:
            loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)
        return loader

    def build_train_loop(self, loop: dict) -> object:
        """Build the loop; mmengine's `by_epoch` means the same as the name of a class."""
        if isinstance(loop, dict) and "by_epoch" in loop:
            kind = "EpochBasedTrainLoop" if loop["by_epoch"] else "IterBasedTrainLoop"
            loop = {**{k: v for k, v in loop.items() if k != "by_epoch"}, "type": kind}
        return super().build_train_loop(loop)

    def train(self) -> nn.Module:
        """Train.

        Raises:
            InputError: a data worker or another process of the run was lost.
        """
        if is_main_process():
            for part in Path(self.work_dir).glob(".*.part"):  # of a run that was killed
                part.unlink()
        with self._concluded():
            return super().train()

    def val(self) -> dict:
        """Evaluate on the validation set.

        Raises:
            InputError: as `train`.
        """
        with self._concluded():
            return super().val()

    def test(self) -> dict:
        """Evaluate on the test set.

        Raises:
            InputError: as `train`.
        """
        with self._concluded():
            return super().test()

    @contextmanager
    def _concluded(self) -> Iterator[None]:
        """Leave the terminal and the report in order, however the run ends."""
        hooks = [hook for hook in self.hooks if isinstance(hook, ProgressHook | ReportHook)]
        try:
            with worker_deaths_told():
                yield
        except BaseException as error:
            for hook in hooks:
                with suppress(Exception):  # what ended the run is what has to be said
                    hook.close(self)
            lost = isinstance(error, Exception) and what_was_lost(error)
            if lost:
                raise lost from error
            raise
        for hook in hooks:
            hook.close(self)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Save whole, with the state of every process; all of them call it at the same point.

        It takes its name after it has been read back from the disk.

        Raises:
            InputError: it cannot be written, or its weights are not finite; what was there is kept.
        """
        self._gathered = dict(training_state=TrainingState(self).collect())
        model = self.model.module if is_model_wrapper(self.model) else self.model
        if is_sharded(model):
            save_optimizer = kwargs.get("save_optimizer", True)
            self._gathered |= whole_states(model, self.optim_wrapper, save_optimizer)
        if not is_main_process():
            return
        final = Path(out_dir) / filename
        check_finite(self._gathered.get("state_dict") or model.state_dict(), final)
        try:
            with atomic_path(final) as part:
                super().save_checkpoint(out_dir, part.name, *args, **kwargs)
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
                    if hasattr(os, "posix_fadvise"):  # read back from the disk, not from memory
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                check_archive(part)
        except InputError as error:
            raise InputError(
                f"{error}: the checkpoint is not saved; earlier ones are kept"
            ) from error

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """Call a hook of all hooks; a checkpoint about to be saved gets the processes' states."""
        if fn_name == "before_save_checkpoint":
            kwargs["checkpoint"].update(self._gathered)
        super().call_hook(fn_name, **kwargs)

    @property
    def config_path(self) -> Path:
        """Where the resolved config is: an evaluation's lies beside its log, as the one in the
        work dir is the training's, to rerun it from."""
        name = Path(self.cfg.filename or f"{self.timestamp}.py").name
        return Path(self.work_dir if self.cfg.get("train_cfg") else self._log_dir) / name

    def dump_config(self) -> None:
        """Write the resolved config, whole."""
        if is_main_process():
            write_atomically(self.config_path, self.cfg.pretty_text)

    def load_checkpoint(self, filename: str, map_location: object = "cpu", **kwargs) -> Mapping:
        """Load the weights of a whole model; its ConvNeXt may be in any known layout.

        Args:
            filename: anything `read_checkpoint` reads.

        Raises:
            InputError: the file cannot be read, or its tensors are not exactly the model's.
        """
        held, self._last = self._last, None
        checkpoint = held[1] if held and held[0] == filename else read_checkpoint(filename)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        model = getattr(model, "module", model)  # a TTA model holds the trained one
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        self.logger.info(load_whole(model, checkpoint, filename))
        self._has_loaded = True
        self._resumed_state = checkpoint.get("training_state")
        return checkpoint

    def _init_model_weights(self) -> None:
        """Initialise; with `init_from` in the config, from a model of other classes."""
        if is_sharded(self.model):
            return
        super()._init_model_weights()
        fine_tune(self)

    def load_or_resume(self) -> None:
        """Load or resume as asked; say it if there is nothing to resume from."""
        if self._resume and not self._last and not self._has_loaded:
            self.logger.info(f"no checkpoint to resume from in {self.work_dir}: starting anew")
            self._resume = False
        elif self._resume and self._last:
            self._load_from = self._last[0]
        super().load_or_resume()

    def _maybe_compile(self, target: str) -> None:
        """Compile the model's parts as the config's `compile` asks; mmengine's own way compiles
        `target`, the whole step, and breaks at every box."""
        options = self.cfg.get("compile")
        if options:
            model = self.model.module if is_model_wrapper(self.model) else self.model
            parts = compile_parts(model, **({} if options is True else options))
            self.logger.info(f"compiled at their first use: {', '.join(parts)}")

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Go on from a checkpoint as if there had been no break; see `resume.py`."""
        super().resume(filename, *args, **kwargs)
        TrainingState(self).restore(self._resumed_state)

    def _log_env(self, env_cfg: dict) -> None:
        """Say in two lines what the run stands on; the full report goes to a file beside."""
        env = collect_env()
        if is_main_process():
            report = "\n".join(f"{key}: {value}" for key, value in env.items())
            write_atomically(Path(self._log_dir) / "environment.txt", report + "\n")
        device = env.get("GPU 0") or f"CPU, {torch.get_num_threads()} threads"
        self.logger.info(
            f"torch {torch.__version__}, mmengine {env['MMEngine']}, {device}, "
            f"{self.world_size} process{'es' * (self.world_size > 1)}, seed {self.seed}"
        )
        self.logger.info(f"resolved config: {self.config_path}")

    def get_hooks_info(self) -> str:
        """The names of the hooks, without the table of every stage."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)


@LOG_PROCESSORS.register_module()
class PeakMemoryLogProcessor(LogProcessor):
    """mmengine's log line, with peak memory in MiB on a machine without a GPU too."""

    def get_log_after_iter(self, runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        if not torch.cuda.is_available():
            tag["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            line += f"  memory: {tag['memory']}"
        return tag, line


def _start_worker(seed_worker, worker_id: int) -> None:
    outlive_signals()
    if seed_worker:
        seed_worker(worker_id)


def fit_to_machine(config: Config) -> None:
    """Replace what this machine cannot run, saying each in one line.

    SyncBN becomes BN where there is nothing to synchronise with or no GPU to do it on; automatic
    mixed precision becomes float32 and nccl becomes gloo where there is no GPU.
    """
    processes = process_count(config)
    cuda = torch.cuda.is_available()
    if (processes == 1 or not cuda) and _replace_type(config._cfg_dict, "SyncBN", "BN"):
        why = "one process" if processes == 1 else "no GPU"
        print_log(
            f"{why}: SyncBN becomes BN, statistics are those of one process's batch", "current"
        )
    if cuda:
        return
    config.env_cfg.dist_cfg.backend = "gloo"
    optim = config.get("optim_wrapper")
    if optim and optim.get("type") == "AmpOptimWrapper":
        dtype = optim.pop("dtype", "float16")
        optim.pop("loss_scale", None)
        optim.type = "OptimWrapper"
        print_log(f"no GPU: training in float32 instead of {dtype}", "current")


def _replace_type(node: object, old: str, new: str) -> int:
    """Replace `type=old` by `type=new` everywhere; how many there were."""
    if isinstance(node, dict):
        hits = int(node.get("type") == old)
        if hits:
            node["type"] = new
        return hits + sum(_replace_type(value, old, new) for value in node.values())
    if isinstance(node, list | tuple):
        return sum(_replace_type(value, old, new) for value in node)
    return 0
