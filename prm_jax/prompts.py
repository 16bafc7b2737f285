"""How a problem is put to the policy, and which bytes of its response are the program.

In completion style the response goes on with the problem's prompt and is code from its first byte.
In the chat styles the model's own chat template asks for the program: `chat` leaves the model free
to talk and takes the first fenced block, `chat_fence` opens the block in the prompt, so that the
response is code until the block closes. The code is a span of the response's bytes, so that its
lines and the tokens that end them are known exactly (`rl.lines.split_lines`).
"""

import ast
import datetime
import functools
import json
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prm_jax.config import ConfigError, PromptsConfig
from prm_jax.rl.stops import before_stop
from prm_jax.tokenizer import Tokenizer
from prm_jax.types import Problem

OPENING, CLOSING = "```python\n", "\n```"
PLAN_OPENS, PLAN_CLOSES = "<plan>\n", "</plan>\n"
PLAN_REQUEST = (
    "\n\nFirst write a plan of a few lines, between a line <plan> and a line </plan>; then the "
    "program that carries it out."
)
# What a template that writes the date is told, the one that Llama 3's own fall back on: a run that
# goes on the next day must ask the same.
DATE = datetime.datetime(2024, 7, 26)

# A fence opens a block where a line begins with it, or, with its language, at the end of any line.
_OPENS = re.compile(
    rb"^(?P<indent>\ *)(?P<fence>`{3,})(?P<info>[^`\n]*)\n"
    rb"| (?<=[^`\n])(?P<inline>`{3,})(?:python3?|py)[\ \t\r]*\n",
    re.MULTILINE | re.IGNORECASE | re.VERBOSE,
)
_PLAN = re.compile(
    rb"^<plan>[ \t\r]*\n (?: .*? ^</plan>[ \t\r]*(?:\n|\Z) | .*\Z)",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
_CODE = (b"", b"python", b"py", b"python3")  # the languages of a block that is the program


class Prompts:
    """The prompts of one style for one tokenizer, and what the responses to them say."""

    def __init__(
        self, config: PromptsConfig, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()
    ):
        """`stop_strings` are the problem set's own, for completions of its prompts.

        They cut off what follows a function, such as the next `def`, so the chat styles, in which
        the response writes the whole program, do without them. Raises ConfigError if a chat style
        is asked of a tokenizer without a chat template, or of a template that refuses it.
        """
        self._config = config
        self._tokenizer = tokenizer
        own = {"completion": tuple(stop_strings), "chat": (), "chat_fence": (CLOSING,)}
        self.stops: tuple[str, ...] = tuple(dict.fromkeys((*own[config.style], *config.stop)))
        self._stops = tuple(stop.encode() for stop in self.stops)
        self._chat: Callable[[str], str] | None = None
        if config.style != "completion":
            self._chat = _chat(config, tokenizer)

    # ----------------------------------------------------------------------- what the policy reads

    def text(self, problem: Problem) -> str:
        """The prompt; raises ConfigError if a chat style is asked of a set without instructions."""
        if self._chat is None:
            return problem.prompt
        if not problem.instruction:
            raise ConfigError(
                f"prompts.style = {self._config.style!r} is not allowed: {problem.task_id} has no "
                "instruction, as a chat needs; give it one, or use 'completion' (--prompts.style, "
                "or --style of the tools)"
            )
        text = self._chat(problem.instruction + (PLAN_REQUEST if self._config.plan else ""))
        return text + OPENING if self._config.style == "chat_fence" else text

    def ids(self, problem: Problem) -> list[int]:
        """The prompt's tokens.

        A completion begins with BOS if the tokenizer puts one before every text (Llama); a chat has
        the one that its template writes.
        """
        ids = self._tokenizer.encode(self.text(problem))
        if self._chat is None and self._tokenizer.adds_bos and self._tokenizer.bos_id is not None:
            return [self._tokenizer.bos_id, *ids]
        return ids

    # ---------------------------------------------------------------------- what the policy writes

    def solution(self, problem: Problem) -> str:
        """The response with the known solution, as SFT imitates it; EOS is not included.

        It opens with the problem's plan where responses do, if the problem has one.

        In the chat styles it writes the whole program again. A program with a line that begins like
        a closing fence has no response in style chat_fence: its code would end there.
        """
        plan = plan_block(problem) if self._config.plan else ""
        if self._chat is None:
            return plan + problem.solution
        return plan + self.response(problem, problem.program(problem.solution))

    def response(self, problem: Problem, program: str) -> str:
        """The response that stands for a program, EOS not included.

        In completion style it is what follows the problem's program_prefix; a program that does not
        begin with it, which no completion can be, stands as it is.
        """
        if self._chat is None:
            return program.removeprefix(problem.program_prefix)
        program = _ended(program)
        if self._config.style == "chat_fence":
            return program + CLOSING.lstrip("\n")
        longest = max((len(run) for run in re.findall("^`+", program, re.MULTILINE)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"{fence}python\n{program}{fence}"

    def keeps_solution(self, problem: Problem) -> bool:
        """Whether the code that is found in `solution` is all of it, and no stop string cuts it."""
        whole = problem.solution
        if self._chat is not None:
            whole = _ended(problem.program(problem.solution))
        return self.code(self.solution(problem).encode()) == whole

    def code_span(self, response: bytes) -> tuple[int, int]:
        """Start and stop of the code in a response's bytes; start = stop if it has none.

        A response ends where its stop string begins. In style chat the code is the first block
        fenced by backticks that is bare or says `python`, `python3` or `py`, from the line after
        the fence to the line that begins with a fence at least as long and no further to the right,
        or else to the end. What is said next changes no finished line of what was said before; only
        a stop string can take lines back that it began with.
        """
        start, stop, _ = self._found(response)
        return start, stop

    def plan_span(self, response: bytes) -> tuple[int, int]:
        """Start and stop of the plan in a response's bytes, delimiters included; (0, 0) if none.

        A completion opens with it; a chat may say something before, but open no block. A plan that
        is not closed goes on to the end, and there is no code. Stop strings end it as anything.
        """
        if not self._config.plan:
            return 0, 0
        text = response[: before_stop(response, self._stops)]
        found = _PLAN.match(text) if self._chat is None else _PLAN.search(text)
        block = _OPENS.search(text) if found and found.start() else None
        if found is None or (block is not None and block.start() < found.start()):
            return 0, 0
        return found.span()

    def code(self, response: bytes) -> str:
        """The code of a response; a block that is indented as a whole is moved to the left."""
        start, stop, indent = self._found(response)
        code = response[start:stop]
        if indent:
            code = re.sub(rb"^ {1,%d}" % indent, b"", code, flags=re.MULTILINE)
        return code.decode("utf-8", errors="replace")

    def program(self, problem: Problem, response: bytes) -> str:
        """The program that a response stands for.

        In the chat styles it is the code, which writes the whole function again, after the
        problem's `program_prefix` where that is a program by itself (HumanEval's, with its
        helpers); "" if there is no code.
        """
        code = self.code(response)
        if self._chat is None:
            return problem.program(code)
        if not code.strip():
            return ""
        prefix = problem.program_prefix
        return _ended(prefix) + code if _parses(prefix) else code

    def _found(self, response: bytes) -> tuple[int, int, int]:
        """Start and stop of the code, and how far its fence is indented."""
        end = before_stop(response, self._stops)
        _, after_plan = self.plan_span(response)
        if self._config.style != "chat":
            return after_plan, end, 0
        return _first_block(response[:end], after_plan)


def plan_block(problem: Problem) -> str:
    """The plan of a problem's solution as a response opens with it; empty if it has none."""
    return f"{PLAN_OPENS}{problem.plan}\n{PLAN_CLOSES}" if problem.plan else ""


def _first_block(text: bytes, at: int) -> tuple[int, int, int]:
    while opens := _OPENS.search(text, at):
        fence, indent = opens["fence"] or opens["inline"], len(opens["indent"] or b"")
        closes = re.compile(rb"^ {0,%d}`{%d}" % (indent, len(fence)), re.MULTILINE)
        closing = closes.search(text, opens.end())
        stop = closing.start() if closing else len(text)
        language = (opens["info"] or b"").split(maxsplit=1)[:1] or [b""]
        if language[0].lower() in _CODE:
            return opens.end(), stop, indent
        next_line = text.find(b"\n", stop)
        at = len(text) if closing is None or next_line < 0 else next_line + 1
    return len(text), len(text), 0


@functools.lru_cache(maxsize=4096)
def _parses(text: str) -> bool:
    """Whether a text is a program, and not the open beginning of one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def _ended(text: str) -> str:
    """A text that ends its last line."""
    return text if not text or text.endswith("\n") else text + "\n"


# ----------------------------------------------------------------------------------- chat templates


class _Generation(Extension):
    """`{% generation %}`, which marks what an assistant says; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _chat(config: PromptsConfig, tokenizer: Tokenizer) -> Callable[[str], str]:
    """A function from what the user says to the text up to where the assistant's turn begins."""
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"prompts.style = {config.style!r} is not allowed: the tokenizer has no chat template; "
            "use 'completion', or put a chat_template.jinja beside its tokenizer.json"
        )
    system = [{"role": "system", "content": config.system}] if config.system else []
    try:
        template = _environment().from_string(tokenizer.chat_template)
    except jinja2.TemplateError as e:
        raise ConfigError(f"the tokenizer's chat template cannot be read: {e}") from e

    def chat(instruction: str) -> str:
        messages = [*system, {"role": "user", "content": instruction}]
        try:
            return template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **tokenizer.names,
            )
        except Exception as e:  # a template computes, and may fail as any program does
            asked = "a system message and one of the user" if system else "a message of the user"
            raise ConfigError(
                f"prompts.style = {config.style!r} with prompts.system = {config.system!r} is not "
                f"allowed: the tokenizer's chat template refuses {asked}: {e}"
            ) from e

    chat("?")  # a template that refuses is refused before any work is done
    return chat


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates are written for (transformers' apply_chat_template)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = DATE.strftime
    return environment
