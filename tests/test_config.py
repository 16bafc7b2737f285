"""Settings are refused when they are made, and say which field, which value, what is allowed."""

import dataclasses
import json
from pathlib import Path

import pytest

from prm_jax.config import (
    ChainsConfig,
    Config,
    ConfigError,
    DenseConfig,
    EvaluateConfig,
    LabelConfig,
    MeshConfig,
    ModelConfig,
    PPOConfig,
    PRMConfig,
    PromptsConfig,
    to_json,
)
from prm_jax.config_file import differences, load_config, read_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def group(**settings) -> PPOConfig:
    return PPOConfig(advantage="group", samples_per_prompt=4, **settings)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PPOConfig(clip_low=-0.1), "ppo.clip_low = -0.1"),
        (lambda: PPOConfig(learning_rate=0.0), "ppo.learning_rate = 0.0"),
        (lambda: PPOConfig(gamma=1.5), "ppo.gamma = 1.5"),
        (lambda: PPOConfig(rollouts=100, minibatches=3), "ppo.rollouts = 100"),
        (lambda: ModelConfig(heads=3, kv_heads=2), "model.kv_heads = 2"),
        (lambda: ModelConfig(head_dim=7), "model.head_dim = 7"),
        (lambda: MeshConfig(data=-1, fsdp=-1), "at most one axis"),
        (lambda: LabelConfig(samples_per_prefix=10, wave=4), "label.wave = 4"),
        (lambda: ChainsConfig(long_horizons=(7, 9)), "problems.chains.long_horizons"),
        (lambda: EvaluateConfig(inspect=1), "evaluate.inspect = 1"),
        (lambda: EvaluateConfig(inspect=-1), "evaluate.inspect = -1"),
        (lambda: Config(ppo=PPOConfig(steps=2)), "label.checkpoints = 4"),
        (lambda: PPOConfig(critic_lambda=1.5), "ppo.critic_lambda = 1.5"),
        (lambda: PPOConfig(lambda_alpha=-1.0), "ppo.lambda_alpha = -1.0"),
        (lambda: PPOConfig(sampler_cap=-1.0), "ppo.sampler_cap = -1.0"),
        (lambda: PPOConfig(critic_warmup_steps=-1), "ppo.critic_warmup_steps = -1"),
        (lambda: PPOConfig(outcome="half"), "ppo.outcome = 'half'"),  # type: ignore[arg-type]
        (lambda: PPOConfig(advantage="rloo"), "ppo.advantage = 'rloo'"),  # type: ignore[arg-type]
        (lambda: PPOConfig(advantage="group"), "ppo.samples_per_prompt = 1"),
        (lambda: group(lambda_alpha=0.5), "ppo.lambda_alpha = 0.5"),
        (lambda: group(critic_lambda=0.0), "ppo.critic_lambda = 0.0"),
        (lambda: group(critic_warmup_steps=3), "ppo.critic_warmup_steps = 3"),
        (lambda: Config(ppo=group()), "value_init = True"),
        (lambda: LabelConfig(search="linear"), "label.search"),  # type: ignore[arg-type]
        (lambda: PRMConfig(selection="medium"), "one of full, remove_hard"),  # type: ignore
        (lambda: PromptsConfig(stop=("a", 3)), "prompts.stop = ('a', 3)"),  # type: ignore
        (lambda: LabelConfig(wave=True), "label.wave = True"),
        (lambda: LabelConfig(wave="2"), "label.wave = '2' is not allowed: it must be of type int"),  # type: ignore
        (lambda: DenseConfig(enabled="false"), "dense.enabled = 'false'"),  # type: ignore
        (lambda: ChainsConfig(test_horizons=(3, 8, 9)), "tuple[int, int]"),  # type: ignore
        (lambda: LabelConfig(completer="oracle"), "label.completer"),  # type: ignore[arg-type]
        (lambda: PRMConfig(target="soft"), "prm.target = 'soft'"),  # type: ignore[arg-type]
        (lambda: PRMConfig(loss_on="last"), "prm.loss_on = 'last'"),  # type: ignore[arg-type]
        (lambda: PRMConfig(target="rate", loss_on="outcome"), "prm.target = 'rate'"),
        (lambda: Config(prm=PRMConfig(target="rate")), "label.wave = 2"),
        (
            lambda: Config(prm=PRMConfig(target="rate"), label=LabelConfig(wave=8)),
            "label.search = 'cheapest'",
        ),
    ],
)
def test_refusals_name_field_and_value(make, said):
    with pytest.raises(ConfigError, match="is not allowed|must be") as error:
        make()
    assert said in str(error.value)


@pytest.mark.parametrize(("fail", "passing"), [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (0.6, 0.45)])
def test_weights_that_could_rank_a_failing_program_first_need_the_named_switch(fail, passing):
    with pytest.raises(ConfigError, match="allow_rank_inversion"):
        DenseConfig(lam_fail=fail, lam_pass=passing)
    DenseConfig(lam_fail=fail, lam_pass=passing, allow_rank_inversion=True)


def test_rates_are_accepted_where_every_probe_has_all_its_completions():
    label = LabelConfig(samples_per_prefix=8, wave=8, search="binary")
    Config(prm=PRMConfig(target="rate"), label=label)
    Config(prm=PRMConfig(target="counts"))  # right for any search


def test_groups_without_a_critic_are_accepted():
    Config(value_init=False, ppo=group())


def test_weights_below_the_bound_are_accepted():
    DenseConfig(lam_fail=0.25, lam_pass=0.025)  # the paper's
    DenseConfig(lam_fail=0.5, lam_pass=0.49)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_file_loads_and_is_json(path):
    config = load_config(path)
    assert json.loads(to_json(config))["seed"] == config.seed


def test_a_mistyped_config_path_gets_a_suggestion(tmp_path):
    (tmp_path / "small.py").write_text("")
    with pytest.raises(ConfigError, match="did you mean .*small.py"):
        load_config(tmp_path / "smal.py")


def test_a_config_file_without_get_config_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="get_config"):
        load_config(tmp_path / "empty.py")


def test_differences_name_nested_fields():
    old = dataclasses.asdict(Config())
    new = dataclasses.asdict(Config(seed=3, ppo=PPOConfig(clip_low=0.1)))
    assert differences(old, new) == ["ppo.clip_low: 0.2 -> 0.1", "seed: 0 -> 3"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_runs_settings_are_read_as_they_were_written(path, tmp_path):
    config = dataclasses.replace(load_config(path), seed=7)
    (tmp_path / "config.json").write_text(to_json(config))
    assert read_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s["ppo"].update(stepz=1), "config.json: ppo holds .'stepz'"),
        (lambda s: s.update(sed=1), "sed"),
        (lambda s: s["ppo"].update(steps=-1), "ppo.steps = -1"),
    ],
)
def test_settings_of_another_version_are_refused(spoil, said, tmp_path):
    settings = json.loads(to_json(Config()))
    spoil(settings)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=said):
        read_config(tmp_path / "config.json")


def test_a_folder_without_settings_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match="not the workdir of a run"):
        read_config(tmp_path / "config.json")


def test_settings_that_came_later_stand_at_their_defaults(tmp_path):
    settings = json.loads(to_json(dataclasses.replace(Config(), seed=5)))
    del settings["ppo"]["gamma"], settings["prompts"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert read_config(tmp_path / "config.json") == dataclasses.replace(Config(), seed=5)
