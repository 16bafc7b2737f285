"""What the instructions of several sets share, and how many steps a solution has."""

_ANSWER = "Answer with the whole {what}, imports included, in one ```python code block."


def function_instruction(task: str) -> str:
    """A task that asks for a function, with how to answer."""
    return f"{task.strip()}\n\n{_ANSWER.format(what='function')}"


def program_instruction(task: str) -> str:
    """A task that asks for a program, with how to answer."""
    return f"{task.strip()}\n\n{_ANSWER.format(what='program')}"


def fenced(code: str) -> str:
    """Code in a Markdown block."""
    return f"```python\n{code.rstrip()}\n```"


def horizon(solution: str) -> int:
    """Lines of a solution that are not blank: its steps."""
    return sum(bool(line.strip()) for line in solution.split("\n"))
