"""Prompts as transformers writes them, and the code in responses, by hand and by property."""

import dataclasses
import json
import re
from pathlib import Path

import chats
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prm_jax.config import ConfigError, PromptsConfig
from prm_jax.prompts import PLAN_REQUEST, Prompts
from prm_jax.rl.lines import line_end_mask, split_lines, step_ends
from prm_jax.types import CallTests, LineKind, Problem

fixed = settings(derandomize=True, deadline=None, max_examples=120)
RECORDED = json.loads(Path(__file__).with_name("data").joinpath("chat_prompts.json").read_text())
HUMAN_EVAL = Problem(
    "H/0", 'def f(x):\n    """Add 1."""\n', CallTests(("assert f(1) == 2",)),
    solution="    return x + 1\n", program_prefix='def f(x):\n    """Add 1."""\n',
    instruction="Complete f.",
)  # fmt: skip
MBPP = Problem(
    "M/1", '"""Add 1 in g."""\n', CallTests(("assert g(1) == 2",)),
    solution="def g(x):\n    return x + 1", instruction="Write g.",
)  # fmt: skip
STYLES = ["completion", "chat", "chat_fence"]
COMPLETION_STOPS = ("\nclass", "\ndef", "\n#", "\nprint")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chats")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return chats.tokenizer(folder / "chatml", chats.TEMPLATES["chatml"])


@pytest.fixture(scope="module")
def by_style(tokenizer):
    return {
        style: Prompts(PromptsConfig(style=style), tokenizer, COMPLETION_STOPS) for style in STYLES
    }


# ---------------------------------------------------------------------------- what the model reads


@pytest.mark.parametrize("name", chats.TEMPLATES)
def test_chats_are_those_of_transformers(folder, name):
    tokenizer = chats.tokenizer(folder / name, chats.TEMPLATES[name], adds_bos=True)
    expected = iter(RECORDED[name])
    for system in chats.SYSTEMS:
        chat = Prompts(PromptsConfig(style="chat", system=system), tokenizer)
        fence = Prompts(PromptsConfig(style="chat_fence", system=system), tokenizer)
        for instruction in chats.INSTRUCTIONS:
            problem = Problem("p", "", CallTests(()), instruction=instruction)
            row = next(expected)
            assert chat.text(problem) == row["text"]
            assert chat.ids(problem) == row["ids"]
            assert fence.text(problem) == row["text"] + "```python\n"
            assert fence.ids(problem) == row["ids"] + tokenizer.encode("```python\n")
            bos = chat.ids(problem).count(tokenizer.bos_id)
            assert bos == (1 if name == "llama" else 0)  # none is added to the template's
    assert next(expected, None) is None


def test_a_chat_by_hand(by_style):
    assert by_style["chat"].text(HUMAN_EVAL) == (
        "<|im_start|>system\nYou are of help.<|im_end|>\n"
        "<|im_start|>user\nComplete f.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_completion_reads_the_prompt_as_it_is(folder, adds_bos):
    tokenizer = chats.tokenizer(folder / f"bos-{adds_bos}", None, adds_bos)
    prompts = Prompts(PromptsConfig(), tokenizer)
    assert prompts.text(HUMAN_EVAL) == HUMAN_EVAL.prompt
    bos = [tokenizer.bos_id] if adds_bos else []
    assert prompts.ids(HUMAN_EVAL) == bos + tokenizer.encode(HUMAN_EVAL.prompt)


def test_what_ends_a_response(tokenizer):
    def stops(**fields):
        return Prompts(PromptsConfig(**fields), tokenizer, ("\nclass", "\n\n\n")).stops

    assert stops() == ("\nclass", "\n\n\n")
    assert stops(stop=("END", "\nclass")) == ("\nclass", "\n\n\n", "END")
    # The response writes a whole program: what ends a function of the set must not end it.
    assert stops(style="chat", stop=("END",)) == ("END",)
    assert stops(style="chat_fence", stop=("END",)) == ("\n```", "END")


def test_chats_without_what_they_need_are_refused(folder, tokenizer):
    none = chats.tokenizer(folder / "none", None)
    with pytest.raises(ConfigError, match="style = 'chat' is not allowed: the tokenizer has no"):
        Prompts(PromptsConfig(style="chat"), none)
    refusing = chats.tokenizer(folder / "refusing", chats.REFUSES_SYSTEM)
    Prompts(PromptsConfig(style="chat_fence"), refusing)
    with pytest.raises(ConfigError, match="system = 'Be.' is not.*refuses.*no system here"):
        Prompts(PromptsConfig(style="chat_fence", system="Be."), refusing)
    broken = chats.tokenizer(folder / "broken", "{% if %}")
    with pytest.raises(ConfigError, match="chat template cannot be read"):
        Prompts(PromptsConfig(style="chat"), broken)
    with pytest.raises(ConfigError, match="style = 'chat' is not allowed: p has no instruction"):
        Prompts(PromptsConfig(style="chat"), tokenizer).text(Problem("p", "x", CallTests(())))


def test_a_template_cannot_reach_beyond_its_messages(folder):
    reaching = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ConfigError, match="refuses"):
        Prompts(PromptsConfig(style="chat"), chats.tokenizer(folder / "reaching", reaching))


# ------------------------------------------------------------------------ the code of a response


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("    return x\n", "    return x\n"),
        ("    return x", "    return x"),
        ("", ""),
        ("    return x\n\n\ndef g():\n", "    return x\n\n\n"),
        ("    return x\r\n\r\nprint(f(1))", "    return x\r\n\r\n"),
        ("    return x\n# Test", "    return x\n"),
        ("    return x  # 1\n    # 2\n", "    return x  # 1\n    # 2\n"),
        ("    return x\npri", "    return x\npri"),  # cut off before the stop string is complete
        ("def g(): pass", ""),  # what precedes a response ends in a newline
        ("```python\nx\n```\n", "```python\nx\n```\n"),  # fences mean nothing here
    ],
)
def test_the_code_of_a_completion(by_style, response, code):
    prompts = by_style["completion"]
    assert prompts.code(response.encode()) == code
    assert prompts.code_span(response.encode()) == (0, len(code.encode()))
    assert prompts.program(HUMAN_EVAL, response.encode()) == HUMAN_EVAL.prompt + code


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("x = 1\n```", "x = 1\n"),
        ("x = 1\n```\n\nThis is how:\n```python\ny\n```", "x = 1\n"),
        ("x = 1\r\n```\r\n", "x = 1\r\n"),
        ("x = 1\n", "x = 1\n"),  # EOS without a fence
        ("x = 1\n``", "x = 1\n``"),  # cut off within the fence
        ("```", ""),
        ("\n```", "\n"),
        ("x = '```'\ny = 1```\n  ```\n```", "x = '```'\ny = 1```\n  ```\n"),
        ('def f():\n    """Say\n    ```\n    f()\n    ```\n    """\n```', None),
        ("\u00e9 = '\U0001f600'\n```", "\u00e9 = '\U0001f600'\n"),
        ("def f():\n    return 1\n\ndef g():\n    return f()\nprint(g())\n```", None),
    ],
)
def test_the_code_of_an_opened_fence_and_of_the_same_fence_in_a_chat(by_style, response, code):
    code = response.removesuffix("```") if code is None else code
    fence, chat = by_style["chat_fence"], by_style["chat"]
    assert fence.code(response.encode()) == code == chat.code(b"```python\n" + response.encode())
    assert fence.code_span(response.encode()) == (0, len(code.encode()))
    wanted = HUMAN_EVAL.prompt + code if code.strip() else ""
    assert fence.program(HUMAN_EVAL, response.encode()) == wanted
    assert fence.program(MBPP, response.encode()) == (code if code.strip() else "")


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("Sure:\n\n```python\nx = 1\n```\nThat is it.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```", "x = 1\n"),
        ("```Python  \nx = 1\n```", "x = 1\n"),
        ('```python title="f.py"\nx = 1\n```', "x = 1\n"),
        ("``` python\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
        ("x = 1\n", ""),  # no block, no code
        ("", ""),
        ("```python", ""),  # the fence's line has not ended
        ("```python\n", ""),
        ("```python\n```\n```python\nx\n```", ""),  # the first block, though it be empty
        ("```python\nx = 1\n", "x = 1\n"),  # never closed
        ("```python\nx = 1", "x = 1"),
        ("```python\nx = 1\n``", "x = 1\n``"),
        ("```python\nx = 1\n```python\ny = 2\n```", "x = 1\n"),
        ("```python\nx = 1\n````", "x = 1\n"),
        ("````python\nx = '''\n```\n'''\n````\n", "x = '''\n```\n'''\n"),  # a longer fence
        ("```bash\npip install x\n```\nThen\n```python\nx = 1\n```", "x = 1\n"),
        ("```text\n1 2\n```\n```\nx = 1\n```", "x = 1\n"),
        ("```text\n```python\nx = 1\n```\n", ""),  # the second line closes, the last opens
        ("```text\n1 2\n", ""),
        ("```text\n1 2\n```", ""),
        ("~~~python\nx = 1\n~~~\n", ""),  # only backticks fence
        ("Use `x`, ```x``` or ``x``.\n```python\nx = 1\n```", "x = 1\n"),
        ("Here: ```python\nx = 1\n```", "x = 1\n"),  # opened in mid-line, with its language
        ("Here: ```\nx = 1\n```\n", ""),  # without it, the closing fence opens an empty block
        ("Here: ```bash\nls\n", ""),
        ("1. So:\n   ```python\n   def f():\n     x\n\n   ```\n", "def f():\n  x\n\n"),
        ("   ```python\n   x\n y\n\tz\n```", "x\ny\n\tz\n"),
        ("  ```python\n  '''\n    ```\n  '''\n  ```\n", "'''\n  ```\n'''\n"),
    ],
)
def test_the_code_of_a_chat(by_style, response, code):
    prompts = by_style["chat"]
    raw = response.encode()
    assert prompts.code(raw) == code
    start, stop = prompts.code_span(raw)
    if not re.search(r"^ +```", response, re.MULTILINE):
        assert raw[start:stop] == code.encode()
    assert prompts.program(MBPP, raw) == (code if code.strip() else "")
    assert prompts.program(HUMAN_EVAL, raw) == (HUMAN_EVAL.prompt + code if code.strip() else "")


def test_the_prefix_of_a_program_ends_its_last_line(by_style):
    problem = Problem("p", "", CallTests(()), program_prefix="import math", instruction="?")
    for style, response in (("chat", b"```\nx = 1\n```"), ("chat_fence", b"x = 1\n```")):
        assert by_style[style].program(problem, response) == "import math\nx = 1\n"


def test_a_stop_string_may_begin_in_the_last_line_of_code(tokenizer):
    for style, response in (("completion", b"x = 1 # END of it"), ("chat_fence", b"x = 1 # END")):
        prompts = Prompts(PromptsConfig(style=style, stop=("END",)), tokenizer)
        assert prompts.code(response) == "x = 1 # "
    chat = Prompts(PromptsConfig(style="chat", stop=("END",)), tokenizer)
    assert chat.code(b"A\n```\nx = 1 # END\n```") == "x = 1 # "
    assert chat.code(b"END\n```\nx = 1\n```") == ""


def test_bytes_that_are_no_text_are_marked(by_style):
    assert by_style["chat_fence"].code(b"x = '\xf0\x9f'\n```") == "x = '\ufffd'\n"


# ------------------------------------------------------------------- the lines and tokens of code


def lines_of(prompts: Prompts, pieces: list[bytes]):
    return split_lines(pieces, prompts.code_span(b"".join(pieces)))


def test_lines_of_an_opened_fence_by_hand(by_style):
    # A token that holds both the last newline and the fence ends the last line.
    lines = lines_of(by_style["chat_fence"], [b"# f\n", b"x = ", b"1", b"\n```"])
    assert lines.text == (b"# f\n", b"x = 1\n")
    assert lines.end_token.tolist() == [0, 3] and lines.end_byte.tolist() == [4, 10]
    assert lines.kind.tolist() == [LineKind.COMMENT, LineKind.CODE]
    # Cut off in the last line: it ends in the last token. With EOS after the fence: it does not.
    assert lines_of(by_style["chat_fence"], [b"x", b" = 1"]).end_token.tolist() == [1]
    assert lines_of(by_style["chat_fence"], [b"x\n", b"```", b""]).end_token.tolist() == [0]
    assert lines_of(by_style["chat_fence"], [b"x", b"\n", b""]).end_token.tolist() == [1]
    assert lines_of(by_style["chat_fence"], [b"```", b""]).n_lines == 0


def test_lines_of_a_chat_by_hand(by_style):
    pieces = [b"# no code\n", b"```python\nx", b" = 1\n", b"# c\n```\n", b"x = 2\n", b""]
    lines = lines_of(by_style["chat"], pieces)
    assert lines.text == (b"x = 1\n", b"# c\n")
    assert lines.end_token.tolist() == [2, 3]
    assert line_end_mask(lines, 6).tolist() == [False, False, True, True, False, False]
    assert step_ends(lines)[1].tolist() == [LineKind.CODE, LineKind.COMMENT]
    # Unclosed, with EOS: the last line ends there. Prose alone has no lines.
    assert lines_of(by_style["chat"], [b"```\n", b"x", b""]).end_token.tolist() == [2]
    assert lines_of(by_style["chat"], [b"Just prose.\n", b""]).n_lines == 0


FRAGMENTS = [
    b"```", b"`", b"````", b"```python\n", b"```py", b"```text\n", b"\n", b"\n", b"\n```",
    b"\n  ```",
    b"x = 1\n", b"# c\n", b"'''", b'"""', b"  ", b"\r\n", b"\ndef", b" class", b"\n#", b"END", b"E",
    b"Sure: ", b"\xf0\x9f", b"\x98\x80", b"\\",
]  # fmt: skip
responses = st.lists(
    st.lists(st.sampled_from(FRAGMENTS), max_size=3).map(b"".join), max_size=12
).flatmap(lambda pieces: st.booleans().map(lambda eos: [*pieces, b""] if eos else pieces))


@fixed
@given(st.sampled_from(STYLES), responses, st.sampled_from([(), ("END",), ("\n\n", "END")]))
@example("chat", [b"```text\n", b"x\n", b"```", b"\n```python\n", b"x\n", b"\n```"], ())
@example("chat_fence", [b"x = 1\n", b"\n", b"EN", b"D\n"], ("\nEND",))
def test_what_is_said_next_changes_no_line_of_code(tokenizer, style, pieces, stop):
    prompts = Prompts(PromptsConfig(style=style, stop=stop), tokenizer, COMPLETION_STOPS)
    whole = lines_of(prompts, pieces)
    response = b"".join(pieces)
    start, end = prompts.code_span(response)
    assert 0 <= start <= end <= len(response)
    assert b"".join(whole.text) == response[start:end]
    ended = [n for n, text in enumerate(whole.text) if text.endswith(b"\n")]
    for n_tokens in range(len(pieces)):
        before = lines_of(prompts, pieces[:n_tokens])
        said = len(b"".join(pieces[:n_tokens]))
        known = [n for n in ended if whole.end_byte[n] <= said]
        assert before.text[: len(known)] == tuple(whole.text[n] for n in known)
        for field in ("kind", "end_token", "end_byte"):
            now, then = getattr(before, field), getattr(whole, field)
            assert now[: len(known)].tolist() == then[known].tolist(), field
        # Lines that are no more were taken back by a stop string that began with them.
        finished = [text for text in before.text if text.endswith(b"\n")]
        assert len(finished) == len(known) or any("\n" in string[1:] for string in prompts.stops)


@fixed
@given(st.sampled_from(STYLES), responses)
def test_a_prefix_of_lines_is_those_lines(by_style, tokenizer, style, pieces):
    """What a label's completions start from: the tokens of the first lines, cut by bytes."""
    prompts = by_style[style]
    text = b"".join(pieces).decode("utf-8", errors="ignore")
    ids = tokenizer.encode(text)
    whole = lines_of(prompts, tokenizer.pieces(ids))
    for n, end_byte in enumerate(whole.end_byte, start=1):
        kept = tokenizer.pieces(tokenizer.prefix_ids(ids, int(end_byte)))
        assert b"".join(kept) == text.encode()[:end_byte]
        lines = lines_of(prompts, kept)
        assert lines.text == whole.text[:n] and lines.kind.tolist() == whole.kind[:n].tolist()


@fixed
@given(responses)
def test_an_opened_fence_is_the_fence_of_a_chat(by_style, pieces):
    response = b"".join(pieces)
    assert by_style["chat_fence"].code(response) == by_style["chat"].code(b"```python\n" + response)


# ---------------------------------------------------------------------------- what SFT imitates


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("problem", [HUMAN_EVAL, MBPP], ids=["human_eval", "mbpp"])
def test_the_solution_of_a_style_is_a_response_whose_program_passes(tokenizer, style, problem):
    stops = COMPLETION_STOPS if problem is HUMAN_EVAL else ("\nprint",)  # MBPP's begin with def
    prompts = Prompts(PromptsConfig(style=style), tokenizer, stops)
    program = prompts.program(problem, prompts.solution(problem).encode())
    reference = problem.program(problem.solution)
    wanted = reference if style == "completion" else problem.program_prefix + reference
    assert program.rstrip("\n") == wanted.rstrip("\n")
    space: dict = {}
    exec(program + "\n" + "\n".join(problem.tests.asserts), space)


def test_solutions_by_hand(by_style):
    assert by_style["completion"].solution(MBPP) == "def g(x):\n    return x + 1"
    assert by_style["chat"].solution(MBPP) == "```python\ndef g(x):\n    return x + 1\n```"
    assert by_style["chat_fence"].solution(MBPP) == "def g(x):\n    return x + 1\n```"
    fenced = Problem("p", "", CallTests(()), solution="s = '''\n```\n'''\n", instruction="?")
    assert by_style["chat"].solution(fenced) == "````python\ns = '''\n```\n'''\n````"
    assert by_style["chat"].code(by_style["chat"].solution(fenced).encode()) == fenced.solution


@pytest.mark.parametrize("style", STYLES)
def test_a_solution_that_its_style_cuts_is_known(by_style, style):
    prompts = by_style[style]
    assert prompts.keeps_solution(HUMAN_EVAL)
    assert prompts.keeps_solution(MBPP) == (style != "completion")  # "\ndef" stops its first line
    two = Problem(
        "M/2", "", CallTests(()), instruction="Write h.",
        solution="def g(x):\n    return x\ndef h(x):\n    return g(x)\n",
    )  # fmt: skip
    assert prompts.keeps_solution(two) == (style != "completion")
    fence = Problem(
        "M/3", "", CallTests(()), instruction="Write s.", solution='s = """\n```\n"""\n'
    )
    assert prompts.keeps_solution(fence) == (style != "chat_fence")


def test_an_open_function_before_a_chat_answer_is_left_out(by_style):
    """The answer writes the whole function, so what it would have gone on with is no part of it."""
    open_ = Problem(
        "S/1", "def f(x):\n", CallTests(()), program_prefix="def f(x):\n",
        solution="    return x * x\n", instruction="Square x in f.",
    )  # fmt: skip
    for style in ("chat", "chat_fence"):
        prompts = by_style[style]
        program = prompts.program(open_, prompts.solution(open_).encode())
        assert program == "def f(x):\n    return x * x\n"
    whole = by_style["chat_fence"].program(HUMAN_EVAL, b"def f(x):\n    return x + 1\n```")
    assert whole == HUMAN_EVAL.program_prefix + "def f(x):\n    return x + 1\n"
    assert by_style["completion"].program(open_, b"    return 1") == "def f(x):\n    return 1"


def test_prompts_are_the_same_on_any_day(folder):
    tokenizer = chats.tokenizer(folder / "dated", "{{ strftime_now('%d %b %Y') }}")
    assert Prompts(PromptsConfig(style="chat"), tokenizer).text(MBPP) == "26 Jul 2024"


@pytest.mark.parametrize("template", ["{{ 'a' + 1 }}", "{{ 1 / 0 }}", "{{ messages[7].role.x }}"])
def test_a_template_that_fails_is_refused_by_name(folder, template):
    tokenizer = chats.tokenizer(folder / "failing", template)
    with pytest.raises(ConfigError, match="chat template refuses"):
        Prompts(PromptsConfig(style="chat"), tokenizer)


# ------------------------------------------------------------------------------------- the plan

PLAN = "<plan>\nadd\n</plan>\n"


@pytest.fixture(scope="module")
def planning(tokenizer):
    return {
        style: Prompts(PromptsConfig(style=style, plan=True), tokenizer, ("\ndef",))
        for style in ("completion", "chat")
    }


@pytest.mark.parametrize(
    ("response", "plan", "code"),
    [
        (PLAN + "    return x\n", PLAN, "    return x\n"),
        (PLAN + "    return x\n\ndef g():\n", PLAN, "    return x\n\n"),
        (PLAN, PLAN, ""),
        (PLAN[:-1], PLAN[:-1], ""),  # the EOS follows at once
        ("<plan>\nadd\n    return x\n", "<plan>\nadd\n    return x\n", ""),  # not closed
        ("<plan>\n</plan> x\n</plan>\ny", "<plan>\n</plan> x\n</plan>\n", "y"),
        ("<plan>\nadd\n</plan> \r\ny", "<plan>\nadd\n</plan> \r\n", "y"),
        ("<plan>\r\nadd\r\n</plan>\r\ny", "<plan>\r\nadd\r\n</plan>\r\n", "y"),
        ("    return x\n" + PLAN, "", "    return x\n" + PLAN),  # it must come first
        ("<plan>", "", "<plan>"),
        ("", "", ""),
    ],
)
def test_the_plan_and_the_code_of_a_completion(planning, by_style, response, plan, code):
    prompts, text = planning["completion"], response.encode()
    start, stop = prompts.plan_span(text)
    assert text[start:stop].decode() == plan and start == 0
    assert prompts.code(text) == code
    assert prompts.program(HUMAN_EVAL, text) == HUMAN_EVAL.prompt + code
    assert by_style["completion"].plan_span(text) == (0, 0)


@pytest.mark.parametrize(
    ("response", "plan", "code"),
    [
        ("Well.\n" + PLAN + "So:\n```python\nx\n```\n", PLAN, "x\n"),
        # A block inside the plan is not the program.
        ("<plan>\n```python\nno\n```\n</plan>\n```python\nx\n```\n",
         "<plan>\n```python\nno\n```\n</plan>\n", "x\n"),
        ("```python\nx\n```\n", "", "x\n"),
        # After the code or inside it nothing is a plan.
        ("```python\nx\n```\n" + PLAN, "", "x\n"),
        ("```python\nx = '''\n<plan>\n'''\n```\n", "", "x = '''\n<plan>\n'''\n"),
        ("<plan>\nadd\n```python\nx\n```\n", "<plan>\nadd\n```python\nx\n```\n", ""),
    ],
)  # fmt: skip
def test_the_plan_and_the_code_of_a_chat(planning, response, plan, code):
    text = response.encode()
    start, stop = planning["chat"].plan_span(text)
    assert text[start:stop].decode() == plan
    assert planning["chat"].code(text) == code


PLANNED = st.lists(
    st.sampled_from([b"<plan>\n", b"</plan>", b"\n", b"a", b"```", b"python", b"# c\n", b"\nde"]),
    max_size=12,
)


@fixed
@given(st.sampled_from(["completion", "chat"]), PLANNED)
@example("completion", [b"<plan>\n", b"a\n</plan>\nx\n", b"y\n", b""])
def test_a_closed_plan_and_its_lines_stay_what_they_are(planning, style, pieces):
    prompts = planning[style]
    text = b"".join(pieces)
    plan, code = prompts.plan_span(text), prompts.code_span(text)
    assert plan[1] <= code[0] or plan == (0, 0)
    lines = split_lines(pieces, code, plan)
    if not text[slice(*plan)].endswith(b"</plan>\n"):
        return
    assert lines.kind[0] == LineKind.PLAN
    more = [*pieces, b"a", b"\n"]
    whole = b"".join(more)
    assert prompts.plan_span(whole) == plan
    longer = split_lines(more, prompts.code_span(whole), plan)
    assert longer.text[0] == lines.text[0] and longer.end_token[0] == lines.end_token[0]


def test_solutions_open_with_their_plan(planning):
    problem = dataclasses.replace(HUMAN_EVAL, plan="add 1")
    assert planning["completion"].solution(problem) == (
        "<plan>\nadd 1\n</plan>\n    return x + 1\n"
    )
    for prompts in planning.values():
        text = prompts.solution(problem).encode()
        assert text[slice(*prompts.plan_span(text))] == b"<plan>\nadd 1\n</plan>\n"
        assert prompts.keeps_solution(problem)
        assert "<plan>" not in prompts.solution(HUMAN_EVAL)  # which has none


def test_a_chat_is_asked_for_a_plan(planning, by_style):
    asked, plain = planning["chat"].text(MBPP), by_style["chat"].text(MBPP)
    assert asked.replace(PLAN_REQUEST, "") == plain and PLAN_REQUEST in asked
    assert planning["completion"].text(MBPP) == MBPP.prompt


def test_an_opened_fence_has_no_room_for_a_plan():
    with pytest.raises(ConfigError, match="prompts.plan = True .* false with prompts.style"):
        PromptsConfig(style="chat_fence", plan=True)
