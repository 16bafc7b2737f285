"""Chat templates of the forms that open models use, and a tokenizer that has one."""

import datetime
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from prm_jax.tokenizer import Tokenizer

NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
SPECIAL = [
    *NAMES.values(), "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]  # fmt: skip
DATE = datetime.datetime(2024, 7, 26, 12)

TEMPLATES = {
    # SmolLM2: ChatML with a system message where the chat has none.
    "chatml": """{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are of help.<|im_end|>\n' }}{% endif %}\
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    # Qwen2.5: the same over several lines, with tools, which no prompt here has.
    "qwen": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou answer in code.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    # Llama 3.2: writes BOS itself, trims what is said, and says what day it is.
    "llama": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "never" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'}}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # What else templates do: loops that are left, namespaces, blocks, JSON, marks of generation.
    "rest": """{% set seen = namespace(n=0) %}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {% set seen.n = seen.n + 1 %}
<{{ message | tojson }} {{ message.content | tojson(indent=1) }} {{ seen.n }}>
    {% generation %}{{ message['content'] }}{% endgeneration %}

    {% break %}
{% endfor %}
{% if eos_token is defined and not unk_token %}{{ eos_token }}{% endif %}
{%- if add_generation_prompt and not documents %} A: {% endif %}
""",
}
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{{ messages[0].content }}"
)

SYSTEMS = ["", "You write Python.", "  spaces \n"]
INSTRUCTIONS = [
    "Write f.",
    '  Write f.\r\n\tIt\'s <b>"quoted"</b> & \\n escaped \U0001f600\n\n',
    "```python\ndef f(x):\n    return {{ x }} {% if %}\n```\n",
]


def tokenizer(folder: Path, template: str | None, adds_bos: bool = False) -> Tokenizer:
    """A token a byte and the special tokens of all templates."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    if adds_bos:
        bos = NAMES["bos_token"]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    config = NAMES | ({} if template is None else {"chat_template": template})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)
