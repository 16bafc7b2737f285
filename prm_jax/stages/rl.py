"""Stages `rl` and `rl_prm`: PPO from the SFT policy, on unit tests alone and with the PRM.

Both are one loop: sample, judge, score, reward, update. `rl` leaves evenly spaced checkpoints of
the policy (`rl/policy`), which the label stage asks for responses. `rl_prm` is the 2 x 2 of
DenseReward (`dense.enabled`) and ValueInit (`value_init`), or labels its own rollouts (online.py),
from which a PRM may learn on the way (learning.py). These labels are kept in `rl_prm/labels.jsonl`,
and such a PRM, beside each checkpoint of the policy, in `rl_prm/prm`.
"""

import contextlib
import time
from typing import Any

import jax

from prm_jax import hosts
from prm_jax.checkpoint import Checkpoints
from prm_jax.config import ConfigError, DenseConfig
from prm_jax.metrics import Progress
from prm_jax.model.linear import as_computed
from prm_jax.model.lora import join, split_trainable
from prm_jax.rl.rewards import partial_credit_gap
from prm_jax.stages.exploration import Exploration
from prm_jax.stages.labelled import read_labels
from prm_jax.stages.learning import LearningPRM
from prm_jax.stages.online import OnlineLabels
from prm_jax.stages.prm import training_responses
from prm_jax.stages.rollouts import Rollouts
from prm_jax.stages.run import Run, Stream
from prm_jax.stages.truth import asks_oracle, reads_prm
from prm_jax.steps.experience import make_experience, make_recalibration, make_score
from prm_jax.steps.ppo import make_critic_update, make_update
from prm_jax.steps.state import adam, new_state, scalar_params
from prm_jax.types import CallTests, CheckTests, StdioTests, Tests


def rl(run: Run) -> None:
    """PPO on unit tests: the baseline."""
    _ppo(run, "rl", prm=None)


def rl_prm(run: Run) -> None:
    """PPO with the PRM, as a dense reward and/or as the critic's start."""
    _ppo(
        run,
        "rl_prm",
        prm=run.restore("prm/model", run.scalar) if reads_prm(run.config) else None,
        truth=asks_oracle(run.config),
        online=run.config.dense.labels_online,
    )


def check_outcome(run: Run) -> None:
    """Raises ConfigError if line rewards could outweigh the last test under partial credit."""
    config, dense = run.config, run.config.dense
    if config.ppo.outcome != "partial" or not dense.enabled or dense.allow_rank_inversion:
        return
    most = max(_n_tests(problem.tests) for problem in run.problems.train)
    longest = config.max_completion_tokens
    worth = config.ppo.gamma ** (longest - 1) - max(1 - partial_credit_gap(most), 0.0)
    if dense.advantage_of_failing(max_lines=longest) >= worth:
        raise ConfigError(
            f"dense.lam_fail = {dense.lam_fail} and dense.lam_pass = {dense.lam_pass} are not "
            f"allowed with ppo.outcome = 'partial': a program that fails one of {most} tests is "
            f"only {worth:.3g} behind one that passes, and line rewards could make up for it; "
            "lower them, or accept it with dense.allow_rank_inversion"
        )


def _n_tests(tests: Tests) -> int:
    """How many tests there are, or more."""
    match tests:
        case CallTests():
            return len(tests.asserts)
        case StdioTests():
            return len(tests.cases)
        case CheckTests():
            return tests.code.count("assert")


def evenly_spaced(steps: int, n: int) -> list[int]:
    """n steps over a run, the last one included: steps * i / n, rounded."""
    return [round(steps * (i + 1) / n) for i in range(n)]


def _ppo(run: Run, stage: str, prm: Any | None, truth: bool = False, online: bool = False) -> None:
    config = run.config.ppo
    reference = run.restore("sft/policy", run.policy)
    policy_tx = adam(
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        steps=config.steps * config.epochs * config.minibatches,
        final_share=config.final_learning_rate,
        moments=run.config.model.moments,
    )
    critic_tx = adam(
        learning_rate=config.critic_learning_rate,
        max_grad_norm=config.max_grad_norm,
        moments=run.config.model.moments,
    )
    with Checkpoints(run.workdir / stage / "state") as states:
        resumes = bool(states.steps())
    has_critic = config.advantage != "group"
    from_prm = prm is not None and run.config.value_init and has_critic
    dense_prm = prm if prm is not None and run.config.dense.enabled and not truth else None
    scored = truth or online or dense_prm is not None
    dense = run.config.dense if scored else DenseConfig(lam_fail=0.0, lam_pass=0.0)
    rollouts = Rollouts(run, truth, dense.plan)
    labels, asked = None, rollouts
    if online:
        learner = _learner(run, reference, dense_prm) if dense.prm_learns else None
        dense_prm = None  # the learner has it from here on
        labels = OnlineLabels(run, run.workdir / stage, rollouts.width, learner)
        asked = Rollouts(run, n=run.config.whole_responses)
    rewards = {
        "lam_fail": dense.lam_fail,
        "lam_pass": dense.lam_pass,
        "form": dense.form,
        "length_normalised": dense.length_normalised,
        "tau": dense.tau,
        "error_threshold": dense.error_threshold,
        "kl_coef": config.kl_coef,
        "gamma": config.gamma,
    }
    score = make_score(
        run.policy,
        run.scalar,
        run.mesh,
        prompt_tokens=rollouts.width,
        temperature=config.temperature,
        rows_at_once=run.config.mesh.rows_at_once,
    )
    experience = make_experience(
        run.mesh,
        gae_lambda=config.gae_lambda,
        critic_lambda=config.critic_lambda,
        lambda_alpha=config.lambda_alpha,
        group_size=0 if has_critic else config.samples_per_prompt,
        **rewards,
    )
    trained, policy_frozen = split_trainable(reference)
    policy = new_state(trained, policy_tx, run.mesh)
    critic, critic_frozen = None, {}
    if has_critic:
        if from_prm and not resumes:
            critic_params = _recalibrated(run, rollouts, reference, prm)
        else:
            critic_params = scalar_params(run.scalar, reference["trunk"], run.mesh)
        trained, critic_frozen = split_trainable(critic_params)
        critic = new_state(trained, critic_tx, run.mesh)
        if config.critic_warmup_steps and not resumes:
            returns = make_experience(run.mesh, gae_lambda=1.0, **rewards)
            warmed = _warmed_up(
                run, stage, rollouts, critic, critic_frozen, critic_tx, reference, dense_prm, score,
                returns,
            )  # fmt: skip
            critic = new_state(warmed, critic_tx, run.mesh)
    frozen = (policy_frozen, critic_frozen)
    if not run.config.model.lora_rank:  # with adapters, all of them share the frozen parameters
        # What is only read from here on needs no more than the layers' precision.
        reference = as_computed(reference, run.config.model)
        if dense_prm is not None:
            dense_prm = as_computed(dense_prm, run.config.model)
    del prm, trained
    critic_params = None
    update = make_update(
        run.policy,
        run.scalar,
        policy_tx,
        critic_tx,
        run.mesh,
        jax.tree.map(lambda x: x.sharding, policy),
        jax.tree.map(lambda x: x.sharding, critic),
        prompt_tokens=rollouts.width,
        epochs=config.epochs,
        minibatches=config.minibatches,
        temperature=config.temperature,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        value_clip=config.value_clip,
        sampler_cap=config.sampler_cap,
        rows_at_once=run.config.mesh.rows_at_once,
    )
    kept = evenly_spaced(config.steps, run.config.label.checkpoints)

    with (
        Checkpoints(run.workdir / stage / "state", keep=1) as states,
        Checkpoints(run.workdir / stage / "policy") as policies,
    ):
        start = states.steps()[-1] if states.steps() else 0
        of_labels = () if labels is None else labels.states
        if start:
            policy, critic, *of_labels = states.restore(start, (policy, critic, *of_labels))
        run.log.rewind(stage, start)
        with (
            Exploration(run.workdir / stage, start) as exploration,
            Progress(config.steps, stage, initial=start) as progress,
            labels or contextlib.nullcontext(),
        ):
            if labels is not None:
                labels.go_on(start, of_labels)
            for step in range(start, config.steps):
                begun_s = time.perf_counter()
                policy_params = join(policy.params, policy_frozen)
                problems, samples = asked.sample(policy_params, step)
                completions = asked.completions(samples)
                sampled_s = time.perf_counter()
                verdicts = asked.judge(problems, completions)
                critic_params = None if critic is None else join(critic.params, critic_frozen)
                label_metrics: dict[str, Any] = {}
                if labels is None:
                    ref_logp, values, scores = score(reference, critic_params, dense_prm, samples)
                    passed, outcome = rollouts.outcomes(verdicts)
                    pass_rate = passed.mean()
                    scores = rollouts.scores(problems, completions, passed, scores)
                else:
                    passed, outcome = asked.outcomes(verdicts)
                    pass_rate = passed.mean()
                    problems, completions, samples, passed, outcome, scores, label_metrics = (
                        labels.extend(
                            policy_params, step, problems, completions, samples, passed, outcome
                        )
                    )
                    ref_logp, values, by_prm = score(reference, critic_params, labels.prm, samples)
                    scores = scores if labels.prm is None else by_prm
                exploration.add(step, *rollouts.solved(problems, completions, passed))
                judged_s = time.perf_counter()
                rollout = rollouts.assemble(samples, completions, outcome, ref_logp, values, scores)
                batch, reward_metrics = experience(rollout)
                policy, critic, update_metrics = update(
                    policy, critic, frozen, batch, run.key(Stream.RL_SHUFFLE, step)
                )
                run.log.log(
                    stage,
                    step,
                    reward_metrics
                    | update_metrics
                    | label_metrics
                    | {
                        "rollout/pass_rate": pass_rate,
                        "time/sample_s": sampled_s - begun_s,
                        "time/judge_and_score_s": judged_s - sampled_s,
                    },
                )
                progress.update(**{"pass_rate": pass_rate})
                done = step + 1
                if done in kept:
                    policies.save(done, policy.params)
                    if labels is not None:
                        labels.save_prm(done)
                if done == config.steps:
                    break
                stop = hosts.stop_asked()
                if stop or done % config.checkpoint_every == 0:
                    run.log.flush()
                    exploration.flush()
                    policies.wait()  # a resume from this state does not save them again
                    if labels is not None:
                        labels.flush()
                    of_labels = () if labels is None else labels.states
                    states.save(done, (policy, critic, *of_labels))
                if stop:
                    raise hosts.Stopped
        run.log.flush()
    if critic is not None:
        with Checkpoints(run.workdir / stage / "critic") as critics:
            critics.save(config.steps, critic.params)
    # One rollout recalibrates the PRM; those of the critic's warm-up train nothing else.
    before = (from_prm + config.critic_warmup_steps) * config.rollouts
    generated = before + exploration.programs()
    summary = {"steps": config.steps, "programs_generated": generated}
    run.finish(stage, summary | {"exploration": exploration.counts(len(run.problems.train))})


def _learner(run: Run, policy_params: Any, prm: Any | None) -> LearningPRM:
    """What learns on while RL runs: the PRM of stage `prm`, or one that knows nothing yet."""
    if prm is None:
        return LearningPRM(run, scalar_params(run.scalar, policy_params["trunk"], run.mesh))
    return LearningPRM(run, prm, training_responses(run, read_labels(run)))


def _recalibrated(run: Run, rollouts: Rollouts, policy_params: Any, prm: Any) -> Any:
    """The PRM's parameters with its head brought to the scale of returns, on one rollout."""
    problems, samples = rollouts.sample(policy_params, 0, stream=Stream.RECALIBRATE)
    completions = rollouts.completions(samples)
    verdicts = rollouts.judge(problems, completions)
    _, outcome = rollouts.outcomes(verdicts)
    unused = samples.logp
    rollout = rollouts.assemble(samples, completions, outcome, unused, unused, unused)
    recalibration = make_recalibration(run.scalar, run.mesh, gamma=run.config.ppo.gamma)
    scale, shift = recalibration(prm, rollout)
    head = {"kernel": prm["head"]["kernel"] * scale, "bias": prm["head"]["bias"] * scale + shift}
    return prm | {"head": head}


def _warmed_up(
    run: Run, stage: str, rollouts: Rollouts, critic, frozen, critic_tx, reference, prm, score,
    returns,
) -> Any:  # fmt: skip
    """What trains of the critic, after steps on Monte-Carlo returns of the policy `reference`.

    A run that is killed in here does it again, in the same way: no PPO step has been taken yet.
    """
    config = run.config.ppo
    update = make_critic_update(
        run.scalar,
        critic_tx,
        run.mesh,
        jax.tree.map(lambda x: x.sharding, critic),
        prompt_tokens=rollouts.width,
        epochs=config.epochs,
        minibatches=config.minibatches,
        rows_at_once=run.config.mesh.rows_at_once,
    )
    name = f"{stage}_critic"
    run.log.rewind(name, 0)
    with Progress(config.critic_warmup_steps, name) as progress:
        for step in range(config.critic_warmup_steps):
            problems, samples = rollouts.sample(reference, step, stream=Stream.CRITIC_WARMUP)
            completions = rollouts.completions(samples)
            verdicts = rollouts.judge(problems, completions)
            ref_logp, values, scores = score(reference, join(critic.params, frozen), prm, samples)
            passed, outcome = rollouts.outcomes(verdicts)
            scores = rollouts.scores(problems, completions, passed, scores)
            rollout = rollouts.assemble(samples, completions, outcome, ref_logp, values, scores)
            batch, reward_metrics = returns(rollout)
            critic, metrics = update(critic, frozen, batch, run.key(Stream.CRITIC_WARMUP, step, 1))
            run.log.log(name, step, reward_metrics | metrics)
            progress.update(1)
            hosts.check_stop()
    run.log.flush()
    return critic.params
