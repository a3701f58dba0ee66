"""mmengine's Runner, with safe reading, whole files only, and a log that a person can read."""

import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.registry import HOOKS, LOG_PROCESSORS
from mmengine.runner import CheckpointLoader, LogProcessor, find_latest_checkpoint
from mmengine.runner import Runner as MMEngineRunner
from mmengine.utils.dl_utils import collect_env
from torch import nn

from backbones.checkpoints import load_whole, read_checkpoint
from backbones.errors import InputError

from .compilation import compile_parts
from .fine_tuning import fine_tune


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
        """Wrap the model for several processes; mmengine's own way places it on a GPU."""
        if self.distributed and not torch.cuda.is_available() and model_wrapper_cfg is None:
            return MMDistributedDataParallel(module=model, broadcast_buffers=False)
        return super().wrap_model(model_wrapper_cfg, model)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Save under a temporary name, flush to disk, rename.

        Raises:
            InputError: the file cannot be written; nothing is left of it.
        """
        if not is_main_process():
            return
        final = Path(out_dir) / filename
        part = final.with_name(f"{filename}.part")
        try:
            super().save_checkpoint(out_dir, part.name, *args, **kwargs)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(final)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise InputError(
                f"{final}: cannot save the checkpoint ({error.strerror}); earlier ones are kept"
            ) from error

    @property
    def config_path(self) -> Path:
        """Where the resolved config is: an evaluation's lies beside its log, as the one in the
        work dir is the training's, to rerun it from."""
        name = Path(self.cfg.filename or f"{self.timestamp}.py").name
        return Path(self.work_dir if self.cfg.get("train_cfg") else self._log_dir) / name

    def dump_config(self) -> None:
        """Write the resolved config, aside and renamed."""
        if is_main_process():
            part = self.config_path.with_name(f".{self.config_path.name}")
            self.cfg.dump(part)
            part.replace(self.config_path)

    def load_checkpoint(self, filename: str, map_location: object = "cpu", **kwargs) -> Mapping:
        """Load the weights of a whole model; its ConvNeXt may be in any known layout.

        Args:
            filename: anything `read_checkpoint` reads.

        Raises:
            InputError: the file cannot be read, or its tensors are not exactly the model's.
        """
        checkpoint = read_checkpoint(filename)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        model = getattr(model, "module", model)  # a TTA model holds the trained one
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        self.logger.info(load_whole(model, checkpoint, filename))
        self._has_loaded = True
        return checkpoint

    def _init_model_weights(self) -> None:
        """Initialise; with `init_from` in the config, from a model of other classes."""
        super()._init_model_weights()
        fine_tune(self)

    def load_or_resume(self) -> None:
        """Load or resume as asked; say it if there is nothing to resume from."""
        if self._resume and not self._load_from and not find_latest_checkpoint(self.work_dir):
            self.logger.info(f"no checkpoint to resume from in {self.work_dir}: starting anew")
            self._resume = False
        super().load_or_resume()

    def _maybe_compile(self, target: str) -> None:
        """Compile the model's parts as the config's `compile` asks; mmengine's own way compiles
        `target`, the whole step, and breaks at every box."""
        options = self.cfg.get("compile")
        if options:
            model = self.model.module if is_model_wrapper(self.model) else self.model
            parts = compile_parts(model, **({} if options is True else options))
            self.logger.info(f"compiled at their first use: {', '.join(parts)}")

    def _log_env(self, env_cfg: dict) -> None:
        """Say in two lines what the run stands on; the full report goes to a file beside."""
        env = collect_env()
        if is_main_process():
            report = "\n".join(f"{key}: {value}" for key, value in env.items())
            (Path(self._log_dir) / "environment.txt").write_text(report + "\n")
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


@HOOKS.register_module()
class InterruptHook(Hook):
    """Ctrl-C ends training after the current step with a checkpoint to resume from.

    A second Ctrl-C stops at once. With several processes the default stays: the last regular
    checkpoint is the one to resume from.
    """

    priority = "LOWEST"

    def __init__(self):
        self.asked = False

    def before_train(self, runner) -> None:
        if not runner.distributed:
            signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_) -> None:
        if self.asked:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.asked = True

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.asked:
            return
        by_epoch = hasattr(runner.train_loop, "_max_epochs") and not hasattr(
            runner.train_loop, "dataloader_iterator"
        )
        # A resumed epoch starts over, so its first iteration is the one to count from.
        done = runner.epoch * len(runner.train_dataloader) if by_epoch else runner.iter + 1
        runner.save_checkpoint(
            runner.work_dir, "interrupted.pth", meta=dict(epoch=runner.epoch, iter=done)
        )
        path = Path(runner.work_dir) / "interrupted.pth"
        part = path.with_name(".last_checkpoint")
        part.write_text(str(path))
        part.replace(path.with_name("last_checkpoint"))
        raise KeyboardInterrupt(f"stopped at iteration {runner.iter + 1}, saved {path}")

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.asked:
            raise KeyboardInterrupt("stopped during evaluation")


def fit_to_machine(config: Config) -> None:
    """Replace what this machine cannot run, saying each in one line.

    SyncBN becomes BN where there is nothing to synchronise with or no GPU to do it on; automatic
    mixed precision becomes float32 and nccl becomes gloo where there is no GPU.
    """
    counts = dict(pytorch="WORLD_SIZE", slurm="SLURM_NTASKS", mpi="OMPI_COMM_WORLD_SIZE")
    processes = int(os.environ.get(counts.get(config.launcher, ""), 1))
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
