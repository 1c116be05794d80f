"""The form of an item: one strict reader for a line of the OpenAI Batch format and for the short form.

Every field that a producer may state is decided here by name: it is served, not served (the error says what to do), or
let through because it cannot change the answer. Nothing else is taken. `null` means the default wherever a field may be
left out. kafka/item.schema.json is made from these classes (`item_schema.py`), so it says the same.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sidecar.offline.item_fields import (
    Count,
    Harmless,
    Id,
    Ids,
    Must,
    Name,
    NotServed,
    One,
    OutputTokens,
    Penalty,
    Prompt,
    Repetition,
    Seed,
    Share,
    Stop,
    Temperature,
)

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
ROLES = ("developer", "system", "user", "assistant")

_TEXT_ONLY = {"type": "text"}
_TOOLS = "the lane calls no tools; put what the model has to know into the messages"
_GUIDED = "output cannot be guided; ask for the form in the prompt, and check the text"
_PROBABILITIES = "no probabilities come back; leave the field out"
_STOP = "leave it out, and write what ends the answer as text into stop"
_SAMPLER = "the sampler has temperature, top_p, top_k, seed and penalties"
_TEXT_MODEL = "the models take text and give text"
_TEMPLATE = "the prompt is made from role and content alone; for a template of your own send prompt or input_ids"
_HERE_CUSTOM_ID = "it is for the short form, which has no body; here it is custom_id"
_NO_HISTORY = "the message is role and content; write what the model has to know into content"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Strict):
    """One part of a message's content."""

    type: Annotated[Literal["text"], Must('"text": the models take no other part')]
    text: Annotated[str, Must("text")]
    prompt_cache_breakpoint: Annotated[Any, Harmless("prefixes are reused by themselves")] = None


class Message(_Strict):
    """One message of a chat."""

    role: Annotated[Literal["developer", "system", "user", "assistant"], Must(f"one of {', '.join(ROLES)}")]
    content: Annotated[
        str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)],
        Must('text, or a list of {"type": "text", "text": …}'),
    ]
    name: Annotated[Any, NotServed("write who speaks into content")] = None
    refusal: Annotated[Any, NotServed(_NO_HISTORY)] = None
    tool_calls: Annotated[Any, NotServed(_TOOLS, ([],))] = None
    tool_call_id: Annotated[Any, NotServed(_TOOLS)] = None
    function_call: Annotated[Any, NotServed(_TOOLS)] = None
    audio: Annotated[Any, NotServed(_TEXT_MODEL)] = None
    annotations: Annotated[Any, NotServed(_NO_HISTORY, ([],))] = None
    reasoning: Annotated[Any, NotServed(_NO_HISTORY)] = None
    reasoning_content: Annotated[Any, NotServed(_NO_HISTORY)] = None


Messages = Annotated[
    list[Message],
    Field(min_length=1, fail_fast=True),
    Must("a list of objects with role and content", inside=True),
]


class ItemParameters(_Strict):
    """What every form takes beside its prompt."""

    model: Name | None = None
    max_tokens: OutputTokens | None = None
    max_completion_tokens: OutputTokens | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    min_tokens: Count | None = None
    n: One | None = None
    best_of: One | None = None

    user: Annotated[Any, Harmless("a name for the provider's own records; x-tenant names whose item it is")] = None
    metadata: Annotated[Any, Harmless("labels for the provider's own records")] = None
    store: Annotated[Any, Harmless("results go to the results topic, and nowhere else")] = None
    service_tier: Annotated[Any, Harmless("items are offline work; x-deadline says by when")] = None
    safety_identifier: Annotated[Any, Harmless("a name for the provider's own records")] = None
    prompt_cache_key: Annotated[Any, Harmless("prefixes are reused by themselves")] = None
    prompt_cache_options: Annotated[Any, Harmless("prefixes are reused by themselves")] = None
    prompt_cache_retention: Annotated[Any, Harmless("prefixes are reused by themselves")] = None
    parallel_tool_calls: Annotated[Any, Harmless("there are no tool calls")] = None

    # Not served, of the OpenAI API.
    stream: Annotated[Any, NotServed("a result is one record, complete; leave it out", (False,))] = None
    stream_options: Annotated[Any, NotServed("a result is one record, complete; leave it out", ({},))] = None
    tools: Annotated[Any, NotServed(_TOOLS, ([],))] = None
    tool_choice: Annotated[Any, NotServed(_TOOLS, ("none", "auto"))] = None
    functions: Annotated[Any, NotServed(_TOOLS, ([],))] = None
    function_call: Annotated[Any, NotServed(_TOOLS, ("none", "auto"))] = None
    response_format: Annotated[Any, NotServed(_GUIDED, (_TEXT_ONLY,))] = None
    logprobs: Annotated[Any, NotServed(_PROBABILITIES, (False,))] = None
    top_logprobs: Annotated[Any, NotServed(_PROBABILITIES, (0,))] = None
    echo: Annotated[Any, NotServed("the answer comes without its prompt; leave it out", (False,))] = None
    suffix: Annotated[Any, NotServed("the models do not fill in; write both ends into the prompt", ("",))] = None
    logit_bias: Annotated[Any, NotServed(_SAMPLER, ({},))] = None
    modalities: Annotated[Any, NotServed(_TEXT_MODEL, (["text"],))] = None
    audio: Annotated[Any, NotServed(_TEXT_MODEL)] = None
    prediction: Annotated[Any, NotServed("no output is predicted; leave it out")] = None
    reasoning_effort: Annotated[Any, NotServed("ask for it in the prompt")] = None
    verbosity: Annotated[Any, NotServed("ask for it in the prompt, or set max_tokens", ("medium",))] = None
    web_search_options: Annotated[Any, NotServed("nothing is looked up; put it into the prompt")] = None
    moderation: Annotated[Any, NotServed("nothing is moderated; check the texts yourself")] = None

    # Not served, of other servers' extensions: programs that were written for those send them.
    min_p: Annotated[Any, NotServed(_SAMPLER, (0,))] = None
    typical_p: Annotated[Any, NotServed(_SAMPLER, (1,))] = None
    length_penalty: Annotated[Any, NotServed(_SAMPLER, (1,))] = None
    no_repeat_ngram_size: Annotated[Any, NotServed(_SAMPLER, (0,))] = None
    use_beam_search: Annotated[Any, NotServed("one item is one sequence", (False,))] = None
    beam_width: Annotated[Any, NotServed("one item is one sequence", (1,))] = None
    early_stopping: Annotated[Any, NotServed("one item is one sequence", (False,))] = None
    stop_token_ids: Annotated[Any, NotServed(_STOP, ([],))] = None
    include_stop_str_in_output: Annotated[Any, NotServed("the stop text is not in the answer", (False,))] = None
    ignore_eos: Annotated[Any, NotServed("the end id ends the answer; min_tokens puts it off", (False,))] = None
    bad_words: Annotated[Any, NotServed(_SAMPLER, ([],))] = None
    allowed_token_ids: Annotated[Any, NotServed(_SAMPLER)] = None
    logits_processors: Annotated[Any, NotServed(_SAMPLER, ([],))] = None
    prompt_logprobs: Annotated[Any, NotServed(_PROBABILITIES)] = None
    return_token_ids: Annotated[Any, NotServed("the answer is text", (False,))] = None
    return_tokens_as_token_ids: Annotated[Any, NotServed("the answer is text", (False,))] = None
    skip_special_tokens: Annotated[Any, NotServed("special tokens are left out", (True,))] = None
    spaces_between_special_tokens: Annotated[Any, NotServed("special tokens are left out", (True,))] = None
    truncate_prompt_tokens: Annotated[Any, NotServed("cut the prompt yourself; one that is too long is refused")] = None
    add_special_tokens: Annotated[Any, NotServed("for ids of your own send input_ids", (True,))] = None
    chat_template: Annotated[Any, NotServed(_TEMPLATE)] = None
    chat_template_kwargs: Annotated[Any, NotServed(_TEMPLATE, ({},))] = None
    add_generation_prompt: Annotated[Any, NotServed(_TEMPLATE, (True,))] = None
    continue_final_message: Annotated[Any, NotServed(_TEMPLATE, (False,))] = None
    documents: Annotated[Any, NotServed("write them into the messages", ([],))] = None
    mm_processor_kwargs: Annotated[Any, NotServed(_TEXT_MODEL, ({},))] = None
    guided_json: Annotated[Any, NotServed(_GUIDED)] = None
    guided_regex: Annotated[Any, NotServed(_GUIDED)] = None
    guided_choice: Annotated[Any, NotServed(_GUIDED)] = None
    guided_grammar: Annotated[Any, NotServed(_GUIDED)] = None
    guided_decoding_backend: Annotated[Any, NotServed(_GUIDED)] = None
    guided_whitespace_pattern: Annotated[Any, NotServed(_GUIDED)] = None
    structured_outputs: Annotated[Any, NotServed(_GUIDED)] = None
    structural_tag: Annotated[Any, NotServed(_GUIDED)] = None
    reasoning: Annotated[Any, NotServed("ask for it in the prompt")] = None
    include_reasoning: Annotated[Any, NotServed("the answer is all that the model gives", (True,))] = None
    thinking: Annotated[Any, NotServed("ask for it in the prompt")] = None
    priority: Annotated[Any, NotServed("x-tenant and x-deadline decide about the order", (0,))] = None

    @property
    def output_tokens_max(self) -> int | None:
        """The bound on the output, if one is stated."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts that end the output, in the order they are stated."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionBody(ItemParameters):
    """Of /v1/completions. Exactly one of prompt and input_ids."""

    prompt: Prompt | None = None
    input_ids: Ids | None = None
    messages: Annotated[Any, NotServed(f"messages are for {CHAT}; here it is prompt")] = None


class ChatBody(ItemParameters):
    """Of /v1/chat/completions. Exactly one of messages and input_ids (a chat that was put into ids already)."""

    messages: Messages | None = None
    input_ids: Ids | None = None
    prompt: Annotated[Any, NotServed(f"prompt is for {COMPLETIONS}; here it is messages")] = None


class CompletionLine(_Strict):
    """A line of the Batch format with a prompt."""

    custom_id: Id
    id: Annotated[Any, NotServed(_HERE_CUSTOM_ID)] = None
    method: Annotated[Literal["POST"], Must('"POST"')] | None = None
    url: Annotated[Literal["/v1/completions"], Must("text")]
    body: Annotated[CompletionBody, Must("an object", inside=True)]


class ChatLine(_Strict):
    """A line of the Batch format with messages."""

    custom_id: Id
    id: Annotated[Any, NotServed(_HERE_CUSTOM_ID)] = None
    method: Annotated[Literal["POST"], Must('"POST"')] | None = None
    url: Annotated[Literal["/v1/chat/completions"], Must("text")]
    body: Annotated[ChatBody, Must("an object", inside=True)]


class ShortItem(ItemParameters):
    """The short form: the item's id, and exactly one of prompt, messages and input_ids."""

    id: Id
    prompt: Prompt | None = None
    messages: Messages | None = None
    input_ids: Ids | None = None
    custom_id: Annotated[Any, NotServed("it is for a Batch line, which has url and body; here it is id")] = None


Line = CompletionLine | ChatLine | ShortItem
