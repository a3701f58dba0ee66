"""Write the model card of a published model, in the form of the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from mmengine.config import Config
from torch import nn

from backbones.openmmlab.tasks import PublicDataset, task_of
from backbones.weights import zoo
from backbones.weights.zoo import Weights

# What the hub calls a licence of ours; others are "other" with their name.
HUB_LICENCES = {"MIT": "mit", "Apache-2.0": "apache-2.0", "CC-BY-NC-4.0": "cc-by-nc-4.0"}
TEMPLATES = Environment(
    # Markdown: there is nothing to escape as HTML would need it.
    autoescape=False,
    loader=PackageLoader("backbones.openmmlab.export", "."),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def model_card(
    config: Config,
    model: nn.Module,
    entry: Weights,
    classes: Sequence[str],
    inherited: Mapping[str, str | None],
    scores: Mapping[str, float],
    why_unknown: str,
    *,
    averaged: bool,
    has_recipe: bool,
) -> str:
    """Return the text of README.md: facts as YAML, then in words.

    Args:
        config: config that the model is run with.
        model: model whose parameters are counted.
        entry: its entry in the zoo.
        classes: class names; empty if not known.
        inherited: checkpoints that training started from, with their licences where known.
        scores: figures by metric.
        why_unknown: why there are no scores.
        averaged: whether the weights are an EMA.
        has_recipe: whether the checkpoint records its config.
    """
    task, public = task_of(config), public_dataset(config)
    data = public.name if public else "own data"
    stated = entry.licence != zoo.UNSTATED
    hub_licence = HUB_LICENCES.get(entry.licence, "other") if stated else None
    facts = ModelCardData(
        license=hub_licence,
        license_name=entry.licence if hub_licence == "other" else None,
        library_name="pytorch",
        pipeline_tag=task.pipeline_tag,
        tags=["convnext", task.name, type(model).__name__],
        datasets=[public.hub_id] if public else None,
        base_model=[s.removeprefix("hf-hub:") for s in inherited if s.startswith("hf-hub:")]
        or None,
        model_name=entry.name if scores else None,
        eval_results=[
            EvalResult(
                task_type=task.pipeline_tag,
                dataset_type=data.lower(),
                dataset_name=data,
                metric_type=key.rpartition("/")[2],
                metric_name=key,
                metric_value=value,
            )
            for key, value in scores.items()
        ]
        or None,
    )
    loader = config.get("train_dataloader")
    dataset = {} if loader is None else loader.dataset
    where = dataset.get("ann_file") or dataset.get("data_prefix") or ""
    where = where.values() if isinstance(where, Mapping) else [where]
    return TEMPLATES.get_template("model_card.md.jinja").render(
        facts=facts.to_yaml(),
        entry=entry,
        task=task,
        model=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        classes=classes,
        scores=scores,
        why_unknown=why_unknown,
        data=data,
        dataset_type=dataset.get("type"),
        dataset_path=", ".join(map(without_folders, where)),
        inherited={without_folders(source): licence for source, licence in inherited.items()},
        unknown_licences=[without_folders(s) for s, licence in inherited.items() if not licence],
        averaged=averaged,
        has_recipe=has_recipe,
        stated=stated,
        # None for a licence that the zoo does not know.
        commercial=zoo.LICENCES.get(entry.licence) is not False,
    )


def public_dataset(config: Config) -> PublicDataset | None:
    """Return the data set that a config trains on, if it is a public one left unchanged."""
    loader = config.get("train_dataloader") or config.get("test_dataloader")
    dataset = {} if loader is None else loader.dataset
    if "metainfo" in dataset:  # its classes are others
        return None
    known = task_of(config).public_datasets
    return next((one for one in known if one.dataset_type == dataset.get("type")), None)


def without_folders(source: str) -> str:
    """Return a URL unchanged; of a local path only the file name."""
    return Path(source).name if Path(source).is_absolute() else source
