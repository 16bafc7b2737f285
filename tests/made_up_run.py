"""A workdir with made-up results, for the tests of the report and for looking at its page.

python tests/made_up_run.py DIR && python -m prm_jax.report --workdir DIR
"""

import json
import sys
from pathlib import Path

import numpy as np

from prm_jax.config import Config, to_json
from prm_jax.metrics import MetricsLog


def estimate(rng, value, n):
    value = float(np.clip(value + rng.normal(0, 0.01), 0.01, 0.99))
    half = 1.96 * (value * (1 - value) / n) ** 0.5
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def made_up_arm(rng, level, *, generated):
    return {
        "pass_at_1": estimate(rng, level, 200),
        "pass_at_k": {
            "5": estimate(rng, level + 0.08, 200),
            "10": estimate(rng, level + 0.11, 200),
        },
        "by_horizon": {str(h): estimate(rng, level + 0.3 - 0.055 * h, 33) for h in range(3, 9)},
        "test_long": {
            "pass_at_1": estimate(rng, level - 0.27, 200),
            "pass_at_k": {"5": estimate(rng, level - 0.17, 200)},
            "by_horizon": {str(h): estimate(rng, level + 0.25 - 0.055 * h, 100) for h in (9, 10)},
        },
        "samples": 10,
        "temperature": 0.2,
        "programs_generated": generated,
    }


def made_up_arms(rng):
    arms = {
        "sft": made_up_arm(rng, 0.34, generated=0),
        "rl": made_up_arm(rng, 0.62, generated=5120),
        "rl_prm": made_up_arm(rng, 0.66, generated=5120),
    }
    for arm in ("sft", "rl_prm"):
        value = arms[arm]["pass_at_1"]["value"] - arms["rl"]["pass_at_1"]["value"]
        low, high = value - 0.048, value + 0.051
        arms[arm]["difference_to_rl"] = {"value": value, "low": low, "high": high, "n": 200}
    for arm, more in (("rl", 0), ("rl_prm", 1)):
        arms[arm]["exploration"] = {
            "problems": 4000, "asked": 1701 + more, "solved": 803 + more,
            "distinct_solutions": 2911 + more,
        }  # fmt: skip
        arms[arm]["critic"] = {
            "prefixes": 64, "completions": 16, "rmse": 0.1531 + more / 9,
            "rmse_of_mean": 0.2417 + more / 7, "correlation": 0.8125 - more / 6,
        }  # fmt: skip
        arms[arm]["plans"] = {
            "problems": 63, "plans_per_problem": 4, "programs_per_plan": 5,
            "pass_rate": 0.5219 + more / 8, "between_problems": 0.0611, "between_plans": 0.0713,
            "within_plans": 0.1131 + more / 9, "plan_share": 0.3866 - more / 9,
        }  # fmt: skip
    return arms


def made_up_results(rng):
    bins = []
    for low in np.linspace(0, 0.9, 10):
        mean = float(low + rng.uniform(0.02, 0.08))
        success = float(np.clip(mean + rng.normal(0, 0.05), 0, 1))
        bins.append(
            {"low": float(low), "high": float(low + 0.1), "mean_score": mean, "success": success,
             "n": int(20 + 1500 * (mean - 0.5) ** 2)}
        )  # fmt: skip
    return {
        "schema": 1,
        "seed": 3,
        "config_digest": "5f3ac0d1b7e2",
        "versions": {"prm_jax": "0.1.0", "jax": "0.10.2", "python": "3.11.9"},
        "confidence": 0.95,
        "arms": made_up_arms(rng),
        "label_cost": {
            "responses": 4256, "failing": 2911, "labels": 27845, "probes": 8733,
            "completions": 46012, "sampled_tokens": 1012264, "executions": 11770,
            "completions_per_label": 46012 / 27845, "executions_per_label": 11770 / 27845,
            "completions_per_failing_response": 46012 / 2911, "seconds": 131.4,
        },
        "labels": {
            "correct": 1345, "revised": 2204, "wrong": 707,
            "oracle_first_error_exact": 0.8713, "oracle_line_agreement": 0.9641,
        },
        "prm": {
            "n_responses": 256, "auc_within_problem": 0.8412, "auc_within_response": 0.8834,
            "first_error": {
                "n_error": 174, "n_ok": 82, "f1": 0.6311, "acc_error": 0.5524, "acc_ok": 0.7359,
                "exact": 0.5524, "too_early": 0.1917, "too_late": 0.1712, "missed": 0.0847,
                "threshold": -0.05,
            },
            "calibration": bins,
            "ece": 0.0473,
            "by_completions": {
                "prefixes": 251, "completions": 16, "k": 8, "pass_rate": 0.0913, "saved": 0.3812,
                "correlation": 0.6173, "ece": 0.1391, "calibration": bins,
            },
            "style": {
                style: {"n": 60 + i, "accused": 0.1234 + i / 9, "mean_score": 0.4321 - i / 3,
                        "mean_change": -0.1717 * i}
                for i, style in enumerate(("as_written", "commented"))
            },
            "by_step_of_rl_prm": {
                str(step): {
                    "responses": 512 + step, "responses_per_problem": 6 + step,
                    "pass_rate": 0.2113 + share,
                    "best_of_n": {"lowest": 0.3314 + share, "last": 0.3021 + share},
                    "any_of_n": 0.4417 + share, "auc_passed": 0.7119 + share,
                    "mean_score": {"passing": 0.6612 - share, "failing": -0.2115 - share},
                    "by_oracle": {"first_error": {"exact": 0.5513 + share}},
                }
                for step, share in ((10, 0.0), (20, 0.0877))
            },
        },
    }  # fmt: skip


def made_up_program(rng, index):
    wordings = ["drop the first {} elements", "add {} to every element", "keep those above {}"]
    codes = ["{b} = {a}[{n}:]", "{b} = [v + {n} for v in {a}]", "{b} = [v for v in {a} if v > {n}]"]
    horizon = int(rng.integers(3, 9))
    prompt, lines = "Start with the list a.\n", []
    wrong_step = int(rng.integers(0, horizon)) if rng.random() < 0.5 else None
    error = None
    for m in range(horizon):
        op, n = int(rng.integers(3)), int(rng.integers(2, 9))
        prompt += f"{m + 1}. {wordings[op].format(n)}\n"
        if rng.random() < 0.15:
            lines.append({"text": "    # next step", "kind": "comment", "score": 0.02})
        if m == wrong_step:
            error, op = len(lines), (op + 1) % 3
        text = "    " + codes[op].format(a=chr(97 + m), b=chr(98 + m), n=n)
        broken = error is not None and len(lines) >= error
        score = float(np.clip((-0.5 if broken else 0.7) + rng.normal(0, 0.3), -1.1, 1.1))
        lines.append({"text": text, "kind": "code", "score": score})
    lines.append({"text": "", "kind": "blank", "score": None})
    lines.append({"text": f"    return {chr(97 + horizon)}", "kind": "code", "score": score})
    return {
        "task_id": f"chains/test/{index:03d}",
        "arm": ["sft", "rl", "rl_prm"][index % 3],
        "split": "test",
        "horizon": horizon,
        "prompt": prompt,
        "program_prefix": "def solve(a):\n",
        "completion": "\n".join(line["text"] for line in lines),
        "passed": error is None,
        "status": "passed" if error is None else "failed",
        "lines": lines,
        "first_error": error,
    }


def made_up_metrics(rng, workdir):
    with MetricsLog(workdir) as log:
        for step in range(600):
            loss = 0.3 + 3 * np.exp(-step / 60) + rng.normal(0, 0.03)
            log.log("sft", step, {"sft/loss": loss})
        for step in range(600):
            log.log(
                "prm", step, {"prm/loss": 0.35 + 0.6 * np.exp(-step / 150) + rng.normal(0, 0.03)}
            )
        for stage, final in (("rl", 0.62), ("rl_prm", 0.67)):
            for step in range(40):
                level = final - (final - 0.22) * np.exp(-step / 12)
                values = {
                    "rollout/pass_rate": level + rng.normal(0, 0.04),
                    "reward/kl": -0.004 * step + rng.normal(0, 0.01),
                    "rollout/lines": 7.1 + rng.normal(0, 0.1),
                    "rollout/length_tokens": 38 + rng.normal(0, 1),
                    "policy/approx_kl": 0.01 + abs(rng.normal(0, 0.004)),
                    "policy/clip_fraction": 0.08 + rng.normal(0, 0.01),
                    "value/loss": 0.1 + rng.normal(0, 0.01),
                    "value/explained_variance": 0.6 - 0.5 * np.exp(-step / 8),
                }
                if stage == "rl_prm":
                    values["reward/line"] = 0.1 + 0.005 * step + rng.normal(0, 0.02)
                log.log(stage, step, values)


def make_workdir(workdir, *, metrics=False):
    rng = np.random.default_rng(0)
    workdir.mkdir(parents=True, exist_ok=True)
    results = made_up_results(rng)
    (workdir / "results.json").write_text(json.dumps(results))
    (workdir / "config.json").write_text(to_json(Config()))
    (workdir / "evaluate").mkdir(exist_ok=True)
    programs = [made_up_program(rng, index) for index in range(20)]
    write_programs(workdir, programs)
    if metrics:
        made_up_metrics(rng, workdir)
    return results, programs


def write_programs(workdir, programs):
    text = "".join(json.dumps(program) + "\n" for program in programs)
    (workdir / "evaluate" / "scored.jsonl").write_text(text)


if __name__ == "__main__":
    make_workdir(Path(sys.argv[1]), metrics=True)
