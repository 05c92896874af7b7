"""Settings of ``train --set``: what a config does not have is refused before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("mmseg")


def merge(task: str, **settings: Any) -> Any:
    from sketchfusion_plugins.mm.settings import merge_settings
    from sketchfusion_plugins.mm.task_config import read_task_config

    config = read_task_config(task)
    merge_settings(config, {key.replace("__", "."): value for key, value in settings.items()})
    return config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__sizes": 64}, r"data has no 'sizes'; did you mean size\?"),
        ({"data": {"sizes": 64}}, r"data has no 'sizes'"),
        ({"judge__batchsize": 8}, r"judge has no 'batchsize'; did you mean batch_size\?"),
        ({"train_cfg__max_iter": 5}, r"train_cfg has no 'max_iter'; did you mean max_iters\?"),
        ({"log_levl": "INFO"}, r"the config has no 'log_levl'; did you mean log_level\?"),
        ({"train_dataloader__shuffle": True}, "'shuffle'; choose one of batch_size, num_workers"),
        ({"default_hooks__chekpoint__interval": 5}, r"did you mean checkpoint\?"),
        ({"default_hooks__checkpoint__intervall": 5}, r"did you mean interval\?"),
        ({"param_scheduler__1__etamin": 0.0}, "did you mean eta_min"),
        ({"param_scheduler__2__eta_min": 0.0}, "param_scheduler has no '2'; choose one of 0, 1"),
        ({"optim_wrapper__optimizer__lrr": 1.0}, "optim_wrapper.optimizer has no 'lrr'"),
        ({"train_cfg__max_iters__x": 5}, "train_cfg.max_iters is 400 and has no 'x' in it"),
        ({"custom_hooks__3__type": "EMAHook"}, "custom_hooks has no '3'; choose one of 0"),
        ({"custom_hooks__0__type__x": 1}, "is 'SaveAdaptersHook' and has no 'x' in it"),
        ({"encoder__cache__limt": 5}, r"encoder.cache has no 'limt'; did you mean limit\?"),
        ({"task__settings__dims": 5}, r"task.settings has no 'dims'; did you mean dim\?"),
        ({"optim_wrapper__type": "AmpOptimWraper"}, "no 'AmpOptimWraper'; did you mean AmpOptim"),
        ({"data__limit": "abc"}, "data.limit takes a whole number or null, got 'abc'"),
        ({"data__limit": True}, "data.limit takes a whole number or null, got True"),
        ({"data__source": 5}, "data.source takes text, got 5"),
        ({"data": 5}, "data takes a mapping, got 5"),
        ({"augment": "no"}, "augment takes true or false, got 'no'"),
        ({"train_cfg__max_iters": 2.5}, "train_cfg.max_iters takes a whole number, got 2.5"),
        ({"optim_wrapper__optimizer__lr": "high"}, "optimizer.lr takes a number, got 'high'"),
        ({"optim_wrapper__optimizer__betas": 0.9}, "betas takes a list, got 0.9"),
        ({"randomness__seed": "x"}, "randomness.seed takes a whole number, got 'x'"),
        ({"launcher": "magic"}, "launcher takes 'none' or 'pytorch' or 'slurm', got 'magic'"),
        ({"encoder__with_cp": 1}, "encoder.with_cp takes true or false, got 1"),
        ({"train_cfg__type": "EpochBasedTrainLoop"}, "type takes 'IterBasedTrainLoop', got 'Epoch"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_no_config_has_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        merge("retrieval", **settings)
    assert "\n" not in str(caught.value)


def test_what_a_config_may_have_is_merged() -> None:
    settings = {
        "data.limit": 60,
        "data.seed": 3,
        "encoder.with_cp": True,
        "encoder.changes": {"weights": "random"},
        "encoder.changes.foundation_dtype": "bfloat16",
        "encoder.cache.folder": "cache",
        "judge.progress": False,
        "task.settings.by": "category",
        "task.settings.loss": "triplet",
        "optim_wrapper.dtype": "bfloat16",
        "optim_wrapper.loss_scale": 512.0,
        "optim_wrapper.type": "AmpOptimWrapper",
        "optim_wrapper.accumulative_counts": 2,
        "optim_wrapper.optimizer.lr": 1,
        "optim_wrapper.optimizer.betas": [0.9, 0.95],
        "optim_wrapper.optimizer.amsgrad": True,
        "optim_wrapper.clip_grad": None,
        "optim_wrapper.paramwise_cfg": {"custom_keys": {"head.norm": {"lr_mult": 2.0}}},
        "param_scheduler.1.eta_min": 0,
        "train_cfg.val_interval": 100,
        "default_hooks.checkpoint.save_best": "auto",
        "custom_hooks.0.type": "EMAHook",
        "visualizer.type": "Visualizer",
        "randomness.deterministic": True,
        "work_dir": "runs/first",
    }
    config = merge("retrieval", **settings)
    assert config.data == {"source": "openmoji", "size": 128, "limit": 60, "seed": 3}
    assert config.encoder.changes == {"weights": "random", "foundation_dtype": "bfloat16"}
    assert config.encoder.cache == {"folder": "cache"} and config.encoder.with_cp is True
    assert config.task.settings.by == "category" and config.work_dir == "runs/first"
    wrapper = config.optim_wrapper
    assert wrapper.loss_scale == 512 and wrapper.clip_grad is None and wrapper.optimizer.amsgrad
    assert wrapper.paramwise_cfg.custom_keys["head.norm"] == {"lr_mult": 2.0}
    assert wrapper.paramwise_cfg.custom_keys.threshold.lr_mult == 10, "merged, not replaced"
    assert config.param_scheduler[1].eta_min == 0 and config.custom_hooks[0].type == "EMAHook"
    assert merge("correspondence", task__settings__loss__radius=3).task.settings.loss.radius == 3
    weighed = merge("query_segmentation", task__settings__loss__dice=0.5)
    assert weighed.task.settings.loss.dice == 0.5
    with pytest.raises(ValueError, match=r"task.settings.loss has no 'dices'; did you mean dice"):
        merge("query_segmentation", task__settings__loss__dices=0.5)
    replaced = {"type": "SGD", "lr": 0.1, "momentum": 0.9, "_delete_": True}
    assert merge("recognition", optim_wrapper__optimizer=replaced).optim_wrapper.optimizer == {
        "type": "SGD",
        "lr": 0.1,
        "momentum": 0.9,
    }


def test_a_part_that_was_taken_away_has_nothing_in_it() -> None:
    settings = {"optim_wrapper.clip_grad": None, "optim_wrapper.clip_grad.max_norm": 2.0}
    with pytest.raises(ValueError, match=r"clip_grad is None and has no 'max_norm' in it"):
        merge("retrieval", **settings)


def test_tasks_have_settings_of_their_own() -> None:
    assert merge("recognition", task__settings__label_smoothing=0.2)
    with pytest.raises(ValueError, match=r"has no 'label_smoothing'; choose one of"):
        merge("query_segmentation", task__settings__label_smoothing=0.2)
