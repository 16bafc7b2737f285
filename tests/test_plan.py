"""The plan's parts that need no compiler: names of slices, costs read from HLO texts, the words.

The texts are cut from what the TPU compiler printed, and the numbers are worked out by hand.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from prm_jax.config import Config, ConfigError, DenseConfig, MeshConfig, ModelConfig, PPOConfig
from prm_jax.model.flash import flash_attention
from prm_jax.plan import __main__ as command
from prm_jax.plan.arithmetic import flops
from prm_jax.plan.compiling import Plan, out_of_memory, tpu_devices
from prm_jax.plan.hlo import HLOError, cost_of
from prm_jax.plan.programs import bytes_per_chip, programs
from prm_jax.plan.slices import SLICES, find_slice
from prm_jax.plan.table import table, verdict
from prm_jax.sharding import make_mesh

# ------------------------------------------------------------------------------------ slices


@pytest.mark.parametrize(
    ("name", "topology", "chips"),
    [
        ("v4-8", "v4:2x2x1", 4),  # v4 and v5p count TensorCores
        ("v4-128", "v4:4x4x4", 64),
        ("v5p-64", "v5p:2x4x4", 32),
        ("v5e-8", "v5e:2x4", 8),  # v5e and v6e count chips
        ("v5litepod-64", "v5e:8x8", 64),
        ("v6e-256", "v6e:16x16", 256),
    ],
)
def test_slices_have_gclouds_names(name, topology, chips):
    found = find_slice(name)
    assert (found.topology, found.chips) == (topology, chips)


@pytest.mark.parametrize("name", sorted(SLICES))
def test_the_number_in_a_name_is_of_chips_or_of_cores(name):
    kind, n = name.split("-")
    assert find_slice(name).chips * (2 if kind in ("v4", "v5p") else 1) == int(n)


@pytest.mark.parametrize("name", ["v5e-7", "v5e", "v3-8", "tpu", ""])
def test_unknown_slices_are_refused_with_those_that_are_known(name):
    with pytest.raises(ConfigError, match="is not a TPU slice.*v5e-64") as refused:
        find_slice(name)
    assert ("v4-8" in str(refused.value)) == (name.split("-")[0] != "v5e")


def test_clocks_are_those_at_which_the_matrix_units_reach_the_peak():
    clocks = {name: find_slice(name).chip.clock_hz / 1e9 for name in ("v4-8", "v5e-8", "v5p-8")}
    assert clocks == pytest.approx({"v4-8": 1.05, "v5e-8": 1.503, "v5p-8": 1.75}, abs=2e-3)


# --------------------------------------------------------------------------------------- HLO

CYCLES = 'backend_config={{"estimated_cycles":"{}"}}'

# Two loops, one in the other: 3 x (100 + 4 x (10 + 7)) + 1000 + 50 cycles. Each outer round gathers
# bf16[64,128] over fsdp (16,384 bytes, of which a chip sends 7/8), each inner one reduces f32[32].
NESTED = (Path(__file__).parent / "data/nested_loops.hlo").read_text()


def with_cycles(text: str) -> str:
    return re.sub(r"BACKEND_(\d+)", lambda m: CYCLES.format(m[1]), text)


MESH = {"data": 1, "fsdp": 8, "tensor": 1}


def test_loops_count_as_often_as_they_run_nested_ones_too():
    cost = cost_of(with_cycles(NESTED), MESH)
    assert cost.cycles == 3 * (100 + 4 * (10 + 7)) + 1000 + 50
    assert cost.unbounded == 0
    gathered, reduced = 64 * 128 * 2 * 7 / 8, 2 * 32 * 4 * 7 / 8
    assert cost.moved == {"fsdp": 3 * (gathered + 4 * reduced)}


def test_a_loop_that_the_compiler_unrolled_runs_less_often():
    text = with_cycles(NESTED).replace(
        "ROOT %fusion.2 = (s32[], f32[32]) fusion(%all-reduce.1), kind=kLoop, calls=%fused, "
        + CYCLES.format(7),
        "%step = u32[] constant(3)\n  %next = s32[] add(%old, %step)\n  "
        "ROOT %out = (s32[], f32[32]) tuple(%next, %all-reduce.1)",
    )
    # From 2 to below 6 in steps of 3: twice.
    assert cost_of(text, MESH).cycles == 3 * (100 + 2 * 10) + 1000 + 50


def test_a_loop_that_ends_when_its_data_say_so_counts_at_its_most():
    text = with_cycles(NESTED).replace(
        "ROOT %less = pred[]{:T(512)} compare(%j, %bound), direction=LT",
        "ROOT %alive = pred[]{:T(512)} get-tuple-element(%q), index=1",
    )
    cost = cost_of(text, MESH, most_trips=20)
    assert cost.cycles == 20 * (100 + 4 * (10 + 7)) + 1000 + 50
    assert cost.unbounded == 1
    # One around another counts once: the trips of the inner one are those of all its turns.
    text = text.replace(
        "ROOT %less = pred[]{:T(512)} compare(%i, %n), direction=LT",
        "ROOT %going = pred[]{:T(512)} get-tuple-element(%p), index=1",
    )
    cost = cost_of(text, MESH, most_trips=20)
    assert cost.cycles == 1 * (100 + 20 * (10 + 7)) + 1000 + 50
    assert cost.unbounded == 2


def one_line(line: str) -> str:
    return f"HloModule jit_f\n\nENTRY %main (a: f32[8]) -> f32[8] {{\n  {line}\n}}\n"


CUBE = {"data": 2, "fsdp": 2, "tensor": 4}


@pytest.mark.parametrize(
    ("line", "axis", "sent"),
    [
        # bf16[16,8] gathered from 4 chips that lie next to each other: 256 bytes x 3/4
        (
            "%g = bf16[16,8]{1,0} all-gather(%a), channel_id=1, replica_groups=[4,4]<=[16], "
            "dimensions={0}",
            "tensor",
            192,
        ),
        # the pairs (0, 4), (1, 5) ... differ in fsdp: all-reduce sends f32[10] twice, by half
        (
            "%r = f32[10]{0} all-reduce(%a), channel_id=1, "
            "replica_groups=[8,2]<=[2,2,4]T(0,2,1), to_apply=%add",
            "fsdp",
            40,
        ),
        # both axes of the batch: 4 chips, f32[2,4] remain of f32[8,4] = 128 bytes
        (
            "%s = f32[2,4]{1,0} reduce-scatter(f32[8,4]{1,0} %a), channel_id=1, "
            "replica_groups={{0,4,8,12},{1,5,9,13},{2,6,10,14},{3,7,11,15}}, dimensions={0}, "
            "to_apply=%add",
            "data+fsdp",
            96,
        ),
        (
            "%s = f32[2,4]{1,0} reduce-scatter(%a), channel_id=1, "
            "replica_groups=mesh['x'=4,'y'=4] {'x'}, dimensions={0}, to_apply=%add",
            "data+fsdp",
            96,
        ),
        (
            "%p = s8[100]{0} collective-permute(%a), channel_id=1, "
            "source_target_pairs={{0,8},{8,0},{1,9},{9,1}}",
            "data",
            100,
        ),
        (
            "%t = (f32[4]{0}, f32[4]{0}) all-to-all(%a, %b), channel_id=1, "
            "replica_groups={{0,4},{1,5},{2,6},{3,7},{8,12},{9,13},{10,14},{11,15}}",
            "fsdp",
            16,
        ),
        # an asynchronous gather: its type names operand and result
        (
            "%g = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%a), channel_id=1, "
            "replica_groups=[4,4]<=[16], dimensions={0}",
            "tensor",
            192,
        ),
    ],
)
def test_bytes_are_what_a_chip_sends_along_an_axis(line, axis, sent):
    assert cost_of(one_line(line), CUBE).moved == {axis: sent}


def test_a_gather_that_is_spread_over_fusions_counts_once():
    gather = (
        "%g.{0} = bf16[16,8]{{1,0}} all-gather(%p), channel_id=5, "
        "replica_groups=[4,4]<=[16], dimensions={{0}}"
    )
    bodies = "".join(
        f"%step.{i} (p: bf16[4,8]) -> bf16[16,8] {{\n  {gather.format(i)}\n}}\n\n" for i in (1, 2)
    )
    calls = "\n  ".join(f"%f.{i} = bf16[16,8] fusion(%a), calls=%step.{i}" for i in (1, 2))
    text = one_line(calls).replace("ENTRY", bodies + "ENTRY")
    assert cost_of(text, CUBE).moved == {"tensor": 192}


def test_a_reduce_scatter_that_is_written_as_an_all_reduce_counts_half_of_it():
    body = (
        "%scatter (p: f32[16]) -> f32[4] {\n  %r = f32[16]{0} all-reduce(%p), channel_id=2, "
        "replica_groups=[4,4]<=[16], to_apply=%add\n  ROOT %s = f32[4] dynamic-slice(%r)\n}\n\n"
    )
    line = "%all-reduce-scatter.3 = f32[4]{0} fusion(%a), kind=kCustom, calls=%scatter"
    text = one_line(line).replace("ENTRY", body + "ENTRY")
    assert cost_of(text, CUBE).moved == {"tensor": 64 * 3 / 4}


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(HLOError, match="no ENTRY"):
        cost_of("module { }", MESH)


# -------------------------------------------------------------------------------- arithmetic


def counted(function, *shapes, **settings) -> float:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flops(jax.make_jaxpr(function)(*arguments).jaxpr, **settings)


def test_products_count_two_operations_per_multiply_add():
    assert counted(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert counted(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (2, 3, 5), (2, 5, 7)) == 420


def test_loops_branches_and_recomputation_count_as_they_run():
    def scanned(a):
        return jax.lax.scan(lambda x, _: (x @ a, None), a, length=6)[0]

    assert counted(scanned, (4, 4)) == 6 * 2 * 4**3

    def until(a):
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ x, a)

    assert counted(until, (4, 4), most_trips=9) == 9 * 2 * 4**3

    def around(a):  # the trips of the inner loop are those of all its turns together
        return jax.lax.while_loop(lambda x: x.min() > 0, lambda x: until(x) @ x, a)

    assert counted(around, (4, 4), most_trips=9) == (9 + 1) * 2 * 4**3

    def beside_one_without_products(a):
        def halved(x):
            return jax.lax.while_loop(lambda x: x.max() > 1, lambda x: x / 2, x)

        return jax.lax.while_loop(lambda x: x.min() > 0, lambda x: halved(x) @ x, a)

    assert counted(beside_one_without_products, (4, 4), most_trips=9) == 9 * 2 * 4**3

    def either(a):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ (a @ a), lambda: a @ a)

    assert counted(either, (4, 4)) == 2 * 2 * 4**3

    def twice(a, b):
        return jnp.sin(jnp.sin(a @ b) @ b).sum()

    plain = counted(jax.grad(twice), (4, 4), (4, 4))
    again = counted(jax.grad(jax.checkpoint(twice)), (4, 4), (4, 4))
    assert plain == 2 * 4**3 * 4 and again == 2 * 4**3 * 6


def test_work_on_each_device_counts_for_all_of_them():
    mesh = make_mesh(MeshConfig(fsdp=8))
    rows = jax.sharding.PartitionSpec("fsdp")
    with jax.set_mesh(mesh):
        spread = jax.shard_map(lambda a: a @ a.T, in_specs=rows, out_specs=rows)
        assert counted(spread, (16, 4)) == 8 * (2 * 2 * 4 * 2)


def test_the_kernel_of_attention_counts_its_products():
    heads, t, head_dim = 2, 256, 64

    def attention(q, k, v):
        return flash_attention(q, k, v, jnp.ones((1, t), bool), interpret=True)

    found = counted(attention, *[(1, heads, t, head_dim)] * 3)
    every = 2 * 2 * heads * t * t * head_dim
    assert every / 2 <= found <= every  # what is masked away need not count


# ----------------------------------------------------------------------------------- programs

SMALL = Config(
    max_prompt_tokens=16,
    max_completion_tokens=16,
    model=ModelConfig(
        layers=2, embed=32, heads=2, kv_heads=2, head_dim=16, mlp=64, vocab_size=512,
        dtype="bfloat16",
    ),
    ppo=PPOConfig(rollouts=16, minibatches=2),
)  # fmt: skip


def test_a_run_has_all_its_programs_and_each_can_be_lowered():
    mesh = make_mesh(MeshConfig(fsdp=8))
    found = list(programs(SMALL, mesh, "all"))
    assert [program.name for program in found] == [
        "sft/step",
        "prm/step",
        "ppo/sample",
        "ppo/score",
        "ppo/experience",
        "ppo/policy_update",
        "ppo/critic_update",
        "label/respond",
        "label/read",
        "label/sample",
    ]
    with jax.set_mesh(mesh):
        for program in found:
            traced = program.function.trace(*program.arguments)
            assert traced.lower() is not None
            assert (flops(traced.jaxpr.jaxpr) > 0) == (program.name != "ppo/experience")


def test_what_a_stage_keeps_is_counted_once_with_the_arguments():
    mesh = make_mesh(MeshConfig(fsdp=8))
    held = {
        program.name: bytes_per_chip(program.kept)
        + bytes_per_chip([x for x in program.arguments[:3] if not hasattr(x, "tokens")])
        for program in programs(SMALL, mesh, "ppo")
        if program.name in ("ppo/policy_update", "ppo/critic_update")
    }
    # Policy and critic with two moments each, reference and PRM in bfloat16: the same in both.
    assert len(set(held.values())) == 1
    n_params = 512 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64)  # norms and heads are few
    expected = n_params / 8 * (2 * 12 + 2 * 2)
    assert held["ppo/policy_update"] == pytest.approx(expected, rel=0.1)


def test_without_a_critic_there_is_none_to_update():
    ppo = dataclasses.replace(SMALL.ppo, advantage="group", samples_per_prompt=2, rollouts=32)
    config = dataclasses.replace(SMALL, ppo=ppo, value_init=False)
    mesh = make_mesh(MeshConfig(fsdp=8))
    found = {program.name: program for program in programs(config, mesh, "ppo")}
    assert "ppo/critic_update" not in found
    assert found["ppo/policy_update"].kept["the critic and its optimizer"] is None


def test_a_batch_that_does_not_divide_over_the_chips_is_refused():
    ppo = dataclasses.replace(SMALL.ppo, rollouts=12)
    config = dataclasses.replace(SMALL, ppo=ppo)
    with pytest.raises(ConfigError, match="ppo.rollouts / ppo.minibatches = 6 .* multiple of .* 8"):
        list(programs(config, make_mesh(MeshConfig(fsdp=8)), "ppo"))


def test_only_a_prm_that_is_asked_takes_memory():
    mesh = make_mesh(MeshConfig(fsdp=8))

    def kept(dense: DenseConfig):
        config = dataclasses.replace(SMALL, dense=dense, value_init=False)
        found = {program.name: program for program in programs(config, mesh, "ppo")}
        return found["ppo/policy_update"].kept["the PRM"]

    assert kept(DenseConfig()) is not None
    assert kept(DenseConfig(source="oracle")) is None
    with pytest.raises(ConfigError, match="dense.source = 'labels' is not planned"):
        kept(DenseConfig(source="labels", completions=8))


# ----------------------------------------------------------------------------------- the words

PLAN = Plan(
    name="ppo/policy_update",
    hbm_bytes=4 << 30,
    argument_bytes=1 << 30,
    temp_bytes=3 << 30,
    kept_bytes=2 << 30,
    available_bytes=16 << 30,
    modelled_s=0.684,
    floor_s=0.632,
    bytes_moved={"fsdp": 53 << 30},
    fits=True,
    largest=(("temporaries", 3 << 30), ("the critic", 2 << 30)),
    mend="",
    unbounded_loops=0,
    compile_s=60.0,
)


def test_the_table_says_what_a_chip_holds_computes_and_sends():
    header, row = table([PLAN]).splitlines()
    assert row.split() == ["ppo/policy_update", "4.00", "1.00", "3.00", "2.00", "16.00", "yes",
                           "0.684", "0.632", "53"]  # fmt: skip
    assert "GiB over fsdp" in header
    sampled = dataclasses.replace(PLAN, unbounded_loops=1)
    assert "<= 0.684" in table([sampled])


def test_a_program_that_does_not_fit_says_what_is_largest_and_what_to_change():
    assert verdict(PLAN) == "ppo/policy_update fits: 6.00 GiB of 16.00 GiB on each chip"
    large = dataclasses.replace(
        PLAN, hbm_bytes=15 << 30, fits=False, mend="set model.remat = 'full'"
    )
    said = verdict(large)
    assert "does NOT fit: it needs 17.00 GiB of the 16.00 GiB" in said
    assert said.index("3.00 GiB  temporaries") < said.index("2.00 GiB  the critic")
    assert said.endswith("set model.remat = 'full'")


REFUSED = """\
RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used \
20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.

  Largest program allocations in hbm:

  1. Size: 8.00G
     Operator: op_name="jit(update)/dot_general"
     Shape: f32[2048,1048576]{1,0:T(8,128)}
     Allocation type: HLO temp
     ==========================

  2. Size: 512.0M
     Shape: bf16[131072,2048]{1,0}
     ==========================
"""


def test_the_compilers_refusal_is_read():
    used, largest = out_of_memory(REFUSED)
    assert used == int(20.5 * 2**30)
    assert largest == [
        ("f32[2048,1048576]{1,0:T(8,128)} jit(update)/dot_general", 8 << 30),
        ("bf16[131072,2048]{1,0}", 512 << 20),
    ]
    assert out_of_memory("RESOURCE_EXHAUSTED: no more") == (0, [])


# --------------------------------------------------------------------------------- the command


def test_the_json_has_what_is_promised(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "tpu_devices", lambda one, slices: jax.devices()[: one.chips])
    monkeypatch.setattr(
        command, "plan", lambda program, mesh, slice_: dataclasses.replace(PLAN, name=program.name)
    )
    path = tmp_path / "config.py"
    path.write_text(
        "from prm_jax.config import Config\n\n\ndef get_config():\n    return Config()\n"
    )
    argv = ["--config", str(path), "--topology", "v5litepod-8", "--stage", "ppo",
            "--json", str(tmp_path / "plan.json")]  # fmt: skip
    assert command.main(argv) == 0
    written = json.loads((tmp_path / "plan.json").read_text())
    assert [row["name"] for row in written["programs"]][0] == "ppo/sample"
    for row in written["programs"]:
        assert row["fits"] is True and row["bytes_moved"] == {"fsdp": 53 << 30}
        for field in ("hbm_bytes", "argument_bytes", "temp_bytes", "modelled_s", "floor_s"):
            assert row[field] == getattr(PLAN, field)
    assert "ppo/score fits" in capsys.readouterr().out

    monkeypatch.setattr(
        command, "plan", lambda *_: dataclasses.replace(PLAN, fits=False, mend="lower it")
    )
    assert command.main(argv) == 1
    assert "lower it" in capsys.readouterr().out


def test_bad_input_is_refused_in_one_line(capsys, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from prm_jax.config import Config\n\n\ndef get_config():\n    return Config()\n"
    )
    assert command.main(["--config", str(path), "--topology", "v5e-9"]) == 2
    assert capsys.readouterr().err.startswith("error: --topology = 'v5e-9' is not a TPU slice")


def test_without_the_compiler_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ConfigError, match=r"pip install 'prm_jax\[tpu\]'"):
        tpu_devices(find_slice("v5e-8"))


def test_weights_that_are_not_here_leave_the_architecture_to_the_config(tmp_path):
    absent = dataclasses.replace(SMALL.model, path=str(tmp_path / "absent"))
    config = dataclasses.replace(SMALL, model=absent)
    assert command.architecture(config) is config
    silent = dataclasses.replace(config, model=dataclasses.replace(absent, vocab_size=0))
    with pytest.raises(ConfigError, match="model.vocab_size = 0"):
        command.architecture(silent)


def test_what_goes_between_slices_is_counted_by_itself():
    def program(handler: str) -> str:
        return f"""
ENTRY %main (p: f32[4,128]) -> f32[4,128] {{
  %sum = f32[4,128]{{1,0}} all-reduce(%p), channel_id=1, replica_groups={{{{0,1,2,3}}}}
  %after = token[] after-all()
  %send = (f32[4,128]{{1,0}}, u32[], token[]) send(%sum, %after), channel_id=2, \
is_host_transfer=true, frontend_attributes={{_xla_host_transfer_handler_name="{handler}"}}
}}
"""

    mesh = {"data": 1, "fsdp": 4, "tensor": 1}
    ring = 2 * 3 / 4 * 4 * 128 * 4
    between = cost_of(program("xla_megascale_runtime"), mesh, most_trips=1).moved
    assert between == {"fsdp": ring, "between slices": 4 * 128 * 4}
    assert cost_of(program("another"), mesh, most_trips=1).moved == {"fsdp": ring}
